"""Exported U-Nets compute what diffusers computes: unet_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random U-Nets with diffusers, saves, exports and loads them, and compares the outputs.
"""

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import harness

export, scratch = harness.set_up("diffusers", "safetensors")
import diffusers  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import export_unet  # noqa: E402
from harness import relative, shaken  # noqa: E402

torch.manual_seed(0)
# TorchScript would optimise each of these networks for each shape, for seconds.
torch._C._set_graph_executor_optimize(False)

KEYS = (
    "format", "name", "input_shape", "input_channels", "input_height", "input_width", "prediction", "variance", "num_classes",
    "null_class", "conditions", "timestep_type", "noise_schedule", "num_train_timesteps", "beta_start", "beta_end",
    "alphas_cumprod", "decoding", "latent_scale", "latent_shift", "guidance_scale", "license", "architecture",
    "profile", "steps",
)  # fmt: skip

run = functools.partial(harness.run, export_unet)
must_refuse = functools.partial(harness.must_refuse, export_unet, scratch)
metadata = functools.partial(harness.metadata, keys=KEYS)

BETAS = ["--beta-start", 0.00085, "--beta-end", 0.012]
SCHEDULE = ["--prediction", "epsilon", "--noise-schedule", "scaled_linear", *BETAS]


def compare(model: torch.nn.Module, folder: Path, call: object, sizes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Several batches and picture sizes, and for some networks float16 too, with what diffusers computes in float64.

    @call gives that for x, t and the others.

    Returns the metadata. Sizes of a condition: -1 and -2 stand for height and width; a name that ends with # is labels.
    """
    model.double()
    channels = model.config.out_channels
    halves = [("float16", 2e-2)] if folder.name in ("sd1", "lcm_xl", "inpainting", "classes") else []
    for dtype, most in [*halves, ("float32", 3e-5)]:
        path = scratch / f"{folder.name}_{dtype}.pt"
        space = ["--decoding", "none"] if channels == 3 else []
        message = run(folder, path, "--dtype", dtype, "--name", "tiny", "--license", "MIT", *SCHEDULE, *space)
        assert not message, message
        loaded = torch.jit.load(path).eval()
        kind = getattr(torch, dtype)
        assert all(p.dtype == kind for p in loaded.parameters())
        assert {name for name, _ in loaded.named_parameters()} == set(model.state_dict())
        pictures = [(1, 8, 8), (3, 8, 8), (2, 12, 16)] + ([(2, 7, 9)] if "Condition" in type(model).__name__ else [])
        for rows, height, width in pictures:
            x, t = torch.randn(rows, channels, height, width), torch.randint(1000, (rows,))
            others = {}
            for name, shape in sizes.items():
                real = [{-1: height, -2: width}.get(n, n) for n in shape]
                if name.endswith("#"):
                    others[name] = torch.randint(shape[0], (rows,))
                elif name == "size_ids":
                    others[name] = torch.randint(2048, (rows, *real)).float()
                else:
                    others[name] = torch.randn(rows, *real)
            arguments = [v.to(kind) if v.is_floating_point() else v for v in (x, t, *others.values())]
            doubles = [v.double() if v.is_floating_point() else v for v in (x, t, *others.values())]
            difference = relative(loaded(*arguments), call(*doubles))
            assert difference <= most, f"{path}, {rows}x{height}x{width}: {difference}"
    # What would tie the file to a device, a type or a batch.
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, f"{path}: {word}"
    with torch.jit.optimized_execution(True):
        frozen = torch.jit.freeze(loaded)  # as the library runs it
        for _ in range(3 if folder.name in ("sd1", "sdxl", "ddpm") else 1):  # profiled, optimised, and as it stays
            assert relative(frozen(*arguments), call(*doubles)) <= 3e-5
    return metadata(path)


def lines(**conditions: str) -> str:
    return "\n".join(f"{name} float {sizes}" for name, sizes in conditions.items())


# ---------------------------------------------------------------------------------------- what diffusers computes

small = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
three = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
xl = three | {
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 36,
}
text = {"text_embedding": (77, 12)}
texts = text | {"pooled_embedding": (10,), "size_ids": (6,)}
painting = {"mask": (1, -1, -2), "masked_latents": (4, -1, -2)}


def conditional(name: str, options: dict, sizes: dict, saves: dict | None = None) -> dict[str, str]:
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.UNet2DConditionModel(**(small | options)))
    model.save_pretrained(scratch / name, **(saves or {}))

    def call(x: torch.Tensor, t: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(sizes, values))
        if "mask" in named:
            x = torch.cat([x, named["mask"], named["masked_latents"]], dim=1)
        added = {"text_embeds": named.get("pooled_embedding"), "time_ids": named.get("size_ids")}
        guidance = named.get("guidance_embedding")
        return model(x, t, named["text_embedding"], timestep_cond=guidance, added_cond_kwargs=added).sample

    return compare(model, scratch / name, call, sizes)


got = conditional("sd1", {}, text)
assert got == {
    "format": "1", "name": "tiny", "input_channels": "4", "input_height": "8", "input_width": "8",
    "prediction": "epsilon", "variance": "fixed", "conditions": "text_embedding float 77 12", "timestep_type": "int64",
    "noise_schedule": "scaled_linear", "num_train_timesteps": "1000", "beta_start": "0.00085", "beta_end": "0.012",
    "decoding": "none", "guidance_scale": "7.5", "license": "MIT", "architecture": "unet",
}, got  # fmt: skip

# Stable Diffusion 2: heads of each level, linear projections, attention in float32 (where diffusers does nothing).
conditional("sd2", {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}, text)
got = conditional("sdxl", xl, texts, {"max_shard_size": "100KB"})
assert len(list((scratch / "sdxl").glob("*.safetensors"))) > 1
assert got["conditions"] == lines(text_embedding="77 12", pooled_embedding="10", size_ids="6"), got

# BK-SDM: a residual block less on each level; then without the middle, and with the lowest level gone.
conditional("bk_base", {"layers_per_block": 1}, text)
conditional("bk_small", {"layers_per_block": 1, "mid_block_type": None}, text)
bk_tiny = {
    "layers_per_block": 1,
    "mid_block_type": None,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
conditional("bk_tiny", bk_tiny, text)

# SSD-1B: other depths on the way up, and a middle of one residual block.
ssd = xl | {
    "transformer_layers_per_block": [1, [2, 1], [3, 2]],
    "reverse_transformer_layers_per_block": [[2, 1, 3], [1, 2, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
conditional("ssd", ssd, texts)
conditional("ssd_middle", ssd | {"mid_block_type": "UNetMidBlock2DCrossAttn"}, texts)
conditional("no_blocks", {"transformer_layers_per_block": [0, 1]}, text)
conditional("layers", three | {"layers_per_block": [1, 3, 2], "flip_sin_to_cos": False, "freq_shift": 1}, text)
odd = {"downsample_padding": 0, "conv_in_kernel": 1, "conv_out_kernel": 5, "time_embedding_dim": 24, "norm_eps": 1e-4}
conditional("details", odd, text)

got = conditional("lcm", {"time_cond_proj_dim": 14}, text | {"guidance_embedding": (14,)})
assert got["conditions"] == lines(text_embedding="77 12", guidance_embedding="14"), got
assert "guidance_scale" not in got, "its guidance is an input"
got = conditional("lcm_xl", xl | {"time_cond_proj_dim": 14}, texts | {"guidance_embedding": (14,)})
assert got["conditions"].endswith("size_ids float 6\nguidance_embedding float 14"), got
got = conditional("inpainting", {"in_channels": 9}, text | painting)
assert got["conditions"] == lines(text_embedding="77 12", mask="1 8 8", masked_latents="4 8 8"), got
assert got["input_channels"] == "4"
conditional("inpainting_xl", xl | {"in_channels": 9}, texts | painting)


def unconditional(name: str, options: dict) -> dict[str, str]:
    shape = {
        "sample_size": [8, 16],
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    torch.manual_seed(0)
    model = shaken(diffusers.UNet2DModel(**(shape | options)))
    model.save_pretrained(scratch / name)
    classes = {"labels#": (options["num_class_embeds"],)} if "num_class_embeds" in options else {}
    return compare(model, scratch / name, lambda x, t, *y: model(x, t, *y).sample, classes)


ddpm = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "act_fn": "silu",
}
got = unconditional("ddpm", ddpm)
assert (got["input_channels"], got["input_height"], got["input_width"]) == ("3", "8", "16"), got
assert "conditions" not in got and "num_classes" not in got and "guidance_scale" not in got, got
must_refuse(scratch / "ddpm", *SCHEDULE, words=("--decoding must be given, got 3 channels and no vae",))
must_refuse(scratch / "ddpm", "--prediction", "sample", words=(
    "--decoding and --noise-schedule, --beta-start, --beta-end must be given",
))  # fmt: skip
got = unconditional("classes", {"num_class_embeds": 5, "in_channels": 4, "out_channels": 4, "attn_norm_num_groups": 8})
assert got["num_classes"] == "5" and "null_class" not in got, got
unconditional("no_attention", {"add_attention": False, "layers_per_block": 1})
unconditional("no_middle", {"mid_block_type": None})

# ---------------------------------------------------------------------------------------- any height and width


def of_any_size(name: str, options: list[object], sizes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Exports it with open sizes: the same network as that of one size, of which `compare` has seen several."""
    path = scratch / f"{name}_any.pt"
    message = run(scratch / name, path, "--dtype", "float32", "--size", "*", *SCHEDULE, *options)
    assert not message, message
    ours, fixed = (torch.jit.load(file).eval() for file in (path, scratch / f"{name}_float32.pt"))
    assert all(torch.equal(value, fixed.state_dict()[key]) for key, value in ours.state_dict().items())
    for height, width in ((8, 8), (12, 20), (20, 4)):
        given = [torch.randn(2, *({-1: height, -2: width}.get(n, n) for n in shape)) for shape in sizes.values()]
        given.insert(1, torch.tensor([3, 500]))
        assert torch.equal(ours(*given), fixed(*given))
    got = metadata(path)
    assert not {"input_channels", "input_height", "input_width"} & set(got), got
    return got


latent = {"x": (4, -1, -2)}
got = of_any_size("sd1", [], latent | text)
assert got["input_shape"] == "4 * *" and got["conditions"] == lines(text_embedding="77 12"), got
got = of_any_size("inpainting", ["--text-tokens", "*"], latent | text | painting)
assert got["conditions"] == lines(text_embedding="* 12", mask="1 * *", masked_latents="4 * *"), got
assert of_any_size("ddpm", ["--decoding", "pixels"], {"x": (3, -1, -2)})["input_shape"] == "3 * *"
must_refuse(scratch / "sd1", *SCHEDULE, "--size", "8x*", words=("--size", "must be N, HEIGHTxWIDTH or *", "got '8x*'"))
must_refuse(scratch / "sd1", *SCHEDULE, "--size", "*", "--format", "aot-inductor", words=(
    "--size: must be numbers for --format aot-inductor, got *",
))  # fmt: skip

# ---------------------------------------------------------------------------------------- pipelines

smallest = {  # these are about metadata
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "mid_block_type": None,
}
diffusers.UNet2DConditionModel(**(small | smallest)).save_pretrained(scratch / "smallest")
pipeline = scratch / "pipeline"
out = scratch / "out.pt"


def scheduler(**options: object) -> None:
    shutil.rmtree(pipeline, ignore_errors=True)
    shutil.copytree(scratch / "smallest", pipeline / "unet")
    diffusers.DDIMScheduler(**options).save_pretrained(pipeline / "scheduler")
    kl = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "shift_factor": 0.5}
    (pipeline / "vae").mkdir()
    (pipeline / "vae/config.json").write_text(json.dumps(kl))


