"""The transformer of Sana (arXiv 2410.10629), conditioned on text.

A diffusion transformer whose attention between places is linear in their number, with convolutions in its MLPs, and with
one modulation by the timestep that all blocks share, each adding a table of its own. It has no position embedding: the
convolutions see where places are. The parameters carry the names of diffusers' checkpoints.

`forward` takes x, t, and then what `conditions` lists. It is written to be compiled by `torch.jit.script` and captured
in a CUDA graph: no arithmetic on tensor shapes ends up in a tensor, what is done does not depend on what the tensors
hold, and nothing remembers the device or the dtype it was built on. Batch, picture and text may be of any size.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart import AdaNormSingle, Linear, TextProjection, linear
from sd3 import Dense, RMSNorm, normed


@dataclass(frozen=True)
class SanaConfig:
    """Shape of a network."""

    channels: int = 32
    size: int = 32  # of the latent that the network was made for
    patch: int = 1
    width: int = 2240
    depth: int = 20
    heads: int = 70
    cross_heads: int = 20
    cross_width: int = 2240  # of the text as blocks take it
    cross_inner: int = 2240  # of all heads of the attention to it
    text_width: int = 2304
    mlp_ratio: float = 2.5
    attention_bias: bool = False
    affine_norm: bool = False  # before the MLPs
    norm_eps: float = 1e-6
    qk_norm: bool = False  # of queries and keys, over all heads, by their root mean square
    sizes: bool = False  # as AdaNormSingle reads it


class Convolution(NamedTuple):
    weight: Tensor
    bias: Optional[Tensor]


class AttentionWeights(NamedTuple):
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    norm_q: Optional[Tensor]
    norm_k: Optional[Tensor]


class BlockWeights(NamedTuple):
    table: Tensor  # [6, width]
    attn1: AttentionWeights
    attn2: AttentionWeights
    norm2: tuple[Optional[Tensor], Optional[Tensor]]
    inverted: Convolution
    depth: Convolution
    point: Convolution


def rms_norm(x: Tensor, weight: Optional[Tensor]) -> Tensor:
    """Over all channels, in float32."""
    if weight is None:
        return x
    y = x.to(torch.float32)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).to(weight.dtype) * weight


def attend_linearly(x: Tensor, w: AttentionWeights, heads: int) -> Tensor:
    """Each place's mean of all values, weighted by its query times their keys, both without what is negative; in float32."""
    split = (heads, x.size(2) // heads)
    # [n, heads, tokens, head width]
    q = F.relu(rms_norm(linear(x, w.q), w.norm_q)).unflatten(2, split).transpose(1, 2).to(torch.float32)
    k = F.relu(rms_norm(linear(x, w.k), w.norm_k)).unflatten(2, split).transpose(1, 2).to(torch.float32)
    v = linear(x, w.v).unflatten(2, split).transpose(1, 2).to(torch.float32)
    sums = torch.matmul(q, torch.matmul(k.transpose(2, 3), v))
    weights = torch.matmul(q, k.sum(2).unsqueeze(3))
    y = linear((sums / (weights + 1e-15)).transpose(1, 2).flatten(2).to(x.dtype), w.out)
    return y.clip(-65504.0, 65504.0) if x.dtype == torch.float16 else y


def attend(x: Tensor, text: Tensor, mask: Tensor, w: AttentionWeights, heads: int) -> Tensor:
    """Attention of x [n, tokens, width] to the text [n, text tokens, cross_width]; `mask` joins the scores."""
    q = rms_norm(linear(x, w.q), w.norm_q).unflatten(2, (heads, -1)).transpose(1, 2)
    k = rms_norm(linear(text, w.k), w.norm_k).unflatten(2, (heads, -1)).transpose(1, 2)
    v = linear(text, w.v).unflatten(2, (heads, -1)).transpose(1, 2)
    return linear(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2), w.out)


def mix(x: Tensor, w: BlockWeights, rows: int, columns: int) -> Tensor:
    """The MLP, with a convolution over places between its layers and a gate."""
    y = x.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    y = F.silu(F.conv2d(y, w.inverted.weight, w.inverted.bias))
    value, gate = F.conv2d(y, w.depth.weight, w.depth.bias, padding=1, groups=y.size(1)).chunk(2, dim=1)
    return F.conv2d(value * F.silu(gate), w.point.weight, w.point.bias).flatten(2).transpose(1, 2)


def transform(
    x: Tensor, c: Tensor, text: Tensor, mask: Tensor, w: BlockWeights, heads: int, cross_heads: int, eps: float,
    rows: int, columns: int,
) -> Tensor:  # fmt: skip
    """A block: attention between places, attention to the text, and an MLP, each added to its input."""
    width = (x.size(2),)
    # Each [n, 1, width].
    shift1, scale1, gate1, shift2, scale2, gate2 = (w.table + c).chunk(6, dim=1)
    y = F.layer_norm(x, width, None, None, eps) * (1 + scale1) + shift1
    x = x + gate1 * attend_linearly(y, w.attn1, heads)
    x = x + attend(x, text, mask, w.attn2, cross_heads)
    y = F.layer_norm(x, width, w.norm2[0], w.norm2[1], eps) * (1 + scale2) + shift2
    return x + gate2 * mix(y, w, rows, columns)


