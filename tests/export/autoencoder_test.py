"""Exported autoencoders compute what diffusers computes: autoencoder_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random autoencoders with diffusers, saves, exports and loads them, and compares both halves.
"""

import functools
import json
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

import export_autoencoder  # noqa: E402
from harness import relative, shaken  # noqa: E402

run = functools.partial(harness.run, export_autoencoder)
must_refuse = functools.partial(harness.must_refuse, export_autoencoder, scratch)


def compare(model: torch.nn.Module, folder: Path, factor: int) -> None:
    """Both halves, several batches and picture sizes, with what diffusers computes in float64; some in float16 too."""
    model.double()
    channels = model.config.latent_channels
    for part in ("decoder", "encoder"):
        halves = [("float16", 2e-2)] if folder.name in ("sd1", "sd3", "taesd") else []
        for dtype, most in [*halves, ("float32", 3e-5)]:
            path = scratch / f"{folder.name}_{part}_{dtype}.pt"
            message = run(folder, path, "--part", part, "--dtype", dtype, "--name", "tiny", "--license", "MIT")
            assert not message, message
            loaded = torch.jit.load(path).eval()
            assert all(p.dtype == getattr(torch, dtype) for p in loaded.parameters())
            for rows, height, width in ((1, 4, 4), (3, 4, 4), (2, 6, 5)):
                if part == "decoder":
                    x = torch.randn(rows, channels, height, width)
                    expected = model.decode(x.double()).sample
                else:
                    x = torch.rand(rows, 3, factor * height, factor * width) * 2 - 1
                    encoded = model.encode(x.double())
                    expected = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
                difference = relative(loaded(x.to(getattr(torch, dtype))), expected)
                assert difference <= most, f"{path}: {difference}"
            graph = str(loaded.inlined_graph)
            for word in ("prim::NumToTensor", "aten::tensor(", "aten::item(", "aten::Int(", "Device = prim::Const"):
                assert word not in graph, f"{path}: {word} would tie the file to a device or a size"
            frozen = torch.jit.freeze(loaded)  # as the library runs it
            assert relative(frozen(x.to(getattr(torch, dtype))), expected) <= most
        keys = (
            "format", "kind", "name", "latent_channels", "picture_channels", "upsampling", "latent_scale",
            "latent_shift", "license",
        )  # fmt: skip
        got = harness.metadata(path, keys)
        expected_values = {
            "format": "1",
            "kind": part,
            "name": "tiny",
            "latent_channels": repr(channels),
            "picture_channels": "3",
            "upsampling": repr(factor),
            "latent_scale": repr(float(model.config.scaling_factor)),
            "latent_shift": repr(float(model.config.shift_factor or 0)),
            "license": "MIT",
        }
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
must_refuse(plain, words=("must be a folder", "a file"))


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
