"""Writes all that a prompt takes as one folder: networks, text encoders and decoder, and how they draw.

FOLDERs are pipelines of diffusers in the order of use, the small network first; of Wan 2.2 one is enough, which has both
experts. Any of them may be a file of Stable Diffusion 1, 2 or XL or of latent diffusion for classes in the layout of its
makers; it has no tokenizer, which is that of another FOLDER or of --tokenizer. Text encoders and autoencoder are those of the
last one that has them. A program in C++ draws from what is written
(`tstitch_sample --pipeline OUTPUT --prompt "a fox in the snow"`, `tstitch::load_pipeline`) and needs neither Python nor the
FOLDERs, but for the networks' weights with --weights-in-place.

Known are Stable Diffusion 1, 2, 3, 3.5 and XL with its refiner, latent consistency models, latent diffusion for classes,
PixArt-alpha and Sigma, Wan, Sana and DiT. Each file is written by its own exporter beside this one, which checks it, and
OUTPUT/pipeline.txt at the end: a folder without it is not finished. --keep goes on where an earlier run ended, with the same
options for the files that are there, which OUTPUT/options.json tells.
"""

import argparse
import contextlib
import gc
import importlib
import io
import json
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import packages

packages.require(__file__, "torch", "transformers", beside=("safetensors",))

from common import TOLERANCE, Config, ask, fail, names_in, read_json, replacing, say, some  # noqa: E402
from encode_prompt import AESTHETICS, AESTHETICS_NULL, SD3_TOKENS  # noqa: E402
from export_pixart import asks_for_sizes  # noqa: E402
from in_place import fingerprint_parts, is_description, read_description  # noqa: E402
from options import add_calibration, add_variant, finite_real, positive, sides  # noqa: E402
from single_file import OPEN_PREDICTION, OPEN_SIZE, config_of, has, index_of, parts_in, scheduler_of  # noqa: E402

MANIFEST, RECORDS = "pipeline.txt", "options.json"
RATIO = 0.4  # of the paper: so many of the early steps cost no quality
CLIP_TOKENS = 77
LCM_GUIDANCE = 8.5  # of diffusers' pipeline
# The refiner of SDXL was trained on the least noisy fifth of the timesteps, and is told what the base is told by names that
# begin so.
REFINED, REFINER = 200, "refiner_"
SIZE_IDS = ("height", "width", 0, 0, "height", "width")


@dataclass(frozen=True)
class Family:
    """Pipelines of one kind."""

    exporter: str
    part: str = "transformer"
    encoders: tuple[str, ...] = ("text_encoder",)  # side by side, but for those in `behind`
    behind: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # that a folder may lack
    open_size: bool = True  # whether the exporter takes --size '*'
    in_place: bool = False  # whether it takes --format in-place
    calibrates: tuple[str, ...] = ()  # which of --calibrate and --condition it takes
    interpolates: bool = False  # whether it takes --interpolate


# By how the names of pipelines begin. The first that fits counts.
FAMILIES = {
    "StableDiffusionXL": Family("export_unet", "unet", ("text_encoder", "text_encoder_2"), optional=("text_encoder",)),
    "StableDiffusion3": Family(
        "export_sd3",
        encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        behind=("text_encoder_3",),
        optional=("text_encoder_3",),
        in_place=True,
        calibrates=("calibrate", "condition"),
    ),
    "StableDiffusion": Family("export_unet", "unet"),
    "LatentDiffusion": Family("export_unet", "unet", encoders=()),
    "LatentConsistencyModel": Family("export_unet", "unet"),
    "PixArt": Family("export_pixart"),
    "Wan": Family("export_wan", open_size=False),  # it is open where nothing is said
    "Sana": Family("export_sana"),
    "DiT": Family("export_dit", encoders=(), open_size=False, calibrates=("calibrate",), interpolates=True),
}
# As on the model card of Wan 2.2 A14B: for the noisy steps and for the rest.
WAN_EXPERTS = {"guidance": "4 3", "steps": "40"}


# ------------------------------------------------------------------------------------------------ the folders


