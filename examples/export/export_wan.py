"""Writes a transformer of Wan 2.1 or 2.2, which make videos from text, as a file that tstitch loads: TorchScript, or compiled.

FOLDER is a pipeline of diffusers, or its transformer/ (--part transformer_2: the second expert of Wan 2.2 A14B): config.json
and weights of a WanTransformer3DModel. Networks that also see a picture (I2V) are refused. diffusers is not needed; where
it is installed the file is checked beside it.

A pipeline says in its scheduler how far its timesteps are shifted; --flow-shift says it for a network without, and is
believed where both do.
"""

import argparse
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of, require_sizes  # noqa: E402
from common import IGNORED, Config, Inputs, component, fail, in_diffusers, is_integer, read_network, write  # noqa: E402
from options import folder_parser, open_video  # noqa: E402
from pipeline import add_flow, flow_values, latents  # noqa: E402
from wan import Wan, WanConfig, conditions  # noqa: E402

GUIDANCE, STEPS = 5.0, 50  # of diffusers' pipeline


# ------------------------------------------------------------------------------------------------ the network


def read_config(config: Config) -> WanConfig:
    config.kind("WanTransformer3DModel")
    for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if config.get(key) is not None:
            config.refuse(key, "must be null: networks that also see a picture are not known here", config.get(key))
    patch = config.get("patch_size", [1, 2, 2])
    if not isinstance(patch, list) or len(patch) != 3 or not all(is_integer(n) and 1 <= n <= 64 for n in patch):
        config.refuse("patch_size", "must be three integers in [1, 64]", patch)
    heads, head_width = config.integer("num_attention_heads", 40), config.integer("attention_head_dim", 128)
    if head_width % 2 or head_width < 6:
        config.refuse("attention_head_dim", "must be even and at least 6, for rotations in three directions", head_width)
    channels = config.integer("in_channels", 16)
    if (out_channels := config.integer("out_channels", channels)) != channels:
        config.refuse("out_channels", f"must be in_channels = {channels}; networks that also see a picture are not known here", out_channels)
    eps = config.real("eps", 1e-6)
    if not eps > 0:
        config.refuse("eps", "must be above 0", eps)
    frequencies = config.integer("freq_dim", 256)
    if frequencies % 2:
        config.refuse("freq_dim", "must be even", frequencies)
    config.only("qk_norm", "rms_norm_across_heads")
    shape = WanConfig(
        channels=channels,
        patch=tuple(patch),
        width=heads * head_width,
        depth=config.integer("num_layers", 40),
        heads=heads,
        hidden=config.integer("ffn_dim", 13824),
        text_width=config.integer("text_dim", 4096),
        frequencies=frequencies,
        positions=config.integer("rope_max_seq_len", 1024),
        affine_norm=config.flag("cross_attn_norm", True),
        eps=eps,
    )
    config.finish(*IGNORED)
    return shape


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.model(x, t, text).sample


def peer(config: Config, network: nn.Module) -> nn.Module | None:
    model = in_diffusers(config, network)
    if model is None:
        return None
    # The tables of rotations are not among the weights; a network without blocks brings them quickly.
    model.rope = type(model).from_config(config.values | {"num_layers": 0, "num_attention_heads": 1, "ffn_dim": 1}).rope
    return Peer(model)


def check_inputs(shape: WanConfig, size: tuple[int | None, ...], tokens: int, whole: bool) -> Inputs:
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        # Another for each number of rows, so that a size that is stuck shows.
        patches = (2 + rows, 3, 2 + 2 * rows) if None in size else (3, 3, 4)
        sides = size if whole else [min(side or n * p, n * p) for side, n, p in zip(size, patches, shape.patch)]
        return (
            torch.randn(rows, shape.channels, *sides, generator=generator),
            1000 * torch.rand(rows, generator=generator),
            torch.randn(rows, tokens, shape.text_width, generator=generator),
        )

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = folder_parser(__doc__, "transformer", ".pt or .pt2", "bfloat16")
    parser.add_argument("--part", choices=["transformer", "transformer_2"], default="transformer", help="of a pipeline (default: %(default)s)")
    parser.add_argument(
        "--size",
        type=open_video,
        default=(None, None, None),
        metavar="N",
        help="frames, height and width of x, FxHxW, * for any that are multiples of the network's patches (default: *)",
    )
    add_flow(parser, GUIDANCE, str(GUIDANCE))
    add_form(parser, parts=True)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    folder = component(args.folder, args.part)
    config = Config(folder / "config.json")
    shape = read_config(config)
    most = [patch * shape.positions for patch in shape.patch]
    if any(side is not None and (side % patch or side > n) for side, patch, n in zip(args.size, shape.patch, most)):
        got = "x".join("*" if side is None else str(side) for side in args.size)
        fail(f"--size: must be multiples of the network's patches of {shape.patch} up to {most}, got {got}")
    require_sizes(form, args.text_tokens, args.size)
    values = {
        **flow_values(args, "wan", STEPS, shape.channels, args.size, conditions(shape, args.text_tokens)),
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch[2],
        "mlp_ratio": shape.hidden / shape.width,
        **latents(args.folder),
    }

    network = read_network(lambda: Wan(shape), folder, args, "patch_embedding.weight")
    inputs = check_inputs(shape, args.size, args.text_tokens if form.whole_size else 20, form.whole_size)
    write(args.output, network, values, inputs, args.dtype, peer(config, network), form)


if __name__ == "__main__":
    main()
