"""Writes one half of a latent diffusion autoencoder as a TorchScript file that tstitch loads.

FOLDER is a pipeline of diffusers, or its vae/: config.json and weights of an AutoencoderKL (Stable Diffusion 1 to 3,
SDXL, FLUX), a VQModel (latent diffusion), an AutoencoderTiny (TAESD), an AutoencoderDC (Sana) or an AutoencoderKLWan (videos of Wan 2.1 and 2.2; its
decoder alone). diffusers is not needed; where it is installed the file is checked beside it. Or it is a file of Stable
Diffusion 1, 2 or XL or of latent diffusion in the layout of its makers (first_stage_model.*), for which diffusers is needed.

A decoder takes latents as the encoder gives them and returns pictures in [-1, 1]; the scale and shift between those and
the latents of the diffusion model are written beside the network, for the caller to apply.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoencoder import ACTIVATIONS, AutoencoderKL, AutoencoderTiny, KLConfig, TinyConfig, modern_names  # noqa: E402
from autoencoder_dc import AutoencoderDC, DCConfig, DCHalfConfig  # noqa: E402
from autoencoder_wan import AutoencoderKLWan, WanVAEConfig, without_encoder  # noqa: E402
from common import Config, Inputs, fail, in_diffusers, is_integer, read_network, say, write  # noqa: E402
from options import folder_parser  # noqa: E402
from pipeline import latent_values  # noqa: E402
from single_file import IN_ONE_FILE, config_of, weights_of  # noqa: E402

Shape = KLConfig | TinyConfig | DCConfig | WanVAEConfig


@dataclass(frozen=True)
class Kind:
    """How an autoencoder of diffusers is read."""

    read: Callable[[Config], Shape]
    make: Callable[[Shape], nn.Module]
    anchor: str  # the name of a tensor of it
    named: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda weights: weights
    parts: tuple[str, ...] = ("decoder", "encoder")


# Said of numbers in memory, of training and of sizes that follow from others; they change no result.
IGNORED = ("sample_size", "force_upcast", "latent_magnitude", "latent_shift", "block_out_channels",
           "scale_factor_temporal", "scale_factor_spatial")  # fmt: skip


def read_config(config: Config) -> tuple[Kind, Shape, dict[str, object]]:
    """The network, its shape, and the metadata that config.json gives."""
    kind = KINDS[config.kind(*KINDS)]
    shape = kind.read(config)
    values = {"latent_channels": shape.latent_channels, **latent_values(config, shape.latent_channels)}
    config.finish(*IGNORED)
    return kind, shape, values


def read_vq(config: Config) -> KLConfig:
    config.only("norm_type", "group")
    config.only("lookup_from_codebook", False)
    channels = config.integer("latent_channels", 3)
    config.only("vq_embed_dim", None, channels)
    return dataclasses.replace(read_kl(config), latent_channels=channels, codes=config.integer("num_vq_embeddings", 256))


def read_kl(config: Config) -> KLConfig:
    widths = config.integers("block_out_channels", [64])
    for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config.choices(key, [block], [block])
        if len(types) != len(widths):
            config.refuse(key, f"must have {len(widths)} entries, one for each of block_out_channels", types)
    groups = config.integer("norm_num_groups", 32)
    if any(width % groups for width in widths):
        config.refuse("norm_num_groups", f"must divide each of block_out_channels {widths}", groups)
    config.only("act_fn", "silu", "swish")
    return KLConfig(
        picture_channels=config.integer("in_channels", 3),
        decoded_channels=config.integer("out_channels", 3),
        latent_channels=config.integer("latent_channels", 4),
        widths=tuple(widths),
        layers=config.integer("layers_per_block", 1),
        groups=groups,
        attention=config.flag("mid_block_add_attention", True),
        quant_conv=config.flag("use_quant_conv", True),
        post_quant_conv=config.flag("use_post_quant_conv", True),
    )


def read_tiny(config: Config) -> TinyConfig:
    halves = {}
    for half, blocks in (("encoder", [1, 3, 3, 3]), ("decoder", [3, 3, 3, 1])):
        widths = config.integers(f"{half}_block_out_channels", [64, 64, 64, 64])
        counts = config.integers(f"num_{half}_blocks", blocks)
        if len(counts) != len(widths):
            config.refuse(f"num_{half}_blocks", f"must have {len(widths)} entries, one for each width", counts)
        if len(set(widths)) > 1:
            config.refuse(f"{half}_block_out_channels", "must all be the same", widths)
        halves |= {f"{half}_widths": tuple(widths), f"{half}_blocks": tuple(counts)}
    config.only("upsample_fn", "nearest")
    return TinyConfig(
        picture_channels=config.integer("in_channels", 3),
        decoded_channels=config.integer("out_channels", 3),
        latent_channels=config.integer("latent_channels", 4),
        scale=config.integer("upsampling_scaling_factor", 2),
        activation=config.only("act_fn", *ACTIVATIONS),
        **halves,
    )


def a_level(config: Config, key: str, levels: int, default: str, *allowed: str) -> tuple[str, ...]:
    """A word for each level, or one for all."""
    value = config.get(key, default)
    words = [value] * levels if isinstance(value, str) else value
    if not isinstance(words, list) or len(words) != levels or any(word not in allowed for word in words):
        config.refuse(key, f"must be {' or '.join(allowed)}, or a list of {levels} of them", value)
    return tuple(words)


def read_dc(config: Config) -> DCConfig:
    return DCConfig(
        encoder=read_dc_half(config, "encoder", config.only("downsample_block_type", "pixel_unshuffle", "Conv", "conv") != "pixel_unshuffle"),
        decoder=read_dc_half(config, "decoder", config.only("upsample_block_type", "pixel_shuffle", "interpolate") == "interpolate"),
        picture_channels=config.integer("in_channels", 3),
        latent_channels=config.integer("latent_channels", 32),
        head_width=config.integer("attention_head_dim", 32),
        last_activation=config.only("decoder_conv_act_fn", "relu", *ACTIVATIONS),
    )


def read_dc_half(config: Config, half: str, resample: bool) -> DCHalfConfig:
    key = f"{half}_block_out_channels"
    widths = config.integers(key, [128, 256, 512, 512, 1024, 1024])
    levels = len(widths)
    if levels < 2:
        config.refuse(key, "must be two levels at least", widths)
    layers = config.get(f"{half}_layers_per_block", [2, 2, 2, 3, 3, 3] if half == "encoder" else [3] * 6)
    if not is_list(layers, levels, lambda n: is_integer(n) and 0 <= n <= 1000) or 0 in layers[1:]:
        rule = f"must be {levels} integers from 1 on, one for each of {key}; the first may be 0"
        config.refuse(f"{half}_layers_per_block", rule, layers)
    scales = config.get(f"{half}_qkv_multiscales", [[], [], [], [5], [5], [5]])
    if not is_list(scales, levels, lambda each: is_list(each, None, lambda n: is_integer(n) and n % 2 == 1 and 0 < n < 32)):
        config.refuse(f"{half}_qkv_multiscales", f"must be {levels} lists of odd integers in [1, 31]", scales)
    types = a_level(config, f"{half}_block_types", levels, "ResBlock", "ResBlock", "EfficientViTBlock")
    activations = ("silu",) * levels
    if half == "decoder":
        a_level(config, "decoder_norm_types", levels, "rms_norm", "rms_norm")
        activations = a_level(config, "decoder_act_fns", levels, "silu", *ACTIVATIONS)
    shortcut = config.flag("encoder_out_shortcut" if half == "encoder" else "decoder_in_shortcut", True)

    # Shortcuts mean over channels or repeat them, a whole number of times.
    joined = widths if layers[0] else widths[1:]
    pairs = zip(joined, joined[1:]) if half == "encoder" else zip(joined[1:], joined)
    fit = (4 * before % after == 0 if half == "encoder" else 4 * after % before == 0 for before, after in pairs)
    if not all(fit) or (half == "encoder" and not resample and any(width % 4 for width in widths[1:])):
        config.refuse(key, "must be such that four pixels of a level are whole channels of the next", widths)
    if shortcut and widths[-1] % config.integer("latent_channels", 32):
        config.refuse(key, f"must end with a multiple of latent_channels, {config.integer('latent_channels', 32)}", widths)
    attention = tuple(kind == "EfficientViTBlock" for kind in types)
    narrowest = min((width for width, attends in zip(widths, attention) if attends), default=65536)
    if config.integer("attention_head_dim", 32) > narrowest:
        got = config.integer("attention_head_dim", 32)
        config.refuse("attention_head_dim", f"must be at most {narrowest}, the channels of a level with attention", got)
    return DCHalfConfig(
        widths=tuple(widths),
        layers=tuple(layers),
        attention=attention,
        scales=tuple(map(tuple, scales)),
        activations=activations,
        resample=resample,
        shortcut=shortcut,
    )


def is_list(value: object, length: int | None, fits: Callable[[object], bool]) -> bool:
    """@length: None for any."""
    return isinstance(value, list) and length in (None, len(value)) and all(map(fits, value))


def read_wan(config: Config) -> WanVAEConfig:
    base = config.integer("decoder_base_dim", config.integer("base_dim", 96))
    multiples = config.integers("dim_mult", [1, 2, 4, 4])
    time = config.get("temperal_downsample", [False, True, True])
    steps = len(multiples) - 1
    if not is_list(time, steps, lambda each: isinstance(each, bool)):
        config.refuse("temperal_downsample", f"must be {steps} of true and false, one between each two of dim_mult", time)
    config.only("attn_scales", [])
    config.real("dropout", 0.0)  # of training
    config.integer("in_channels", 3)  # of the encoder
    patch, channels = config.integer("patch_size", 1), config.integer("out_channels", 3)
    if channels % patch**2:
        config.refuse("out_channels", f"must be a multiple of {patch**2}, the pixels of a patch", channels)
    shape = WanVAEConfig(
        latent_channels=config.integer("z_dim", 16),
        decoded_channels=channels // patch**2,
        widths=tuple(base * multiple for multiple in multiples),
        layers=config.integer("num_res_blocks", 2),
        time=tuple(time),
        residual=config.flag("is_residual", False),
        patch=patch,
    )
    for i, (width, before) in enumerate(zip(shape.widths, shape.widths[1:])):
        if shape.residual and 4 * (2 if time[i] else 1) * width % before:
            config.refuse("dim_mult", "must be such that channels of a level are whole pixels of the one before", multiples)
        if not shape.residual and before % 2:
            config.refuse("dim_mult", f"times {base} must be even but for the first", multiples)
    return shape


KINDS = {
    "AutoencoderKL": Kind(read_kl, AutoencoderKL, "encoder.conv_in.weight", modern_names),
    "VQModel": Kind(read_vq, AutoencoderKL, "encoder.conv_in.weight", modern_names),
    "AutoencoderTiny": Kind(read_tiny, AutoencoderTiny, "encoder.layers.0.weight"),
    "AutoencoderDC": Kind(read_dc, AutoencoderDC, "decoder.conv_in.weight"),
    "AutoencoderKLWan": Kind(read_wan, AutoencoderKLWan, "decoder.conv_in.weight", without_encoder, ("decoder",)),
}


def upsampling(shape: Shape, part: str) -> int:
    """Pixels of a picture along each side of a latent."""
    match shape:
        case KLConfig():
            return 2 ** (len(shape.widths) - 1)
        case TinyConfig() if part == "encoder":
            return 2 ** (len(shape.encoder_widths) - 1)
        case TinyConfig():
            return shape.scale ** (len(shape.decoder_widths) - 1)
        case DCConfig():
            return 2 ** (len((shape.encoder if part == "encoder" else shape.decoder).widths) - 1)
        case WanVAEConfig():
            return shape.upsampling


def picture_channels(shape: Shape, part: str) -> int:
    return shape.picture_channels if part == "encoder" or isinstance(shape, DCConfig) else shape.decoded_channels


class Peer(nn.Module):
    """One half of diffusers' autoencoder, with the arguments of ours.

    It computes in float64: in float32 its decoder is off by 6e-5 of the output's RMS where there are several pictures.
    """

    def __init__(self, model: nn.Module, part: str):
        super().__init__()
        self.model, self.part = model.double(), part

    def forward(self, x: Tensor) -> Tensor:
        if self.part == "decoder":
            return self.model.decode(x.double()).sample.float()
        encoded = self.model.encode(x.double())
        for name in ("latents", "latent"):
            if hasattr(encoded, name):
                return getattr(encoded, name).float()
        return encoded.latent_dist.mean.float()


def peer(config: Config, network: nn.Module, part: str, whole: bool) -> nn.Module | None:
    model = in_diffusers(config, network, whole=whole)
    return None if model is None else Peer(model.eval(), part)


def check_inputs(part: str, shape: Shape, codes: Tensor | None = None) -> Inputs:
    """@codes: of a codebook, [codes, latent_channels], of which latents are made."""
    generator = torch.Generator().manual_seed(0)
    latent = 8 if upsampling(shape, part) <= 8 else 3
    side = latent * upsampling(shape, part)

    def inputs(rows: int) -> tuple[Tensor]:
        if part == "encoder":
            return (torch.rand(rows, picture_channels(shape, part), side, side, generator=generator) * 2 - 1,)
        if codes is not None:
            chosen = torch.randint(len(codes), (rows, latent, latent), generator=generator)
            return (codes[chosen].permute(0, 3, 1, 2).contiguous(),)
        frames = (rows,) if isinstance(shape, WanVAEConfig) else ()  # of one, too
        return (torch.randn(rows, shape.latent_channels, *frames, latent, latent, generator=generator),)

    return inputs


def main() -> None:
    parser = folder_parser(__doc__, "vae", ".pt", "float32", IN_ONE_FILE)
    parser.add_argument(
        "--part", choices=["decoder", "encoder"], default="decoder", help="which half (default: %(default)s)"
    )
    parser.add_argument("--license", default="", help="licence of the weights")
    args = parser.parse_args()

    config = config_of(args.folder, "vae")
    kind, shape, values = read_config(config)
    if args.part not in kind.parts:
        fail(f"--part: must be {' or '.join(kind.parts)} for {config.values['_class_name']}, got {args.part}")
    if args.dtype == "float16" and config.values.get("force_upcast") is True:
        say(f"{config.path}: force_upcast is true: numbers inside may be too large for float16; bfloat16 holds them")

    folder = args.folder if args.folder.is_file() else config.path.parent
    weights = weights_of(args, config, "vae")
    network = read_network(lambda: kind.make(shape), folder, args, kind.anchor, kind.named, weights)

    values |= {
        "format": 1,
        "kind": args.part,
        "name": args.name or args.output.stem,
        "picture_channels": picture_channels(shape, args.part),
        "upsampling": upsampling(shape, args.part),
        "license": args.license,
    }
    if isinstance(shape, WanVAEConfig):
        values["temporal_upsampling"] = shape.temporal_upsampling
    reference = peer(config, network, args.part, len(kind.parts) == 2)
    # Of what lies between two codes rounding may make either.
    codes = network.quantize.embedding.weight.detach() if getattr(shape, "codes", 0) else None
    write(args.output, network.half(args.part), values, check_inputs(args.part, shape, codes), args.dtype, reference)


if __name__ == "__main__":
    main()
