"""The decoder of AutoencoderKLWan, the autoencoder of videos of Wan 2.1 and 2.2 (arXiv 2503.20314).

Convolutions in space and time see the frames before theirs and none behind, so that a video is decoded frame by frame of its
latent: each convolution keeps the last two frames that it has seen. The first frame of a latent becomes one of the video,
each other one as many as time is upsampled. Its parameters carry the names of diffusers' checkpoints. Written to be
compiled, like autoencoder.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class WanVAEConfig:
    """Shape of the decoder; `widths` are the channels of its levels, the full resolution first."""

    latent_channels: int = 16
    decoded_channels: int = 3
    widths: tuple[int, ...] = (96, 192, 384, 384)
    layers: int = 2
    time: tuple[bool, ...] = (False, True, True)  # which steps between levels change the number of frames, too
    residual: bool = False  # Wan 2.2: levels have shortcuts beside them
    patch: int = 1  # Wan 2.2: pixels a side of the picture that are channels of the last level

    @property
    def upsampling(self) -> int:
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def temporal_upsampling(self) -> int:
        return 2 ** sum(self.time)


class CausalConv(nn.Conv3d):
    """[n, width_in, f, h, w] -> [n, width_out, f, h, w], of each frame and the two before."""

    def __init__(self, width_in: int, width_out: int, side: int):
        super().__init__(width_in, width_out, (3, side, side))
        self.around = side // 2

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        """@history: a queue of the last frames that each convolution has seen. It takes its own, and leaves what is next."""
        x = torch.cat((self.nothing(x) if first else history.pop(0), x), 2)
        history.append(x[:, :, -2:].clone())
        return F.conv3d(x, self.weight, self.bias, padding=(0, self.around, self.around))

    def nothing(self, x: Tensor) -> Tensor:
        """What comes before the first frame."""
        return x.new_zeros((x.size(0), x.size(1), 2, x.size(3), x.size(4)))


class ChannelNorm(nn.Module):
    """[n, width, ...], each place by the root mean square of its channels."""

    def __init__(self, width: int, dims: int):
        super().__init__()
        self.scale = width**0.5
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.to(torch.float32), dim=1).to(x.dtype) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.norm1 = ChannelNorm(width_in, 3)
        self.conv1 = CausalConv(width_in, width_out, 3)
        self.norm2 = ChannelNorm(width_out, 3)
        self.conv2 = CausalConv(width_out, width_out, 3)
        self.conv_shortcut = nn.Conv3d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), history, first)
        y = self.conv2(F.silu(self.norm2(y)), history, first)
        return self.conv_shortcut(x) + y


class FrameAttention(nn.Module):
    """Attention of one head between the places of a frame."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = ChannelNorm(width, 2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)  # [n f, width, h, w]
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=3)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape_as(frames)
        return x + self.proj(y).unflatten(0, (x.size(0), x.size(2))).transpose(1, 2)


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(width)])
        self.resnets = nn.ModuleList(ResidualBlock(width, width) for _ in range(2))

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        x = self.resnets[0](x, history, first)
        return self.resnets[1](self.attentions[0](x), history, first)


class Upsample(nn.Module):
    """[n, width, f, h, w] -> [n, width_out, f or 2f, 2h, 2w]; the first frame stays one."""

    def __init__(self, width: int, width_out: int, time: bool):
        super().__init__()
        self.time_conv = CausalConv(width, 2 * width, 1) if time else None
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(width, width_out, 3, padding=1))

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        if self.time_conv is not None:
            if first:
                history.append(self.time_conv.nothing(x))  # the second frame does not see it
            else:
                y = self.time_conv(x, history, False).unflatten(1, (2, x.size(1)))
                x = y.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # [n, 2, width, f, h, w] -> [n, width, 2f, h, w]
        frames = self.resample(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.size(0), x.size(2))).transpose(1, 2)


class UpLevel(nn.Module):
    """Wan 2.1: the step to the next level halves the channels."""

    def __init__(self, width_in: int, width_out: int, layers: int, last: bool, time: bool):
        super().__init__()
        widths = [width_in] + [width_out] * (layers + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths, widths[1:]))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width_out, width_out // 2, time)])

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, history, first)
        for upsampler in self.upsamplers:
            x = upsampler(x, history, first)
        return x