def family_of(folder: Path) -> tuple[str, Family]:
    """The name of its kind, and what is known of it."""
    if not folder.exists():
        fail(f"{folder}: must be a folder or a file, got nothing")
    if (index := index_of(folder)) is None:
        fail(f"{folder}: must hold model_index.json, got {some(names_in(folder))}")
    name = index.get("_class_name")
    found = next((key for key in FAMILIES if isinstance(name, str) and name.startswith(key)), None)
    if found is None:
        fail(f"{index.path}: _class_name must begin with {', '.join(FAMILIES)}, got {name}")
    return found, FAMILIES[found]


def last_with(folders: list[Path], part: str) -> Path | None:
    """The last folder that has a part."""
    return next((folder for folder in reversed(folders) if has(folder, part)), None)


def networks_of(folders: list[Path], kind: str, family: Family, ending: str) -> list[tuple[Path, str, str]]:
    """Folder, part and the name of the file, of each network."""
    found = []
    for folder in folders:
        parts = [family.part]
        if kind == "Wan" and len(folders) == 1 and (folder / "transformer_2").is_dir():
            parts.append("transformer_2")
        for part in parts:
            if not has(folder, part):
                fail(f"{folder}: must hold {part}, got {some(parts_in(folder))}")
            found.append((folder, part))
    if len(found) > 2:
        fail(f"{folders[-1]}: must be the second folder at most, got {len(folders)}")
    names = ["network"] if len(found) == 1 else ["small", "large"]
    if found[-1][1] == "transformer_2":
        names = ["high_noise", "low_noise"]
    return [(*network, name + ending) for network, name in zip(found, names)]


def encoders_of(folders: list[Path], family: Family) -> list[tuple[Path, str]]:
    """Folder and part of each text encoder: all of one folder, the last of those that have most of them."""
    if not family.encoders:
        return []
    folder = max(reversed(folders), key=lambda f: sum(has(f, part) for part in family.encoders))
    if not any(has(folder, part) for part in family.encoders):
        fail(f"{folders[-1]}: must hold {family.encoders[0]}, got {some(parts_in(folders[-1]))}")
    for part in family.encoders:
        if part not in family.optional and not has(folder, part):
            fail(f"{folder}: must hold {part}, got {some(parts_in(folder))}")
    return [(folder, part) for part in family.encoders if has(folder, part)]


def tokenizers_of(args: argparse.Namespace, encoders: list[tuple[Path, str]]) -> Path | None:
    """Where those of the text encoders are, which are in a file; None where they are beside their encoders."""
    single = next((folder for folder, _ in encoders if folder.is_file()), None)
    if single is None:
        if args.tokenizer is not None:
            fail(f"--tokenizer: must be for text encoders that are in a single file, got {args.tokenizer}")
        return None
    found = args.tokenizer or next((f for f in reversed(args.folders) if f.is_dir() and (has(f, "tokenizer") or has(f, "tokenizer_2"))), None)
    if found is None:
        fail(f"{single}: has text encoders without a tokenizer: --tokenizer must name a folder that has one, or a FOLDER have it")
    return found


def controlnets_of(args: argparse.Namespace, family: Family, networks: list[tuple[Path, str, str]]) -> dict[str, Path]:
    """By the names of the networks' files: of the last ones, in the order of use."""
    if args.controlnet and family.exporter != "export_unet":
        fail(f"--controlnet: must be for U-Nets, which pipelines of StableDiffusion and StableDiffusionXL have, got {args.controlnet[0]}")
    if len(args.controlnet) > len(networks):
        fail(f"--controlnet: must be given once for a network at most, got {len(args.controlnet)} for {len(networks)}")
    if args.controlnet_scale is not None and not args.controlnet:
        fail(f"--controlnet-scale: must be beside --controlnet, got {args.controlnet_scale}")
    for folder in args.controlnet:
        if not folder.is_dir():
            fail(f"--controlnet: must be a folder, got {folder}")
    found = dict(zip([name for *_, name in networks[len(networks) - len(args.controlnet) :]], args.controlnet))
    for folder, _, name in networks:
        if folder.is_dir() and (folder / "controlnet").is_dir() and name not in found:
            fail(f"{folder}: must come with --controlnet FOLDER for its controlnet/, such as {folder}, got no --controlnet for this network")
    return found


