"""The transformer of Stable Diffusion 3 and 3.5 (MMDiT, arXiv 2403.03206), conditioned on text.

Picture and text are two streams of tokens with weights of their own, which meet in the attention of each block. The
parameters carry the names of diffusers' checkpoints.

`forward` takes x, t, and then what `conditions` lists. It is written to be compiled by `torch.jit.script` and captured
in a CUDA graph: no arithmetic on tensor shapes ends up in a tensor, what is done does not depend on what the tensors
hold, and nothing remembers the device or the dtype it was built on. Batch and text may be of any size, the picture of any
that the table of positions covers.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixart import Linear, linear
from unet import Embedding, sinusoids


@dataclass(frozen=True)
class SD3Config:
    """Shape of a network."""

    channels: int = 16
    out_channels: int = 16
    size: int = 128  # of the latent that the network was made for
    patch: int = 2
    width: int = 1536
    depth: int = 24
    heads: int = 24
    text_width: int = 4096
    pooled_width: int = 2048
    grid: int = 192  # patches a side of the table of positions, from whose middle a picture takes its own
    dual_attention: tuple[int, ...] = ()  # blocks in which picture tokens also attend to themselves alone
    qk_norm: bool = False  # of the heads' queries and keys, by their root mean square


class PatchEmbed(nn.Module):
    """[n, channels, h, w] -> [n, tokens, width], tokens in row-major order, each with its position."""

    def __init__(self, config: SD3Config):
        super().__init__()
        self.patch = config.patch
        self.grid = config.grid
        self.width = config.width
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.register_buffer("pos_embed", torch.zeros(1, config.grid**2, config.width))

    def forward(self, x: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over patches, and runs as one.
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [n, tokens, channels * patch * patch]
        tokens = F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        rows, columns = x.size(2) // self.patch, x.size(3) // self.patch
        assert rows <= self.grid and columns <= self.grid, "x is larger than the network's table of positions"
        top, left = (self.grid - rows) // 2, (self.grid - columns) // 2
        table = self.pos_embed.view(self.grid, self.grid, self.width)
        return tokens + table[top : top + rows, left : left + columns].flatten(0, 1).unsqueeze(0)


class TimeTextEmbedding(nn.Module):
    """t [n] and the pooled text [n, pooled_width] -> [n, width]."""

    def __init__(self, config: SD3Config):
        super().__init__()
        self.timestep_embedder = Embedding(256, config.width)
        self.text_embedder = Embedding(config.pooled_width, config.width)

    def forward(self, t: Tensor, pooled: Tensor) -> Tensor:
        return self.timestep_embedder(sinusoids(t, 256, True, 0.0)) + self.text_embedder(pooled)


class Projections(NamedTuple):
    """Queries, keys and values of one stream."""

    q: Linear
    k: Linear
    v: Linear
    norm_q: Optional[Tensor]  # [head width]
    norm_k: Optional[Tensor]


class TextWeights(NamedTuple):
    """Of the text's stream in a block. In the last one it is only attended to, and has no `out` and `ff`."""

    modulation: Linear  # [6 * width], in the last block [2 * width]
    attention: Projections
    out: Optional[Linear]
    ff: Optional[tuple[Linear, Linear]]


class BlockWeights(NamedTuple):
    modulation: Linear  # [6 * width], with dual attention [9 * width]
    attention: Projections
    out: Linear
    dual: Optional[Projections]
    dual_out: Optional[Linear]
    ff: tuple[Linear, Linear]
    text: TextWeights


def rms_norm(x: Tensor, weight: Optional[Tensor]) -> Tensor:
    """Over the channels of a head, in float32."""
    if weight is None:
        return x
    y = x.to(torch.float32)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(weight.dtype) * weight


def heads_of(x: Tensor, w: Linear, norm: Optional[Tensor], heads: int) -> Tensor:
    """[n, tokens, width] -> [n, heads, tokens, head width]"""
    return rms_norm(linear(x, w).unflatten(2, (heads, -1)).transpose(1, 2), norm)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.size(2),), None, None, 1e-6)


def mlp(x: Tensor, w: tuple[Linear, Linear]) -> Tensor:
    return linear(F.gelu(linear(x, w[0]), approximate="tanh"), w[1])


