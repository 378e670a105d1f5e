"""The transformer of Wan 2.1 and 2.2 for video from text (arXiv 2503.20314).

A diffusion transformer over patches of a video, with rotary positions in time, height and width, attention to the text in
each block, and one modulation by the timestep that all blocks share, each adding a table of its own. The parameters carry
the names of diffusers' checkpoints.

`forward` takes x, t, and then what `conditions` lists. It is written to be compiled by `torch.jit.script` and captured
in a CUDA graph: no arithmetic on tensor shapes ends up in a tensor, what is done does not depend on what the tensors
hold, and nothing remembers the device or the dtype it was built on. Batch, video and text may be of any size up to
`positions` patches a side. Norms, modulations and rotations are computed in float32 whatever the weights are.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart import Linear, TextProjection, linear
from sd3 import Dense, FeedForward, RMSNorm, mlp
from unet import Embedding, sinusoids


@dataclass(frozen=True)
class WanConfig:
    """Shape of a network."""

    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)  # frames, height, width
    width: int = 1536
    depth: int = 30
    heads: int = 12
    hidden: int = 8960  # of the MLPs
    text_width: int = 4096
    frequencies: int = 256  # of the timestep
    positions: int = 1024  # patches a side at most
    affine_norm: bool = True  # before the attention to the text; else there is no norm
    eps: float = 1e-6


class Conditions(nn.Module):
    """The timestep's embedding [n, width], what of it modulates every block, [n, 6, width], and the text's."""

    def __init__(self, config: WanConfig):
        super().__init__()
        width = config.width
        self.frequencies = config.frequencies
        self.time_embedder = Embedding(config.frequencies, width)
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = TextProjection(config.text_width, width)

    def forward(self, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.time_embedder(sinusoids(t, self.frequencies, True, 0.0))
        return c, self.time_proj(F.silu(c)).unflatten(1, (6, c.size(1))), self.text_embedder(text)


class AttentionWeights(NamedTuple):
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    norm_q: Tensor  # [width]
    norm_k: Tensor


class BlockWeights(NamedTuple):
    table: Tensor  # [1, 6, width]
    attn1: AttentionWeights
    attn2: AttentionWeights
    norm2: Optional[tuple[Tensor, Tensor]]
    ff: tuple[Linear, Linear]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over all heads' channels."""
    y = x.to(torch.float32)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.to(torch.float32)).to(x.dtype)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair of channels of x [n, tokens, heads, head width] by its angle, [tokens, 1, head width / 2]."""
    pairs = x.to(torch.float32).unflatten(3, (angles.size(2), 2))
    a, b = pairs.unbind(4)
    cos, sin = angles.cos().to(torch.float32), angles.sin().to(torch.float32)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=4).flatten(3).to(x.dtype)


def attend(x: Tensor, source: Tensor, angles: Optional[Tensor], w: AttentionWeights, heads: int, eps: float) -> Tensor:
    """Attention of x [n, tokens, width] to `source`, with positions where there are angles."""
    split = (heads, x.size(2) // heads)
    q = rms_norm(linear(x, w.q), w.norm_q, eps).unflatten(2, split)
    k = rms_norm(linear(source, w.k), w.norm_k, eps).unflatten(2, split)
    v = linear(source, w.v).unflatten(2, split).transpose(1, 2)
    if angles is not None:
        q, k = rotated(q, angles), rotated(k, angles)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v)
    return linear(y.transpose(1, 2).flatten(2), w.out)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """A norm, scaled and shifted, in float32."""
    return (F.layer_norm(x.to(torch.float32), (x.size(2),), None, None, eps) * (1 + scale) + shift).to(x.dtype)


def transform(x: Tensor, c: Tensor, text: Tensor, angles: Tensor, w: BlockWeights, heads: int, eps: float) -> Tensor:
    """A block: attention between places, attention to the text, and an MLP, each added to its input."""
    # Each [n, 1, width].
    shift1, scale1, gate1, shift2, scale2, gate2 = (w.table.to(torch.float32) + c.to(torch.float32)).chunk(6, dim=1)
    y = modulated(x, shift1, scale1, eps)
    x = (x.to(torch.float32) + attend(y, y, angles, w.attn1, heads, eps) * gate1).to(x.dtype)
    affine = w.norm2
    y = x
    if affine is not None:
        weight, bias = affine
        y = F.layer_norm(x.to(torch.float32), (x.size(2),), weight.to(torch.float32), bias.to(torch.float32), eps).to(x.dtype)
    x = x + attend(y, text, None, w.attn2, heads, eps)
    y = mlp(modulated(x, shift2, scale2, eps), w.ff)
    return (x.to(torch.float32) + y.to(torch.float32) * gate2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: WanConfig):
        super().__init__()
        width = config.width
        self.to_q, self.to_k, self.to_v = (Dense(width, width) for _ in range(3))
        self.to_out = nn.Sequential(Dense(width, width))
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)

    def weights(self) -> AttentionWeights:
        return AttentionWeights(
            self.to_q.tensors(), self.to_k.tensors(), self.to_v.tensors(), self.to_out[0].tensors(), self.norm_q.weight,
            self.norm_k.weight,
        )  # fmt: skip


class Block(nn.Module):
    """What `transform` needs of a block, under the names of diffusers' checkpoints."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, config.width))
        self.attn1 = Attention(config)
        self.attn2 = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, config.eps) if config.affine_norm else None
        self.ffn = FeedForward(config.width, config.hidden)

    def norm(self) -> Optional[tuple[Tensor, Tensor]]:
        return (self.norm2.weight, self.norm2.bias) if self.norm2 is not None else None

    def weights(self) -> BlockWeights:
        return BlockWeights(self.scale_shift_table, self.attn1.weights(), self.attn2.weights(), self.norm(), self.ffn.tensors())


