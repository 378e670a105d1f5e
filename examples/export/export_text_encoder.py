"""Writes a text encoder with its tokenizer as one TorchScript file that takes texts.

FOLDER is a pipeline of diffusers with tokenizer/ and text_encoder/, and perhaps tokenizer_2/, text_encoder_2/ and so
on, or a file of Stable Diffusion 1, 2 or XL in the layout of its makers and --tokenizer. --part says one encoder: a
CLIPTextModel, a CLIPTextModelWithProjection, a T5EncoderModel, a UMT5EncoderModel or a Gemma2Model. A program in C++ loads the
file (`load_text_encoder`) and needs neither Python nor another library to encode a prompt.
The file gives, float but for the mask, one row for each text:

    text_embedding [n, tokens, width]   hidden states: the last, or the last but one
    pooled_embedding [n, width]         CLIP: the end of the text, projected where the network has a projection
    text_mask [n, tokens]               T5, Gemma: int64, 1 where there is text and 0 behind it

What of it is wanted, the number of tokens, and what is done with texts before, such as lower case, is what the pipelines
of diffusers do: Stable Diffusion 1 to 3, SDXL, latent consistency models, PixArt-alpha and Sigma, FLUX, Wan, Sana. For
another pipeline the options say it. Texts are cut after the last token that there is room for; they may have up to
64 KiB of UTF-8. Texts for Wan have their white space reduced; what else its pipeline does, which is to replace &amp; and
the like, and with ftfy letters in a wrong encoding, is not done here.

Sana puts an instruction before prompts, and not before what guidance leads away from. It is in the file; it is taken
from diffusers, which then must be installed, or from --instruction.

The tokenizer's tables are asked of the tokenizer itself, by way of transformers, which is needed here; the tokens of
some hundred texts and the numbers that come out are compared with those of transformers before the file is written.
"""

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import packages

