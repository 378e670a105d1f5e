"""Writes a U-ViT as a file that tstitch loads: TorchScript, or compiled.

CHECKPOINT is a file in the layout of its makers (.pth, .pt, .ckpt or .safetensors): a network that draws latents of Stable
Diffusion's autoencoder by noise prediction, for classes or without, such as those of ImageNet at 256 and 512 pixels. Its noise
schedule is Stable Diffusion's, 1000 timesteps that it counts from 1 on; tstitch counts them from 0 on, and the file adds the 1.
"""

import argparse
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from aot_inductor import add_form, form_of  # noqa: E402
from common import TOLERANCE, ask, fail, fill, load_weights, require_place, require_tensors, say, shape_of_x, write  # noqa: E402
from dit import LAST  # noqa: E402
from export_dit import (  # noqa: E402
    HEADS,
    NO_CLASS,
    OFFICIAL_SCALE,
    dimensions_of,
    guidance_of,
    label,
    read_classes,
    read_heads,
    read_patches,
)
from options import finite_real, positive_real  # noqa: E402
from single_file import BETAS  # noqa: E402
from uvit import UViTConfig, make_uvit, random_inputs  # noqa: E402

# The tensors do not tell the heads of the published networks S, M, L and H; their width does.
HEADS_OF_UVIT = {512: 8} | {width: heads for width, heads in HEADS.items() if width > 512}
GUIDANCE = 1.4  # of its makers, who say 0.4 for it


def read_shape(path: Path, weights: Mapping[str, Tensor], args: argparse.Namespace) -> tuple[UViTConfig, int, int | None]:
    """The shape that the tensors tell, with the options for what they do not; how many classes, and which label means none."""
    if "context_embed.weight" in weights:
        fail(f"{path}: must be a U-ViT for classes or without, got one for texts, with context_embed.weight")

    kind = "a U-ViT in the layout of its makers"
    dimensions = functools.partial(dimensions_of, path, weights, kind)
    width, channels, patch = read_patches(path, weights, kind, "patch_embed.proj.weight")
    if width % 2:
        fail(f"{path}: the width must be even, got {width}")
    rows = dimensions("label_emb.weight", "[classes + 1, width]", 2)[0] if "label_emb.weight" in weights else 0
    positions = dimensions("pos_embed", "[1, tokens, width]", 3)
    tokens = positions[1] - (2 if rows else 1)
    grid = math.isqrt(max(0, tokens))
    if tokens < 1 or grid * grid != tokens:
        fail(f"{path}: pos_embed must have {'a class, ' if rows else ''}a time and the patches of a square, got {positions[1]} tokens")
    questions: dict[str, str] = {}
    heads = read_heads(args.heads, width, questions, HEADS_OF_UVIT)
    num_classes, null_class = read_classes(args, rows, questions) if rows else (0, None)
    if not rows and args.null_class not in (None, NO_CLASS):
        fail(f"--null-class: must be none for a network without labels, got {args.null_class}")
    if channels == 3 and args.latent_scale is None:
        got = "a U-ViT of 3 channels, as those have that draw pixels, which are not read here"
        fail(f"{path}: must draw latents, got {got}; --latent-scale says that they are latents")
    if channels != 4 and args.latent_scale is None:
        questions["--latent-scale"] = f"{channels} channels, where 4 would be Stable Diffusion's latents"
    ask(path, questions)
    null_class = num_classes if null_class == LAST else null_class
    dimensions("in_blocks.0.norm1.weight", "[width]", 1)
    blocks = {name.split(".")[1] for name in weights if name.startswith("in_blocks.")}
    shape = UViTConfig(
        channels=channels,
        size=grid * patch,
        patch=patch,
        width=width,
        depth=2 * len(blocks),
        heads=heads,
        hidden=dimensions("mid_block.mlp.fc1.weight", "[hidden, width]", 2)[0],
        label_rows=rows,
        qkv_bias="mid_block.attn.qkv.bias" in weights,
        time_mlp="time_embed.0.weight" in weights,
        last_convolution="final_layer.weight" in weights,
    )
    return shape, num_classes, null_class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the .pt or .pt2 file to write")
    parser.add_argument("--name", help="name of the network (default: the output's file name)")
    parser.add_argument(
        "--weights",
        choices=["ema", "plain"],
        help="which set of a training checkpoint, averaged or plain (default: ema, where the file has it)",
    )
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32", help="stored precision" + default)
    parser.add_argument("--heads", type=int, help="attention heads (default: as the published network of this width)")
    parser.add_argument(
        "--null-class", type=label, metavar="N", help="the label that means no class, or none (default: the last of 1001)"
    )
    parser.add_argument(
        "--latent-scale", type=positive_real, metavar="S",
        help=f"what latents were multiplied with (default: {OFFICIAL_SCALE} for 4 channels)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-scale", type=finite_real, help=f"the default that a sampler should use (default: {GUIDANCE})"
    )
    parser.add_argument("--license", default="", help="licence of the weights")
    add_form(parser, parts=True)
    args = parser.parse_args()
    args.class_names = []
    form = form_of(args)
    if not args.checkpoint.is_file():
        fail(f"{args.checkpoint}: must be a file, got {'a folder' if args.checkpoint.exists() else 'nothing'}")
    require_place(args.output, args.checkpoint)

    say(f"reading {args.checkpoint}")
    weights = load_weights(args.checkpoint, None, args.weights, anchor="patch_embed.proj.weight")
    require_tensors(args.checkpoint, weights)
    shape, num_classes, null_class = read_shape(args.checkpoint, weights, args)
    with torch.device("meta"):
        network = make_uvit(shape)
    fill(network, weights, args.checkpoint)
    weights.clear()
    values = {
        "format": 1,
        "name": args.name or args.output.stem,
        **shape_of_x(shape.channels, shape.size, shape.size),
        "prediction": "epsilon",
        "noise_schedule": BETAS["beta_schedule"],
        **{key: BETAS[key] for key in ("num_train_timesteps", "beta_start", "beta_end")},
        "variance": "fixed",
        "num_classes": num_classes,
        **({} if null_class is None else {"null_class": null_class}),
        "timestep_type": "float32",
        "decoding": "none",
        "latent_scale": args.latent_scale or OFFICIAL_SCALE,
        "guidance_scale": guidance_of(args, null_class, GUIDANCE),
        "license": args.license,
        "architecture": "uvit",
        "width": shape.width,
        "depth": shape.depth + 1,
        "heads": shape.heads,
        "patch_size": shape.patch,
    }
    write(args.output, network, values, random_inputs(shape), args.dtype, form=form)


if __name__ == "__main__":
    main()
