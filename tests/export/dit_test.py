"""Exported DiTs compute what they were: dit_test.py TOOL EXPORT_FOLDER SCRATCH_FOLDER

Exports tiny networks of random weights, from files in the official layout and, where diffusers is installed, from its
folders; compares each with its source, has tstitch_sample plan with them, and tries everything that must be refused.

    python dit_test.py --random-xl FILE

writes random weights in the shape of DiT-XL/2 instead, for measuring how long its export takes.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import unittest.mock
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

here = Path(__file__).resolve().parent
export = Path(sys.argv[2]) if len(sys.argv) == 4 else here.parent.parent / "examples/export"
sys.path.insert(0, str(export))
import calibrate  # noqa: E402
import common  # noqa: E402
import export_dit  # noqa: E402
import harness  # noqa: E402
from dit import DiT, DiTConfig, sin_cos_position_embedding  # noqa: E402
from harness import relative, require_refusal  # noqa: E402

TINY = DiTConfig(channels=4, size=16, width=48, depth=2, heads=3, num_classes=5)
ASKED = ("--heads", 3, "--null-class", 5)  # which its tensors do not tell
Weights = dict[str, Tensor]
torch.set_grad_enabled(False)


def random_weights(config: DiTConfig, seed: int = 0) -> Weights:
    """In the official layout. The gates and the last layer of a new network are zero, which would hide everything."""
    with torch.device("meta"):
        network = DiT(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in network.state_dict().items()}
    return weights | {"pos_embed": sin_cos_position_embedding(config.width, config.size // config.patch)}


if sys.argv[1:2] == ["--random-xl"]:
    xl = DiTConfig(channels=4, size=32, width=1152, depth=28, heads=16, num_classes=1000)
    torch.save({name: tensor * 0.05 if tensor.ndim == 2 else tensor for name, tensor in random_weights(xl).items()},
               sys.argv[2])
    sys.exit()

tool, scratch = sys.argv[1], Path(sys.argv[3])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
skipped: list[str] = []  # parts, with what is missing for them


def run(*arguments: object) -> str:
    return harness.run(export_dit, *arguments)


def exported(source: Path, output: str, *arguments: object) -> tuple[torch.jit.ScriptModule, dict[str, str]]:
    """The network that the exporter writes, and its metadata."""
    path = scratch / output
    message = run(source, path, *arguments)
    assert not message, message
    names = (
        "name input_channels input_height prediction variance num_classes null_class class_names noise_schedule "
        "num_train_timesteps beta_start beta_end decoding latent_scale guidance_scale license architecture width depth "
        "heads patch_size mlp_ratio timestep_type"
    ).split()
    extra = {f"tstitch/{name}": "" for name in names}
    network = torch.jit.load(path, _extra_files=extra).eval()
    text = {key: value.decode() if isinstance(value, bytes) else value for key, value in extra.items()}
    return network, {key.removeprefix("tstitch/"): value for key, value in text.items()}


def must_refuse(source: Path, *arguments: object, says: str) -> None:
    """@says: the message, without the place with which it begins."""
    message = run(source, scratch / "refused.pt", *arguments)
    require_refusal(message, (says, ": ", ", got "), scratch)


def inputs(config: DiTConfig, rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(rows, config.channels, config.size, config.size, generator=generator)
    t = torch.linspace(0, 999, rows).long()
    return x, t, torch.arange(rows) % (config.num_classes + 1)


def must_agree(got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    difference = relative(got, expected)
    assert difference < tolerance, f"difference {difference:.2e} of the RMS"


def network_of(config: DiTConfig, weights: Weights) -> DiT:
    network = DiT(config).eval()
    network.load_state_dict(weights)
    return network


def saved(name: str, content: object) -> Path:
    torch.save(content, scratch / name)
    return scratch / name


# ------------------------------------------------------------------------------------------------ official layout


def check_plain_file() -> None:
    weights = random_weights(TINY)
    source = saved("official.pt", weights)
    network, info = exported(source, "tiny.pt", *ASKED, "--license", "CC0", "--guidance-scale", 1.25)
    must_agree(network(*inputs(TINY)), network_of(TINY, weights)(*inputs(TINY)))
    expected = {
        "name": "tiny", "input_channels": "4", "input_height": "16", "prediction": "epsilon",
        "variance": "learned_range", "num_classes": "5", "null_class": "5", "class_names": "",
        "noise_schedule": "linear", "num_train_timesteps": "1000", "beta_start": "0.0001", "beta_end": "0.02",
        "decoding": "none", "latent_scale": "0.18215", "guidance_scale": "1.25", "license": "CC0",
        "architecture": "dit", "width": "48", "depth": "2", "heads": "3", "patch_size": "2", "mlp_ratio": "4.0",
        "timestep_type": "int64",
    }  # fmt: skip
    assert info == expected, info

    exported(source, "again.pt", *ASKED, "--license", "CC0", "--guidance-scale", 1.25, "--name", "tiny")
    first, second = (scratch / "tiny.pt").read_bytes(), (scratch / "again.pt").read_bytes()
    assert first == second, "the same checkpoint must give the same bytes"
    assert str(export).encode() not in first, "no paths of this machine inside"


def check_shapes() -> None:
    """What the tensors tell: the table of heads, patches, channels, fixed variance, hidden width, a missing table."""
    variants = [
        (dataclasses.replace(TINY, width=384, heads=6, depth=1, size=8), ASKED[2:]),
        (dataclasses.replace(TINY, patch=4, channels=3, learned_variance=False), [*ASKED, "--decoding", "pixels"]),
        (dataclasses.replace(TINY, patch=8, mlp_ratio=2.0, depth=3), [*ASKED, "--size", 16]),
    ]
    for number, (config, arguments) in enumerate(variants):
        weights = random_weights(config, number)
        network, info = exported(saved("variant.pt", weights), "variant_out.pt", *arguments)
        must_agree(network(*inputs(config)), network_of(config, weights)(*inputs(config)))
        assert info["heads"] == str(config.heads) and info["patch_size"] == str(config.patch), info
        assert info["variance"] == ("learned_range" if config.learned_variance else "fixed"), info

    weights = random_weights(TINY)
    without = {name: tensor for name, tensor in weights.items() if name != "pos_embed"}
    network, _ = exported(saved("without.pt", without), "without_out.pt", *ASKED, "--size", 16)
    must_agree(network(*inputs(TINY)), network_of(TINY, weights)(*inputs(TINY)))


def check_training_checkpoint() -> None:
    """Holds two sets of weights, an optimiser and a command line."""
    ema, plain = random_weights(TINY, 1), random_weights(TINY, 2)
    options = argparse.Namespace(image_size=128)
    content = {"model": plain, "ema": ema, "opt": {"state": {0: {"step": 3}}}, "args": options}
    source = saved("training.pt", content)
    for arguments, weights in (([], ema), (["--weights", "ema"], ema), (["--weights", "plain"], plain)):
        network, _ = exported(source, "trained.pt", *ASKED, *arguments)
        must_agree(network(*inputs(TINY)), network_of(TINY, weights)(*inputs(TINY)))
    only_plain = saved("only_plain.pt", {"model": plain})
    network, _ = exported(only_plain, "trained.pt", *ASKED)
    must_agree(network(*inputs(TINY)), network_of(TINY, plain)(*inputs(TINY)))
    must_refuse(only_plain, "--weights", "ema", says="must hold the weights of --weights ema, got model")
    must_refuse(scratch / "official.pt", *ASKED, "--weights", "ema", says='must hold "ema" for --weights ema, got blocks.')


def check_half() -> None:
    weights = random_weights(TINY)
    expected = network_of(TINY, weights)(*inputs(TINY))
    x, t, y = inputs(TINY)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        network, _ = exported(scratch / "official.pt", "half.pt", *ASKED, "--dtype", name)
        assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype}
        must_agree(network(x.to(dtype), t, y), expected, 1e-1 if dtype == torch.bfloat16 else 2e-2)
        # Read from half precision, whose table of positions is a rounded one.
        source = saved("half_source.pt", {key: tensor.to(dtype) for key, tensor in weights.items()})
        assert exported(source, "from_half.pt", *ASKED)[0].state_dict()["pos_embed"].equal(weights["pos_embed"])


def check_calibration() -> None:
    """What layers see on the way is written, and the tool computes in 8 bits with it."""
    weights = random_weights(TINY)
    network = network_of(TINY, weights)
    schedule = export_dit.DEFAULT_SCHEDULE
    # Of one step all is known: the network is asked for noise at t = 999.
    seen: dict[str, float] = {}
    names = {id(network.get_submodule(f"blocks.{b}.{layer}").weight): f"blocks.{b}.{layer}"
             for b in range(2) for layer in calibrate.LAYERS.values()}  # fmt: skip

    def look(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if id(weight) in names:
            seen[names[id(weight)]] = x.abs().max().item()
        return product(x, weight, bias)

    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    product = torch.nn.functional.linear
    with unittest.mock.patch("torch.nn.functional.linear", look):
        network(torch.cat([x, x]), torch.full((4,), 999), torch.tensor([0, 1, 5, 5]))
    found = calibrate.calibrate(network_of(TINY, weights), TINY, schedule, 1.5, 2, steps=1, weights=False)
    first = found.largest_inputs
    assert list(found.keys()) == ["e4m3_inputs"], "which is all that compiled networks get"
    assert len(first) == 8 and len(seen) == 8, (first, seen)
    expected = [seen[f"blocks.{b}.{layer}"] for b in range(2) for layer in calibrate.LAYERS.values()]
    expected[1::4] = 0, 0  # proj, of heads that are not of 64 or 72 channels
    assert first == expected, (first, seen)
    kept = calibrate.calibrate(network_of(TINY, weights), TINY, schedule, 1.5, 2, steps=1, keep=["fc1"])
    expected[2::4] = 0, 0
    assert kept.largest_inputs == expected, (kept, seen)
    assert [scale > 0 for scale in kept.weight_scales] == 2 * [True, False, False, True], kept.weight_scales
    assert len(kept.weights) == 2 * (3 * 48 * 48 + 48 * 192), len(kept.weights)
    for width, heads, size, keep, proj in ((128, 2, 16, [], True), (144, 2, 32, [], True), (128, 2, 16, ["proj"], False),
                                           (96, 1, 16, [], False), (64, 1, 34, [], False)):  # fmt: skip
        shape = dataclasses.replace(TINY, width=width, heads=heads, size=size, depth=1)
        wide = calibrate.calibrate(network_of(shape, random_weights(shape)), shape, schedule, 1, 1, steps=1, keep=keep)
        assert [value > 0 for value in wide.largest_inputs] == [True, proj, True, True], (width, heads, size, keep)
    # Steps go from noise to picture; alpha and sigma are those of the schedule.
    for each in (schedule, schedule | {"noise_schedule": "scaled_linear"}, schedule | {"noise_schedule": "cosine"}):
        points = calibrate.trajectory(each, 20)
        assert [t for t, _, _ in points][::19] == [999, 0] and len(points) == 20, points
        assert all(abs(a * a + s * s - 1) < 1e-12 for _, a, s in points), points
        assert all(later[1] > sooner[1] for sooner, later in zip(points, points[1:], strict=False)), points
    flow = calibrate.trajectory(export_dit.FLOW_SCHEDULE, 4)
    assert flow == [(1000 * s, 1 - s, s) for s in (1, 0.75, 0.5, 0.25)], flow
    assert abs(calibrate.trajectory(schedule, 2)[0][1] ** 2 - 4.0358e-5) < 1e-9

    path, plain = scratch / "calibrated.pt", scratch / "uncalibrated.pt"
    source = saved("to_calibrate.pt", weights)
    for output, more in ((path, ("--calibrate", 3)), (plain, ())):
        message = run(source, output, *ASKED, *more)
        assert not message, message
    values = [float(line) for line in extra_of(path, "e4m3_inputs").splitlines()]
    assert [value > 0 for value in values] == 2 * [True, False, True, True], values
    pictures = {}
    for output, backend in ((path, "native-e4m3"), (plain, "native-e4m3"), (plain, "native")):
        pictures[output, backend] = drawn(output, "--backend", backend, "--steps", 4, "--guidance", 1)
    exact = pictures[plain, "native"]
    for output in (path, plain):
        assert 1e-4 < relative(pictures[output, "native-e4m3"], exact) < 0.2, output
    must_refuse(source, *ASKED, "--calibrate", 0, says="must be a number in [1, 65536], got '0'")
    alone = saved("alone.pt", random_weights(dataclasses.replace(TINY, num_classes=0)))
    must_refuse(alone, *ASKED[:2], "--calibrate", 1,
                says="--calibrate: must be for a network with classes, which the native engine runs, got none")  # fmt: skip
    print("calibrated")


def records_of(path: Path) -> dict[str, bytes]:
    """All but the checksum of the others."""
    reader = torch._C.PyTorchFileReader(str(path))
    return {name: reader.get_record(name) for name in reader.get_all_records() if name != ".data/serialization_id"}


def extra_of(path: Path, key: str) -> bytes:
    return records_of(path)[f"extra/tstitch/{key}"]


def decoded(codes: Tensor, scale: float) -> Tensor:
    """What codes of e4m3 mean, by its definition; uint8 of any shape."""
    values = codes.int()
    exponent, mantissa = (values >> 3) & 15, values & 7
    assert not ((exponent == 15) & (mantissa == 7)).any(), "all must be numbers"
    size = torch.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return torch.where(values >= 128, -size, size).double() * scale


def check_rounding() -> None:
    """Rounded weights compute nearly what the weights compute, on inputs that they were not rounded for."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def error(codes: Tensor, scale: float, weight: Tensor, x: Tensor) -> float:
        difference = x.double() @ (decoded(codes, scale) - weight.double()).T
        return (difference.norm() / (x @ weight.T).norm()).item()

    def to_nearest(weight: Tensor) -> tuple[Tensor, float]:
        scale = (weight.abs().max() / 448).item()
        return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale

    # Inputs of which a quarter says nearly all, as those of trained networks do; more than a block of columns.
    mix, weight = normal(50, 200), normal(64, 200) * 0.05
    seen, unseen = (normal(4000, 50) @ mix + 0.1 * normal(4000, 200) for _ in range(2))
    codes, scale, claimed, plain = calibrate.round_weight(weight, seen.T @ seen / len(seen))
    ours, nearest = error(codes, scale, weight, unseen), error(*to_nearest(weight), weight, unseen)
    print(f"outputs with weights in 8 bits: {ours:.2%} off, rounded to the nearest {nearest:.2%}")
    # In theory the error of an input's weights counts H_ii to the nearest, and 1 / U_ii^2 when it is made up for.
    hessian = (seen.T @ seen / len(seen)).double()
    order = hessian.diagonal().argsort(descending=True)
    counts = calibrate.inverse_root(hessian[order][:, order]).diagonal() ** -2
    theory = nearest * (counts.mean() / hessian.diagonal().mean()).sqrt().item()
    assert ours < nearest / 2 and abs(ours / theory - 1) < 0.5, (ours, nearest, theory)
    assert abs(claimed / error(codes, scale, weight, seen) - 1) < 1e-3, claimed
    assert abs(plain / error(*to_nearest(weight), weight, seen) - 1) < 1e-3, plain
    assert scale == (weight.abs().max() / 448).item() and codes.shape == weight.shape and codes.dtype == torch.uint8
    top = weight.abs() == weight.abs().max()
    assert (codes[top] & 127 == 126).all() and (decoded(codes, scale)[top] / weight[top] - 1).abs().max() < 1e-6

    # Inputs that are always 0, fewer rows than inputs, inputs that are copies, and no inputs at all.
    dead = seen.clone()
    dead[:, ::7] = 0
    for x in (dead, seen[:20], seen[:, torch.arange(200) // 50], seen * 1e-15, seen * 1e15):
        codes, scale, claimed, plain = calibrate.round_weight(weight, x.T @ x / len(x))
        assert claimed < plain and error(codes, scale, weight, x) < error(*to_nearest(weight), weight, x)
    for hessian in (torch.zeros(200, 200), torch.full((200, 200), float("inf"))):
        codes, scale, *_ = calibrate.round_weight(weight, hessian)
        assert codes.equal(to_nearest(weight)[0]), "where nothing is known it must be the nearest"
    # What others hand to it goes beyond the largest number.
    codes, scale, *_ = calibrate.round_weight(weight.sign() * 0.3, seen.T @ seen / len(seen))
    assert decoded(codes, scale).abs().max() == 448 * scale
    codes, scale, *_ = calibrate.round_weight(weight * 0, seen.T @ seen)
    assert scale == 1 and (codes & 127 == 0).all()


def check_calibrated_weights() -> None:
    """The exporter writes them, of the weights before their conversion; calibrate.py does the same with a file."""
    keys = ("e4m3_inputs", "e4m3_weight_scales", "e4m3_weights")
    weights = random_weights(TINY)
    path, plain, again = scratch / "calibrated.pt", scratch / "uncalibrated.pt", scratch / "calibrated_again.pt"
    scales = extra_of(path, "e4m3_weight_scales").decode().splitlines()
    codes, at = torch.frombuffer(bytearray(extra_of(path, "e4m3_weights")), dtype=torch.uint8), 0
    names = [f"blocks.{block}.{layer}.weight" for block in range(2) for layer in calibrate.LAYERS.values()]
    assert len(scales) == 8, scales
    for name, line in zip(names, scales, strict=True):
        if name.endswith("attn.proj.weight"):
            assert line == "0", line
            continue
        weight, scale = weights[name], float(torch.tensor(float(line), dtype=torch.float32))
        assert f"{scale:.9g}" == line and scale == (weight.abs().max() / 448).item(), (name, line)
        values = decoded(codes[at : at + weight.numel()].view(weight.shape), scale)
        at += weight.numel()
        assert values.abs().max() == 448 * scale, name
        assert relative(values, weight) < 1 and (values - weight).norm() / weight.norm() < 0.08, name
    assert at == len(codes), (at, len(codes))

    def calibrated(source: Path, output: Path, *arguments: object) -> str:
        return harness.run(calibrate, source, output, *arguments)

    half = scratch / "calibrated_half.pt"
    source = scratch / "to_calibrate.pt"
    assert not run(source, half, *ASKED, "--dtype", "float16", "--calibrate", 3)
    for key in keys:
        assert extra_of(half, key) == extra_of(path, key), key
    # Each kind of network, from the same checkpoint; guided as the exporter guides.
    for arguments in ((), ("--kind", "sit"), ("--arithmetic", "diffusers")):
        arguments = (*ASKED, "--name", "it", "--guidance-scale", 1.5, *arguments)
        assert not run(source, plain, *arguments) and not run(source, path, *arguments, "--calibrate", 3)
        message = calibrated(plain, again, "--images", 3)
        assert not message, message
        assert again.read_bytes() == path.read_bytes(), "one way or the other, the same bytes"
        before, after = records_of(plain), records_of(again)
        assert {name: after[name] for name in before} == before
        assert set(after) - set(before) == {f"extra/tstitch/{key}" for key in keys}, set(after) - set(before)
    # In its own place, and once more with other pictures.
    message = calibrated(again, again, "--images", 2, "--guidance-scale", 3)
    assert not message, message
    other = records_of(again)
    assert set(other) == set(after) and {name: other[name] for name in before} == before
    differ = {name for name in after if other[name] != after[name]}
    assert differ == {"extra/tstitch/e4m3_inputs", "extra/tstitch/e4m3_weights"}, differ
    assert calibrated(plain, again, "--images", 3) == "" and again.read_bytes() == path.read_bytes()
    assert calibrated(plain, again, "--images", 3, "--keep", "qkv", "--keep", "fc2") == ""
    for key in ("e4m3_inputs", "e4m3_weight_scales"):
        values = [float(line) > 0 for line in extra_of(again, key).splitlines()]
        assert values == 2 * [False, False, True, False], (key, values)
    assert calibrated(plain, again, "--images", 3) == ""
    assert calibrated(half, again) == "", "of half precision, too"

    def refuse(says: str, source: Path, *arguments: object) -> None:
        require_refusal(calibrated(source, scratch / "refused.pt", *arguments), (says, ": ", ", got "), scratch)

    def changed(**values: object) -> Path:
        common.make_canonical(plain, scratch / "changed.pt", values)
        return scratch / "changed.pt"

    assert not run(source, plain, *ASKED)
    text = scratch / "text_model.pt"
    text.write_text("not a network\n")
    refuse("must be a TorchScript file, got 'PytorchStreamReader failed", text)
    refuse("must be a TorchScript file, got none", scratch / "absent.pt")
    # With proj, which is kept anyway here, that is all.
    refuse("must leave one of qkv, proj, fc1, fc2 to 8 bits, got fc1, fc2, proj, qkv to keep",
           plain, "--keep", "qkv", "--keep", "fc1", "--keep", "fc2")  # fmt: skip
    refuse("must be a TorchScript file, got a folder", scratch)
    refuse("must be a TorchScript file, got another archive", source)
    with zipfile.ZipFile(scratch / "package.pt2", "w") as package:
        for name, content in (("archive_format", "pt2"), ("version", "3"), ("byteorder", "little")):
            package.writestr(f"package/{name}", content)
    refuse("must be a TorchScript file, got a compiled package", scratch / "package.pt2")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scratch / "linear.pt")
    refuse("tstitch/format must be 1, got nothing", scratch / "linear.pt")
    for values, says in (
        ({"architecture": "unet"}, "tstitch/architecture must be dit, dit_diffusers or sit, got 'unet'"),
        ({"prediction": "v_prediction"}, "tstitch/prediction must be epsilon or flow, got 'v_prediction'"),
        ({"prediction": "flow"}, "tstitch/noise_schedule must be flow where the prediction is, and only there, got"),
        ({"prediction": "flow", "noise_schedule": "flow"}, "prediction must be epsilon as the network's, got 'flow'"),
        ({"noise_schedule": "alphas_cumprod", "alphas_cumprod": "1\nx"}, "alphas_cumprod must be numbers in (0, 1]"),
        ({"beta_end": 2.0}, "tstitch/beta_end must be in (0, 1), got 2.0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer in [1, 1000000], got '0'"),
        ({"width": 50}, "tstitch/width must be a multiple of 4 and of heads 3, got 50"),
        ({"patch_size": 3}, "tstitch/input_height must be a multiple of patch_size 3, got 16"),
        ({"input_shape": "4 * *"}, "tstitch/input_shape must be the channels, height and width of x, got '4 * *'"),
        ({"input_shape": "4 16 8"}, "tstitch/input_width must be what tstitch/input_shape says, '4 16 8', got '16'"),
        ({"null_class": "6"}, "tstitch/null_class must be in [0, 5] or none, got '6'"),
        ({"null_class": "none"}, "y_embedder.embedding_table.weight must be [5, 48], got [6, 48]"),
        ({"mlp_ratio": "nan"}, "tstitch/mlp_ratio must be a number, got 'nan'"),
        ({"depth": 3}, "must hold every tensor of the network, got none called blocks.2."),
        ({"depth": 1}, "must hold the tensors of this network only, got also blocks.1."),
        ({"heads": 4}, "must compute what a DiT of its weights computes, got "),
        ({"guidance_scale": 1e38}, "inputs must be finite, got "),
    ):
        refuse(says, changed(**values), "--images", 1)
    refuse("must be a number in [1, 65536], got '0'", plain, "--images", 0)
    refuse("must be a finite number, got 'inf'", plain, "--guidance-scale", "inf")
    message = calibrated(plain, scratch / "no_folder/x.pt")
    assert message.endswith("must be in a folder that exists, got none"), message
    print("calibrated files")


def check_class_names() -> None:
    names = scratch / "names.txt"
    names.write_text("cat\ndog\nbird\nfrog\nship\n")
    _, info = exported(scratch / "official.pt", "named.pt", *ASKED, "--class-names", names)
    assert info["class_names"] == "cat\ndog\nbird\nfrog\nship", info
    if importlib.util.find_spec("timm") is None:
        must_refuse(scratch / "official.pt", *ASKED, "--class-names", "imagenet", says="needs the Python package timm")
    else:
        many = dataclasses.replace(TINY, num_classes=1000)
        source = saved("many.pt", random_weights(many))
        known = exported(source, "many_out.pt", "--heads", 3, "--class-names", "imagenet")[1]["class_names"].splitlines()
        assert len(known) == 1000 and known[0] == "tench, Tinca tinca" and known[207] == "golden retriever", known[:3]
        assert known[999].split(", ")[0] == "toilet tissue", known[999]
        must_refuse(scratch / "official.pt", *ASKED, "--class-names", "imagenet", says="each of the 5 classes, got 1000 lines")
    # As many names as rows, or one less, tell what the last row is.
    names.write_text("cat\ndog\nbird\nfrog\nship\nnone\n")
    _, info = exported(scratch / "official.pt", "named.pt", "--heads", 3, "--class-names", names)
    assert (info["num_classes"], info["null_class"]) == ("6", "none"), info
    names.write_text("cat\ndog\nbird\nfrog\nship\n")
    _, info = exported(scratch / "official.pt", "named.pt", "--heads", 3, "--class-names", names)
    assert (info["num_classes"], info["null_class"]) == ("5", "5"), info
    for text, says in (
        ("cat\ndog\n", "must have one line for each of the 5 classes, got 2 lines"),
        ("cat\n\nbird\nfrog\nship\n", "must have a name in each line, got none in line 2"),
    ):
        names.write_text(text)
        must_refuse(scratch / "official.pt", *ASKED, "--class-names", names, says=says)
    must_refuse(scratch / "official.pt", *ASKED, "--class-names", scratch / "no", says="must be a text file, got")


def check_refusals() -> None:
    """Of single files; @change spoils the tensors of a good one."""

    def refuse(says: str, change: Callable[[Weights], object], *arguments: object) -> None:
        weights = random_weights(TINY)
        change(weights)
        must_refuse(saved("bad.pt", weights), *(arguments or ASKED), says=says)

    refuse("must hold every tensor of the network, got none called blocks.1.attn.proj.bias",
           lambda w: w.pop("blocks.1.attn.proj.bias"))
    refuse("must hold the tensors of this network only, got also blocks.0.attn.q_norm.weight",
           lambda w: w.update({"blocks.0.attn.q_norm.weight": torch.ones(48)}))
    refuse("must hold the blocks from 0 on without a gap, got no block 2 before block 7",
           lambda w: w.update({"blocks.7.mlp.fc1.bias": torch.ones(192)}))
    refuse("blocks.0.attn.qkv.weight must be [144, 48], got [96, 48]",
           lambda w: w.update({"blocks.0.attn.qkv.weight": torch.ones(96, 48)}))
    refuse("x_embedder.proj.weight must be [width, channels, patch, patch], got [48, 16]",
           lambda w: w.update({"x_embedder.proj.weight": torch.ones(48, 16)}))
    refuse("must have square patches, got [48, 4, 2, 3]",
           lambda w: w.update({"x_embedder.proj.weight": torch.ones(48, 4, 2, 3)}))
    refuse("for each patch 16 values must come out, or twice as many with learned variance, got 48",
           lambda w: w.update({"final_layer.linear.weight": torch.ones(48, 48)}))
    refuse("pos_embed must be [1, tokens, width] with the tokens of a square, got [1, 63, 48]",
           lambda w: w.update({"pos_embed": torch.zeros(1, 63, 48)}))
    refuse("pos_embed must be the sine-cosine table of its grid, got one 0.001 off",
           lambda w: w.update({"pos_embed": w["pos_embed"] + 1e-3}))
    refuse("--size must be given, got no pos_embed to tell the height of x", lambda w: w.pop("pos_embed"))
    refuse("blocks.0.mlp.fc2.bias must hold finite numbers, got nan or infinity",
           lambda w: w["blocks.0.mlp.fc2.bias"].fill_(float("nan")))
    refuse("blocks.0.mlp.fc2.bias must be of a floating type, got int8",
           lambda w: w.update({"blocks.0.mlp.fc2.bias": torch.ones(48, dtype=torch.int8)}))
    refuse("note must be a tensor, got str", lambda w: w.update({"note": "hello"}))
    refuse("must be in the official layout, got diffusers' names",
           lambda w: w.update({"transformer_blocks.0.norm1.linear.bias": torch.ones(288)}))
    refuse("must be a DiT, which has y_embedder.embedding_table.weight, got blocks.0.",
           lambda w: w.pop("y_embedder.embedding_table.weight"))

    # All that must be asked for at once.
    refuse("--heads, --size and --null-class must be given, got a width of 48, where 384, 768, 1024, 1152 would tell; no "
           "pos_embed to tell the height of x; 6 rows of labels, which are 6 classes (--null-class none) or 5 and one for "
           "no class (--null-class 5)", lambda w: w.pop("pos_embed"), "--name", "x")
    refuse("must divide the width 48, got 5", lambda w: None, "--heads", 5)
    refuse("must be a row of the network's table of 6, or none, got 6", lambda w: None, "--heads", 3, "--null-class", 6)
    refuse("--guidance-scale: must be for a network that has a label for no class, got 3.0", lambda w: None, "--heads", 3,
           "--null-class", "none", "--guidance-scale", 3)
    refuse("must be a label or none, got '-1'", lambda w: None, "--heads", 3, "--null-class=-1")
    refuse("must be 16, the size that pos_embed in", lambda w: None, *ASKED, "--size", 32)
    refuse("must be a multiple of the patch size 2, got 15", lambda w: None, *ASKED, "--size", 15)
    refuse("must be a finite number, got 'nan'", lambda w: None, "--guidance-scale", "nan")

    other = saved("other.pt", {"conv_in.weight": torch.ones(3)})
    must_refuse(other, says="must be a DiT, which has x_embedder.proj.weight, got conv_in.weight")
    must_refuse(saved("empty.pt", {}), says="must be a DiT, which has x_embedder.proj.weight, got nothing")
    must_refuse(saved("list.pt", [1, 2]), says="must hold a state dict, got list")
    must_refuse(scratch / "absent.pt", says="must be a file of weights, got none")
    whole = (scratch / "official.pt").read_bytes()
    for name, content in (("short.pt", whole[: len(whole) // 2]), ("none.pt", b""), ("text.pt", b"not weights\n")):
        (scratch / name).write_bytes(content)
        must_refuse(scratch / name, says="must hold tensors only, got no file that torch.save wrote, or one that is cut off")
    script = scratch / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(script)
    must_refuse(script, says="must hold tensors only, got a TorchScript file")

    (scratch / "same").symlink_to(scratch)
    message = run(scratch / "official.pt", scratch / "same/official.pt", *ASKED)
    assert message.endswith("must be another file than the checkpoint, got the same"), message
    assert (scratch / "official.pt").read_bytes() == whole
    message = run(scratch / "official.pt", scratch / "no_folder/x.pt", *ASKED)
    assert message.endswith("must be in a folder that exists, got none"), message


class Code:
    """Unpickled by an unwary program, it writes a file."""

    def __reduce__(self) -> tuple:
        return Path.touch, (scratch / "code_was_run",)


def check_no_code_is_run() -> None:
    with open(scratch / "code.pt", "wb") as file:
        pickle.dump({"x_embedder.proj.weight": Code()}, file)
    for source in (scratch / "code.pt", saved("code_zip.pt", {"model": Code()})):
        must_refuse(source, says="must hold tensors only, got")
        assert not (scratch / "code_was_run").exists(), "no code of the file may run"


def check_tool() -> None:
    """A pair of networks is planned."""
    large = dataclasses.replace(TINY, width=96, depth=3)
    exported(saved("large.pt", random_weights(large)), "large_out.pt", *ASKED, "--guidance-scale", 1.25)
    models = ["--model", str(scratch / "tiny.pt"), "--model", str(scratch / "large_out.pt")]
    plan = [tool, *models, "--device", "cpu", "--steps", "4", "--plan"]
    text = subprocess.run(plan, check=True, capture_output=True, text=True).stdout
    assert "network 0 takes 2, network 1 takes 2" in text and "1.25" in text, text
    print("the tool plans with a pair")


def drawn(network: Path, *arguments: object) -> Tensor:
    """A picture of class 1 by the tool, as one vector."""
    latents = scratch / "latents.npy"
    draw = [tool, "--model", network, "--device", "cpu", "--class", 1, *arguments, "--latents", latents, "--quiet"]
    subprocess.run([str(word) for word in draw], check=True)
    written = latents.read_bytes()  # without numpy, which is not everywhere: a header and the numbers
    begin = 10 + int.from_bytes(written[8:10], "little")
    return torch.frombuffer(bytearray(written[begin:]), dtype=torch.float32)


def check_forecasts() -> None:
    """The engine forecasts what the file's own parts do."""
    for config, kind in ((TINY, ()), (dataclasses.replace(TINY, learned_variance=False), ("--kind", "sit"))):
        source = saved("forecast.pt", random_weights(config))
        path = scratch / "forecast_out.pt"
        assert not run(source, path, *ASKED, *kind)
        module = torch.jit.load(path)
        x, t, y = inputs(config)
        embedded = module.forecast_embed(x, t, y)
        assert torch.equal(module.forecast_head(embedded, module.forecast_blocks(embedded)), module(x, t, y))
        how = ["--steps", 12, "--guidance", 2]
        plain = drawn(path, *how, "--backend", "torchscript")
        for forecast in (["every:2"], ["every:3,2"], ["every:2,0,1", "--forecast-guidance", "every:2"]):
            engine, parts = (
                drawn(path, *how, "--forecast", *forecast, "--backend", backend) for backend in ("native", "torchscript")
            )
            # float32, along a trajectory
            near, far = relative(engine, parts), relative(plain, parts)
            assert near < 1e-3 and near < 0.1 * far, (forecast, near, far)
    print("forecasts by the engine and by parts")


def check_any_size() -> None:
    """One file draws pictures of every size in patches; where they stand is scaled to the extent of training."""
    source, path, fixed_path = scratch / "official.pt", scratch / "any_size.pt", scratch / "one_size.pt"
    network, _ = exported(source, path.name, *ASKED, "--interpolate")
    fixed, _ = exported(source, fixed_path.name, *ASKED)
    assert extra_of(path, "input_shape") == b"4 * *"
    x, t, y = inputs(TINY)
    assert torch.equal(network(x, t, y), fixed(x, t, y)), "its own size has the bits that it has alone"
    # What would tie the file to a device, a type or a size.
    graph = str(network.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, word
    try:
        from diffusers.models.embeddings import PatchEmbed
    except ImportError as error:
        skipped.append(f"skipped positions of diffusers: {error}")
        PatchEmbed = None
    for height, width in ((16, 16), (4, 4), (2, 10), (24, 32), (18, 16)):
        x = torch.randn(4, 4, height, width, generator=torch.Generator().manual_seed(height))
        embedded = network.forecast_embed(x, t, y)
        if PatchEmbed is not None:
            embed = PatchEmbed(16, 16, 2, 4, 48)
            embed.load_state_dict({f"proj.{name}": network.state_dict()[f"x_embedder.proj.{name}"] for name in ("weight", "bias")})
            must_agree(embedded[0], embed(x), 1e-6)
        # The patches go where they came from.
        tokens = network.forecast_blocks(embedded)
        patches = network.final_layer(tokens, embedded[1]).view(4, height // 2, width // 2, 2, 2, 8)
        expected = torch.einsum("nhwpqc->nchpwq", patches).reshape(4, 8, height, width)
        got = network(x, t, y)
        assert torch.equal(network.forecast_head(embedded, tokens), got) and torch.equal(got, expected)

    # The engine computes the same as the file, in steps that are forecast, too; at its own size the bits of the fixed file.
    how = ["--steps", 3, "--guidance", 2]
    native = [drawn(each, *how, "--backend", "native", *more) for each, more in ((path, ("--size", 16)), (fixed_path, ()))]
    assert torch.equal(*native)
    sit = scratch / "any_size_sit.pt"
    assert not run(saved("any_sit.pt", random_weights(dataclasses.replace(TINY, learned_variance=False))), sit, *ASKED, "--kind",
                   "sit", "--interpolate")  # fmt: skip
    for each, size, more in ((path, "8x24", ()), (path, "36x32", ()), (sit, "6x10", ("--forecast", "every:2"))):
        engine, oracle = (drawn(each, *how, *more, "--size", size, "--backend", name) for name in ("native", "torchscript"))
        must_agree(engine, oracle, 1e-3)
    # In 8 bits with what was seen at its own size.
    assert not run(source, path, *ASKED, "--interpolate", "--calibrate", 1)
    exact, eighth = (drawn(path, *how, "--size", "8x24", "--backend", name) for name in ("native", "native-e4m3"))
    assert 1e-4 < (eighth - exact).norm() / exact.norm() < 0.2

    def refused(network: Path, *arguments: object, words: tuple[str, ...]) -> None:
        draw = [tool, "--model", network, "--device", "cpu", "--class", 1, "--steps", 2, *arguments, "--latents", scratch / "refused.npy"]
        done = subprocess.run([str(word) for word in draw], capture_output=True, text=True)
        assert done.returncode and all(word in done.stderr for word in words), (words, done)
        assert not (scratch / "refused.npy").exists()

    advice = "(export_dit.py --interpolate makes a file for any)"
    refused(fixed_path, "--size", "8x24", words=("--shape: must be one of [4, 16, 16] for", advice, "got 4x8x24"))
    refused(path, words=("--shape: must say the sizes that the networks leave open, [4, *, *], got none",))
    refused(path, "--size", "9x8", words=("x must be [n or n / 2, 4, H, W]", "patches of 2 by 2", "9, 8]"))
    assert not run(source, path, *ASKED, "--interpolate")
    refused(path, "--size", "8x24", "--backend", "native-e4m3", words=("CalibrationOptions::shape must say the sizes",))
    must_refuse(source, *ASKED, "--interpolate", "--format", "aot-inductor",
                says="--interpolate: must not be given for --format aot-inductor, which compiles for one size, got both")  # fmt: skip
    print("any size")


def check_full_disk() -> None:
    """Says so in one line, and leaves what was there; torch by itself would end the process."""
    output = scratch / "full.pt"
    output.write_text("before")
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    for arguments in (
        ("export_dit.py", scratch / "official.pt", output, *ASKED),
        ("calibrate.py", scratch / "tiny.pt", output, "--images", 1),
    ):
        words = [str(export / arguments[0]), *map(str, arguments[1:])]
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
        last = done.stderr.splitlines()[-1]
        says = f"{output}: must be a file that can be written, got 'File too large'"
        assert done.returncode == 1 and last == says, done
        assert output.read_text() == "before"
        left = [path.name for path in scratch.iterdir() if path.suffix == ".tmp"]
        assert not left, left


def check_variants() -> None:
    """Of one folder: which of its weights are read."""
    folder = scratch / "variants"
    folder.mkdir()

    def put(name: str, value: float) -> Path:
        if ".index" not in name:
            torch.save({"x": torch.tensor(value)}, folder / name)
            return folder / name
        shards = [name.split(".")[0] + f"{value}-0000{i}-of-00002.bin" for i in (1, 2)]
        for key, shard in zip("xy", shards, strict=True):
            torch.save({key: torch.tensor(value)}, folder / shard)
        (folder / name).write_text(json.dumps({"weight_map": dict(zip("xy", shards, strict=True))}))
        return folder / name

    def value(variant: str | None = None) -> float:
        with contextlib.redirect_stderr(io.StringIO()) as text:
            found = common.load_weights(folder, variant)["x"].item()
        assert ("one variant only" in text.getvalue()) == (said and variant is None), text.getvalue()
        return found

    def must_not_load(variant: str | None, says: str) -> None:
        try:
            common.load_weights(folder, variant)
        except SystemExit as stop:
            assert str(stop) == f"{folder}: {says}", stop
            return
        raise AssertionError(f"{variant} must be refused")

    said = True
    for number, name in enumerate((
        "diffusion_pytorch_model.fp16.bin", "model.bf16.bin", "diffusion_pytorch_model.non_ema.bin",
        "pytorch_model.fp16.non_ema.bin", "diffusion_pytorch_model.bin.index.fp16.json",
        "diffusion_pytorch_model.bin.fp16.index.json",
    )):  # fmt: skip
        path = put(name, number)
        assert value() == number, name
        variant = path.name.replace(".index", "").replace(".json", "").replace(".bin", "").split(".", 1)[1]
        assert value(variant) == number, name
        path.unlink()

    # Shards that are called like variants; those of older versions of diffusers, too.
    for name in ("model.fp16-00001-of-00001.bin", "model-00001-of-00001.fp16.bin"):
        torch.save({}, folder / name)
    put("model.fp16.bin", 7)
    assert value() == value("fp16") == 7
    put("model.bf16.bin", 8)
    assert value("bf16") == 8
    must_not_load(None, "--variant must say which of the weights, got none for bf16, fp16")
    must_not_load("ema", "must hold the weights of --variant ema, got bf16, fp16")
    put("pytorch_model.bin", 9)
    said = False
    assert value() == 9 and value("fp16") == 7
    says = "--variant: must not be given for a single file, got fp16 for "
    must_refuse(scratch / "official.pt", *ASKED, "--variant", "fp16", says=says.removesuffix(" "))


def check_one_loop() -> None:
    """TorchScript compiles one block, however many there are. (Loops of up to 8 turns it writes out.)"""
    deep = dataclasses.replace(TINY, depth=10)
    network = network_of(deep, random_weights(deep))
    scripted = torch.jit.freeze(torch.jit.script(network))  # as the library runs it
    for _ in range(3):
        must_agree(scripted(*inputs(deep)), network(*inputs(deep)))
    compiled = str(torch.jit.last_executed_optimized_graph())
    assert compiled.count("aten::scaled_dot_product_attention") == 1, compiled


# ------------------------------------------------------------------------------------------------ SiT


def published_velocity(network: DiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What a published SiT predicts, data - noise; t is 1 where x is data. The second half of its output is no use."""
    return network(x, t, y)[:, : x.shape[1]]


def check_sit() -> None:
    weights = random_weights(TINY)
    network, info = exported(scratch / "official.pt", "sit.pt", "--kind", "sit", *ASKED)
    expected = {
        "name": "sit", "prediction": "flow", "noise_schedule": "flow", "num_train_timesteps": "1000",
        "timestep_type": "float32", "variance": "fixed", "architecture": "sit", "num_classes": "5", "null_class": "5",
        "beta_start": "", "beta_end": "", "input_channels": "4", "latent_scale": "0.18215", "guidance_scale": "4.0",
    }  # fmt: skip
    assert {key: info[key] for key in expected} == expected, info
    x, _, y = inputs(TINY)
    t = torch.tensor([0.0, 123.25, 999.5, 1000.0])
    velocity = -published_velocity(network_of(TINY, weights), x, 1 - t / 1000, y)
    assert relative(network_of(TINY, weights)(x, t, y)[:, :4], velocity) > 0.01, "the time must matter"
    must_agree(network(x, t, y), velocity)
    must_agree(torch.jit.freeze(network)(x, t, y), velocity)  # as the library runs it

    # The weights are the checkpoint's, but for the last layer.
    inside = network.state_dict()
    last = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert set(inside) == set(weights) and all(inside[name].equal(weights[name]) for name in set(weights) - last)
    half, _ = exported(scratch / "official.pt", "sit_half.pt", "--kind", "sit", *ASKED, "--dtype", "float16")
    must_agree(half(x.half(), t, y), velocity, 2e-2)
    exported(scratch / "official.pt", "sit_again.pt", "--kind", "sit", *ASKED, "--name", "sit")
    assert (scratch / "sit_again.pt").read_bytes() == (scratch / "sit.pt").read_bytes()

    # A training checkpoint, and a network without the second half.
    plain = dataclasses.replace(TINY, patch=4, learned_variance=False)
    ema, other = random_weights(plain, 1), random_weights(plain, 2)
    source = saved("sit_training.pt", {"model": other, "ema": ema})
    for which, chosen in (("ema", ema), ("plain", other)):
        network, _ = exported(source, "sit_plain.pt", "--kind", "sit", *ASKED, "--weights", which)
        must_agree(network(x, t, y), -published_velocity(network_of(plain, chosen), x, 1 - t / 1000, y))

    must_refuse(source, "--kind", "sit", *ASKED, "--arithmetic", "diffusers", says="must be official for SiT")
    must_refuse(scratch, "--kind", "sit", says="--kind: must be dit for a folder of diffusers")
    message = run(source, scratch / "refused.pt", "--kind", "flow")
    assert "invalid choice: 'flow'" in message, message


def check_sit_time() -> None:
    """Networks that are told 1 where x is noise; and what trained networks answer tells which they are."""
    weights = random_weights(TINY)
    x, _, y = inputs(TINY)
    t = torch.tensor([0.0, 123.25, 999.5, 1000.0])
    expected = network_of(TINY, weights)(x, t / 1000, y)[:, :4]
    for dtype, tolerance in (("float32", 2e-5), ("float16", 2e-2)):
        arguments = ("--kind", "sit", "--time", "noise", *ASKED, "--dtype", dtype)
        network, info = exported(scratch / "official.pt", "sit_noise.pt", *arguments)
        must_agree(network(x.to(getattr(torch, dtype)), t, y), expected, tolerance)
        assert info["architecture"] == "sit" and info["prediction"] == "flow", info

    # Data of a Gaussian whose neighbours are alike: what is to be predicted is known.
    places = torch.cartesian_prod(*2 * [torch.arange(16.0)])
    covariance = (-(places[:, None] - places).square().sum(2) / 18).exp() + 1e-3 * torch.eye(256)
    variances, modes = torch.linalg.eigh(covariance.double())

    def trained(told: str, predicts: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Told 1 where x is data or noise; it predicts what x turns into where t rises ("forward"), or the contrary."""

        def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            u = t[0].item()
            alpha, sigma = (u, 1 - u) if told == "data" else (1 - u, u)
            z = x.double().flatten(2) @ modes / (alpha**2 * variances + sigma**2)
            velocity = ((alpha * variances - sigma) * z) @ modes.T  # data - noise, in the mean
            sign = (1 if told == "data" else -1) * (1 if predicts == "forward" else -1)
            return (sign * velocity).view_as(x).float()

        return network

    def answer(told: str, predicts: str, noise_last: bool) -> str:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                export_dit.check_time(Path("net.pt"), trained(told, predicts), TINY, noise_last)
        except SystemExit as stop:
            return str(stop)
        return said.getvalue()

    assert answer("data", "forward", False) == "" and answer("noise", "forward", True) == ""
    assert answer("data", "forward", True) == "--time: must be data, as the network answers noise at t = 0, got noise"
    assert answer("noise", "forward", False) == "--time: must be noise, as the network answers noise at t = 1, got data"
    rule = "net.pt: must predict dx / dt along its own t, got "
    assert answer("data", "backward", False) == rule + "noise - data with noise at t = 0"
    assert answer("noise", "backward", True) == rule + "data - noise with noise at t = 1"
    for nothing in (lambda x, t, y: x * math.nan, lambda x, t, y: x * 0, lambda x, t, y: x, network_of(TINY, weights)):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            export_dit.check_time(Path("net.pt"), nothing, TINY, False)
        assert "do not tell whether t = 1 is noise or data; taking --time data" in said.getvalue(), said.getvalue()


def check_sit_sampling() -> None:
    """The tool's latents are those of loops in the published convention, from t = 0, noise, to t = 1."""
    try:
        import numpy as np

        sys.path.insert(0, str(here.parent / "peers"))
        from noise import noise
    except ImportError as error:
        skipped.append(f"skipped sampling with SiT: {error}")
        return
    large = dataclasses.replace(TINY, width=96, depth=3)
    exported(saved("large.pt", random_weights(large, 1)), "sit_large.pt", "--kind", "sit", *ASKED)
    networks = [network_of(TINY, random_weights(TINY)), network_of(large, random_weights(large, 1))]
    labels, steps, scale = [1, 3], 10, 1.5
    start = torch.from_numpy(np.stack([noise(seed, 0, 0, (4, 16, 16)) for seed in range(2)])).float()

    def velocity(network: DiT, x: Tensor, t: float) -> Tensor:
        both = published_velocity(network, torch.cat([x, x]), torch.full((4,), t), torch.tensor([*labels, 5, 5]))
        given, null = both.chunk(2)
        return null + scale * (given - null)

    def euler(network: DiT, x: Tensor, t: float) -> Tensor:
        return x + velocity(network, x, t) / steps

    def heun(network: DiT, x: Tensor, t: float) -> Tensor:
        slope, after = velocity(network, x, t), euler(network, x, t)
        if t + 1 / steps > 1 - 1e-6:  # the tool's last step is one of Euler
            return after
        return x + (slope + velocity(network, after, t + 1 / steps)) / (2 * steps)

    models = [["--model", str(scratch / name)] for name in ("sit.pt", "sit_large.pt")]
    classes = [word for label in labels for word in ("--class", str(label))]
    for sampler, step in (("ddim", euler), ("heun", heun)):
        for name, arguments, first in (
            ("one network", models[0], steps),
            ("a pair", [*models[0], *models[1], "--ratio", "0.4"], 4),
        ):
            command = [tool, *arguments, *classes, "--device", "cpu", "--steps", str(steps), "--guidance", str(scale),
                       "--sampler", sampler, "--latents", str(scratch / "sit.npy"), "--quiet"]
            subprocess.run(command, check=True)
            x = start
            for i in range(steps):
                x = step(networks[0 if i < first else 1], x, i / steps)
            difference = relative(torch.from_numpy(np.load(scratch / "sit.npy")), x)
            print(f"SiT, {sampler}, {name}: largest difference {difference:.1e} of the RMS")
            assert difference < 1e-5, difference
    command = [tool, *models[0], "--device", "cpu", "--steps", "20", "--profile", "recommended", "--plan"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "flow(1000)" in text, text


def check_command_line() -> None:
    command = [sys.executable, str(export / "export_dit.py")]
    help_text = subprocess.run([*command, "--help"], check=True, capture_output=True, text=True).stdout
    assert "--class-names" in help_text and "CHECKPOINT" in help_text, help_text
    arguments = [str(scratch / "official.pt"), str(scratch / "line.pt"), *map(str, ASKED)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    assert "reading" in done.stderr and "writing" in done.stderr and "float32" in done.stdout, done


# -------------------------------------------------------------------------------------------- other formats


def check_safetensors() -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        skipped.append(f"skipped safetensors: {error}")
        return
    weights, source = random_weights(TINY), scratch / "official.safetensors"
    save_file(weights, source)
    arguments = [*ASKED, "--license", "CC0", "--guidance-scale", 1.25, "--name", "tiny"]
    exported(source, "safe.pt", *arguments)
    assert (scratch / "safe.pt").read_bytes() == (scratch / "tiny.pt").read_bytes(), "of one source, the same bytes"
    exported(source, "safe_sit.pt", "--kind", "sit", *ASKED, "--name", "sit")
    assert (scratch / "safe_sit.pt").read_bytes() == (scratch / "sit.pt").read_bytes()
    (scratch / "short.safetensors").write_bytes(source.read_bytes()[:-100])
    must_refuse(scratch / "short.safetensors", says="must be a safetensors file, got")


def diffusers_model(diffusers: object, **arguments: object) -> torch.nn.Module:
    """A tiny random network, whose blocks share their embeddings as in a converted checkpoint."""
    torch.manual_seed(3)
    shape = {
        "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 16, "num_embeds_ada_norm": 5,
    }  # fmt: skip
    model = diffusers.DiTTransformer2DModel(**(shape | arguments)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return model


def check_diffusers() -> None:
    try:
        import diffusers
        import safetensors  # noqa: F401
    except ImportError as error:
        skipped.append(f"skipped diffusers: {error}")
        return
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    model = diffusers_model(diffusers)
    check_folders(model)
    check_official_arithmetic(model)
    check_old_config(model)
    check_fixed_variance(diffusers)
    check_pipeline(diffusers, model)
    check_saved_variants(model)
    check_folder_refusals(model)
    check_scheduler_refusals(model)
    print("diffusers' folders were exported")


def output_of(model: torch.nn.Module, config: DiTConfig = TINY) -> Tensor:
    x, t, y = inputs(config)
    return model(x, timestep=t, class_labels=y).sample


def check_folders(model: torch.nn.Module) -> None:
    """One file or many, safetensors or not, with copies of the embeddings or without."""
    expected = output_of(model)
    model.save_pretrained(scratch / "folder")
    network, info = exported(scratch / "folder", "folder.pt", "--name", "x")
    must_agree(network(*inputs(TINY)), expected)
    assert info["architecture"] == "dit_diffusers" and info["heads"] == "3" and info["num_classes"] == "5", info
    once = {
        name: tensor for name, tensor in model.state_dict().items() if "blocks.1.norm1.emb" not in name
    } | {"pos_embed.pos_embed": model.pos_embed.pos_embed}
    for name, save in (
        ("sharded", lambda folder: model.save_pretrained(folder, max_shard_size="100KB")),
        ("bin", lambda folder: model.save_pretrained(folder, safe_serialization=False)),
        ("once", lambda folder: torch.save(once, copied("bin", folder) / "diffusion_pytorch_model.bin")),
    ):
        save(scratch / name)
        exported(scratch / name, f"{name}.pt", "--name", "x")
        assert (scratch / f"{name}.pt").read_bytes() == (scratch / "folder.pt").read_bytes(), name
    assert len(list((scratch / "sharded").glob("*.safetensors"))) > 2
    x, t, y = inputs(TINY)
    network, _ = exported(scratch / "folder", "half.pt", "--dtype", "float16")
    must_agree(network(x.half(), t, y), expected, 2e-2)


def check_saved_variants(model: torch.nn.Module) -> None:
    """As this version of diffusers writes them."""
    folder = scratch / "saved_variants"
    for arguments in ({}, {"max_shard_size": "100KB"}, {"max_shard_size": "100KB", "safe_serialization": False}):
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, variant="fp16", **arguments)
        for options in ([], ["--variant", "fp16"]):
            exported(folder, "saved_variant.pt", "--name", "x", *options)
            assert (scratch / "saved_variant.pt").read_bytes() == (scratch / "folder.pt").read_bytes(), arguments
    assert len(list(folder.glob("*.fp16-*"))) > 2, "shards"
    must_refuse(folder, "--variant", "bf16", says="must hold the weights of --variant bf16, got fp16")


def copied(source: str, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scratch / source, target)
    return target


def check_official_arithmetic(model: torch.nn.Module) -> None:
    """The weights in the official network, as the official code would read them; and the other way round."""
    network, info = exported(scratch / "folder", "arithmetic.pt", "--arithmetic", "official")
    weights = network.state_dict()
    must_agree(network(*inputs(TINY)), network_of(TINY, weights)(*inputs(TINY)))
    assert info["architecture"] == "dit", info
    distance = (network(*inputs(TINY)) - output_of(model)).abs().max()
    assert distance > 1e-2, f"the frequencies must differ, got outputs {distance} apart"
    source = saved("converted.pt", dict(weights))
    network, _ = exported(source, "back.pt", *ASKED, "--arithmetic", "diffusers")
    must_agree(network(*inputs(TINY)), output_of(model))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_old_config(model: torch.nn.Module) -> None:
    """DiT was once a kind of Transformer2DModel, with keys of other kinds beside its own."""
    old = copied("folder", scratch / "old")
    change_config(
        old, _class_name="Transformer2DModel", cross_attention_dim=None, only_cross_attention=False,
        num_vector_embeds=None, use_linear_projection=False,
    )  # fmt: skip
    network, _ = exported(old, "old.pt")
    must_agree(network(*inputs(TINY)), output_of(model))


def check_fixed_variance(diffusers: object) -> None:
    """And another epsilon, patch and number of channels."""
    model = diffusers_model(diffusers, out_channels=3, in_channels=3, patch_size=4, norm_eps=1e-2)
    model.save_pretrained(scratch / "fixed")
    must_refuse(scratch / "fixed", says="--decoding must be given, got 3 channels, which may be pixels")
    network, info = exported(scratch / "fixed", "fixed.pt", "--latent-scale", 2)
    config = dataclasses.replace(TINY, channels=3, patch=4)
    must_agree(network(*inputs(config)), output_of(model, config))
    assert info["variance"] == "fixed" and info["patch_size"] == "4" and info["input_channels"] == "3", info


def check_pipeline(diffusers: object, model: torch.nn.Module) -> None:
    """Schedule, scale of the latents and names of the classes come from the folder."""
    folder = scratch / "pipeline"
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.001, beta_end=0.01, beta_schedule="scaled_linear", num_train_timesteps=500,
        prediction_type="v_prediction",
    )  # fmt: skip
    diffusers.DiTPipeline(model, vae, scheduler).save_pretrained(folder)
    assert exported(folder, "pipeline.pt")[1]["class_names"] == ""
    index = folder / "model_index.json"  # which has labels in the published pipelines
    labels = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane, bird", "3": "a  cat", "4": "ship"}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": labels}))
    network, info = exported(folder, "pipeline.pt")
    must_agree(network(*inputs(TINY)), output_of(model))
    expected = {
        "prediction": "v_prediction", "noise_schedule": "scaled_linear", "num_train_timesteps": "500",
        "beta_start": "0.001", "beta_end": "0.01", "latent_scale": "0.5", "guidance_scale": "4.0",
        "class_names": "tench, Tinca tinca\ncrane\ncrane, bird\na cat\nship",
    }  # fmt: skip
    assert {key: info[key] for key in expected} == expected, info
    assert exported(folder / "transformer", "pipeline.pt")[1]["prediction"] == "v_prediction"


def check_folder_refusals(model: torch.nn.Module) -> None:
    broken = scratch / "broken"
    sharded = copied("sharded", broken)
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    must_refuse(broken, says=f"every shard must be there, got no {lost.name}")
    next(sharded.glob("*.index.json")).unlink()
    must_refuse(broken, says="or shards of it, got config.json, diffusion_pytorch_model-")
    copied("folder", broken)
    (broken / "config.json").unlink()
    must_refuse(broken, says="must hold config.json or transformer/config.json, got diffusion_pytorch_model")

    for key, value, says in (
        ("_class_name", "UNet2DModel", "must be DiTTransformer2DModel or Transformer2DModel, got \"UNet2DModel\""),
        ("norm_type", "ada_norm", 'norm_type must be "ada_norm_zero", got "ada_norm"'),
        ("activation_fn", "geglu", 'activation_fn must be "gelu-approximate", got "geglu"'),
        ("attention_bias", False, "attention_bias must be true, got false"),
        ("sample_size", 15, "sample_size must be a multiple of patch_size 2, got 15"),
        ("out_channels", 6, "out_channels must be in_channels 4, or twice that with learned variance, got 6"),
        ("num_layers", 3, "must hold every tensor of the network, got none called transformer_blocks.2."),
        ("num_layers", 1, "must hold the tensors of this network only, got also transformer_blocks.1."),
        ("num_attention_heads", 2, "pos_embed.proj.weight must be [32, 4, 2, 2], got [48, 4, 2, 2]"),
        ("num_attention_heads", "3", 'num_attention_heads must be an integer in [1, 65536], got "3"'),
        ("num_embeds_ada_norm", 7, "embedding_table.weight must be [8, 48], got [6, 48]"),
        ("qk_norm", "rms", 'must have keys that this exporter knows, got qk_norm = "rms"'),
    ):
        change_config(copied("folder", broken), **{key: value})
        must_refuse(broken, says=says)
    must_refuse(scratch / "folder", "--size", 32, says="must be 16, which")
    must_refuse(scratch / "folder", "--heads", 2, says="must be 3, which")
    must_refuse(scratch / "folder", "--weights", "ema", says="must not be given for a folder of diffusers")

    def refuse_weights(says: str, change: Callable[[Weights], object]) -> None:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        change(weights)
        torch.save(weights, copied("bin", broken) / "diffusion_pytorch_model.bin")
        must_refuse(broken, says=says)

    refuse_weights("transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight must be equal to "
                   "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight, got other numbers",
                   lambda w: w["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"].add_(1))
    refuse_weights("got none called transformer_blocks.1.attn1.to_k.bias",
                   lambda w: w.pop("transformer_blocks.1.attn1.to_k.bias"))
    refuse_weights("got also transformer_blocks.1.attn2.to_q.weight",
                   lambda w: w.update({"transformer_blocks.1.attn2.to_q.weight": torch.ones(48, 48)}))
    refuse_weights("transformer_blocks.0.attn1.to_v.weight must be [48, 48], got [48, 24]",
                   lambda w: w.update({"transformer_blocks.0.attn1.to_v.weight": torch.ones(48, 24)}))
    refuse_weights("pos_embed must be the sine-cosine table of its grid, got one",
                   lambda w: w.update({"pos_embed.pos_embed": torch.zeros(1, 64, 48)}))
    refuse_weights("pos_embed.pos_embed must be [1, 64, 48], got [1, 16, 48]",
                   lambda w: w.update({"pos_embed.pos_embed": torch.zeros(1, 16, 48)}))


def check_scheduler_refusals(model: torch.nn.Module) -> None:
    path = scratch / "pipeline/scheduler/scheduler_config.json"
    good = path.read_text()
    for key, value, says in (
        ("beta_schedule", "sigmoid", 'beta_schedule must be linear or scaled_linear, got "sigmoid"'),
        ("prediction_type", "flow", 'prediction_type must be epsilon, v_prediction or sample, got "flow"'),
        ("beta_start", None, "beta_start must be a number, got null"),
        ("beta_end", 2, "beta_end must be in (0, 1), got 2"),
        ("trained_betas", [0.1], "trained_betas must be null, got [0.1]"),
        ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr must be false, got true"),
        ("num_train_timesteps", 0, "num_train_timesteps must be an integer in [2, 65536], got 0"),
    ):
        path.write_text(json.dumps(json.loads(good) | {key: value}))
        must_refuse(scratch / "pipeline", says=says)
    path.write_text(good)
    index = scratch / "pipeline/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"0": "one"}}))
    must_refuse(scratch / "pipeline", says="id2label must have a name for each of 0 to 4, got 1 entries")


check_plain_file()
check_shapes()
check_training_checkpoint()
check_half()
check_calibration()
check_rounding()
check_calibrated_weights()
check_class_names()
check_refusals()
check_no_code_is_run()
check_full_disk()
check_variants()
check_one_loop()
check_sit()
check_sit_time()
check_sit_sampling()
check_command_line()
check_safetensors()
check_diffusers()
check_forecasts()
check_any_size()
check_tool()
print("exported, compared and refused", *skipped, sep="\n")
sys.exit(77 if skipped else 0)
