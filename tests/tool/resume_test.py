"""Stops tstitch_sample at random steps, by SIGTERM and by SIGKILL, and goes on: what is drawn has the bits of a run that was
never stopped: resume_test.py TOOL MODEL FOLDER"""

import glob
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

tool, model, scratch = sys.argv[1:]
shutil.rmtree(scratch, ignore_errors=True)
os.makedirs(scratch)
os.environ["OMP_NUM_THREADS"] = "1"
random.seed(5)

STEPS, BATCH, COUNT = 7, 2, 3
COMMON = [tool, "--model", model, "--model", model, "--device", "cpu", "--class", "cat", "--steps", str(STEPS)]
COMMON += ["--count", str(COUNT), "--batch", str(BATCH)]


def png(path, pixels):
    """Grey, 32 x 32."""
    rows = b"".join(b"\0" + bytes(pixels(x, y) for x in range(32)) for y in range(32))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return path


begun_from = png(f"{scratch}/image.png", lambda x, y: 8 * x)
mask = png(f"{scratch}/mask.png", lambda x, y: 4 * (x + y))
momentum = ["--guidance", "2", "--guidance-projection", "0.5,5,-0.5"]
masked = ["--init-image", begun_from, "--mask", mask, "--strength", "0.9"]
forecasts = ["--forecast", "all:every:2,1,1", "--guidance", "2", "--forecast-guidance", "every:2,0,0"]
# Each with what it writes: pictures one by one, or all into files at the end.
CASES = {
    "unipc": (["--sampler", "unipc", *momentum], False),
    "dpm-solver": (["--sampler", "dpm-solver++", "--order", "3", *masked, *momentum], False),
    "deis": (["--sampler", "deis", *forecasts], True),
    "pndm": (["--sampler", "pndm", "--pad-batches", *masked], False),
    "lms": (["--sampler", "lms", *momentum, *forecasts[:2], *forecasts[4:]], True),
}


def run(options, folder, gathers, *saving):
    written = ["--output", folder]
    if gathers:
        written += ["--grid", folder + ".png", "--latents", folder + ".npy"]
    return [*COMMON, *options, *written, *saving]


def files_in(folder):
    """Of a run, without the parameters that pictures carry, which name the folder."""
    found = {}
    for path in sorted(glob.glob(folder + "/*") + glob.glob(folder + ".*")):
        data = open(path, "rb").read()
        if path.endswith(".png"):
            chunks, at = {}, 8
            while at < len(data):
                size, name = struct.unpack(">I4s", data[at : at + 8])
                chunks.setdefault(name, []).append(data[at + 8 : at + 8 + size])
                at += 12 + size
            data = [chunks[b"IHDR"], chunks[b"IDAT"]]
        found[path[len(folder) :]] = data
    return found


def stop(command, number, path):
    """Sends the signal when the file was written a random number of times."""
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    left, last, deadline = random.randrange(1, STEPS * 2), None, time.time() + 300
    while left > 0 and program.poll() is None and time.time() < deadline:
        try:
            status = os.stat(path)
            now = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            now = last
        left -= now != last
        last = now
        time.sleep(0.001)
    program.send_signal(number)
    said, errors = program.communicate(timeout=300)
    return program.returncode, said, errors


def resume(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.returncode, done.stderr)
    return done.stdout


