"""Exported Sana transformers compute what diffusers computes: sana_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random transformers with diffusers, saves, exports and loads them, and compares the outputs.
"""

import functools
import io
import json
import math
import shutil

import harness

export, scratch = harness.set_up("diffusers", "safetensors")
import diffusers  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import export_sana  # noqa: E402
import sana  # noqa: E402
from harness import relative, shaken  # noqa: E402

KEYS = (
    "format", "name", "input_shape", "input_channels", "input_height", "prediction", "num_classes", "conditions", "timestep_type",
    "noise_schedule", "num_train_timesteps", "flow_shift", "decoding", "latent_scale", "guidance_scale", "profile", "steps",
    "architecture", "width", "depth", "heads", "patch_size", "mlp_ratio",
)  # fmt: skip

run = functools.partial(harness.run, export_sana)
must_refuse = functools.partial(harness.must_refuse, export_sana, scratch)
metadata = functools.partial(harness.metadata, keys=KEYS)

# ---------------------------------------------------------------------------------------- what diffusers computes

small = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 10, "cross_attention_dim": 24, "caption_channels": 20, "sample_size": 6,
}  # fmt: skip
worst: dict[str, float] = {}


def inputs(model: torch.nn.Module, rows: int, height: int, width: int) -> list[torch.Tensor]:
    """x, t, text and mask."""
    t, tokens = 1000 * torch.rand(rows), 5 + rows
    t[0] = 1000  # pure noise
    lengths = torch.randint(1, tokens + 1, (rows, 1))
    return [torch.randn(rows, model.config.in_channels, height, width), t, torch.randn(rows, tokens, model.config.caption_channels),
            (torch.arange(tokens) < lengths).long()]  # fmt: skip