def exported(*options: object) -> dict[str, str]:
    message = run(pipeline, out, "--dtype", "float32", *options)
    assert not message, message
    return metadata(out)


scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
got = exported("--text-tokens", "*", "--guidance-scale", "7.5", "--size", "16x24")
assert got["prediction"] == "v_prediction" and got["noise_schedule"] == "scaled_linear", got
assert (got["beta_start"], got["beta_end"], got["num_train_timesteps"]) == ("0.00085", "0.012", "1000"), got
assert (got["latent_scale"], got["latent_shift"], got["name"]) == ("0.13025", "0.5", "out"), got
assert (got["conditions"], got["guidance_scale"]) == ("text_embedding float * 12", "7.5"), got
assert (got["input_height"], got["input_width"]) == ("16", "24"), got
got = exported("--prediction", "epsilon", "--noise-schedule", "linear", "--beta-start", "1e-4", "--beta-end", "0.02")
assert (got["prediction"], got["noise_schedule"], got["beta_start"]) == ("epsilon", "linear", "0.0001"), got
(pipeline / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))  # as the first ones were
assert exported()["latent_scale"] == "0.18215"
scheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500)
got = exported()
assert (got["noise_schedule"], got["num_train_timesteps"]) == ("cosine", "500") and "beta_start" not in got, got