def transform(x: Tensor, text: Tensor, c: Tensor, w: BlockWeights, heads: int) -> tuple[Tensor, Tensor]:
    """A block: attention of the picture and the text to both, and an MLP in each, each added to its input.

    x [n, tokens, width], text [n, text tokens, width]; c [n, 1, width] is the timestep and the pooled text, after SiLU. The
    last block returns the text as it was.
    """
    m = linear(c, w.modulation).chunk(6 if w.dual is None else 9, dim=2)
    shift1, scale1, gate1, shift2, scale2, gate2 = m[0], m[1], m[2], m[3], m[4], m[5]
    base = normed(x)
    y = base * (1 + scale1) + shift1
    a = w.attention
    query, key, value = heads_of(y, a.q, a.norm_q, heads), heads_of(y, a.k, a.norm_k, heads), heads_of(y, a.v, None, heads)

    of_text, text_ff = w.text.out, w.text.ff
    n = linear(c, w.text.modulation).chunk(2 if of_text is None else 6, dim=2)
    # The last block's norm has the scale before the shift.
    z = normed(text) * (1 + (n[0] if of_text is None else n[1])) + (n[1] if of_text is None else n[0])
    b = w.text.attention
    if of_text is not None:
        query = torch.cat([query, heads_of(z, b.q, b.norm_q, heads)], dim=2)
    key = torch.cat([key, heads_of(z, b.k, b.norm_k, heads)], dim=2)
    value = torch.cat([value, heads_of(z, b.v, None, heads)], dim=2)
    joint = attend(query, key, value)

    tokens = x.size(1)
    x = x + gate1 * linear(joint[:, :tokens], w.out)
    dual, dual_out = w.dual, w.dual_out
    if dual is not None and dual_out is not None:
        y = base * (1 + m[7]) + m[6]
        alone = attend(
            heads_of(y, dual.q, dual.norm_q, heads), heads_of(y, dual.k, dual.norm_k, heads), heads_of(y, dual.v, None, heads)
        )
        x = x + m[8] * linear(alone, dual_out)
    x = x + gate2 * mlp(normed(x) * (1 + scale2) + shift2, w.ff)

    if of_text is not None and text_ff is not None:
        text = text + n[2] * linear(joint[:, tokens:], of_text)
        text = text + n[5] * mlp(normed(text) * (1 + n[4]) + n[3], text_ff)
    return x, text


