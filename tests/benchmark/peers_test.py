"""Small networks measured beside diffusers: peers_test.py TSTITCH_BENCHMARK BENCHMARK_FOLDER SCRATCH_FOLDER

Times say nothing here; what is looked at is that every cell is there, that both programs draw the same x from the same
noise, and what is said of wrong arguments. Exits with 77 where diffusers or numpy is missing.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import forked  # noqa: E402

try:
    import diffusers
    import numpy  # noqa: F401
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

tool, folder, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
torch.set_num_threads(1)
diffusers.DDIMScheduler, diffusers.DiTTransformer2DModel  # noqa: B018, which this imports, once for all programs
report = scratch / "report.json"


def measure(*arguments: str, without: str | None = None) -> subprocess.CompletedProcess:
    """The program, with a diffusers that has not got @without."""
    hide = [without] if without else []
    return forked.run(
        folder / "benchmark_peers.py", *arguments, first=lambda: [diffusers._class_to_module.pop(name) for name in hide]
    )


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

# Forecasts, and diffusers' caches that compute as many steps: of 10 and of 6 all but 3, 5, 7 and all but 3.
of_large = {0: (10, 7), 0.4: (6, 5)}
cached = ["taylorseer", "taylorseer-lite", "first-block-cache", "taylorseer-lite+compile"]
forecasts = ["--steps", "10", "--batch", "2", "--ratio", "0,0.4,1", "--dtype", "float32", "--backend", "native",
             "--forecast", "every:2"]  # fmt: skip
done = measure(tool, *small, *forecasts, "--forecast-guidance", "every:2", "--peers", ",".join(["eager", *cached]))
assert done.returncode == 0, done.stderr
measured = json.loads(report.read_text())
for reason in measured["skipped"]:  # only what needs a compiler may be
    assert reason.startswith("diffusers taylorseer-lite+compile, float32, batch 2: "), reason
    cached.remove("taylorseer-lite+compile")
cells = {(cell["ratio"], cell["program"]): cell for cell in measured["cells"]}
whole, forecast = "tstitch native", "tstitch native forecast every:2"
ours = (whole, forecast, f"{forecast} guidance every:2")
assert set(cells) == {(ratio, program) for ratio in (0, 0.4, 1) for program in (*ours, "diffusers eager")} | {
    (ratio, f"diffusers {name}") for ratio in of_large for name in cached
}
for (ratio, program), cell in cells.items():
    steps, computed = of_large.get(ratio, (0, 0))
    assert cell["large_steps"] == steps, cell
    if program in (whole, "diffusers eager"):
        computed = steps
    near = 1 if program == "diffusers first-block-cache" else 0  # a threshold does not reach every number
    assert abs(cell["computed_large_steps"] - computed) <= near, cell
    if "taylorseer" in program:
        assert cell["setting"] == (f"cache_interval 2, max_order 1, disable_cache_before_step 3, "
                                   f"disable_cache_after_step {steps - 1}"), cell  # fmt: skip
    elif program == "diffusers first-block-cache":
        assert cell["setting"].startswith("threshold ") and float(cell["setting"].split()[1]) > 0, cell
        assert f"{program}, float32, batch 2, ratio {ratio:g}: {cell['setting']}: computes " in done.stdout
    if program.startswith("diffusers "):
        assert set(cell["times_as_long_as"]) == set(ours), cell
assert " 5/6" in done.stdout and ", 5 large steps computed" in done.stdout, done.stdout
# Each cache changes the pictures, as do forecasts, and none by much; finite they are, or the program would have failed.
away = {entry["program"]: entry["relative_rms_difference"] for entry in measured["accuracy"]}
assert set(away) == {*ours, "diffusers eager", *(f"diffusers {name}" for name in cached)}
for program, difference in away.items():
    if program in (whole, "diffusers eager"):
        assert difference < 2e-6, away
    else:
        assert away["diffusers eager"] + 1e-7 < difference < 0.05, away
compiled = away.get("diffusers taylorseer-lite+compile")
assert compiled is None or abs(compiled / away["diffusers taylorseer-lite"] - 1) < 0.01, away

# A cache that diffusers does not have is left out, the other is not.
done = measure(tool, *small, *forecasts, "--no-accuracy", "--ratio", "0.4", "--peers", "taylorseer,first-block-cache",
               without="TaylorSeerCacheConfig")  # fmt: skip
assert done.returncode == 0, done.stderr
measured = json.loads(report.read_text())
reason = f"diffusers taylorseer, float32, batch 2: NotImplementedError: diffusers {diffusers.__version__} has no TaylorSeerCacheConfig"
assert measured["skipped"] == [reason] and f"left out: {reason}\n" in done.stdout, measured["skipped"]
assert {cell["program"] for cell in measured["cells"]} == {whole, forecast, "diffusers first-block-cache"}

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
    ([tool, "--peers", "cache"], "argument --peers: must be values that it knows, got 'cache'"),
    ([tool, "--peers", "taylorseer", "--device", "cpu"], "--peers taylorseer: needs --forecast every:N, of which it computes as "
     "many steps, got --forecast none"),
):
    done = measure(*arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], (arguments, done.stderr)
done = measure(tool, *small, "--backend", "magic", "--peers", "", "--no-accuracy")
assert done.returncode == 1 and "got 'magic'" in done.stderr, done.stderr
done = measure(tool, *small, "--peers", "first-block-cache", "--forecast", "every:2,9", "--no-accuracy")
assert done.returncode == 1 and "order must be in [0, 8], got 9" in done.stderr, done.stderr
print("measured beside the peer, and alone")
