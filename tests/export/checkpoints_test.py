"""Checkpoints as people have them: checkpoints_test.py TOOL EXPORT_FOLDER SCRATCH_FOLDER

Each of CASES is a file, or several, with tiny networks of random weights: what export_dit.py must make of it, which is the
network of those weights, or the words with which it must refuse, writing nothing.
"""

import argparse
import collections
import dataclasses
import fractions
import io
import json
import math
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

tool, export, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(export))
import export_dit  # noqa: E402
import harness  # noqa: E402
from dit import DiT, DiTConfig, make_dit, sin_cos_position_embedding  # noqa: E402

shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
torch.set_grad_enabled(False)
Weights = dict[str, Tensor]
TINY = DiTConfig(channels=4, size=4, width=16, depth=3, heads=2, num_classes=3)
HEADS, ASKED = ("--heads", 2), ("--heads", 2, "--null-class", 3)


def random_weights(config: DiTConfig = TINY, seed: int = 0) -> Weights:
    """In the official layout, without zeros, which would hide everything."""
    with torch.device("meta"):
        network = make_dit(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(t.shape, generator=generator) * 0.2 for name, t in network.state_dict().items()}
    return weights | {"pos_embed": sin_cos_position_embedding(config.width, config.size // config.patch)}


def of(**changes: object) -> DiTConfig:
    return dataclasses.replace(TINY, **changes)


def prefixed(prefix: str, weights: Weights | None = None) -> Weights:
    return {prefix + name: tensor for name, tensor in (weights or random_weights()).items()}


def changed(config: DiTConfig = TINY, **changes: Tensor | None) -> Weights:
    """Of names with _ for their dots; None takes the tensor away."""
    weights = random_weights(config)
    for name, value in changes.items():
        [name] = [each for each in [*weights, name] if each.replace(".", "_") == name][:1]
        weights[name] = value
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


def to(dtype: torch.dtype) -> Weights:
    return {name: tensor.to(dtype) for name, tensor in random_weights().items()}


@dataclasses.dataclass
class Case:
    name: str
    content: object
    arguments: tuple = ASKED
    refused: str | None = None  # words of the refusal
    said: str = ""  # among what it says on the way
    weights: Weights = dataclasses.field(default_factory=random_weights)  # whose network the file must be
    config: DiTConfig = TINY
    keys: dict[str, str] = dataclasses.field(default_factory=dict)  # of the metadata
    tolerance: float = 2e-5


other, ema = random_weights(seed=1), random_weights(seed=2)
NO_NULL = of(null_class=None)
ALONE = of(num_classes=0)
PIXELS = of(channels=3)
FIRST = of(num_classes=4, null_class=0)
NAN, INF = math.nan, math.inf
command_line = argparse.Namespace(results_dir=pathlib.Path("runs/1"), image_size=256)
bias = torch.full((32,), 1.0)

CASES = [
    Case("plain", random_weights()),
    # Names in front of the tensors' own.
    Case("compiled", prefixed("_orig_mod."), said="reading _orig_mod."),
    Case("parallel", prefixed("module."), said="reading module."),
    Case("compiled-parallel", prefixed("_orig_mod.module.")),
    Case("parallel-compiled", prefixed("module._orig_mod.")),
    Case("nested-wrappers", prefixed("module._orig_mod.module.")),
    Case("compiled-blocks", {n.replace("blocks.1.", "blocks.1._orig_mod."): t for n, t in random_weights().items()}),
    Case("both-wrapped-and-not", random_weights() | prefixed("_orig_mod."), refused="must hold each tensor once"),
    Case("prefix-model", prefixed("model."), said="taking the tensors under model."),
    Case("prefix-deep", prefixed("module.net.model.")),
    Case("prefix-and-rest", prefixed("model.") | {"loss.weight": torch.ones(3)}, said="left out 1 that are not of it"),
    Case("prefix-ema", prefixed("model.", other) | prefixed("ema.", ema), weights=ema),
    Case("prefix-plain", prefixed("model.", other) | prefixed("ema.", ema), (*ASKED, "--weights", "plain"), weights=other),
    Case("two-networks", prefixed("student.") | prefixed("teacher."), refused="got tensors under student., teacher."),
    # Dictionaries around them.
    Case("training", {"model": other, "ema": ema, "opt": {"state": {}}, "args": command_line}, weights=ema, said="its ema"),
    Case("training-plain", {"model": other, "ema": ema}, (*ASKED, "--weights", "plain"), weights=other),
    Case("training-parallel", {"model": prefixed("module.", other), "ema": None, "step": 3}, weights=other),
    Case("state-dict", {"state_dict": random_weights(), "epoch": 2}),
    Case("timm", {"state_dict": other, "state_dict_ema": ema}, weights=ema),
    Case("nested", {"state_dict": {"model": random_weights()}}),
    Case(
        "lightning",
        {"state_dict": prefixed("model.") | {"metric.x": torch.ones(1)}, "pytorch-lightning_version": "2.5", "loops": {}},
    ),
    Case("lightning-compiled", {"state_dict": prefixed("model._orig_mod."), "global_step": 7}),
    Case("ordered", collections.OrderedDict(random_weights())),
    Case("wanted-ema", {"model": other}, (*ASKED, "--weights", "ema"), refused="must hold the weights of --weights ema"),
    Case("other-dictionary", {"generator": random_weights()}, refused="got a dictionary called generator"),
    Case("path-object", {"model": random_weights(), "args": pathlib.Path("runs/1")}),
    Case("object", {"model": random_weights(), "args": fractions.Fraction(1, 2)}, refused="must hold tensors only, got an "
         "object of fractions.Fraction, which may run code; of a file that you trust save the tensors alone"),
    Case("whole-module", torch.nn.Linear(2, 2), refused="must hold tensors only, got an object of torch.nn"),
    # Types and values.
    Case("float16", to(torch.float16), tolerance=5e-3),
    Case("bfloat16", to(torch.bfloat16), tolerance=5e-2),
    Case("float64", to(torch.float64)),
    Case("mixed", random_weights() | {"final_layer.linear.bias": random_weights()["final_layer.linear.bias"].double()}),
    Case("int8", changed(final_layer_linear_bias=bias.to(torch.int8)), refused="must be of a floating type, got int8"),
    Case("sparse", changed(final_layer_linear_bias=bias.to_sparse()), refused="must have all its values, got a sparse"),
    Case("nan", changed(final_layer_linear_bias=bias * NAN), refused="must hold finite numbers, got nan or infinity"),
    Case("infinite", changed(final_layer_linear_bias=bias * INF), refused="must hold finite numbers, got nan or infinity"),
    Case("beyond-float16", changed(final_layer_linear_bias=bias * 7e4), (*ASKED, "--dtype", "float16"),
         refused="final_layer.linear.bias must be at most 65504 in float16, got 70000"),
    Case("beyond-float16-inside", changed(blocks_0_mlp_fc2_bias=torch.full((16,), 6e4)), (*ASKED, "--dtype", "float16"),
         refused="not written: it differs from its source"),
    # Tensors that are missing, or too many.
    Case("missing", changed(blocks_1_mlp_fc1_bias=None), refused="got none called blocks.1.mlp.fc1.bias"),
    Case("extra", changed(blocks_1_attn_q_norm_weight=torch.ones(8)), refused="got also blocks_1_attn_q_norm_weight"),
    Case("gap", {n: t for n, t in random_weights().items() if not n.startswith("blocks.1.")},
         refused="must hold the blocks from 0 on without a gap, got no block 1 before block 2"),
    Case("without-positions", changed(pos_embed=None), (*ASKED, "--size", 4)),
    # What tensors do not tell.
    Case("asks-for-all", changed(pos_embed=None), (), refused="--heads, --size and --null-class must be given, got a width "
         "of 16, where 384, 768, 1024, 1152 would tell; no pos_embed to tell the height of x; 4 rows of labels"),
    Case("pixels-asked", random_weights(PIXELS), ASKED, refused="--decoding must be given, got 3 channels"),
    Case("pixels", random_weights(PIXELS), (*ASKED, "--decoding", "pixels"), weights=random_weights(PIXELS), config=PIXELS,
         keys={"decoding": "pixels", "latent_scale": ""}),
    Case("pixels-and-scale", random_weights(PIXELS), (*ASKED, "--decoding", "pixels", "--latent-scale", 1),
         refused="--latent-scale: must not be given for --decoding pixels, got 1"),
    Case("latents-of-3", random_weights(PIXELS), (*ASKED, "--latent-scale", 0.5), weights=random_weights(PIXELS),
         config=PIXELS, keys={"decoding": "none", "latent_scale": "0.5"}),
    *(
        Case(f"scale-{scale}", random_weights(), (*ASKED, "--latent-scale", scale), refused="argument --latent-scale: must be a")
        for scale in (0, -1, "nan", "inf", "x")
    ),
    Case("null-class-asked", random_weights(), HEADS, refused="--null-class must be given, got 4 rows of labels, which are "
         "4 classes (--null-class none) or 3 and one for no class (--null-class 3)"),
    Case("without-dropout", random_weights(NO_NULL), (*HEADS, "--null-class", "none"), weights=random_weights(NO_NULL),
         config=NO_NULL, keys={"num_classes": "3", "null_class": "none", "guidance_scale": "1.0"}),
    Case("null-class-first", random_weights(FIRST), (*HEADS, "--null-class", 0), weights=random_weights(FIRST),
         config=FIRST, keys={"num_classes": "4", "null_class": "0"}),
    Case("one-class", random_weights(of(num_classes=1)), (*HEADS, "--null-class", 1),
         weights=random_weights(of(num_classes=1)), config=of(num_classes=1), keys={"num_classes": "1", "null_class": "1"}),
    Case("unconditional", random_weights(ALONE), HEADS, weights=random_weights(ALONE), config=ALONE,
         keys={"num_classes": "0", "null_class": "none", "architecture": "dit_unconditional"}),
    Case("official-rows", random_weights(of(num_classes=1000)), HEADS, weights=random_weights(of(num_classes=1000)),
         config=of(num_classes=1000), keys={"num_classes": "1000", "null_class": "1000"}),
    Case("time-of-a-dit", random_weights(), (*ASKED, "--time", "noise"), refused="--time: is for --kind sit, got noise"),
]  # fmt: skip


def inputs(config: DiTConfig) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, config.channels, config.size, config.size, generator=generator)
    t = torch.tensor([0, 333, 666, 999])
    return (x, t, torch.arange(4) % config.label_rows) if config.num_classes else (x, t)


def network_of(weights: Weights, config: DiTConfig) -> torch.nn.Module:
    network = make_dit(config).eval()
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network


def loaded(path: Path, *keys: str) -> tuple[torch.jit.ScriptModule, dict[str, str]]:
    extra = {f"tstitch/{key}": "" for key in keys}
    network = torch.jit.load(path, _extra_files=extra).eval()
    return network, {k.removeprefix("tstitch/"): v.decode() if isinstance(v, bytes) else v for k, v in extra.items()}


def export_of(source: Path, output: Path, arguments: tuple) -> tuple[str, str]:
    """The line with which it ended, and all it said."""
    said = io.StringIO()
    return harness.run(export_dit, source, output, *arguments, stderr=said), said.getvalue()


def try_case(case: Case) -> None:
    source = scratch / f"{case.name}.weights.pt"
    torch.save(case.content, source)
    output = scratch / ("refused.pt" if case.refused else f"{case.name}.pt")
    message, said = export_of(source, output, case.arguments)
    assert case.said in said, (case.name, case.said, said)
    if case.refused:
        harness.require_refusal(message, (case.refused,), scratch)
        assert message.isprintable(), message
        return
    assert not message, (case.name, message)
    network, keys = loaded(output, *case.keys)
    assert keys == case.keys, (case.name, keys)
    expected = network_of(case.weights, case.config)(*inputs(case.config))
    difference = harness.relative(network(*inputs(case.config)), expected)
    assert difference < case.tolerance, (case.name, difference)


def check_shards() -> None:
    """Of a network in two files, by torch or safetensors: all by the index, and never one alone."""
    weights = random_weights()
    halves = [{n: t for n, t in weights.items() if n.startswith("blocks.2.") == late} for late in (False, True)]
    names = ["model-00001-of-00002.bin", "model-00002-of-00002.bin"]
    for half, name in zip(halves, names, strict=True):
        torch.save(half, scratch / name)
    torch.save(halves[0], scratch / "half.bin")
    refused = scratch / "refused.pt"
    message, _ = export_of(scratch / names[0], refused, ASKED)
    harness.require_refusal(message, ("must be all of a network, got shard 1 of 2: give their index or folder",), scratch)
    index = scratch / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {n: names[i] for i in (0, 1) for n in halves[i]}}))
    message, _ = export_of(index, scratch / "sharded.pt", ASKED)
    assert not message, message
    expected = network_of(weights, TINY)(*inputs(TINY))
    assert harness.relative(loaded(scratch / "sharded.pt")[0](*inputs(TINY)), expected) < 2e-5
    message, _ = export_of(scratch / names[0], refused, ASKED)
    harness.require_refusal(message, ("must be all of a network, got one of the shards of model.bin.index.json",), scratch)
    # Shards whose names tell nothing.
    index.write_text(json.dumps({"weight_map": {n: ("half.bin", names[1])[i] for i in (0, 1) for n in halves[i]}}))
    message, _ = export_of(scratch / "half.bin", refused, ASKED)
    harness.require_refusal(message, ("got one of the shards of model.bin.index.json",), scratch)
    for content in ('{"weight_map": 3}', "[]", '{"weight_map": {"a": 3}}', "nothing"):
        index.write_text(content)
        message, _ = export_of(index, refused, ASKED)
        harness.require_refusal(message, ("model.bin.index.json: must",), scratch)
    index.unlink()