class Dense(nn.Linear):
    def tensors(self) -> Linear:
        return Linear(self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


def norm_of(config: SD3Config) -> Optional[RMSNorm]:
    return RMSNorm(config.width // config.heads) if config.qk_norm else None


class SelfAttention(nn.Module):
    """Of the picture alone."""

    def __init__(self, config: SD3Config):
        super().__init__()
        width = config.width
        self.to_q, self.to_k, self.to_v = (Dense(width, width) for _ in range(3))
        self.to_out = nn.Sequential(Dense(width, width))
        self.norm_q, self.norm_k = norm_of(config), norm_of(config)

    def out(self) -> Linear:
        return self.to_out[0].tensors()

    def of_picture(self) -> Projections:
        return Projections(
            self.to_q.tensors(),
            self.to_k.tensors(),
            self.to_v.tensors(),
            self.norm_q.weight if self.norm_q is not None else None,
            self.norm_k.weight if self.norm_k is not None else None,
        )


class JointAttention(SelfAttention):
    """Of picture and text. In the last block the text asks nothing, though its checkpoint has the weights for that."""

    def __init__(self, config: SD3Config, last: bool):
        super().__init__(config)
        width = config.width
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (Dense(width, width) for _ in range(3))
        self.to_add_out = None if last else Dense(width, width)
        self.norm_added_q, self.norm_added_k = norm_of(config), norm_of(config)

    def text_out(self) -> Optional[Linear]:
        return self.to_add_out.tensors() if self.to_add_out is not None else None

    def of_text(self) -> Projections:
        return Projections(
            self.add_q_proj.tensors(),
            self.add_k_proj.tensors(),
            self.add_v_proj.tensors(),
            self.norm_added_q.weight if self.norm_added_q is not None else None,
            self.norm_added_k.weight if self.norm_added_k is not None else None,
        )


class Projection(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = Dense(width, hidden)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        # The middle one is where a checkpoint counts its dropout.
        self.net = nn.ModuleList([Projection(width, hidden), nn.Identity(), Dense(hidden, width)])

    def tensors(self) -> tuple[Linear, Linear]:
        return self.net[0].proj.tensors(), self.net[2].tensors()


class Modulation(nn.Module):
    """What shifts, scales and gates the parts of a block."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.linear = Dense(width, parts * width)


class Block(nn.Module):
    """What `transform` needs of a block, under the names of diffusers' checkpoints."""

    def __init__(self, config: SD3Config, dual: bool, last: bool):
        super().__init__()
        width = config.width
        self.norm1 = Modulation(width, 9 if dual else 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(config, last)
        self.attn2 = SelfAttention(config) if dual else None
        self.ff = FeedForward(width, 4 * width)
        self.ff_context = None if last else FeedForward(width, 4 * width)

    def weights(self) -> BlockWeights:
        text = TextWeights(
            self.norm1_context.linear.tensors(),
            self.attn.of_text(),
            self.attn.text_out(),
            self.ff_context.tensors() if self.ff_context is not None else None,
        )
        return BlockWeights(
            self.norm1.linear.tensors(),
            self.attn.of_picture(),
            self.attn.out(),
            self.attn2.of_picture() if self.attn2 is not None else None,
            self.attn2.out() if self.attn2 is not None else None,
            self.ff.tensors(),
            text,
        )


class SD3(nn.Module):
    def __init__(self, config: SD3Config):
        super().__init__()
        width = config.width
        self.patch = config.patch
        self.heads = config.heads
        self.out_channels = config.out_channels

        self.pos_embed = PatchEmbed(config)
        self.time_text_embed = TimeTextEmbedding(config)
        self.context_embedder = Dense(config.text_width, width)
        self.transformer_blocks = nn.ModuleList(
            Block(config, i in config.dual_attention, i + 1 == config.depth) for i in range(config.depth)
        )
        self.norm_out = Modulation(width, 2)
        self.proj_out = Dense(width, config.patch**2 * config.out_channels)

    def forward(self, x: Tensor, t: Tensor, text_embedding: Tensor, pooled_embedding: Tensor) -> Tensor:
        """The velocity, [n, out_channels, h, w] in the weights' dtype.

        x [n, channels, h, w] in the weights' dtype; t [n], 1000 where x is noise and 0 where it is the picture;
        text_embedding [n, tokens, text_width]; pooled_embedding [n, pooled_width].
        """
        embedded = self.forecast_embed(x, t, text_embedding, pooled_embedding)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, text_embedding: Tensor, pooled_embedding: Tensor) -> list[Tensor]:
        """What the blocks begin with, [n, tokens, width], and what they and the head need besides."""
        c = F.silu(self.time_text_embed(t, pooled_embedding)).unsqueeze(1)
        return [self.pos_embed(x), self.context_embedder(text_embedding), c, x]

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the head begins with, [n, tokens, width]."""
        tokens, text, c = embedded[0], embedded[1], embedded[2]
        # Over tensors: a loop over modules TorchScript would write out, and compile the fused kernels of every block by
        # themselves, for seconds.
        for weights in [block.weights() for block in self.transformer_blocks]:
            tokens, text = transform(tokens, text, c, weights, self.heads)
        return tokens

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        c, x = embedded[2], embedded[3]
        scale, shift = linear(c, self.norm_out.linear.tensors()).chunk(2, dim=2)
        patches = self.proj_out(normed(tokens) * (1 + scale) + shift)
        patches = patches.unflatten(2, (self.patch, self.patch, self.out_channels))
        patches = patches.unflatten(1, (x.size(2) // self.patch, x.size(3) // self.patch))
        # [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def conditions(config: SD3Config, tokens: int | None) -> list[tuple[str, str, list[int | None]]]:
    """Name, type and sizes for one picture of what `forward` takes after x and t; None where any size will do."""
    return [
        ("text_embedding", "float", [tokens, config.text_width]),
        ("pooled_embedding", "float", [config.pooled_width]),
    ]
