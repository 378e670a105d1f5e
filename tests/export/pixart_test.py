"""Exported PixArt transformers compute what diffusers computes: pixart_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random transformers with diffusers, saves, exports and loads them, and compares the outputs.
"""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import harness

export, scratch = harness.set_up("diffusers", "safetensors")
import diffusers  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import export_pixart  # noqa: E402
import pixart  # noqa: E402
from harness import relative, shaken  # noqa: E402

KEYS = (
    "format", "name", "input_shape", "input_channels", "input_height", "input_width", "prediction", "variance", "num_classes",
    "null_class", "conditions", "timestep_type", "noise_schedule", "num_train_timesteps", "beta_start", "beta_end",
    "alphas_cumprod", "decoding", "latent_scale", "latent_shift", "guidance_scale", "license", "architecture", "width",
    "depth", "heads", "patch_size", "mlp_ratio",
)  # fmt: skip
SCHEDULE = ["--prediction", "epsilon", "--noise-schedule", "linear", "--beta-start", 1e-4, "--beta-end", 0.02]

run = functools.partial(harness.run, export_pixart)
must_refuse = functools.partial(harness.must_refuse, export_pixart, scratch)
metadata = functools.partial(harness.metadata, keys=KEYS)

# ---------------------------------------------------------------------------------------- what diffusers computes

small = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "sample_size": 8,
}
worst: dict[str, float] = {}


def inputs(model: torch.nn.Module, rows: int, height: int, width: int) -> list[torch.Tensor]:
    """x, t, text, mask and, where the network takes them, resolution and aspect ratio."""
    config, tokens = model.config, 7 + rows
    lengths = torch.randint(1, tokens + 1, (rows, 1))
    lengths[0] = 1  # as an empty prompt
    text_width = config.caption_channels or config.cross_attention_dim
    values = [
        torch.randn(rows, config.in_channels, height, width),
        torch.randint(1000, (rows,)),
        torch.randn(rows, tokens, text_width),
        (torch.arange(tokens) < lengths).long(),
    ]
    if model.use_additional_conditions:
        values += [8.0 * torch.randint(32, 257, (rows, 2)), torch.rand(rows, 1) * 3.5 + 0.25]
    return values


