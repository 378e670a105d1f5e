"""Exported U-Nets with a ControlNet compute what diffusers' two networks do: controlnet_test.py TSTITCH_SAMPLE EXPORT SCRATCH

Builds small random networks with diffusers, saves, exports and loads them, and compares outputs, and the latents of whole
pipelines.
"""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import harness

export, scratch = harness.set_up("diffusers", "safetensors", "transformers")
import diffusers  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import export_pipeline  # noqa: E402
import export_unet  # noqa: E402
from harness import relative, shaken  # noqa: E402

tool = str(Path(sys.argv[1]).absolute())
sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import checkpoints  # noqa: E402

torch._C._set_graph_executor_optimize(False)
run = functools.partial(harness.run, export_unet)
SCHEDULE = ["--prediction", "epsilon", "--noise-schedule", "scaled_linear", "--beta-start", 0.00085, "--beta-end", 0.012]
SMALL = {
    "block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 12,
}  # fmt: skip
UP = {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "sample_size": 8}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 10 + 36}
CONTROL = {"conditioning_embedding_out_channels": [4, 6, 8, 10]}


def networks(name: str, unet: dict, controlnet: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    model = shaken(diffusers.UNet2DConditionModel(**(SMALL | UP | unet)))
    control = shaken(diffusers.ControlNetModel(**(SMALL | CONTROL | controlnet)))
    for parameter in control.parameters():  # what it adds begins as zeros, which would hide everything
        if not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    embedding = control.controlnet_cond_embedding
    for block in (*control.controlnet_down_blocks, control.controlnet_mid_block, embedding.conv_in, *embedding.blocks, embedding.conv_out):
        block.weight.copy_(torch.randn_like(block.weight) * (2 / block.weight[0].numel()) ** 0.5)
    model.save_pretrained(scratch / name / "unet")
    control.save_pretrained(scratch / name / "controlnet")
    return model.double(), control.double()


def compare(name: str, unet: dict, controlnet: dict, scale: float | None = None) -> str:
    """Returns the conditions that the file states."""
    model, control = networks(name, unet, controlnet)
    out = scratch / f"{name}.pt"
    scaled = [] if scale is None else ["--controlnet-scale", scale]
    message = run(scratch / name, out, "--controlnet", scratch / name, "--dtype", "float32", *SCHEDULE, *scaled)
    assert not message, message
    loaded = torch.jit.load(out).eval()
    names = {name for name, _ in loaded.named_parameters()}
    assert names == {*model.state_dict(), *(f"controlnet.{name}" for name in control.state_dict())}, name
    for rows, height, width in ((1, 8, 8), (3, 8, 12), (2, 7, 9)):
        x, t, text = torch.randn(rows, 4, height, width), torch.randint(1000, (rows,)), torch.randn(rows, 77, 12)
        picture = torch.rand(rows, 3, 8 * height, 8 * width)
        pooled = [torch.randn(rows, 10), torch.randint(2048, (rows, 6)).float()] if ADDED.items() <= unet.items() else []
        got = loaded(x, t, text, *pooled, picture)
        told = dict(zip(("text_embeds", "time_ids"), (value.double() for value in pooled)))
        skips, middle = control(
            x.double(), t, text.double(), picture.double(), conditioning_scale=1.0 if scale is None else scale,
            added_cond_kwargs=told if "addition_embed_type" in controlnet else None, return_dict=False,
        )  # fmt: skip
        expected = model(x.double(), t, text.double(), added_cond_kwargs=told, down_block_additional_residuals=skips,
                         mid_block_additional_residual=middle).sample  # fmt: skip
        difference = relative(got, expected)
        assert difference <= 1e-5, (name, rows, height, width, difference)
        # It is the picture that does it.
        assert relative(loaded(x, t, text, *pooled, 1 - picture), expected) > 1e-3, name
    graph = str(loaded.inlined_graph)
    for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
        assert word not in graph, (name, word)
    print(f"{name}: {difference:.1e} of the output's RMS from diffusers")
    return harness.metadata(out, ("conditions",))["conditions"]


got = compare("sd1", {}, {}, 0.75)
assert got == "text_embedding float 77 12\ncontrolnet_cond float 3 64 64", got
compare("sd2", {"use_linear_projection": True, "layers_per_block": 2}, {
    "use_linear_projection": True, "layers_per_block": 2, "controlnet_conditioning_channel_order": "bgr", "attention_head_dim": 4,
})  # fmt: skip
got = compare("xl", ADDED | {"transformer_layers_per_block": [1, 2]}, ADDED | {"transformer_layers_per_block": [2, 1]})
assert got == "text_embedding float 77 12\npooled_embedding float 10\nsize_ids float 6\ncontrolnet_cond float 3 64 64", got
# Of SDXL there are small ones, without attention, and those that are told the text alone.
compare("small_xl", ADDED | {"mid_block_type": None}, {"down_block_types": ["DownBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"})

# Half precision, and names of two ControlNets on one trajectory.
message = run(scratch / "sd1", scratch / "half.pt", "--controlnet", scratch / "sd1/controlnet", *SCHEDULE, "--size", "*",
              "--controlnet-prefix", "depth_")  # fmt: skip
assert not message, message
got = harness.metadata(scratch / "half.pt", ("conditions",))["conditions"]
assert got == "text_embedding float 77 12\ndepth_controlnet_cond float 3 * *", got

# ---------------------------------------------------------------------------------------- a pipeline


def pipeline(name: str, width: int) -> tuple[Path, Path]:
    """A folder of diffusers, and that of a ControlNet for it."""
    like = {"block_out_channels": [width, 2 * width], "cross_attention_dim": 16}
    networks(name, like, like)
    folder, controlnet = scratch / name, scratch / f"{name}_controlnet"
    (folder / "controlnet").rename(controlnet)
    diffusers.PNDMScheduler(**checkpoints.BETAS, skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder, controlnet


small, small_controlnet = pipeline("small", 8)
large, controlnet = pipeline("large", 16)
checkpoints.clip(large, "", 16, False)
decoder = diffusers.AutoencoderKL(
    block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1, norm_num_groups=4,
)  # fmt: skip
decoder.save_pretrained(large / "vae")
exported = functools.partial(harness.run, export_pipeline, small, large)
full = ["--dtype", "float32", "--text-dtype", "float32", "--controlnet-scale", 0.8]
message = exported(scratch / "both", *full, "--controlnet", small_controlnet, "--controlnet", controlnet)
assert not message, message
text = (scratch / "both/pipeline.txt").read_text()
assert text.count("given controlnet_cond\n") == 1 and "shape 4 8 8\n" in text, text
coarse = scratch / "coarse"
shutil.copytree(controlnet, coarse)
config = json.loads((coarse / "config.json").read_text()) | {"conditioning_embedding_out_channels": [4, 6, 8]}
(coarse / "config.json").write_text(json.dumps(config))
for arguments, words in (
    (["--controlnet", coarse], "must be as many as make a picture 8 times smaller, as the autoencoder of"),
    (["--controlnet", controlnet] * 3, "--controlnet: must be given once for a network at most, got 3 for 2"),
    (["--controlnet", scratch / "nowhere"], "--controlnet: must be a folder, got"),
    ([], "--controlnet-scale: must be beside --controlnet, got 0.8"),
):
    harness.require_refusal(exported(scratch / "refused", *full, *arguments), (words,), scratch)


def draw(*arguments: object) -> subprocess.CompletedProcess:
    given = ["--pipeline", "both", "--prompt", "a fox", "--negative", "blurry", "--steps", 5, "--guidance", 4, "--initial-noise", "noise.npy"]
    command = [tool, "--device", "cpu", *given, "--latents", "drawn.npy", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=scratch)


noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
numpy.save(scratch / "noise.npy", noise.numpy())
torch.save({"controlnet_cond": picture}, scratch / "picture.pt")
peer = diffusers.StableDiffusionControlNetPipeline(
    vae=decoder.eval(), text_encoder=transformers.CLIPTextModel.from_pretrained(large / "text_encoder").eval(),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(large / "tokenizer"),
    unet=diffusers.UNet2DConditionModel.from_pretrained(large / "unet"),
    controlnet=diffusers.ControlNetModel.from_pretrained(controlnet),
    scheduler=diffusers.PNDMScheduler.from_pretrained(large / "scheduler"),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
peer.set_progress_bar_config(disable=True)
expected = peer(
    "a fox", image=picture, negative_prompt="blurry", num_inference_steps=5, guidance_scale=4.0, latents=noise.clone(), height=64, width=96,
    controlnet_conditioning_scale=0.8, output_type="latent",
).images  # fmt: skip


def drawn(*arguments: object) -> torch.Tensor:
    done = draw("--condition", "picture.pt", "--size", "64x96", *arguments)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(numpy.load(scratch / "drawn.npy"))


error = ((drawn("--ratio", 0) - expected).abs().max() / expected.std()).item()
print(f"a pipeline: {error:.1e} of the latents' deviation from diffusers")
assert error <= 1e-5, error
assert not torch.equal(drawn("--ratio", 0.5), drawn("--ratio", 0)), "the small network takes its picture, too"
torch.save({"controlnet_cond": picture[..., :64]}, scratch / "narrow.pt")
for arguments, words in (
    (["--size", "64x96"], "--condition: must give 'controlnet_cond', which network 0 ('small') takes, got none"),
    (["--size", "64x96", "--condition", "narrow.pt"], "controlnet_cond must be as large as the picture that x becomes"),
):
    done = draw(*arguments)
    assert done.returncode in (1, 2) and words in done.stderr, (words, done)

# ---------------------------------------------------------------------------------------- what is refused


def must_refuse(name: str, *options: object, words: tuple[str, ...]) -> None:
    message = run(scratch / name, scratch / "refused.pt", *SCHEDULE, *options)
    harness.require_refusal(message, words, scratch)


def edited(name: str, **changes: object) -> Path:
    folder = scratch / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scratch / name / "controlnet", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


sd1, control = scratch / "sd1", ("--controlnet", scratch / "sd1/controlnet")
must_refuse("sd1", "--controlnet-scale", "0.5", words=("--controlnet-scale: must be beside --controlnet, got 0.5",))
must_refuse("sd1", "--controlnet-prefix", "a", words=("--controlnet-prefix: must be beside --controlnet, got a",))
must_refuse("sd1", *control, "--controlnet-scale", "nan", words=("--controlnet-scale: must be a finite number, got 'nan'",))
must_refuse("sd1", *control, "--deep-feature", words=("--deep-feature: must be left out beside --controlnet",))
must_refuse("sd1", "--controlnet", scratch / "nowhere", words=("nowhere: must be a folder, got nothing",))
must_refuse("sd1", "--controlnet", sd1 / "unet", words=("_class_name must be ControlNetModel, got \"UNet2DConditionModel\"",))
must_refuse("sd1", "--controlnet", scratch / "sd2", words=("must have the U-Net's channels of its levels, [8, 8, 8, 16], got [8, 8, 8, 8, 16, 16]: it is of another model",))
must_refuse("sd1", "--controlnet", edited("sd1", cross_attention_dim=16), words=("must have the U-Net's channels of a text, 12, got 16",))
must_refuse("sd1", "--controlnet", edited("sd1", in_channels=9), words=("must have the U-Net's channels of x, 4, got 9",))
must_refuse("sd1", "--controlnet", scratch / "xl", words=("must be told a pooled text of 0 numbers, as the U-Net is, got 10",))
for key, value in {
    "global_pool_conditions": True, "controlnet_conditioning_channel_order": "grb", "conditioning_channels": 0,
    "conditioning_embedding_out_channels": [], "class_embed_type": "projection", "act_fn": "gelu", "brightness": 2,
}.items():  # fmt: skip
    must_refuse("sd1", "--controlnet", edited("sd1", **{key: value}), words=("config.json", key, "got"))
must_refuse("sd1", "--controlnet", edited("sd1", conditioning_embedding_out_channels=[4, 6, 8]), words=("got also controlnet_cond_embedding.blocks.4",))
must_refuse("sd1", "--controlnet", edited("sd1", conditioning_channels=1), words=("controlnet_cond_embedding.conv_in.weight must be [4, 1, 3, 3], got [4, 3, 3, 3]",))
for name, options, what in (("lcm", {"time_cond_proj_dim": 14}, "guidance as an input"), ("painting", {"in_channels": 9}, "inpainting")):
    diffusers.UNet2DConditionModel(**(SMALL | UP | options)).save_pretrained(scratch / name / "unet")
    must_refuse(name, *control, words=("must be for a U-Net that takes a text, and neither guidance nor a mask", f"got one of {what}"))
print("every U-Net with its ControlNet is diffusers'")
