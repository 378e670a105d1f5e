"""Text encoders of diffusion models: CLIP (arXiv 2103.00020), T5 (arXiv 1910.10683), UMT5 (arXiv 2304.09151) and
Gemma 2 (arXiv 2408.00118).

The parameters carry the names of transformers' checkpoints. `TextEncoder` puts a tokenizer before a network: its
`forward` takes texts and gives what a diffusion model is conditioned on, by name. All is written for
`torch.jit.script`.
"""

import math
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------ CLIP


@dataclass(frozen=True)
class ClipConfig:
    """Shape of a network, and which of its states are wanted."""

    vocabulary: int = 49408
    width: int = 768
    hidden: int = 3072
    depth: int = 12
    heads: int = 12
    tokens: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    projection: int = 0  # channels of the projected end of the text; 0 for a network without
    end: int = 2  # the token at which a text ends; 2: the one of the highest number, as old checkpoints mean it
    masked: bool = False  # whether nothing looks at the padding
    penultimate: bool = False  # the states before the last layer, without the last norm
    embedding: bool = True  # whether the states are wanted
    pooled: bool = False  # whether the state at the end of the text is


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]


class ClipLayerWeights(NamedTuple):
    q: Linear
    k: Linear
    v: Linear
    out: Linear
    norm1: Linear
    norm2: Linear
    fc1: Linear
    fc2: Linear


def linear(x: Tensor, w: Linear) -> Tensor:
    return F.linear(x, w.weight, w.bias)


def activated(x: Tensor, name: str) -> Tensor:
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "gelu":
        return F.gelu(x)
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh")  # gelu_new, gelu_pytorch_tanh


def clip_layer(x: Tensor, mask: Tensor, w: ClipLayerWeights, heads: int, eps: float, activation: str) -> Tensor:
    """x [n, tokens, width]; mask: bool [n or 1, 1, tokens, tokens], what each looks at."""
    width = (x.size(2),)
    split = (heads, x.size(2) // heads)
    y = F.layer_norm(x, width, w.norm1.weight, w.norm1.bias, eps)
    q = linear(y, w.q).unflatten(2, split).transpose(1, 2)
    k = linear(y, w.k).unflatten(2, split).transpose(1, 2)
    v = linear(y, w.v).unflatten(2, split).transpose(1, 2)
    x = x + linear(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2), w.out)
    y = F.layer_norm(x, width, w.norm2.weight, w.norm2.bias, eps)
    return x + linear(activated(linear(y, w.fc1), activation), w.fc2)


class ClipAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class ClipMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)


class ClipLayer(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.self_attn = ClipAttention(config.width)
        self.layer_norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = ClipMlp(config.width, config.hidden)
        self.layer_norm2 = nn.LayerNorm(config.width, config.norm_eps)

    def weights(self) -> ClipLayerWeights:
        a, m, n1, n2 = self.self_attn, self.mlp, self.layer_norm1, self.layer_norm2
        return ClipLayerWeights(
            Linear(a.q_proj.weight, a.q_proj.bias), Linear(a.k_proj.weight, a.k_proj.bias),
            Linear(a.v_proj.weight, a.v_proj.bias), Linear(a.out_proj.weight, a.out_proj.bias),
            Linear(n1.weight, n1.bias), Linear(n2.weight, n2.bias),
            Linear(m.fc1.weight, m.fc1.bias), Linear(m.fc2.weight, m.fc2.bias),
        )  # fmt: skip


class ClipEmbeddings(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.tokens, config.width)


class ClipLayers(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.depth))


class ClipTextModel(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.encoder = ClipLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.width, config.norm_eps)