def call(model: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(x, encoder_hidden_states=text, timestep=t, encoder_attention_mask=mask).sample


def to(values: list[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    """All that are floating but t, which stays float32."""
    return [v if i == 1 or not v.is_floating_point() else v.to(kind) for i, v in enumerate(values)]


def compare(name: str, options: dict) -> dict[str, str]:
    """Several batches and pictures in three types, with what diffusers computes in float32. Returns the metadata."""
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.SanaTransformer2DModel(**(small | options)))
    folder, patch = scratch / name, model.config.patch_size
    model.save_pretrained(folder)
    for dtype, most in (("bfloat16", 1e-1), ("float16", 1e-2), ("float32", 3e-5)):
        path, kind = scratch / f"{name}_{dtype}.pt", getattr(torch, dtype)
        message = run(folder, path, "--dtype", dtype, "--name", "tiny", "--flow-shift", 3, "--size", "*")
        assert not message, message
        loaded = torch.jit.load(path).eval()
        assert all(p.dtype == kind for p in loaded.parameters())
        assert set(loaded.state_dict()) == set(model.state_dict())
        for rows, height, width in ((1, 6, 6), (3, 6, 6), (2, 4 * patch, 7 * patch), (5, patch, 9 * patch)):
            values = to(to(inputs(model, rows, height, width), kind), torch.float32)  # with the rounding of the type
            got, expected = loaded(*to(values, kind)), call(model, *values)
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
    return metadata(path)


got = compare("sana", {})
assert got == {
    "format": "1", "name": "tiny", "input_shape": "4 * *", "prediction": "flow", "num_classes": "0",
    "conditions": "text_embedding float * 20\ntext_mask int64 *", "timestep_type": "float32", "noise_schedule": "flow",
    "num_train_timesteps": "1000", "flow_shift": "3.0", "decoding": "none", "guidance_scale": "4.5", "architecture": "sana", "width": "24",
    "depth": "2", "heads": "3", "patch_size": "1", "mlp_ratio": "2.5",
}, got  # fmt: skip
compare("sana_1_5", {"qk_norm": "rms_norm_across_heads"})
compare("details", {"attention_bias": True, "norm_elementwise_affine": True, "norm_eps": 1e-3, "mlp_ratio": 3.3})
compare("patches", {"patch_size": 2, "num_layers": 1})

# The published shapes, without memory: the same tensors as diffusers has.
of_small = {
    "_class_name": "SanaTransformer2DModel", "_diffusers_version": "0.32.0.dev0", "attention_bias": False, "attention_head_dim": 32,
    "caption_channels": 2304, "cross_attention_dim": 1152, "cross_attention_head_dim": 72, "dropout": 0.0, "in_channels": 32,
    "mlp_ratio": 2.5, "norm_elementwise_affine": False, "norm_eps": 1e-06, "num_attention_heads": 36, "num_cross_attention_heads": 16,
    "num_layers": 28, "out_channels": 32, "patch_size": 1, "sample_size": 32,
}  # fmt: skip
of_large = of_small | {
    "cross_attention_dim": 2240, "cross_attention_head_dim": 112, "num_attention_heads": 70, "num_cross_attention_heads": 20, "num_layers": 20,
}  # fmt: skip
for published, least in ((of_small, 0.59e9), (of_large, 1.6e9)):
    (scratch / "published.json").write_text(json.dumps(published))
    with torch.device("meta"):
        ours = sana.Sana(export_sana.read_config(common.Config(scratch / "published.json")))
        theirs = diffusers.SanaTransformer2DModel.from_config(published)
    assert least < sum(p.numel() for p in ours.parameters()) < 1.02 * least
    ours, theirs = ({k: v.shape for k, v in network.state_dict().items()} for network in (ours, theirs))
    assert ours == theirs, set(ours) ^ set(theirs)

# ---------------------------------------------------------------------------------------- pipelines

pipeline, out = scratch / "pipeline", scratch / "out.pt"
shutil.copytree(scratch / "sana", pipeline / "transformer")
diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5).save_pretrained(
    pipeline / "scheduler"
)
(pipeline / "vae").mkdir()
(pipeline / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", "scaling_factor": 0.41407}))
message = run(pipeline, out, "--dtype", "float32", "--text-tokens", 7, "--guidance-scale", 3)
assert not message, message
got = metadata(out)
assert (got["flow_shift"], got["input_height"], got["latent_scale"], got["guidance_scale"]) == ("2.5", "6", "0.41407", "3.0"), got
assert got["conditions"] == "text_embedding float 7 20\ntext_mask int64 7", got
assert (got["profile"], got["steps"]) == ("diffusers-flow-dpmpp", "20"), got
# What a profile does not do is said, and none is written.
for change, words in {
    ("solver_order", 3): "solver_order = 3",
    ("algorithm_type", "sde-dpmsolver++"): 'algorithm_type = "sde-dpmsolver++"',
    ("solver_type", "heun"): 'solver_type = "heun"',
    ("use_karras_sigmas", True): "use_karras_sigmas = true",
    ("final_sigmas_type", "sigma_min"): "final_sigmas_type",
    ("euler_at_final", True): "euler_at_final",
    ("lower_order_final", False): "lower_order_final = false",
    ("thresholding", True): "thresholding",
    ("use_dynamic_shifting", True): "use_dynamic_shifting",
    ("of_the_future", 7): "of_the_future = 7",
    ("_class_name", "FlowMatchHeunDiscreteScheduler"): '_class_name = "FlowMatchHeunDiscreteScheduler"',
    ("timestep_spacing", "trailing"): None,
    ("rescale_betas_zero_snr", True): None,
    ("beta_end", 0.5): None,
}.items():
    path = pipeline / "scheduler/scheduler_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | dict([change])))
    stderr = io.StringIO()
    message = run(pipeline, out, "--dtype", "float32", "--text-tokens", 7, stderr=stderr)
    path.write_text(before)
    assert not message, message
    said = [line for line in stderr.getvalue().splitlines() if "no profile of tstitch has" in line]
    assert (words is None and not said) or (len(said) == 1 and words in said[0]), (change, stderr.getvalue())
    assert ("profile" in metadata(out)) == (words is None)
path.write_text(json.dumps(json.loads(before) | {"prediction_type": "epsilon"}))
must_refuse(pipeline, words=("prediction_type", "must be flow_prediction", "epsilon"))

# ---------------------------------------------------------------------------------------- what is refused


def edited(**changes: object) -> list[object]:
    folder = scratch / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch / "sana", folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return [folder, "--flow-shift", 3]


for key, values in {
    "_class_name": ["SD3Transformer2DModel", None],
    "interpolation_scale": [2],
    "guidance_embeds": [True],
    "timestep_scale": [0.001],
    "patch_size": [4, 0],
    "num_attention_heads": [0, "3", 4],
    "cross_attention_dim": [20],
    "in_channels": [0],
    "out_channels": [8],
    "caption_channels": [0],
    "mlp_ratio": [0, 100, "2"],
    "norm_eps": [0],
    "qk_norm": ["rms_norm"],
    "brightness": [0.5],
}.items():
    for value in values:
        must_refuse(*edited(**{key: value}), words=("config.json", "" if key == "num_attention_heads" else key, "got"))
must_refuse(scratch / "sana", words=("--flow-shift must be given, got no scheduler",))
must_refuse(*edited(num_layers=1), words=("got also transformer_blocks.1.",))
must_refuse(*edited(qk_norm="rms_norm_across_heads"), words=("got none called transformer_blocks.0.attn",))
must_refuse(scratch / "patches", "--flow-shift", 3, "--size", "4x5", words=("--size", "patches of 2", "4 and 5"))
assert math.isfinite(worst["float32"])
print("every transformer is diffusers': largest difference " + ", ".join(f"{v:.1e} in {k}" for k, v in worst.items()))
