"""Writes what a diffusion model of the Stable Diffusion family has to know of a text, as a .pt file that tstitch reads.

FOLDER is a pipeline of diffusers: tokenizer/ and text_encoder/ (Stable Diffusion 1 and 2), or also tokenizer_2/ and
text_encoder_2/ (SDXL; its refiner has only these). The file is a dictionary of float32 tensors, one row a prompt:

    text_embedding [n, 77, width]       the last hidden states; SDXL: the last but one, of both encoders side by side
    pooled_embedding [n, width]         SDXL: the projected end of the text, of the second encoder
    size_ids [n, 6]                     SDXL: height and width, crop's top and left, height and width of the target

and each again as "NAME.null" with one row, for the half of classifier-free guidance that does not see the prompt: the
negative prompt, or the empty one. Needs the Python package transformers.
"""

import argparse
import io
import os
from pathlib import Path

import torch
from torch import Tensor

from common import Config, fail, fill, first_line, load_weights, names_in, say, some
from export_unet import sides

# What the refiner of SDXL is told of how pretty the picture is to be, with the prompt and without.
AESTHETICS, AESTHETICS_NULL = 6.0, 2.5


class TextEncoder:
    """One CLIP text encoder of a pipeline and its tokenizer. @suffix is "" or "_2"."""

    def __init__(self, pipeline: Path, suffix: str, projected: bool):
        try:
            import transformers
        except ImportError:
            fail("encode_prompt.py: needs the Python package transformers, got none")
        transformers.logging.set_verbosity_error()  # of lengths, which are seen to here
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
        fill(self.model, known_names(load_weights(folder), self.model), folder)

        if not tokens.is_dir():
            fail(f"{tokens}: must be a folder, got {'a file' if tokens.exists() else 'nothing'}")
        # Without these files a tokenizer comes that knows no word.
        if not any((tokens / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            fail(f"{tokens}: must hold vocab.json or tokenizer.json, got {some(names_in(tokens))}")
        try:
            self.tokenizer = transformers.CLIPTokenizer.from_pretrained(tokens, local_files_only=True)
        except Exception as error:
            fail(f"{tokens}: must hold a CLIP tokenizer, got '{first_line(error)}'")
        if len(self.tokenizer) > shape.vocab_size:
            fail(f"{tokens}: must have at most {shape.vocab_size} words, as {folder} has, got {len(self.tokenizer)}")
        self.length = min(self.tokenizer.model_max_length, shape.max_position_embeddings)

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last hidden states [n, tokens, width], those before them, and the pooled projection [n, width]."""
        options = {"max_length": self.length, "truncation": True}
        found = self.tokenizer(prompts, padding="max_length", return_tensors="pt", **options)
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > self.length:
                say(f"'{prompt[:60]}': cut to the first {self.length} of {count} tokens")
        mask = found.attention_mask if self.mask else None
        output = self.model(found.input_ids, attention_mask=mask, output_hidden_states=True)
        return output.last_hidden_state, output.hidden_states[-2], getattr(output, "text_embeds", None)


def known_names(weights: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
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
    """Height and width in pixels: what is given, else what the U-Net was made for."""
    path = pipeline / "unet" / "config.json"
    size = given
    if size is None and path.is_file():
        value = Config(path).get("sample_size", 128)
        sizes = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int) and 0 < n <= 65536 for n in sizes):
            fail(f"{path}: sample_size must be an integer, or height and width, got {value}")
        size = (8 * sizes[0], 8 * sizes[-1])
    return size or (1024, 1024)


@torch.no_grad()
def encode(
    pipeline: Path, prompts: list[str], negative: str | None, size: tuple[int, int] | None
) -> dict[str, Tensor]:
    if not pipeline.is_dir():
        fail(f"{pipeline}: must be a folder, got {'a file' if pipeline.exists() else 'nothing'}")
    parts = [suffix for suffix in ("", "_2") if (pipeline / f"text_encoder{suffix}").is_dir()]
    if not parts or (pipeline / "text_encoder_3").is_dir():
        found = some([name for name in names_in(pipeline) if name.startswith("text_encoder")])
        fail(f"{pipeline}: must hold text_encoder, text_encoder_2 or both, got {found}")
    encoders = [TextEncoder(pipeline, suffix, suffix == "_2") for suffix in parts]

    texts = [*prompts, negative or ""]
    say(f"encoding {len(texts)} texts")
    outputs = [encoder(texts) for encoder in encoders]
    if "_2" not in parts:
        return split({"text_embedding": outputs[0][0]})

    index = pipeline / "model_index.json"
    notes = Config(index) if index.is_file() else None
    embedding = torch.cat([before for _, before, _ in outputs], dim=2)
    pooled = outputs[-1][2]
    if negative is None and (notes is None or notes.flag("force_zeros_for_empty_prompt", True)):
        embedding[-1], pooled[-1] = 0, 0  # as SDXL was trained: no prompt is no text at all
    height, width = picture_size(pipeline, size)
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
            result[key] = part.float().contiguous().clone()
    return result


def save(tensors: dict[str, Tensor], output: Path) -> None:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    temporary = output.with_name(output.name + ".tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fail(f"{output}: must be a file that can be written, got '{error.strerror}'")
    print(f"{output}: " + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a pipeline of diffusers")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the .pt file to write")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="one row of the result each")
    parser.add_argument("--negative", metavar="TEXT", help="what guidance is to lead away from (default: no text)")
    parser.add_argument(
        "--size", type=sides, metavar="N", help="SDXL: pixels of the picture, N or HxW (default: the U-Net's)"
    )
    args = parser.parse_args()
    save(encode(args.folder, args.prompts, args.negative, args.size), args.output)


if __name__ == "__main__":
    main()