class Clip(nn.Module):
    """`forward` takes tokens and their mask, int64 [n, tokens] on any device, and gives text_embedding
    [n, tokens, width] and pooled_embedding [n, projection], or [n, width] of a network without a projection."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.heads, self.norm_eps, self.activation = config.heads, config.norm_eps, config.activation
        self.end, self.masked = config.end, config.masked
        self.penultimate, self.embedding, self.pooled = config.penultimate, config.embedding, config.pooled
        self.text_model = ClipTextModel(config)
        self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def ends(self, tokens: Tensor) -> Tensor:
        """int64 [n], where each text ends."""
        # Of the highest number, or of the first one at the end. argmax takes the first of equal ones.
        return tokens.argmax(dim=1) if self.end == 2 else tokens.eq(self.end).to(torch.int64).argmax(dim=1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Dict[str, Tensor]:
        model = self.text_model
        tokens = tokens.to(model.final_layer_norm.weight.device)
        mask = mask.to(tokens.device)
        x = F.embedding(tokens, model.embeddings.token_embedding.weight)
        x = x + model.embeddings.position_embedding.weight[: tokens.size(1)]
        seen = torch.ones(tokens.size(1), tokens.size(1), dtype=torch.bool, device=tokens.device).tril()[None, None]
        if self.masked:
            seen = torch.logical_and(seen, mask.to(torch.bool)[:, None, None])
        before = x
        # Over tensors, as pixart.py says.
        for weights in [layer.weights() for layer in model.encoder.layers]:
            before = x
            x = clip_layer(x, seen, weights, self.heads, self.norm_eps, self.activation)
        last = model.final_layer_norm(x)
        found: Dict[str, Tensor] = {}
        if self.embedding:
            found["text_embedding"] = before if self.penultimate else last
        if self.pooled:
            pooled = last[torch.arange(last.size(0), device=last.device), self.ends(tokens)]
            if self.text_projection is not None:
                pooled = self.text_projection(pooled)
            found["pooled_embedding"] = pooled
        return found


# ------------------------------------------------------------------------------------------------ T5


@dataclass(frozen=True)
class T5Config:
    """Shape of a network, and what is wanted of it."""

    vocabulary: int = 32128
    width: int = 4096
    key_width: int = 64  # channels of a head
    hidden: int = 10240
    depth: int = 24
    heads: int = 64
    gated: bool = True
    activation: str = "gelu_new"
    norm_eps: float = 1e-6
    buckets: int = 32  # of distances
    most_distance: int = 128
    bias_each: bool = False  # every layer has its own bias by distance (UMT5); else the first has it for all
    masked: bool = True  # whether nothing looks at the padding
    mask: bool = True  # whether the mask is given, too
    blank: bool = False  # whether the states of the padding are zeros


class T5LayerWeights(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    norm1: Tensor
    norm2: Tensor
    gate: Optional[Tensor]
    into: Tensor
    back: Tensor
    bias: Tensor  # [buckets, heads]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, to the type of the weights."""
    y = x.to(torch.float32)
    y = x * torch.rsqrt(y.square().mean(dim=2, keepdim=True) + eps)
    return weight * y.to(weight.dtype)


def t5_layer(
    x: Tensor, buckets: Tensor, mask: Optional[Tensor], w: T5LayerWeights, heads: int, eps: float, activation: str
) -> Tensor:
    """x [n, tokens, width], float32 where the last weights are.

    @buckets: int64 [tokens, tokens]. @mask: bool [n, 1, 1, tokens], what all look at.
    """
    y = rms_norm(x, w.norm1, eps)
    split = (heads, w.q.size(0) // heads)
    q = F.linear(y, w.q).unflatten(2, split).transpose(1, 2)
    k = F.linear(y, w.k).unflatten(2, split).transpose(1, 2)
    v = F.linear(y, w.v).unflatten(2, split).transpose(1, 2)
    bias = F.embedding(buckets, w.bias).permute(2, 0, 1).unsqueeze(0)  # [1, heads, tokens, tokens]
    if mask is not None:
        bias = bias.masked_fill(torch.logical_not(mask), -math.inf)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
    x = x + F.linear(z.transpose(1, 2).flatten(2), w.out)
    y = rms_norm(x, w.norm2, eps)
    gate = w.gate
    if gate is not None:
        y = activated(F.linear(y, gate), activation) * F.linear(y, w.into)
    else:
        y = activated(F.linear(y, w.into), activation)
    return x + F.linear(y.to(w.back.dtype), w.back)


class InFloat32(nn.Linear):
    """Whose weights do not become float16: what T5 adds up is too large for it."""

    def _apply(self, fn, recurse=True):
        before = self.weight.data
        super()._apply(fn, recurse)
        if self.weight.dtype == torch.float16:
            self.weight.data = before.to(self.weight.device, torch.float32)
        return self


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, biased: bool):
        super().__init__()
        inner = config.heads * config.key_width
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)
        self.relative_attention_bias = nn.Embedding(config.buckets, config.heads) if biased else None


