"""The U-Nets of diffusers: UNet2DConditionModel (Stable Diffusion 1 and 2, SDXL and what was distilled from them), alone or
with a ControlNet (Zhang et al. 2023, arXiv 2302.05543), and UNet2DModel (DDPM).

Their parameters carry the names of diffusers' checkpoints. `forward` takes x, t, and then class labels or conditions,
as many as the network has: `conditions` says which. It is written to be compiled by `torch.jit.script` and captured in
a CUDA graph: no arithmetic on tensor shapes ends up in a tensor, and nothing remembers the device or the dtype it was
built on. Batch and picture may be of any size.

`make_unet(config, deep_feature=True)` has it in parts, too: `forecast_embed`, `forecast_blocks` and `forecast_head`, one
after another, are `forward`. They are DeepCache's (Ma et al. 2023, arXiv 2312.00858) with its cache_branch_id of 0: what
the last residual block of the way up gets from below, the deep feature, changes slowly from step to step, and a sampler
that repeats or extrapolates it leaves out all that makes it. What remains is the first convolution, the embedding of the
time, the last residual block with its attention, and the last convolution. The levels on the way down are no part of
that: what that block gets from the side is what the first convolution made.
"""

import math
from dataclasses import dataclass
from types import FunctionType
from typing import Final, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoder import Downsample, SelfAttention


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a network. Of the levels, the full resolution is the first; `up_depths` alone is in the order of use.

    A depth is the number of transformer blocks behind one residual block. A level has one for each of its residual
    blocks, or none at all: it has no attention then.
    """

    channels: int  # of x, and of what comes out
    widths: tuple[int, ...]
    layers: tuple[int, ...]  # residual blocks on the way down; there is one more on the way up
    down_depths: tuple[tuple[int, ...], ...]
    up_depths: tuple[tuple[int, ...], ...]
    middle: str  # "attention" between two residual blocks, "two" of those, "one", or "none"
    middle_depth: int
    heads: tuple[int, ...]
    text_width: int = 0  # 0: attention is between places, by SelfAttention
    linear_projection: bool = False
    pooled_width: int = 0  # 0: no pooled embedding and no sizes
    size_ids: int = 6
    size_width: int = 256  # sinusoids of each size
    guidance_width: int = 0  # 0: the guidance scale is no input
    inpainting: bool = False
    num_labels: int = 0  # rows of the table of classes
    context_labels: int = 0  # rows of a table of classes that takes the place of a text, which is of one token then
    time_width: int = 1280
    freq_shift: float = 0
    cosines_first: bool = True
    groups: int = 32
    middle_groups: int = 32  # of the norm of SelfAttention
    eps: float = 1e-5
    downsample_padding: int = 1
    kernel_in: int = 3
    kernel_out: int = 3


@dataclass(frozen=True)
class ControlNetConfig:
    """Shape of a ControlNet. What has the names of a U-Net's parts is of one of this shape; its way up is not there."""

    unet: UNetConfig
    picture_channels: int = 3
    widths: tuple[int, ...] = (16, 32, 96, 256)  # of what makes a picture as small as x; each but the first halves it
    reversed_channels: bool = False  # whether it was trained on blue, green and red
    scale: float = 1.0  # of what it adds

    @property
    def pixels(self) -> int:
        """Of the picture's side for each of x."""
        return 2 ** (len(self.widths) - 1)


