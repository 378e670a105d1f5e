"""Small networks measured beside diffusers: peers_test.py TSTITCH_BENCHMARK BENCHMARK_FOLDER SCRATCH_FOLDER

Times say nothing here; what is looked at is that every cell is there, that both programs draw the same x from the same
noise, and what is said of wrong arguments. Exits with 77 where diffusers or numpy is missing.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import diffusers  # noqa: F401
    import numpy  # noqa: F401
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

tool, folder, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
report = scratch / "report.json"


def measure(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, folder / "benchmark_peers.py", *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


small = ["--size", "tiny", "--device", "cpu", "--steps", "3", "--batch", "1,2", "--ratio", "1,0", "--repeats", "1",
         "--rounds", "1", "--threads", "1", "--scratch", scratch / "networks", "--json", report]  # fmt: skip
done = measure(tool, *small, "--peers", "eager", "--dtype", "bfloat16,float32")
assert done.returncode == 0, done.stderr
measured = json.loads(report.read_text())
assert measured["skipped"] == [] and measured["threads"] == 1 and "exported the large network" in done.stdout
cells = {(cell["dtype"], cell["batch"], cell["ratio"], cell["program"]): cell for cell in measured["cells"]}
programs = ("tstitch torchscript", "tstitch native", "diffusers eager")
assert set(cells) == {
    (dtype, batch, ratio, program)
    for dtype in ("float32", "bfloat16") for batch in (1, 2) for ratio in (0, 1) for program in programs
}  # fmt: skip
for (_, batch, _, program), cell in cells.items():
    assert cell["seconds"] > 0 and abs(cell["images_per_second"] * cell["seconds"] - batch) < 1e-6
    assert ("times_as_long_as" in cell) == (program == "diffusers eager"), cell
for entry in measured["accuracy"]:
    assert entry["ratio"] == 0.4 and entry["reference"] == "diffusers eager in float32"
    bound = 1e-5 if entry["dtype"] == "float32" else 0.05
    assert entry["relative_rms_difference"] < bound, entry
assert len(measured["accuracy"]) == 6
assert f"{'float32':<9} {2:>5} {0:>5} " in done.stdout, done.stdout

# Networks are made once, and tstitch can be measured alone.
done = measure(tool, *small, "--peers", "", "--batch", "1", "--dtype", "float32")
assert done.returncode == 0 and "exported" not in done.stdout, done.stdout + done.stderr
measured = json.loads(report.read_text())
assert {cell["program"] for cell in measured["cells"]} == set(programs[:2])
assert {entry["reference"] for entry in measured["accuracy"]} == {"tstitch torchscript in float32"}

# Weights of another deviation are other files.
done = measure(tool, *small, "--peers", "", "--batch", "1", "--dtype", "float32", "--weight-deviation", "0.02")
assert done.returncode == 0 and done.stdout.count("exported") == 2, done.stdout + done.stderr
others = list((scratch / "networks").glob("*-0.02.pt"))
assert len(others) == 2, others
for file in others:
    for name, tensor in torch.jit.load(file).named_parameters():
        if name.endswith("qkv.weight"):  # 0.18 and 0.13 by default
            assert abs(tensor.std().item() - 0.02) < 0.002, (file, name)

for arguments, words in (
    (["nowhere"], "nowhere: must be the program tstitch_benchmark, got no file"),
    ([tool, "--ratio", "0,2"], "argument --ratio: must be values that it knows, got '2.0'"),
    ([tool, "--small", "32,2"], "must be S, B, L, XL or WIDTH,DEPTH,HEADS, got '32,2'"),
    ([tool, "--weight-deviation", "0", "--device", "cpu"], "--weight-deviation: must be greater than 0 and finite, got 0"),
    ([tool, "--rounds", "0", "--device", "cpu"], "--rounds: must be at least 1, got 0"),
):
    done = measure(*arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], (arguments, done.stderr)
done = measure(tool, *small, "--backend", "magic", "--no-accuracy")
assert done.returncode == 1 and "got 'magic'" in done.stderr, done.stderr
print("measured beside the peer, and alone")
