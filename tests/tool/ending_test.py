"""Stops tstitch_sample in the ways in which runs are stopped, and looks at what is left: ending_test.py TOOL MODEL FOLDER"""

import glob
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

tool, model, scratch = sys.argv[1:]
if os.path.ismount(f"{scratch}/full"):  # of a run that was killed
    subprocess.run(["umount", "--lazy", f"{scratch}/full"])
shutil.rmtree(scratch, ignore_errors=True)
os.makedirs(scratch, exist_ok=True)


os.environ["OMP_NUM_THREADS"] = "1"


def start(name, *options, count=10000, **how):
    """A run that draws pictures one by one into a folder of its own."""
    folder = f"{scratch}/{name}"
    command = [tool, "--model", model, "--device", "cpu", "--steps", "5", "--count", str(count), "--batch", "1"]
    command += ["--quiet", "--output", folder, "--report", f"{scratch}/{name}.json", *options]
    return folder, subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


def wait_for_pictures(folder, run, count=1):
    deadline = time.time() + 300
    while len(glob.glob(folder + "/**/*.png", recursive=True)) < count:
        if run.poll() is not None or time.time() > deadline:
            run.kill()
            raise AssertionError(f"{folder} has no {count} pictures: {end(run)}")
        time.sleep(0.01)


def end(run):
    _, errors = run.communicate(timeout=300)
    return run.returncode, errors


def is_whole(path):
    return open(path, "rb").read()[-8:-4] == b"IEND"


def check_left(folder, others=()):
    """What is in the folder are whole pictures, and they are those of the report."""
    report = json.load(open(folder + ".json"))
    left = set(os.listdir(folder)) - set(others)
    reported = [picture["file"] for picture in report["pictures"]]
    assert report["finished_images"] == len(reported), report["finished_images"]
    assert set(reported) == left, (sorted(set(reported) ^ left)[:5], len(left))
    assert all(is_whole(f"{folder}/{name}") for name in left)
    return len(left)


def signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        name = number.name
        latents, grid = f"{scratch}/{name}.npy", f"{scratch}/{name}.png"
        folder, run = start(name, "--latents", latents, "--grid", grid, "--scale", "1")
        wait_for_pictures(folder, run)
        run.send_signal(number)
        code, errors = end(run)
        assert (code, errors) == (128 + number, ""), (code, errors)
        count = check_left(folder)
        assert 0 < count < 10000
        assert os.path.getsize(latents) == 128 + count * 3 * 32 * 32 * 4, (os.path.getsize(latents), count)
        assert is_whole(grid)


def second_signal():
    """Both are there at once, so that the run has no time to end by itself after the first."""
    folder, run = start("second")
    wait_for_pictures(folder, run)
    run.send_signal(signal.SIGSTOP)
    for number in (signal.SIGINT, signal.SIGTERM):
        run.send_signal(number)
    run.send_signal(signal.SIGCONT)
    code, _ = end(run)
    assert code == -signal.SIGTERM, code


def closing_terminal():
    """It sends SIGHUP more than once; nohup wants none of them to count."""
    folder, run = start("closing")
    wait_for_pictures(folder, run)
    while run.poll() is None:
        run.send_signal(signal.SIGHUP)
    assert end(run)[0] == 129
    check_left(folder)
    folder, run = start("nohup", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_pictures(folder, run)
    run.send_signal(signal.SIGHUP)
    wait_for_pictures(folder, run, len(os.listdir(folder)) + 5)
    run.send_signal(signal.SIGTERM)
    assert end(run)[0] == 143
    check_left(folder)


def folder_goes_away():
    folder, run = start("goes")
    wait_for_pictures(folder, run, 5)
    os.rename(folder, folder + "-away")
    code, errors = end(run)
    assert code == 1 and errors.count("\n") == 1, (code, errors)
    assert "goes/0" in errors and ".png': must be a file that can be written, got 'No such file" in errors, errors
    assert not os.path.exists(folder)
    report = f"{scratch}/goes.json"
    assert not os.path.exists(report) or json.load(open(report))["pictures"] == []


def pictures_go_away():
    """While the run is stopped, so that it cannot end before they are gone."""
    folder, run = start("fewer", count=100)
    wait_for_pictures(folder, run, 5)
    run.send_signal(signal.SIGSTOP)
    for path in glob.glob(folder + "/00000[0-2]-*.png"):
        os.remove(path)
    run.send_signal(signal.SIGCONT)
    code, errors = end(run)
    assert code == 1 and errors.count("\n") == 1, (code, errors)
    assert "fewer': must keep the pictures that are written into it, got 3 that are gone, the first '" in errors, errors
    assert check_left(folder) == json.load(open(folder + ".json"))["images"] - 3


def swept_folder_goes_away():
    folder, run = start("swept", "--model", model, "--sweep", "0:1:0.5")
    wait_for_pictures(folder, run, 10)
    os.rename(folder, folder + "-away")
    code, errors = end(run)
    assert code == 1 and errors.count("\n") == 1, (code, errors)
    assert not os.path.exists(folder)


def limited_files():
    """A limit on file sizes is a full disk: no half of a file is left."""

    def limit(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    folder, run = start("limited", count=3, preexec_fn=limit(1000))
    code, errors = end(run)
    assert code == 1 and errors.count("\n") == 1, (code, errors)
    assert ".png': must fit on the disk, got 'File too large'" in errors, errors
    assert os.listdir(folder) == []
    # What is known before the work is said before it.
    latents = f"{scratch}/limited.npy"
    folder, run = start("unlimited", "--latents", latents, preexec_fn=limit(1000000))
    code, errors = end(run)
    assert code == 1 and errors.count("\n") == 1, (code, errors)
    assert re.search(r"limited.npy': must fit on the disk, got '\d+288\d+ bytes, with room for 1000000'", errors), errors
    assert not os.path.exists(folder)


def full_disk():
    folder = f"{scratch}/full"
    os.makedirs(folder)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        print("full_disk: skipped, a small disk cannot be mounted here")
        return
    try:
        _, run = start("full")
        code, errors = end(run)
        assert code == 1 and errors.count("\n") == 1, (code, errors)
        assert ".png': must fit on the disk, got 'No space left on device'" in errors, errors
        assert check_left(folder) > 20
    finally:
        subprocess.run(["umount", folder], check=True)


def nobody_reads():
    """Like `| head -1`: a plan ends there as other programs do, a run goes on to its end."""
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run([tool, "--plan"], stdout=writing, stderr=subprocess.PIPE)
    assert (run.returncode, run.stderr) == (-signal.SIGPIPE, b""), run
    grid = f"{scratch}/unread.png"
    command = [tool, "--model", model, "--model", model, "--device", "cpu", "--steps", "3"]
    for extra in ([], ["--sweep", "0:1:0.5"]):
        run = subprocess.run(command + extra + ["--grid", grid], stdout=writing, stderr=writing)
        assert run.returncode == 0 and is_whole(grid), run
        os.remove(grid)


for case in (signals, second_signal, closing_terminal, folder_goes_away, pictures_go_away, swept_folder_goes_away,
             limited_files, full_disk, nobody_reads):
    begun = time.time()
    case()
    print(f"{case.__name__}: as it must be, {time.time() - begun:.1f} s", flush=True)
