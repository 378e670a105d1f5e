"""Data sets of tstitch_generate: generate_test.py TSTITCH_GENERATE MODEL PIPELINE SCRATCH_FOLDER

The same files whatever the world: drawn by one process, by two and three under torchrun, with workers that are killed
and come again, stopped and gone on with; read as their readers read them. And every fault by its name, with an exit
code that is not 0, within 30 s.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("model")
parser.add_argument("pipeline")
parser.add_argument("scratch", type=Path)
ARGUMENTS = parser.parse_args()
SCRATCH = ARGUMENTS.scratch.resolve()
shutil.rmtree(SCRATCH, ignore_errors=True)
SCRATCH.mkdir(parents=True)
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ALONE = {name: value for name, value in os.environ.items()
         if name not in NAMES and not name.startswith(("OMPI_", "SLURM_", "TORCHELASTIC_"))} | {"OMP_NUM_THREADS": "1"}  # fmt: skip
IMAGES, BATCH = 36, 8
LEASE = 2
SLOW = 3  # steps, for what is to be interrupted


def command(folder: str, *more: str, images: int = IMAGES, steps: int = 1) -> list[str]:
    return [ARGUMENTS.program, "--model", ARGUMENTS.model, "--device", "cpu", "--output", str(SCRATCH / folder),
            "--images", str(images), "--steps", str(steps), "--batch", str(BATCH), "--lease", str(LEASE), *more]  # fmt: skip


def run(words: list[str], code: int = 0, environment: dict[str, str] | None = None, seconds: float = 60) -> str:
    done = subprocess.run(words, env=ALONE | (environment or {}), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=seconds, check=False)  # fmt: skip
    if (done.returncode != code) if code >= 0 else done.returncode == 0:
        sys.exit(f"{' '.join(words)}\nmust end with {code}, got {done.returncode}\n{done.stdout}")
    return done.stdout


def refused(what: str, *words: str, code: int = 1, environment: dict[str, str] | None = None) -> None:
    begin = time.monotonic()
    said = run(list(words), code, environment)
    if what not in said:
        sys.exit(f"{' '.join(words)}\nmust say '{what}', got\n{said}")
    if time.monotonic() - begin > 30:
        sys.exit(f"{' '.join(words)}\nmust end within 30 s, took {time.monotonic() - begin:.1f}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def world(rank: int, size: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def start(words: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(words, env=ALONE | (environment or {}), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0) -> str:
    said = process.communicate(timeout=60)[0]
    if (process.returncode != code) if code >= 0 else process.returncode == 0:
        sys.exit(f"{' '.join(process.args)}\nmust end with {code}, got {process.returncode}\n{said}")
    return said


def parts(folder: str) -> list[Path]:
    return sorted((SCRATCH / folder / "parts").glob("*.json"))


def wait_for(there, rule: str) -> None:
    end = time.monotonic() + 60
    while not there():
        if time.monotonic() > end:
            sys.exit(f"{rule} in 60 s, got nothing")
        time.sleep(0.01)


def wait_for_parts(folder: str, count: int) -> None:
    wait_for(lambda: len(parts(folder)) >= count, f"{folder}: must have {count} parts")


def torchrun(processes: int, words: list[str]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", str(processes),
            "--master-addr", "127.0.0.1", "--master-port", str(free_port()), *words]  # fmt: skip


def together(processes: int, words: list[str]) -> list[str]:
    """The same without an agent: rank 0 has the store."""
    port = free_port()
    return [finish(each) for each in [start(words, world(rank, processes, port)) for rank in range(processes)]]


def contents(folder: str) -> dict[str, str]:
    """Every file that is there, but for the lock, by its digest."""
    root = SCRATCH / folder
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"}  # fmt: skip


def same(folder: str, other: str) -> None:
    a, b = contents(folder), contents(other)
    if a != b:
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        sys.exit(f"{folder} and {other}: must have the same files, differ in {differing}")


def manifest(folder: str) -> list[dict]:
    return [json.loads(line) for line in (SCRATCH / folder / "manifest.jsonl").read_text().splitlines()]


def check_manifest(folder: str) -> list[bytes]:
    """Its lines lead to the bytes that they say."""
    found = []
    for index, line in enumerate(manifest(folder)):
        assert line["index"] == index and line["seed"] == index and line["label"] == index % 10, line
        with (SCRATCH / folder / line["file"]).open("rb") as file:
            file.seek(line["offset"])
            found.append(file.read(line["bytes"]))
        assert f"{zlib.crc32(found[-1]):08x}" == line["crc32"], line
    assert len(found) == IMAGES
    return found


def pixels_of_png(png: bytes) -> bytes:
    """8-bit RGB without interlace; stb filters its rows."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, width, height = 8, b"", 0, 0
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", png[at + 8 : at + 8 + size])
            assert rest == [8, 2, 0, 0, 0], rest
        elif kind == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    raw, rows = zlib.decompress(data), [bytearray(3 * width)]
    for y in range(height):
        begin = y * (3 * width + 1)
        kind, row = raw[begin], bytearray(raw[begin + 1 : begin + 3 * width + 1])
        for i in range(3 * width):
            left, above, corner = row[i - 3] if i > 2 else 0, rows[-1][i], rows[-1][i - 3] if i > 2 else 0
            estimate = left + above - corner
            nearest = min((abs(estimate - value), order, value) for order, value in enumerate((left, above, corner)))
            row[i] = (row[i] + (0, left, above, (left + above) // 2, nearest[2])[kind]) % 256
        rows.append(row)
    return b"".join(rows[1:])


def npz() -> list[bytes]:
    """What one process writes, as guided-diffusion's evaluator reads it."""
    said = run(command("one"))
    assert f"{IMAGES} pictures, {IMAGES} of them drawn now" in said, said
    assert sorted(contents("one")) == ["data_set.json", "finished.json", "images.npz", "manifest.jsonl"], contents("one")
    with zipfile.ZipFile(SCRATCH / "one/images.npz") as archive:
        assert archive.testzip() is None and archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        images, labels = archive.read("arr_0.npy"), archive.read("arr_1.npy")
    assert b"'descr': '|u1'" in images[:128] and f"'shape': ({IMAGES}, 32, 32, 3, )".encode() in images[:128]
    pictures = check_manifest("one")
    assert images[-IMAGES * 3072 :] == b"".join(pictures)
    assert list(struct.unpack(f"<{IMAGES}q", labels[-8 * IMAGES :])) == [i % 10 for i in range(IMAGES)]
    assert len(set(pictures)) == IMAGES
    said = run(command("one"))
    assert "finished before: " in said, said
    return pictures


def any_batch() -> None:
    """Batches that are rounded up to the same size."""
    words = command("batch5")
    words[words.index("--batch") + 1] = "5"
    run(words)
    same("one", "batch5")


def other_formats(pictures: list[bytes]) -> None:
    together(2, command("png", "--format", "png"))
    files = check_manifest("png")
    assert manifest("png")[35]["file"] == "000000/000035.png"
    assert [pixels_of_png(file) for file in files[:3]] == pictures[:3]
    run(command("tar", "--format", "webdataset", "--shard", "15"))
    assert check_manifest("tar") == files
    assert sorted(contents("tar"))[:3] == ["000000.tar", "000001.tar", "000002.tar"]
    samples: dict[str, dict[str, bytes]] = {}
    shards = sorted((SCRATCH / "tar").glob("*.tar"))
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for member in tar:
                key, kind = member.name.split(".")
                samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert list(samples) == [f"{i:06d}" for i in range(IMAGES)]
    assert [sample["png"] for sample in samples.values()] == files
    assert [int(sample["cls"]) for sample in samples.values()] == [i % 10 for i in range(IMAGES)]
    try:
        import numpy as np
        import webdataset
    except ImportError as missing:
        print(f"skipped: webdataset's own reader, {missing}")
        return
    # Arrays in the order of the npz, by the reader that training programs use.
    read = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    read = list(read)
    assert [cls for _, cls in read] == [i % 10 for i in range(IMAGES)]
    assert np.stack([picture for picture, _ in read]).tobytes() == b"".join(pictures)


def prompts() -> None:
    """A pipeline that draws latents from text."""
    file = SCRATCH / "prompts.txt"
    file.write_text("a fox\nin the snow\nthree ships\n")

    def words(folder: str) -> list[str]:
        return [ARGUMENTS.program, "--pipeline", ARGUMENTS.pipeline, "--prompts", str(file), "--device", "cpu", "--steps", "1",
                "--images", "20", "--batch", "8", "--format", "webdataset", "--output", str(SCRATCH / folder)]  # fmt: skip

    run(words("texts"))
    together(2, words("texts_of_two"))
    same("texts", "texts_of_two")
    said = ["a fox", "in the snow", "three ships"]
    assert [line["text"] for line in manifest("texts")] == [said[i % 3] for i in range(20)]
    with tarfile.open(SCRATCH / "texts/000000.tar") as tar:
        assert tar.getnames()[:4] == ["000000.png", "000000.txt", "000001.png", "000001.txt"]
        assert tar.extractfile("000004.txt").read() == b"in the snow"
    file.write_text("a fox\nin the snow\nfour ships\n")
    refused("prompts must be what the data set was begun with", *words("texts"))


def workers() -> None:
    """Two and three under torchrun; three by hand, of whom one is killed, and one comes late."""
    run(torchrun(2, command("two")))
    same("one", "two")
    run(torchrun(3, command("three")))
    same("one", "three")


def killed() -> None:
    run(command("slow", steps=SLOW))
    port = free_port()
    words = command("killed", steps=SLOW)
    first, second = (start(words, world(rank, 3, port)) for rank in range(2))
    wait_for_parts("killed", 1)
    second.kill()
    finish(second, -1)
    late = start(words, world(2, 3, port))
    for process in (first, late):
        finish(process)
    same("slow", "killed")
    # All are killed, and another one goes on.
    port = free_port()
    words = command("resumed", steps=SLOW)
    three = [start(words, world(rank, 3, port)) for rank in range(3)]
    wait_for_parts("resumed", 1)
    for process in three:
        process.kill()
    for process in three:
        finish(process, -1)
    assert 0 < len(parts("resumed")) <= 5, parts("resumed")
    run(words)
    same("slow", "resumed")
    # Stopped, and gone on with by three.
    words = command("stopped", steps=SLOW)
    running = start(words)
    wait_for_parts("stopped", 1)
    running.send_signal(signal.SIGTERM)
    finish(running, 128 + signal.SIGTERM)
    said = together(3, words)[0]
    assert f" {IMAGES} of them" not in said and "of them drawn now" in said, said
    same("slow", "stopped")


def begun(folder: str) -> None:
    """A folder with two of its parts."""
    running = start(command(folder, steps=SLOW))
    wait_for_parts(folder, 2)
    running.send_signal(signal.SIGTERM)
    finish(running, 128 + signal.SIGTERM)


def edited() -> None:
    begun("edited")
    words = command("edited", steps=SLOW)
    folder = SCRATCH / "edited"
    part = folder / "parts/000001.npy"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("000001.npy': must be a part as it was written, got picture 15 edited or damaged", *words)
    part.write_bytes(whole[:1000])
    refused("000001.npy': must be a part as it was written", *words)
    part.unlink()
    refused("000001.npy': must be a part as it was written, got none", *words)
    part.write_bytes(whole)
    about = folder / "parts/000001.json"
    text = about.read_text()
    about.write_text(text.replace('"first": 8', '"first": 9'))
    refused("000001.json': must be the description of a part as it was written, got another one", *words)
    about.write_text("{}")
    refused("000001.json': must be the description of a part as it was written, got something else", *words)
    about.write_text(text)
    refused("steps must be what the data set was begun with, 3, got 9", *command("edited", steps=9))
    refused("images must be what the data set was begun with, 36, got 37", *command("edited", images=37, steps=SLOW))
    larger = [*words]
    larger[larger.index("--batch") + 1] = "16"
    refused("batch must be what the data set was begun with, 8, got 16", *larger)
    refused("format must be what the data set was begun with", *words, "--format", "png")
    refused("seed must be what the data set was begun with, 0, got 5", *words, "--seed", "5")
    refused("classes must be what the data set was begun with, \"all\", got [3]", *words, "--class", "cat")
    description = folder / "data_set.json"
    text = description.read_text()
    description.write_text(text.replace('"steps": 3', '"steps": 9'))
    refused("data_set.json': must be the description of a data set as it was written, got another one", *words)
    description.write_text(text)
    run(words)
    same("slow", "edited")
    (folder / "images.npz").write_bytes(b"short")
    refused("images.npz': must be there with", *words)
    refused("--shard: is for the format webdataset, got npz", *command("absent", "--shard", "3"), code=2)
    refused("--format: must be one of npz, png, webdataset, got 'zip'", *command("absent", "--format", "zip"), code=2)
    refused("--images: must be in [1, 100000000], got '0'", *command("absent", images=0), code=2)
    refused("--seed: must leave room", *command("absent", "--seed", str(2**64 - 1)), code=2)
    assert not (SCRATCH / "absent").exists()
    full = SCRATCH / "full_of_others"
    full.mkdir()
    (full / "holiday.txt").write_text("here")
    refused("must be empty or have a data set that was begun, got one with 'holiday.txt'", *command("full_of_others"))
    assert sorted(os.listdir(full)) == ["holiday.txt"], os.listdir(full)


def one_run_at_a_time() -> None:
    words = command("locked", steps=200)
    running = start(words)
    wait_for(lambda: (SCRATCH / "locked/data_set.json").exists(), "locked: must be begun")
    refused("must be no other run's, got one that another run is drawing into", *words)
    shutil.rmtree(SCRATCH / "locked")
    said = finish(running, 1)
    assert "locked'" in said and "must stay where it is" in said or "must be a file that can be written" in said, said


def places_to_meet() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        at = f"tstitch::TCPStore: '127.0.0.1:{port}': "
        closed = free_port()
        lost = world(1, 2, free_port())
        first = world(0, 2, int(lost["MASTER_PORT"]))
        with ThreadPoolExecutor() as pool:
            waits = [
                pool.submit(refused, f"{at}must be a port that is free, to host the store", *command("taken"),
                            environment=world(0, 2, port)),
                pool.submit(refused, f"{at}must have a store of torch.distributed that answers", *command("silent"),
                            environment=world(1, 2, port)),
                pool.submit(refused, f"'127.0.0.1:{closed}': must have a store of torch.distributed that answers",
                            *command("closed"), environment=world(1, 2, closed)),
            ]  # fmt: skip
            # The host of the store is gone.
            host = start(command("lost", steps=SLOW), first)
            other = start(command("lost", steps=SLOW), lost)
            wait_for_parts("lost", 1)
            host.kill()
            host.communicate()
            begin = time.monotonic()
            said = finish(other, 1)
            assert said.count("\n") < 12 and "frame #" not in said, said
            assert "must go on to have the store of the run" in said and time.monotonic() - begin < 30, said
            for each in waits:
                each.result()
    refused("RANK must be below WORLD_SIZE, 2, got 2", *command("absent"), code=2, environment=world(2, 2, 1))
    refused("WORLD_SIZE must be set where torchrun's other names are", *command("absent"), code=2,
            environment={"RANK": "0"})  # fmt: skip


def one_fails_and_all_end() -> None:
    """What goes wrong at one worker ends all, and each says so."""
    begun("failing")
    (SCRATCH / "failing/parts/000000.npy").write_bytes(b"damaged")
    port = free_port()
    words = command("failing", steps=SLOW)
    both = [start(words, world(rank, 2, port)) for rank in range(2)]
    said = [finish(process, 1) for process in both]
    assert sum("000000.npy': must be a part as it was written" in text for text in said) == 2, said
    assert sum("stopped, for another worker failed: worker " in text for text in said) == 1, said


def full_disk() -> None:
    if os.geteuid() != 0:
        print("a full disk was left out: it needs root")
        return
    disk = SCRATCH / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False).returncode:
        print("a full disk was left out: no tmpfs can be mounted")
        return
    try:
        refused("images.npz': must fit on the disk", *command("disk/npz", images=1000))
        refused("must fit on the disk, got 'No space left on device'", *command("disk/png", "--format", "png"))
        whole = [path for path in parts("disk/png") if path.with_suffix(".tar").exists()]
        assert whole, "what was finished must be there"
        for path in whole:
            with tarfile.open(path.with_suffix(".tar")) as tar:
                assert len(tar.getnames()) == len(json.loads(path.read_text())["pictures"])
    finally:
        subprocess.run(["umount", disk], check=True)


PICTURES = npz()
any_batch()
other_formats(PICTURES)
prompts()
workers()
killed()
edited()
one_run_at_a_time()
one_fails_and_all_end()
full_disk()
places_to_meet()
shutil.rmtree(SCRATCH)
print(f"data sets: the same whatever the world, {sum(os.times()[2:4]):.0f} s of processor time in programs")