def table(rescaled: bool, **options: object) -> None:
    scheduler(**options)
    got = exported()
    assert got["noise_schedule"] == "alphas_cumprod" and "beta_start" not in got, got
    ours = torch.tensor([float(line) for line in got["alphas_cumprod"].splitlines()], dtype=torch.float64)
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.double()
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), (ours - theirs).abs().max()
    assert (ours[-1] == 0) == rescaled and (ours[1:] < ours[:-1]).all() and 0 < ours[0] < 1


table(False, trained_betas=[1e-4, 5e-3, 0.02, 0.3])
for beta_schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
    table(True, beta_schedule=beta_schedule, rescale_betas_zero_snr=True)

# What draws, where the scheduler is one of the profiles, of which each key is what it must be.


def told(*options: object) -> dict[str, str]:
    """What the file would say. Nothing is written, which takes most of the time; that it is what files say is seen above."""
    with mock.patch.object(export_unet, "write") as write:
        message = run(pipeline, out, "--dtype", "float32", *options)
    assert not message, message
    return {key: str(value) for key, value in write.call_args.args[2].items()}


def drawn_by(
    kind: str, name: str = "StableDiffusionPipeline", *, read: Callable[[], dict[str, str]] = told, **options: object
) -> tuple[str | None, ...]:
    scheduler()
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": name}))
    ends = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    getattr(diffusers, kind)(**(ends | options)).save_pretrained(pipeline / "scheduler")
    got = read()
    return got.get("profile"), got.get("steps"), got.get("guidance_scale")


