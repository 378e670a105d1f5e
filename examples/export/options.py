"""What the command lines of the exporters share."""

import argparse
import math
from pathlib import Path

from common import TOLERANCE

# ------------------------------------------------------------------------------------------------ what options read


def finite_real(text: str) -> float:
    """Of an option."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got '{text}'")
    return value


def positive_real(text: str) -> float:
    """Of an option: finite and above 0."""
    value = finite_real(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{text}'")
    return value


def positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 65536:
        raise argparse.ArgumentTypeError(f"must be a number in [1, 65536], got '{text}'")
    return int(text)


def sides(text: str) -> tuple[int, int]:
    """"96" or "64x96": height and width."""
    parts = text.split("x")
    if len(parts) not in (1, 2) or not all(p.isdecimal() and 0 < int(p) <= 65536 for p in parts):
        raise argparse.ArgumentTypeError(f"must be N or HEIGHTxWIDTH, got '{text}'")
    return int(parts[0]), int(parts[-1])


def open_sides(text: str) -> tuple[int | None, int | None]:
    """The same, or "*" for any."""
    try:
        return (None, None) if text == "*" else sides(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be N, HEIGHTxWIDTH or *, got '{text}'") from error


def open_video(text: str) -> tuple[int | None, ...]:
    """"5x60x104": frames, height and width; "*" for any."""
    if text == "*":
        return None, None, None
    parts = text.split("x")
    if len(parts) != 3 or not all(p.isdecimal() and 0 < int(p) <= 65536 for p in parts):
        raise argparse.ArgumentTypeError(f"must be FRAMESxHEIGHTxWIDTH or *, got '{text}'")
    return tuple(map(int, parts))


def word(text: str) -> str:
    """Letters, digits and _."""
    if not text.isascii() or not text.isidentifier() or len(text) > 60:
        raise argparse.ArgumentTypeError(f"must be of up to 60 letters, digits and _, got {text[:60]!a}")
    return text


def token_count(text: str) -> int | None:
    if text == "*":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on or *, got '{text}'")
    return int(text)


# ------------------------------------------------------------------------------------------------ options


def add_variant(parser: argparse.ArgumentParser) -> None:
    """The option of programs that read folders, for `load_weights`."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which weights of a folder that has several: fp16 for diffusion_pytorch_model.fp16.safetensors "
        "(default: those without such a name, or the only ones)",
    )


def add_calibration(parser: argparse.ArgumentParser, texts: bool = False) -> None:
    """The options for engines in 8 bits. @texts: whether the network draws texts."""
    parser.add_argument(
        "--calibrate",
        type=positive,
        metavar="IMAGES",
        help="draw so many and write what calibrate.py writes, for engines that compute in 8 bits; into compiled networks "
        "and texts that name weights only how large the inputs of the layers become",
    )
    if texts:
        parser.add_argument(
            "--condition",
            type=Path,
            metavar="FILE",
            help="what encode_prompt.py wrote: the texts that --calibrate draws, in turn (default: random numbers)",
        )


def folder_parser(doc: str, part: str, formats: str, dtype: str, also: str = "") -> argparse.ArgumentParser:
    """What all programs take that export the network of a folder.

    @part: where a pipeline of diffusers has it, empty where all of the pipeline is asked for. @formats: the endings of what is written. @dtype: the default. @also: words on what FOLDER may be besides.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a pipeline of diffusers" + (f", or its {part}/" if part else "") + also)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=f"the {formats} file to write")
    parser.add_argument("--weights", type=Path, help="a file of weights, instead of the one beside config.json")
    add_variant(parser)
    parser.add_argument("--name", help="name of the network (default: the output's file name)")
    parser.add_argument(
        "--dtype", choices=sorted(TOLERANCE), default=dtype, help="stored precision (default: %(default)s)"
    )
    return parser