def sinusoids(t: Tensor, width: int, cosines_first: bool, shift: float) -> Tensor:
    """t [...] -> float32 [..., width]. In float32 whatever the weights are: the angles need its digits."""
    half = width // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) * -math.log(10000.0) / (half - shift)
    angles = t.to(torch.float32).unsqueeze(-1) * exponents.exp()
    if cosines_first:
        return torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Embedding(nn.Module):
    """[n, width_in] -> [n, width]: a two-layer MLP. The guidance scale's embedding joins at its input."""

    def __init__(self, width_in: int, width: int, guidance_width: int = 0):
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)
        self.cond_proj = nn.Linear(guidance_width, width_in, bias=False) if guidance_width else None

    def forward(self, x: Tensor, guidance: Optional[Tensor] = None) -> Tensor:
        x = x.to(self.linear_1.weight.dtype)
        if self.cond_proj is not None:
            assert guidance is not None
            x = x + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """x [n, width_in, h, w], c [n, time_width] (the time embedding after SiLU) -> [n, width_out, h, w]"""

    def __init__(self, width_in: int, width_out: int, config: UNetConfig):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, width_in, eps=config.eps)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_width, width_out)
        self.norm2 = nn.GroupNorm(config.groups, width_out, eps=config.eps)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(c).unsqueeze(-1).unsqueeze(-1)
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class CrossAttention(nn.Module):
    """Attention of x [n, places, width] to `source` [n, tokens, source_width].

    Checkpoints may ask for attention in float32 (upcast_attention). There is nothing to do for that:
    scaled_dot_product_attention adds up and takes the softmax in float32 whatever its inputs are.
    """

    def __init__(self, width: int, source_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def split(self, x: Tensor) -> Tensor:
        """[n, tokens, width] -> [n, heads, tokens, head_width]"""
        return x.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(source)), self.split(self.to_v(source))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        # The middle one is where a checkpoint counts its dropout.
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention between places, attention to the text, and an MLP, each added to its input."""

    def __init__(self, width: int, text_width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = CrossAttention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = CrossAttention(width, text_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """x [n, width, h, w], text [n, tokens, text_width] -> [n, width, h, w]"""

    def __init__(self, width: int, heads: int, depth: int, config: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if config.linear_projection else nn.Conv2d(width, width, 1)
        blocks = [TransformerBlock(width, config.text_width, heads) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(width, width) if config.linear_projection else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Optional[Tensor]) -> Tensor:
        assert text is not None
        # A convolution over one place is a matrix product, so that both kinds of projection are the same here.
        places = self.norm(x).flatten(2).transpose(1, 2)
        places = F.linear(places, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            places = block(places, text)
        places = F.linear(places, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + places.transpose(1, 2).reshape_as(x)


class NoAttention(nn.Module):
    def forward(self, x: Tensor, text: Optional[Tensor]) -> Tensor:
        return x


def make_attention(width: int, heads: int, depth: int, groups: int, config: UNetConfig) -> nn.Module:
    if config.text_width:
        return Transformer(width, heads, depth, config)
    return SelfAttention(width, heads, groups, config.eps)


class Upsample(nn.Module):
    """Doubles the picture, or as near as the picture that it joins is: the half of an odd size was rounded up."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, size=like.shape[2:], mode="nearest"))


class DownLevel(nn.Module):
    def __init__(self, width_in: int, level: int, config: UNetConfig):
        super().__init__()
        width, heads, depths = config.widths[level], config.heads[level], config.down_depths[level]
        widths = [width_in] + [width] * config.layers[level]
        self.resnets = nn.ModuleList(ResnetBlock(a, b, config) for a, b in zip(widths, widths[1:]))
        attentions = [make_attention(width, heads, depth, config.groups, config) for depth in depths]
        self.attentions = nn.ModuleList(attentions or [NoAttention() for _ in self.resnets])
        last = level == len(config.widths) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, config.downsample_padding)])

    def forward(self, x: Tensor, c: Tensor, text: Optional[Tensor], skips: list[Tensor]) -> Tensor:
        """Puts what the way up needs at the end of `skips`."""
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(x, c), text)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        width, count = config.widths[-1], 1 if config.middle == "one" else 2
        self.resnets = nn.ModuleList(ResnetBlock(width, width, config) for _ in range(count))
        attentions: list[nn.Module] = [NoAttention() for _ in range(count)]
        if config.middle == "attention":
            heads, depth, groups = config.heads[-1], config.middle_depth, config.middle_groups
            attentions[0] = make_attention(width, heads, depth, groups, config)
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor, c: Tensor, text: Optional[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(x, c), text)
        return x


