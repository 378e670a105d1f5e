"""Networks whose weights stay where they are: writes a small text that describes one and names its .safetensors files.

Of the weights only headers are read, so it takes no memory and no time. tstitch's native engine reads the weights themselves
(include/tstitch/file/safetensors.hpp); the form of the text is in include/tstitch/file/network_description.hpp.
"""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common import (
    advice_of_safetensors, belief, calibration_of, fail, first_line, metadata, read_index, replacing, require_tensors_of, say, weights_in,
)  # fmt: skip

MAGIC = "tstitch network 1"
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class InPlace:
    """How a network is written: not at all. It stands where others have `TorchScript`."""

    whole_size = False


# ------------------------------------------------------------------------------------------------ weights


def files_of(place: Path, variant: str | None) -> list[Path]:
    """The .safetensors files of a folder, an index or a file."""
    if place.is_dir():
        place = weights_in(place, variant)
    elif variant is not None:
        fail(f"--variant: must not be given for a single file, got {variant} for {place}")
    elif not place.is_file():
        fail(f"{place}: must be a file of weights, got none")
    files = [place.parent / name for name in sorted(set(read_index(place).values()))] if place.suffix == ".json" else [place]
    for file in files:
        if file.suffix != ".safetensors":
            fail(f"{file}: must be a .safetensors file for --format in-place, got {file.suffix or 'a name without ending'}")
    return files


def headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors without their numbers."""
    try:
        from safetensors import safe_open
    except ImportError:
        fail(advice_of_safetensors(next(iter(files))))
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_slice(name) for name in opened.keys()}
                shapes = {name: (each.get_dtype(), each.get_shape()) for name, each in tensors.items()}
        except Exception as error:
            fail(f"{file}: must be a safetensors file, got '{first_line(error)}'")
        for name, (kind, shape) in shapes.items():
            if kind not in TYPES:
                fail(f"{file}: {name} must be {', '.join(TYPES)}, got {kind}")
            if name in found:
                fail(f"{file}: must hold tensors that no file before it has, got {name}")
            found[name] = torch.empty(shape, dtype=TYPES[kind], device="meta")
    return found


# ------------------------------------------------------------------------------------------------ the text


def describe(
    output: Path, network: nn.Module, found: Mapping[str, Tensor], files: list[Path], values: Mapping[str, object], dtype: str
) -> None:
    """Writes the text. @network: without weights. @found: `headers(files)`. @dtype: what a GPU runs it in."""
    require_description(output)
    require_tensors_of(network, found, files[0] if len(files) == 1 else files[0].parent)
    for line in belief(values).splitlines():
        say(line)
    folder = output.absolute().parent.resolve()
    lines = [MAGIC, *(f"weights {os.path.relpath(file.absolute().parent.resolve() / file.name, folder)}" for file in files)]
    lines.append(f"dtype {dtype}")
    for key, value in metadata(values).items():
        name = key.removeprefix("tstitch/")
        if name != "format" and value != "":
            lines += [f"{name} {line}" for line in value.split("\n")]
    for line in lines:
        if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in line):
            fail(f"{output}: must be described in text without control characters, got {line[:200]!r}")
    with replacing(output) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    count, size = sum(t.numel() for t in found.values()), sum(file.stat().st_size for file in files)
    print(f"{output}: describes {count:,} parameters, which stay in {len(files)} file{'s' * (len(files) > 1)} of {size:,} bytes{calibration_of(values)}")


def require_description(output: Path) -> None:
    """That no file of another kind is written over."""
    if output.exists() and not is_description(output):
        fail(f"{output}: must be a new file, or the description of a network, got another file")


def is_description(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len("tstitch network ")) == b"tstitch network "


def read_description(path: Path) -> tuple[dict[str, str], list[Path]]:
    """The values by key, and the files of weights."""
    values: dict[str, str] = {}
    files = []
    for line in path.read_text(encoding="utf-8").split("\n")[1:]:
        key, _, value = line.partition(" ")
        if key == "weights":
            files.append(path.parent / value)
        elif line and not line.startswith("#"):
            values[key] = f"{values[key]}\n{value}" if key in values else value
    return values, files


def fingerprint_parts(path: Path) -> list[int]:
    """The numbers from which `fingerprint_text` of C++ is made."""
    text = path.read_text(encoding="utf-8")
    rest = "".join(f"{line}\n" for line in text.split("\n") if not line.startswith("weights ")).encode()
    parts = [zlib.crc32(rest), len(rest)]
    piece, pieces = 4096, 64
    for place in read_description(path)[1]:
        size = place.stat().st_size
        with place.open("rb") as file:
            header = file.read(8)
            header += file.read(int.from_bytes(header, "little"))
            numbers = size - len(header)
            if numbers <= piece * pieces:
                samples = file.read()
            else:
                samples = b""
                for k in range(pieces):
                    file.seek(len(header) + k * (numbers - piece) // (pieces - 1))
                    samples += file.read(piece)
        parts += [size, zlib.crc32(header), zlib.crc32(samples)]
    return parts
