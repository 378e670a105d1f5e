"""Compiled networks compute what TorchScript does: aot_inductor_test.py SAMPLE INSPECT CALLS EXPORTERS SCRATCH

Exports a tiny DiT as TorchScript, compiled for any batch and compiled for two batch sizes; has tstitch_sample draw with
each and with pairs of them, with forecasts where they have parts, has a program call them in every way, and tries what
must be refused. Of a tiny U-Net it looks at forecasts of the deep feature.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sample, inspect, calls, export, scratch = (Path(argument).resolve() for argument in sys.argv[1:])
if shutil.which("g++") is None:
    print("AOTInductor needs g++, which is not installed")
    sys.exit(77)

# What calls the kernels takes longest to compile. One package, the relative one, has it as it usually is.
LEVEL = "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"
os.environ[LEVEL] = "O0"
import torch  # noqa: E402

sys.path.insert(0, str(export))
import export_dit  # noqa: E402
import export_unet  # noqa: E402
import harness  # noqa: E402
from common import Config  # noqa: E402
from dit import DiT, DiTConfig  # noqa: E402
from unet import make_unet  # noqa: E402

ASKED = ("--heads", 2, "--null-class", 3, "--latent-scale", 0.18215)  # which the tensors do not tell
TOLERANCE = 1e-5  # of the RMS of latents, for the RMS of differences

shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs
torch.set_num_threads(2)  # so that code could be compiled for two


def exported(name: str, *arguments: object) -> Path:
    path = scratch / name
    message = harness.run(export_dit, scratch / "weights.pt", path, *ASKED, "--name", "tiny", *arguments)
    assert not message, message
    return path


def must_refuse(*arguments: object, says: str) -> None:
    message = harness.run(export_dit, scratch / "weights.pt", scratch / "refused.pt2", *ASKED, *arguments)
    harness.require_refusal(message, (says,), scratch)


def tool(*arguments: object, classes: bool = True) -> subprocess.CompletedProcess:
    command = [sample, "--device", "cpu", *(("--class", 1) if classes else ()), "--steps", 10, "--quiet", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=scratch)


def must_fail(*arguments: object, says: str, classes: bool = True) -> None:
    ended = tool(*arguments, "--latents", "absent.npy", classes=classes)
    assert ended.returncode in (1, 2) and says in ended.stderr, (says, ended)
    assert ended.stderr.count("\n") == 1 and not (scratch / "absent.npy").exists(), ended


def drawn(*models: Path, guidance: float = 1, batch: int = 3, more: tuple = (), classes: bool = True) -> torch.Tensor:
    """Three pictures. By hand, because numpy is not everywhere."""
    named = [word for model in models for word in ("--model", model)]
    words = ("--count", 3, "--batch", batch, "--guidance", guidance, "--latents", "latents.npy")
    ended = tool(*named, *words, *more, classes=classes)
    assert ended.returncode == 0, ended
    data = (scratch / "latents.npy").read_bytes()
    start = 10 + int.from_bytes(data[8:10], "little")
    header = ast.literal_eval(data[10:start].decode())
    assert header["descr"] == "<f4" and not header["fortran_order"], header
    return torch.frombuffer(bytearray(data[start:]), dtype=torch.float32).reshape(header["shape"])


def must_agree(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    difference = ((got - expected).square().mean() / expected.square().mean()).sqrt().item()
    assert difference < TOLERANCE, f"difference {difference:.2e} of the RMS"


config = DiTConfig(size=8, width=32, depth=1, heads=2, num_classes=3)
torch.manual_seed(0)
network = DiT(config)
with torch.no_grad():
    for parameter in network.parameters():  # the gates and the last layer begin at zero, which would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
torch.save(network.state_dict(), scratch / "weights.pt")

plain = exported("plain.pt")
compiled = ("--format", "aot-inductor")
anything = exported("any.pt2", *compiled, "--forecast-parts")
# Recognised by what is in it.
several = exported("several.pt", *compiled, "--batch", "2,4")
files = {path.name for path in scratch.iterdir()}
assert files == {"weights.pt", "plain.pt", "any.pt2", "several.pt"}, f"nothing else must be left, got {files}"
parallel = anything.read_bytes().count(b"#pragma omp parallel")
assert parallel and b"num_threads(" not in anything.read_bytes(), "threads must be as many as there are where it runs"
# The second model of a list shares the weights of the first, and so do parts.
for package, models in ((several, 2), (anything, 4)):
    weight = bytes(network.final_layer.linear.weight.detach().untyped_storage().tolist())
    copies = package.read_bytes().count(weight)
    assert copies == 1, f"{package}: {models} models must have the weights once, got {copies} times"

expected = drawn(plain)
for model in (anything, several):
    must_agree(drawn(model), expected)
    must_agree(drawn(model, batch=1), expected)  # filled up where batches are 2 and 4
expected = drawn(plain, plain, guidance=2, batch=2)
for pair in ((plain, several), (anything, plain), (several, anything)):
    must_agree(drawn(*pair, guidance=2, batch=2), expected)

# Forecasts are those of TorchScript, filled up to a batch that was compiled, too.
filled = exported("filled.pt2", *compiled, "--batch", "4", "--forecast-parts")
forecasts = ("--forecast", "every:2", "--forecast-guidance", "every:2")
for guidance, more in ((1, forecasts[:2]), (2, forecasts[:2]), (2, forecasts)):
    expected = drawn(plain, guidance=guidance, batch=2, more=(*more, "--backend", "torchscript"))
    whole = drawn(plain, guidance=guidance, batch=2)
    change = ((whole - expected).square().mean() / expected.square().mean()).sqrt().item()
    assert change > 100 * TOLERANCE, f"forecasts must make a difference, got {change:.2e}"
    for package in (anything, filled):
        must_agree(drawn(package, guidance=guidance, batch=2, more=more), expected)
must_fail("--model", several, *forecasts, says="files exported with parts: of U-Nets by --deep-feature, packages by "
          "--forecast-parts)")  # fmt: skip


def without(package: Path, *folders: str) -> Path:
    """A copy that lacks these models."""
    copy, reader = scratch / "lacking.pt2", torch._C.PyTorchFileReader(str(package))
    writer = torch._C.PyTorchFileWriter(str(copy))
    for name in reader.get_all_records():
        if not any(f"/{folder}/" in name for folder in folders) and not name.startswith(("version", "byteorder", ".data/")):
            data = reader.get_record(name)
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return copy


for part in ("embed", "blocks", "head"):
    lacking = without(anything, f"forecast_{part}_model")
    must_fail("--model", lacking, says="must hold all models of forecast_embed, forecast_blocks and forecast_head, or none, "
              f"got none called forecast_{part}_model")  # fmt: skip

# A U-Net's feature is forecast by itself.
unet = scratch / "unet"
unet.mkdir()
shape = {"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [8], "down_block_types": ["DownBlock2D"],
         "up_block_types": ["UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4, "mid_block_type": None}  # fmt: skip
(unet / "config.json").write_text(json.dumps(shape))
torch.manual_seed(0)
torch.save(make_unet(export_unet.read_config(Config(unet / "config.json"), 6)[0]).state_dict(),
           unet / "diffusion_pytorch_model.bin")  # fmt: skip
said = ("--prediction", "epsilon", "--noise-schedule", "linear", "--beta-start", 1e-4, "--beta-end", 0.02, "--decoding", "none",
        "--dtype", "float32")  # fmt: skip
for name, options in (("unet.pt", ()), ("unet.pt2", (*compiled, "--batch", "2"))):
    message = harness.run(export_unet, unet, scratch / name, *said, "--deep-feature", *options)
    assert not message, message
more = ("--forecast", "every:2,0")
expected = drawn(scratch / "unet.pt", more=more, classes=False)
assert (drawn(scratch / "unet.pt", classes=False) - expected).abs().max() > 1e-3
must_agree(drawn(scratch / "unet.pt2", batch=2, more=more, classes=False), expected)
whole = without(scratch / "unet.pt2", *(f"forecast_{part}_2_rows" for part in ("embed", "blocks", "head")))
must_fail("--model", whole, says="tstitch/forecast must be left out of packages without parts, got 'feature'", classes=False)

ended = subprocess.run([calls, plain, anything, several, scratch / "unet.pt2"], capture_output=True, text=True)
assert ended.returncode == 0, ended
few = ["--device", "cpu", "--rows", "1", "--steps", "4", "--count", "2"]
ended = subprocess.run([inspect, *few, "--details", anything, several], capture_output=True, text=True)
assert ended.returncode == 0 and "yes, they fit together" in ended.stdout, ended
for target in ("cpu, float32, batches of 1-512", "cpu, float32, batches of 2 4"):
    assert target in ended.stdout, ended.stdout

must_fail("--model", several, "--count", 5, "--guidance", 1, says="a batch must have 1 to 4 rows, which it was")
must_fail("--model", anything, "--dtype", "float16", says="must be compiled for float16, got one for float32")
whole = anything.read_bytes()
for share in (0.1, 0.5, 0.99):
    (scratch / "cut.pt2").write_bytes(whole[: int(len(whole) * share)])
    must_fail("--model", "cut.pt2", says="must be a TorchScript file or an AOTInductor package, got")


def exporter(output: str, **environment: str) -> subprocess.CompletedProcess:
    """As a program of its own, in the scratch folder."""
    words = [sys.executable, export / "export_dit.py", "weights.pt", output, *ASKED, *compiled, "--batch", "1"]
    environment = {name: value for name, value in (os.environ | environment).items() if name != LEVEL}
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=scratch, env=environment)


# To a path that is not absolute, though the compiler runs elsewhere.
ended = exporter("relative.pt2")
assert ended.returncode == 0, ended
must_agree(drawn(scratch / "relative.pt2", batch=1), drawn(plain))
# What the compiler says is said.
broken = scratch / "broken-compiler"
real = shutil.which("g++")
broken.write_text(f"""#!/bin/sh
case "$*" in
*.cpp*) echo "here.cpp:3:1: fatal error: no such header" >&2; exit 1 ;;
esac
exec {real} "$@"
""")
broken.chmod(0o755)
before = {path.name for path in scratch.iterdir()}
ended = exporter("refused.pt2", CXX=str(broken))
assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == (
    "--format: aot-inductor must be able to compile the network, got 'here.cpp:3:1: fatal error: no such header'"
), ended
assert {path.name for path in scratch.iterdir()} == before, "nothing of what is refused is left"

must_refuse("--batch", "8", says="--batch: is for --format aot-inductor, got torchscript")
must_refuse("--device", "cpu", says="--device: is for --format aot-inductor, got torchscript")
must_refuse("--forecast-parts", says="--forecast-parts: is for --format aot-inductor, got torchscript, which has the parts anyway")
must_refuse(*compiled, "--batch", "2-8", says="must be a range as 1-512 or a list as 1,2,8, got '2-8'")
must_refuse(*compiled, "--batch", "2,2", says="must be rising numbers in [1, 1000000], got '2,2'")
must_refuse(*compiled, "--batch", "1-0", says="must be rising numbers in [1, 1000000], got '1-0'")
if not torch.cuda.is_available():
    must_refuse(*compiled, "--device", "cuda", says="--device: must be cpu where there is no GPU")
print("compiled, drawn and called")