def call(model: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    text, mask, resolution, aspect_ratio = (*others, None, None)[:4]
    added = {"resolution": resolution, "aspect_ratio": aspect_ratio}
    return model(x, encoder_hidden_states=text, timestep=t, added_cond_kwargs=added, encoder_attention_mask=mask).sample


def to(values: list[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    return [v.to(kind) if v.is_floating_point() else v for v in values]


def compare(name: str, options: dict, saves: dict | None = None) -> dict[str, str]:
    """Several batches, pictures and lengths of text, in float32 and float16, with what diffusers computes in float64.

    Returns the metadata.
    """
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.PixArtTransformer2DModel(**(small | options)))
    folder, patch = scratch / name, model.config.patch_size
    model.save_pretrained(folder, **(saves or {}))
    model.double()
    for dtype, most in (("float16", 2e-2), ("float32", 3e-5)):
        path, kind = scratch / f"{name}_{dtype}.pt", getattr(torch, dtype)
        message = run(folder, path, "--dtype", dtype, "--name", "tiny", "--license", "MIT", *SCHEDULE)
        assert not message, message
        loaded = torch.jit.load(path).eval()
        assert all(p.dtype == kind for p in loaded.parameters())
        assert set(loaded.state_dict()) == set(model.state_dict())
        side = model.config.sample_size if model.config.sample_size < 64 else 8
        for rows, height, width in ((1, side, side), (3, side, side), (2, 4 * patch, 7 * patch), (5, patch, 9 * patch)):
            values = to(to(inputs(model, rows, height, width), kind), torch.float64)  # with the rounding of the type
            difference = relative(loaded(*to(values, kind)), call(model, *values))
            assert difference <= most, f"{path}, {rows}x{height}x{width}: {difference}"
            worst[dtype] = max(worst.get(dtype, 0.0), difference)
    # What would tie the file to a device, a type or a batch.
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, f"{path}: {word}"
    frozen = torch.jit.freeze(loaded)  # as the library runs it
    assert relative(frozen(*to(values, torch.float32)), call(model, *values)) <= 3e-5
    return metadata(path)


def lines(text: str, mask: str, *others: str) -> str:
    return "\n".join((f"text_embedding float {text}", f"text_mask int64 {mask}", *others))


sizes = ("resolution float 2", "aspect_ratio float 1")
got = compare("alpha", {})
assert got == {
    "format": "1", "name": "tiny", "input_channels": "4", "input_height": "8", "input_width": "8",
    "prediction": "epsilon", "variance": "learned_range", "num_classes": "0", "conditions": lines("* 16", "*"),
    "timestep_type": "int64", "noise_schedule": "linear", "num_train_timesteps": "1000", "beta_start": "0.0001",
    "beta_end": "0.02", "decoding": "none", "guidance_scale": "4.5", "license": "MIT", "architecture": "pixart",
    "width": "24", "depth": "2", "heads": "2", "patch_size": "2", "mlp_ratio": "4.0",
}, got  # fmt: skip
# Networks of 1024 pixels are told the sizes, unless the config says otherwise; smaller ones are if it says so.
got = compare("alpha_1024", {"sample_size": 128, "num_layers": 1})
assert got["conditions"] == lines("* 16", "*", *sizes) and got["input_height"] == "128", got
got = compare("sigma_1024", {"sample_size": 128, "use_additional_conditions": False, "interpolation_scale": 2})
assert got["conditions"] == lines("* 16", "*"), got
got = compare("sized", {"use_additional_conditions": True}, {"max_shard_size": "20KB"})
assert got["conditions"] == lines("* 16", "*", *sizes), got
assert len(list((scratch / "sized").glob("*.safetensors"))) > 1
compare("sigma_256", {"sample_size": 32, "interpolation_scale": 0.5})
compare("sigma_2048", {"sample_size": 256, "interpolation_scale": 4, "use_additional_conditions": False})
compare("unprojected", {"caption_channels": None, "cross_attention_dim": 20})
details = {"attention_bias": False, "norm_elementwise_affine": True, "norm_eps": 1e-3, "upcast_attention": True}
compare("details", details)
got = compare("fixed", {"out_channels": 4, "num_attention_heads": 3, "cross_attention_dim": 36})
assert got["variance"] == "fixed", got
got = compare("patches", {"patch_size": 4, "in_channels": 3, "out_channels": None, "sample_size": 12})
assert (got["variance"], got["patch_size"], got["input_channels"]) == ("fixed", "4", "3"), got
compare("pixels", {"patch_size": 1})

# The whole picture of 1024 pixels, where diffusers takes its table of positions as it is.
model = diffusers.PixArtTransformer2DModel.from_pretrained(scratch / "alpha_1024")
values = inputs(model, 1, 128, 128)
whole = relative(torch.jit.load(scratch / "alpha_1024_float32.pt")(*values), call(model, *values))
assert whole <= 3e-5, whole

# The published shapes, without memory: the same tensors as diffusers has.
published = {  # of PixArt-XL-2-1024-MS
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.22.0.dev0", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_head_dim": 72, "attention_type": "default", "caption_channels": 4096,
    "cross_attention_dim": 1152, "double_self_attention": False, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
    "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
    "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 128, "upcast_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
for changes in ({}, {"sample_size": 64}, {"use_additional_conditions": False}):
    (scratch / "published.json").write_text(json.dumps(published | changes))
    with torch.device("meta"):
        ours = pixart.make_pixart(export_pixart.read_config(common.Config(scratch / "published.json")))
        theirs = diffusers.PixArtTransformer2DModel.from_config(published | changes)
    ours, theirs = ({k: v.shape for k, v in network.state_dict().items()} for network in (ours, theirs))
    assert ours == theirs, set(ours) ^ set(theirs)
    assert 0.6e9 < sum(map(math.prod, ours.values())) < 0.62e9

# TorchScript compiles one block, of two attentions, however many there are. (Loops of up to 8 turns it writes out.)
deep = pixart.make_pixart(pixart.PixArtConfig(size=8, width=24, depth=10, heads=2, text_width=16, sizes=False)).eval()
given = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.int64)
scripted = torch.jit.freeze(torch.jit.script(deep))  # as the library runs it
for _ in range(3):
    assert relative(scripted(*given), deep(*given)) <= 3e-5
compiled = str(torch.jit.last_executed_optimized_graph())
assert compiled.count("aten::scaled_dot_product_attention") == 2, compiled

# ---------------------------------------------------------------------------------------- pipelines

pipeline, out = scratch / "pipeline", scratch / "out.pt"


def make_pipeline(kind: str, **options: object) -> None:
    shutil.rmtree(pipeline, ignore_errors=True)
    shutil.copytree(scratch / "alpha", pipeline / "transformer")
    diffusers.DPMSolverMultistepScheduler(**options).save_pretrained(pipeline / "scheduler")
    (pipeline / "vae").mkdir()
    (pipeline / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.13025}))
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": kind}))


