"""Exported autoencoders compute what diffusers computes: autoencoder_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random autoencoders with diffusers, saves, exports and loads them, and compares both halves.
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
import export_autoencoder  # noqa: E402
from harness import relative, shaken  # noqa: E402

run = functools.partial(harness.run, export_autoencoder)
must_refuse = functools.partial(harness.must_refuse, export_autoencoder, scratch)


def levels(pictures: torch.Tensor) -> torch.Tensor:
    """Of 256, as the library writes them."""
    return (127.5 * pictures.double() + 128).floor().clamp(0, 255)


def compare(model: torch.nn.Module, folder: Path, factor: int, time: int = 0) -> None:
    """Both halves, several batches and picture sizes, with what diffusers computes in float64; some in float16 too.

    @time: frames for one of a latent, of videos, which are decoded only; else 0.
    """
    model.double()
    channels = model.config.z_dim if time else model.config.latent_channels
    newer = isinstance(model, (diffusers.AutoencoderDC, diffusers.AutoencoderKLWan))
    for part in ("decoder",) if time else ("decoder", "encoder"):
        halves = [("float16", 2e-2)] if folder.name in ("sd1", "sd3", "taesd", "wan") else []
        for dtype, most in [*halves, ("float32", 1e-5 if newer else 3e-5)]:
            path = scratch / f"{folder.name}_{part}_{dtype}.pt"
            message = run(folder, path, "--part", part, "--dtype", dtype, "--name", "tiny", "--license", "MIT")
            assert not message, message
            loaded = torch.jit.load(path).eval()
            assert all(p.dtype == getattr(torch, dtype) for p in loaded.parameters())
            for frames, rows, height, width in ((1, 1, 4, 4), (2, 3, 4, 4), (5, 2, 6, 5), (1, 2, 1, 3)):
                if part == "decoder":
                    x = torch.randn(rows, channels, *((frames,) if time else ()), height, width)
                    expected = model.decode(x.double()).sample
                else:
                    x = torch.rand(rows, 3, factor * height, factor * width) * 2 - 1
                    encoded = model.encode(x.double())
                    found = [getattr(encoded, name) for name in ("latents", "latent") if hasattr(encoded, name)]
                    expected = found[0] if found else encoded.latent_dist.mean
                got = loaded(x.to(getattr(torch, dtype)))
                difference = relative(got, expected)
                assert difference <= most, f"{path}: {difference}"
                if part == "decoder":
                    assert expected.shape[-2:] == (factor * height, factor * width)
                    assert not time or expected.size(2) == time * (frames - 1) + 1
                if part == "decoder" and dtype == "float32":
                    off = (levels(got) - levels(expected)).abs()
                    assert off.max() <= 1 and off.count_nonzero() <= 1 + 1e-3 * off.numel(), f"{path}: {off.count_nonzero()}"
                    assert not newer or levels(expected).unique().numel() > 30, "pictures must have colours"
            graph = str(loaded.inlined_graph)
            for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
                assert word not in graph, f"{path}: {word} would tie the file to a device or a size"
            frozen = torch.jit.freeze(loaded)  # as the library runs it
            assert relative(frozen(x.to(getattr(torch, dtype))), expected) <= most
        keys = (
            "format", "kind", "name", "latent_channels", "picture_channels", "upsampling", "latent_scale",
            "latent_shift", "license", "temporal_upsampling",
        )  # fmt: skip
        got = harness.metadata(path, keys)
        expected_values = {
            "format": "1",
            "kind": part,
            "name": "tiny",
            "latent_channels": repr(channels),
            "picture_channels": "3",
            "upsampling": repr(factor),
            "license": "MIT",
        }
        if time:
            numbers = {key: [float(line) for line in got.pop(key).splitlines()] for key in ("latent_scale", "latent_shift")}
            assert numbers["latent_shift"] == list(model.config.latents_mean)
            assert numbers["latent_scale"] == [1 / deviation for deviation in model.config.latents_std]
            expected_values["temporal_upsampling"] = repr(time)
        else:
            expected_values["latent_scale"] = repr(float(model.config.scaling_factor))
            expected_values["latent_shift"] = repr(float(getattr(model.config, "shift_factor", 0) or 0))
        assert got == expected_values, got


# ---------------------------------------------------------------------------------------- what diffusers computes

tiny_kl = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
}
variants = {
    "sd1": {"layers_per_block": 2},
    "sdxl": {"scaling_factor": 0.13025},
    "sd3": {
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "one_conv": {"use_quant_conv": False, "mid_block_add_attention": False},
    "levels": {
        "block_out_channels": [8, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
}
for name, options in variants.items():
    torch.manual_seed(0)  # each by itself, whatever the others drew
    model = shaken(diffusers.AutoencoderKL(**(tiny_kl | options)))
    model.save_pretrained(scratch / name)
    compare(model, scratch / name, 2 ** (len(model.config.block_out_channels) - 1))

taesd = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 2, 1],
    "num_decoder_blocks": [2, 1, 1],
}
for name, options in {"taesd": {}, "taef1": {"latent_channels": 16, "act_fn": "silu", "shift_factor": 0.1}}.items():
    torch.manual_seed(0)
    model = shaken(diffusers.AutoencoderTiny(**(taesd | options)))
    model.save_pretrained(scratch / name)
    compare(model, scratch / name, 4)

def gammas_shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Norms of videos begin as 1, too, and have more dimensions."""
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return shaken(model)


