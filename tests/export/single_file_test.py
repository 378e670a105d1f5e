"""What is exported of a single file is what is exported of the same networks in a folder: single_file_test.py EXPORT SCRATCH

Builds small random pipelines with diffusers, saves them as folders and in the layout of Stable Diffusion's makers, and
compares the files that are written of both, to the byte.
"""

import functools
import io
import json
import re
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import harness

export, scratch = harness.set_up("diffusers", "safetensors", "transformers")
import diffusers  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import export_autoencoder  # noqa: E402
import export_pipeline  # noqa: E402
import export_text_encoder  # noqa: E402
import export_unet  # noqa: E402
import single_file  # noqa: E402
from harness import shaken  # noqa: E402
from makers_layout import UNET, VAE, Weights, clip_of_makers, open_clip_of_makers, unet_of_makers, vae_of_makers  # noqa: E402

torch._C._set_graph_executor_optimize(False)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
START, END = "<|startoftext|>", "<|endoftext|>"

# ---------------------------------------------------------------------------------------- small models


def tokenizer(folder: Path, padding: str) -> None:
    letters = "!abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters), START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": START, "eos_token": END, "unk_token": END,
        "pad_token": padding,
    }))  # fmt: skip


def text_model(width: int, projected: bool, activation: str, layers: int = 2) -> torch.nn.Module:
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return shaken(kind(transformers.CLIPTextConfig(
        vocab_size=56, hidden_size=width, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=width // 64,
        projection_dim=10 if projected else width, max_position_embeddings=77, hidden_act=activation, eos_token_id=2,
    )))  # fmt: skip


def unet(widths: tuple[int, ...], text: int, **more: object) -> diffusers.UNet2DConditionModel:
    count = len(widths)
    return shaken(diffusers.UNet2DConditionModel(**{
        "sample_size": 64, "block_out_channels": widths, "layers_per_block": 1, "cross_attention_dim": text, "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * (count - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (count - 1),
    } | more))  # fmt: skip


def vae(scale: float, layers: int) -> diffusers.AutoencoderKL:
    return shaken(diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=layers, scaling_factor=scale,
    ))  # fmt: skip


def save(name: str, kind: str, parts: dict[str, object], **notes: object) -> Path:
    folder = scratch / name
    for part, value in parts.items():
        value.save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind} | notes))
    return folder


pndm = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
euler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
of_v = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction")
torch.manual_seed(0)
files: dict[str, Weights] = {}

# Stable Diffusion 1, whose file has what training left there.
text, small = text_model(64, False, "quick_gelu"), vae(0.18215, 2)
network = unet((32, 64, 64), 64)
sd1 = save("sd1", "StableDiffusionPipeline", {"unet": network, "vae": small, "text_encoder": text, "scheduler": pndm})
tokenizer(sd1 / "tokenizer", END)
betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
files["sd1"] = unet_of_makers(network) | vae_of_makers(small) | clip_of_makers(text, "cond_stage_model.transformer.")
files["sd1"] |= {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float(), "model_ema.num_updates": torch.tensor(7)}

# BK-SDM: fewer blocks, no middle, and attention at the lowest level. With no more than the U-Net.
tiny = {"mid_block_type": None, "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
network = unet((32, 64), 64, **tiny)
bk = save("bk", "StableDiffusionPipeline", {"unet": network, "scheduler": pndm})
files["bk"] = unet_of_makers(network)

# Stable Diffusion 2, whose text encoder is left before its last layer.
text = text_model(64, False, "gelu", 23)
network = unet((64, 128), 64, use_linear_projection=True, attention_head_dim=[1, 2])
sd2 = save("sd2", "StableDiffusionPipeline", {"unet": network, "vae": small, "text_encoder": text, "scheduler": of_v})
tokenizer(sd2 / "tokenizer", "!")
files["sd2"] = unet_of_makers(network) | vae_of_makers(small) | open_clip_of_makers(text, "cond_stage_model.model.", 1)

# SDXL, its refiner, and SSD-1B: fewer blocks here and there, and a middle of one.
one, two, large = text_model(64, False, "quick_gelu"), text_model(128, True, "gelu"), vae(0.13025, 1)
added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "use_linear_projection": True, "sample_size": 128,
         "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
         "attention_head_dim": [1, 2]}  # fmt: skip