pndm = {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}  # of Stable Diffusion's folders
assert drawn_by("PNDMScheduler", read=exported, **pndm) == ("diffusers-pndm", "50", "7.5")
assert drawn_by("DPMSolverMultistepScheduler") == ("diffusers-dpmpp", "50", "7.5")
assert drawn_by("DDIMScheduler") == ("diffusers-ddim", "50", "7.5")
assert drawn_by("DDPMScheduler", "DDPMPipeline") == ("diffusers-ddpm", "1000", "7.5")
assert drawn_by("LCMScheduler", "LatentConsistencyModelPipeline") == ("diffusers-lcm", "4", None)
assert drawn_by("LCMScheduler") == ("diffusers-lcm", "4", None)
assert drawn_by("DDIMScheduler", "MyPipeline") == ("diffusers-ddim", None, "7.5")
for kind, options in (
    ("PNDMScheduler", {}), ("PNDMScheduler", pndm | {"steps_offset": 0}), ("PNDMScheduler", pndm | {"set_alpha_to_one": True}),
    ("PNDMScheduler", pndm | {"timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample_range": 2.0}), ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}), ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
    ("DDPMScheduler", {"variance_type": "fixed_large"}), ("LCMScheduler", {"original_inference_steps": 100}),
    ("EulerDiscreteScheduler", {}), ("UniPCMultistepScheduler", {}),
):  # fmt: skip
    assert drawn_by(kind, **options)[:2] == (None, None), (kind, options)

