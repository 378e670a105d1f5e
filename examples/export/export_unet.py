"""Writes a U-Net of diffusers as a file that tstitch loads: TorchScript, or compiled.

FOLDER is a pipeline of diffusers, or its unet/: config.json and weights of a UNet2DConditionModel (Stable Diffusion 1
and 2, SDXL, and what was distilled from them: BK-SDM, SSD-1B, latent consistency models; also for inpainting) or of a
UNet2DModel (DDPM). diffusers is not needed; where it is installed the file is checked beside it. Or it is a file of Stable
Diffusion 1, 2 or XL in the layout of its makers (model.diffusion_model.*), for which diffusers is needed; or of latent
diffusion for classes, such as cin256-v2, in the same layout.

With --controlnet the file has the network with its ControlNet (Zhang et al. 2023, arXiv 2302.05543), which takes a picture as
a condition, controlnet_cond, as large as the picture to be drawn and in [0, 1].

With --deep-feature the file has the network in three parts, split where DeepCache (Ma et al. 2023, arXiv 2312.00858)
splits it, so that samplers can leave out the deep one in some steps: tstitch_sample --forecast every:3,0.

A pipeline says in its scheduler what the network predicts and for which noise schedule it was trained; the options
below say it for a network without, and are believed where both do.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of, require_sizes  # noqa: E402
from autoencoder import modern_names  # noqa: E402
from common import (  # noqa: E402
    IGNORED, Config, Inputs, component, condition_lines, fail, fill, find_weights, in_diffusers, load_weights, read_network,
    require_tensors, say, shape_of_x, write,
)  # fmt: skip
from options import finite_real, folder_parser, open_sides, positive, token_count, word  # noqa: E402
from pipeline import add_noise, is_consistency_model, latents, noise, sampler_of  # noqa: E402
from single_file import IN_ONE_FILE, OPEN_SIZE, class_table_of, config_of, has, index_of, weights_of  # noqa: E402
from unet import CLASSES, ControlNet, ControlNetConfig, UNetConfig, conditions, make_unet, skip_widths  # noqa: E402

TEXT_TOKENS = 77  # of CLIP
TEXT_GUIDANCE = 7.5  # of diffusers' pipelines for Stable Diffusion
CLASS_GUIDANCE = 3.0  # of latent diffusion for classes
IMAGENET = 1000  # classes


# ------------------------------------------------------------------------------------------------ the network


def each_level(config: Config, key: str, count: int, default: int | None = None) -> list[int]:
    """A list of one integer for each level; config.json may have a single one for all."""
    value = config.get(key, default)
    values = [config.integer(key, default)] * count if not isinstance(value, list) else config.integers(key)
    if len(values) != count:
        config.refuse(key, f"must be an integer or {count} of them, one for each level", value)
    return values


def block_types(config: Config, side: str, count: int, plain: str, attentive: str, default: list[str]) -> list[bool]:
    """Which of the levels have attention."""
    key = f"{side}_block_types"
    types = config.choices(key, [plain, attentive], default)
    if len(types) != count:
        config.refuse(key, f"must have {count} entries, one for each of block_out_channels", types)
    return [t == attentive for t in types]


def read_config(config: Config, size_ids: int) -> tuple[UNetConfig, tuple[int, int] | None]:
    """The shape of the network, and the height and width of x that config.json gives."""
    kind = config.kind("UNet2DConditionModel", "UNet2DModel")
    size = config.get("sample_size")
    if size is not None:
        sizes = config.integers("sample_size") if isinstance(size, list) else [config.integer("sample_size")]
        if len(sizes) > 2:
            config.refuse("sample_size", "must be an integer, or height and width", size)
        size = (sizes[0], sizes[-1])

    # What both classes may have, and this exporter has not.
    config.only("center_input_sample", False)
    config.only("resnet_time_scale_shift", "default")
    config.only("time_embedding_type", "positional")
    config.only("class_embed_type", None)
    config.only("act_fn", "silu", "swish")
    config.only("mid_block_scale_factor", 1, 1.0)
    config.only("downsample_padding", 1, 0)
    config.real("dropout", 0.0)  # of training
    widths = config.integers("block_out_channels", [320, 640, 1280, 1280] if kind == "UNet2DConditionModel" else None)
    groups = config.integer("norm_num_groups", 32)
    if any(width % groups for width in widths):
        config.refuse("norm_num_groups", f"must divide each of block_out_channels {widths}", groups)
    if widths[0] % 2:
        config.refuse("block_out_channels", "must begin with an even number, for sines and cosines", widths)
    common = {
        "widths": tuple(widths),
        "layers": tuple(each_level(config, "layers_per_block", len(widths), 2)),
        "groups": groups,
        "eps": positive_eps(config),
        "downsample_padding": config.integer("downsample_padding", 1, least=0),
        "time_width": config.integer("time_embedding_dim", 4 * widths[0]),
        "freq_shift": config.real("freq_shift", 0),
        "cosines_first": config.flag("flip_sin_to_cos", True),
    }
    if common["freq_shift"] == widths[0] // 2:
        config.refuse("freq_shift", "must not be half of block_out_channels' first", common["freq_shift"])
    if kind == "UNet2DConditionModel":
        shape = read_conditional(config, common, size_ids)
    else:
        shape = read_unconditional(config, common)
    config.finish(*IGNORED)
    return shape, size


def positive_eps(config: Config) -> float:
    eps = config.real("norm_eps", 1e-5)
    if not eps > 0:
        config.refuse("norm_eps", "must be above 0", eps)
    return eps


def read_channels(config: Config, default: int) -> tuple[int, bool]:
    """Channels of x, and whether a mask and a masked picture are joined to it."""
    channels_in, channels = config.integer("in_channels", default), config.integer("out_channels", default)
    if channels_in not in (channels, 2 * channels + 1):
        rule = f"must be out_channels = {channels}, or {2 * channels + 1} for inpainting"
        config.refuse("in_channels", rule, channels_in)
    return channels, channels_in != channels


def heads_of(config: Config, key: str, heads: list[int], widths: tuple[int, ...]) -> tuple[int, ...]:
    for head_count, width in zip(heads, widths):
        if width % head_count:
            config.refuse(key, f"must divide block_out_channels {list(widths)}", head_count)
    return tuple(heads)


def read_conditional(config: Config, common: dict[str, object], size_ids: int) -> UNetConfig:
    for key in (
        "num_attention_heads",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_class_embeds",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
    ):
        config.only(key, None)
    for key in ("dual_cross_attention", "resnet_skip_time_act", "class_embeddings_concat"):
        config.only(key, False)
    config.only("mid_block_only_cross_attention", None, False)
    config.only("attention_type", "default")
    config.only("resnet_out_scale_factor", 1.0, 1)
    config.flag("upcast_attention", False)  # see CrossAttention
    only = config.get("only_cross_attention", False)
    if any(each is not False for each in (only if isinstance(only, list) else [only])):
        config.refuse("only_cross_attention", "must be false", only)

    widths, layers = common["widths"], common["layers"]
    count = len(widths)
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    down_has = block_types(config, "down", count, "DownBlock2D", "CrossAttnDownBlock2D", down)
    up_has = block_types(config, "up", count, "UpBlock2D", "CrossAttnUpBlock2D", up)
    down_depths, up_depths = read_depths(config, layers)

    # The key of this name has always held the number of heads; what it promises is width / heads.
    heads = each_level(config, "attention_head_dim", count, 8)
    text_widths = each_level(config, "cross_attention_dim", count, 1280)
    if len(set(text_widths)) > 1:
        config.refuse("cross_attention_dim", "must be the same for all levels", text_widths)

    # mid_block_type is null where there is no such block; where the key is missing there is one.
    middles = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "one", None: "none"}
    channels, inpainting = read_channels(config, 4)
    kernels = {end: config.integer(f"conv_{end}_kernel", 3) for end in ("in", "out")}
    for end, kernel in kernels.items():
        if kernel % 2 == 0:
            config.refuse(f"conv_{end}_kernel", "must be odd", kernel)
    shape = UNetConfig(
        channels=channels,
        inpainting=inpainting,
        down_depths=tuple(depths if has else () for depths, has in zip(down_depths, down_has)),
        up_depths=tuple(depths if has else () for depths, has in zip(up_depths, up_has)),
        middle=middles[config.only("mid_block_type", *middles)],
        middle_depth=down_depths[-1][0],
        heads=heads_of(config, "attention_head_dim", heads, widths),
        text_width=text_widths[0],
        linear_projection=config.flag("use_linear_projection", False),
        guidance_width=config.integer("time_cond_proj_dim", 0, least=0),
        kernel_in=kernels["in"],
        kernel_out=kernels["out"],
        **read_added(config, size_ids),
        **common,
    )
    if (True, shape.pooled_width > 0, shape.guidance_width > 0, shape.inpainting) not in CLASSES:
        config.refuse("time_cond_proj_dim", "must be null for inpainting", shape.guidance_width)
    return shape


def read_depths(config: Config, layers: tuple[int, ...]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Transformer blocks behind each residual block, for each level on the way down and on the way up."""
    key, key_up = "transformer_layers_per_block", "reverse_transformer_layers_per_block"

    def spread(name: str, value: object, counts: list[int]) -> list[tuple[int, ...]]:
        """One integer for all, or one for each level, or for a level one for each residual block."""
        levels = value if isinstance(value, list) else [value] * len(counts)
        depths = [level if isinstance(level, list) else [level] * n for level, n in zip(levels, counts)]
        good = all(type(depth) is int and 0 <= depth <= 1024 for level in depths for depth in level)
        if len(levels) != len(counts) or not good or any(len(d) < n for d, n in zip(depths, counts)):
            config.refuse(name, f"must be integers for levels of {counts} residual blocks", value)
        return [tuple(d[:n]) for d, n in zip(depths, counts)]

    value, reverse = config.get(key, 1), config.get(key_up)
    if reverse is None and isinstance(value, list) and any(isinstance(level, list) for level in value):
        config.refuse(key_up, f"must be there, since {key} is a list of lists", None)
    counts_up = [n + 1 for n in reversed(layers)]
    if reverse is None:
        reverse = value[::-1] if isinstance(value, list) else value
    return spread(key, value, list(layers)), spread(key_up, reverse, counts_up)


