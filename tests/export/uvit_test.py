"""Exported U-ViTs compute what their paper says: uvit_test.py TSTITCH_SAMPLE EXPORT_FOLDER SCRATCH_FOLDER

Checkpoints of random weights in the makers' layout are exported, loaded, and compared with a plain re-statement of the
network (arXiv 2209.12152, section 3) in float64, which shares nothing with the exporter.
"""

import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path

import harness

export, scratch = harness.set_up("torch")
import torch  # noqa: E402

import export_uvit  # noqa: E402

tool = str(Path(sys.argv[1]).absolute())
torch._C._set_graph_executor_optimize(False)
Weights = dict[str, torch.Tensor]
run = functools.partial(harness.run, export_uvit)
WIDTH, HEADS, PATCH, CHANNELS, GRID = 24, 3, 2, 4, 4


def checkpoint(depth: int = 4, rows: int = 8, qkv_bias: bool = False, time_mlp: bool = False, convolution: bool = True) -> Weights:
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, GRID**2 + (2 if rows else 1), WIDTH), "patch_embed.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "decoder_pred.weight": (PATCH**2 * CHANNELS, WIDTH), "decoder_pred.bias": (PATCH**2 * CHANNELS,),
    }  # fmt: skip
    if rows:
        sizes["label_emb.weight"] = (rows, WIDTH)
    if time_mlp:
        sizes |= {"time_embed.0.weight": (4 * WIDTH, WIDTH), "time_embed.0.bias": (4 * WIDTH,)}
        sizes |= {"time_embed.2.weight": (WIDTH, 4 * WIDTH), "time_embed.2.bias": (WIDTH,)}
    if convolution:
        sizes |= {"final_layer.weight": (CHANNELS, CHANNELS, 3, 3), "final_layer.bias": (CHANNELS,)}
    places = [f"{side}_blocks.{i}." for side in ("in", "out") for i in range(depth // 2)] + ["mid_block."]
    for place in places:
        sizes |= {f"{place}{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        sizes |= {f"{place}attn.qkv.weight": (3 * WIDTH, WIDTH), f"{place}attn.proj.weight": (WIDTH, WIDTH), f"{place}attn.proj.bias": (WIDTH,)}
        sizes |= {f"{place}mlp.fc1.weight": (40, WIDTH), f"{place}mlp.fc1.bias": (40,)}
        sizes |= {f"{place}mlp.fc2.weight": (WIDTH, 40), f"{place}mlp.fc2.bias": (WIDTH,)}
        if qkv_bias:
            sizes[f"{place}attn.qkv.bias"] = (3 * WIDTH,)
        if place.startswith("out"):
            sizes |= {f"{place}skip_linear.weight": (WIDTH, 2 * WIDTH), f"{place}skip_linear.bias": (WIDTH,)}
    return {name: torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}


def restated(weights: Weights, x: torch.Tensor, n: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """@n: timesteps from 1 on."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(place: str, v: torch.Tensor) -> torch.Tensor:
        return v @ w[f"{place}.weight"].T + w.get(f"{place}.bias", 0)

    def norm(place: str, v: torch.Tensor) -> torch.Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{place}.weight"] + w[f"{place}.bias"]

    def block(place: str, v: torch.Tensor) -> torch.Tensor:
        qkv, size = linear(f"{place}.attn.qkv", norm(f"{place}.norm1", v)), WIDTH // HEADS
        heads = []
        for h in range(HEADS):
            q, k, values = (qkv[..., part * WIDTH + h * size :][..., :size] for part in range(3))
            heads.append((q @ k.transpose(1, 2) / math.sqrt(size)).softmax(-1) @ values)
        v = v + linear(f"{place}.attn.proj", torch.cat(heads, -1))
        hidden = linear(f"{place}.mlp.fc1", norm(f"{place}.norm2", v))
        return v + linear(f"{place}.mlp.fc2", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)

    rows = len(x)
    angles = n.double()[:, None] * 10000.0 ** (-torch.arange(WIDTH // 2, dtype=torch.float64) / (WIDTH // 2))
    time = torch.cat([angles.cos(), angles.sin()], 1)
    if "time_embed.0.weight" in w:
        time = linear("time_embed.0", time)
        time = linear("time_embed.2", time * torch.sigmoid(time))
    tokens = [time] if y is None else [w["label_emb.weight"][y], time]
    for row, column in itertools.product(range(GRID), repeat=2):
        patch = x[:, :, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].double()
        tokens.append(torch.einsum("nchw,dchw->nd", patch, w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"])
    v = torch.stack(tokens, 1) + w["pos_embed"]
    half, kept = len({name.split(".")[1] for name in w if name.startswith("in_blocks")}), []
    for i in range(half):
        v = block(f"in_blocks.{i}", v)
        kept.append(v)
    v = block("mid_block", v)
    for i in range(half):
        v = block(f"out_blocks.{i}", linear(f"out_blocks.{i}.skip_linear", torch.cat([v, kept[half - 1 - i]], -1)))
    v = linear("decoder_pred", norm("norm", v))[:, len(tokens) - GRID**2 :]
    picture = torch.zeros(rows, CHANNELS, PATCH * GRID, PATCH * GRID, dtype=torch.float64)
    for row, column in itertools.product(range(GRID), repeat=2):
        values = v[:, GRID * row + column].reshape(rows, PATCH, PATCH, CHANNELS)  # of each pixel its channels
        picture[:, :, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] = values.permute(0, 3, 1, 2)
    if "final_layer.weight" in w:
        picture = torch.nn.functional.conv2d(picture, w["final_layer.weight"], w["final_layer.bias"], padding=1)
    return picture


# ---------------------------------------------------------------------------------------- what the paper says

source, out = scratch / "source.pth", scratch / "out.pt"
ASKED = ["--heads", HEADS]


def exported(weights: Weights, *options: object, wrapped: str | None = None) -> torch.jit.ScriptModule:
    torch.save({wrapped: weights} if wrapped else weights, source)
    message = run(source, out, *ASKED, *options)
    assert not message, message
    return torch.jit.load(out).eval()


for options, more in (
    ({}, ["--null-class", 7]), ({"depth": 6, "convolution": False}, ["--null-class", "none"]),
    ({"qkv_bias": True, "time_mlp": True}, ["--null-class", 7]), ({"rows": 0}, []),
):  # fmt: skip
    weights = checkpoint(**options)
    loaded = exported(weights, *more)
    assert {name for name, _ in loaded.named_parameters()} == set(weights)
    for rows in (1, 3):
        x, t = torch.randn(rows, CHANNELS, 8, 8), torch.tensor([0.0, 17.0, 998.5])[:rows]
        labels = (torch.tensor([7, 0, 3])[:rows],) if "label_emb.weight" in weights else ()
        expected = restated(weights, x, t + 1, *labels) if labels else restated(weights, x, t + 1, None)
        difference = harness.relative(loaded(x, t, *labels), expected)
        assert difference <= 1e-5, (options, rows, difference)
        assert torch.equal(loaded(x, t.to(torch.int64), *labels), loaded(x, t.floor(), *labels))
        # In parts it is the same, to the last bit.
        embedded = loaded.forecast_embed(x, t, *labels)
        assert torch.equal(loaded.forecast_head(embedded, loaded.forecast_blocks(embedded)), loaded(x, t, *labels))
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, word
    print(f"{options}: {difference:.1e} of the output's RMS from the paper's network")

KEYS = ("num_classes", "null_class", "guidance_scale", "timestep_type", "noise_schedule", "beta_start", "latent_scale", "architecture", "depth", "heads",
        "input_height", "prediction")  # fmt: skip
got = harness.metadata(out, KEYS)
assert got == {
    "num_classes": "0", "guidance_scale": "1.0", "timestep_type": "float32", "noise_schedule": "scaled_linear", "beta_start": "0.00085",
    "latent_scale": "0.18215", "architecture": "uvit", "depth": "5", "heads": "3", "input_height": "8", "prediction": "epsilon",
}, got  # fmt: skip
exported(checkpoint(rows=1001), wrapped="ema")
got = harness.metadata(out, KEYS)
assert (got["num_classes"], got["null_class"], got["guidance_scale"]) == ("1000", "1000", "1.4"), got
exported(checkpoint(), "--null-class", "none", "--dtype", "float16", "--latent-scale", 0.5)
got = harness.metadata(out, KEYS)
assert (got["num_classes"], got["guidance_scale"], got["latent_scale"]) == ("8", "1.0", "0.5") and "null_class" not in got, got

# The tool draws with it, guided, with two on one trajectory and with forecasts.
exported(checkpoint(), "--null-class", 7)
done = subprocess.run(
    [tool, "--device", "cpu", "--model", str(out), "--model", str(out), "--ratio", "0.5", "--class", "3", "--steps", "4", "--guidance", "2",
     "--forecast", "every:2", "--sampler", "ddim", "--latents", str(scratch / "drawn.npy")], capture_output=True, text=True, check=False,
)  # fmt: skip
assert done.returncode == 0 and (scratch / "drawn.npy").is_file(), done

# ---------------------------------------------------------------------------------------- what is refused


def must_refuse(weights: Weights, *options: object, words: tuple[str, ...]) -> None:
    torch.save(weights, source)
    harness.require_refusal(run(source, scratch / "refused.pt", *options), words, scratch)


def changed(**changes: torch.Tensor | None) -> Weights:
    weights = checkpoint() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


NULL = [*ASKED, "--null-class", 7]
must_refuse(checkpoint(), words=("--heads and --null-class must be given, got a width of 24, where 512, 768, 1024, 1152 would tell",))
must_refuse(checkpoint(), "--heads", 5, "--null-class", 7, words=("--heads: must divide the width 24, got 5",))
must_refuse(checkpoint(), *ASKED, "--null-class", 8, words=("--null-class: must be a row of the network's table of 8, or none, got 8",))
must_refuse(checkpoint(rows=0), *NULL, words=("--null-class: must be none for a network without labels, got 7",))
must_refuse(changed(context_embed__weight=torch.zeros(1)), *NULL, words=("must be a U-ViT for classes or without, got one for texts",))
must_refuse({"x": torch.zeros(1)}, *NULL, words=("must be a U-ViT in the layout of its makers, which has patch_embed.proj.weight, got x",))
must_refuse(changed(pos_embed=torch.zeros(1, 16, WIDTH)), *NULL, words=("pos_embed must have a class, a time and the patches of a square, got 16 tokens",))
must_refuse(changed(pos_embed=torch.zeros(1, 18, 20)), *NULL, words=("pos_embed must be [1, 18, 24], got [1, 18, 20]",))
must_refuse(changed(patch_embed__proj__weight=torch.zeros(WIDTH, 4, 2, 1)), *NULL, words=("must have square patches",))
must_refuse(changed(patch_embed__proj__weight=torch.zeros(WIDTH, 3, 2, 2)), *NULL, words=("must draw latents, got a U-ViT of 3 channels", "pixels"))
must_refuse(changed(patch_embed__proj__weight=torch.zeros(WIDTH, 5, 2, 2)), *NULL, words=("--latent-scale must be given, got 5 channels",))
must_refuse({name: t for name, t in checkpoint().items() if "in_blocks" not in name}, *NULL, words=("which has in_blocks.0.norm1.weight, got",))
must_refuse(checkpoint(), *ASKED, "--null-class", "none", "--guidance-scale", 3, words=("--guidance-scale: must be for a network that has a label for no class, got 3.0",))
must_refuse(changed(out_blocks__1__skip_linear__weight=None), *NULL, words=("got none called out_blocks.1.skip_linear.weight",))
must_refuse(changed(out_blocks__2__norm1__weight=torch.zeros(WIDTH)), *NULL, words=("got also out_blocks.2.norm1.weight",))
must_refuse(changed(norm__weight=torch.full((WIDTH,), math.nan)), *NULL, words=("norm.weight must hold finite numbers, got nan",))
must_refuse(checkpoint(), *NULL, "--latent-scale", "inf", words=("--latent-scale", "must be a finite number, got 'inf'"))
message = run(scratch, scratch / "refused.pt", *NULL)
harness.require_refusal(message, ("must be a file, got a folder",), scratch)
print("every U-ViT is the paper's")