# The refiner of SDXL takes 5 numbers beside the text.
shutil.rmtree(pipeline)
shutil.copytree(scratch / "sdxl", pipeline / "unet")
(pipeline / "model_index.json").write_text(json.dumps({"requires_aesthetics_score": True}))
assert "pooled_embedding float 16\nsize_ids float 5" in exported(*SCHEDULE)["conditions"]
assert "pooled_embedding float 22\nsize_ids float 4" in exported("--size-ids", 4, *SCHEDULE)["conditions"]

message = run(scratch / "classes", out, "--null-class", 4, "--decoding", "pixels", *SCHEDULE)
got = metadata(out)
assert not message and (got["num_classes"], got["null_class"], got["decoding"]) == ("4", "4", "pixels"), (message, got)
message = run(scratch / "classes", out, "--null-class", 0, *SCHEDULE)
got = metadata(out)
assert not message and (got["num_classes"], got["null_class"]) == ("5", "0"), (message, got)

# ---------------------------------------------------------------------------------------- where weights come from

sd1, plain = scratch / "sd1", scratch / "sd1_float32.pt"
model = diffusers.UNet2DConditionModel.from_pretrained(sd1)
model.save_pretrained(scratch / "sharded", max_shard_size="50KB")
assert len(list((scratch / "sharded").glob("*.safetensors"))) > 1
model.save_pretrained(scratch / "older", safe_serialization=False)
torch.save(model.state_dict(), scratch / "mine.pt")
names = ["--dtype", "float32", "--name", "tiny", "--license", "MIT", *SCHEDULE, "--decoding", "none"]
for arguments in ([sd1], [scratch / "sharded"], [scratch / "older"], [sd1, "--weights", scratch / "mine.pt"]):
    message = run(*arguments, out, *names)
    assert not message, message
    assert out.read_bytes() == plain.read_bytes(), f"{arguments}: the same weights must give the same bytes"

# Checkpoints of 2022 name attention differently.
words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
old = {}
for key, value in safetensors.torch.load_file(scratch / "ddpm/diffusion_pytorch_model.safetensors").items():
    for today, before in words.items():
        key = key.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
    old[key] = value
assert any("proj_attn" in key for key in old)
torch.save(old, scratch / "old.bin")
message = run(scratch / "ddpm", out, "--weights", scratch / "old.bin", *names)
assert not message, message
assert out.read_bytes() == (scratch / "ddpm_float32.pt").read_bytes()

(scratch / "without").mkdir()
(scratch / "without/diffusers.py").write_text("raise ImportError('none here')")
environment = os.environ | {"PYTHONPATH": str(scratch / "without")}
command = [sys.executable, str(export / "export_unet.py"), str(sd1), str(out), *map(str, names)]
done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
assert "not installed" in done.stderr and "largest difference" in done.stdout, (done.stderr, done.stdout)
assert out.read_bytes() == plain.read_bytes()
assert str(export).encode() not in plain.read_bytes(), "no paths of this machine inside"

# ---------------------------------------------------------------------------------------- what is refused


def edited(source: Path, **changes: object) -> Path:
    folder = scratch / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