def exported(*options: object) -> dict[str, str]:
    message = run(pipeline, out, "--dtype", "float32", *options)
    assert not message, message
    return metadata(out)


make_pipeline("PixArtAlphaPipeline")
got = exported()
assert got["conditions"] == lines("120 16", "120"), got
assert (got["prediction"], got["noise_schedule"], got["beta_start"], got["beta_end"], got["num_train_timesteps"]) == (
    "epsilon", "linear", "0.0001", "0.02", "1000",
), got  # fmt: skip
assert (got["latent_scale"], got["latent_shift"]) == ("0.13025", "0.0"), got
assert (got["name"], got["guidance_scale"]) == ("out", "4.5"), got
got = exported("--text-tokens", 50, "--size", "16x24", "--guidance-scale", 3, "--prediction", "v_prediction")
assert got["conditions"] == lines("50 16", "50") and got["guidance_scale"] == "3.0", got
assert (got["input_height"], got["input_width"], got["prediction"]) == ("16", "24", "v_prediction"), got
assert exported("--text-tokens", "*")["conditions"] == lines("* 16", "*")
got = exported("--size", "*")
assert got["input_shape"] == "4 * *" and not {"input_channels", "input_height", "input_width"} & set(got), got
ours, fixed = torch.jit.load(out).eval(), torch.jit.load(scratch / "alpha_float32.pt").eval()
for height, width in ((8, 8), (4, 14), (10, 2)):
    values = inputs(diffusers.PixArtTransformer2DModel.from_pretrained(scratch / "alpha"), 2, height, width)
    assert torch.equal(ours(*values), fixed(*values))
make_pipeline("PixArtSigmaPipeline", beta_schedule="scaled_linear", beta_start=0.001, num_train_timesteps=500)
got = exported()
assert got["conditions"] == lines("300 16", "300"), got
assert (got["noise_schedule"], got["beta_start"], got["num_train_timesteps"]) == ("scaled_linear", "0.001", "500"), got

# ---------------------------------------------------------------------------------------- where weights come from

alpha, plain = scratch / "alpha", scratch / "alpha_float32.pt"
model = diffusers.PixArtTransformer2DModel.from_pretrained(alpha)
model.save_pretrained(scratch / "sharded", max_shard_size="20KB")
assert len(list((scratch / "sharded").glob("*.safetensors"))) > 1
model.save_pretrained(scratch / "older", safe_serialization=False)
torch.save(model.state_dict(), scratch / "mine.pt")
legacy = scratch / "legacy"  # by the name of diffusers' older class, and with its keys
shutil.copytree(alpha, legacy)
old_keys = {key: published[key] for key in ("_class_name", "double_self_attention", "only_cross_attention")}
old_keys |= {"num_vector_embeds": None, "use_linear_projection": False}
(legacy / "config.json").write_text(json.dumps(json.loads((alpha / "config.json").read_text()) | old_keys))
names = ["--dtype", "float32", "--name", "tiny", "--license", "MIT", *SCHEDULE]
mine = [alpha, "--weights", scratch / "mine.pt"]
for arguments in ([alpha], [legacy], [scratch / "sharded"], [scratch / "older"], mine):
    message = run(*arguments, out, *names)
    assert not message, message
    assert out.read_bytes() == plain.read_bytes(), f"{arguments}: the same weights must give the same bytes"

