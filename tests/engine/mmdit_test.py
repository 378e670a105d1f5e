"""The engine computes what exported Stable Diffusion 3 transformers compute:

    mmdit_test.py MMDIT_CALLS EXPORT_FOLDER SCRATCH_FOLDER
    mmdit_test.py MMDIT_CALLS --device cuda EXPORT_FOLDER SCRATCH_FOLDER

Makes transformers of random weights, exports them, and lets MMDIT_CALLS compare the engine with TorchScript: with the norm
of queries and keys and without, with dual attention in no, some and all blocks, with heads of several widths. Then files
that are no such transformer, which must be refused by name. And what `export_sd3.py --calibrate` finds is what `largest_inputs` finds.
"""

import json
import subprocess
import sys
import unittest.mock
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("export", "peers")]
import harness  # noqa: E402

calls = sys.argv[1]
export, scratch = harness.set_up("safetensors")
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import export_sd3  # noqa: E402
import noise  # noqa: E402
import sd3  # noqa: E402

device = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv else "cpu"
if device != "cpu" and not torch.cuda.is_available():
    print("skipped: a GPU is needed")
    sys.exit(77)

small = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 32,
    "caption_projection_dim": 48, "pooled_projection_dim": 16, "pos_embed_max_size": 12, "qk_norm": "rms_norm",
}  # fmt: skip


def exported(name: str, **changes: object) -> Path:
    """With weights that make the output of the size of noise, which depends on all that it is given."""
    folder = scratch / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small | changes))
    network = sd3.SD3(export_sd3.read_config(common.Config(folder / "config.json")))
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.ndim > 1:
            tensor.normal_(0, 0.7 * tensor.shape[1:].numel() ** -0.5, generator=generator)
        else:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    network.pos_embed.pos_embed.normal_(0, 0.5, generator=generator)
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    file = scratch / f"{name}.pt"
    message = harness.run(export_sd3, folder, file, "--dtype", "float32", "--flow-shift", 3, "--size", "*")
    assert not message, message
    return file


def compare(name: str, **changes: object) -> None:
    done = subprocess.run([calls, exported(name, **changes), device], capture_output=True, text=True)
    print(f"{name}: " + "; ".join(done.stdout.splitlines()), flush=True)
    assert done.returncode == 0, done.stdout + done.stderr


compare("medium", dual_attention_layers=[0, 1])
compare("sd3", qk_norm=None, pos_embed_max_size=15)
compare("odd", dual_attention_layers=[2], attention_head_dim=24, num_attention_heads=2)
compare("wide", dual_attention_layers=[1], attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128)
if device != "cpu":
    sys.exit()  # TorchScript compiles for every shape there, which takes long
compare("large")
compare("every", dual_attention_layers=[0, 1, 2], qk_norm=None, attention_head_dim=24, num_attention_heads=2)
compare("one", num_layers=1, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128)

# ---------------------------------------------------------------------------------------- 8 bits


def noise_of_cpp(images: int, *shape: int) -> torch.Tensor:
    """As that of C++ with seed 0."""
    return torch.stack([torch.from_numpy(noise.noise(seed, 0, 0, shape)).float() for seed in range(images)])