class Attention(nn.Module):
    def __init__(self, width: int, source: int, inner: int, bias: bool, qk_norm: bool):
        super().__init__()
        self.to_q = Dense(width, inner, bias=bias)
        self.to_k, self.to_v = (Dense(source, inner, bias=bias) for _ in range(2))
        self.to_out = nn.Sequential(Dense(inner, width))
        self.norm_q, self.norm_k = (RMSNorm(inner) if qk_norm else None for _ in range(2))

    def weights(self) -> AttentionWeights:
        return AttentionWeights(
            self.to_q.tensors(),
            self.to_k.tensors(),
            self.to_v.tensors(),
            self.to_out[0].tensors(),
            self.norm_q.weight if self.norm_q is not None else None,
            self.norm_k.weight if self.norm_k is not None else None,
        )


class Mix(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)


class Block(nn.Module):
    """What `transform` needs of a block, under the names of diffusers' checkpoints."""

    def __init__(self, config: SanaConfig):
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn1 = Attention(width, width, width, config.attention_bias, config.qk_norm)
        self.attn2 = Attention(width, config.cross_width, config.cross_inner, True, config.qk_norm)
        self.norm2 = nn.LayerNorm(width, config.norm_eps, elementwise_affine=config.affine_norm)
        self.ff = Mix(width, int(config.mlp_ratio * width))

    def weights(self) -> BlockWeights:
        ff = self.ff
        return BlockWeights(
            self.scale_shift_table, self.attn1.weights(), self.attn2.weights(), (self.norm2.weight, self.norm2.bias),
            Convolution(ff.conv_inverted.weight, ff.conv_inverted.bias), Convolution(ff.conv_depth.weight, ff.conv_depth.bias),
            Convolution(ff.conv_point.weight, None),
        )  # fmt: skip


class PatchEmbed(nn.Module):
    """[n, channels, h, w] -> [n, tokens, width], tokens in row-major order."""

    def __init__(self, config: SanaConfig):
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over patches, and runs as one.
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [n, tokens, channels * patch * patch]
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Sana(nn.Module):
    def __init__(self, config: SanaConfig):
        super().__init__()
        width = config.width
        self.patch = config.patch
        self.heads = config.heads
        self.cross_heads = config.cross_heads
        self.channels = config.channels
        self.norm_eps = config.norm_eps

        self.patch_embed = PatchEmbed(config)
        self.time_embed = AdaNormSingle(config)
        self.caption_projection = TextProjection(config.text_width, width)
        self.caption_norm = RMSNorm(width)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.proj_out = nn.Linear(width, config.patch**2 * config.channels)

    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor) -> Tensor:
        """The velocity, [n, channels, h, w] in the weights' dtype.

        x [n, channels, h, w] in the weights' dtype; t [n], 1000 where x is noise and 0 where it is the picture;
        text_embedding [n, tokens, text_width]; text_mask [n, tokens], 1 where there is text and 0 elsewhere.
        """
        embedded = self.forecast_embed(x, t, text_embedding, text_mask)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, text_embedding: Tensor, text_mask: Tensor) -> list[Tensor]:
        """What the blocks begin with, [n, tokens, width], and what they and the head need besides."""
        tokens = self.patch_embed(x)
        c, modulation = self.time_embed(t, None, None)
        # Joins the scores, [n, 1, 1, tokens]. float16 holds the number, and its exponential is 0.
        mask = ((1 - text_mask.to(tokens.dtype)) * -10000.0).unsqueeze(1).unsqueeze(1)
        text = rms_norm(self.caption_projection(text_embedding), self.caption_norm.weight)
        return [tokens, modulation, text, mask, c, x]

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the head begins with, [n, tokens, width]."""
        tokens, modulation, text, mask, x = embedded[0], embedded[1], embedded[2], embedded[3], embedded[5]
        rows, columns = x.size(2) // self.patch, x.size(3) // self.patch
        # Over tensors: a loop over modules TorchScript would write out, and compile the fused kernels of every block by
        # themselves, for seconds.
        for w in [block.weights() for block in self.transformer_blocks]:
            tokens = transform(tokens, modulation, text, mask, w, self.heads, self.cross_heads, self.norm_eps, rows, columns)
        return tokens

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        c, x = embedded[4], embedded[5]
        shift, scale = (self.scale_shift_table + c.unsqueeze(1)).chunk(2, dim=1)
        patches = self.proj_out(normed(tokens) * (1 + scale) + shift).unflatten(2, (self.patch, self.patch, self.channels))
        patches = patches.unflatten(1, (x.size(2) // self.patch, x.size(3) // self.patch))
        # [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def conditions(config: SanaConfig, tokens: int | None) -> list[tuple[str, str, list[int | None]]]:
    """Name, type and sizes for one picture of what `forward` takes after x and t; None where any size will do."""
    return [("text_embedding", "float", [tokens, config.text_width]), ("text_mask", "int64", [tokens])]
