"""A class-conditional diffusion transformer, DiT (arXiv 2212.09748), small enough to read in one sitting.

The network predicts the noise and, unless told otherwise, the variance of the reverse step beside it (learned range,
arXiv 2102.09672). Its parameters carry the names of the official DiT checkpoints, so that a loader written for one
reads the other. The same network trained by flow matching is SiT (arXiv 2401.08740), which predicts a velocity.

`forward` is written to be compiled by `torch.jit.script` and captured in a CUDA graph: heads, patch and grid are Python
integers, no arithmetic is done on tensor shapes, and nothing remembers the device or the dtype it was built on.

A file has it in parts, too: the methods `forecast_embed`, `forecast_blocks` and `forecast_head`, one after another, are
`forward`. A sampler that forecasts what the blocks make leaves out the middle one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


LAST = -1


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a network. `num_classes` is how many can be asked for, 0 of a network that takes no label.

    `frequency_steps` and `mlp_norm_eps` are how the official networks compute, and were trained. diffusers computes with
    127 frequency steps, which turns the angles of high timesteps by up to half a turn, and with the `norm_eps` of its
    config.
    """

    channels: int = 3
    size: int = 32
    patch: int = 2
    width: int = 256
    depth: int = 12
    heads: int = 4
    mlp_ratio: float = 4.0
    num_classes: int = 10
    learned_variance: bool = True
    frequency_steps: int = 128  # the k-th of the 128 frequencies of t is 10000 ** (-k / frequency_steps)
    mlp_norm_eps: float = 1e-6  # of the norm before the MLP
    # SiT: t is 1000 where x is noise and 0 where x is the picture, and the embedder is told 1 - t / 1000.
    flow: bool = False
    # Pictures of any size, a multiple of the patch, whose positions are scaled to the extent of those of `size`.
    any_size: bool = False
    # The label that means no class: LAST is a row of the embedding table behind those of the classes; None: there is none.
    null_class: int | None = LAST

    @property
    def null_label(self) -> int | None:
        return self.null_class if self.null_class != LAST else self.num_classes or None

    @property
    def label_rows(self) -> int:
        """Of the embedding table. A network that takes no label has one."""
        return max(1, self.num_classes, 1 + (self.null_label or 0))

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learned_variance else 1)

    def flops(self) -> int:
        """Floating-point operations of one forward pass over one picture: matrix products, two per multiply-add."""
        tokens = (self.size // self.patch) ** 2
        patch_values = (self.channels + self.out_channels) * self.patch**2
        hidden = int(self.width * self.mlp_ratio)
        per_token = 4 * self.width**2 + 2 * self.width * hidden  # qkv and proj; fc1 and fc2
        attention = 2 * tokens * self.width  # scores and weighted sum, per token
        embed = patch_values * self.width  # patch embedding in, epsilon and v out
        per_picture = (6 * self.depth + 2) * self.width**2 + (256 + self.width) * self.width  # adaLN; timestep MLP
        return 2 * (self.depth * tokens * (per_token + attention) + tokens * embed + per_picture)


def positions_of_axis(count: int, grid: int, scale: float, width: int, x: Tensor) -> Tensor:
    """[sin, cos] of the places along one side, over width / 4 frequencies, float64 [count, width / 2], on the device of x.

    Places run from 0 to where those of a side of @grid patches end, whatever their number, divided by @scale.
    """
    # The places in float32, their angles in float64: so diffusers computes them, and the networks were trained.
    places = torch.arange(count, device=x.device, dtype=torch.float32) / (count / grid) / scale
    exponents = torch.arange(width // 4, device=x.device, dtype=torch.float64) / (width // 4)
    angles = places.unsqueeze(1) * torch.pow(10000.0, -exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_table(rows: int, columns: int, grid: int, scale: float, width: int, x: Tensor) -> Tensor:
    """Fixed two-dimensional position embedding, float32 [1, rows * columns, width]: the first half of the channels encodes
    the column, the second half the row. See `positions_of_axis`."""
    of_columns = positions_of_axis(columns, grid, scale, width, x).unsqueeze(0).expand(rows, -1, -1)
    of_rows = positions_of_axis(rows, grid, scale, width, x).unsqueeze(1).expand(-1, columns, -1)
    return torch.cat([of_columns, of_rows], dim=2).flatten(0, 1).unsqueeze(0).to(torch.float32)


def sin_cos_position_embedding(width: int, grid: int) -> Tensor:
    """That of the size which a network was trained with, float32 [1, grid * grid, width]."""
    return position_table(grid, grid, grid, 1.0, width, torch.zeros(()))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [n, tokens, width]; shift, scale [n, width]."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class PatchEmbed(nn.Module):
    """[n, channels, size, size] -> [n, tokens, width], tokens in row-major order."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over patches, and runs as one.
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # [n, tokens, channels * patch * patch]
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """t [n] -> [n, width]: sinusoids of 128 frequencies, then a two-layer MLP."""

    frequency_steps: Final[int]
    flow: Final[bool]

    def __init__(self, width: int, frequency_steps: int, flow: bool):
        super().__init__()
        self.frequency_steps = frequency_steps
        self.flow = flow
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        # In float32 whatever the weights are: in half precision the angles of neighbouring timesteps coincide.
        # Multiplied and then divided, as elsewhere: t is large, and the last bit of a frequency would show.
        exponents = torch.arange(128, device=t.device, dtype=torch.float32) * -math.log(10000.0) / self.frequency_steps
        time = t.to(torch.float32)
        if self.flow:
            time = 1 - time / 1000
        angles = time.unsqueeze(1) * exponents.exp()
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(sinusoids.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """y [n] in [0, rows) -> [n, width]; one of the rows may stand for "no class"."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class BlockWeights(NamedTuple):
    """Weights [out, in] and biases [out] of a block's products."""

    modulation: Tensor
    modulation_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    proj_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor


def transform(x: Tensor, c: Tensor, w: BlockWeights, width: int, heads: int, mlp_norm_eps: float) -> Tensor:
    """A block: attention and MLP of x [n, tokens, width], each shifted, scaled and gated by c (adaLN-zero).

    c [n, width] is SiLU of the condition.
    """
    shift1, scale1, gate1, shift2, scale2, gate2 = F.linear(c, w.modulation, w.modulation_bias).chunk(6, dim=1)
    normed = modulate(F.layer_norm(x, (width,), None, None, 1e-6), shift1, scale1)
    qkv = F.linear(normed, w.qkv, w.qkv_bias).unflatten(2, (3, heads, width // heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, heads, tokens, head width]
    values = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + gate1.unsqueeze(1) * F.linear(values, w.proj, w.proj_bias)
    normed = modulate(F.layer_norm(x, (width,), None, None, mlp_norm_eps), shift2, scale2)
    hidden = F.gelu(F.linear(normed, w.fc1, w.fc1_bias), approximate="tanh")
    return x + gate2.unsqueeze(1) * F.linear(hidden, w.fc2, w.fc2_bias)


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)


class Block(nn.Module):
    """What `transform` needs of a block, under the names of the official checkpoints."""

    def __init__(self, width: int, mlp_ratio: float, mlp_norm_eps: float):
        super().__init__()
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=mlp_norm_eps, elementwise_affine=False)  # a reader of files asks its eps
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def weights(self) -> BlockWeights:
        modulation, attn, mlp = self.adaLN_modulation[1], self.attn, self.mlp
        return BlockWeights(
            modulation.weight, modulation.bias, attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias,
            mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias,
        )  # fmt: skip


class FinalLayer(nn.Module):
    """[n, tokens, width] -> [n, tokens, patch * patch * out_channels]."""

    def __init__(self, width: int, patch: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    any_size: Final[bool]

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.any_size = config.any_size
        self.width = width
        self.heads = config.heads
        self.patch = config.patch
        self.grid = config.size // config.patch
        self.out_channels = config.out_channels

        self.x_embedder = PatchEmbed(config.channels, config.patch, width)
        self.t_embedder = TimestepEmbedder(width, config.frequency_steps, config.flow)
        self.y_embedder = LabelEmbedder(config.label_rows, width)
        self.register_buffer("pos_embed", sin_cos_position_embedding(width, self.grid))
        self.blocks = nn.ModuleList(Block(width, config.mlp_ratio, config.mlp_norm_eps) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch, self.out_channels)
        self.initialize()

    def initialize(self) -> None:
        """Every block starts as the identity and the network as zero: the gates and the last layer are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for table in (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.y_embedder.embedding_table):
            nn.init.normal_(table.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predicted noise, or for SiT noise minus picture, and, with learned variance, variance interpolation.

        x [n, channels, size, size] in the weights' dtype, or of any height and width in patches where the network is made
        so; t [n] timesteps, int64 or floating; y [n] int64 classes, or null_label for none. Returns [n, out_channels, ...] of
        x's size in the weights' dtype: first epsilon, then, if learned, v, where (v + 1) / 2 mixes log(beta_t), at 1, and the
        log of the posterior variance, at 0.
        """
        embedded = self.forecast_embed(x, t, y)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        """What the blocks begin with, [n, tokens, width], the condition, [n, width], and x where it may have any size."""
        return self.embed(x, self.t_embedder(t) + self.y_embedder(y))

    def embed(self, x: Tensor, c: Tensor) -> list[Tensor]:
        tokens = self.x_embedder(x)
        if self.any_size:
            return [tokens + self.positions(x).to(tokens.dtype), c, x]
        return [tokens + self.pos_embed.to(tokens.dtype), c]

    def positions(self, x: Tensor) -> Tensor:
        """Of the patches of x, float32 [1, tokens, width]."""
        rows, columns = x.size(2) // self.patch, x.size(3) // self.patch
        if rows == self.grid and columns == self.grid:
            return self.pos_embed
        return position_table(rows, columns, self.grid, 1.0, self.width, x)

    @torch.jit.export
    def forecast_blocks(self, embedded: list[Tensor]) -> Tensor:
        """What the final layer begins with, [n, tokens, width]."""
        tokens, c = embedded[0], embedded[1]
        activated = F.silu(c)
        # Over tensors: a loop over modules TorchScript would write out, and compile the fused kernels of every block by
        # themselves, for seconds.
        for weights in [block.weights() for block in self.blocks]:
            tokens = transform(tokens, activated, weights, self.width, self.heads, self.blocks[0].norm2.eps)
        return tokens

    @torch.jit.export
    def forecast_head(self, embedded: list[Tensor], tokens: Tensor) -> Tensor:
        """What `forward` returns."""
        patches = self.final_layer(tokens, embedded[1])
        patches = patches.unflatten(2, (self.patch, self.patch, self.out_channels))
        rows, columns = self.grid, self.grid
        if self.any_size:
            rows, columns = embedded[2].size(2) // self.patch, embedded[2].size(3) // self.patch
        patches = patches.unflatten(1, (rows, columns))
        # [n, row, column, y, x, channel] -> [n, channel, row, y, column, x]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class UnconditionalDiT(DiT):
    """Of a `DiTConfig` of no classes: its table of labels has one row, which always counts."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """As that of a DiT, without y."""
        embedded = self.forecast_embed(x, t)
        return self.forecast_head(embedded, self.forecast_blocks(embedded))

    @torch.jit.export
    def forecast_embed(self, x: Tensor, t: Tensor) -> list[Tensor]:
        return self.embed(x, self.t_embedder(t) + self.y_embedder.embedding_table.weight)


def make_dit(config: DiTConfig) -> DiT:
    return DiT(config) if config.num_classes else UnconditionalDiT(config)


def random_inputs(config: DiTConfig) -> Callable[[int], tuple[Tensor, ...]]:
    """So many rows of x, t and y for `forward`, other ones at every call and the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> tuple[Tensor, ...]:
        # Of any size first its own, then another, square as diffusers wants.
        size = config.size + config.patch if config.any_size and rows > 1 else config.size
        x = torch.randn(rows, config.channels, size, size, generator=generator)
        t = torch.randint(1000, (rows,), generator=generator)
        if config.flow:  # which knows the times between, too
            t = t + torch.rand(rows, generator=generator)
        labels = torch.randint(config.label_rows, (rows,), generator=generator)
        return (x, t, labels) if config.num_classes else (x, t)

    return draw