def read_added(config: Config, size_ids: int) -> dict[str, int]:
    """SDXL's pooled text and sizes."""
    kind = config.only("addition_embed_type", None, "text_time")
    config.get("addition_embed_type_num_heads")  # of another type
    if kind is None:
        config.only("addition_time_embed_dim", None)
        config.only("projection_class_embeddings_input_dim", None)
        return {}
    size_width = config.integer("addition_time_embed_dim")
    if size_width % 2:
        config.refuse("addition_time_embed_dim", "must be even, for sines and cosines", size_width)
    both = config.integer("projection_class_embeddings_input_dim")
    pooled = both - size_ids * size_width
    if pooled < 1:
        config.refuse(
            "projection_class_embeddings_input_dim", f"must be more than {size_ids} sizes of {size_width}", both
        )
    return {"pooled_width": pooled, "size_ids": size_ids, "size_width": size_width}


def read_unconditional(config: Config, common: dict[str, object]) -> UNetConfig:
    config.only("downsample_type", "conv")
    config.only("upsample_type", "conv")
    config.get("num_train_timesteps")  # of a time embedding that is refused
    widths, layers = common["widths"], common["layers"]
    count = len(widths)
    down = ["DownBlock2D"] + ["AttnDownBlock2D"] * 3
    down_has = block_types(config, "down", count, "DownBlock2D", "AttnDownBlock2D", down)
    up_has = block_types(config, "up", count, "UpBlock2D", "AttnUpBlock2D", ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
    has_middle = config.only("mid_block_type", "UNetMidBlock2D", None) is not None
    has_attention = config.flag("add_attention", True)

    # Here the key means what it says; an explicit null is one head.
    head_width = config.integer("attention_head_dim", 8)
    if "attention_head_dim" in config.values and config.values["attention_head_dim"] is None:
        heads = (1,) * count
    else:
        if any(width % head_width for width in widths):
            config.refuse("attention_head_dim", f"must divide each of block_out_channels {list(widths)}", head_width)
        heads = tuple(width // head_width for width in widths)
    middle_groups = config.integer("attn_norm_num_groups", common["groups"])
    if widths[-1] % middle_groups:
        config.refuse("attn_norm_num_groups", f"must divide block_out_channels' last {widths[-1]}", middle_groups)
    channels, inpainting = read_channels(config, 3)
    if inpainting:
        config.refuse("in_channels", f"must be out_channels = {channels}", config.get("in_channels"))
    return UNetConfig(
        channels=channels,
        down_depths=tuple((1,) * n if has else () for n, has in zip(layers, down_has)),
        up_depths=tuple((1,) * (n + 1) if has else () for n, has in zip(reversed(layers), up_has)),
        middle=("attention" if has_attention else "two") if has_middle else "none",
        middle_depth=1,
        heads=heads,
        middle_groups=middle_groups,
        num_labels=config.integer("num_class_embeds", 0, least=0),
        **common,
    )


# ------------------------------------------------------------------------------------------------ a ControlNet


def read_controlnet(config: Config, scale: float, size_ids: int) -> ControlNetConfig:
    config.kind("ControlNetModel")
    # Pooled over all places its additions would be for guidance without them in the half without the prompt.
    config.only("global_pool_conditions", False)
    types = config.choices("down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    depths = config.get("transformer_layers_per_block", 1)
    if isinstance(depths, list) and not all(isinstance(depth, int) for depth in depths):
        config.refuse("transformer_layers_per_block", "must be an integer or a list of them", depths)
    own = ("conditioning_channels", "conditioning_embedding_out_channels", "controlnet_conditioning_channel_order")
    # The rest is of a U-Net, which has a way up.
    values = {key: value for key, value in config.values.items() if key not in (*own, "global_pool_conditions")}
    up = [kind.replace("Down", "Up") for kind in reversed(types)]
    channels = config.integer("in_channels", 4)
    of_unet = values | {"_class_name": "UNet2DConditionModel", "up_block_types": up, "down_block_types": types, "out_channels": channels}
    widths = config.integers("conditioning_embedding_out_channels", [16, 32, 96, 256])
    return ControlNetConfig(
        unet=read_config(Config(config.path, of_unet), size_ids)[0],
        picture_channels=config.integer("conditioning_channels", 3),
        widths=tuple(widths),
        reversed_channels=config.only("controlnet_conditioning_channel_order", "rgb", "bgr") == "bgr",
        scale=scale,
    )


def require_fit(folder: Path, controlnet: ControlNetConfig, shape: UNetConfig) -> None:
    """Whether what it makes can be added to the U-Net's, and is made of the same."""
    if not shape.text_width or shape.context_labels or shape.guidance_width or shape.inpainting:
        what = "inpainting" if shape.inpainting else "guidance as an input" if shape.guidance_width else "no text"
        fail(f"{folder}: must be for a U-Net that takes a text, and neither guidance nor a mask, got one of {what}")
    for what, of in (
        ("channels of x", lambda unet: unet.channels),
        ("channels of a text", lambda unet: unet.text_width),
        ("channels of its levels", skip_widths),
    ):
        if of(controlnet.unet) != of(shape):
            fail(f"{folder}: must have the U-Net's {what}, {of(shape)}, got {of(controlnet.unet)}: it is of another model")
    told = (controlnet.unet.pooled_width, controlnet.unet.size_ids)
    if told[0] and told != (shape.pooled_width, shape.size_ids):
        fail(f"{folder}: must be told a pooled text of {shape.pooled_width} numbers, as the U-Net is, got {told[0]}")


def controlnet_config(folder: Path, of: Path, shape: UNetConfig, scale: float, size_ids: int) -> tuple[ControlNetConfig, Config]:
    """Shape and config.json of a ControlNet for the U-Net of a pipeline, or of its folder."""
    config = Config(component(folder, "controlnet") / "config.json")
    controlnet = read_controlnet(config, scale, size_ids)
    require_fit(config.path.parent, controlnet, shape)
    upsampling = upsampling_of(of)
    if upsampling not in (None, controlnet.pixels):
        rule = f"must be as many as make a picture {upsampling} times smaller, as the autoencoder of {of} does"
        config.refuse("conditioning_embedding_out_channels", rule, list(controlnet.widths))
    return controlnet, config


def upsampling_of(source: Path) -> int | None:
    """Pixels of a picture's side for each of the latents, where the pipeline has an autoencoder."""
    there = has(source, "vae") if source.is_file() else (source / "vae/config.json").is_file()
    config = config_of(source, "vae") if there else None
    if config is None or "block_out_channels" not in config.values:  # as of AutoencoderTiny
        return None
    return 2 ** (len(config.integers("block_out_channels")) - 1)


def controlnet_of(args: argparse.Namespace, shape: UNetConfig) -> tuple[ControlNetConfig, dict[str, Tensor], Config]:
    """Shape, weights and config.json of --controlnet."""
    size_ids = args.size_ids or size_ids_of(args.folder)
    controlnet, config = controlnet_config(args.controlnet, args.folder, shape, args.controlnet_scale, size_ids)
    place = config.path.parent
    say(f"reading {place}")
    with torch.device("meta"):
        network = ControlNet(controlnet)
    variant = args.variant if args.variant in find_weights(place) else None
    if args.variant != variant:
        say(f"{place}: has no weights called {args.variant}: taking those that it has")
    fill(network, modern_names(load_weights(place, variant, anchor="controlnet_mid_block.weight")), place)
    return controlnet, network.state_dict(), config


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours. @controlnet: diffusers', too. @context: the table of classes."""

    def __init__(
        self, model: nn.Module, shape: UNetConfig, controlnet: nn.Module | None, of: ControlNetConfig | None, context: Tensor | None
    ):
        super().__init__()
        self.model, self.shape, self.controlnet, self.of, self.context = model, shape, controlnet, of, context

    def forward(self, x: Tensor, t: Tensor, *others: Tensor) -> Tensor:
        shape = self.shape
        if shape.context_labels:
            return self.model(x, t, F.embedding(others[0], self.context)[:, None]).sample
        if not shape.text_width:
            return self.model(x, t, *others).sample
        named = dict(zip((name for name, _ in conditions(shape, 1, 1, None, self.of)), others))
        if shape.inpainting:
            x = torch.cat([x, named["mask"], named["masked_latents"]], dim=1)
        added = {"text_embeds": named.get("pooled_embedding"), "time_ids": named.get("size_ids")}
        text, guidance = named["text_embedding"], named.get("guidance_embedding")
        control = {}
        if self.controlnet is not None:
            told = added if self.of.unet.pooled_width else None
            skips, middle = self.controlnet(
                x, t, text, named["controlnet_cond"], self.of.scale, added_cond_kwargs=told, return_dict=False
            )
            control = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        return self.model(x, t, text, timestep_cond=guidance, added_cond_kwargs=added, **control).sample


def peer(
    config: Config, network: nn.Module, shape: UNetConfig, of: ControlNetConfig | None, of_controlnet: Config | None
) -> nn.Module | None:
    if of is None:
        model = in_diffusers(config, network, but="class_context.")
        context = network.class_context.weight if shape.context_labels else None
        return None if model is None else Peer(model, shape, None, None, context)
    controlnet = in_diffusers(of_controlnet, network.controlnet)
    if controlnet is None:
        return None
    model = in_diffusers(config, network, but="controlnet.")
    return Peer(model, shape, controlnet, of, None)


def check_inputs(
    shape: UNetConfig, size: tuple[int | None, int | None], timesteps: int, tokens: int, whole: bool,
    controlnet: ControlNetConfig | None,
) -> Inputs:  # fmt: skip
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    unit = 2 ** (len(shape.widths) - 1)  # diffusers' unconditional network wants them even on all levels
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        height, width = size if whole else (min(side or math.inf, 2 * unit) for side in size)
        if None in size:  # another for each number of rows, so that a size that is stuck shows
            width = (1 + rows) * unit
        values = [
            torch.randn(rows, shape.channels, height, width, generator=generator),
            torch.randint(timesteps, (rows,), generator=generator),
        ]
        if count := shape.num_labels or shape.context_labels:
            values.append(torch.randint(count, (rows,), generator=generator))
        for name, sizes in conditions(shape, height, width, tokens, controlnet):
            value = torch.randn(rows, *sizes, generator=generator)
            values.append((value * 256 + 512).round().clamp(0, 1024) if name == "size_ids" else value)
        return tuple(values)

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def main() -> None:
    parser = folder_parser(__doc__, "unet", ".pt or .pt2", "float16", IN_ONE_FILE)
    parser.add_argument(
        "--size",
        type=open_sides,
        metavar="N",
        help="height and width of x, N or HxW, * for any (default: config.json's sample_size)",
    )
    add_noise(parser)
    parser.add_argument(
        "--text-tokens",
        type=token_count,
        default=argparse.SUPPRESS,  # None is any number
        metavar="N",
        help=f"of a text embedding, * for any number (default: {TEXT_TOKENS})",
    )
    parser.add_argument(
        "--size-ids",
        type=positive,
        metavar="N",
        help="numbers that SDXL takes beside the text (default: 6, or 5 for its refiner)",
    )
    parser.add_argument(
        "--condition-prefix",
        type=word,
        metavar="WORD",
        help="before the names of what it takes beside x and t, for a network that shares a trajectory with one that takes "
        "others of these names",
    )
    parser.add_argument(
        "--controlnet",
        type=Path,
        metavar="FOLDER",
        help="a ControlNet of diffusers for this U-Net, which is written into the same file: config.json and weights of a "
        "ControlNetModel, or a pipeline with controlnet/. The network takes a picture then, controlnet_cond, in [0, 1]",
    )
    parser.add_argument(
        "--controlnet-scale", type=finite_real, metavar="S", help="of what it adds, diffusers' controlnet_conditioning_scale (default: 1)"
    )
    parser.add_argument(
        "--controlnet-prefix", type=word, metavar="WORD", help="before controlnet_cond, where two networks are to see different pictures"
    )
    parser.add_argument(
        "--null-class", type=int, help="the label that means no class (default: none does, but of latent diffusion the last of 1001)"
    )
    parser.add_argument("--heads", type=positive, metavar="N", help="of attention on each level, of latent diffusion in a single file (default: 1)")
    parser.add_argument(
        "--decoding",
        choices=["pixels", "none"],
        help="pixels where x is a picture, none where it is latents (default: none beside an autoencoder and for 4 channels)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=finite_real,
        help=f"the default a sampler should use (default: {TEXT_GUIDANCE} for networks that take a text, but for latent "
        "consistency models)",
    )
    parser.add_argument("--license", default="", help="licence of the weights")
    parser.add_argument(
        "--deep-feature",
        action="store_true",
        help="write the network in parts, too, so that what its last residual block gets from below can be forecast",
    )
    add_form(parser)
    args = parser.parse_args()
    given = {option: getattr(args, option, None) for option in ("size_ids", "condition_prefix")} | {
        "text_tokens": ("*" if args.text_tokens is None else args.text_tokens) if "text_tokens" in args else None
    }
    args.text_tokens = getattr(args, "text_tokens", TEXT_TOKENS)
    form = form_of(args)
    require_sizes(form, args.text_tokens, args.size or ())
    if args.controlnet is None:
        for option in ("scale", "prefix"):
            if (value := getattr(args, f"controlnet_{option}")) is not None:
                fail(f"--controlnet-{option}: must be beside --controlnet, got {value}")
    elif args.deep_feature:
        fail("--deep-feature: must be left out beside --controlnet, whose picture the parts of the network do not take")
    args.controlnet_scale = 1.0 if args.controlnet_scale is None else args.controlnet_scale

    config = config_of(args.folder, "unet")
    table = class_table_of(args.folder)
    if args.heads is not None:
        if table is None:
            fail(f"--heads: must be for latent diffusion in a single file, got {args.heads} for {args.folder}")
        config.values["attention_head_dim"] = args.heads
    shape, size = read_config(config, args.size_ids or size_ids_of(args.folder))
    if table is not None:
        shape = dataclasses.replace(shape, context_labels=len(table))
    require_effect(args.folder, shape, given)
    size = args.size or size
    encoded = latents(args.folder)
    decoding = args.decoding or ("none" if encoded or shape.channels == 4 else None)
    seen = OPEN_SIZE if args.folder.is_file() else "no sample_size in config.json"
    questions = {} if size else {"--size": seen}
    if decoding is None:
        questions["--decoding"] = f"{shape.channels} channels and no vae, which may be pixels or latents (none)"
    schedule = noise(args.folder, args, questions)
    values = {
        "format": 1,
        "name": args.name or args.output.stem,
        **shape_of_x(shape.channels, *size),
        "variance": "fixed",
        "timestep_type": "int64",
        "decoding": decoding,
        "license": args.license,
        "architecture": "unet",
        **({"forecast": "feature"} if args.deep_feature else {}),
        **schedule,
        **(encoded if decoding == "none" else {}),
        **labels(shape, args),
        **({} if args.noise_schedule else sampler_of(args.folder)),
    }
    controlnet, of_controlnet, weights_added = None, None, {}
    if args.controlnet is not None:
        controlnet, added, of_controlnet = controlnet_of(args, shape)
        weights_added = {f"controlnet.{name}": tensor for name, tensor in added.items()}
    if found := conditions(shape, *size, args.text_tokens, controlnet):
        before = {"controlnet_cond": args.controlnet_prefix or ""}
        named = ((before.get(name, "") + (args.condition_prefix or "") + name, sizes) for name, sizes in found)
        values["conditions"] = condition_lines((name, "float", sizes) for name, sizes in named)
    if args.guidance_scale is not None:
        values["guidance_scale"] = args.guidance_scale
    elif shape.context_labels:
        if "null_class" in values:
            values["guidance_scale"] = CLASS_GUIDANCE
    elif shape.text_width and not shape.guidance_width and not is_consistency_model(args.folder):
        values["guidance_scale"] = TEXT_GUIDANCE

    folder = args.folder if args.folder.is_file() else config.path.parent
    weights = weights_of(args, config, "unet")
    if table is not None:
        require_tensors(args.folder, {"cond_stage_model.embedding.weight": table})
        weights = weights | {"class_context.weight": table}
    network = read_network(
        lambda: make_unet(shape, args.deep_feature, controlnet), folder, args, "conv_in.weight",
        lambda weights: modern_names(weights) | weights_added, weights,
    )  # fmt: skip
    timesteps = values.get("num_train_timesteps", 1000)
    inputs = check_inputs(shape, size, timesteps, args.text_tokens or 77, form.whole_size, controlnet)
    reference = peer(config, network, shape, controlnet, of_controlnet)
    write(args.output, network, values, inputs, args.dtype, reference, form)


def require_effect(folder: Path, shape: UNetConfig, given: Mapping[str, object]) -> None:
    """That the network takes what the options are of. @given: None where an option is not."""
    text = bool(shape.text_width and not shape.context_labels)
    taken = {"size_ids": ("sizes", shape.pooled_width > 0), "condition_prefix": ("a text", text), "text_tokens": ("a text", text)}
    for option, value in given.items():
        what, there = taken[option]
        if value is not None and not there:
            fail(f"--{option.replace('_', '-')}: must be for a network that takes {what}, got {value} for {folder}")


def size_ids_of(folder: Path) -> int:
    index = index_of(folder)
    return 5 if index and index.flag("requires_aesthetics_score", False) else 6


def labels(shape: UNetConfig, args: argparse.Namespace) -> dict[str, object]:
    rows, null = shape.num_labels or shape.context_labels, args.null_class
    if null is None and shape.context_labels == IMAGENET + 1:
        null = IMAGENET  # as it was trained
    if null is not None and not 0 <= null < rows:
        fail(f"--null-class: must be a row of the network's table of {rows} classes, got {null}")
    if not rows:
        return {}
    # Where the last row is "no class" it is not one of those that can be asked for.
    count = rows - 1 if null == rows - 1 else rows
    return {"num_classes": count, **({} if null is None else {"null_class": null})}


if __name__ == "__main__":
    main()
