"""Writes a PixArt transformer of diffusers as a file that tstitch loads: TorchScript, or compiled.

FOLDER is a pipeline of diffusers, or its transformer/: config.json and weights of a PixArtTransformer2DModel
(PixArt-alpha and PixArt-Sigma of all sizes, and what was distilled from them), which older folders call a
Transformer2DModel. diffusers is not needed; where it is installed the file is checked beside it.

A pipeline says in its scheduler what the network predicts and for which noise schedule it was trained; the options
below say it for a network without, and are believed where both do.
"""

import argparse
import math
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of, require_sizes  # noqa: E402
from common import IGNORED, Config, Inputs, component, condition_lines, fail, in_diffusers, read_network, shape_of_x, write  # noqa: E402
from options import finite_real, folder_parser, open_sides, token_count  # noqa: E402
from pipeline import add_noise, is_consistency_model, latents, noise, sampler_of  # noqa: E402
from pixart import PixArtConfig, conditions, make_pixart  # noqa: E402

# Tokens of a text in each of the pipelines, by how the names of their classes begin.
TEXT_TOKENS = {"PixArtAlpha": 120, "PixArtSigma": 300}
GUIDANCE = 4.5  # of diffusers' pipelines


# ------------------------------------------------------------------------------------------------ the network


def read_size(config: Config) -> int:
    """Height and width of the latent that the network was made for."""
    return config.integer("sample_size", 128)


def asks_for_sizes(config: Config) -> bool:
    """Whether the network is told the picture's resolution and aspect ratio."""
    return config.flag("use_additional_conditions", read_size(config) == 128)


