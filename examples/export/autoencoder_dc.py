"""The deep compression autoencoder of Sana, AutoencoderDC (arXiv 2410.10733), of 32 or 64 pixels a side for one of a latent.

Residual blocks where the picture is large, and where it is small blocks of linear attention (EfficientViT, arXiv
2205.14756). Levels are joined by convolutions with a shortcut beside them that moves pixels into channels, or back. Its
parameters carry the names of diffusers' checkpoints. Written to be compiled, like autoencoder.py.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder import ACTIVATIONS


@dataclass(frozen=True)
class DCHalfConfig:
    """Shape of a half; a value for each of its levels, the full resolution first."""

    widths: tuple[int, ...]
    layers: tuple[int, ...]  # the first may be 0: then the first level only halves the picture
    attention: tuple[bool, ...]
    scales: tuple[tuple[int, ...], ...]  # sides of the convolutions whose results attention has besides
    activations: tuple[str, ...]  # of residual blocks
    resample: bool  # by strides and nearest neighbours; else by moving pixels into channels
    shortcut: bool  # beside the convolution at the latent


@dataclass(frozen=True)
class DCConfig:
    """Shape of an AutoencoderDC."""

    encoder: DCHalfConfig
    decoder: DCHalfConfig
    picture_channels: int = 3
    latent_channels: int = 32
    head_width: int = 32
    last_activation: str = "relu"  # of the decoder


class ChannelNorm(nn.Module):
    """[n, width, h, w], each place by the root mean square of its channels, in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32).movedim(1, -1)
        y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)
        return (y * self.weight + self.bias).movedim(-1, 1)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, activation: str):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.act = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(self.act(self.conv1(x)))) + x