def require_controlnets(networks: list[tuple[Path, str, str]], controlnets: dict[str, Path], vae: Path) -> None:
    """That they are for these networks, as far as config.json tells."""
    if not controlnets:
        return
    unet = importlib.import_module("export_unet")
    for folder, part, name in networks:
        if name in controlnets:
            size_ids = unet.size_ids_of(folder)
            shape = unet.read_config(config_of(folder, part), size_ids)[0]
            unet.controlnet_config(controlnets[name], vae, shape, 1.0, size_ids)


def require_tokenizers(encoders: list[tuple[Path, str]], tokenizers: Path | None) -> None:
    for folder, part in encoders:
        place = tokenizers or folder / part.replace("text_encoder", "tokenizer")
        if not place.is_dir():
            fail(f"{place}: must be a folder with the tokenizer of {part}, got {'a file' if place.exists() else 'nothing'}")


def require_texts(args: argparse.Namespace, networks: list[tuple[Path, str, str]]) -> None:
    """That each network takes those of --condition."""
    if args.condition is None:
        return
    sd3 = importlib.import_module("export_sd3")
    for folder, part, _ in networks:
        sd3.read_texts(args.condition, sd3.read_config(config_of(folder, part)), None)


def ask_of_files(args: argparse.Namespace, networks: list[tuple[Path, str, str]]) -> None:
    """For what single files leave open and folders say."""
    files = [folder for folder, *_ in networks if folder.is_file()]
    if args.prediction and not files:
        fail("--prediction: must be for single files, got folders, which say it themselves")
    for file in files:
        questions = {}
        if not args.prediction and "prediction_type" not in scheduler_of(file).values:
            questions["--prediction"] = OPEN_PREDICTION
        if not args.size and file == networks[-1][0] and config_of(file, "unet").get("sample_size") is None:
            questions["--size"] = OPEN_SIZE
        ask(file, questions)


# ------------------------------------------------------------------------------------------------ what is written


@dataclass(frozen=True)
class Output:
    """A file to be written, and by what. @options: of the exporter; a path is of what is read, True stands for no value."""

    exporter: str
    source: Path
    name: str
    options: dict[str, object]

    def arguments(self, folder: Path) -> list[str]:
        words = [str(self.source), str(folder / self.name)]
        for option, value in self.options.items():
            words += [option] if value is True else [option, str(value)]
        return words

    def record(self, folder: Path) -> dict[str, str]:
        """All that decides what is in it, with paths as they are seen from the folder that it is in."""

        def said(value: object) -> str:
            path = os.path.relpath(value.resolve(), folder.resolve()) if isinstance(value, Path) else value
            return "yes" if path is True else str(path)

        return {key: said(value) for key, value in {"FOLDER": self.source, **self.options}.items()}


def output_of(args: argparse.Namespace, exporter: str, source: Path, name: str, options: dict[str, object]) -> Output:
    """With what all of them are told."""
    options = dict(options)
    if args.license:
        options["--license"] = args.license
    if args.variant and has_variant(source, args.variant):
        options["--variant"] = args.variant
    return Output(exporter, source, name, options)


def require_variant(folders: list[Path], variant: str | None) -> None:
    """That a FOLDER has it at least. Of the others the only weights are taken."""
    if variant is None:
        return
    without = [folder for folder in folders if not has_variant(folder, variant)]
    if len(without) == len(folders):
        fail(f"--variant: must be of weights that a FOLDER has, got {variant}, which none has")
    for folder in without:
        say(f"{folder}: has no weights called {variant}: taking those that it has")


def has_variant(source: Path, variant: str) -> bool:
    return source.is_dir() and any(variant in path.name for path in source.rglob("*"))


def read_records(folder: Path) -> dict[str, dict[str, str]]:
    """How the files of a folder were made, by their names."""
    path = folder / RECORDS
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(record, dict) for record in found.values()):
        fail(f"{path}: must hold an object of objects, as this program wrote it, got something else")
    return found