res, attends = "ResBlock", "EfficientViTBlock"
sana = {
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 8, 16, 32],
    "decoder_block_out_channels": [8, 16, 16, 32],
    "encoder_layers_per_block": [1, 1, 2, 1],
    "decoder_layers_per_block": [2, 1, 1, 2],
    "encoder_block_types": [res, res, res, attends],
    "decoder_block_types": [res, res, attends, attends],
    "encoder_qkv_multiscales": [[], [], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [5], [5]],
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
shuffled = {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"}
no_shortcuts = {"encoder_out_shortcut": False, "decoder_in_shortcut": False}
coarse = {"encoder_layers_per_block": [0, 1, 2, 1], "decoder_layers_per_block": [0, 1, 1, 2]}
others = {"decoder_qkv_multiscales": [[], [], [3, 7], []], "decoder_act_fns": ["relu", "relu", "silu", "silu"], "decoder_conv_act_fn": "silu"}
of_one = {"encoder_block_types": res, "decoder_block_types": res, "decoder_act_fns": "relu"}
for name, options in {
    "sana": {},
    "sana_shuffled": shuffled | others,
    "sana_plain": no_shortcuts | of_one,
    "sana_coarse": coarse | others,
    "sana_coarse_plain": coarse | shuffled | no_shortcuts,
}.items():
    torch.manual_seed(0)
    model = shaken(diffusers.AutoencoderDC(**(sana | options)))
    model.save_pretrained(scratch / name)
    compare(model, scratch / name, 8)

wan = {"base_dim": 8, "num_res_blocks": 1}
wan_2_2 = {
    "decoder_base_dim": 12,
    "z_dim": 6,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.1, -0.2, 0.3, 0, 0.5, -1],
    "latents_std": [1, 2, 0.5, 0.25, 3, 0.7],
}
for name, options, factor, time in (
    ("wan", {}, 8, 4),
    ("wan_2_2", wan_2_2, 16, 4),
    ("wan_levels", {"dim_mult": [1, 2, 2], "temperal_downsample": [True, False], "num_res_blocks": 2}, 4, 2),
    ("wan_frames", wan_2_2 | {"temperal_downsample": [False, False, False], "patch_size": None, "out_channels": 3}, 8, 1),
):
    torch.manual_seed(0)
    model = gammas_shaken(diffusers.AutoencoderKLWan(**(wan | options)))
    model.save_pretrained(scratch / name)
    compare(model, scratch / name, factor, time)
    # What has been decoded does not change with what comes behind.
    decodes = torch.jit.load(scratch / f"{name}_decoder_float32.pt").eval()
    x = torch.randn(1, model.config.z_dim, 5, 3, 4)
    begins = decodes(x[:, :, :2])
    assert torch.allclose(decodes(x)[:, :, : begins.size(2)], begins, atol=1e-6)

