"""U-ViT (Bao et al. 2022, arXiv 2209.12152): a transformer over patches, with time and class as tokens beside them, whose later
half of blocks sees what the earlier half made.

The parameters carry the names of its makers' checkpoints. `forward` is written as that of dit.py, for `torch.jit.script` and CUDA
graphs, and a file has the network in parts, too: `forecast_embed`, `forecast_blocks` and `forecast_head`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit import PatchEmbed


@dataclass(frozen=True)
class UViTConfig:
    """Shape of a network. `label_rows` are those of the table of classes, 0 of a network that takes no label."""

    channels: int = 4
    size: int = 32
    patch: int = 2
    width: int = 1024
    depth: int = 20  # blocks but for the middle one; half of them before it
    heads: int = 16
    hidden: int = 4096
    label_rows: int = 1001
    qkv_bias: bool = False
    time_mlp: bool = False
    last_convolution: bool = True

    @property
    def extras(self) -> int:
        """Tokens before those of the patches: the class and the time."""
        return 2 if self.label_rows else 1


class BlockWeights(NamedTuple):
    """Weights [out, in] and biases [out]; those that a block lacks are None."""

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Optional[Tensor]
    proj: Tensor
    proj_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor
    skip: Optional[Tensor]
    skip_bias: Optional[Tensor]


def transform(x: Tensor, w: BlockWeights, skip: Optional[Tensor], heads: int) -> Tensor:
    """A block: attention and MLP of x [n, tokens, width]. Of the later half `skip`, of the same sizes, is joined before."""
    width = x.size(2)
    joined = w.skip
    if skip is not None:
        assert joined is not None
        x = F.linear(torch.cat([x, skip], dim=2), joined, w.skip_bias)
    qkv = F.linear(F.layer_norm(x, (width,), w.norm1, w.norm1_bias, 1e-5), w.qkv, w.qkv_bias).unflatten(2, (3, heads, width // heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, heads, tokens, head width]
    x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), w.proj, w.proj_bias)
    hidden = F.gelu(F.linear(F.layer_norm(x, (width,), w.norm2, w.norm2_bias, 1e-5), w.fc1, w.fc1_bias))
    return x + F.linear(hidden, w.fc2, w.fc2_bias)


class Attention(nn.Module):
    def __init__(self, config: UViTConfig):
        super().__init__()
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)


class Mlp(nn.Module):
    def __init__(self, config: UViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)


class Block(nn.Module):
    """What `transform` needs of a block."""

    def __init__(self, config: UViTConfig, skip: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)
        self.skip_linear = nn.Linear(2 * config.width, config.width) if skip else None

    def weights(self) -> BlockWeights:
        skip, skip_bias = torch.jit.annotate(Optional[Tensor], None), torch.jit.annotate(Optional[Tensor], None)
        if self.skip_linear is not None:
            skip, skip_bias = self.skip_linear.weight, self.skip_linear.bias
        attn, mlp = self.attn, self.mlp
        return BlockWeights(
            self.norm1.weight, self.norm1.bias, attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias,
            self.norm2.weight, self.norm2.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias, skip, skip_bias,
        )  # fmt: skip


class UViT(nn.Module):
    """For labels; `UnconditionalUViT` has none."""

    def __init__(self, config: UViTConfig):
        super().__init__()
        width, half, grid = config.width, config.depth // 2, config.size // config.patch
        self.width, self.heads, self.patch, self.grid = width, config.heads, config.patch, grid
        self.channels, self.extras = config.channels, config.extras
        self.patch_embed = PatchEmbed(config.channels, config.patch, width)
        hidden = [nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)]
        self.time_embed = nn.Sequential(*hidden) if config.time_mlp else nn.Identity()
        self.label_emb = nn.Embedding(config.label_rows, width) if config.label_rows else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.extras + grid**2, width))
        self.in_blocks = nn.ModuleList(Block(config) for _ in range(half))
        self.mid_block = Block(config)
        self.out_blocks = nn.ModuleList(Block(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, config.patch**2 * config.channels)
        convolution = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.final_layer = convolution if config.last_convolution else nn.Identity()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x [n, channels, size, size] in the weights' dtype, t [n] from 0 on, y [n] int64 labels -> what was added as noise."""
        embedded = self.forecast_embed(x, t, y)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        """What the blocks begin with, [n, extras + tokens, width]."""
        assert self.label_emb is not None
        return self.embed(x, t, self.label_emb(y).unsqueeze(1))

    def embed(self, x: Tensor, t: Tensor, label: Optional[Tensor]) -> list[Tensor]:
        # In float32 whatever the weights are: the angles need its digits. The network counts timesteps from 1 on.
        half = self.width // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) * -math.log(10000.0) / half
        angles = (t.to(torch.float32) + 1).unsqueeze(1) * exponents.exp()
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)
        tokens = [self.time_embed(sinusoids.to(self.pos_embed.dtype)).unsqueeze(1), self.patch_embed(x)]
        if label is not None:
            tokens = [label] + tokens
        return [torch.cat(tokens, dim=1) + self.pos_embed]

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the last norm gets, [n, extras + tokens, width]."""
        x = embedded[0]
        skips: list[Tensor] = []
        # Over tensors, as dit.py says.
        for weights in [block.weights() for block in self.in_blocks]:
            x = transform(x, weights, None, self.heads)
            skips.append(x)
        x = transform(x, self.mid_block.weights(), None, self.heads)
        for weights in [block.weights() for block in self.out_blocks]:
            x = transform(x, weights, skips.pop(), self.heads)
        return x

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        """What `forward` returns."""
        patches = self.decoder_pred(self.norm(tokens))[:, self.extras :]
        patches = patches.unflatten(2, (self.patch, self.patch, self.channels)).unflatten(1, (self.grid, self.grid))
        # [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
        return self.final_layer(patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))


class UnconditionalUViT(UViT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """As that of a UViT, without y."""
        embedded = self.forecast_embed(x, t)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor) -> list[Tensor]:
        return self.embed(x, t, None)


def make_uvit(config: UViTConfig) -> UViT:
    return UViT(config) if config.label_rows else UnconditionalUViT(config)


def random_inputs(config: UViTConfig) -> Callable[[int], tuple[Tensor, ...]]:
    """So many rows of x, t and y for `forward`, other ones at every call and the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> tuple[Tensor, ...]:
        x = torch.randn(rows, config.channels, config.size, config.size, generator=generator)
        t = torch.rand(rows, generator=generator) * 999
        labels = (torch.randint(config.label_rows, (rows,), generator=generator),) if config.label_rows else ()
        return x, t, *labels

    return draw