base = added | {"projection_class_embeddings_input_dim": 10 + 36, "transformer_layers_per_block": [1, 2]}
network = unet((64, 128), 192, **base)
xl = save("xl", "StableDiffusionXLPipeline", {
    "unet": network, "vae": large, "text_encoder": one, "text_encoder_2": two, "scheduler": euler,
})  # fmt: skip
tokenizer(xl / "tokenizer", END)
tokenizer(xl / "tokenizer_2", "!")
of_xl = clip_of_makers(one, "conditioner.embedders.0.transformer.") | open_clip_of_makers(two, "conditioner.embedders.1.model.")
files["xl"] = unet_of_makers(network) | vae_of_makers(large) | of_xl
ssd = {"transformer_layers_per_block": [1, [2, 1]], "reverse_transformer_layers_per_block": [[2, 1, 3], 1], "mid_block_type": "UNetMidBlock2D", "layers_per_block": 2}
network = unet((64, 128), 192, **(base | ssd))
save("ssd", "StableDiffusionXLPipeline", {"unet": network, "scheduler": euler})
files["ssd"] = unet_of_makers(network) | of_xl
network = unet((64, 128), 128, **added, projection_class_embeddings_input_dim=10 + 30)
refiner = save("refiner", "StableDiffusionXLImg2ImgPipeline", {"unet": network, "vae": large, "text_encoder_2": two, "scheduler": euler},
               requires_aesthetics_score=True)  # fmt: skip
tokenizer(refiner / "tokenizer_2", "!")
files["refiner"] = unet_of_makers(network) | vae_of_makers(large) | open_clip_of_makers(two, "conditioner.embedders.0.model.")
network = unet((32, 64), 64, in_channels=9)
save("painting", "StableDiffusionPipeline", {"unet": network, "vae": small, "scheduler": pndm})
files["painting"] = unet_of_makers(network)

# As Lightning wrote them, under its class; which is not there where they are read.
lightning = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
lightning.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": lightning.__name__})
for name, weights in files.items():
    if name in ("sd1", "refiner"):
        above = ("pytorch_lightning", "pytorch_lightning.callbacks")
        with mock.patch.dict(sys.modules, {lightning.__name__: lightning} | {each: types.ModuleType(each) for each in above}):
            noted = {lightning.ModelCheckpoint: {"best_model_path": "last.ckpt"}}
            torch.save({"state_dict": weights, "global_step": 470000, "callbacks": noted}, scratch / f"{name}.ckpt")
    else:
        safetensors.torch.save_file({key: t.contiguous().clone() for key, t in weights.items()}, scratch / f"{name}.safetensors")


def file_of(name: str) -> Path:
    return next(scratch / f"{name}.{suffix}" for suffix in ("ckpt", "safetensors") if (scratch / f"{name}.{suffix}").is_file())


# ---------------------------------------------------------------------------------------- both ways

stderr = io.StringIO()
run = functools.partial(harness.run, stderr=stderr)
Written = tuple[Weights, dict[str, object], list[object]]


class Words(torch.nn.Module):
    """In the place of a tokenizer, which takes a while to make: what it would be made of."""

    def __init__(self, place: Path, tokenizer: object, length: int, preparation: str | None):
        super().__init__()
        self.told = (tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token_id, length, preparation)


def written_by(program: object, *arguments: object) -> Written:
    """What an exporter is about to write: weights, metadata, and what else there is to know of the network."""
    found: list[Written] = []

    def write(output: Path, network: torch.nn.Module, values: dict[str, object], *others: object) -> None:
        words = [(name, key, repr(value)) for name, module in network.named_modules() for key, value in sorted(vars(module).items())
                 if key[0] != "_" and isinstance(value, (int, float, str, tuple, list, dict))]  # fmt: skip
        found.append((network.state_dict(), values, [str(network), *words]))

    # Tokens are looked at where files are written, below.
    words = mock.patch.multiple(export_text_encoder, check_tokens=mock.DEFAULT, make_tokenizer=Words)
    with mock.patch.object(program, "write", write), words:
        message = run(program, *arguments)
    assert not message, (arguments, message)
    return found[0]