conditional_only = {
    "_class_name": ["AutoencoderKL", None],
    "sample_size": ["8", 0, [8, 8, 8]],
    "in_channels": [8, 5, "4"],
    "down_block_types": [["CrossAttnDownBlock2D"], ["SimpleCrossAttnDownBlock2D", "DownBlock2D"], "DownBlock2D"],
    "up_block_types": [["UpBlock2D"] * 3, ["UpBlock2D", "ResnetUpsampleBlock2D"]],
    "mid_block_type": ["UNetMidBlock2DSimpleCrossAttn"],
    "block_out_channels": [[8], [6, 16], [8, "16"], []],
    "layers_per_block": [0, [2], [2, 0], "2"],
    "norm_num_groups": [3],
    "attention_head_dim": [3, [2], 0],
    "num_attention_heads": [8],
    "cross_attention_dim": [[12, 14], "12"],
    "transformer_layers_per_block": [[1], [1, -1], "1", [[1, 1], [1, 1]]],
    "reverse_transformer_layers_per_block": [[1], [1, [1]], 1.5],
    "only_cross_attention": [True, [True, False]],
    "dual_cross_attention": [True],
    "class_embed_type": ["timestep", "projection"],
    "num_class_embeds": [10],
    "addition_embed_type": ["text", "image"],
    "encoder_hid_dim": [16],
    "encoder_hid_dim_type": ["text_proj"],
    "resnet_time_scale_shift": ["scale_shift"],
    "resnet_skip_time_act": [True],
    "resnet_out_scale_factor": [1.4],
    "mid_block_scale_factor": [1.4, True],
    "time_embedding_type": ["fourier"],
    "time_embedding_act_fn": ["silu"],
    "timestep_post_act": ["silu"],
    "time_cond_proj_dim": [-1, "256"],
    "attention_type": ["gated"],
    "class_embeddings_concat": [True],
    "cross_attention_norm": ["layer_norm"],
    "mid_block_only_cross_attention": [True],
    "center_input_sample": [True],
    "conv_in_kernel": [2],
    "conv_out_kernel": [4],
    "downsample_padding": [2],
    "act_fn": ["gelu"],
    "freq_shift": ["0", 4],
    "flip_sin_to_cos": [1],
    "upcast_attention": ["true"],
    "time_embedding_dim": [0],
    "brightness": [0.5],
}
for key, values in conditional_only.items():
    for value in values:
        reverse = key == "transformer_layers_per_block" and value == [[1, 1], [1, 1]]
        place = "reverse_transformer_layers_per_block" if reverse else key
        # Where it is the number of widths that is wrong, the lists beside it are named.
        place = "must have 1 entries" if (key, value) == ("block_out_channels", [8]) else place
        place = "norm_num_groups" if (key, value) == ("block_out_channels", [6, 16]) else place
        must_refuse(edited(sd1, **{key: value}), *SCHEDULE, words=("config.json", place, "got"))
for key, values in {
    "addition_time_embed_dim": [None, 5],
    "projection_class_embeddings_input_dim": [None, 36],
}.items():
    for value in values:
        must_refuse(edited(scratch / "sdxl", **{key: value}), *SCHEDULE, words=("config.json", key, "got"))
too_wide = edited(scratch / "sdxl", addition_time_embed_dim=8)
must_refuse(too_wide, *SCHEDULE, words=("projection_class_embeddings_input_dim", "more than 6 sizes of 8", "got 46"))
must_refuse(edited(sd1, in_channels=9, time_cond_proj_dim=14), *SCHEDULE, words=("time_cond_proj_dim", "inpainting"))
for key, values in {
    "down_block_types": [["SkipDownBlock2D"] * 3, ["ResnetDownsampleBlock2D"] * 3],
    "up_block_types": [["AttnUpBlock2D"]],
    "mid_block_type": ["UNetMidBlock2DCrossAttn"],
    "attention_head_dim": [5],
    "attn_norm_num_groups": [3],
    "class_embed_type": ["identity"],
    "downsample_type": ["resnet"],
    "upsample_type": ["resnet"],
    "in_channels": [7],
    "add_attention": ["yes"],
    "time_embedding_type": ["learned"],
    "cross_attention_dim": [12],
}.items():
    for value in values:
        must_refuse(edited(scratch / "ddpm", **{key: value}), *SCHEDULE, words=("config.json", key, "got"))

