"""The transformer of PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692), conditioned on text.

A diffusion transformer with attention to the text in each block, and with one modulation by the timestep that all
blocks share, each adding a table of its own (adaLN-single). The parameters carry the names of diffusers' checkpoints.

`forward` takes x, t, and then what `conditions` lists. It is written to be compiled by `torch.jit.script` and captured
in a CUDA graph: no arithmetic on tensor shapes ends up in a tensor, what is done does not depend on what the tensors
hold, and nothing remembers the device or the dtype it was built on. Batch, picture and text may be of any size.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit import position_table
from unet import Embedding, sinusoids


@dataclass(frozen=True)
class PixArtConfig:
    """Shape of a network."""

    channels: int = 4
    size: int = 128  # of the latent that the network was made for; it sets what positions are counted in
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    text_width: int = 4096
    projected: bool = True  # the text goes through an MLP before all blocks; else each block takes it as it comes
    learned_variance: bool = True
    sizes: bool = True  # resolution and aspect ratio are inputs
    position_scale: float = 2.0  # positions are divided by it
    attention_bias: bool = True
    affine_norms: bool = False  # of the blocks
    norm_eps: float = 1e-6  # of the blocks

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learned_variance else 1)


class PatchEmbed(nn.Module):
    """[n, channels, h, w] -> [n, tokens, width], tokens in row-major order, each with its position.

    Positions run from 0 to where they ended in the network's training, in a picture of any size.
    """

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.patch = config.patch
        self.width = config.width
        self.grid = config.size // config.patch
        self.position_scale = float(config.position_scale)
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def positions(self, x: Tensor) -> Tensor:
        """float32 [1, tokens, width]"""
        rows, columns = x.size(2) // self.patch, x.size(3) // self.patch
        return position_table(rows, columns, self.grid, self.position_scale, self.width, x)

    def forward(self, x: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over patches, and runs as one.
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [n, tokens, channels * patch * patch]
        tokens = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        return tokens + self.positions(x).to(tokens.dtype)


def waves(values: Tensor) -> Tensor:
    """[...] -> float32 [..., 256]: cosines and sines of a timestep, a height, a width or an aspect ratio."""
    return sinusoids(values, 256, True, 0.0)


class TimeEmbedding(nn.Module):
    """t [n] -> [n, width]. Of the sizes each embeds a third: height, width and aspect ratio."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        third = config.width // 3
        self.timestep_embedder = Embedding(256, config.width)
        self.resolution_embedder = Embedding(256, third) if config.sizes else None
        self.aspect_ratio_embedder = Embedding(256, third) if config.sizes else None

    def forward(self, t: Tensor, resolution: Optional[Tensor], aspect_ratio: Optional[Tensor]) -> Tensor:
        c = self.timestep_embedder(waves(t))
        if self.resolution_embedder is not None and self.aspect_ratio_embedder is not None:
            assert resolution is not None and aspect_ratio is not None
            of_sides = self.resolution_embedder(waves(resolution)).flatten(1)
            of_ratio = self.aspect_ratio_embedder(waves(aspect_ratio)).flatten(1)
            c = c + torch.cat([of_sides, of_ratio], dim=1)
        return c


class AdaNormSingle(nn.Module):
    """The timestep's embedding [n, width], and what of it modulates every block, [n, 6, width]."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.width = config.width
        self.emb = TimeEmbedding(config)
        self.linear = nn.Linear(config.width, 6 * config.width)

    def forward(
        self, t: Tensor, resolution: Optional[Tensor], aspect_ratio: Optional[Tensor]
    ) -> tuple[Tensor, Tensor]:
        c = self.emb(t, resolution, aspect_ratio)
        return c, self.linear(F.silu(c)).unflatten(1, (6, self.width))


class TextProjection(nn.Module):
    def __init__(self, text_width: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(text_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Optional[Tensor]  # [out]


class AttentionWeights(NamedTuple):
    q: Linear
    k: Linear
    v: Linear
    out: Linear


class BlockWeights(NamedTuple):
    scale_shift_table: Tensor  # [6, width]
    norm1: tuple[Optional[Tensor], Optional[Tensor]]
    norm2: tuple[Optional[Tensor], Optional[Tensor]]
    attn1: AttentionWeights
    attn2: AttentionWeights
    ff1: Linear
    ff2: Linear


def linear(x: Tensor, w: Linear) -> Tensor:
    return F.linear(x, w.weight, w.bias)


def attend(x: Tensor, source: Tensor, mask: Optional[Tensor], w: AttentionWeights, heads: int) -> Tensor:
    """Attention of x [n, places, width] to `source` [n, tokens, source_width]; `mask` joins the scores.

    Checkpoints may ask for attention in float32 (upcast_attention). There is nothing to do for that:
    scaled_dot_product_attention adds up and takes the softmax in float32 whatever its inputs are.
    """
    split = (heads, x.size(2) // heads)  # [n, tokens, width] -> [n, heads, tokens, head width]
    q = linear(x, w.q).unflatten(2, split).transpose(1, 2)
    k = linear(source, w.k).unflatten(2, split).transpose(1, 2)
    v = linear(source, w.v).unflatten(2, split).transpose(1, 2)
    return linear(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2), w.out)


def transform(
    x: Tensor, c: Tensor, text: Tensor, mask: Tensor, w: BlockWeights, heads: int, norm_eps: float
) -> Tensor:
    """A block: attention between places, attention to the text, and an MLP, each added to its input.

    The first and the last are shifted, scaled and gated by c [n, 6, width]. The one in between has neither that nor a
    norm.
    """
    width = (x.size(2),)
    # Each [n, 1, width].
    shift1, scale1, gate1, shift2, scale2, gate2 = (w.scale_shift_table + c).chunk(6, dim=1)
    y = F.layer_norm(x, width, w.norm1[0], w.norm1[1], norm_eps) * (1 + scale1) + shift1
    x = x + gate1 * attend(y, y, None, w.attn1, heads)
    x = x + attend(x, text, mask, w.attn2, heads)
    y = F.layer_norm(x, width, w.norm2[0], w.norm2[1], norm_eps) * (1 + scale2) + shift2
    return x + gate2 * linear(F.gelu(linear(y, w.ff1), approximate="tanh"), w.ff2)


class Attention(nn.Module):
    def __init__(self, config: PixArtConfig, source_width: int):
        super().__init__()
        width, bias = config.width, config.attention_bias
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(source_width, width, bias=bias)
        self.to_v = nn.Linear(source_width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def weights(self) -> AttentionWeights:
        q, k, v, out = self.to_q, self.to_k, self.to_v, self.to_out[0]
        return AttentionWeights(
            Linear(q.weight, q.bias), Linear(k.weight, k.bias), Linear(v.weight, v.bias), Linear(out.weight, out.bias)
        )


class Projection(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        # The middle one is where a checkpoint counts its dropout.
        self.net = nn.ModuleList([Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])


class Block(nn.Module):
    """What `transform` needs of a block, under the names of diffusers' checkpoints."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        width, eps, affine = config.width, config.norm_eps, config.affine_norms
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=affine)
        self.attn1 = Attention(config, width)
        self.attn2 = Attention(config, width if config.projected else config.text_width)
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=affine)
        self.ff = FeedForward(width)

    def weights(self) -> BlockWeights:
        ff1, ff2 = self.ff.net[0].proj, self.ff.net[2]
        return BlockWeights(
            self.scale_shift_table, (self.norm1.weight, self.norm1.bias), (self.norm2.weight, self.norm2.bias),
            self.attn1.weights(), self.attn2.weights(), Linear(ff1.weight, ff1.bias), Linear(ff2.weight, ff2.bias),
        )  # fmt: skip


