"""Writes a transformer of Stable Diffusion 3 or 3.5 as a file that tstitch loads: TorchScript, compiled, or a text that
describes it and leaves its .safetensors files where they are (--format in-place), which takes a second and no memory.

FOLDER is a pipeline of diffusers, or its transformer/: config.json and weights of an SD3Transformer2DModel (SD3 medium,
SD3.5 medium, large and large turbo). diffusers is not needed; where it is installed the file is checked beside it.

A pipeline says in its scheduler how far its timesteps are shifted; --flow-shift says it for a network without, and is
believed where both do.
"""

import argparse
import math
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of, require_sizes  # noqa: E402
from common import (  # noqa: E402
    IGNORED,
    Config,
    Inputs,
    component,
    fail,
    in_diffusers,
    is_integer,
    read_network,
    require_place,
    write,
)
from in_place import InPlace, describe, files_of, headers  # noqa: E402
from options import folder_parser, open_sides  # noqa: E402
from pipeline import add_flow, flow_values, latents  # noqa: E402
from sd3 import SD3, SD3Config, conditions  # noqa: E402

GUIDANCE, GUIDANCE_OF_3_5 = 7.0, 4.5  # of the model cards
STEPS = 28  # of diffusers' pipeline


# ------------------------------------------------------------------------------------------------ the network


def read_config(config: Config) -> SD3Config:
    config.kind("SD3Transformer2DModel")
    patch, size, depth = config.integer("patch_size", 2), config.integer("sample_size", 128), config.integer("num_layers", 18)
    heads, head_width = config.integer("num_attention_heads", 18), config.integer("attention_head_dim", 64)
    width = heads * head_width
    if (text_width := config.integer("caption_projection_dim", 1152)) != width:
        config.refuse("caption_projection_dim", f"must be {width}, num_attention_heads times attention_head_dim", text_width)
    if size % patch:
        config.refuse("patch_size", f"must divide sample_size {size}", patch)
    grid = config.integer("pos_embed_max_size", 96)
    if size // patch > grid:
        config.refuse("pos_embed_max_size", f"must be at least {size // patch}, sample_size by patch_size", grid)
    channels = config.integer("in_channels", 16)
    # null is not the same as a key that is missing.
    absent = "out_channels" in config.values and config.get("out_channels") is None
    out_channels = channels if absent else config.integer("out_channels", 16)
    if out_channels != channels:
        config.refuse("out_channels", f"must be in_channels = {channels}", out_channels)
    dual = config.get("dual_attention_layers", [])
    if not isinstance(dual, list) or not all(is_integer(i) and 0 <= i < depth for i in dual):
        config.refuse("dual_attention_layers", f"must be a list of integers in [0, {depth - 1}]", dual)
    shape = SD3Config(
        channels=channels,
        out_channels=out_channels,
        size=size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        text_width=config.integer("joint_attention_dim", 4096),
        pooled_width=config.integer("pooled_projection_dim", 2048),
        grid=grid,
        dual_attention=tuple(dual),
        qk_norm=config.only("qk_norm", None, "rms_norm") is not None,
    )
    config.finish(*IGNORED)
    return shape


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        return self.model(x, text, pooled, t).sample


def check_inputs(shape: SD3Config, size: tuple[int | None, int | None], tokens: int, whole: bool) -> Inputs:
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        small = (min(side or math.inf, patches * shape.patch, shape.grid * shape.patch) for side, patches in zip(size, (4, 6)))
        height, width = size if whole else small
        if None in size:  # another for each number of rows, so that a size that is stuck shows
            width = min(3 + rows, shape.grid) * shape.patch
        return (
            torch.randn(rows, shape.channels, height, width, generator=generator),
            1000 * torch.rand(rows, generator=generator),
            torch.randn(rows, tokens, shape.text_width, generator=generator),
            torch.randn(rows, shape.pooled_width, generator=generator),
        )

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = folder_parser(__doc__, "transformer", ".pt, .pt2 or .txt", "bfloat16")
    parser.add_argument(
        "--size",
        type=open_sides,
        metavar="N",
        help="height and width of x, N or HxW, * for any that are multiples of the network's patches and that its table "
        "of positions covers (default: config.json's sample_size)",
    )
    add_flow(parser, None, f"{GUIDANCE_OF_3_5} for SD3.5, {GUIDANCE} for SD3")
    add_form(parser, parts=True, in_place=True)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    folder = component(args.folder, "transformer")
    config = Config(folder / "config.json")
    shape = read_config(config)
    size = args.size or (shape.size, shape.size)
    most = shape.patch * shape.grid
    if any(side is not None and (side % shape.patch or side > most) for side in size):
        fail(f"--size: must be multiples of the network's patches of {shape.patch} up to {most}, got {size[0]} and {size[1]}")
    require_sizes(form, args.text_tokens, size)
    if args.guidance_scale is None:
        args.guidance_scale = GUIDANCE_OF_3_5 if shape.qk_norm else GUIDANCE
    values = {
        **flow_values(args, "sd3", STEPS, shape.channels, size, conditions(shape, args.text_tokens)),
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch,
        "mlp_ratio": 4.0,
        **latents(args.folder),
    }

    if isinstance(form, InPlace):
        require_place(args.output, args.weights)
        files = files_of(args.weights or folder, args.variant)
        with torch.device("meta"):
            described = SD3(shape)
        describe(args.output, described, headers(files), files, values, args.dtype)
        return
    network = read_network(lambda: SD3(shape), folder, args, "pos_embed.proj.weight")
    inputs = check_inputs(shape, size, args.text_tokens if form.whole_size else 20, form.whole_size)
    peer = in_diffusers(config, network)
    write(args.output, network, values, inputs, args.dtype, Peer(peer) if peer is not None else None, form)


if __name__ == "__main__":
    main()