class ResidualUpLevel(nn.Module):
    """Wan 2.2: the step keeps the channels, and beside the level channels become pixels and frames."""

    def __init__(self, width_in: int, width_out: int, layers: int, last: bool, time: bool):
        super().__init__()
        widths = [width_in] + [width_out] * (layers + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths, widths[1:]))
        self.upsampler = None if last else Upsample(width_out, width_out, time)
        self.width, self.frames = width_out, 2 if time else 1
        self.repeats = 4 * self.frames * width_out // width_in

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        y = x
        for resnet in self.resnets:
            y = resnet(y, history, first)
        if self.upsampler is not None:
            y = self.upsampler(y, history, first) + self.shortcut(x, first)
        return y

    def shortcut(self, x: Tensor, first: bool) -> Tensor:
        y = x.repeat_interleave(self.repeats, dim=1).unflatten(1, (self.width, self.frames, 2, 2))
        # [n, width, frames, 2, 2, f, h, w] -> [n, width, f frames, 2h, 2w]
        y = y.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return y[:, :, self.frames - 1 :] if first else y


class WanDecoder(nn.Module):
    """A slice of a latent [n, latent_channels, 1, h, w] -> its frames [n, decoded_channels patch patch, f, H / patch, W / patch]"""

    def __init__(self, config: WanVAEConfig):
        super().__init__()
        widths, times, last = config.widths[::-1], config.time[::-1], len(config.widths) - 1
        self.conv_in = CausalConv(config.latent_channels, widths[0], 3)
        self.mid_block = Middle(widths[0])
        self.up_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths)):
            time = i < last and times[i]
            if config.residual:
                self.up_blocks.append(ResidualUpLevel(before, width, config.layers, i == last, time))
            else:
                self.up_blocks.append(UpLevel(before // 2 if i else before, width, config.layers, i == last, time))
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = CausalConv(widths[-1], config.decoded_channels * config.patch**2, 3)

    def forward(self, x: Tensor, history: List[Tensor], first: bool) -> Tensor:
        x = self.mid_block(self.conv_in(x, history, first), history, first)
        for block in self.up_blocks:
            x = block(x, history, first)
        return self.conv_out(F.silu(self.norm_out(x)), history, first)


class AutoencoderKLWan(nn.Module):
    """The half that decodes; `without_encoder` leaves out the weights of the other."""

    def __init__(self, config: WanVAEConfig):
        super().__init__()
        self.config = config
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = WanDecoder(config)

    def half(self, part: str) -> nn.Module:
        assert part == "decoder"
        return WanDecoding(self)


def without_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("encoder.", "quant_conv."))}


class WanDecoding(nn.Module):
    def __init__(self, both: AutoencoderKLWan):
        super().__init__()
        self.post_quant_conv, self.decoder = both.post_quant_conv, both.decoder
        self.channels, self.patch = both.config.decoded_channels, both.config.patch
        self.space, self.time = both.config.upsampling, both.config.temporal_upsampling

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [n, latent_channels, f, h, w] as the encoder gives it -> video [n, c, time (f - 1) + 1, H, W] in [-1, 1]."""
        n, frames = latent.size(0), self.time * (latent.size(2) - 1) + 1
        video = latent.new_empty((n, self.channels, frames, self.space * latent.size(3), self.space * latent.size(4)))
        x = self.post_quant_conv(latent)
        history: List[Tensor] = []
        done = 0
        for f in range(latent.size(2)):
            part = self.pixels(self.decoder(x[:, :, f : f + 1], history, f == 0))
            video[:, :, done : done + part.size(2)] = part.clamp(-1.0, 1.0)
            done += part.size(2)
        return video

    def pixels(self, x: Tensor) -> Tensor:
        """[n, c patch patch, f, h, w] -> [n, c, f, patch h, patch w]; of the channels x is before y."""
        if self.patch == 1:
            return x
        y = x.unflatten(1, (self.channels, self.patch, self.patch))
        return y.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