class UpLevel(nn.Module):
    """`level` counts from the lowest resolution. What the last one does at its end is `UNet.head`'s."""

    taken: Final[int]

    def __init__(self, width_in: int, level: int, config: UNetConfig):
        super().__init__()
        widths, last = config.widths[::-1], len(config.widths) - 1
        width, heads, depths = widths[level], config.heads[::-1][level], config.up_depths[level]
        count = config.layers[::-1][level] + 1
        # What joins was made by this level on the way down, but for the first thing there, which came from above it.
        joins = [width] * (count - 1) + [widths[min(level + 1, last)]]
        befores = [width_in] + [width] * (count - 1)
        self.resnets = nn.ModuleList(ResnetBlock(a + b, width, config) for a, b in zip(befores, joins))
        attentions = [make_attention(width, heads, depth, config.groups, config) for depth in depths]
        self.attentions = nn.ModuleList(attentions or [NoAttention() for _ in self.resnets])
        self.upsamplers = nn.ModuleList([] if level == last else [Upsample(width)])
        self.taken = count - 1 if level == last else count

    def forward(self, x: Tensor, c: Tensor, text: Optional[Tensor], skips: list[Tensor]) -> Tensor:
        """Takes from the end of `skips` what joins here."""
        # TorchScript has no slices of these lists that it could call.
        for k, (resnet, attention) in enumerate(zip(self.resnets, self.attentions)):
            if k < self.taken:
                x = attention(resnet(torch.cat([x, skips.pop()], dim=1), c), text)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1])
        return x

    def last(self, x: Tensor, c: Tensor, text: Optional[Tensor], skip: Tensor) -> Tensor:
        """Its last residual block, with its attention."""
        return self.attentions[-1](self.resnets[-1](torch.cat([x, skip], dim=1), c), text)


