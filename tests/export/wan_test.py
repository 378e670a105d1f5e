"""Exported Wan transformers compute what diffusers computes: wan_test.py EXPORT_FOLDER SCRATCH_FOLDER

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
import export_wan  # noqa: E402
import wan  # noqa: E402
from harness import relative, shaken  # noqa: E402

KEYS = (
    "format", "name", "input_shape", "input_channels", "prediction", "num_classes", "conditions", "timestep_type", "noise_schedule",
    "num_train_timesteps", "flow_shift", "decoding", "latent_scale", "latent_shift", "guidance_scale", "profile", "steps", "license", "architecture",
    "width", "depth", "heads", "patch_size", "mlp_ratio",
)  # fmt: skip

run = functools.partial(harness.run, export_wan)
must_refuse = functools.partial(harness.must_refuse, export_wan, scratch)
metadata = functools.partial(harness.metadata, keys=KEYS)

# ---------------------------------------------------------------------------------------- what diffusers computes

small = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 20, "freq_dim": 12, "ffn_dim": 40,
    "num_layers": 2, "rope_max_seq_len": 20,
}  # fmt: skip
worst: dict[str, float] = {}


def inputs(model: torch.nn.Module, rows: int, *size: int) -> list[torch.Tensor]:
    """x, t and text."""
    t = 1000 * torch.rand(rows)
    t[0] = 1000  # pure noise
    return [torch.randn(rows, model.config.in_channels, *size), t, torch.randn(rows, 5 + rows, model.config.text_dim)]


def to(values: list[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    """All but t, which stays float32."""
    return [v if i == 1 else v.to(kind) for i, v in enumerate(values)]


def compare(name: str, options: dict) -> dict[str, str]:
    """Several batches and videos in three types, with what diffusers computes in float32. Returns the metadata."""
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.WanTransformer3DModel(**(small | options)))
    folder, (frames, height, width) = scratch / name, model.config.patch_size
    model.save_pretrained(folder)
    for dtype, most in (("bfloat16", 8e-2), ("float16", 1e-2), ("float32", 3e-5)):
        path, kind = scratch / f"{name}_{dtype}.pt", getattr(torch, dtype)
        message = run(folder, path, "--dtype", dtype, "--name", "tiny", "--flow-shift", 3)
        assert not message, message
        loaded = torch.jit.load(path).eval()
        assert all(p.dtype == kind for p in loaded.parameters())
        assert set(loaded.state_dict()) == set(model.state_dict())
        for rows, *patches in ((1, 1, 4, 4), (2, 5, 4, 7), (3, 2, 1, 20)):
            size = [n * p for n, p in zip(patches, (frames, height, width))]
            values = to(to(inputs(model, rows, *size), kind), torch.float32)  # with the rounding of the type
            got, expected = loaded(*to(values, kind)), model(*values).sample
            difference = relative(got, expected)
            assert difference <= most, f"{path}, {rows}x{size}: {difference}"
            worst[dtype] = max(worst.get(dtype, 0.0), difference)
            # The parts one after another are the whole.
            embedded = loaded.forecast_embed(*to(values, kind))
            assert torch.equal(loaded.forecast_head(embedded, loaded.forecast_blocks(embedded)), got)
    # What would tie the file to a device, a type or a batch.
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, f"{path}: {word}"
    try:
        loaded(*inputs(model, 1, frames, height, 21 * width))
        raise SystemExit("a video beyond the positions must be refused")
    except torch.jit.Error as error:
        assert "larger than the network's positions" in str(error), error
    return metadata(path)


got = compare("wan", {})
assert got == {
    "format": "1", "name": "tiny", "input_shape": "4 * * *", "prediction": "flow", "num_classes": "0", "conditions": "text_embedding float * 20",
    "timestep_type": "float32", "noise_schedule": "flow", "num_train_timesteps": "1000", "flow_shift": "3.0", "decoding": "none",
    "guidance_scale": "5.0", "architecture": "wan", "width": "32", "depth": "2", "heads": "2", "patch_size": "2", "mlp_ratio": "1.25",
}, got  # fmt: skip
compare("details", {"cross_attn_norm": False, "eps": 1e-3, "attention_head_dim": 14, "freq_dim": 10})
compare("patches", {"patch_size": (2, 1, 3), "num_layers": 1})

# The published shapes, without memory: the same tensors as diffusers has.
of_small = {
    "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": None, "attention_head_dim": 128,
    "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256, "image_dim": None, "in_channels": 16, "num_attention_heads": 12,
    "num_layers": 30, "out_channels": 16, "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
}  # fmt: skip
of_large = of_small | {"ffn_dim": 13824, "num_attention_heads": 40, "num_layers": 40}
for published, least in ((of_small, 1.41e9), (of_large, 14.2e9)):
    (scratch / "published.json").write_text(json.dumps(published))
    with torch.device("meta"):
        ours = wan.Wan(export_wan.read_config(common.Config(scratch / "published.json")))
        theirs = diffusers.WanTransformer3DModel.from_config(published)
    assert least < sum(p.numel() for p in ours.parameters()) < 1.02 * least
    ours, theirs = ({k: v.shape for k, v in network.state_dict().items()} for network in (ours, theirs))
    assert ours == theirs, set(ours) ^ set(theirs)

# ---------------------------------------------------------------------------------------- pipelines

pipeline, out = scratch / "pipeline", scratch / "out.pt"
scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
for part, source in (("transformer", "wan"), ("transformer_2", "details")):
    shutil.copytree(scratch / source, pipeline / part)
scheduler.save_pretrained(pipeline / "scheduler")
(pipeline / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
for options, source in (((), "wan"), (("--part", "transformer_2"), "details")):
    message = run(pipeline, out, "--dtype", "float32", "--size", "3x4x6", "--text-tokens", 7, *options)
    assert not message, message
    got = metadata(out)
    assert (got["flow_shift"], got["input_shape"], got["conditions"]) == ("5.0", "4 3 4 6", "text_embedding float 7 20"), got
    assert (got["profile"], got["steps"]) == ("diffusers-flow-unipc", str(export_wan.STEPS)), got
    assert "latent_scale" not in got, got
    values = inputs(diffusers.WanTransformer3DModel(**small), 2, 3, 4, 6)
    assert torch.equal(torch.jit.load(out)(*values), torch.jit.load(scratch / f"{source}_float32.pt")(*values))

# The autoencoder beside it says the mean and the deviation of each channel.
vae = {"_class_name": "AutoencoderKLWan", "z_dim": 4, "latents_mean": [0.5, -1, 0, 2.25], "latents_std": [2, 0.5, 1, 3]}
(pipeline / "vae").mkdir()
(pipeline / "vae/config.json").write_text(json.dumps(vae))
assert not run(pipeline, out)
got = metadata(out)
assert got["latent_scale"].splitlines() == ["0.5", "2.0", "1.0", repr(1 / 3)], got
assert got["latent_shift"].splitlines() == ["0.5", "-1.0", "0.0", "2.25"], got
(pipeline / "vae/config.json").write_text(json.dumps(vae | {"latents_std": [2, 0.5, 1]}))
must_refuse(pipeline, words=("vae/config.json", "latents_std must be 4 numbers above 0"))

# ---------------------------------------------------------------------------------------- what is refused


def edited(source: str, **changes: object) -> list[object]:
    folder = scratch / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch / source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return [folder, "--flow-shift", 3]


for key, values in {
    "_class_name": ["SD3Transformer2DModel", None],
    "patch_size": [2, [1, 2], [0, 2, 2], [1, 2, 2.5]],
    "num_attention_heads": [0, "2"],
    "attention_head_dim": [0, 13, 4],
    "in_channels": [0, 6],
    "out_channels": [6],
    "text_dim": [0, "20"],
    "freq_dim": [0, 11],
    "ffn_dim": [0],
    "num_layers": [0, 2.5],
    "qk_norm": [None, "rms_norm"],
    "eps": [0, "1e-6"],
    "image_dim": [1280],
    "added_kv_proj_dim": [5120],
    "brightness": [0.5],
}.items():
    for value in values:
        must_refuse(*edited("wan", **{key: value}), words=("config.json", "" if key == "in_channels" else key, "got"))
must_refuse(scratch / "wan", words=("--flow-shift must be given, got no scheduler",))
for size in ("5", "5x6", "0x4x4", "3x4x4x4", "3x-4x4"):
    must_refuse(scratch / "wan", "--flow-shift", 3, "--size", size, words=("--size", f"'{size}'"))
must_refuse(scratch / "wan", "--flow-shift", 3, "--size", "3x5x4", words=("--size", "patches of (1, 2, 2)", "3x5x4"))
must_refuse(scratch / "wan", "--flow-shift", 3, "--size", "3x4x42", words=("--size", "up to [20, 40, 40]"))
must_refuse(*edited("wan", num_layers=1), words=("got also blocks.1.",))
must_refuse(*edited("wan", cross_attn_norm=False), words=("got also blocks.0.norm2.",))
must_refuse(scratch / "wan", "--part", "transformer_3", "--flow-shift", 3, words=("--part",))
assert math.isfinite(worst["float32"])
print("every transformer is diffusers': largest difference " + ", ".join(f"{v:.1e} in {k}" for k, v in worst.items()))
