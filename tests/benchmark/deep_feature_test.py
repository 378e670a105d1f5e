"""Small U-Nets measured beside DeepCache: deep_feature_test.py PROGRAMS BENCHMARK_FOLDER SCRATCH_FOLDER

Times say nothing here; what is looked at is that every program is there, that forecasts of order 0 make the latents that
DeepCache makes, and what is said of wrong arguments. Exits with 77 where a package of the peer is missing.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import forked  # noqa: E402

with contextlib.suppress(ImportError):  # which the program tells of
    import DeepCache  # noqa: F401
    import diffusers
    import torch

    torch.set_num_threads(1)
    diffusers.PNDMScheduler, diffusers.UNet2DConditionModel  # noqa: B018, which this imports, once for all programs

programs, folder, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
report = scratch / "report.json"


def measure(*arguments: object) -> subprocess.CompletedProcess:
    return forked.run(folder / "benchmark_deep_feature.py", *arguments)


# 7 steps of the large network: the last is one that DeepCache computes, too.
small = ["--size", "tiny", "--device", "cpu", "--steps", 14, "--batch", 2, "--repeats", 1, "--rounds", 1, "--threads", 1,
         "--scratch", scratch / "networks"]  # fmt: skip
done = measure(programs, *small, "--json", report)
if done.returncode == 77:
    print(done.stdout)
    sys.exit(77)
assert done.returncode == 0, done.stdout + done.stderr
measured = {p["program"]: p for p in json.loads(report.read_text())["programs"]}
computed = {
    "tstitch none": 7, "tstitch every:2,0,1": 4, "tstitch every:3,0,1": 3, "diffusers": 7, "DeepCache 2": 4, "DeepCache 3": 3,
}  # fmt: skip
assert {name: p["computed_steps_of_large"] for name, p in measured.items()} == computed, measured
for name, p in measured.items():
    assert p["seconds"] > 0 and p["times_as_fast_as_whole"] > 0, p
    if name in ("tstitch none", "diffusers"):
        assert p["distance_from_float32"] < 1e-5, p
    else:  # what is left out matters
        assert p["distance_from_float32"] > 1e-4, p
    if name.startswith("tstitch"):
        assert p["distance_from_deepcache"] < 1e-5, p
assert "exported the large network" in done.stdout and "times as fast as DeepCache 3" in done.stdout, done.stdout

for arguments, words in (
    (["nowhere"], "nowhere: must be the folder of tstitch_benchmark, got no such file"),
    ([programs, "--interval", "1,2"], "--interval: must be numbers from 2 on with commas between, got '1,2'"),
    ([programs, "--ratio", "1", "--device", "cpu"], "--ratio: must be in [0, 1), so that the large network has steps, got 1"),
    ([programs, "--rounds", "0", "--device", "cpu"], "--rounds: must be at least 1, got 0"),
):
    done = measure(*arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], (arguments, done.stderr)
print("forecasts of order 0 are DeepCache's")