def same(program: object, name: str, *options: object, of_file: tuple[object, ...] = ()) -> None:
    """Of the folder and of the file."""
    out = scratch / "not_written.pt"
    folder = written_by(program, scratch / name, out, "--name", name, *options)
    file = written_by(program, file_of(name), out, "--name", name, *options, *of_file)
    assert folder[1:] == file[1:], (program.__name__, name, options, folder[1], file[1])
    assert folder[0].keys() == file[0].keys() and all(map(torch.equal, folder[0].values(), file[0].values())), (name, options)


for name in files:
    if not (scratch / name / "vae").is_dir():  # which tells the scale of latents; of a U-Net alone its kind does
        shutil.copytree((xl if name == "ssd" else sd1) / "vae", scratch / name / "vae")
    same(export_unet, name, of_file=("--prediction", "v_prediction", "--size", "64") if name == "sd2" else ())
for name in ("sd1", "sd2", "xl", "refiner"):
    for half in ("decoder", "encoder"):
        same(export_autoencoder, name, "--part", half)
for name, part, words in (
    ("sd1", "text_encoder", sd1), ("sd2", "text_encoder", sd2 / "tokenizer"), ("xl", "text_encoder", xl), ("refiner", "text_encoder_2", xl),
    # Of any CLIP's tokenizer: the encoder says what texts are filled up with.
    ("sd2", "text_encoder", sd1 / "tokenizer"), ("xl", "text_encoder_2", sd1), ("sd1", "text_encoder", sd2 / "tokenizer"),
):  # fmt: skip
    same(export_text_encoder, name, "--part", part, of_file=("--tokenizer", words))
for folder, words in ((sd1, sd2), (sd2, sd1)):
    own, others = (written_by(export_text_encoder, folder, scratch / "not_written.pt", *more) for more in ((), ("--tokenizer", words)))
    assert own[1:] == others[1:], (folder, own[1:], others[1:])
# With CLIP's projection, which other programs write; without the layer of OpenCLIP that is not used.
last = "cond_stage_model.model.transformer.resblocks.23."
others = {
    "sd1": files["sd1"] | {"cond_stage_model.transformer.text_projection.weight": torch.eye(64)},
    "sd2": {name: tensor for name, tensor in files["sd2"].items() if not name.startswith(last)},
}
assert len(others["sd2"]) == len(files["sd2"]) - 12
for name, weights in others.items():
    torch.save(weights, scratch / "other.ckpt")
    single_file.read.cache_clear()
    out = scratch / "not_written.pt"
    other = written_by(export_text_encoder, scratch / "other.ckpt", out, "--tokenizer", sd1)
    folder = written_by(export_text_encoder, scratch / name, out)
    assert folder[1:] == other[1:] and all(map(torch.equal, folder[0].values(), other[0].values())), name
of_sd1 = diffusers.UNet2DConditionModel.from_pretrained(sd1 / "unet")
diffusers.ControlNetModel.from_unet(of_sd1, conditioning_embedding_out_channels=(16, 32)).save_pretrained(scratch / "control")
same(export_unet, "sd1", "--controlnet", scratch / "control")
print("of a folder and of a single file the same is written")

# ---------------------------------------------------------------------------------------- pipelines

full = ("--dtype", "float32", "--text-dtype", "float32", "--name", "pipeline")
shutil.rmtree(scratch / "bk/vae")
written = {}
for kind, large in (("folders", sd1), ("files", file_of("sd1"))):
    out = scratch / f"of_{kind}.pipeline"
    message = run(export_pipeline, bk, large, out, *full, *(["--tokenizer", sd1] if kind == "files" else []))
    assert not message, message
    # But for errors of the checks, which the places of numbers in memory may change.
    text = re.sub("largest difference .*", "", (out / "pipeline.txt").read_text())
    written[kind] = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".pt"} | {"pipeline.txt": text}
assert written["folders"] == written["files"], written["files"]["pipeline.txt"]
assert "profile diffusers-pndm\nsteps 50\nguidance 7.5\n" in text and "shape 4 64 64\n" in text and "ratio 0.4\n" in text, text