class WayDown(nn.Module):
    """What U-Nets and ControlNets have in common: embeddings, the levels on the way down, and the middle."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        widths, time_width = config.widths, config.time_width
        self.base_width = widths[0]
        self.size_width = config.size_width
        self.cosines_first = config.cosines_first
        self.freq_shift = float(config.freq_shift)

        channels_in = 2 * config.channels + 1 if config.inpainting else config.channels
        self.conv_in = nn.Conv2d(channels_in, widths[0], config.kernel_in, padding=config.kernel_in // 2)
        self.time_embedding = Embedding(widths[0], time_width, config.guidance_width)
        added_width = config.pooled_width + config.size_ids * config.size_width
        self.add_embedding = Embedding(added_width, time_width) if config.pooled_width else None
        self.class_embedding = nn.Embedding(config.num_labels, time_width) if config.num_labels else None

        down = enumerate((widths[0], *widths[:-1]))
        self.down_blocks = nn.ModuleList(DownLevel(width_in, level, config) for level, width_in in down)
        self.mid_block = Middle(config) if config.middle != "none" else None

    def embedded(
        self,
        x: Tensor,
        t: Tensor,
        labels: Optional[Tensor] = None,
        text: Optional[Tensor] = None,
        pooled: Optional[Tensor] = None,
        size_ids: Optional[Tensor] = None,
        guidance: Optional[Tensor] = None,
    ) -> list[Tensor]:
        """What the other parts take: x behind the first convolution, [n, width, h, w], the embedding of all that is one
        vector, [n, time_width], and text where there is any.

        x [n, channels, h, w] in the weights' dtype, and the inpainting mask and picture behind it; t [n] timesteps,
        int64 or floating; labels [n] int64; text [n, tokens, text_width]; pooled [n, pooled_width]; size_ids [n, 6];
        guidance [n, guidance_width], sinusoids of the guidance scale.
        """
        c = self.time_embedding(sinusoids(t, self.base_width, self.cosines_first, self.freq_shift), guidance)
        if self.class_embedding is not None:
            assert labels is not None
            c = c + self.class_embedding(labels)
        if self.add_embedding is not None:
            assert pooled is not None and size_ids is not None
            sizes = sinusoids(size_ids, self.size_width, self.cosines_first, self.freq_shift).flatten(1)
            c = c + self.add_embedding(torch.cat([pooled, sizes.to(pooled.dtype)], dim=1))
        parts = [self.conv_in(x), F.silu(c)]  # which is what every residual block does first
        if text is not None:
            parts.append(text)
        return parts

    def down_and_middle(self, x: Tensor, c: Tensor, text: Optional[Tensor], skips: list[Tensor]) -> Tensor:
        """Puts what the way up needs at the end of `skips`, which begins with x."""
        skips.append(x)
        for down in self.down_blocks:
            x = down(x, c, text, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, c, text)
        return x


def skip_widths(config: UNetConfig) -> list[int]:
    """Of what `down_and_middle` puts into `skips`."""
    widths = [config.widths[0]]
    for level, (width, layers) in enumerate(zip(config.widths, config.layers)):
        widths += [width] * (layers + (level < len(config.widths) - 1))
    return widths


class PictureEmbedding(nn.Module):
    """[n, channels, 8h, 8w] -> [n, width, h, w], for four widths"""

    def __init__(self, config: ControlNetConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.picture_channels, widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for before, width in zip(widths, widths[1:]):
            blocks += [nn.Conv2d(before, before, 3, padding=1), nn.Conv2d(before, width, 3, padding=1, stride=2)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = nn.Conv2d(widths[-1], config.unet.widths[0], 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        x = F.silu(self.conv_in(picture))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(WayDown):
    """A U-Net's way down that has seen a picture, too, and tells what it makes of it to the one that draws."""

    def __init__(self, config: ControlNetConfig):
        super().__init__(config.unet)
        self.scale, self.reversed_channels, self.pixels = float(config.scale), config.reversed_channels, config.pixels
        self.controlnet_cond_embedding = PictureEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in skip_widths(config.unet))
        last = config.unet.widths[-1]
        self.controlnet_mid_block = nn.Conv2d(last, last, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        picture: Tensor,
        pooled: Optional[Tensor] = None,
        size_ids: Optional[Tensor] = None,
    ) -> list[Tensor]:
        """What is added to each of the U-Net's `skips`, and last to what comes out of its middle.

        As `embedded`; picture [n, channels, 8h, 8w] in [0, 1].
        """
        assert picture.size(2) == self.pixels * x.size(2) and picture.size(3) == self.pixels * x.size(3), "controlnet_cond must be as large as the picture that x becomes"
        embedded = self.embedded(x, t, text=text, pooled=pooled, size_ids=size_ids)
        picture = picture.flip(1) if self.reversed_channels else picture
        skips: list[Tensor] = []
        x = self.down_and_middle(embedded[0] + self.controlnet_cond_embedding(picture), embedded[1], text, skips)
        added: list[Tensor] = []
        for k, block in enumerate(self.controlnet_down_blocks):
            added.append(block(skips[k]) * self.scale)
        added.append(self.controlnet_mid_block(x) * self.scale)
        return added


class UNet(WayDown):
    """All of it but `forward`, whose arguments depend on the config: `make_unet` picks the class below that fits."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        widths = config.widths
        up = enumerate((widths[-1], *widths[:0:-1]))
        self.up_blocks = nn.ModuleList(UpLevel(width_in, level, config) for level, width_in in up)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=config.eps)
        self.conv_out = nn.Conv2d(widths[0], config.channels, config.kernel_out, padding=config.kernel_out // 2)

    def blocks(self, embedded: list[Tensor]) -> Tensor:
        """The deep feature, [n, width, h, w]: what the last residual block gets from below."""
        c, text = embedded[1], text_of(embedded)
        skips: list[Tensor] = []
        x = self.down_and_middle(embedded[0], c, text, skips)
        for up in self.up_blocks:
            x = up(x, c, text, skips)
        return x

    def head(self, embedded: list[Tensor], feature: Tensor) -> Tensor:
        """The prediction, [n, channels, h, w] in the weights' dtype."""
        x = self.up_blocks[-1].last(feature, embedded[1], text_of(embedded), embedded[0])
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def predict(self, embedded: list[Tensor]) -> Tensor:
        return self.head(embedded, self.blocks(embedded))