# Published folders hold float16; what comes out is what diffusers computes with those weights.
model.half().save_pretrained(scratch / "halves")
model.save_pretrained(scratch / "variant", variant="fp16")
model = diffusers.PixArtTransformer2DModel.from_pretrained(scratch / "halves", torch_dtype=torch.float32).double()
values = inputs(model, 2, 8, 8)
for folder in ("halves", "variant"):
    message = run(scratch / folder, scratch / f"{folder}.pt", *names)
    assert not message, message
    exact = call(model, *to(values, torch.float64))
    assert relative(torch.jit.load(scratch / f"{folder}.pt")(*values), exact) <= 3e-5
assert (scratch / "halves.pt").read_bytes() == (scratch / "variant.pt").read_bytes() != plain.read_bytes()

(scratch / "without").mkdir()
(scratch / "without/diffusers.py").write_text("raise ImportError('none here')")
environment = os.environ | {"PYTHONPATH": str(scratch / "without")}
command = [sys.executable, "-B", str(export / "export_pixart.py"), str(alpha), str(out), *map(str, names)]
done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
assert "not installed" in done.stderr and "largest difference" in done.stdout, (done.stderr, done.stdout)
assert out.read_bytes() == plain.read_bytes()
assert str(export).encode() not in plain.read_bytes(), "no paths of this machine inside"

# ---------------------------------------------------------------------------------------- what is refused


def edited(source: Path, *without: str, **changes: object) -> Path:
    folder = scratch / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    return folder


for key, values in {
    "_class_name": ["DiTTransformer2DModel", "UNet2DConditionModel", None],
    "norm_type": ["ada_norm_zero", "layer_norm", None],
    "activation_fn": ["gelu", "geglu", None],
    "attention_type": ["gated", None],
    "attention_bias": [1],
    "upcast_attention": ["true"],
    "norm_elementwise_affine": ["no"],
    "norm_eps": ["1e-6", 0, -1],
    "dropout": ["0"],
    "in_channels": [0, "4"],
    "out_channels": [6, 0, "8"],
    "patch_size": [3, 0],
    "sample_size": ["8", 0, [8, 8]],
    "num_layers": [0, 3.5],
    "num_attention_heads": [0, "2"],
    "attention_head_dim": [0, 11],
    "cross_attention_dim": [None, 20, "24"],
    "caption_channels": [0, "16"],
    "interpolation_scale": [0, -1, "2"],
    "use_additional_conditions": [1, "false"],
    "num_embeds_ada_norm": ["1000"],
    "brightness": [0.5],
}.items():
    for value in values:
        must_refuse(edited(alpha, **{key: value}), *SCHEDULE, words=("config.json", key, "got"))
must_refuse(edited(alpha, in_channels=3), *SCHEDULE, words=("out_channels", "in_channels = 3, or 6", "got 8"))
for key, value in {"double_self_attention": True, "only_cross_attention": True, "num_vector_embeds": 100}.items():
    must_refuse(edited(legacy, **{key: value}), *SCHEDULE, words=("config.json", key, "got"))
    must_refuse(edited(alpha, **{key: value}), *SCHEDULE, words=("config.json", key, "keys that this exporter knows"))
must_refuse(edited(legacy, "norm_type"), *SCHEDULE, words=("norm_type", "ada_norm_single", "got null"))
must_refuse(edited(scratch / "sized", attention_head_dim=14), *SCHEDULE, words=("attention_head_dim", "12", "got 28"))