class PixArt(nn.Module):
    """All but `forward`, whose arguments depend on the config: `make_pixart` picks the class below that fits."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        width = config.width
        self.patch = config.patch
        self.heads = config.heads
        self.norm_eps = config.norm_eps
        self.out_channels = config.out_channels

        self.pos_embed = PatchEmbed(config)
        self.adaln_single = AdaNormSingle(config)
        self.caption_projection = TextProjection(config.text_width, width) if config.projected else nn.Identity()
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(width, config.patch**2 * config.out_channels)

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        resolution: Optional[Tensor] = None,
        aspect_ratio: Optional[Tensor] = None,
    ) -> list[Tensor]:
        """What the blocks begin with, [n, tokens, width], and what they and the head need besides.

        x [n, channels, h, w] in the weights' dtype; t [n] timesteps, int64 or floating; text [n, tokens, text_width];
        text_mask [n, tokens], 1 where there is text and 0 behind it; resolution [n, 2], the picture's height and width
        in pixels; aspect_ratio [n, 1], height / width.
        """
        tokens = self.pos_embed(x)
        c, modulation = self.adaln_single(t, resolution, aspect_ratio)
        # Joins the scores, [n, 1, 1, tokens]. float16 holds the number, and its exponential is 0. Of a row without any
        # text the softmax is still one, where with minus infinity it would be nan.
        mask = ((1 - text_mask.to(tokens.dtype)) * -10000.0).unsqueeze(1).unsqueeze(1)
        return [tokens, modulation, self.caption_projection(text), mask, c, x]

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the head begins with, [n, tokens, width]."""
        tokens, modulation, text, mask = embedded[:4]
        # Over tensors: a loop over modules TorchScript would write out, and compile the fused kernels of every block by
        # themselves, for seconds.
        for weights in [block.weights() for block in self.transformer_blocks]:
            tokens = transform(tokens, modulation, text, mask, weights, self.heads, self.norm_eps)
        return tokens

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        """The prediction, [n, out_channels, h, w] in the weights' dtype; with learned variance that is its second half."""
        c, x = embedded[4], embedded[5]
        shift, scale = (self.scale_shift_table + c.unsqueeze(1)).chunk(2, dim=1)
        patches = self.proj_out(self.norm_out(tokens) * (1 + scale) + shift)
        patches = patches.unflatten(2, (self.patch, self.patch, self.out_channels))
        patches = patches.unflatten(1, (x.size(2) // self.patch, x.size(3) // self.patch))
        # [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class TextConditional(PixArt):
    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor) -> Tensor:
        embedded = self.forecast_embed(x, t, text_embedding, text_mask)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor) -> list[Tensor]:
        return self.embed(x, t, text_embedding, text_mask)


class TextAndSizeConditional(PixArt):
    def forward(
        self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor, resolution: Tensor, aspect_ratio: Tensor
    ) -> Tensor:
        embedded = self.forecast_embed(x, t, text_embedding, text_mask, resolution, aspect_ratio)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(
        self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor, resolution: Tensor, aspect_ratio: Tensor
    ) -> list[Tensor]:
        return self.embed(x, t, text_embedding, text_mask, resolution, aspect_ratio)


def make_pixart(config: PixArtConfig) -> PixArt:
    return TextAndSizeConditional(config) if config.sizes else TextConditional(config)


def conditions(config: PixArtConfig, tokens: int | None) -> list[tuple[str, str, list[int | None]]]:
    """Name, type and sizes for one picture of what `forward` takes after x and t; None where any size will do."""
    found: list[tuple[str, str, list[int | None]]] = [
        ("text_embedding", "float", [tokens, config.text_width]),
        ("text_mask", "int64", [tokens]),
    ]
    if config.sizes:
        found += [("resolution", "float", [2]), ("aspect_ratio", "float", [1])]
    return found
