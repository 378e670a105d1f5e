"""Writes what diffusion models of the Stable Diffusion, PixArt, Wan and Sana families have to know of a text, as a .pt
file that tstitch reads.

FOLDER is a pipeline of diffusers: tokenizer/ and text_encoder/ (Stable Diffusion 1 and 2, PixArt, Wan, Sana), or
also tokenizer_2/ and text_encoder_2/ (SDXL; its refiner has only these), or also a third of each (Stable Diffusion 3;
text_encoder_3/ may be left out, as diffusers allows). The file is a dictionary of tensors, float32 but for the mask, one
row for each prompt:

    text_embedding [n, tokens, width]   the last hidden states; SDXL: the last but one, of both encoders side by side;
                                        SD3: these, filled up with zeros, and behind them T5's last;
                                        Wan: zeros behind the text; Sana: with an instruction before prompts
    pooled_embedding [n, width]         SDXL: the projected end of the text, of the second encoder; SD3: of both
    size_ids [n, 6]                     SDXL: height and width, crop's top and left, height and width of the target
    text_mask [n, tokens]               PixArt, Sana: int64, 1 where there is text and 0 behind it
    resolution [n, 2]                   PixArt of 1024 pixels: height and width
    aspect_ratio [n, 1]                 PixArt of 1024 pixels: height / width

and each again as "NAME.null" with one row, for the half of classifier-free guidance that does not see the prompt: the
negative prompt, or the empty one. Beside them stands

    prompts                             the texts as they were given, a list of n str

which names and describes the pictures. Needs the Python package transformers.

Texts for PixArt and Sana are put in lower case, and spaces around them dropped, as diffusers does where clean_caption is off or
bs4 and ftfy are not installed. What else clean_caption would do, such as dropping addresses, tags, brackets and #, is
not done here. The size is taken as it is, where diffusers' pipelines go to the nearest one of a list. T5 runs in float32,
for which that of the published networks takes 19 GB of memory. Texts for Wan are cleaned as its pipeline does where ftfy
is not installed. Sana's instruction is diffusers' own, which then must be installed, or that of --instruction.
"""

import argparse
import html
import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import packages