# The tokenizer of the other's folder. Of SDXL and its refiner, both in files.
message = run(export_pipeline, file_of("xl"), file_of("refiner"), scratch / "refined", *full, "--tokenizer", xl)
text = (scratch / "refined/pipeline.txt").read_text()
assert not message and "condition size_ids height width 0 0 height width\ncondition refiner_size_ids height width 0 0 6.0\n" in text, text
assert "profile diffusers-euler\nsteps 50\n" in text and "apart refiner_" in text and "shape 4 128 128\n" in text, text

# ---------------------------------------------------------------------------------------- latent diffusion for classes

network = unet((32, 64), 20, in_channels=3, out_channels=3, attention_head_dim=1)
codes = diffusers.VQModel(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    latent_channels=3, num_vq_embeddings=50, scaling_factor=1.0,
)  # fmt: skip
codes = shaken(codes)
codes.quantize.embedding.weight.copy_(torch.randn(50, 3))
class_table = torch.randn(1001, 20)
other = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
files["classes"] = unet_of_makers(network) | vae_of_makers(codes) | {"cond_stage_model.embedding.weight": class_table, "betas": other.float()}
torch.save({"state_dict": files["classes"]}, scratch / "classes.ckpt")
drawn = scratch / "classes"
message = run(export_pipeline, scratch / "classes.ckpt", drawn, "--dtype", "float32", "--encoder")
assert not message, message
text = (drawn / "pipeline.txt").read_text()
assert "shape 3 128 128\n" in text and "guidance 3.0\n" in text and "text_encoder" not in text and "profile" not in text, text
out = drawn / "network.pt"
got = harness.metadata(out, (
    "conditions", "num_classes", "null_class", "guidance_scale", "latent_scale", "input_shape", "beta_start", "beta_end",
    "noise_schedule", "prediction", "decoding", "profile",
))  # fmt: skip
assert got == {
    "num_classes": "1000", "null_class": "1000", "guidance_scale": "3.0", "latent_scale": "1.0", "input_shape": "3 * *",
    "beta_start": "0.0015", "beta_end": "0.0195", "noise_schedule": "scaled_linear", "prediction": "epsilon", "decoding": "none",
}, got  # fmt: skip
loaded, peer = torch.jit.load(out).eval(), network.double()
for rows, height, width in ((1, 8, 8), (3, 6, 10)):
    x, t, labels = torch.randn(rows, 3, height, width), torch.randint(1000, (rows,)), torch.randint(1001, (rows,))
    difference = harness.relative(loaded(x, t, labels), peer(x.double(), t, class_table[labels][:, None].double()).sample)
    assert difference <= 1e-5, difference
    assert harness.relative(loaded(x, t, (labels + 1) % 1001), loaded(x, t, labels)) > 1e-3
print(f"latent diffusion: {difference:.1e} of the output's RMS from diffusers")
codes.save_pretrained(scratch / "codes/vae")
for half in ("decoder", "encoder"):
    folder = written_by(export_autoencoder, scratch / "codes", scratch / "out.pt", "--part", half)
    file = written_by(export_autoencoder, scratch / "classes.ckpt", scratch / "out.pt", "--part", half)
    assert folder[1:] == file[1:] and all(map(torch.equal, folder[0].values(), file[0].values())), half
decoder, encoder, both = torch.jit.load(drawn / "decoder.pt"), torch.jit.load(drawn / "encoder.pt"), codes.double()
# Latents that are no codes become the nearest ones.
latent, picture = torch.randn(2, 3, 5, 7), torch.rand(2, 3, 8, 12) * 2 - 1
assert harness.relative(decoder(latent), both.decode(latent.double()).sample) <= 1e-5
assert harness.relative(decoder(latent), both.decode(latent.double(), force_not_quantize=True).sample) > 1e-2
assert harness.relative(encoder(picture), both.encode(picture.double()).latents) <= 1e-5
assert harness.metadata(drawn / "decoder.pt", ("latent_channels", "latent_scale")) == {"latent_channels": "3", "latent_scale": "1.0"}

# ---------------------------------------------------------------------------------------- what a file says of its noise


def said_of(weights: Weights, *options: object) -> Written:
    torch.save(weights, scratch / "changed.ckpt")
    single_file.read.cache_clear()
    return written_by(export_unet, scratch / "changed.ckpt", scratch / "not_written.pt", *options)