def read_config(config: Config) -> PixArtConfig:
    if config.kind("PixArtTransformer2DModel", "Transformer2DModel") == "Transformer2DModel":
        # The older name stands for other networks too, of which only this key tells.
        if "norm_type" not in config.values:
            config.refuse("norm_type", 'must be "ada_norm_single"', None)
        for key in ("double_self_attention", "only_cross_attention"):
            config.only(key, False)
        config.only("num_vector_embeds", None)
        config.flag("use_linear_projection", False)  # of inputs that are not patches
    config.only("norm_type", "ada_norm_single")
    config.only("activation_fn", "gelu-approximate")
    config.only("attention_type", "default")
    config.flag("upcast_attention", False)  # see Attention
    config.real("dropout", 0.0)  # of training
    config.integer("norm_num_groups", 32)  # of inputs that are not patches
    config.integer("num_embeds_ada_norm", 1000)  # of embeddings by table

    channels = config.integer("in_channels", 4)
    # null is not the same as a key that is missing.
    out_channels = channels if "out_channels" in config.values and config.get("out_channels") is None else None
    out_channels = out_channels or config.integer("out_channels", 8)
    if out_channels not in (channels, 2 * channels):
        rule = f"must be in_channels = {channels}, or {2 * channels} for a learned variance"
        config.refuse("out_channels", rule, out_channels)

    size, patch, depth = read_size(config), config.integer("patch_size", 2), config.integer("num_layers", 28)
    if size % patch:
        config.refuse("patch_size", f"must divide sample_size {size}", patch)
    heads, head_width = config.integer("num_attention_heads", 16), config.integer("attention_head_dim", 72)
    width, sizes = heads * head_width, asks_for_sizes(config)
    if width % 4 or (sizes and width % 3):
        whole = "12, for sines and cosines of positions and thirds of sizes" if sizes else "4, for sines and cosines"
        config.refuse("attention_head_dim", f"times num_attention_heads {heads} must be a multiple of {whole}", width)
    # Without this key the attention to the text has the width of the largest networks; null would mean none.
    text_width = config.integer("cross_attention_dim", None if "cross_attention_dim" in config.values else 1152)
    projected = config.get("caption_channels") is not None
    if projected:
        if text_width != width:
            rule = f"must be {width}, num_attention_heads times attention_head_dim, where there are caption_channels"
            config.refuse("cross_attention_dim", rule, text_width)
        text_width = config.integer("caption_channels")
    position_scale = config.real("interpolation_scale", max(size // 64, 1))
    if not position_scale > 0:
        config.refuse("interpolation_scale", "must be above 0", position_scale)
    norm_eps = config.real("norm_eps", 1e-6)
    if not norm_eps > 0:
        config.refuse("norm_eps", "must be above 0", norm_eps)
    shape = PixArtConfig(
        channels=channels,
        size=size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        text_width=text_width,
        projected=projected,
        learned_variance=out_channels == 2 * channels,
        sizes=sizes,
        position_scale=position_scale,
        attention_bias=config.flag("attention_bias", True),
        affine_norms=config.flag("norm_elementwise_affine", False),
        norm_eps=norm_eps,
    )
    config.finish(*IGNORED)
    return shape


def tokens_of(folder: Path) -> int | None:
    """Tokens of a text in the pipeline of this folder; None where there is no pipeline, or another."""
    path = folder / "model_index.json"
    name = Config(path).get("_class_name") if path.is_file() else None
    return next((n for prefix, n in TEXT_TOKENS.items() if isinstance(name, str) and name.startswith(prefix)), None)


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        added = {"resolution": resolution, "aspect_ratio": aspect_ratio}
        return self.model(x, text, t, added_cond_kwargs=added, encoder_attention_mask=mask).sample


def peer(config: Config, network: nn.Module) -> nn.Module | None:
    model = in_diffusers(config, network, "PixArtTransformer2DModel")
    if model is None:
        return None
    # The table of positions is not among the weights; a network without blocks brings it quickly.
    model.pos_embed.pos_embed = type(model).from_config(config.values | {"num_layers": 0}).pos_embed.pos_embed
    return Peer(model)


def check_inputs(
    shape: PixArtConfig, size: tuple[int | None, int | None], timesteps: int, tokens: int, whole: bool
) -> Inputs:
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        small = (min(side or math.inf, patches * shape.patch) for side, patches in zip(size, (4, 6)))
        height, width = size if whole else small
        if None in size:  # another for each number of rows, so that a size that is stuck shows
            width = (3 + rows) * shape.patch
        lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
        values = [
            torch.randn(rows, shape.channels, height, width, generator=generator),
            torch.randint(timesteps, (rows,), generator=generator),
            torch.randn(rows, tokens, shape.text_width, generator=generator),
            (torch.arange(tokens) < lengths).long(),
        ]
        if shape.sizes:
            sides = 64.0 * torch.randint(4, 33, (rows, 2), generator=generator)  # that bfloat16 holds
            values += [sides, sides[:, :1] / sides[:, 1:]]
        return tuple(values)

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = folder_parser(__doc__, "transformer", ".pt or .pt2", "float16")
    parser.add_argument(
        "--size",
        type=open_sides,
        metavar="N",
        help="height and width of x, N or HxW, * for any that are multiples of the network's patches (default: "
        "config.json's sample_size)",
    )
    add_noise(parser)
    parser.add_argument(
        "--text-tokens",
        type=token_count,
        default=0,
        metavar="N",
        help="of a text embedding, * for any number (default: 120 for a pipeline of PixArt-alpha, 300 for one of "
        "PixArt-Sigma, * for a network alone)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=finite_real,
        help=f"the default a sampler should use (default: {GUIDANCE}, 1 for latent consistency models)",
    )
    parser.add_argument("--license", default="", help="licence of the weights")
    add_form(parser, parts=True)
    args = parser.parse_args()
    if args.guidance_scale is None:
        args.guidance_scale = 1.0 if is_consistency_model(args.folder) else GUIDANCE
    return args


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    folder = component(args.folder, "transformer")
    config = Config(folder / "config.json")
    shape = read_config(config)
    size = args.size or (shape.size, shape.size)
    if any(side is not None and side % shape.patch for side in size):
        fail(f"--size: must be multiples of the network's patches of {shape.patch}, got {size[0]} and {size[1]}")
    # 0 is what was not given; None is any number.
    tokens = tokens_of(args.folder) if args.text_tokens == 0 else args.text_tokens
    require_sizes(form, tokens, size)
    found = conditions(shape, tokens)
    values = {
        "format": 1,
        "name": args.name or args.output.stem,
        **shape_of_x(shape.channels, *size),
        "variance": "learned_range" if shape.learned_variance else "fixed",
        "num_classes": 0,
        "conditions": condition_lines(found),
        "timestep_type": "int64",
        "decoding": "none",
        "guidance_scale": args.guidance_scale,
        "license": args.license,
        "architecture": "pixart",
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch,
        "mlp_ratio": 4.0,
        **noise(args.folder, args),
        **latents(args.folder),
        **({} if args.noise_schedule else sampler_of(args.folder)),
    }

    network = read_network(lambda: make_pixart(shape), folder, args, "pos_embed.proj.weight")
    timesteps = values.get("num_train_timesteps", 1000)
    inputs = check_inputs(shape, size, timesteps, tokens if form.whole_size else 20, form.whole_size)
    write(args.output, network, values, inputs, args.dtype, peer(config, network), form)


if __name__ == "__main__":
    main()