def tries():
    """Two of each signal for each sampler; some are stopped more than once."""
    stopped = 0
    for name, (options, gathers) in CASES.items():
        reference = f"{scratch}/{name}"
        resume(run(options, reference, gathers))
        expected = files_in(reference)
        assert len(expected) == COUNT + 2 * gathers, list(expected)
        for attempt in range(4):
            number = (signal.SIGTERM, signal.SIGKILL)[attempt % 2]
            folder, path = f"{scratch}/{name}-{attempt}", f"{scratch}/{name}-{attempt}.run"
            code, said, errors = stop(run(options, folder, gathers, "--save-run", path, "--save-every", "1"), number, path)
            goes_on = run(options, folder, gathers, "--resume", path, "--save-every", "1")
            if attempt == 3 and code == -number:
                for part in glob.glob(path + ".part*"):
                    os.remove(part)  # half a file, of which the name says so
                code, said, errors = stop(goes_on, number, path)
            before = {each: os.stat(each).st_mtime_ns for each in glob.glob(folder + "/*.png")}
            if not os.path.exists(path):  # all was drawn
                assert code in (0, 143, -number), (name, code, errors)
            else:
                stopped += 1
                assert code == (143 if number == signal.SIGTERM else -number), (name, code, errors)
                if number == signal.SIGTERM:
                    place = re.search(r"run: step (\d+) of \d+ of pictures (\d+) to (\d+) of 3 in /", said)
                    assert place and int(place.group(1)) <= STEPS, said
                    finished = int(place.group(2)) - 1
                    assert len(before) == finished, (said, before)
                    assert glob.glob(path + ".part*") == []
                resume(goes_on)
                assert not os.path.exists(path)
                if number == signal.SIGTERM and not gathers:  # what was on the disk is not written again
                    for each in sorted(before)[: max(finished - BATCH, 0)]:
                        assert os.stat(each).st_mtime_ns == before[each], each
            for part in glob.glob(path + ".part*"):
                os.remove(part)
            found = files_in(folder)
            assert found == expected, (name, attempt, [each for each in expected if found.get(each) != expected[each]])
        print(f"{name}: goes on to the same bits, {stopped} runs were stopped so far", flush=True)
    assert stopped >= 12, stopped
    return stopped


def refusals():
    options, _ = CASES["unipc"]
    folder, path = f"{scratch}/refused", f"{scratch}/refused.run"
    command = run(options, folder, False)
    while not os.path.exists(path):
        stop([*command, "--save-run", path, "--save-every", "1"], signal.SIGTERM, path)
    whole = open(path, "rb").read()

    def refused(code, words, *changed):
        done = subprocess.run([*changed], capture_output=True, text=True)
        assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1, (changed, done)
        assert os.path.exists(path)

    def other(option, value):
        changed = list(command)
        changed[changed.index(option) + 1] = value
        return [*changed, "--resume", path]

    refused(2, "--resume: steps must be what the run of '", *other("--steps", "9"))
    refused(2, "was begun with, 7, got 9", *other("--steps", "9"))
    refused(2, "--resume: sampler must be", *other("--sampler", "ddim"))
    refused(2, "--resume: images must be", *other("--count", "6"))
    refused(2, "--resume: class must be", *other("--class", "dog"))
    refused(2, "--resume: guidance must be", *other("--guidance", "3"))
    refused(2, "--resume: batch must be", *other("--batch", "1"))
    refused(2, "--resume: output must be", *other("--output", folder + "-other"))
    refused(2, "--resume: seed must be", *command, "--seed", "1", "--resume", path)
    refused(2, "--resume: contents of --init-image must be", *command, "--init-image", begun_from, "--resume", path)
    refused(2, "--save-run: must be a file that is not there yet", *command, "--save-run", path)
    refused(2, "--save-every: must come with --save-run or --resume, got none", *command, "--save-every", "3")
    refused(1, "nowhere.run': must be a file that can be read, got none", *command, "--resume", f"{scratch}/nowhere.run")
    refused(1, "must be a file of save_trajectory, got", *command, "--resume", mask)
    open(path, "wb").write(whole[: len(whole) // 2])
    refused(1, "refused.run': must be a file of save_trajectory, got", *command, "--resume", path)
    open(path, "wb").write(whole)
    resume([*command, "--resume", path])


begun = time.time()
print(f"tries: {tries()} of 20 were stopped and went on to the same bits, {time.time() - begun:.1f} s", flush=True)
begun = time.time()
refusals()
print(f"refusals: as they must be, {time.time() - begun:.1f} s", flush=True)