# The published shapes, without memory: the same tensors as diffusers has.
levels_of_sana = [res] * 3 + [attends] * 3
published = {
    "dc-ae-f32c32-sana-1.0": (diffusers.AutoencoderDC, {
        "encoder_block_types": levels_of_sana, "decoder_block_types": levels_of_sana, "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate", "decoder_norm_types": ["rms_norm"] * 6, "decoder_act_fns": ["silu"] * 6,
        "scaling_factor": 0.41407,
    }, 312e6, 32),
    "Wan2.1": (diffusers.AutoencoderKLWan, {}, 73e6, 8),
    "Wan2.2-TI2V-5B": (diffusers.AutoencoderKLWan, {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
        "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    }, 555e6, 16),
}  # fmt: skip
for name, (cls, options, count, factor) in published.items():
    with torch.device("meta"):
        theirs = cls(**options)
    (scratch / "published.json").write_text(json.dumps(dict(theirs.config) | {"_class_name": cls.__name__}))
    kind, shape, _ = export_autoencoder.read_config(common.Config(scratch / "published.json"))
    with torch.device("meta"):
        ours = kind.make(shape)
    theirs, ours = ({k: v.shape for k, v in n.state_dict().items()} for n in (theirs, ours))
    assert ours == kind.named(theirs), set(ours) ^ set(kind.named(theirs))
    parameters = sum(math.prod(size) for size in ours.values())
    assert 0.98 * count < parameters < 1.02 * count and export_autoencoder.upsampling(shape, "decoder") == factor, (name, parameters)

# A mean and a deviation for each channel, of pictures.
torch.manual_seed(0)
model = shaken(diffusers.AutoencoderKL(**tiny_kl, scaling_factor=0.5, latents_mean=[0, 1, 2, 3.5], latents_std=[1, 2, 4, 8]))
model.save_pretrained(scratch / "playground")
assert not run(scratch / "playground", scratch / "playground.pt")
assert harness.metadata(scratch / "playground.pt", ("latent_scale", "latent_shift")) == {
    "latent_scale": "0.5\n0.25\n0.125\n0.0625",
    "latent_shift": "0.0\n1.0\n2.0\n3.5",
}

# ---------------------------------------------------------------------------------------- where weights come from

# A pipeline's folder, shards, the older format, a file of one's own, and a run without diffusers give the same bytes.
sd1, plain = scratch / "sd1", scratch / "sd1_decoder_float32.pt"
model = diffusers.AutoencoderKL.from_pretrained(sd1)
model.save_pretrained(scratch / "pipeline/vae", max_shard_size="20KB")
assert len(list((scratch / "pipeline/vae").glob("*.safetensors"))) > 1
model.save_pretrained(scratch / "older", safe_serialization=False)
weights = model.state_dict()
# Checkpoints of 2022 and 2023 name attention differently.
words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
old = {}
for key, value in weights.items():
    for today, before in words.items():
        key = key.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
    old[key] = value
assert set(old) != set(weights)
(scratch / "old_names").mkdir()
shutil.copy(sd1 / "config.json", scratch / "old_names")
torch.save(old, scratch / "old_names/diffusion_pytorch_model.bin")
torch.save(weights, scratch / "mine.pt")
again = scratch / "again.pt"
for arguments in (
    [sd1],
    [scratch / "pipeline"],
    [scratch / "pipeline/vae"],
    [scratch / "older"],
    [scratch / "old_names"],
    [sd1, "--weights", scratch / "mine.pt"],
):
    message = run(*arguments, again, "--name", "tiny", "--license", "MIT")
    assert not message, message
    assert again.read_bytes() == plain.read_bytes(), f"{arguments}: the same weights must give the same bytes"
    again.unlink()

# The same of the newer ones, whose shards, variants and prefixes are read by the same means.
for name, kind in (("sana", diffusers.AutoencoderDC), ("wan", diffusers.AutoencoderKLWan)):
    model, source = kind.from_pretrained(scratch / name), scratch / f"{name}_decoder_float32.pt"
    model.save_pretrained(scratch / f"{name}_pipeline/vae", max_shard_size="20KB")
    model.save_pretrained(scratch / f"{name}_variant", variant="fp16")
    assert list((scratch / f"{name}_pipeline/vae").glob("*-of-*.safetensors"))
    torch.save({"state_dict": {f"vae.{key}": value for key, value in model.state_dict().items()}}, scratch / "trained.ckpt")
    for arguments in (
        [scratch / f"{name}_pipeline"],
        [scratch / f"{name}_variant", "--variant", "fp16"],
        [scratch / name, "--weights", scratch / "trained.ckpt"],
    ):
        message = run(*arguments, again, "--name", "tiny", "--license", "MIT")
        assert not message, message
        assert again.read_bytes() == source.read_bytes(), f"{arguments}: the same weights must give the same bytes"
        again.unlink()

(scratch / "without").mkdir()
(scratch / "without/diffusers.py").write_text("raise ImportError('none here')")
command = [sys.executable, str(export / "export_autoencoder.py"), str(sd1), str(again), "--name", "tiny"]
environment = os.environ | {"PYTHONPATH": str(scratch / "without")}
done = subprocess.run([*command, "--license", "MIT"], env=environment, capture_output=True, text=True, check=True)
assert "not installed" in done.stderr and "largest difference" in done.stdout, (done.stderr, done.stdout)
assert again.read_bytes() == plain.read_bytes()
assert str(export).encode() not in plain.read_bytes(), "no paths of this machine inside"

# ---------------------------------------------------------------------------------------- what is refused


def edited(name: str, source: Path = sd1, **changes: object) -> Path:
    folder = scratch / name
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


bad = {
    "_class_name": ["UNet2DModel", None],
    "down_block_types": [["DownEncoderBlock2D"], ["AttnDownEncoderBlock2D"] * 2, "DownEncoderBlock2D", []],
    "up_block_types": [["UpDecoderBlock2D"] * 3, ["AttnUpDecoderBlock2D"] * 2],
    "block_out_channels": [[8, "16"], [8, 0], 8, []],
    "norm_num_groups": [3, 0, 4.0, "4"],
    "act_fn": ["relu"],
    "latent_channels": [-1, True],
    "layers_per_block": [0, 2.5],
    "latents_mean": [[0.0] * 4],
    "scaling_factor": [0, "1", [1.0], True],
    "shift_factor": ["0"],
    "use_quant_conv": ["yes"],
    "brightness": [2],
}
for key, values in bad.items():
    for value in values:
        must_refuse(edited("bad", **{key: value}), words=("config.json", key, "got"))
        shutil.rmtree(scratch / "bad")
for key, value in {"act_fn": "tanh", "upsample_fn": "bilinear", "num_decoder_blocks": [1, 1], "latent_channels": 0,
                   "encoder_block_out_channels": [8, 16, 8], "upsampling_scaling_factor": "2"}.items():  # fmt: skip
    must_refuse(edited("bad", scratch / "taesd", **{key: value}), words=(key, "got"))
    shutil.rmtree(scratch / "bad")

for source, bad_keys in {
    "sana": {
        "latent_channels": [0, 7],
        "attention_head_dim": [64, 0],
        "encoder_block_out_channels": [[8, 8, 16], [8, 8, 16, 36], [8]],
        "decoder_block_out_channels": [[8, 24, 16, 32], 8],
        "decoder_layers_per_block": [[2, 1, 1], [2, 0, 1, 2], [2, 1, 1, True], 3, [2.0, 1, 1, 2]],
        "decoder_block_types": [[res], "SwinBlock", 3],
        "decoder_qkv_multiscales": [[[], [], [4], [5]], [[]], [5, 5, 5, 5], 5],
        "decoder_norm_types": ["batch_norm", [["rms_norm"]]],
        "decoder_act_fns": ["tanh"],
        "upsample_block_type": ["nearest"],
        "downsample_block_type": ["interpolate"],
        "decoder_in_shortcut": [1],
        "scaling_factor": [0, -1],
        "attention": ["more"],
    },
    "wan": {
        "z_dim": [0, "16"],
        "base_dim": [0],
        "dim_mult": [[1, 2], "1", [1, 0.5, 2, 2]],
        "temperal_downsample": [[True, False], [0, 1, 1], True],
        "attn_scales": [[0.5]],
        "patch_size": [0, "2"],
        "out_channels": [0],
        "is_residual": ["yes"],
        "latents_mean": [[0.0] * 15, [float("nan")] * 16, ["0"] * 16, None, 0],
        "latents_std": [[0.0] * 16, [-1.0] * 16, [True] * 16, None],
        "shift_factor": [1],
        "tiling": [True],
    },
}.items():
    for key, values in bad_keys.items():
        for value in values:
            must_refuse(edited("bad", scratch / source, **{key: value}), words=("config.json", key, "got"))
            shutil.rmtree(scratch / "bad")
must_refuse(scratch / "wan", "--part", "encoder", words=("--part: must be decoder for AutoencoderKLWan, got encoder",))
must_refuse(edited("bad", scratch / "wan", is_residual=True), words=("must hold every tensor", "got none called"))
shutil.rmtree(scratch / "bad")
must_refuse(edited("bad", scratch / "sana", upsample_block_type="pixel_shuffle"), words=("conv.weight must be", "got"))
shutil.rmtree(scratch / "bad")

must_refuse(edited("bad", latent_channels=8), words=("encoder.conv_out.weight must be", "got"))
must_refuse(edited("bad", latent_channels=4, use_quant_conv=False), words=("got also quant_conv.bias",))
must_refuse(edited("bad", use_quant_conv=True, mid_block_add_attention=False), words=("got also", "attentions"))
(scratch / "bad/config.json").write_text("{")
must_refuse(scratch / "bad", words=("config.json", "must be JSON"))
(scratch / "bad/config.json").write_text("[1]")
must_refuse(scratch / "bad", words=("config.json", "object", "list"))
(scratch / "bad/config.json").unlink()
must_refuse(scratch / "bad", words=("bad", "config.json", "got"))
must_refuse(scratch / "nowhere", words=("nowhere", "must be a folder"))
must_refuse(plain, words=("must hold tensors only, got a TorchScript file",))


def with_weights(change: object) -> Path:
    folder = edited("bad")
    tensors = {key: value.clone() for key, value in weights.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


must_refuse(with_weights(lambda w: w.pop("decoder.conv_in.bias")), words=("none called decoder.conv_in.bias",))
must_refuse(with_weights(lambda w: w.pop("encoder.conv_in.bias")), words=("none called encoder.conv_in.bias",))
must_refuse(with_weights(lambda w: w.update(more=torch.ones(1))), words=("got also more",))
must_refuse(
    with_weights(lambda w: w.update({"decoder.conv_in.bias": torch.ones(5)})), words=("decoder.conv_in.bias", "[5]")
)
must_refuse(
    with_weights(lambda w: w["decoder.conv_in.bias"].fill_(torch.nan)), words=("decoder.conv_in.bias", "finite")
)
(scratch / "bad/diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
must_refuse(scratch / "bad", words=("diffusion_pytorch_model.safetensors", "must be"))
(scratch / "bad/diffusion_pytorch_model.safetensors").unlink()
must_refuse(scratch / "bad", words=("bad", "must hold"))
sorted((scratch / "pipeline/vae").glob("*.safetensors"))[1].unlink()
must_refuse(scratch / "pipeline", words=("every shard must be there",))


class Code:
    def __reduce__(self):
        return (os.mkdir, (str(scratch / "harm"),))


torch.save({"decoder.conv_in.bias": Code()}, scratch / "code.pt")
must_refuse(sd1, "--weights", scratch / "code.pt", words=("code.pt", "must hold tensors only"))
assert not (scratch / "harm").exists(), "weights must not run code"

message = run(sd1, scratch / "no_such_folder/out.pt")
assert "must be a file that can be written" in message, message
print("both halves of every autoencoder are diffusers'")
