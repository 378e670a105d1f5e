"""Writes one half of a latent diffusion autoencoder as a TorchScript file that tstitch loads.

FOLDER is a pipeline of diffusers, or its vae/: config.json and weights of an AutoencoderKL (Stable Diffusion 1 to 3,
SDXL, FLUX) or an AutoencoderTiny (TAESD). diffusers is not needed; where it is installed the file is checked beside it.

A decoder takes latents as the encoder gives them and returns pictures in [-1, 1]; the scale and shift between those and
the latents of the diffusion model are written beside the network, for the caller to apply.
"""

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoencoder import ACTIVATIONS, AutoencoderKL, AutoencoderTiny, KLConfig, TinyConfig, modern_names  # noqa: E402
from common import Config, Inputs, component, in_diffusers, read_network, say, write  # noqa: E402
from options import folder_parser  # noqa: E402


def read_config(config: Config) -> tuple[KLConfig | TinyConfig, dict[str, object]]:
    """The shape of the network, and the metadata that config.json gives."""
    kind = config.kind("AutoencoderKL", "AutoencoderTiny")
    shape = read_kl(config) if kind == "AutoencoderKL" else read_tiny(config)
    scale = config.real("scaling_factor", 0.18215 if kind == "AutoencoderKL" else 1.0)
    if not scale > 0:
        config.refuse("scaling_factor", "must be above 0", scale)
    values = {
        "latent_channels": shape.latent_channels,
        "latent_scale": scale,
        "latent_shift": config.real("shift_factor", 0.0),
    }
    # Said of numbers in memory and of training; they change no result.
    config.finish("sample_size", "force_upcast", "latent_magnitude", "latent_shift", "block_out_channels")
    return shape, values


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
    for key in ("latents_mean", "latents_std"):  # scales of each channel, which the metadata cannot say
        config.only(key, None)
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


def upsampling(shape: KLConfig | TinyConfig, part: str) -> int:
    """Pixels of a picture along each side of a latent."""
    if isinstance(shape, KLConfig):
        return 2 ** (len(shape.widths) - 1)
    if part == "encoder":
        return 2 ** (len(shape.encoder_widths) - 1)
    return shape.scale ** (len(shape.decoder_widths) - 1)


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
        return (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean).float()


def peer(config: Config, network: nn.Module, part: str) -> nn.Module | None:
    model = in_diffusers(config, network)
    return None if model is None else Peer(model.eval(), part)


def check_inputs(part: str, shape: KLConfig | TinyConfig) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    if part == "decoder":
        return lambda rows: (torch.randn(rows, shape.latent_channels, 8, 8, generator=generator),)
    side = 8 * upsampling(shape, part)
    return lambda rows: (torch.rand(rows, shape.picture_channels, side, side, generator=generator) * 2 - 1,)


def main() -> None:
    parser = folder_parser(__doc__, "vae", ".pt", "float32")
    parser.add_argument(
        "--part", choices=["decoder", "encoder"], default="decoder", help="which half (default: %(default)s)"
    )
    parser.add_argument("--license", default="", help="licence of the weights")
    args = parser.parse_args()

    folder = component(args.folder, "vae")
    config = Config(folder / "config.json")
    shape, values = read_config(config)
    if args.dtype == "float16" and config.values.get("force_upcast") is True:
        say(f"{config.path}: force_upcast is true: numbers inside may be too large for float16; bfloat16 holds them")

    kind, anchor = (
        (AutoencoderKL, "encoder.conv_in.weight")
        if isinstance(shape, KLConfig)
        else (AutoencoderTiny, "encoder.layers.0.weight")
    )
    network = read_network(lambda: kind(shape), folder, args, anchor, modern_names)

    values |= {
        "format": 1,
        "kind": args.part,
        "name": args.name or args.output.stem,
        "picture_channels": shape.decoded_channels if args.part == "decoder" else shape.picture_channels,
        "upsampling": upsampling(shape, args.part),
        "license": args.license,
    }
    reference = peer(config, network, args.part)
    write(args.output, network.half(args.part), values, check_inputs(args.part, shape), args.dtype, reference)


if __name__ == "__main__":
    main()