class T5FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()

        def into(wanted: bool) -> Optional[nn.Linear]:
            return nn.Linear(config.width, config.hidden, bias=False) if wanted else None

        self.wi_0, self.wi_1, self.wi = into(config.gated), into(config.gated), into(not config.gated)
        self.wo = InFloat32(config.hidden, config.width, bias=False)


class T5Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class T5First(nn.Module):
    def __init__(self, config: T5Config, biased: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, biased)
        self.layer_norm = T5Norm(config.width)


class T5Second(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5FeedForward(config)
        self.layer_norm = T5Norm(config.width)


class T5Block(nn.Module):
    def __init__(self, config: T5Config, biased: bool):
        super().__init__()
        self.layer = nn.ModuleList([T5First(config, biased), T5Second(config)])

    def bias(self) -> Optional[Tensor]:
        table = self.layer[0].SelfAttention.relative_attention_bias
        return table.weight if table is not None else None

    def weights(self, bias: Tensor) -> T5LayerWeights:
        """@bias: of the layer whose bias this one takes."""
        a, f = self.layer[0].SelfAttention, self.layer[1].DenseReluDense
        gate: Optional[Tensor] = None
        into: Optional[Tensor] = None
        if f.wi_0 is not None:
            gate = f.wi_0.weight
        if f.wi_1 is not None:
            into = f.wi_1.weight
        if f.wi is not None:
            into = f.wi.weight
        assert into is not None
        norm1, norm2 = self.layer[0].layer_norm.weight, self.layer[1].layer_norm.weight
        return T5LayerWeights(
            a.q.weight, a.k.weight, a.v.weight, a.o.weight, norm1, norm2, gate, into, f.wo.weight, bias
        )


class T5Stack(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.block = nn.ModuleList(T5Block(config, config.bias_each or i == 0) for i in range(config.depth))
        self.final_layer_norm = T5Norm(config.width)


class T5(nn.Module):
    """`forward` takes tokens and their mask, int64 [n, tokens] on any device, and gives text_embedding
    [n, tokens, width] and text_mask, the mask."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.heads, self.norm_eps, self.activation = config.heads, config.norm_eps, config.activation
        self.buckets, self.most_distance = config.buckets, config.most_distance
        self.masked, self.mask, self.blank = config.masked, config.mask, config.blank
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = T5Stack(config)

    def distances(self, tokens: Tensor) -> Tensor:
        """int64 [tokens, tokens], in which bucket each token sees each other: far ones by logarithm."""
        places = torch.arange(tokens.size(1), device=tokens.device)
        distance = places[None] - places[:, None]
        half = self.buckets // 2
        exact = half // 2
        far = distance.abs().clamp_min(1).to(torch.float32)
        scaled = torch.log(far / exact) / math.log(self.most_distance / exact) * (half - exact)
        bucket = torch.where(
            distance.abs() < exact, distance.abs(), (exact + scaled.to(torch.int64)).clamp_max(half - 1)
        )
        return bucket + (distance > 0).to(torch.int64) * half

    def forward(self, tokens: Tensor, mask: Tensor) -> Dict[str, Tensor]:
        tokens = tokens.to(self.shared.weight.device)
        mask = mask.to(tokens.device)
        x = F.embedding(tokens, self.shared.weight)
        buckets = self.distances(tokens)
        seen: Optional[Tensor] = None
        if self.masked:
            seen = mask.to(torch.bool)[:, None, None]
        bias: Optional[Tensor] = None
        layers: List[T5LayerWeights] = []
        for block in self.encoder.block:
            own = block.bias()
            if own is not None:
                bias = own
            assert bias is not None
            layers.append(block.weights(bias))
        for weights in layers:
            x = t5_layer(x, buckets, seen, weights, self.heads, self.norm_eps, self.activation)
        x = rms_norm(x, self.encoder.final_layer_norm.weight, self.norm_eps)
        if self.blank:
            x = x.masked_fill(mask.eq(0)[:, :, None], 0.0)
        found = {"text_embedding": x}
        if self.mask:
            found["text_mask"] = mask
        return found


# ------------------------------------------------------------------------------------------------ Gemma


@dataclass(frozen=True)
class GemmaConfig:
    """Shape of a network, and what is wanted of it."""

    vocabulary: int = 256000
    width: int = 2304
    hidden: int = 9216
    depth: int = 26
    heads: int = 8
    key_heads: int = 4  # each for as many heads of queries
    head_width: int = 256
    activation: str = "gelu_pytorch_tanh"
    norm_eps: float = 1e-6
    theta: float = 10000.0
    query_scale: float = 256.0  # queries are divided by its root
    cap: float = 50.0  # of the logits of attention; 0 for none
    window: int = 4096  # how many tokens those layers see, with their own, that do not see all before them
    sliding: Tuple[bool, ...] = (True, False) * 13  # which layers those are
    mask: bool = True  # whether the mask is given, too


class GemmaLayerWeights(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    norm1: Tensor
    norm1_behind: Tensor
    norm2: Tensor
    norm2_behind: Tensor
    gate: Tensor
    into: Tensor
    back: Tensor
    sliding: bool


def centred_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32, by 1 + weight, to the type of x."""
    y = x.to(torch.float32)
    y = y * torch.rsqrt(y.square().mean(dim=2, keepdim=True) + eps)
    return (y * (1.0 + weight.to(torch.float32))).to(x.dtype)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """By the place of each token. x [n, heads, tokens, head width], cosine and sine [tokens, head width / 2]."""
    first, second = x.chunk(2, dim=3)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=3)


def gemma_layer(
    x: Tensor, seen: Tensor, cosine: Tensor, sine: Tensor, w: GemmaLayerWeights, head_width: int, query_scale: float,
    cap: float, eps: float, activation: str,
) -> Tensor:  # fmt: skip
    """x [n, tokens, width]; seen: bool [n, 1, tokens, tokens], what each looks at."""
    y = centred_rms_norm(x, w.norm1, eps)
    q = rotated(F.linear(y, w.q).unflatten(2, (-1, head_width)).transpose(1, 2), cosine, sine)
    k = rotated(F.linear(y, w.k).unflatten(2, (-1, head_width)).transpose(1, 2), cosine, sine)
    v = F.linear(y, w.v).unflatten(2, (-1, head_width)).transpose(1, 2)
    shared = q.size(1) // k.size(1)
    logits = torch.matmul(q, k.repeat_interleave(shared, dim=1).transpose(2, 3)) * query_scale**-0.5
    if cap > 0:
        logits = torch.tanh(logits / cap) * cap
    # Not minus infinity: in the padding there are tokens that see nothing.
    logits = logits.to(torch.float32).masked_fill(torch.logical_not(seen), -3e38)
    z = torch.matmul(logits.softmax(dim=3).to(v.dtype), v.repeat_interleave(shared, dim=1))
    x = x + centred_rms_norm(F.linear(z.transpose(1, 2).flatten(2), w.out), w.norm1_behind, eps)
    y = centred_rms_norm(x, w.norm2, eps)
    y = F.linear(activated(F.linear(y, w.gate), activation) * F.linear(y, w.into), w.back)
    return x + centred_rms_norm(y, w.norm2_behind, eps)


class GemmaNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))


