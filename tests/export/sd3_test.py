"""Exported Stable Diffusion 3 transformers compute what diffusers computes: sd3_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random transformers with diffusers, saves, exports and loads them, and compares the outputs.
"""

import functools
import json
import math
import shutil

import harness

export, scratch = harness.set_up("diffusers", "safetensors")
import diffusers  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import export_sd3  # noqa: E402
import sd3  # noqa: E402
from harness import relative, shaken  # noqa: E402

KEYS = (
    "format", "name", "input_shape", "input_channels", "input_height", "input_width", "prediction", "variance", "num_classes",
    "null_class", "conditions", "timestep_type", "noise_schedule", "num_train_timesteps", "flow_shift", "decoding", "latent_scale",
    "latent_shift", "guidance_scale", "profile", "steps", "license", "architecture", "width", "depth", "heads", "patch_size",
    "mlp_ratio",
)  # fmt: skip

run = functools.partial(harness.run, export_sd3)
must_refuse = functools.partial(harness.must_refuse, export_sd3, scratch)
metadata = functools.partial(harness.metadata, keys=KEYS)

# ---------------------------------------------------------------------------------------- what diffusers computes

small = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 3,
    "joint_attention_dim": 20, "caption_projection_dim": 24, "pooled_projection_dim": 12, "pos_embed_max_size": 12,
}  # fmt: skip
worst: dict[str, float] = {}


def inputs(model: torch.nn.Module, rows: int, height: int, width: int) -> list[torch.Tensor]:
    """x, t, text and pooled text."""
    config = model.config
    t = 1000 * torch.rand(rows)
    t[0] = 1000  # pure noise
    return [torch.randn(rows, config.in_channels, height, width), t, torch.randn(rows, 5 + rows, config.joint_attention_dim),
            torch.randn(rows, config.pooled_projection_dim)]  # fmt: skip


def call(model: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    return model(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample


def to(values: list[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    """All but t, which stays float32."""
    return [v if i == 1 else v.to(kind) for i, v in enumerate(values)]


def compare(name: str, options: dict) -> dict[str, str]:
    """Several batches and pictures in three types, with what diffusers computes in float64. Returns the metadata."""
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.SD3Transformer2DModel(**(small | options)))
    folder, patch, grid = scratch / name, model.config.patch_size, model.config.pos_embed_max_size
    model.save_pretrained(folder)
    model.double()
    for dtype, most in (("bfloat16", 8e-2), ("float16", 1e-2), ("float32", 3e-5)):
        path, kind = scratch / f"{name}_{dtype}.pt", getattr(torch, dtype)
        message = run(folder, path, "--dtype", dtype, "--name", "tiny", "--flow-shift", 3, "--size", "*")
        assert not message, message
        loaded = torch.jit.load(path).eval()
        assert all(p.dtype == kind for p in loaded.parameters())
        assert set(loaded.state_dict()) == set(model.state_dict())
        for rows, height, width in ((1, 8, 8), (3, 8, 8), (2, 4 * patch, 7 * patch), (5, patch, grid * patch)):
            values = to(to(inputs(model, rows, height, width), kind), torch.float64)  # with the rounding of the type
            expected = call(model, *values)
            got = loaded(*to(values, kind))
            difference = relative(got, expected)
            assert difference <= most, f"{path}, {rows}x{height}x{width}: {difference}"
            worst[dtype] = max(worst.get(dtype, 0.0), difference)
            # The parts one after another are the whole.
            embedded = loaded.forecast_embed(*to(values, kind))
            assert torch.equal(loaded.forecast_head(embedded, loaded.forecast_blocks(embedded)), got)
    # What would tie the file to a device, a type or a batch.
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, f"{path}: {word}"
    frozen = torch.jit.freeze(loaded, preserved_attrs=["forecast_embed"])  # as the library runs it
    assert relative(frozen(*to(values, torch.float32)), call(model, *values)) <= 3e-5
    try:
        loaded(*to(inputs(model, 1, patch, (grid + 1) * patch), torch.float32))
        raise SystemExit("a picture beyond the table of positions must be refused")
    except torch.jit.Error as error:
        assert "larger than the network's table of positions" in str(error), error
    return metadata(path)


conditions = "text_embedding float * 20\npooled_embedding float 12"
got = compare("sd3", {})
assert got == {
    "format": "1", "name": "tiny", "input_shape": "4 * *", "prediction": "flow", "num_classes": "0", "conditions": conditions,
    "timestep_type": "float32", "noise_schedule": "flow", "num_train_timesteps": "1000", "flow_shift": "3.0", "decoding": "none",
    "guidance_scale": "7.0", "architecture": "sd3", "width": "24", "depth": "3", "heads": "3", "patch_size": "2", "mlp_ratio": "4.0",
}, got  # fmt: skip
got = compare("large", {"qk_norm": "rms_norm"})
assert got["guidance_scale"] == "4.5", got
compare("medium", {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1], "pos_embed_max_size": 24})
compare("every", {"dual_attention_layers": [0, 1, 2]})  # the last block, too, without the norms
compare("one", {"num_layers": 1, "patch_size": 4})

# The published shapes, without memory: the same tensors as diffusers has.
of_medium = {
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0.dev0", "attention_head_dim": 64,
    "caption_projection_dim": 1536, "dual_attention_layers": list(range(13)), "in_channels": 16, "joint_attention_dim": 4096,
    "num_attention_heads": 24, "num_layers": 24, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384, "qk_norm": "rms_norm", "sample_size": 128,
}  # fmt: skip
of_large = of_medium | {
    "caption_projection_dim": 2432, "dual_attention_layers": [], "num_attention_heads": 38, "num_layers": 38, "pos_embed_max_size": 192,
}  # fmt: skip
for published, least in ((of_medium, 2.24e9), (of_large, 8.05e9)):
    (scratch / "published.json").write_text(json.dumps(published))
    with torch.device("meta"):
        ours = sd3.SD3(export_sd3.read_config(common.Config(scratch / "published.json")))
        theirs = diffusers.SD3Transformer2DModel.from_config(published)
    assert least < sum(p.numel() for p in ours.parameters()) < 1.01 * least
    ours, theirs = ({k: v.shape for k, v in network.state_dict().items()} for network in (ours, theirs))
    assert ours == theirs, set(ours) ^ set(theirs)

# ---------------------------------------------------------------------------------------- pipelines

pipeline, out = scratch / "pipeline", scratch / "out.pt"


def make_pipeline(scheduler: object) -> None:
    shutil.rmtree(pipeline, ignore_errors=True)
    shutil.copytree(scratch / "medium", pipeline / "transformer")
    scheduler.save_pretrained(pipeline / "scheduler")
    (pipeline / "vae").mkdir()
    values = {"_class_name": "AutoencoderKL", "scaling_factor": 1.5305, "shift_factor": 0.0609}
    (pipeline / "vae/config.json").write_text(json.dumps(values))
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))


