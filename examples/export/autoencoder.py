"""The autoencoders of latent diffusion: AutoencoderKL and VQModel (arXiv 2112.10752), and AutoencoderTiny (TAESD).

Their parameters carry the names of diffusers' checkpoints. Everything is convolutional and takes any batch and picture
size. The modules are written to be compiled by `torch.jit.script` and captured in a CUDA graph: no arithmetic on tensor
shapes ends up in a tensor, and nothing remembers the device or the dtype it was built on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}


@dataclass(frozen=True)
class KLConfig:
    """Shape of an AutoencoderKL or a VQModel. `widths` are the channels of its levels, the full resolution first."""

    picture_channels: int = 3
    decoded_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    codes: int = 0  # of a VQModel: rows of its codebook

    @property
    def encoded_channels(self) -> int:
        """Of what the encoder gives: mean and variance, or of a VQModel the latent itself."""
        return self.latent_channels * (1 if self.codes else 2)


@dataclass(frozen=True)
class TinyConfig:
    """Shape of an AutoencoderTiny; widths and blocks of each level, in the order in which data passes."""

    picture_channels: int = 3
    decoded_channels: int = 3
    latent_channels: int = 4
    encoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scale: int = 2
    activation: str = "relu"


# ------------------------------------------------------------------------------------------------ shared with unet.py


class SelfAttention(nn.Module):
    """Attention of every place to every place, added to its input: [n, width, h, w] -> the same.

    A U-Net has it where another has attention to a text, so that it takes one; it is not used.
    """

    def __init__(self, width: int, heads: int, groups: int, eps: float):
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.group_norm = nn.GroupNorm(groups, width, eps=eps)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def split(self, x: Tensor) -> Tensor:
        """[n, places, width] -> [n, heads, places, head_width]"""
        return x.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)

    def forward(self, x: Tensor, text: Optional[Tensor] = None) -> Tensor:
        places = self.group_norm(x).flatten(2).transpose(1, 2)  # [n, h * w, width]
        q, k, v = self.split(self.to_q(places)), self.split(self.to_k(places)), self.split(self.to_v(places))
        y = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.transpose(1, 2).reshape_as(x)


class Downsample(nn.Module):
    """Halves the picture. With padding 0 the row and column of zeros are added on the far sides only."""

    def __init__(self, width: int, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


def modern_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with today's names of attention: checkpoints of 2022 and 2023 have others."""
    today = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
    return {old.sub(lambda m: f"{m[1]}.{today[m[2]]}.{m[3]}", name): tensor for name, tensor in weights.items()}


# ------------------------------------------------------------------------------------------------ AutoencoderKL


class ResnetBlock(nn.Module):
    """[n, width_in, h, w] -> [n, width_out, h, w]"""

    def __init__(self, width_in: int, width_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Upsample(nn.Module):
    """[n, width, h, w] -> [n, width, 2h, 2w]"""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownLevel(nn.Module):
    def __init__(self, width_in: int, width_out: int, config: KLConfig, last: bool):
        super().__init__()
        widths = [width_in] + [width_out] * config.layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, config.groups) for a, b in zip(widths, widths[1:]))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width_out, 0)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
        return x


class UpLevel(nn.Module):
    def __init__(self, width_in: int, width_out: int, config: KLConfig, last: bool):
        super().__init__()
        widths = [width_in] + [width_out] * (config.layers + 1)
        self.resnets = nn.ModuleList(ResnetBlock(a, b, config.groups) for a, b in zip(widths, widths[1:]))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width_out)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return x