def text_of(embedded: list[Tensor]) -> Optional[Tensor]:
    return embedded[2] if len(embedded) > 2 else None


class Unconditional(UNet):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.predict(self.embed(x, t))

    def embed(self, x: Tensor, t: Tensor) -> list[Tensor]:
        return self.embedded(x, t)


class ClassConditional(UNet):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.predict(self.embed(x, t, labels))

    def embed(self, x: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
        return self.embedded(x, t, labels=labels)


class TextConditional(UNet):
    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding))

    def embed(self, x: Tensor, t: Tensor, text_embedding: Tensor) -> list[Tensor]:
        return self.embedded(x, t, text=text_embedding)


class ClassContext(UNet):
    """Latent diffusion's (Rombach et al. 2022, arXiv 2112.10752) for classes: attention to a class as to a text."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        self.class_context = nn.Embedding(config.context_labels, config.text_width)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.predict(self.embed(x, t, labels))

    def embed(self, x: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
        return self.embedded(x, t, text=self.class_context(labels).unsqueeze(1))


class TextGuided(UNet):
    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, guidance_embedding: Tensor) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding, guidance_embedding))

    def embed(self, x: Tensor, t: Tensor, text_embedding: Tensor, guidance_embedding: Tensor) -> list[Tensor]:
        return self.embedded(x, t, text=text_embedding, guidance=guidance_embedding)


class TextInpainting(UNet):
    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, mask: Tensor, masked_latents: Tensor) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding, mask, masked_latents))

    def embed(self, x: Tensor, t: Tensor, text_embedding: Tensor, mask: Tensor, masked_latents: Tensor) -> list[Tensor]:
        return self.embedded(torch.cat([x, mask, masked_latents], dim=1), t, text=text_embedding)


class XL(UNet):
    def forward(
        self, x: Tensor, t: Tensor, text_embedding: Tensor, pooled_embedding: Tensor, size_ids: Tensor
    ) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding, pooled_embedding, size_ids))

    def embed(
        self, x: Tensor, t: Tensor, text_embedding: Tensor, pooled_embedding: Tensor, size_ids: Tensor
    ) -> list[Tensor]:
        return self.embedded(x, t, text=text_embedding, pooled=pooled_embedding, size_ids=size_ids)


class XLGuided(UNet):
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_embedding: Tensor,
        pooled_embedding: Tensor,
        size_ids: Tensor,
        guidance_embedding: Tensor,
    ) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding, pooled_embedding, size_ids, guidance_embedding))

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        text_embedding: Tensor,
        pooled_embedding: Tensor,
        size_ids: Tensor,
        guidance_embedding: Tensor,
    ) -> list[Tensor]:
        return self.embedded(
            x, t, text=text_embedding, pooled=pooled_embedding, size_ids=size_ids, guidance=guidance_embedding
        )


class XLInpainting(UNet):
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_embedding: Tensor,
        pooled_embedding: Tensor,
        size_ids: Tensor,
        mask: Tensor,
        masked_latents: Tensor,
    ) -> Tensor:
        return self.predict(self.embed(x, t, text_embedding, pooled_embedding, size_ids, mask, masked_latents))

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        text_embedding: Tensor,
        pooled_embedding: Tensor,
        size_ids: Tensor,
        mask: Tensor,
        masked_latents: Tensor,
    ) -> list[Tensor]:
        x = torch.cat([x, mask, masked_latents], dim=1)
        return self.embedded(x, t, text=text_embedding, pooled=pooled_embedding, size_ids=size_ids)


class Controlled(UNet):
    def __init__(self, config: UNetConfig, controlnet: ControlNetConfig):
        super().__init__(config)
        self.controlnet = ControlNet(controlnet)

    def predict_with(self, embedded: list[Tensor], added: list[Tensor]) -> Tensor:
        """`predict`, with what a ControlNet adds."""
        c, text = embedded[1], text_of(embedded)
        skips: list[Tensor] = []
        x = self.down_and_middle(embedded[0], c, text, skips) + added[-1]
        for k in range(len(skips)):
            skips[k] = skips[k] + added[k]
        parts = [skips[0]] + embedded[1:]
        for up in self.up_blocks:
            x = up(x, c, text, skips)
        return self.head(parts, x)


class ControlledText(Controlled):
    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, controlnet_cond: Tensor) -> Tensor:
        added = self.controlnet(x, t, text_embedding, controlnet_cond)
        return self.predict_with(self.embedded(x, t, text=text_embedding), added)


class ControlledXL(Controlled):
    """@told: whether the ControlNet is told what the U-Net is told beside the text."""

    told: Final[bool]

    def __init__(self, config: UNetConfig, controlnet: ControlNetConfig):
        super().__init__(config, controlnet)
        self.told = controlnet.unet.pooled_width > 0

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_embedding: Tensor,
        pooled_embedding: Tensor,
        size_ids: Tensor,
        controlnet_cond: Tensor,
    ) -> Tensor:
        if self.told:
            added = self.controlnet(x, t, text_embedding, controlnet_cond, pooled_embedding, size_ids)
        else:
            added = self.controlnet(x, t, text_embedding, controlnet_cond)
        embedded = self.embedded(x, t, text=text_embedding, pooled=pooled_embedding, size_ids=size_ids)
        return self.predict_with(embedded, added)


# By what a network has beside x and t: text, pooled text and sizes, guidance, inpainting.
CLASSES = {
    (True, False, False, False): TextConditional,
    (True, False, True, False): TextGuided,
    (True, False, False, True): TextInpainting,
    (True, True, False, False): XL,
    (True, True, True, False): XLGuided,
    (True, True, False, True): XLInpainting,
}


def make_unet(config: UNetConfig, deep_feature: bool = False, controlnet: ControlNetConfig | None = None) -> UNet:
    """@deep_feature: whether it has `forecast_embed`, `forecast_blocks` and `forecast_head`; it has no ControlNet then."""
    if controlnet:
        return (ControlledXL if config.pooled_width else ControlledText)(config, controlnet)
    if config.context_labels:
        kind = ClassContext
    elif config.text_width:
        kind = CLASSES[True, config.pooled_width > 0, config.guidance_width > 0, config.inpainting]
    else:
        kind = ClassConditional if config.num_labels else Unconditional
    if deep_feature:
        # Under the names that loaders look for. A file has all methods that `forward` calls, so that these names cannot
        # be those of every network.
        parts = (kind.embed, kind.blocks, kind.head)
        named = {f"forecast_{part.__name__}": torch.jit.export(copied(part)) for part in parts}
        kind = type(kind.__name__, (kind,), {**named, "__module__": __name__})
    return kind(config)


def copied(function: FunctionType) -> FunctionType:
    """For `torch.jit.export`, which marks the function that it gets."""
    other = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    other.__annotations__ = dict(function.__annotations__)
    return other


def conditions(
    config: UNetConfig, height: int | None, width: int | None, tokens: int | None, controlnet: ControlNetConfig | None = None
) -> list[tuple[str, list[int | None]]]:
    """Name and sizes for one picture of what `forward` takes after x, t and labels; None where any size will do."""
    found: list[tuple[str, list[int | None]]] = []
    if config.text_width and not config.context_labels:
        found.append(("text_embedding", [tokens, config.text_width]))
    if config.pooled_width:
        found += [("pooled_embedding", [config.pooled_width]), ("size_ids", [config.size_ids])]
    if config.guidance_width:
        found.append(("guidance_embedding", [config.guidance_width]))
    if config.inpainting:
        found += [("mask", [1, height, width]), ("masked_latents", [config.channels, height, width])]
    if controlnet:
        sides = [side and controlnet.pixels * side for side in (height, width)]
        found.append(("controlnet_cond", [controlnet.picture_channels, *sides]))
    return found