class GemmaAttention(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        inner, key_inner = config.heads * config.head_width, config.key_heads * config.head_width
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, key_inner, bias=False)
        self.v_proj = nn.Linear(config.width, key_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)


class GemmaMlp(nn.Module):
    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)


class GemmaLayer(nn.Module):
    def __init__(self, config: GemmaConfig, sliding: bool):
        super().__init__()
        self.sliding = sliding
        self.self_attn = GemmaAttention(config)
        self.mlp = GemmaMlp(config)
        self.input_layernorm = GemmaNorm(config.width)
        self.post_attention_layernorm = GemmaNorm(config.width)
        self.pre_feedforward_layernorm = GemmaNorm(config.width)
        self.post_feedforward_layernorm = GemmaNorm(config.width)

    def weights(self) -> GemmaLayerWeights:
        a, m = self.self_attn, self.mlp
        return GemmaLayerWeights(
            a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, a.o_proj.weight, self.input_layernorm.weight,
            self.post_attention_layernorm.weight, self.pre_feedforward_layernorm.weight,
            self.post_feedforward_layernorm.weight, m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight,
            self.sliding,
        )  # fmt: skip


class Gemma(nn.Module):
    """`forward` takes tokens and their mask, int64 [n, tokens] on any device, and gives text_embedding
    [n, tokens, width] and text_mask, the mask. Each token sees those before it that the mask has."""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.head_width, self.query_scale, self.cap = config.head_width, config.query_scale, config.cap
        self.norm_eps, self.activation, self.theta = config.norm_eps, config.activation, config.theta
        self.scale = math.sqrt(config.width)  # of the embedding; rounded as the weights are
        self.window, self.mask = config.window, config.mask
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(GemmaLayer(config, sliding) for sliding in config.sliding)
        self.norm = GemmaNorm(config.width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Dict[str, Tensor]:
        table = self.embed_tokens.weight
        tokens = tokens.to(table.device)
        mask = mask.to(tokens.device)
        x = F.embedding(tokens, table)
        x = x * torch.full([], self.scale, dtype=x.dtype, device=x.device)
        places = torch.arange(tokens.size(1), device=tokens.device)
        half = torch.arange(0, self.head_width, 2, device=tokens.device).to(torch.float32) / self.head_width
        angles = places.to(torch.float32)[:, None] * (1.0 / torch.pow(self.theta, half))[None]
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        distance = places[:, None] - places[None]
        before = torch.logical_and(distance[None, None] >= 0, mask.to(torch.bool)[:, None, None])
        near = torch.logical_and(before, distance[None, None] < self.window)
        # Over tensors, as pixart.py says.
        for weights in [layer.weights() for layer in self.layers]:
            seen = near if weights.sliding else before
            x = gemma_layer(
                x, seen, cosine, sine, weights, self.head_width, self.query_scale, self.cap, self.norm_eps,
                self.activation,
            )  # fmt: skip
        found = {"text_embedding": centred_rms_norm(x, self.norm.weight, self.norm_eps)}
        if self.mask:
            found["text_mask"] = mask
        return found


# ------------------------------------------------------------------------------------------------ texts


class TextEncoder(nn.Module):
    """`forward` takes n texts and gives what the network gives; `tokenize` gives what the tokenizer gives."""

    def __init__(self, tokenizer: nn.Module, network: nn.Module):
        super().__init__()
        self.tokenizer = tokenizer
        self.network = network

    @torch.jit.export
    def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:
        return self.tokenizer(texts)

    @torch.jit.export
    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> Dict[str, Tensor]:
        return self.network(tokens, mask)

    def forward(self, texts: List[str]) -> Dict[str, Tensor]:
        tokens, mask, _ = self.tokenizer(texts)
        return self.network(tokens, mask)


class InstructedTextEncoder(nn.Module):
    """The same for a network that was trained on texts with an instruction before them (Sana, arXiv 2410.10629, 3.1).

    `forward` puts it before the texts, and gives the states of the first token and of the last ones that a text may
    have, @tokenizer.length together; `tokenize` gives the tokens and the mask of these. `encode_negative` takes what
    guidance leads away from, which has no instruction.

    @room: tokens of instruction and text together.
    """

    def __init__(self, tokenizer: nn.Module, network: nn.Module, instruction: str, room: int):
        super().__init__()
        self.tokenizer = tokenizer
        self.network = network
        self.instruction = instruction
        self.room = room
        self.length = tokenizer.length

    def kept(self, all: Tensor) -> Tensor:
        return torch.cat([all[:, :1], all[:, self.room - self.length + 1 :]], dim=1)

    @torch.jit.export
    def tokenize(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:
        tokens, mask, cut = self.tokenizer.rows(texts, self.instruction, self.room)
        return self.kept(tokens), self.kept(mask), cut

    @torch.jit.export
    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> Dict[str, Tensor]:
        return self.network(tokens, mask)

    @torch.jit.export
    def encode_negative(self, texts: List[str]) -> Dict[str, Tensor]:
        tokens, mask, _ = self.tokenizer(texts)
        return self.network(tokens, mask)

    def forward(self, texts: List[str]) -> Dict[str, Tensor]:
        tokens, mask, _ = self.tokenizer.rows(texts, self.instruction, self.room)
        found: Dict[str, Tensor] = {}
        for name, all in self.network(tokens, mask).items():
            found[name] = self.kept(all)
        return found