def check_two_at_once() -> None:
    """Programs that write the same file do not meet in a temporary one; what was left there by others stays."""
    torch.save(random_weights(), scratch / "same.weights.pt")
    (scratch / "same.pt.tmp").write_text("of another program")
    command = [sys.executable, export / "export_dit.py", scratch / "same.weights.pt", scratch / "same.pt", *ASKED]
    running = [subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    for each in running:
        _, errors = each.communicate()
        assert each.returncode == 0, errors
    expected = network_of(random_weights(), TINY)(*inputs(TINY))
    assert harness.relative(loaded(scratch / "same.pt")[0](*inputs(TINY)), expected) < 2e-5
    assert (scratch / "same.pt.tmp").read_text() == "of another program"
    left = [path.name for path in scratch.iterdir() if ".tmp" in path.name and path.name != "same.pt.tmp"]
    assert not left, left


def check_tool() -> None:
    """Each network is drawn with as what it is: without guidance where no label means no class, by every backend."""

    def drawn(name: str, *arguments: str, backend: str) -> subprocess.CompletedProcess:
        command = [tool, "--model", str(scratch / f"{name}.pt"), "--device", "cpu", "--steps", "4", "--quiet", *arguments,
                   "--backend", backend, "--latents", str(scratch / f"{name}-{backend}.npy")]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True)

    for name, arguments, backends in (
        ("without-dropout", ("--class", "2"), ("torchscript", "native")),
        ("null-class-first", ("--class", "3", "--guidance", "1.5"), ("torchscript", "native")),
        ("one-class", ("--class", "0", "--guidance", "2"), ("torchscript", "native")),
        ("unconditional", ("--count", "2"), ("torchscript", "auto")),
    ):
        latents = []
        for backend in backends:
            done = drawn(name, *arguments, backend=backend)
            assert done.returncode == 0, (name, backend, done.stderr)
            data = (scratch / f"{name}-{backend}.npy").read_bytes()
            latents.append(torch.frombuffer(bytearray(data[10 + int.from_bytes(data[8:10], "little") :]), dtype=torch.float32))
        assert harness.relative(latents[1], latents[0]) < 1e-4, name
    done = drawn("without-dropout", "--class", "3", backend="torchscript")
    assert done.returncode == 2 and "must be a number in [0, 2]" in done.stderr, done.stderr
    done = drawn("without-dropout", "--class", "2", "--guidance", "2", backend="torchscript")
    assert done.returncode != 0, "there is no class to be guided away from"