packages.require(__file__, "torch", "transformers", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from common import Config, fail, fill, first_line, load_weights, names_in, replacing, say, some  # noqa: E402
from export_pixart import TEXT_TOKENS, asks_for_sizes, tokens_of  # noqa: E402
from options import add_variant, positive, sides  # noqa: E402

# Bytes of a prompt that tstitch reads (condition_file.hpp). Encoders take some hundred words.
LONGEST_PROMPT = 64 << 10

# What pipelines do with texts before all else, by the names that PREPARATIONS of tokenizer.py has.
PREPARED: dict[object, Callable[[str], str]] = {
    None: lambda text: text,
    "caption": lambda text: text.lower().strip(),
    "clean": lambda text: re.sub(r"\s+", " ", text).strip(),
}

# Of diffusers' pipelines of Wan and Sana.
WAN_TOKENS, SANA_TOKENS = 512, 300

# Of T5 in diffusers' pipeline of Stable Diffusion 3.
SD3_TOKENS = 256

# What the refiner of SDXL is told of how pretty the picture is to be, with the prompt and without.
AESTHETICS, AESTHETICS_NULL = 6.0, 2.5


def find_transformers() -> ModuleType:
    import transformers

    transformers.logging.set_verbosity_error()  # of lengths, which are seen to here
    return transformers


def read_tokenizer(
    kind: type, folder: Path, files: tuple[str, ...], most: int, encoder: Path, fills: int | str | None = None
) -> object:
    """A tokenizer of this class, with at most so many words as its encoder has.

    @fills: what texts are filled up with, where that is not the folder's to say: a token, or "end" for the end of a text.
    """
    name = kind.__name__.removesuffix("Tokenizer")
    if not folder.is_dir():
        fail(f"{folder}: must be a folder, got {'a file' if folder.exists() else 'nothing'}")
    # Without these files a tokenizer comes that knows no word.
    if not any((folder / file).is_file() for file in files):
        fail(f"{folder}: must hold {' or '.join(files)}, got {some(names_in(folder))}")
    # Without these packages transformers takes the file for one of another kind.
    missing = packages.missing_of("sentencepiece", "google.protobuf")
    if (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file() and missing:
        fail(f"{folder / 'spiece.model'}: {packages.advice(missing, Path(__file__).with_name('requirements.txt'))}")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        if fills is not None:
            word = tokenizer.eos_token if fills == "end" else tokenizer.convert_ids_to_tokens(fills)
            tokenizer = kind.from_pretrained(folder, local_files_only=True, pad_token=word)
    except Exception as error:
        fail(f"{folder}: must hold a {name} tokenizer, got '{first_line(error)}'")
    if name.startswith("Gemma"):
        tokenizer.padding_side = "right"  # the file says left, which is for writing on
    if len(tokenizer) > most:
        fail(f"{folder}: must have at most {most} words, as {encoder} has, got {len(tokenizer)}")
    return tokenizer


def tokenize(tokenizer: object, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask [n, length]; tells which of the texts are too long."""
    found = tokenizer(texts, max_length=length, truncation=True, padding="max_length", return_tensors="pt")
    for text in texts:
        count = len(tokenizer(text).input_ids)
        if count > length:
            say(f"'{text[:60]}': cut to the first {length} of {count} tokens")
    return found.input_ids, found.attention_mask


class TextEncoder:
    """One CLIP text encoder of a pipeline and its tokenizer. @suffix is "" or "_2"."""

    def __init__(self, pipeline: Path, suffix: str, projected: bool, variant: str | None):
        transformers = find_transformers()
        folder, tokens = pipeline / f"text_encoder{suffix}", pipeline / f"tokenizer{suffix}"
        config = Config(folder / "config.json")
        wanted = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        if config.get("architectures") != [wanted]:
            config.refuse("architectures", f'must be ["{wanted}"]', config.get("architectures"))
        say(f"reading {folder}")
        self.mask = config.flag("use_attention_mask", False)
        try:
            shape = transformers.CLIPTextConfig.from_dict(config.values)
            self.model = getattr(transformers, wanted)(shape).eval()
        except Exception as error:
            fail(f"{config.path}: must be the shape of a {wanted}, got '{first_line(error)}'")
        fill(self.model, known_names(load_weights(folder, variant), self.model), folder)
        files = ("vocab.json", "tokenizer.json")
        self.tokenizer = read_tokenizer(transformers.CLIPTokenizer, tokens, files, shape.vocab_size, folder)
        self.length = min(self.tokenizer.model_max_length, shape.max_position_embeddings)

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last hidden states [n, tokens, width], those before them, and the pooled projection [n, width]."""
        tokens, mask = tokenize(self.tokenizer, prompts, self.length)
        output = self.model(tokens, attention_mask=mask if self.mask else None, output_hidden_states=True)
        return output.last_hidden_state, output.hidden_states[-2], getattr(output, "text_embeds", None)


class T5Encoder:
    """A T5 or UMT5 text encoder of a pipeline and its tokenizer. @suffix is "" or "_3"."""

    def __init__(self, pipeline: Path, suffix: str, variant: str | None, kind: str = "T5EncoderModel"):
        transformers = find_transformers()
        folder = pipeline / f"text_encoder{suffix}"
        config = Config(folder / "config.json")
        say(f"reading {folder}")
        try:
            shape = getattr(transformers, kind.replace("EncoderModel", "Config")).from_dict(config.values)
            with torch.device("meta"):  # it is large, and the weights come from the file
                self.model = getattr(transformers, kind)(shape).eval()
        except Exception as error:
            fail(f"{config.path}: must be the shape of a {kind}, got '{first_line(error)}'")
        fill(self.model, with_both_names(load_weights(folder, variant), folder), folder)
        files = ("spiece.model", "tokenizer.json")
        tokens = pipeline / f"tokenizer{suffix}"
        self.width = shape.d_model
        words = transformers.T5Tokenizer if kind[0] == "T" else transformers.PreTrainedTokenizerFast
        self.tokenizer = read_tokenizer(words, tokens, files, shape.vocab_size, folder)

    def __call__(self, prompts: list[str], length: int, masked: bool) -> tuple[Tensor, Tensor]:
        """The last hidden states [n, length, width], and where there is text, int64 [n, length].

        @masked: what is filled up is not attended to.
        """
        tokens, mask = tokenize(self.tokenizer, prompts, length)
        return self.model(tokens, attention_mask=mask if masked else None).last_hidden_state, mask


class GemmaEncoder:
    """The Gemma 2 text encoder of a pipeline and its tokenizer."""

    def __init__(self, pipeline: Path, variant: str | None):
        transformers = find_transformers()
        folder = pipeline / "text_encoder"
        config = Config(folder / "config.json")
        say(f"reading {folder}")
        try:
            shape = transformers.Gemma2Config.from_dict(config.values)
            with torch.device("meta"):
                self.model = transformers.Gemma2Model(shape).eval()
            give_angles(self.model, shape)
        except Exception as error:
            fail(f"{config.path}: must be the shape of a Gemma2Model, got '{first_line(error)}'")
        fill(self.model, gemma_names(load_weights(folder, variant), folder), folder)
        kind = transformers.GemmaTokenizerFast
        self.tokenizer = read_tokenizer(kind, pipeline / "tokenizer", ("tokenizer.json",), shape.vocab_size, folder)

    def __call__(self, prompts: list[str], length: int, instruction: str = "") -> tuple[Tensor, Tensor]:
        """The last hidden states [n, length, width], and where there is text, int64 [n, length].

        @instruction: put before each text; of both the first token is kept, and the last ones that a text may have.
        """
        room = room_for(instruction, self.tokenizer, length)
        tokens, mask = tokenize(self.tokenizer, [instruction + prompt for prompt in prompts], room)
        kept = [0, *range(room - length + 1, room)]
        return self.model(tokens, attention_mask=mask).last_hidden_state[:, kept], mask[:, kept]


def room_for(instruction: str, tokenizer: object, length: int) -> int:
    """Tokens of instruction and text together, as diffusers' pipeline counts them."""
    if not instruction:
        return length
    count = len(tokenizer(instruction).input_ids)
    if count < 2:
        fail(f"--instruction: must have 2 tokens or more, got {count}")
    return count + length - 2


def read_instruction(args: argparse.Namespace, instructed: bool) -> str:
    """What is put before prompts: of --instruction, else what diffusers' pipeline takes where nothing is said.

    @instructed: whether it is a pipeline that does.
    """
    given = args.instruction
    if given == "none" or given is None and not instructed:
        return ""
    if given is not None:
        try:
            return Path(given).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{given}: must be a file of UTF-8 that can be read, got '{first_line(error)}'")
    name = Config(args.folder / "model_index.json").get("_class_name")
    try:
        import diffusers

        call = getattr(diffusers, name).__call__
        return "\n".join(inspect.signature(call).parameters["complex_human_instruction"].default)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        fail(
            f"{args.folder}: diffusers must be installed and know what a {name} puts before prompts, "
            f"or --instruction be given, got '{first_line(error)}'"
        )


def gemma_names(weights: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """Without what a language model has around the network: the name of it, and the way back to words."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items() if name != "lm_head.weight"}


def give_angles(model: nn.Module, shape: object) -> None:
    """What a network of transformers on the meta device computes when it is made, from one of few weights."""
    few = {"num_hidden_layers": 1, "layer_types": shape.layer_types[:1], "vocab_size": 1, "intermediate_size": 1}
    small = type(model)(type(shape).from_dict(shape.to_dict() | few | {"pad_token_id": 0}))
    for name, buffer in small.named_buffers():
        where, _, last = name.rpartition(".")
        setattr(model.get_submodule(where), last, buffer)


def with_both_names(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The same weights of a T5; its table of words has two names, of which files may have either."""
    names = ("shared.weight", "encoder.embed_tokens.weight")
    tables = [weights[name] for name in names if name in weights]
    if not tables:
        fail(f"{folder}: must hold every tensor of the network, got none called {names[0]}")
    if not torch.equal(tables[0], tables[-1]):
        fail(f"{folder}: {names[1]} must be {names[0]}, got another")
    table = tables[0].float()  # here, so that both are one in memory
    return {**weights, **dict.fromkeys(names, table)}


def known_names(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same weights under the model's names: some versions of transformers have "text_model." before them."""
    bare = {name.removeprefix("text_model."): name for name in model.state_dict()}
    named = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # 0, 1, 2 ...: older versions kept them
            continue
        name = name.removeprefix("text_model.")
        named[bare.get(name, name)] = tensor
    return named


def picture_size(pipeline: Path, given: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width in pixels: what is given, else what the network was made for."""
    paths = [pipeline / part / "config.json" for part in ("unet", "transformer")]
    path = next((p for p in paths if p.is_file()), None)
    size = given
    if size is None and path is not None:
        value = Config(path).get("sample_size", 128)
        sizes = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int) and 0 < n <= 65536 for n in sizes):
            fail(f"{path}: sample_size must be an integer, or height and width, got {value}")
        size = (8 * sizes[0], 8 * sizes[-1])
    return size or (1024, 1024)


@torch.no_grad()
def encode(args: argparse.Namespace) -> dict[str, Tensor]:
    pipeline = args.folder
    if not pipeline.is_dir():
        got = "a file; export_text_encoder.py takes those of Stable Diffusion" if pipeline.exists() else "nothing"
        fail(f"{pipeline}: must be a folder, got {got}")
    parts = [suffix for suffix in ("", "_2") if (pipeline / f"text_encoder{suffix}").is_dir()]
    index = pipeline / "model_index.json"
    kind = Config(index).values.get("_class_name") if index.is_file() else None
    of_sd3 = (pipeline / "text_encoder_3").is_dir() or isinstance(kind, str) and kind.startswith("StableDiffusion3")
    if not parts or of_sd3 and len(parts) < 2:
        found = some([name for name in names_in(pipeline) if name.startswith("text_encoder")])
        fail(f"{pipeline}: must hold {'text_encoder and text_encoder_2' if of_sd3 else 'text_encoder, text_encoder_2 or both'}, got {found}")
    texts = [*args.prompts, args.negative or ""]
    if of_sd3:
        return encode_for_stable_diffusion_3(args, texts)
    kinds = {"T5EncoderModel": encode_for_pixart, "UMT5EncoderModel": encode_for_wan, "Gemma2Model": encode_for_sana}
    names = Config(pipeline / "text_encoder/config.json").get("architectures") if parts == [""] else None
    if isinstance(names, list) and len(names) == 1 and names[0] in kinds:
        return kinds[names[0]](args, texts)
    return encode_for_stable_diffusion(args, texts, parts)


def encode_for_pixart(args: argparse.Namespace, texts: list[str]) -> dict[str, Tensor]:
    pipeline = args.folder
    length = args.text_tokens or tokens_of(pipeline)
    if length is None:
        kinds = " or ".join(f"{prefix}Pipeline" for prefix in TEXT_TOKENS)
        fail(f"{pipeline}: model_index.json must be of a {kinds}, or --text-tokens be given, got neither")
    transformer = pipeline / "transformer" / "config.json"
    sized = transformer.is_file() and asks_for_sizes(Config(transformer))
    encoder = T5Encoder(pipeline, "", args.variant)
    say(f"encoding {len(texts)} texts")
    embedding, mask = encoder([PREPARED["caption"](text) for text in texts], length, masked=True)
    found = {"text_embedding": embedding, "text_mask": mask}
    if sized:
        height, width = picture_size(pipeline, args.size)
        found["resolution"] = torch.tensor([[float(height), float(width)]]).repeat(len(texts), 1)
        found["aspect_ratio"] = torch.tensor([[height / width]]).repeat(len(texts), 1)
    return split(found)


def encode_for_wan(args: argparse.Namespace, texts: list[str]) -> dict[str, Tensor]:
    encoder = T5Encoder(args.folder, "", args.variant, "UMT5EncoderModel")
    say(f"encoding {len(texts)} texts")
    texts = [PREPARED["clean"](html.unescape(html.unescape(text))) for text in texts]
    embedding, mask = encoder(texts, args.text_tokens or WAN_TOKENS, masked=True)
    return split({"text_embedding": embedding * mask[:, :, None]})


def encode_for_sana(args: argparse.Namespace, texts: list[str]) -> dict[str, Tensor]:
    instruction, length = read_instruction(args, True), args.text_tokens or SANA_TOKENS
    encoder = GemmaEncoder(args.folder, args.variant)
    say(f"encoding {len(texts)} texts")
    *prompts, negative = [PREPARED["caption"](text) for text in texts]
    parts = [encoder(prompts, length, instruction), encoder([negative], length)]
    embedding, mask = (torch.cat(both) for both in zip(*parts))
    return split({"text_embedding": embedding, "text_mask": mask})


def encode_for_stable_diffusion_3(args: argparse.Namespace, texts: list[str]) -> dict[str, Tensor]:
    pipeline, length = args.folder, args.text_tokens or SD3_TOKENS
    encoders = [TextEncoder(pipeline, suffix, True, args.variant) for suffix in ("", "_2")]
    t5 = T5Encoder(pipeline, "_3", args.variant) if (pipeline / "text_encoder_3").is_dir() else None
    transformer = pipeline / "transformer" / "config.json"
    width = t5.width if t5 else Config(transformer).integer("joint_attention_dim", 4096) if transformer.is_file() else 4096
    say(f"encoding {len(texts)} texts" + ("" if t5 else f", without T5: zeros are in its place, for {length} tokens"))
    outputs = [encoder(texts) for encoder in encoders]
    clip = torch.cat([before for _, before, _ in outputs], dim=2)
    if clip.size(2) > width:
        fail(f"{pipeline}: both CLIP encoders must be at most {width} wide, as the transformer's text is, got {clip.size(2)}")
    clip = torch.nn.functional.pad(clip, (0, width - clip.size(2)))
    # As the networks were trained, T5 attends to what is filled up, too.
    long = t5(texts, length, masked=False)[0] if t5 else torch.zeros(len(texts), length, width)
    pooled = torch.cat([projected for *_, projected in outputs], dim=1)
    return split({"text_embedding": torch.cat([clip, long], dim=1), "pooled_embedding": pooled})


def encode_for_stable_diffusion(args: argparse.Namespace, texts: list[str], parts: list[str]) -> dict[str, Tensor]:
    pipeline = args.folder
    encoders = [TextEncoder(pipeline, suffix, suffix == "_2", args.variant) for suffix in parts]
    say(f"encoding {len(texts)} texts")
    outputs = [encoder(texts) for encoder in encoders]
    if "_2" not in parts:
        return split({"text_embedding": outputs[0][0]})

    index = pipeline / "model_index.json"
    notes = Config(index) if index.is_file() else None
    embedding = torch.cat([before for _, before, _ in outputs], dim=2)
    pooled = outputs[-1][2]
    if args.negative is None and (notes is None or notes.flag("force_zeros_for_empty_prompt", True)):
        embedding[-1], pooled[-1] = 0, 0  # as SDXL was trained: no prompt is no text at all
    height, width = picture_size(pipeline, args.size)
    if notes is not None and notes.flag("requires_aesthetics_score", False):
        ids = torch.tensor([[height, width, 0.0, 0.0, AESTHETICS]]).repeat(len(texts), 1)
        ids[-1, -1] = AESTHETICS_NULL
    else:
        ids = torch.tensor([[height, width, 0.0, 0.0, height, width]]).repeat(len(texts), 1)
    return split({"text_embedding": embedding, "pooled_embedding": pooled, "size_ids": ids})


def split(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last row is the null counterpart."""
    result = {}
    for name, tensor in rows.items():
        if not tensor.isfinite().all():
            fail(f"{name}: must be finite, got nan or infinity")
        # Copies: a view would be saved with all that it is a view of.
        for key, part in ((name, tensor[:-1]), (name + ".null", tensor[-1:])):
            result[key] = (part.float() if part.is_floating_point() else part).contiguous().clone()
    return result


def require_text(option: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # bytes of a command line that are not UTF-8 come as lone surrogates
        fail(f"{option}: must be UTF-8, got {ascii(text[:60])}")
    if size > LONGEST_PROMPT:
        fail(f"{option}: must have at most {LONGEST_PROMPT} bytes, got {size}")


def save(tensors: dict[str, Tensor], prompts: list[str], output: Path) -> None:
    buffer = io.BytesIO()
    torch.save({**tensors, "prompts": prompts}, buffer)
    with replacing(output) as temporary:
        temporary.write_bytes(buffer.getvalue())
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()]
    print(f"{output}: " + ", ".join([*shapes, f"prompts [{len(prompts)}]"]))


def add_instruction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instruction",
        metavar="FILE",
        help="Gemma: the text that is put before every prompt, as it is but for a line feed at its end, or none "
        "(default: what the pipeline takes)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a pipeline of diffusers")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the .pt file to write")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="one row of the result each")
    parser.add_argument("--negative", metavar="TEXT", help="what guidance is to lead away from (default: no text)")
    parser.add_argument(
        "--size",
        type=sides,
        metavar="N",
        help="SDXL and PixArt of 1024 pixels: pixels of the picture, N or HxW (default: the network's)",
    )
    parser.add_argument(
        "--text-tokens",
        type=positive,
        metavar="N",
        help="tokens of a text of T5 or Gemma (default: 120 for PixArt-alpha, 300 for PixArt-Sigma and Sana, 256 for Stable "
        "Diffusion 3, 512 for Wan)",
    )
    add_instruction(parser)
    add_variant(parser)
    args = parser.parse_args()
    for prompt in args.prompts:
        require_text("PROMPT", prompt)
    require_text("--negative", args.negative or "")
    save(encode(args), args.prompts, args.output)


if __name__ == "__main__":
    main()