packages.require(__file__, "torch", "transformers", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from common import Config, TorchScript, fail, fill, first_line, load_weights, require_place, say, some, write  # noqa: E402
from encode_prompt import (  # noqa: E402
    PREPARED, add_instruction, find_transformers, gemma_names, give_angles, known_names, read_instruction, read_tokenizer,
    room_for, with_both_names,
)  # fmt: skip
from options import folder_parser, positive  # noqa: E402
from single_file import WITH_TEXTS, config_of, has, index_of, is_padded_by_zero, parts_in, weights_of  # noqa: E402
from text_encoder import Clip, ClipConfig, Gemma, GemmaConfig, InstructedTextEncoder, T5, T5Config, TextEncoder  # noqa: E402
from tokenizer import CHARACTERS, Tokenizer, make_tokenizer  # noqa: E402

SANA = {"text_encoder": {"tokens": 300, "preparation": "caption", "instructed": True}}
PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
LAST, PENULTIMATE = {"penultimate": False}, {"penultimate": True}
# By how the names of pipelines begin, what each takes of its encoders. The first that fits counts.
PIPELINES: dict[str, dict[str, dict[str, object]]] = {
    "StableDiffusionXL": {
        "text_encoder": PENULTIMATE | {"zeros": True},
        "text_encoder_2": PENULTIMATE | {"pooled": True, "zeros": True},
    },
    "StableDiffusion3": {
        "text_encoder": PENULTIMATE | {"pooled": True},
        "text_encoder_2": PENULTIMATE | {"pooled": True},
        "text_encoder_3": {"tokens": 256, "masked": False, "mask": False},
    },
    "StableDiffusion": {"text_encoder": LAST},
    "LatentConsistencyModel": {"text_encoder": LAST},
    "PixArtAlpha": {"text_encoder": {"tokens": 120, "preparation": "caption"}},
    "PixArtSigma": {"text_encoder": {"tokens": 300, "preparation": "caption"}},
    "Flux": {
        "text_encoder": {"penultimate": False, "embedding": False, "pooled": True},
        "text_encoder_2": {"tokens": 512, "masked": False, "mask": False},
    },
    "Wan": {"text_encoder": {"tokens": 512, "preparation": "clean", "mask": False, "blank": True}},
    "SanaPipeline": SANA,
    "SanaPAG": SANA,
    "SanaSprint": SANA,
}
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")

# What the written file is checked with.
PROMPTS = [
    "A photograph of an astronaut riding a horse, it's 35mm!",
    "",
    "ein größeres Café, ЁЖ, 一只猫 🦊",
    "many words " * 400,
]


def wanted_of(args: argparse.Namespace) -> dict[str, object]:
    """What the pipeline takes of this encoder; what the options say, where it is unknown or they are given."""
    index = index_of(args.folder)
    name = index.get("_class_name") if index else None
    found = next((parts for start, parts in PIPELINES.items() if isinstance(name, str) and name.startswith(start)), {})
    wanted = dict(found.get(args.part, {}))
    if args.states is not None:
        wanted["penultimate"] = args.states == "penultimate"
    if args.text_tokens is not None:
        wanted["tokens"] = args.text_tokens
    return wanted


def read_clip(
    args: argparse.Namespace, config: Config, shape: object, wanted: dict[str, object]
) -> tuple[ClipConfig, int]:
    """The network, and the tokens of a text."""
    projected = config.get("architectures") == ["CLIPTextModelWithProjection"]
    if "penultimate" not in wanted:
        fail(f"{args.folder}: model_index.json must be of a pipeline that is known, or --states be given, got neither")
    clip = ClipConfig(
        vocabulary=shape.vocab_size,
        width=shape.hidden_size,
        hidden=shape.intermediate_size,
        depth=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        tokens=shape.max_position_embeddings,
        activation=shape.hidden_act,
        norm_eps=shape.layer_norm_eps,
        projection=shape.projection_dim if projected else 0,
        end=shape.eos_token_id,
        masked=config.flag("use_attention_mask", False),
        penultimate=wanted["penultimate"],
        embedding=wanted.get("embedding", True),
        pooled=wanted.get("pooled", projected),
    )
    if wanted.get("tokens", 1) > clip.tokens:
        config.refuse("max_position_embeddings", f"must be at least --text-tokens {wanted['tokens']}", clip.tokens)
    return clip, wanted.get("tokens", clip.tokens)


def read_t5(args: argparse.Namespace, config: Config, shape: object, wanted: dict[str, object]) -> tuple[T5Config, int]:
    t5 = T5Config(
        vocabulary=shape.vocab_size,
        width=shape.d_model,
        key_width=shape.d_kv,
        hidden=shape.d_ff,
        depth=shape.num_layers,
        heads=shape.num_heads,
        gated=shape.is_gated_act,
        activation=shape.dense_act_fn,
        norm_eps=shape.layer_norm_epsilon,
        buckets=shape.relative_attention_num_buckets,
        most_distance=shape.relative_attention_max_distance,
        bias_each=config.get("architectures") == ["UMT5EncoderModel"],
        masked=wanted.get("masked", True),
        mask=wanted.get("mask", True),
        blank=wanted.get("blank", False),
    )
    return t5, text_tokens(args, wanted)


def read_gemma(
    args: argparse.Namespace, config: Config, shape: object, wanted: dict[str, object]
) -> tuple[GemmaConfig, int]:
    config.only("attention_bias", False)
    config.only("use_bidirectional_attention", None, False)
    rope = shape.rope_parameters
    if rope.get("rope_type", "default") != "default":
        config.refuse("rope_parameters", "must be of type default", rope)
    gemma = GemmaConfig(
        vocabulary=shape.vocab_size,
        width=shape.hidden_size,
        hidden=shape.intermediate_size,
        depth=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        key_heads=shape.num_key_value_heads,
        head_width=shape.head_dim,
        activation=shape.hidden_activation,
        norm_eps=shape.rms_norm_eps,
        theta=float(rope["rope_theta"]),
        query_scale=float(shape.query_pre_attn_scalar),
        cap=float(shape.attn_logit_softcapping or 0),
        window=shape.sliding_window or shape.max_position_embeddings,
        sliding=tuple(kind == "sliding_attention" for kind in shape.layer_types),
        mask=wanted.get("mask", True),
    )
    return gemma, text_tokens(args, wanted)


def text_tokens(args: argparse.Namespace, wanted: dict[str, object]) -> int:
    if "tokens" not in wanted:
        fail(
            f"{args.folder}: model_index.json must be of a pipeline that is known, or --text-tokens be given, got neither"
        )
    return wanted["tokens"]


def clip_names(weights: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """Under the names of ours, which are those of published files: newer ones leave out "text_model."."""
    named = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # 0, 1, 2 ...: older versions kept them
            continue
        bare = name.startswith(("text_model.", "text_projection."))
        named[name if bare else f"text_model.{name}"] = tensor
    return named


def t5_names(weights: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """The table of words under one name of the two that files have."""
    both = with_both_names(weights, place)
    return {name: tensor for name, tensor in both.items() if name != "encoder.embed_tokens.weight"}


@dataclass(frozen=True)
class Kind:
    """A family of text encoders. The classes are transformers'."""

    config: str
    tokenizer: str
    files: tuple[str, ...]  # of which the tokenizer's folder has one
    read: Callable[..., tuple[ClipConfig | T5Config | GemmaConfig, int]]
    network: Callable[..., nn.Module]
    names: Callable[[dict[str, Tensor], Path], dict[str, Tensor]]  # of tensors as ours has them
    peer_names: Callable[[dict[str, Tensor], nn.Module, Path], dict[str, Tensor]]  # and as transformers has them
    activation: str  # the key that says which


CLIP = Kind(
    "CLIPTextConfig", "CLIPTokenizer", ("vocab.json", "tokenizer.json"), read_clip, Clip, clip_names,
    lambda weights, model, place: known_names(weights, model), "hidden_act",
)  # fmt: skip
T5_FILES = ("spiece.model", "tokenizer.json")
KINDS = {
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "T5EncoderModel": Kind(
        "T5Config", "T5Tokenizer", T5_FILES, read_t5, T5, t5_names,
        lambda weights, model, place: with_both_names(weights, place), "feed_forward_proj",
    ),
    "UMT5EncoderModel": Kind(
        "UMT5Config", "PreTrainedTokenizerFast", T5_FILES, read_t5, T5, t5_names,
        lambda weights, model, place: with_both_names(weights, place), "feed_forward_proj",
    ),
    "Gemma2Model": Kind(
        "Gemma2Config", "GemmaTokenizerFast", ("tokenizer.json",), read_gemma, Gemma, gemma_names,
        lambda weights, model, place: weights, "hidden_activation",
    ),
}  # fmt: skip


class Peer(nn.Module):
    """transformers' tokenizer and network, for rows of PROMPTS."""

    def __init__(
        self, tokenizer: object, model: nn.Module, network: nn.Module, length: int, prepare: Callable[[str], str],
        instruction: str, room: int,
    ):  # fmt: skip
        super().__init__()
        self.tokenizer, self.model, self.length, self.prepare = tokenizer, model, length, prepare
        self.instruction, self.room = instruction, room
        clip = isinstance(network, Clip)
        self.masked = getattr(network, "masked", True)
        self.penultimate, self.blank = clip and network.penultimate, getattr(network, "blank", False)
        self.embedding = not clip or network.embedding
        self.pooled = clip and network.pooled

    def encode(self, texts: list[str], length: int) -> dict[str, Tensor]:
        found = self.tokenizer(texts, max_length=length, truncation=True, padding="max_length", return_tensors="pt")
        mask = found.attention_mask if self.masked else None
        output = self.model(found.input_ids, attention_mask=mask, output_hidden_states=True)
        parts = {}
        if self.embedding:
            parts["text_embedding"] = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        if self.blank:
            parts["text_embedding"] = parts["text_embedding"] * found.attention_mask[:, :, None]
        if self.pooled:
            parts["pooled_embedding"] = output.text_embeds if "text_embeds" in output else output.pooler_output
        return parts

    def forward(self, rows: Tensor) -> Tensor:
        texts = [self.prepare(PROMPTS[row]) for row in rows.tolist()]
        negative = numbers_of(self.encode(texts, self.length))
        if not self.instruction:
            return negative
        states = self.encode([self.instruction + text for text in texts], self.room)["text_embedding"]
        kept = [0, *range(self.room - self.length + 1, self.room)]
        return torch.cat([numbers_of({"text_embedding": states[:, kept]}), negative])


def numbers_of(outputs: dict[str, Tensor]) -> Tensor:
    """All in a row, for a check that takes one tensor. Without states that are zeros, beside which an error would seem large."""
    tensors = [outputs[name].float() for name in sorted(outputs) if name != "text_mask"]
    return torch.cat([tensor[tensor.ne(0).any(-1)].flatten() for tensor in tensors])


class TextScript(TorchScript):
    """As a file whose texts are rows of PROMPTS where it is checked."""

    def __init__(self, kind: Kind):
        if kind.network is Gemma:
            # Every layer norms what it adds, which keeps what was rounded, and the worst of all states counts.
            self.tolerance = self.tolerance | {"float16": 0.1, "bfloat16": 0.5}

    def load(self, path: Path, network: nn.Module) -> list[tuple[int, Callable[..., Tensor]]]:
        written = torch.jit.load(path, map_location="cpu").eval()
        methods = [written.forward, *([written.encode_negative] if hasattr(written, "encode_negative") else [])]

        def call(rows: Tensor) -> Tensor:
            texts = [PROMPTS[row] for row in rows.tolist()]
            return torch.cat([numbers_of(method(texts)) for method in methods])

        return [(sys.maxsize, call)]


def check_tokens(
    place: Path, tokenizer: Tokenizer, peer: object, prepare: Callable[[str], str], instruction: str
) -> None:
    """Some hundred texts, of words of any characters."""
    generator = random.Random(0)
    starts = [generator.randrange(len(CHARACTERS)) if k % 2 else generator.randrange(0x3400) for k in range(600)]
    words = ["".join(generator.choice(CHARACTERS[s : s + 64]) for _ in range(generator.randint(1, 8))) for s in starts]
    texts = [*PROMPTS, *(" ".join(words[k : k + 3]) for k in range(0, len(words), 3)), *words[::3]]
    scripted = torch.jit.script(tokenizer)
    for text in texts:
        got = scripted.before + scripted.tokens(text, instruction) + scripted.behind
        expected = peer(instruction + prepare(text)).input_ids
        if got != expected:
            fail(
                f"{place}: not written: the tokens of {ascii(text[:60])} must be those of transformers, {expected[:20]}, got {got[:20]}"
            )


def tokenizer_of(args: argparse.Namespace) -> Path:
    """The folder of the part's tokenizer."""
    name = args.part.replace("text_encoder", "tokenizer")
    if args.tokenizer is None:
        if args.folder.is_file():
            fail(f"--tokenizer: must be given for a single file, which has no tokenizer, got none for {args.folder}")
        return args.folder / name
    # The tokenizers of a model's parts have the same words.
    return next((args.tokenizer / part for part in (name, "tokenizer", "tokenizer_2") if (args.tokenizer / part).is_dir()), args.tokenizer)


def filling_of(args: argparse.Namespace, clip: ClipConfig) -> int | str | None:
    """What short texts are filled up with, where the tokenizer may be another encoder's: OpenCLIP was trained with token 0,
    and CLIP of OpenAI, whose activation is another, with the end. None: what the tokenizer says."""
    if args.folder.is_file():
        return 0 if is_padded_by_zero(args.folder, args.part) else "end"
    if args.tokenizer is None:
        return None
    return {"gelu": 0, "quick_gelu": "end"}.get(clip.activation)


def main() -> None:
    parser = folder_parser(__doc__, "", ".pt", "float32", WITH_TEXTS)
    parser.add_argument("--part", choices=PARTS, default=PARTS[0], help="which encoder (default: %(default)s)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="of a tokenizer, or a pipeline of diffusers that has one (default: FOLDER's; a single file has none)",
    )
    parser.add_argument(
        "--states",
        choices=["last", "penultimate"],
        help="CLIP: which hidden states are the embedding (default: what the pipeline takes)",
    )
    parser.add_argument(
        "--text-tokens",
        type=positive,
        metavar="N",
        help="tokens of a text (default: what the pipeline takes; CLIP: all that the network has places for)",
    )
    add_instruction(parser)
    parser.add_argument("--license", default="", help="licence of the weights")
    args = parser.parse_args()
    require_place(args.output)

    pipeline = args.folder
    if not pipeline.exists():
        fail(f"{pipeline}: must be a folder or a file, got nothing")
    if not has(pipeline, args.part):
        fail(f"{pipeline}: must hold {args.part}, got {some(parts_in(pipeline))}")
    words = tokenizer_of(args)
    folder = pipeline if pipeline.is_file() else pipeline / args.part
    transformers = find_transformers()
    config = config_of(pipeline, args.part) if pipeline.is_file() else Config(folder / "config.json")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if name not in KINDS:
        config.refuse("architectures", f"must be one of {', '.join(KINDS)}", names)
    kind = KINDS[name]
    wanted = wanted_of(args)
    try:
        shape = getattr(transformers, kind.config).from_dict(config.values)
        # Of CLIP, which is small, the numbers of the places must have values.
        with torch.device("cpu" if kind is CLIP else "meta"):
            model = getattr(transformers, name)(shape).eval()
        if kind.network is Gemma:
            give_angles(model, shape)
    except Exception as error:
        fail(f"{config.path}: must be the shape of a {name}, got '{first_line(error)}'")
    read, length = kind.read(args, config, shape, wanted)
    if read.activation not in ACTIVATIONS:
        config.refuse(kind.activation, f"must be of {', '.join(ACTIVATIONS)}", read.activation)
    if args.instruction is not None and kind.network is not Gemma:
        fail(f"--instruction: must be left out for a {name}, got '{args.instruction}'")
    instruction = read_instruction(args, wanted.get("instructed", False))

    fills = filling_of(args, read) if kind is CLIP else None
    peer_tokenizer = read_tokenizer(getattr(transformers, kind.tokenizer), words, kind.files, read.vocabulary, folder, fills)
    if kind is CLIP:
        length = min(length, peer_tokenizer.model_max_length)
    preparation = wanted.get("preparation")
    prepare = PREPARED[preparation]
    say(f"reading {words}")
    tokenizer = make_tokenizer(words, peer_tokenizer, length, preparation)
    room = room_for(instruction, peer_tokenizer, length)
    check_tokens(args.output, tokenizer, peer_tokenizer, prepare, instruction)

    place = args.weights or folder
    say(f"reading {place}")
    with torch.device("meta"):
        network = kind.network(read)
    weights = weights_of(args, config, args.part)
    if weights is None:
        weights = load_weights(place, args.variant)
    fill(network, kind.names(weights, place), place)
    model.load_state_dict(kind.peer_names(network.state_dict(), model, place), assign=True)

    if instruction:
        encoder = InstructedTextEncoder(tokenizer, network, instruction, room).eval()
    else:
        encoder = TextEncoder(tokenizer, network).eval()
    with torch.no_grad():
        sample = encoder.network(torch.zeros(1, length, dtype=torch.int64), torch.ones(1, length, dtype=torch.int64))
    lines = [
        " ".join([output, "float" if t.is_floating_point() else "int64", *map(str, t.shape[1:])])
        for output, t in sample.items()
    ]
    # SDXL was trained so: no prompt is no text at all.
    zeros = wanted.get("zeros", False) and index_of(pipeline).flag("force_zeros_for_empty_prompt", True)
    values = {
        "format": 1,
        "kind": "text_encoder",
        "name": args.name or args.output.stem,
        "architecture": name,
        "outputs": "\n".join(lines),
        "text_tokens": length,
        "no_text": "zeros" if zeros else "encoded",
        **({"instruction": instruction} if instruction else {}),
        "license": args.license,
    }
    peer = Peer(peer_tokenizer, model, network, length, prepare, instruction, room)
    first = iter((0, 1))  # of the rows that are asked for: one and then three others
    write(
        args.output, encoder, values, lambda rows: (torch.arange(rows) + next(first),), args.dtype, peer, TextScript(kind)
    )


if __name__ == "__main__":
    main()