def check_packages() -> None:
    """What is missing is said at once, with the command that installs it. Without site-packages all is missing."""
    for program, names in (
        ("export/export_dit.py", "torch and safetensors"), ("export/export_unet.py", "torch and safetensors"),
        ("export/export_pixart.py", "torch and safetensors"), ("export/export_autoencoder.py", "torch and safetensors"),
        ("export/encode_prompt.py", "torch, transformers and safetensors"), ("export/calibrate.py", "torch"),
        ("training/train.py", "numpy, pillow and torch"), ("training/export.py", "torch, numpy and pillow"),
        ("evaluation/evaluate.py", "numpy, pillow and torch"), ("evaluation/measure_quality.py", "numpy, pillow and torch"),
        ("evaluation/plot_quality.py", "matplotlib"), ("benchmark/host_cost.py", "diffusers and torch"),
        ("benchmark/benchmark_peers.py", "torch, diffusers and numpy"),
    ):  # fmt: skip
        path = export.resolve().parent / program
        done = subprocess.run([sys.executable, "-S", str(path)], capture_output=True, text=True)
        plural = "s" if " and " in names else ""
        assert done.stderr.startswith(f"{path.name}: needs the Python package{plural} {names}, got none in "), done.stderr
        requirements = path.with_name("requirements.txt")
        assert f" -m pip install -r {requirements}" in done.stderr and done.stderr.count("\n") == 1, done.stderr
        listed = {line.split(">")[0].split("=")[0] for line in requirements.read_text().splitlines()}
        assert set(names.replace(" and ", ", ").split(", ")) <= listed, (names, listed)


assert len({case.name for case in CASES}) == len(CASES) > 40
for each in CASES:
    try_case(each)
check_shards()
check_two_at_once()
check_tool()
check_packages()
print(f"{len(CASES)} checkpoints were exported as what they are, or refused")
