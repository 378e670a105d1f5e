"""Small transformers of Stable Diffusion 3 measured beside diffusers: sd3_test.py TSTITCH_BENCHMARK BENCHMARK_FOLDER SCRATCH_FOLDER

Times say nothing here; what is looked at is that every program is there, how near the outputs are to float32, and what is
said of wrong arguments. Exits with 77 where a package of the peer is missing.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import forked  # noqa: E402

try:
    import diffusers
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

program, folder, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
scratch.mkdir(parents=True, exist_ok=True)
report = scratch / "report.json"
torch.set_num_threads(1)
diffusers.FlowMatchEulerDiscreteScheduler, diffusers.SD3Transformer2DModel  # noqa: B018, which this imports, once for all programs


def measure(*arguments: object) -> subprocess.CompletedProcess:
    return forked.run(folder / "benchmark_sd3.py", *arguments)


tiny = ["--size", "tiny", "--device", "cpu", "--steps", 4, "--repeats", 1, "--peers", "eager", "--scratch", scratch]
done = measure(program, *tiny, "--backend", "native", "native-e4m3", "--json", report)
assert done.returncode == 0, done.stdout + done.stderr
measured = json.loads(report.read_text())
assert set(measured["seconds"]) == {
    "diffusers eager", "tstitch native", "tstitch native-e4m3", "tstitch native forecast every:2",
    "tstitch native-e4m3 forecast every:2", "tstitch native forecast all:every:2",
    "tstitch native-e4m3 forecast all:every:2",
}, measured  # fmt: skip
assert all(seconds > 0 for cells in measured["seconds"].values() for cell in cells.values() for seconds in cell), measured
assert all(error < 1e-5 for error in measured["errors"]["tstitch native"]), measured
assert all(1e-4 < error < 5e-2 for error in measured["errors"]["tstitch native-e4m3"]), measured

alone = ["--size", "tiny", "--device", "cpu", "--steps", 2, "--repeats", 1, "--ratio", 0, "--scratch", scratch, "--peers"]
done = measure(program, *alone, "--backend", "native", "--forecast", "none", "--no-errors", "--json", report)
assert done.returncode == 0, done.stdout + done.stderr
assert set(json.loads(report.read_text())["seconds"]) == {"tstitch native"}, done.stdout

for arguments, words in (
    (["nowhere"], "nowhere: must be the program tstitch_benchmark, got no file"),
    ([program, "--ratio", "1.5"], "--ratio: must be in [0, 1], got [1.5]"),
    ([program, "--repeats", "0"], "--repeats: must be at least 1, got 0"),
):
    done = measure(*arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], (arguments, done.stderr)
print("every program is there")
