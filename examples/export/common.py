"""What every exporter does: reads weights, scripts the network, checks the written file beside its source, writes it whole.

The files are ordinary TorchScript archives: `torch.jit.load` reads them too. What a sampler has to know (shape, prediction
type, noise schedule, conditions) rides along as extra files, one value per key, all under `tstitch/`; the keys are listed in
include/tstitch/file/metadata.hpp. The same weights always give the same bytes. For compiled networks see aot_inductor.py.
"""

import argparse
import contextlib
import errno
import gc
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from packages import advice

# Largest difference from the float32 network, relative to the RMS of its output, that rounding explains: of a decoder's
# million values one is 2.4e-2 off in float16.
TOLERANCE = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 1e-1}


def fail(message: str) -> None:
    """Ends the program with one line: place, rule, value got."""
    sys.exit(printable(message))


def printable(text: str) -> str:
    """Without what a terminal obeys: names and values come from files of others."""
    return "".join(c if c.isprintable() else "?" for c in text)


def ask(place: Path, questions: Mapping[str, str]) -> None:
    """For all options at once that must be given. @questions: each with what was seen instead."""
    if questions:
        options = list(questions)
        names = " and ".join(filter(None, (", ".join(options[:-1]), options[-1])))
        fail(f"{place}: {names} must be given, got {'; '.join(questions.values())}")


# ------------------------------------------------------------------------------------------------ weights