def check_calibration(name: str, most: float, guided: bool, *options: object) -> None:
    """Every input of every layer, along 20 steps of three pictures of as many texts, guided or not."""
    generator = torch.Generator().manual_seed(2)
    shapes = {"text_embedding": (3, 7, 32), "pooled_embedding": (3, 16)}
    texts = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    if guided:
        texts |= {f"{key}.null": torch.randn(1, *shape[1:], generator=generator) for key, shape in shapes.items()}
    torch.save(texts, scratch / "texts.pt")
    file = scratch / f"{name}_calibrated.pt"
    with unittest.mock.patch.object(export_sd3, "initial_noise", noise_of_cpp):
        message = harness.run(
            export_sd3, scratch / name, file, "--dtype", "float32", "--flow-shift", 3, "--calibrate", 3,
            "--condition", scratch / "texts.pt", "--guidance-scale", 2.5, *options
        )  # fmt: skip
    assert not message, message
    found = [float(line) for line in harness.metadata(file, ("e4m3_inputs",))["e4m3_inputs"].splitlines()]
    sizes = harness.metadata(file, ("input_height", "input_width"))
    size = [sizes["input_height"], sizes["input_width"]] if sizes else ["8", "8"]
    done = subprocess.run([calls, file, "cpu", scratch / "texts.pt", *size], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [float(line) for line in done.stdout.splitlines()]
    assert len(found) == len(expected) > 0, (len(found), len(expected))
    off = max(abs(a / b - 1) for a, b in zip(found, expected))
    assert off < most, (name, off)
    print(f"{name}: {len(found)} inputs, {off:.1e} off those of C++")


check_calibration("medium", 1e-4, True, "--size", "*")
check_calibration("sd3", 1e-4, False, "--size", "4x12")
check_calibration("odd", 1e-4, True)
check_calibration("one", 1e-4, True)

# ---------------------------------------------------------------------------------------- what is refused


def saved(network: torch.nn.Module, **changes: object) -> Path:
    """A file of this network that says of itself what that of `medium` says, but for changes."""
    keys = ("format", "name", "input_shape", "input_channels", "input_height", "input_width", "prediction", "num_classes",
            "conditions", "timestep_type", "noise_schedule", "num_train_timesteps", "flow_shift", "decoding",
            "guidance_scale", "architecture", "width", "depth", "heads", "patch_size", "mlp_ratio")  # fmt: skip
    values = harness.metadata(scratch / "medium.pt", keys) | changes
    path = scratch / "odd_file.pt"
    common.TorchScript().save(network, values, lambda rows: (), path)
    return path


def config(name: str) -> sd3.SD3Config:
    return export_sd3.read_config(common.Config(scratch / name / "config.json"))


def must_refuse(path: Path, *words: str) -> None:
    done = subprocess.run([calls, path, "cpu"], capture_output=True, text=True)
    assert done.returncode == 1 and all(word in done.stdout for word in words), (words, done.stdout, done.stderr)


def changed(rename: dict[str, str] | None = None, **replaced: torch.Tensor) -> torch.nn.Module:
    """`medium` without tensors, or with others; what runs it is left out, which only the oracle asks."""

    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
            return x

    network = Holder()
    for key, tensor in sd3.SD3(config("medium")).state_dict().items():
        new = (rename or {}).get(key, key)
        if not new:
            continue
        *path, last = new.split(".")
        module: torch.nn.Module = network
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, replaced.get(key.replace(".", "__"), tensor).clone())
    return network


block = "transformer_blocks.1."
for name in (
    "context_embedder.weight", "pos_embed.proj.bias", "time_text_embed.text_embedder.linear_2.weight", "proj_out.bias",
    "norm_out.linear.weight", block + "attn.to_k.weight", block + "attn.add_v_proj.bias", block + "attn.norm_added_k.weight",
    block + "attn2.norm_q.weight", block + "attn2.to_out.0.weight", block + "ff.net.2.weight",
    block + "ff_context.net.0.proj.bias", block + "norm1_context.linear.bias",
):  # fmt: skip
    must_refuse(saved(changed({name: ""})), "odd_file.pt", f"must hold {name} of shape", "got none")
must_refuse(
    saved(changed({block + "attn2.to_q.weight": ""})),
    f"must hold {block}norm1.linear.weight of shape [288, 48], got [432, 48]",
)
positions = "must hold pos_embed.pos_embed of shape [1, a square, 48], got "
must_refuse(saved(changed({"pos_embed.pos_embed": ""})), positions + "none")
must_refuse(saved(changed(pos_embed__pos_embed=torch.zeros(1, 143, 48))), positions + "[1, 143, 48]")
must_refuse(saved(changed(proj_out__bias=torch.zeros(7))), "must hold proj_out.bias of shape [64], got [7]")
must_refuse(
    saved(changed(), depth=2),
    "must hold transformer_blocks.1.norm1_context.linear.weight of shape [96, 48], got [288, 48]",
)
must_refuse(saved(changed(), depth=4), "must hold transformer_blocks.2.attn.to_add_out.weight of shape")
must_refuse(saved(changed(), heads=5), "must state the width, depth, heads, patch_size and mlp_ratio of a DiT", "heads 5")
must_refuse(saved(changed(), input_shape="16 26 8"), "must take x of at most 24 a side", "got [16, 26, 8]")
must_refuse(saved(changed(), input_shape="16 3 * *"), "must take x of [n, C, H, W]")
both = "text_embedding float * 32\npooled_embedding float 16"
for conditions, got in {
    both.replace("pooled", "other"): "'other_embedding' of [16]",
    both.replace("* 32", "32"): "'text_embedding' of [32]",
    both.replace("* 32", "* *"): "'text_embedding' of [*, *]",
    "pooled_embedding float 16\ntext_embedding float * 32": "'pooled_embedding' of [16]",
}.items():
    rule = "must take text_embedding of two sizes and pooled_embedding of one"
    must_refuse(saved(changed(), conditions=conditions), rule, got)
must_refuse(saved(changed(), architecture="pixart"), "must have the architecture dit, dit_diffusers, sit or sd3, got 'pixart'")
print("the engine is TorchScript's equal")