must_refuse(sd1, words=(
    "--prediction, --noise-schedule, --beta-start, --beta-end must be given, got no scheduler/scheduler_config.json",
))  # fmt: skip
must_refuse(sd1, "--prediction", "epsilon", words=("--noise-schedule",))
must_refuse(sd1, "--prediction", "epsilon", "--noise-schedule", "linear", words=("--beta-start, --beta-end must be given",))
for value in ("nan", "inf", "x"):
    must_refuse(sd1, *SCHEDULE, "--guidance-scale", value, words=("must be a finite number", f"got '{value}'"))
must_refuse(edited(sd1, norm_eps=0), *SCHEDULE, words=("norm_eps", "must be above 0"))
must_refuse(sd1, *SCHEDULE[:-1], 2, words=("beta_end < 1",))
must_refuse(sd1, *SCHEDULE[:-1], math.nan, words=("beta_end < 1",))
must_refuse(sd1, *SCHEDULE, "--size", "0x8", words=("--size", "'0x8'"))
must_refuse(sd1, *SCHEDULE, "--text-tokens", "-1", words=("--text-tokens",))
must_refuse(sd1, *SCHEDULE, "--null-class", "0", words=("--null-class", "got 0"))
must_refuse(scratch / "classes", *SCHEDULE, "--null-class", "5", words=("--null-class", "got 5"))
must_refuse(edited(sd1, sample_size=None), *SCHEDULE, words=("sample_size", "--size"))
must_refuse(scratch / "sdxl", *SCHEDULE, "--size-ids", "8", words=("projection_class_embeddings_input_dim",))
for options, word in (
    ({"beta_schedule": "sigmoid"}, "beta_schedule"),
    ({"beta_start": "0.1"}, "beta_start"),
    ({"beta_start": 0.5}, "beta_start <= beta_end"),
    ({"prediction_type": "flow_prediction"}, "prediction_type"),
    ({"trained_betas": [0.1, 2]}, "trained_betas"),
    ({"trained_betas": [0.1], "rescale_betas_zero_snr": True}, "trained_betas"),
    ({"beta_end": math.nan}, "beta_end"),
    ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas"),
):
    scheduler()
    path = pipeline / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    must_refuse(pipeline, words=(word, "scheduler_config.json"))
scheduler()
(pipeline / "vae/config.json").write_text(json.dumps({"scaling_factor": 0}))
must_refuse(pipeline, words=("vae/config.json", "scaling_factor must be above 0"))
(pipeline / "vae/config.json").write_text(json.dumps({"latents_mean": [0, 0, 0, 0]}))
must_refuse(pipeline, words=("vae/config.json", "latents_mean"))

must_refuse(edited(sd1, block_out_channels=[8, 32]), *SCHEDULE, words=("must be", "got"))
must_refuse(edited(sd1, layers_per_block=1), *SCHEDULE, words=("got also",))
must_refuse(edited(sd1, layers_per_block=3), *SCHEDULE, words=("got none called",))
must_refuse(edited(sd1, in_channels=9), *SCHEDULE, words=("conv_in.weight must be [8, 9, 3, 3]",))
sorted((scratch / "sharded").glob("*.safetensors"))[1].unlink()
must_refuse(scratch / "sharded", *SCHEDULE, words=("every shard must be there",))
must_refuse(scratch / "nowhere", *SCHEDULE, words=("nowhere", "must be a folder"))
print("every U-Net is diffusers'")