must_refuse(alpha, words=("--prediction, --noise-schedule, --beta-start, --beta-end must be given, got no scheduler",))
must_refuse(alpha, *SCHEDULE[:4], words=("--beta-start, --beta-end must be given",))
must_refuse(alpha, *SCHEDULE, "--size", "0x8", words=("--size", "'0x8'"))
must_refuse(alpha, *SCHEDULE, "--size", "8x9", words=("--size", "patches of 2", "8 and 9"))
must_refuse(alpha, *SCHEDULE, "--text-tokens", "0", words=("--text-tokens", "'0'"))
must_refuse(alpha, *SCHEDULE, "--guidance-scale", "nan", words=("--guidance-scale", "got 'nan'"))
make_pipeline("PixArtAlphaPipeline")
(pipeline / "vae/config.json").write_text(json.dumps({"latents_mean": [0, 0, 0, 0]}))
must_refuse(pipeline, words=("vae/config.json", "latents_mean"))
make_pipeline("PixArtAlphaPipeline", use_flow_sigmas=True)
must_refuse(pipeline, words=("scheduler_config.json", "use_flow_sigmas"))

must_refuse(edited(alpha, num_layers=1), *SCHEDULE, words=("got also transformer_blocks.1.",))
must_refuse(edited(alpha, num_layers=3), *SCHEDULE, words=("got none called transformer_blocks.2.",))
must_refuse(edited(alpha, use_additional_conditions=True), *SCHEDULE, words=("got none called adaln_single.emb.",))
unsized = edited(scratch / "sized", use_additional_conditions=False)
must_refuse(unsized, *SCHEDULE, words=("got also adaln_single.emb.",))
must_refuse(edited(alpha, in_channels=8), *SCHEDULE, words=("pos_embed.proj.weight must be [24, 8, 2, 2], got",))
must_refuse(edited(alpha, caption_channels=18), *SCHEDULE, words=("caption_projection.linear_1.weight", "[24, 18]"))


class Code:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {scratch / 'refused.ran'}",)


weights = safetensors.torch.load_file(alpha / "diffusion_pytorch_model.safetensors")
bad = scratch / "bad.bin"


def with_weights(**changes: object) -> list[object]:
    torch.save({name: value for name, value in (weights | changes).items() if value is not None}, bad)
    return [alpha, "--weights", bad, *SCHEDULE]


table = "transformer_blocks.1.scale_shift_table"
must_refuse(*with_weights(more=torch.ones(1)), words=("bad.bin", "got also more"))
must_refuse(*with_weights(**{table: None}), words=("bad.bin", f"got none called {table}"))
must_refuse(*with_weights(**{table: torch.ones(6, 25)}), words=(f"{table} must be [6, 24], got [6, 25]",))
must_refuse(*with_weights(**{table: torch.full((6, 24), math.inf)}), words=(table, "finite"))
must_refuse(*with_weights(code=Code()), words=("bad.bin", "must hold tensors only"))
whole_file = (alpha / "diffusion_pytorch_model.safetensors").read_bytes()
for name, content in (("bad.safetensors", whole_file[:-1000]), ("bad.bin", (scratch / "mine.pt").read_bytes()[:-1000])):
    (scratch / name).write_bytes(content)
    must_refuse(alpha, "--weights", scratch / name, *SCHEDULE, words=(name, "must"))
sorted((scratch / "sharded").glob("*.safetensors"))[1].unlink()
must_refuse(scratch / "sharded", *SCHEDULE, words=("every shard must be there",))
must_refuse(scratch / "nowhere", *SCHEDULE, words=("nowhere", "must be a folder"))
message = run(alpha, scratch / "no_such_folder/out.pt", *SCHEDULE)
assert "must be a file that can be written" in message, message
print(
    f"every transformer is diffusers': largest difference {worst['float32']:.1e} in float32, "
    f"{worst['float16']:.1e} in float16, {whole:.1e} on a whole picture of 1024 pixels"
)