class Middle(nn.Module):
    """Two residual blocks, with attention of one head between them where the config has it."""

    def __init__(self, width: int, config: KLConfig):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, config.groups) for _ in range(2))
        attentions = [SelfAttention(width, 1, config.groups, 1e-6)] if config.attention else []
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class KLEncoder(nn.Module):
    """[n, picture_channels, H, W] -> [n, encoded_channels, h, w]"""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.picture_channels, widths[0], 3, padding=1)
        pairs = zip((widths[0], *widths), widths)
        self.down_blocks = nn.ModuleList(DownLevel(a, b, config, i == last) for i, (a, b) in enumerate(pairs))
        self.mid_block = Middle(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.encoded_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class KLDecoder(nn.Module):
    """[n, latent_channels, h, w] -> [n, decoded_channels, H, W]"""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], config)
        pairs = zip((widths[0], *widths), widths)
        self.up_blocks = nn.ModuleList(UpLevel(a, b, config, i == last) for i, (a, b) in enumerate(pairs))
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.decoded_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Both halves, as a checkpoint has them; `half` gives what is exported."""

    def __init__(self, config: KLConfig):
        super().__init__()
        self.encoder = KLEncoder(config)
        self.decoder = KLDecoder(config)
        moments, latent = config.encoded_channels, config.latent_channels
        self.quantize = Codebook(config) if config.codes else None
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.post_quant_conv else nn.Identity()

    def half(self, part: str) -> nn.Module:
        if self.quantize is not None:
            return VQEncoding(self) if part == "encoder" else VQDecoding(self)
        return KLEncoding(self) if part == "encoder" else KLDecoding(self)


class KLEncoding(nn.Module):
    def __init__(self, both: AutoencoderKL):
        super().__init__()
        self.encoder, self.quant_conv = both.encoder, both.quant_conv

    def forward(self, picture: Tensor) -> Tensor:
        """Picture [n, c, H, W] in [-1, 1] -> mean of the latent distribution [n, latent_channels, h, w]."""
        return self.quant_conv(self.encoder(picture)).chunk(2, dim=1)[0]


class KLDecoding(nn.Module):
    def __init__(self, both: AutoencoderKL):
        super().__init__()
        self.decoder, self.post_quant_conv = both.decoder, both.post_quant_conv

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [n, latent_channels, h, w] as the encoder gives it -> picture [n, c, H, W], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent))


class Codebook(nn.Module):
    def __init__(self, config: KLConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.latent_channels)

    def forward(self, latent: Tensor) -> Tensor:
        """[n, latent_channels, h, w] -> the same with the nearest code at each place."""
        codes = self.embedding.weight
        rows: list[Tensor] = []
        for picture in latent.unbind(0):  # one after another: there is a number for each place and code
            places = picture.flatten(1).float()
            # Not by a matrix product, whose rounding would hide small distances.
            distances = (places[0].unsqueeze(1) - codes[:, 0].float()).square()
            for c in range(1, codes.size(1)):
                distances = distances + (places[c].unsqueeze(1) - codes[:, c].float()).square()
            rows.append(F.embedding(distances.argmin(1), codes).t().reshape_as(picture))
        return torch.stack(rows)


class VQEncoding(nn.Module):
    def __init__(self, both: AutoencoderKL):
        super().__init__()
        self.encoder, self.quant_conv = both.encoder, both.quant_conv

    def forward(self, picture: Tensor) -> Tensor:
        """Picture [n, c, H, W] in [-1, 1] -> latent [n, latent_channels, h, w], of which the decoder takes the nearest codes."""
        return self.quant_conv(self.encoder(picture))


class VQDecoding(nn.Module):
    def __init__(self, both: AutoencoderKL):
        super().__init__()
        self.decoder, self.post_quant_conv, self.quantize = both.decoder, both.post_quant_conv, both.quantize

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [n, latent_channels, h, w] as the encoder gives it -> picture [n, c, H, W], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(self.quantize(latent)))


# ------------------------------------------------------------------------------------------------ AutoencoderTiny


class TinyBlock(nn.Module):
    def __init__(self, width: int, activation: str):
        super().__init__()
        act = ACTIVATIONS[activation]
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], act(), convs[1], act(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    def __init__(self, config: TinyConfig):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (width, blocks) in enumerate(zip(config.encoder_widths, config.encoder_blocks)):
            if i == 0:
                layers.append(nn.Conv2d(config.picture_channels, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(width, config.activation) for _ in range(blocks)]
        layers.append(nn.Conv2d(config.encoder_widths[-1], config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x + 1) / 2)  # its pictures are in [0, 1]


class TinyDecoder(nn.Module):
    def __init__(self, config: TinyConfig):
        super().__init__()
        widths, last = config.decoder_widths, len(config.decoder_widths) - 1
        layers: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
            ACTIVATIONS[config.activation](),
        ]
        for i, (width, blocks) in enumerate(zip(widths, config.decoder_blocks)):
            layers += [TinyBlock(width, config.activation) for _ in range(blocks)]
            if i == last:
                layers.append(nn.Conv2d(width, config.decoded_channels, 3, padding=1))
            else:
                layers.append(nn.Upsample(scale_factor=float(config.scale), mode="nearest"))
                layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.tanh(x / 3) * 3) * 2 - 1  # values beyond 3 are pulled in; its pictures are in [0, 1]


class AutoencoderTiny(nn.Module):
    """Both halves, as a checkpoint has them. A level changes the width of nothing, so all widths of a half are one."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def half(self, part: str) -> nn.Module:
        return TinyEncoding(self) if part == "encoder" else TinyDecoding(self)


class TinyEncoding(nn.Module):
    def __init__(self, both: AutoencoderTiny):
        super().__init__()
        self.encoder = both.encoder

    def forward(self, picture: Tensor) -> Tensor:
        """Picture [n, c, H, W] in [-1, 1] -> latent [n, latent_channels, h, w]."""
        return self.encoder(picture)


class TinyDecoding(nn.Module):
    def __init__(self, both: AutoencoderTiny):
        super().__init__()
        self.decoder = both.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [n, latent_channels, h, w] as the encoder gives it -> picture [n, c, H, W], about [-1, 1]."""
        return self.decoder(latent)