def exported(*options: object) -> dict[str, str]:
    message = run(pipeline, out, "--dtype", "float32", *options)
    assert not message, message
    return metadata(out)


make_pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
got = exported()
assert (got["flow_shift"], got["profile"], got["steps"]) == ("3.0", "diffusers-flow-euler", "28"), got
assert (got["latent_scale"], got["latent_shift"], got["input_height"], got["guidance_scale"]) == ("1.5305", "0.0609", "8", "4.5"), got
got = exported("--flow-shift", 1.5, "--text-tokens", 333, "--size", "6x10", "--guidance-scale", 3, "--license", "own")
assert (got["flow_shift"], got["input_width"], got["guidance_scale"], got["license"]) == ("1.5", "10", "3.0", "own"), got
assert got["conditions"] == "text_embedding float 333 20\npooled_embedding float 12", got
# Another scheduler has no profile; the network is the same.
make_pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, use_karras_sigmas=True))
got = exported()
assert got["flow_shift"] == "2.0" and "profile" not in got, got
make_pipeline(diffusers.DDIMScheduler())
must_refuse(pipeline, words=("scheduler_config.json", "_class_name", "flow matching", "DDIMScheduler"))

# ---------------------------------------------------------------------------------------- what is refused


def edited(source: str, *without: str, **changes: object) -> list[object]:
    folder = scratch / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch / source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    return [folder, "--flow-shift", 3]


for key, values in {
    "_class_name": ["DiTTransformer2DModel", None],
    "patch_size": [3, 0],
    "sample_size": ["8", 0, 64],
    "num_layers": [0, 3.5],
    "num_attention_heads": [0, "2", 4],
    "attention_head_dim": [0, 11],
    "caption_projection_dim": [20, "24"],
    "in_channels": [0, "4"],
    "out_channels": [8, 0],
    "pos_embed_max_size": [3, 0],
    "dual_attention_layers": [3, [3], [-1], [True], ["0"]],
    "qk_norm": ["layer_norm", True],
    "brightness": [0.5],
}.items():
    for value in values:
        words = {"sample_size": "", "num_attention_heads": "", "attention_head_dim": ""}.get(key, key)
        must_refuse(*edited("medium", **{key: value}), words=("config.json", words, "got"))
must_refuse(scratch / "sd3", words=("--flow-shift must be given, got no scheduler",))
for shift in ("0", "nan", "-1", "inf"):
    must_refuse(scratch / "sd3", "--flow-shift", shift, words=("--flow-shift", f"'{shift}'"))
must_refuse(scratch / "sd3", "--flow-shift", 3, "--size", "8x9", words=("--size", "patches of 2", "8 and 9"))
must_refuse(scratch / "sd3", "--flow-shift", 3, "--size", "8x26", words=("--size", "up to 24", "8 and 26"))
must_refuse(*edited("medium", num_layers=2, dual_attention_layers=[0, 1]), words=("got also", "transformer_blocks"))
must_refuse(*edited("medium", dual_attention_layers=[0]), words=("got also transformer_blocks.1.attn2",))
must_refuse(*edited("medium", "qk_norm"), words=("got also transformer_blocks.0.attn.norm_",))
must_refuse(*edited("medium", pos_embed_max_size=12), words=("pos_embed.pos_embed must be [1, 144, 24], got [1, 576, 24]",))
assert math.isfinite(worst["float32"])
print("every transformer is diffusers': largest difference " + ", ".join(f"{v:.1e} in {k}" for k, v in worst.items()))