def require_same(folder: Path, outputs: list[Output], records: dict[str, dict[str, str]]) -> None:
    """That files which are kept would be written again as they are."""
    for output in outputs:
        place = folder / output.name
        if not place.is_file():
            continue
        known, wanted = records.get(output.name), output.record(folder)
        if known is None:
            fail(f"{place}: must be told of in {RECORDS} to be kept, got a file of unknown options: remove it")
        for key in dict.fromkeys((*known, *wanted)):
            if known.get(key) != wanted.get(key):
                was, now = (f"{key} {value[key]}" if key in value else f"no {key}" for value in (known, wanted))
                fail(f"{place}: must be made with the same options to be kept, got {now} for a file with {was}: remove it")


def export(args: argparse.Namespace, output: Output) -> str:
    """Runs an exporter, unless the file is there and to be kept. Returns what it says of the file."""
    place = args.output / output.name
    if args.keep and place.is_file():
        say(f"{place}: is there, and kept")
        return args.measured.get(output.name, "")
    # The folder is finished again when this is written again.
    (args.output / MANIFEST).unlink(missing_ok=True)
    args.records[output.name] = output.record(args.output)
    with replacing(args.output / RECORDS) as temporary:
        temporary.write_text(json.dumps(args.records, indent=1) + "\n", encoding="utf-8")
    say(f"writing {place}")
    program = output.exporter
    sys.argv = [f"{program}.py", *output.arguments(args.output)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module(program).main()
    except SystemExit as stop:
        if stop.code:
            say(f"{args.output}: not finished; --keep goes on with what is there")
            raise
    print(printed.getvalue(), end="", flush=True)
    gc.collect()  # networks that refer to themselves
    return printed.getvalue().strip().removeprefix(f"{args.output}/")


@contextlib.contextmanager
def archive_of(path: Path) -> Iterator[zipfile.ZipFile]:
    """What an exporter wrote, to be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, IndexError) as error:
        fail(f"{path}: must be a file that an exporter wrote, got '{error}'")


def values_in(path: Path) -> dict[str, str]:
    """The metadata of a file."""
    if is_description(path):
        return read_description(path)[0]
    found = {}
    with archive_of(path) as archive:
        for name in archive.namelist():
            start, middle, key = name.partition("/extra/tstitch/")
            if middle and archive.getinfo(name).file_size < 1 << 22 and key != "e4m3_weights":
                found[key] = archive.read(name).decode()
    return found


def fingerprint(path: Path) -> str:
    """As `fingerprint_text` of C++ has it: of an archive from its checksums, FNV-1a by whole numbers."""
    if is_description(path):
        parts = fingerprint_parts(path)
    else:
        with archive_of(path) as archive:
            records = sorted((info.filename.split("/", 1)[1].encode(), info) for info in archive.infolist())
        parts = [part for name, info in records for part in (zlib.crc32(name), info.file_size, info.CRC)]
    value = 0
    for part in parts:
        value = (value ^ part) * 0x100000001B3 % 2**64
        value ^= value >> 29
    return f"{value:016x}"


def require_one_trajectory(first: Path, second: Path) -> None:
    """What networks of one run must have in common; the bridge of C++ is not for pairs that were trained as such."""
    a, b = values_in(first), values_in(second)
    for key in ("noise_schedule", "num_train_timesteps", "flow_shift", "beta_start", "beta_end", "alphas_cumprod", "latent_scale"):
        if key in a and key in b and a[key] != b[key]:
            fail(f"{second}: {key} must be that of {first.name}, {a[key][:60]}, got {b[key][:60]}")
    shapes = [values.get("input_shape", values.get("input_channels", "")).split(" ")[0] for values in (a, b)]
    if shapes[0] != shapes[1]:
        fail(f"{second}: must have latents of {shapes[0]} channels as {first.name}, got {shapes[1]}")


def shape_of(args: argparse.Namespace, kind: str, network: Path, config: Config, upsampling: int) -> list[str]:
    """Of x, channels first, where the file leaves it open."""
    stated = values_in(network).get("input_shape", "").split()
    if "*" not in stated:
        if args.size:
            fail(f"--size: must not be given for networks of one size, got {args.size[0]} and {args.size[1]}")
        return []
    if args.size:
        if any(side % upsampling for side in args.size):
            fail(f"--size: must be multiples of {upsampling}, got {args.size[0]} and {args.size[1]}")
        pixels = [str(side // upsampling) for side in args.size]
    elif kind == "Wan":
        pixels = ["60", "104"]  # 480 x 832 pixels
    else:
        size = config.get("sample_size", 32 if kind == "DiT" else 128)
        pixels = [str(side) for side in (size if isinstance(size, list) else [size, size])]
    return [stated[0], *(["21"] if kind == "Wan" else []), *pixels]  # 81 frames


def refines(kind: str, folder: Path) -> bool:
    """Whether it is SDXL's refiner, which takes other texts and sizes than its base."""
    return kind == "StableDiffusionXL" and index_of(folder).flag("requires_aesthetics_score", False)


def size_lines(kind: str, folder: Path, config: Config, prefix: str) -> list[str]:
    """What networks are told of the picture's size."""

    def line(key: str, name: str, *values: object) -> str:
        return " ".join(map(str, (key, name, *values)))

    if refines(kind, folder):
        scores = (("condition", AESTHETICS), ("null", AESTHETICS_NULL))
        return [line(key, f"{prefix}size_ids", *SIZE_IDS[:4], score) for key, score in scores]
    if kind == "StableDiffusionXL":
        return [line("condition", "size_ids", *SIZE_IDS)]
    if kind == "PixArt" and asks_for_sizes(config):
        return [line("condition", "resolution", "height", "width"), line("condition", "aspect_ratio", "height/width")]
    return []


def guidance_lines(args: argparse.Namespace, config: Config) -> list[str]:
    """What latent consistency models are told of the guidance scale, which they have learnt to draw by: sines and cosines
    of 1000 times the scale above 1, in as many numbers as the network takes (arXiv 2310.04378, section 4.2)."""
    if not (width := config.values.get("time_cond_proj_dim")):
        return []
    scale = LCM_GUIDANCE if args.guidance_scale is None else args.guidance_scale
    half = width // 2
    angles = [1000 * (scale - 1) * 10000 ** (-i / max(half - 1, 1)) for i in range(half)]
    numbers = [*map(math.sin, angles), *map(math.cos, angles), *[0.0] * (width % 2)]
    return [" ".join(["condition guidance_embedding", *(f"{number:.9g}" for number in numbers)])]


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="pipelines of diffusers, or single files, small first")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write")
    add_variant(parser)
    parser.add_argument("--keep", action="store_true", help="keep the files that OUTPUT has, and write the others")
    parser.add_argument("--name", help="of the pipeline (default: the folder's)")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), help="of the networks (default: what their exporter takes)")
    parser.add_argument(
        "--text-dtype", choices=sorted(TOLERANCE), help="of the text encoders (default: float32 for CLIP, bfloat16 for larger ones)"
    )
    parser.add_argument(
        "--weights-in-place",
        action="store_true",
        help="of Stable Diffusion 3: leave the networks' .safetensors files where they are, and write texts that name them",
    )
    add_calibration(parser, texts=True)
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="of DiT: leave the size of pictures open, with positions scaled to the extent that they had in training",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of text encoders in a single file (default: that of a FOLDER)")
    parser.add_argument(
        "--prediction", choices=["epsilon", "v_prediction"], help="what networks in single files predict, where the files do not say it"
    )
    parser.add_argument(
        "--controlnet",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a ControlNet of diffusers for the last network, which a request gives a picture then; given twice, for both in the order of use",
    )
    parser.add_argument("--controlnet-scale", type=finite_real, metavar="S", help="of what ControlNets add (default: 1)")
    parser.add_argument("--encoder", action="store_true", help="write the autoencoder's encoder, too, for pictures to begin from")
    parser.add_argument("--license", default="", help="licence of the weights")
    drawing = parser.add_argument_group("how it draws where nothing else is said")
    drawing.add_argument("--size", type=sides, metavar="N", help="of a picture in pixels, N or HxW (default: the network's)")
    drawing.add_argument("--ratio", type=finite_real, default=RATIO, help="share of the steps for the small network (default: %(default)s)")
    drawing.add_argument("--steps", type=positive, help="(default: the pipeline's)")
    drawing.add_argument("--guidance-scale", type=finite_real, help="(default: the pipeline's)")
    drawing.add_argument("--negative", help="what guidance leads away from (default: no text)")
    args = parser.parse_args()
    if not 0 <= args.ratio <= 1:
        fail(f"--ratio: must be in [0, 1], got {args.ratio}")
    for option in ("name", "license", "negative"):
        if not (getattr(args, option) or "").isprintable():
            fail(f"--{option}: must be text without control characters, got {getattr(args, option)!a}")
    if args.guidance_scale is not None and not 0 <= args.guidance_scale <= 1000:
        fail(f"--guidance-scale: must be in [0, 1000], got {args.guidance_scale}")
    return args