def without(name: str, *keys: str) -> Weights:
    return {key: tensor for key, tensor in files[name].items() if key not in keys}


def noise_of(weights: Weights, *options: object) -> dict[str, object]:
    keys = ("prediction", "noise_schedule", "beta_start", "beta_end", "num_train_timesteps", "alphas_cumprod", "profile", "latent_scale")
    values = said_of(weights, *options)[1]
    return {key: values[key] for key in keys if key in values}


plain = {"prediction": "epsilon", "noise_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "num_train_timesteps": 1000, "profile": "diffusers-pndm", "latent_scale": 0.18215}  # fmt: skip
assert noise_of(files["bk"]) == plain
assert noise_of(files["bk"] | {"betas": betas.half()}) == plain  # rounded
other = torch.linspace(0.0015**0.5, 0.0195**0.5, 500, dtype=torch.float64) ** 2
got = noise_of(files["bk"] | {"betas": other.float()})
assert got == plain | {"beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 500}, got
got = noise_of(files["bk"] | {"betas": torch.tensor([0.1, 0.2, 0.2])})
table = [float(number) for number in got["alphas_cumprod"].splitlines()]
assert got["noise_schedule"] == "alphas_cumprod" and torch.allclose(torch.tensor(table), torch.tensor([0.9, 0.72, 0.576])), got
marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
got = noise_of(files["bk"] | marks)
assert got["prediction"] == "v_prediction" and got["alphas_cumprod"].splitlines()[-1] == "0.0" and "profile" not in got, got
# Latents that were brought to a deviation of 1; classes without one that means none.
some = files["classes"] | {"scale_factor": torch.tensor(0.5), "cond_stage_model.embedding.weight": class_table[:9]}
values = said_of(some, "--heads", "2", "--size", "8")[1]
assert (values["latent_scale"], values["num_classes"]) == (0.5, 9) and not {"null_class", "guidance_scale"} & set(values), values
values = said_of(some, "--null-class", "8")[1]
assert (values["num_classes"], values["null_class"], values["guidance_scale"]) == (8, 8, 3.0), values
assert noise_of(files["bk"] | marks, "--prediction", "epsilon")["prediction"] == "epsilon"

# Averaged weights come before others.
first = f"{UNET}input_blocks.0.0.weight"
averaged = {"model_ema.diffusion_model" + key.removeprefix(UNET).replace(".", ""): tensor + 1 for key, tensor in files["bk"].items()}
assert torch.equal(said_of(files["bk"] | averaged)[0]["conv_in.weight"], files["bk"][first] + 1)
assert "has averaged weights of its U-Net and others: taking the averaged ones" in stderr.getvalue()
# Of SDXL's networks alone the base takes six sizes beside the text, and the refiner five beside a text of its own width.
alone = {key: tensor for key, tensor in files["refiner"].items() if key.startswith(UNET)}
for columns, kind, text, sizes in ((5 * 256 + 128, "the refiner of SDXL", 128, 5), (6 * 256 + 10, "SDXL", 10, 6)):
    label = f"{UNET}label_emb.0.0.weight"
    values = said_of(alone | {label: torch.randn(files["refiner"][label].shape[0], columns)})[1]
    assert f"changed.ckpt: taken for {kind}\n" in stderr.getvalue()
    assert f"pooled_embedding float {text}\n" in values["conditions"] and f"size_ids float {sizes}" in values["conditions"], values
# The decoder is not asked for what the network does not need.
assert noise_of(without("sd1", f"{VAE}decoder.conv_out.weight")) == plain
# A file of the network alone, without what its names begin with elsewhere.
alone = said_of({key.removeprefix(UNET): tensor for key, tensor in files["bk"].items()})[0]
assert torch.equal(alone["conv_in.weight"], files["bk"][first])

# ---------------------------------------------------------------------------------------- what is refused


def must_refuse(program: object, source: Path | Weights, *options: object, words: tuple[str, ...]) -> None:
    if isinstance(source, dict):
        path = scratch / "refused_source.safetensors"
        safetensors.torch.save_file({key: t.contiguous().clone() for key, t in source.items()}, path)
        single_file.read.cache_clear()
        source = path
    message = run(program, source, scratch / "refused.pt", *options)
    (scratch / "refused_source.safetensors").unlink(missing_ok=True)
    harness.require_refusal(message, words, scratch)


def having(name: str, **more: object) -> Weights:
    return files[name] | {key.replace("__", "."): torch.zeros(sizes) for key, sizes in more.items()}


unet_of = functools.partial(must_refuse, export_unet)
text_of = functools.partial(must_refuse, export_text_encoder)
unet_of({"lora_unet_down.lora_up.weight": torch.zeros(1)}, words=("refused_source.safetensors: must be", "a LoRA", "merge it"))
unet_of({"unet.down.lora_A.weight": torch.zeros(1)}, words=("a LoRA",))
unet_of(dict(network.state_dict()), words=("the layout of diffusers: give the folder",))
unet_of({f"{UNET}joint_blocks.0.x": torch.zeros(1)}, words=("a diffusion transformer",))
unet_of({"control_model.time_embed.0.weight": torch.zeros(1)}, words=("a ControlNet",))
unet_of(having("xl", edm_mean=4), words=("by the rules of EDM",))
unet_of(files["bk"] | dict(list(averaged.items())[1:]), words=(
    "must have averaged weights of its whole U-Net or none, got others, but none called", list(averaged)[0],
))  # fmt: skip
unet_of({key: t for key, t in files["bk"].items() if ".attn2.to_k." not in key}, words=("must have attention to a text, got no tensor called",))
for value in (-0.1, float("nan"), 1.0):
    unet_of(files["bk"] | {"betas": torch.tensor([0.1, 0.2, value, value])}, words=("trained_betas[2] must be a number in (0, 1), got",))
unet_of({"some.weight": torch.zeros(1)}, words=("must have the tensors of Stable Diffusion", "such as", "got some.weight"))
unet_of(having("bk", **{f"{UNET}label_emb__0__0__weight": (4, 4)}), words=("projection_class_embeddings_input_dim must be more than 6 sizes of 256, got 4",))
unet_of(having("sd2", **{f"{UNET}label_emb__0__0__weight": (4, 4)}), words=("must not have model.diffusion_model.label_emb for Stable Diffusion 2",))
unet_of(without("xl", f"{UNET}label_emb.0.0.weight"), words=("must have model.diffusion_model.label_emb for SDXL, got none",))
unet_of(files["sd1"] | files["sd2"], words=("must have the text encoders of one model, got those of Stable Diffusion 1 and of Stable Diffusion 2",))
unet_of(having("bk", **{f"{UNET}strange__weight": 4}), words=("must hold the tensors of Stable Diffusion 1 only, got also model.diffusion_model.strange.weight",))
unet_of(without("bk", f"{UNET}out.0.bias"), words=("must hold every tensor of the network, got none called conv_norm_out.bias",))
unet_of(without("bk", f"{UNET}out.2.weight"), words=("must have a tensor of 4 dimensions called out.2.weight, got none",))
unet_of(without("ssd", f"{UNET}input_blocks.4.1.proj_in.weight"), words=("must have attention in all residual blocks of a level or in none",))
unet_of(without("sd1", *(k for k in files["sd1"] if "output_blocks.0." in k)), words=("as many residual blocks on each level", "and 5 on the way up"))
unet_of(files["bk"] | {f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, words=("in_channels must be out_channels = 4, or 9 for inpainting, got 8",))
unet_of(file_of("sd2"), words=("--size and --prediction must be given, got a file of Stable Diffusion 2, which was published for 512 and 768 pixels",))
unet_of(file_of("bk"), "--weights", "other.pt", words=("--weights: must be left out for a file that has all weights, got other.pt",))
unet_of(file_of("bk"), "--variant", "fp16", words=("--variant: must be left out",))
with mock.patch.dict(sys.modules, {"diffusers.loaders.single_file_utils": None}):
    unet_of(file_of("bk"), words=("bk.safetensors: needs the Python package diffusers, got none",))
unet_of(without("xl", f"{UNET}label_emb.0.2.weight"), words=("must hold every tensor of the unet, got none called label_emb.0.2.weight",))
unet_of(without("bk", f"{UNET}input_blocks.2.0.op.bias"), words=("refused_source.safetensors: down_blocks.0.downsamplers.0.conv.bias must be a tensor",))
joined = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
text_of(files["sd2"] | {joined: torch.tensor(1.0)}, "--tokenizer", sd1, words=("must have a text_encoder in the layout of its makers, got 'too many indices",))
must_refuse(export_autoencoder, without("sd1", f"{VAE}decoder.up.1.upsample.conv.bias"), words=("must hold every tensor of the vae, got none called decoder.up.1.upsample.conv.bias",))
(scratch / "empty.safetensors").write_bytes(b"")
unet_of(scratch / "empty.safetensors", words=("empty.safetensors: must be a safetensors file, got",))
unet_of(file_of("sd1"), "--size-ids", "5", words=("--size-ids: must be for a network that takes sizes, got 5 for",))
for option, value in (("--size-ids", "6"), ("--text-tokens", "*"), ("--text-tokens", "77"), ("--condition-prefix", "a_")):
    unet_of(file_of("classes"), option, value, words=(f"{option}: must be for a network that takes", f"got {value} for"))
unet_of(file_of("bk"), "--heads", "2", words=("--heads: must be for latent diffusion in a single file, got 2 for",))
unet_of(file_of("classes"), "--null-class", "1001", words=("--null-class: must be a row of the network's table of 1001 classes, got 1001",))
unet_of(file_of("classes"), "--heads", "5", words=("attention_head_dim must divide block_out_channels [32, 64], got 5",))
unet_of(files["classes"] | {"cond_stage_model.embedding.weight": class_table[0]}, words=("must have a tensor of 2 dimensions called cond_stage_model.embedding.weight",))
unet_of(files["classes"] | {"cond_stage_model.embedding.weight": class_table * float("nan")}, words=("class_context.weight must hold finite numbers, got nan",))
unet_of(files["classes"] | {"cond_stage_model.embedding.weight": class_table[:, :5]}, words=("class_context.weight must be [1001, 20], got [1001, 5]",))
must_refuse(export_autoencoder, {k: t for k, t in files["classes"].items() if "post_quant" not in k}, words=("must have quant_conv and post_quant_conv beside a codebook",))
text_of(file_of("classes"), words=("classes.ckpt: must hold text_encoder, got unet, vae",))
must_refuse(export_autoencoder, file_of("bk"), words=("must have the tensors of a vae, got none called first_stage_model.",))
must_refuse(export_autoencoder, having("sd1", **{f"{VAE}encoder__down__0__attn__0__q__weight": (4, 4)}),
            words=("got also encoder.down.0.attn.0.q.weight",))  # fmt: skip
text_of(file_of("sd1"), words=("--tokenizer: must be given for a single file, which has no tokenizer, got none",))
text_of(file_of("sd1"), "--tokenizer", scratch / "nowhere", words=("nowhere: must be a folder, got nothing",))
text_of(file_of("sd1"), "--part", "text_encoder_2", words=("sd1.ckpt: must hold text_encoder_2, got unet, vae, text_encoder",))
text_of(without("sd1", "cond_stage_model.transformer.text_model.final_layer_norm.bias"), "--tokenizer", sd1,
        words=("must hold every tensor of the network, got none called text_model.final_layer_norm.bias",))  # fmt: skip
for sources, options, words in (
    ([file_of("sd1")], (), "has text encoders without a tokenizer: --tokenizer must name a folder that has one"),
    ([file_of("bk")], (), "bk.safetensors: must hold text_encoder, got unet"),
    ([file_of("xl"), file_of("sd1")], (), "xl.safetensors: must be of a StableDiffusion as"),
    ([file_of("sd2")], ("--tokenizer", sd1), "sd2.safetensors: --prediction and --size must be given, got a file of Stable Diffusion 2, which was published with epsilon"),
    ([sd1], ("--prediction", "epsilon"), "--prediction: must be for single files, got folders"),
    ([sd1], ("--tokenizer", sd1), "--tokenizer: must be for text encoders that are in a single file"),
    ([scratch / "nowhere"], (), "nowhere: must be a folder or a file, got nothing"),
):
    harness.require_refusal(run(export_pipeline, *sources, scratch / "refused", *options), (words,), scratch)
print("what is no such file is refused")