class Scale(nn.Module):
    """Queries, keys and values that have seen their neighbours."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.proj_in = nn.Conv2d(width, width, side, padding=side // 2, groups=width, bias=False)
        self.proj_out = nn.Conv2d(width, width, 1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    def __init__(self, width: int, head_width: int, scales: tuple[int, ...]):
        super().__init__()
        heads = width // head_width
        inner = heads * head_width
        self.head_width = head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(Scale(3 * inner, heads, side) for side in scales)
        self.to_out = nn.Linear(inner * (1 + len(scales)), width, bias=False)
        self.norm_out = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        places = x.movedim(1, -1)
        qkv = torch.cat((self.to_q(places), self.to_k(places), self.to_v(places)), -1).movedim(-1, 1)
        every = [qkv]
        for scale in self.to_qkv_multiscale:
            every.append(scale(qkv))
        # Checkpoints have the channels of a head side by side: its query, its key, its value. [n, heads, head_width, h w]
        heads = torch.cat(every, 1).to(torch.float32).flatten(2).unflatten(1, (-1, 3 * self.head_width))
        q, k, v = heads.chunk(3, dim=2)
        q, k = F.relu(q), F.relu(k).transpose(2, 3)
        sums = torch.matmul(torch.matmul(v, k), q)
        weights = torch.matmul(k.sum(2).unsqueeze(2), q)
        y = (sums / (weights + 1e-15)).to(x.dtype).flatten(1, 2).transpose(1, 2)  # [n, h w, channels]
        y = self.to_out(y).transpose(1, 2).unflatten(2, (x.size(2), x.size(3)))
        return self.norm_out(y) + x


class GatedConvolutions(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = 4 * width
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return self.norm(self.conv_point(value * F.silu(gate))) + x


class AttentionBlock(nn.Module):
    def __init__(self, width: int, head_width: int, scales: tuple[int, ...]):
        super().__init__()
        self.attn = LinearAttention(width, head_width, scales)
        self.conv_out = GatedConvolutions(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


class Down(nn.Module):
    """[n, width_in, 2h, 2w] -> [n, width_out, h, w]"""

    def __init__(self, width_in: int, width_out: int, strided: bool, shortcut: bool):
        super().__init__()
        self.strided, self.shortcut = strided, shortcut
        self.group = 4 * width_in // width_out  # channels whose mean is one of the shortcut
        self.conv = nn.Conv2d(width_in, width_out if strided else width_out // 4, 3, stride=2 if strided else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.strided:
            y = F.pixel_unshuffle(y, 2)
        if self.shortcut:
            y = y + F.pixel_unshuffle(x, 2).unflatten(1, (-1, self.group)).mean(2)
        return y


class Up(nn.Module):
    """[n, width_in, h, w] -> [n, width_out, 2h, 2w]"""

    def __init__(self, width_in: int, width_out: int, nearest: bool, shortcut: bool):
        super().__init__()
        self.nearest, self.shortcut = nearest, shortcut
        self.repeats = 4 * width_out // width_in
        self.conv = nn.Conv2d(width_in, width_out if nearest else 4 * width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.nearest:
            y = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        else:
            y = F.pixel_shuffle(self.conv(x), 2)
        if self.shortcut:
            y = y + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)
        return y


def blocks(config: DCConfig, half: DCHalfConfig, level: int) -> Iterator[nn.Module]:
    width = half.widths[level]
    for _ in range(half.layers[level]):
        if half.attention[level]:
            yield AttentionBlock(width, config.head_width, half.scales[level])
        else:
            yield ResidualBlock(width, half.activations[level])


class DCEncoder(nn.Module):
    """[n, picture_channels, H, W] -> [n, latent_channels, h, w]"""

    def __init__(self, config: DCConfig):
        super().__init__()
        half, last = config.encoder, len(config.encoder.widths) - 1
        if half.layers[0] > 0:
            self.conv_in = nn.Conv2d(config.picture_channels, half.widths[0], 3, padding=1)
        else:
            self.conv_in = Down(config.picture_channels, half.widths[1], half.resample, False)
        self.down_blocks = nn.Sequential()
        for i, (width, layers) in enumerate(zip(half.widths, half.layers)):
            down = [Down(width, half.widths[i + 1], half.resample, True)] if i < last and layers > 0 else []
            self.down_blocks.append(nn.Sequential(*blocks(config, half, i), *down))
        self.conv_out = nn.Conv2d(half.widths[-1], config.latent_channels, 3, padding=1)
        self.shortcut, self.group = half.shortcut, half.widths[-1] // config.latent_channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_blocks(self.conv_in(x))
        y = self.conv_out(x)
        if self.shortcut:
            y = y + x.unflatten(1, (-1, self.group)).mean(2)
        return y


class DCDecoder(nn.Module):
    """[n, latent_channels, h, w] -> [n, picture_channels, H, W]"""

    def __init__(self, config: DCConfig):
        super().__init__()
        half, last = config.decoder, len(config.decoder.widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, half.widths[-1], 3, padding=1)
        self.shortcut, self.repeats = half.shortcut, half.widths[-1] // config.latent_channels
        # Data passes the last level first; it has the name of its place all the same.
        levels: list[tuple[str, nn.Module]] = []
        for i in reversed(range(last + 1)):
            up = [Up(half.widths[i + 1], half.widths[i], half.resample, True)] if i < last and half.layers[i] > 0 else []
            levels.append((str(i), nn.Sequential(*up, *blocks(config, half, i))))
        self.up_blocks = nn.Sequential(OrderedDict(levels))
        width = half.widths[0] if half.layers[0] > 0 else half.widths[1]
        self.norm_out = ChannelNorm(width)
        self.conv_act = ACTIVATIONS[config.last_activation]()
        if half.layers[0] > 0:
            self.conv_out = nn.Conv2d(width, config.picture_channels, 3, padding=1)
        else:
            self.conv_out = Up(width, config.picture_channels, half.resample, False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_in(x)
        if self.shortcut:
            y = y + x.repeat_interleave(self.repeats, dim=1)
        return self.conv_out(self.conv_act(self.norm_out(self.up_blocks(y))))


class AutoencoderDC(nn.Module):
    """Both halves, as a checkpoint has them; `half` gives what is exported."""

    def __init__(self, config: DCConfig):
        super().__init__()
        self.encoder = DCEncoder(config)
        self.decoder = DCDecoder(config)

    def half(self, part: str) -> nn.Module:
        return DCEncoding(self) if part == "encoder" else DCDecoding(self)


class DCEncoding(nn.Module):
    def __init__(self, both: AutoencoderDC):
        super().__init__()
        self.encoder = both.encoder

    def forward(self, picture: Tensor) -> Tensor:
        """Picture [n, c, H, W] in [-1, 1] -> latent [n, latent_channels, h, w]."""
        return self.encoder(picture)


class DCDecoding(nn.Module):
    def __init__(self, both: AutoencoderDC):
        super().__init__()
        self.decoder = both.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [n, latent_channels, h, w] as the encoder gives it -> picture [n, c, H, W], about [-1, 1]."""
        return self.decoder(latent)