# Where training checkpoints keep a state dict: of weights averaged over training, of plain ones, of either.
SETS = {
    "ema": ("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema"),
    "plain": ("model", "model_state_dict", "network", "net", "params"),
    None: ("state_dict", "module", "checkpoint"),
}
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
# Kept beside the tensors by training programs; bags of values, names of files and of classes, no code.
VALUES = (
    argparse.Namespace,
    # The first files of Stable Diffusion and of latent diffusion have it as the name of a bag. It is taken for an empty class.
    (type("ModelCheckpoint", (), {}), "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    *((pathlib.PurePath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in PATHS),
)


def load_weights(
    path: Path, variant: str | None = None, which: str | None = None, anchor: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth, .ckpt or .bin file, or of a folder's sharded ones. Runs no code from it.

    @which: "ema" or "plain", of a file that has both; None: the averaged ones, where there are any. @anchor: the name of
    a tensor of the network, for files that have all of them under a prefix.
    """
    if path.is_dir():
        path = weights_in(path, variant)
    elif variant is not None:
        fail(f"--variant: must not be given for a single file, got {variant} for {path}")
    loaded = load_shards(path) if path.suffix == ".json" else load_file(path)
    loaded, told = unwrapped(path, loaded, which)
    weights = without_wrappers(path, loaded)
    if anchor is not None:
        weights, told = without_prefix(path, weights, anchor, which, told)
    if which == "ema" and not told:
        fail(f'{path}: must hold "ema" for --weights ema, got {some(sorted(weights))}')
    return weights


def load_file(path: Path) -> Mapping[object, object]:
    """Of a whole network: not one of its shards."""
    if not path.is_file():
        fail(f"{path}: must be a file of weights, got none")
    shard = re.search(r"-(\d+)-of-(\d+)\b", path.name)
    indices = [index for index in path.parent.glob("*.json") if ".index." in index.name]
    if any(path.name in (shards := shards_of(index)) and len(shards) > 1 for index in indices):
        fail(f"{path}: must be all of a network, got one of the shards of {some([i.name for i in indices])}: give that")
    if shard and int(shard[2]) > 1:
        fail(f"{path}: must be all of a network, got shard {int(shard[1])} of {int(shard[2])}: give their index or folder")
    return read_file(path)


def read_file(path: Path) -> Mapping[object, object]:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            fail(advice_of_safetensors(path))
        try:
            return load_file(path)
        except Exception as error:
            fail(f"{path}: must be a safetensors file, got '{first_line(error)}'")
    if is_torchscript(path):
        fail(f"{path}: must hold tensors only, got a TorchScript file; one that an exporter wrote is loaded as it is")
    with torch.serialization.safe_globals([*VALUES]):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files older than the zip format cannot be mapped
            loaded = load_pickle(path)
        except Exception as error:
            refuse_pickle(path, error)
    if not isinstance(loaded, Mapping):
        fail(f"{path}: must hold a state dict, got {type(loaded).__name__}")
    return loaded


def advice_of_safetensors(path: Path) -> str:
    return f"{path}: {advice(['safetensors'], Path(__file__).with_name('requirements.txt'))}"


def load_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refuse_pickle(path, error)


def refuse_pickle(path: Path, error: Exception) -> None:
    # Of torch's page of advice the name is what is new.
    if match := re.search(r"GLOBAL (\S+) was not an allowed global|Unsupported class (\S+)", str(error)):
        fail(
            f"{path}: must hold tensors only, got an object of {match[1] or match[2]}, which may run code; of a file that "
            f"you trust save the tensors alone: torch.save(torch.load(FILE, weights_only=False)[KEY], NEW_FILE)"
        )
    got = f"'{first_line(error)}'" if may_be_saved(path) else "no file that torch.save wrote, or one that is cut off"
    fail(f"{path}: must hold tensors only, got {got}")


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def may_be_saved(path: Path) -> bool:
    """A zip archive, or a pickle as torch wrote them before; of others torch's message says nothing that helps."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def unwrapped(place: Path, loaded: Mapping, which: str | None) -> tuple[Mapping, bool]:
    """The state dict in the dictionaries of a training checkpoint, and whether it is one of the sets that @which tells."""
    keys: list[str] = []
    told = False
    while True:
        found = {
            kind: key
            for kind, names in SETS.items()
            for key in reversed(names)
            if isinstance(loaded.get(key), Mapping) and loaded[key]
        }
        if not found or len(keys) == 8:
            break
        if None in found and "ema" in found:
            found.setdefault("plain", found.pop(None))
        if found.keys() & {"ema", "plain"} and not told:
            kind = which or next(kind for kind in SETS if kind in found)
            if kind not in found:
                fail(f"{place}: must hold the weights of --weights {which}, got {some(sorted(map(str, loaded)))}")
            told = True
        else:
            kind = next(iter(found))
        others = sorted(set(found.values()) - {found[kind]})
        keys.append(found[kind] + (f" (of {', '.join([found[kind], *others])})" if others else ""))
        loaded = loaded[found[kind]]
    if keys:
        say(f"{place}: taking what is in its {' / '.join(keys)}")
    return loaded, told


def without_wrappers(place: Path, weights: Mapping) -> dict:
    """The same tensors without the names of wrappers, alone or in each other."""
    names = {name: WRAPPERS.sub("", name) if isinstance(name, str) else name for name in weights}
    while names and all(isinstance(name, str) and name.startswith("module.") for name in names.values()):
        names = {old: WRAPPERS.sub("", new.removeprefix("module.")) for old, new in names.items()}
    changed = [old for old, new in names.items() if old != new]
    if changed:
        say(f"{place}: reading {some(changed[:1])} as {some([names[changed[0]]])}, and so on")
    if len(set(names.values())) < len(names):
        fail(f"{place}: must hold each tensor once, got {some(changed)} beside the same without wrappers")
    return {new: weights[old] for old, new in names.items()}


def without_prefix(
    place: Path, weights: dict, anchor: str, which: str | None, told: bool
) -> tuple[dict, bool]:
    """The tensors of one network under its own names, where a trainer put its own ("model.") before them."""
    names = [name for name in weights if isinstance(name, str)]
    prefixes = sorted(name.removesuffix(anchor) for name in names if f".{name}".endswith(f".{anchor}"))
    if prefixes in ([], [""]):
        return weights, told
    sets = {"ema": [p for p in prefixes if "ema" in p], "plain": [p for p in prefixes if "ema" not in p]}
    kind = which if which and not told else "ema" if sets["ema"] else "plain"
    if len(sets[kind]) != 1:
        found = some([p or "no prefix" for p in prefixes])
        fail(f"{place}: must hold one network{f' of --weights {which}' if which else ''}, got tensors under {found}")
    prefix = sets[kind][0]
    inside = {n for n in names if n.startswith(prefix) and not any(p and n.startswith(p) for p in prefixes if p != prefix)}
    if prefix:
        say(f"{place}: taking the tensors under {prefix}")
    if left := sorted(set(map(str, weights)) - inside):
        say(f"{place}: left out {len(left)} that are not of it: {some(left)}")
    return {name.removeprefix(prefix): weights[name] for name in weights if name in inside}, True


# A folder's weights in one file or with an index of shards, with a variant's name or without. Of the index of a variant
# there are two forms; the last is of older versions of diffusers.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = ("safetensors", "bin")
FORMS = ("{stem}{variant}.{suffix}", "{stem}.{suffix}.index{variant}.json", "{stem}.{suffix}{variant}.index.json")


def find_weights(folder: Path) -> dict[str, Path]:
    """The file of weights, or the index of shards, of each variant; the name of plain ones is empty."""
    names, found = names_in(folder), {}
    for stem, suffix, form in itertools.product(STEMS, SUFFIXES, FORMS):
        # A shard may be called like a variant: stem.fp16-00001-of-00002.suffix.
        variant = r"(?:\.(?P<variant>(?!.*-\d+-of-\d+).+))?"
        before, after = (re.escape(part.format(stem=stem, suffix=suffix)) for part in form.split("{variant}"))
        for name in names:
            if match := re.fullmatch(before + variant + after, name):
                found.setdefault(match["variant"] or "", folder / name)
    return found


def weights_in(folder: Path, variant: str | None) -> Path:
    """A diffusers folder's weights: one file, or the index of shards."""
    found = find_weights(folder)
    variants = sorted(name for name in found if name)
    if variant is not None and variant not in variants:
        fail(f"{folder}: must hold the weights of --variant {variant}, got {some(variants or names_in(folder))}")
    if not found:
        rule = "must hold diffusion_pytorch_model.safetensors or .bin, or shards of it"
        fail(f"{folder}: {rule}, got {some(names_in(folder))}")
    if variant is None and "" not in found:
        if len(variants) > 1:
            fail(f"{folder}: --variant must say which of the weights, got none for {', '.join(variants)}")
        say(f"{folder} holds weights of one variant only: taking {variants[0]}")
        variant = variants[0]
    return found[variant or ""]


def shards_of(index: Path) -> set[str]:
    """What it names, or nothing where it is no index."""
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def read_index(index: Path) -> dict[str, str]:
    """From tensors to shards, which are there."""
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        fail(f'{index}: must have a "weight_map" from tensors to shards, got none')
    for shard in sorted(set(names.values())):
        if not (index.parent / shard).is_file():
            fail(f"{index}: every shard must be there, got no {shard}")
    return names


def load_shards(index: Path) -> dict[str, Tensor]:
    names = read_index(index)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        weights |= read_file(index.parent / shard)
    absent = sorted(set(names) - set(weights))
    if absent:
        fail(f"{index}: the shards must hold every tensor that it lists, got none called {some(absent)}")
    return weights


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_json(path: Path) -> dict:
    if not path.is_file():
        fail(f"{path}: must be there, got no file")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        fail(f"{path}: must be JSON, got '{error}'")


def some(names: list[str]) -> str:
    """At most four of them."""
    return ", ".join(name[:100] for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"


def require_tensors(place: Path, weights: Mapping[str, object]) -> None:
    """Of a floating type, with values."""
    for name, tensor in weights.items():
        if isinstance(tensor, Mapping):
            rule = "must hold the tensors alone, or under a name that this program knows"
            fail(f"{place}: {rule}, got a dictionary called {str(name)[:100]}")
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            fail(f"{place}: {str(name)[:100]} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            fail(f"{place}: {name} must be of a floating type, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.layout is not torch.strided or tensor.is_meta:
            fail(f"{place}: {name} must have all its values, got {'none' if tensor.is_meta else 'a sparse tensor'}")


def require_tensors_of(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Every tensor must be there, have its shape, and be used."""
    wanted = network.state_dict()
    absent, extra = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if absent:
        fail(f"{source}: must hold every tensor of the network, got none called {some(absent)}")
    if extra:
        fail(f"{source}: must hold the tensors of this network only, got also {some(extra)}")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            fail(f"{source}: {name} must be {list(tensor.shape)}, got {list(weights[name].shape)}")


def fill(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Gives the network its weights as float32, all of them and no others."""
    require_tensors(source, weights)
    require_tensors_of(network, weights, source)
    with torch.no_grad():
        network.load_state_dict({name: weights[name].float() for name in network.state_dict()}, assign=True)
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            fail(f"{source}: {name} must hold finite numbers, got nan or infinity")


def read_network(
    make: Callable[[], nn.Module],
    folder: Path,
    args: argparse.Namespace,
    anchor: str,
    named: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda weights: weights,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """What `make` makes, with the weights of --weights, else of this folder.

    @anchor: see load_weights. @named: renames them as the network has them. @weights: those of @folder, where it is a file
    that has more than them.
    """
    place = args.weights or folder
    say(f"reading {place}")
    with torch.device("meta"):  # without memory and random numbers; the weights come from the file
        network = make()
    if weights is None or args.weights:
        weights = load_weights(place, args.variant, anchor=anchor)
    fill(network, named(weights), place)
    return network


# ------------------------------------------------------------------------------------------------ writing


INPUT_KEYS = ("input_channels", "input_height", "input_width")


def metadata(values: Mapping[str, object]) -> dict[str, str | bytes]:
    """The `tstitch/` keys. Numbers are written with repr(), so that reading them back gives the same double."""
    return {f"tstitch/{key}": v if isinstance(v, (str, bytes)) else repr(v) for key, v in values.items()}


def shape_of_x(channels: int, *sizes: int | None) -> dict[str, object]:
    """The keys for x [n, channels, *sizes]; None is any size. Of pictures of one size those that version 0.1 reads."""
    if len(sizes) == 2 and None not in sizes:
        return dict(zip(INPUT_KEYS, (channels, *sizes)))
    return {"input_shape": " ".join("*" if size is None else str(size) for size in (channels, *sizes))}


def condition_lines(found: Iterable[tuple[str, str, Sequence[int | None]]]) -> str:
    """The key `conditions`: name, type and sizes for one sample of each; None is any size."""
    return "\n".join(f"{name} {kind} {' '.join('*' if n is None else str(n) for n in sizes)}" for name, kind, sizes in found)


def sort_constants(code: bytes) -> bytes:
    """Sorts each run of `name : Final[type] = value` lines: TorchScript prints them in the order of a Python set."""
    lines = code.splitlines(keepends=True)
    runs = itertools.groupby(lines, key=lambda line: b" : Final[" in line)
    return b"".join(line for constants, run in runs for line in (sorted(run) if constants else run))


def make_canonical(archive: Path, output: Path, values: Mapping[str, object] | None = None) -> None:
    """Rewrites a TorchScript archive without what the exporting machine left in it.

    That is the order of constants, which changes from run to run, and the `.debug_pkl` records, which hold the paths of
    the source files. Record by record: a network may be too large to be in memory twice. @values: of `tstitch/` keys
    that are added, or take the place of those in the archive.
    """
    added = metadata(values or {}).items()
    new = {f"extra/{key}": v.encode() if isinstance(v, str) else v for key, v in added}
    reader = torch._C.PyTorchFileReader(str(archive))
    # Of a name the writer would make the name of the folder inside; of an open file it makes "archive".
    with open(output, "wb") as file:
        writer = torch._C.PyTorchFileWriter(file)
        for name in sorted({*reader.get_all_records(), *new}):
            # The writer makes a serialization_id of its own.
            if name.endswith(".debug_pkl") or name == ".data/serialization_id":
                continue
            record = new[name] if name in new else reader.get_record(name)
            if name.startswith("code/"):
                record = sort_constants(record)
            writer.write_record(name, record, len(record))
        writer.write_end_of_file()


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A file of another name to write to, which becomes @output at the end; what fails leaves @output as it was.

    The name is nobody else's: two programs may write the same @output, of which the last to end stays.
    """
    temporary = output.with_name(f".{output.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.open("xb").close()
        yield temporary
        os.replace(temporary, output)
    except OSError as error:
        fail(f"{output}: must be a file that can be written, got '{error.strerror}'")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def belief(values: Mapping[str, object]) -> str:
    """What the keys say of a network, a line each, for people to see what it was taken for."""

    def of(key: str, otherwise: object = "-") -> object:
        value = values.get(key, otherwise)
        return otherwise if value == "" else value

    def first(text: object) -> str:
        lines = str(text).splitlines()
        return (", ".join(lines[:3]) + f" and {len(lines) - 3} more") if len(lines) > 3 else ", ".join(lines)

    if values.get("kind") == "text_encoder":
        return "\n".join((
            f"taken for: {of('architecture')}",
            f"  texts           {of('text_tokens')} tokens; no text: {of('no_text')}",
            f"  gives           {first(of('outputs'))}",
        ))  # fmt: skip
    if "kind" in values:
        return "\n".join((
            f"taken for: {of('kind')} of an autoencoder",
            f"  latents         {of('latent_channels')} channels, scale {first(of('latent_scale'))}, shift {first(of('latent_shift'))}",
            f"  pictures        {of('picture_channels')} channels, {of('upsampling')} times as high and wide"
            + (f"; {values['temporal_upsampling']} frames for one after the first" if "temporal_upsampling" in values else ""),
        ))  # fmt: skip
    pixels = values.get("decoding") == "pixels"
    sizes = str(of("input_shape")).split() if "input_shape" in values else map(of, INPUT_KEYS)
    what = "a picture" if pixels else f"latents, scale {first(of('latent_scale', 'not known'))}, shift {first(of('latent_shift', 0))}"
    shape = ", ".join(f"{key} {values[key]}" for key in ("depth", "width", "heads", "patch_size") if key in values)
    schedule = " ".join(str(values[k]) for k in ("noise_schedule", "num_train_timesteps", "beta_start", "beta_end") if k in values)
    sampler = f"{of('profile', 'not known')}, steps {of('steps', 'not known')}"
    return "\n".join((
        f"taken for: {of('architecture')}" + (f" of {shape}" if shape else ""),
        f"  x               {' x '.join(map(str, sizes))}: {what}",
        f"  predicts        {of('prediction')}, variance {of('variance', 'fixed')}",
        f"  noise schedule  {schedule}, timesteps {of('timestep_type')}",
        f"  classes         {of('num_classes', 0)}, no class: {of('null_class', 'none')}, names: {first(of('class_names', 'none'))}",
        f"  conditions      {first(of('conditions', 'none'))}",
        f"  guidance        {of('guidance_scale', 'not known')}",
        f"  sampler         {sampler}",
    ))  # fmt: skip


def calibration_of(values: Mapping[str, object]) -> str:
    """What was found for 8 bits, to be said behind other measurements; empty where nothing was."""
    inputs = [float(line) for line in str(values.get("e4m3_inputs", "")).splitlines()]
    return f", inputs of {sum(value > 0 for value in inputs)} layers for 8 bits up to {max(inputs):.4g}" if inputs else ""


Inputs = Callable[[int], tuple[Tensor, ...]]


class TorchScript:
    """How a network is written: as a file that runs on every device."""

    device = "cpu"  # of the check
    tolerance = TOLERANCE  # of the largest difference
    whole_size = False  # whether the inputs must have the size of the network's x

    def save(self, network: nn.Module, values: Mapping[str, object], inputs: Inputs, path: Path) -> None:
        """Not frozen: the parameter names survive, for loaders that take the weights and bring their own network."""
        raw = path.with_name(path.name + ".raw")
        size = size_of(network) + sum(len(v) for v in values.values() if isinstance(v, bytes))
        try:
            for file in (path, raw):
                reserve(file, size)
            scripted = torch.jit.script(network)
            torch.jit.save(scripted, str(raw), _extra_files=metadata(values))
            del scripted
            gc.collect()  # its objects refer to each other, and to the weights
            network.to("meta")
            make_canonical(raw, path)
        finally:
            with contextlib.suppress(OSError):
                raw.unlink()

    def load(self, path: Path, network: nn.Module) -> list[tuple[int, Callable[..., Tensor]]]:
        """What it wrote, as functions and the rows that each takes at most."""
        return [(sys.maxsize, torch.jit.load(path, map_location="cpu").eval())]


def write(
    output: Path,
    source: nn.Module,
    values: Mapping[str, object],
    inputs: Inputs,
    dtype: str,
    peer: nn.Module | None = None,
    form: TorchScript | None = None,
) -> None:
    """Writes the network in this dtype, after a check beside `peer` (another implementation; else the network itself).

    Both are used up, for the sake of large networks: one copy of the weights is in memory at a time, at the end none.
    @inputs gives so many rows of every argument, float32 where they are floating. @form: TorchScript, or what has the
    same members.
    """
    form = form or TorchScript()
    for line in belief(values).splitlines():
        say(line)
    exact = peer if peer is not None else source
    # A constant that stands for a batch size would show.
    cases = [(arguments, outputs(exact.eval(), arguments)) for arguments in map(inputs, (1, 3))]
    if not all(expected.isfinite().all() for _, expected in cases):
        fail(f"{output}: not written: its source must give finite numbers for random inputs, got nan or infinity")
    if exact is not source:
        exact.to("meta")  # whose weights may be the same memory
    with replacing(output) as temporary:
        convert(source.eval(), dtype, output)
        form.save(source, values, inputs, temporary)
        difference = largest_difference(form.load(temporary, source), getattr(torch, dtype), form.device, cases)
        source.to("meta")
        if not difference <= form.tolerance[dtype]:
            fail(
                f"{output}: not written: it differs from its source by {difference:.2e} of the output's RMS, "
                f"more than {form.tolerance[dtype]:.0e}"
            )
        size = temporary.stat().st_size
    print(
        f"{output}: {size:,} bytes, {dtype}, {sum(p.numel() for p in source.parameters()):,} parameters, "
        f"largest difference {difference:.1e} of the output's RMS{calibration_of(values)}"
    )


def convert(network: nn.Module, dtype: str, output: Path) -> None:
    """To this type, of which every weight must be finite, as float32 is."""
    largest = {name: tensor.abs().max().item() for name, tensor in network.state_dict().items() if tensor.numel()}
    network.to(getattr(torch, dtype))
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            most = torch.finfo(tensor.dtype).max
            fail(
                f"{output}: not written: {name} must be at most {most:.5g} in {dtype}, got {largest[name]:.5g}; "
                "--dtype float32 or bfloat16 holds it"
            )


def reserve(path: Path, size: int) -> None:
    """Room for so many bytes of weights: where there is none, torch would end the process in the middle of writing."""
    with open(path, "wb") as file:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size + 2**23)  # and what else is in the file
        except OSError as error:  # other errors are of file systems that cannot tell
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def size_of(network: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


def in_type(arguments: tuple[Tensor, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """As a network of this type takes them. The second, of networks that have one, is t; it stays as it is."""
    return tuple(
        a.to(device, dtype if a.is_floating_point() and i != 1 else a.dtype) for i, a in enumerate(arguments)
    )


@torch.no_grad()
def outputs(network: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
    return network(*arguments).float().cpu()


def largest_difference(
    written: list[tuple[int, Callable[..., Tensor]]],
    dtype: torch.dtype,
    device: str,
    cases: list[tuple[tuple[Tensor, ...], Tensor]],
) -> float:
    """From the outputs that belong to these arguments, relative to their RMS; nan where one is, or nothing is compared."""
    found = []
    for (most, function), (arguments, expected) in itertools.product(written, cases):
        if len(expected) > most:
            continue
        expected = expected.double()  # of which the squares are finite
        difference = (outputs(function, in_type(arguments, dtype, device)).double() - expected).abs().max()
        found.append((difference / expected.square().mean().sqrt().clamp_min(1e-6)).item())
    return max(found) if found and not any(map(math.isnan, found)) else math.nan


# ------------------------------------------------------------------------------------------------ configs


# What keeping an average of the weights left in config.json.
IGNORED = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)


class Config:
    """A config.json of diffusers. Reading a key checks its value; `finish` refuses the keys that nobody read.

    @values: instead of those of a file, which @path then is the source of.
    """

    def __init__(self, path: Path, values: dict[str, object] | None = None):
        self.path = path
        self.values = read_json(path) if values is None else values
        if not isinstance(self.values, dict):
            fail(f"{path}: must be a JSON object, got {type(self.values).__name__}")
        self.known: set[str] = set()

    def refuse(self, key: str, rule: str, got: object) -> None:
        fail(f"{self.path}: {key} {rule}, got {json.dumps(got)}")

    def get(self, key: str, default: object = None) -> object:
        self.known.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(key, default)
        if not is_integer(value) or not least <= value <= 65536:
            self.refuse(key, f"must be an integer in [{least}, 65536]", value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
            self.refuse(key, "must be a number", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "must be true or false", value)
        return value

    def integers(self, key: str, default: list[int] | None = None) -> list[int]:
        value = self.get(key, default)
        if not isinstance(value, list) or not value or not all(is_integer(v) and 1 <= v <= 65536 for v in value):
            self.refuse(key, "must be a list of integers in [1, 65536]", value)
        return value

    def choices(self, key: str, allowed: list[str], default: list[str] | None = None) -> list[str]:
        value = self.get(key, default)
        if not isinstance(value, list) or not value or not all(v in allowed for v in value):
            self.refuse(key, f"must be a list of {' and '.join(allowed)}", value)
        return value

    def only(self, key: str, *allowed: object) -> object:
        """The value, which must be one of these; the first is what a config means that does not have the key."""
        value = self.values.get(key, allowed[0])
        self.known.add(key)
        # 1 and True are different words here.
        if not any(type(value) is type(a) and value == a for a in allowed):
            fail(f"{self.path}: {key} must be {' or '.join(json.dumps(a) for a in allowed)}, got {json.dumps(value)}")
        return value

    def kind(self, *names: str) -> str:
        """The name of diffusers' class, which must be one of these."""
        name = self.values.get("_class_name")
        if name not in names:
            self.refuse("_class_name", f"must be {' or '.join(names)}", name)
        return name

    def finish(self, *ignored: str) -> None:
        """A key that nobody read may change what the network computes, unless it is off or only a note."""
        for key, value in self.values.items():
            if key not in self.known and key not in ignored and not key.startswith("_") and value not in (None, False):
                fail(f"{self.path}: must have keys that this exporter knows, got {key} = {json.dumps(value)}")


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def component(folder: Path, name: str) -> Path:
    """The folder of one network: @folder itself, or its part of this name where @folder is a pipeline."""
    if not folder.is_dir():
        fail(f"{folder}: must be a folder, got {'a file' if folder.exists() else 'nothing'}")
    for candidate in (folder / name, folder):
        if (candidate / "config.json").is_file():
            return candidate
    fail(f"{folder}: must hold config.json or {name}/config.json, got {some(names_in(folder))}")


def require_place(output: Path, source: Path | None = None) -> None:
    """Where a file can be written, and not over what it is made of; refused before the work rather than after it."""
    if not output.absolute().parent.is_dir():
        fail(f"{output}: must be in a folder that exists, got none")
    if output.is_dir():
        fail(f"{output}: must be a file, got a folder")
    if source is not None and output.exists() and source.exists() and output.samefile(source):
        fail(f"{output}: must be another file than the checkpoint, got the same")


def say(message: str) -> None:
    """Progress goes to stderr: stdout is for results."""
    print(printable(message), file=sys.stderr, flush=True)


def find_diffusers() -> ModuleType | None:
    """The peer beside which networks are checked, where it is installed."""
    try:
        import diffusers
    except ImportError:
        say("diffusers is not installed: checking beside the float32 network")
        return None
    diffusers.logging.set_verbosity_error()
    say(f"checking beside diffusers {diffusers.__version__}")
    return diffusers


def in_diffusers(
    config: Config, network: nn.Module, kind: str | None = None, whole: bool = True, but: str | None = None
) -> nn.Module | None:
    """The same network of diffusers, with the same memory for its weights; None where that is not installed.

    @kind: its class, where config.json may have another name for it. @whole: else the network is a part of it, and the rest
    stays without memory. @but: tensors of the network that begin so are not of it.
    """
    diffusers = find_diffusers()
    if diffusers is None:
        return None
    with torch.device("meta"):
        model = getattr(diffusers, kind or config.values["_class_name"]).from_config(config.values)
    weights = {name: tensor for name, tensor in network.state_dict().items() if but is None or not name.startswith(but)}
    extra = model.load_state_dict(weights, assign=True, strict=whole).unexpected_keys
    assert not extra, extra
    return model