def network_options(args: argparse.Namespace, family: Family, folder: Path, part: str, controlnet: Path | None) -> dict[str, object]:
    """Of its exporter. None of those that are not said."""
    found = {
        "--name": (folder.stem if folder.is_file() else folder.name) + ("" if part == family.part else f"/{part}"),
        "--prediction": args.prediction if folder.is_file() else None,
        "--dtype": args.dtype,
        "--part": part if part == "transformer_2" else None,
        "--size": "*" if family.open_size else None,
        "--format": "in-place" if args.weights_in_place else None,
        "--interpolate": args.interpolate or None,
        "--calibrate": args.calibrate,
        "--condition": args.condition,
        "--controlnet": controlnet,
        "--controlnet-scale": args.controlnet_scale if controlnet else None,
    }
    return {option: value for option, value in found.items() if value is not None}


def text_dtype(args: argparse.Namespace, folder: Path, part: str) -> str:
    kinds = config_of(folder, part).get("architectures")
    small = isinstance(kinds, list) and all(isinstance(kind, str) and kind.startswith("CLIP") for kind in kinds)
    return args.text_dtype or ("float32" if small else "bfloat16")


def main() -> None:
    args = parse_arguments()
    kinds = [family_of(folder) for folder in args.folders]
    kind, family = kinds[-1]
    for folder, (other, _) in zip(args.folders, kinds):
        if other != kind:
            fail(f"{folder}: must be of a {kind} as {args.folders[-1]} is, got {other}")
    if args.weights_in_place and not family.in_place:
        fail(f"--weights-in-place: must be for a pipeline whose networks the native engine runs, StableDiffusion3, got {kind}")
    for option in ("calibrate", "condition"):
        if (value := getattr(args, option)) is not None and option not in family.calibrates:
            kinds = ", ".join(name for name, each in FAMILIES.items() if option in each.calibrates)
            fail(f"--{option}: must be for a pipeline of {kinds}, got {value} for {kind}")
    if args.interpolate and not family.interpolates:
        fail(f"--interpolate: must be for a pipeline of DiT, others leave the size open anyway, got {kind}")
    for option in ("negative", "text_dtype"):
        if (value := getattr(args, option)) is not None and not family.encoders:
            fail(f"--{option.replace('_', '-')}: must be for a pipeline that takes texts, got {value} for {kind}")
    if args.condition is not None and args.calibrate is None:
        fail(f"--condition: is for --calibrate, got {args.condition} without")
    networks = networks_of(args.folders, kind, family, ".txt" if args.weights_in_place else ".pt")
    encoders = encoders_of(args.folders, family)
    tokenizers = tokenizers_of(args, encoders)
    ask_of_files(args, networks)
    controlnets = controlnets_of(args, family, networks)
    if (vae := last_with(args.folders, "vae")) is None:
        fail(f"{args.folders[-1]}: must hold vae, got {some(parts_in(args.folders[-1]))}")
    require_tokenizers(encoders, tokenizers)
    require_controlnets(networks, controlnets, vae)
    require_texts(args, networks)
    require_variant(args.folders, args.variant)
    if not args.output.parent.is_dir():
        fail(f"{args.output}: must be in a folder that exists, got none")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())) and not args.keep:
        fail(f"{args.output}: must be a new or an empty folder, or come with --keep, got {some(names_in(args.output)) if args.output.is_dir() else 'a file'}")
    manifest = args.output / MANIFEST
    # What was measured of files that are kept.
    known = manifest.read_text(encoding="utf-8", errors="replace").splitlines() if manifest.is_file() else []
    lines = [line.removeprefix("measured ") for line in known if line.startswith("measured ")]
    args.measured = {line.partition(":")[0]: line for line in lines}
    args.records = read_records(args.output)

    # Behind a base, SDXL's refiner takes what it takes by names of its own.
    prefix = REFINER if len(networks) == 2 and refines(kind, networks[1][0]) and not refines(kind, networks[0][0]) else ""
    outputs = [
        output_of(args, family.exporter, folder, name, network_options(args, family, folder, part, controlnets.get(name)))
        for folder, part, name in networks
    ]
    if prefix:
        outputs[1].options["--condition-prefix"] = prefix
    for folder, part in encoders:
        options = {"--part": part, "--dtype": text_dtype(args, folder, part)} | ({"--tokenizer": tokenizers} if tokenizers else {})
        outputs.append(output_of(args, "export_text_encoder", folder, f"{part}.pt", options))
    halves = ["decoder", "encoder"] if args.encoder else ["decoder"]
    outputs += [output_of(args, "export_autoencoder", vae, f"{half}.pt", {"--part": half}) for half in halves]
    require_same(args.output, outputs, args.records)
    args.output.mkdir(exist_ok=True)

    measured = []
    for output in outputs[: len(networks)]:
        measured.append(export(args, output))
        if output is not outputs[0]:
            require_one_trajectory(args.output / outputs[0].name, args.output / output.name)
    lines = [f"name {args.name or args.output.absolute().name}"]
    lines += [f"network {name} {fingerprint(args.output / name)}" for *_, name in networks]

    measured += [export(args, output) for output in outputs[len(networks) :]]
    for folder, part in encoders:
        name = f"{part}.pt"
        place = "" if part == encoders[0][1] else "behind " if part in family.behind else "beside "
        lines.append(f"text_encoder {name} {place}{fingerprint(args.output / name)}")
    if prefix:
        lines.append(f"text_encoder text_encoder_2.pt apart {prefix} {fingerprint(args.output / 'text_encoder_2.pt')}")
    lines += [f"{half} {half}.pt {fingerprint(args.output / f'{half}.pt')}" for half in halves]

    folder, part, name = networks[-1]
    config = config_of(folder, part)
    values = values_in(args.output / name)
    if kind == "StableDiffusion3":
        lines.append(f"fill text_embedding {CLIP_TOKENS + SD3_TOKENS} {config.integer('joint_attention_dim', 4096)}")
    if prefix:
        lines += size_lines(kind, networks[0][0], config, "")
    lines += size_lines(kind, folder, config, prefix)
    taken = [line.split(" ")[0] for *_, name in networks for line in values_in(args.output / name).get("conditions", "").splitlines()]
    lines += [f"given {name}" for name in dict.fromkeys(taken) if name.endswith("controlnet_cond")]
    guided = guidance_lines(args, config)
    lines += guided
    upsampling = int(values_in(args.output / "decoder.pt").get("upsampling", "8"))
    if shape := shape_of(args, kind, args.output / name, config, upsampling):
        lines.append(f"shape {' '.join(shape)}")
    own = {key: values[source] for key, source in (("profile", "profile"), ("steps", "steps"), ("guidance", "guidance_scale")) if source in values}
    if part == "transformer_2":
        boundary = Config(folder / "model_index.json").real("boundary_ratio", 0.875)
        lines.append(f"routing timestep:{round(boundary * 1000)}")
        own |= WAN_EXPERTS
    elif prefix:
        lines.append(f"routing timestep:{REFINED}")
    elif len(networks) == 2:
        lines.append(f"ratio {args.ratio!r}")
    own |= {key: str(value) for key, value in (("steps", args.steps), ("guidance", None if guided else args.guidance_scale)) if value is not None}
    lines += [f"{key.replace('_', '-')} {value.replace('_', '-') if key == 'profile' else value}" for key, value in own.items()]
    if args.negative is not None:
        lines.append(f"negative {args.negative}")
    if "flow_shift" in values:
        lines.append(f"# timesteps are shifted by {values['flow_shift']}, which the networks' files say")
    if args.license:
        lines.append(f"license {args.license}")
    lines += [f"measured {line}" for line in measured if line]
    text = "\n".join(["tstitch pipeline 1", *lines, ""])
    with replacing(manifest) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f'{args.output}: finished; tstitch_sample --pipeline {args.output}' + (' --prompt "a fox in the snow"' if encoders else ""))


if __name__ == "__main__":
    main()