class Wan(nn.Module):
    def __init__(self, config: WanConfig):
        super().__init__()
        self.patch = config.patch
        self.heads = config.heads
        self.channels = config.channels
        self.positions = config.positions
        self.eps = config.eps
        head_width = config.width // config.heads
        # Of a head's channels so many turn with the row, as many with the column, and the rest with the frame.
        of_side = 2 * (head_width // 6)
        self.turning = (head_width - 2 * of_side, of_side, of_side)

        self.patch_embedding = nn.Conv3d(config.channels, config.width, config.patch, config.patch)
        self.condition_embedder = Conditions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, config.width))
        self.proj_out = Dense(config.width, config.channels * config.patch[0] * config.patch[1] * config.patch[2])

    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor) -> Tensor:
        """The velocity, [n, channels, frames, h, w] in the weights' dtype.

        x [n, channels, frames, h, w] in the weights' dtype; t [n], 1000 where x is noise and 0 where it is the video;
        text_embedding [n, tokens, text_width].
        """
        embedded = self.forecast_embed(x, t, text_embedding)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, text_embedding: Tensor) -> list[Tensor]:
        """What the blocks begin with, [n, tokens, width], and what they and the head need besides."""
        frames, height, width = self.patch
        # A convolution whose stride is its kernel is a matrix product over patches, and runs as one.
        patches = x.unflatten(4, (x.size(4) // width, width)).unflatten(3, (x.size(3) // height, height))
        patches = patches.unflatten(2, (x.size(2) // frames, frames))  # [n, channels, frame, z, row, y, column, x]
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        tokens = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        c, modulation, text = self.condition_embedder(t, text_embedding)
        return [tokens, modulation, text, c, x]

    def angles(self, x: Tensor) -> Tensor:
        """float64 [tokens, 1, head width / 2]"""
        sizes = (x.size(2) // self.patch[0], x.size(3) // self.patch[1], x.size(4) // self.patch[2])
        assert max(sizes) <= self.positions, "x is larger than the network's positions"
        parts = []
        for side in range(3):
            channels = self.turning[side]
            exponents = torch.arange(0, channels, 2, device=x.device, dtype=torch.float64) / channels
            places = torch.arange(sizes[side], device=x.device, dtype=torch.float64)
            of_side = places.unsqueeze(1) * torch.pow(10000.0, -exponents)
            shape = [1, 1, 1, of_side.size(1)]
            shape[side] = sizes[side]
            parts.append(of_side.view(shape).expand(sizes[0], sizes[1], sizes[2], of_side.size(1)))
        return torch.cat(parts, dim=3).flatten(0, 2).unsqueeze(1)

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the head begins with, [n, tokens, width]."""
        tokens, modulation, text = embedded[0], embedded[1], embedded[2]
        angles = self.angles(embedded[4])
        # Over tensors: a loop over modules TorchScript would write out, and compile the fused kernels of every block by
        # themselves, for seconds.
        for weights in [block.weights() for block in self.blocks]:
            tokens = transform(tokens, modulation, text, angles, weights, self.heads, self.eps)
        return tokens

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        c, x = embedded[3], embedded[4]
        shift, scale = (self.scale_shift_table + c.unsqueeze(1)).to(torch.float32).chunk(2, dim=1)
        frames, height, width = self.patch
        patches = self.proj_out(modulated(tokens, shift, scale, self.eps)).unflatten(2, (frames, height, width, self.channels))
        patches = patches.unflatten(1, (x.size(2) // frames, x.size(3) // height, x.size(4) // width))
        # [n, frame, row, column, z, y, x, channel] -> [n, channel, frame, z, row, y, column, x]
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def conditions(config: WanConfig, tokens: int | None) -> list[tuple[str, str, list[int | None]]]:
    """Name, type and sizes for one video of what `forward` takes after x and t; None where any size will do."""
    return [("text_embedding", "float", [tokens, config.text_width])]
