"""Writes a transformer of Sana or Sana 1.5 as a file that tstitch loads: TorchScript, or compiled.

FOLDER is a pipeline of diffusers, or its transformer/: config.json and weights of a SanaTransformer2DModel of 512 or 1024
pixels. Those with a position embedding (4096 pixels) and those that embed the guidance scale (Sana Sprint) are refused.
diffusers is not needed; where it is installed the file is checked beside it.

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
from common import IGNORED, Config, Inputs, component, fail, in_diffusers, read_network, write  # noqa: E402
from options import folder_parser, open_sides  # noqa: E402
from pipeline import add_flow, flow_values, latents  # noqa: E402
from sana import Sana, SanaConfig, conditions  # noqa: E402

GUIDANCE, STEPS = 4.5, 20  # of diffusers' pipeline


# ------------------------------------------------------------------------------------------------ the network


def read_config(config: Config) -> SanaConfig:
    config.kind("SanaTransformer2DModel")
    config.only("interpolation_scale", None)
    config.only("guidance_embeds", False)
    config.only("timestep_scale", 1.0)
    config.real("guidance_embeds_scale", 0.1)  # of networks that embed the guidance scale
    config.real("dropout", 0.0)  # of training
    size, patch = config.integer("sample_size", 32), config.integer("patch_size", 1)
    if size % patch:
        config.refuse("patch_size", f"must divide sample_size {size}", patch)
    heads, head_width = config.integer("num_attention_heads", 70), config.integer("attention_head_dim", 32)
    width, cross_heads = heads * head_width, config.integer("num_cross_attention_heads", 20)
    channels = config.integer("in_channels", 32)
    if (out_channels := config.integer("out_channels", channels)) != channels:
        config.refuse("out_channels", f"must be in_channels = {channels}", out_channels)
    if (cross_width := config.integer("cross_attention_dim", 2240)) != width:
        config.refuse("cross_attention_dim", f"must be {width}, num_attention_heads times attention_head_dim", cross_width)
    eps, ratio = config.real("norm_eps", 1e-6), config.real("mlp_ratio", 2.5)
    if not eps > 0:
        config.refuse("norm_eps", "must be above 0", eps)
    if not 0 < ratio <= 64 or int(ratio * width) < 1:
        config.refuse("mlp_ratio", "must be above 0 and at most 64", ratio)
    shape = SanaConfig(
        channels=channels,
        size=size,
        patch=patch,
        width=width,
        depth=config.integer("num_layers", 20),
        heads=heads,
        cross_heads=cross_heads,
        cross_width=cross_width,
        cross_inner=cross_heads * config.integer("cross_attention_head_dim", 112),
        text_width=config.integer("caption_channels", 2304),
        mlp_ratio=ratio,
        attention_bias=config.flag("attention_bias", False),
        affine_norm=config.flag("norm_elementwise_affine", False),
        norm_eps=eps,
        qk_norm=config.only("qk_norm", None, "rms_norm_across_heads") is not None,
    )
    config.finish(*IGNORED)
    return shape


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return self.model(x, text, t, encoder_attention_mask=mask).sample


def check_inputs(shape: SanaConfig, size: tuple[int | None, int | None], tokens: int, whole: bool) -> Inputs:
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        small = (min(side or math.inf, patches * shape.patch) for side, patches in zip(size, (4, 6)))
        height, width = size if whole else small
        if None in size:  # another for each number of rows, so that a size that is stuck shows
            width = (3 + rows) * shape.patch
        lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
        return (
            torch.randn(rows, shape.channels, height, width, generator=generator),
            1000 * torch.rand(rows, generator=generator),
            torch.randn(rows, tokens, shape.text_width, generator=generator),
            (torch.arange(tokens) < lengths).long(),
        )

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = folder_parser(__doc__, "transformer", ".pt or .pt2", "bfloat16")
    parser.add_argument(
        "--size",
        type=open_sides,
        metavar="N",
        help="height and width of x, N or HxW, * for any that are multiples of the network's patches (default: "
        "config.json's sample_size)",
    )
    add_flow(parser, GUIDANCE, str(GUIDANCE))
    add_form(parser, parts=True)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    folder = component(args.folder, "transformer")
    config = Config(folder / "config.json")
    shape = read_config(config)
    size = args.size or (shape.size, shape.size)
    if any(side is not None and side % shape.patch for side in size):
        fail(f"--size: must be multiples of the network's patches of {shape.patch}, got {size[0]} and {size[1]}")
    require_sizes(form, args.text_tokens, size)
    values = {
        **flow_values(args, "sana", STEPS, shape.channels, size, conditions(shape, args.text_tokens)),
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch,
        "mlp_ratio": shape.mlp_ratio,
        **latents(args.folder),
    }

    network = read_network(lambda: Sana(shape), folder, args, "patch_embed.proj.weight")
    inputs = check_inputs(shape, size, args.text_tokens if form.whole_size else 20, form.whole_size)
    peer = in_diffusers(config, network)
    write(args.output, network, values, inputs, args.dtype, Peer(peer) if peer is not None else None, form)


if __name__ == "__main__":
    main()
