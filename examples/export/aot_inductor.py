"""Networks as machine code: compiles them with AOTInductor into .pt2 packages that tstitch loads.

A package is for one type of numbers, one size of x, one kind of processor (the one that compiles it: a GPU of the same
compute capability, or the CPU) and certain batch sizes: all from 1 to some number, or a list of sizes, to the next of
which smaller batches are filled up. Its keys are listed in include/tstitch/file/metadata.hpp and aot_inductor.hpp.
With `parts` it holds the parts of the network, too, as models of their own with the weights of the whole one.
`torch._inductor.aoti_load_package` reads it too.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from common import TOLERANCE, Inputs, TorchScript, fail, first_line, in_type, metadata, reserve, say, size_of
from in_place import InPlace

LARGEST_BATCH = 1_000_000
PARTS = ("forecast_embed", "forecast_blocks", "forecast_head")


def add_form(parser: argparse.ArgumentParser, parts: bool = False, in_place: bool = False) -> None:
    """The options that say how a network is written, for `form_of`.

    @parts: whether the network always has `forecast_embed`, `forecast_blocks` and `forecast_head`. @in_place: whether its
    weights may stay where they are (in_place.py).
    """
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--format",
        choices=["torchscript", "aot-inductor", *(["in-place"] if in_place else [])],
        default="torchscript",
        help="a file that runs everywhere, or one compiled for machines like this"
        + ("; in-place: a text that names .safetensors files as they are, for the native engine" if in_place else "")
        + " (default: %(default)s)",
    )
    group.add_argument("--device", choices=["cpu", "cuda"], help="what it is compiled for (default: cpu)")
    group.add_argument(
        "--batch",
        type=batch_sizes,
        metavar="SIZES",
        help="the batch sizes that it is compiled for, twice that of pictures where there is guidance: a range from 1 "
        "on, 1-512, or a list, 1,2,8 (default: 1-512)",
    )
    if parts:
        group.add_argument(
            "--forecast-parts",
            action="store_true",
            help="also compile its three parts, so that steps can be forecast; it takes about twice as long",
        )


def batch_sizes(text: str) -> "int | tuple[int, ...]":
    """The largest of a range, or a list."""
    if match := re.fullmatch(r"1-(\d{1,7})", text):
        sizes = (1, int(match[1]))
    elif re.fullmatch(r"\d{1,7}(,\d{1,7})*", text):
        match, sizes = None, tuple(map(int, text.split(",")))
    else:
        raise argparse.ArgumentTypeError(f"must be a range as 1-512 or a list as 1,2,8, got '{text}'")
    if not all(1 <= size <= LARGEST_BATCH for size in sizes) or not all(a < b for a, b in zip(sizes, sizes[1:])):
        raise argparse.ArgumentTypeError(f"must be rising numbers in [1, {LARGEST_BATCH}], got '{text}'")
    return sizes[1] if match else sizes


def form_of(args: argparse.Namespace) -> "TorchScript | AOTInductor | InPlace":
    """How the network is to be written; refuses what cannot be, before anything is read."""
    if args.format != "aot-inductor":
        for option, value in (("--device", args.device), ("--batch", args.batch)):
            if value is not None:
                fail(f"{option}: is for --format aot-inductor, got {args.format}, which runs everywhere")
        if getattr(args, "forecast_parts", False):
            fail(f"--forecast-parts: is for --format aot-inductor, got {args.format}, which has the parts anyway")
        return TorchScript() if args.format == "torchscript" else InPlace()
    device = args.device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        fail("--device: must be cpu where there is no GPU, because it compiles for the one that is there, got cuda")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        fail("--format: aot-inductor needs a C++ compiler, got a machine without g++")
    batch = 512 if args.batch is None else args.batch
    # A U-Net has parts where they are asked for, whatever is written.
    parts = getattr(args, "forecast_parts", False) or getattr(args, "deep_feature", False)
    return AOTInductor(device, *((batch, ()) if isinstance(batch, int) else (0, batch)), parts)


def cause(error: Exception) -> str:
    """The compiler's own line of an error, where there is one: before it torch quotes the whole command."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:300] for line in lines if re.search(r"\b(fatal )?error: ", line)), first_line(error))


def require_sizes(form: "TorchScript | AOTInductor", tokens: int | None, size: tuple[int | None, ...]) -> None:
    """@tokens: of text, None for any number. @size: of x, likewise."""
    if isinstance(form, AOTInductor) and tokens is None:
        fail("--text-tokens: must be a number for --format aot-inductor, got *")
    if isinstance(form, AOTInductor) and None in size:
        fail("--size: must be numbers for --format aot-inductor, got *")


@dataclasses.dataclass(frozen=True)
class AOTInductor:
    """How a network is written: compiled. It has the members of `TorchScript`."""

    device: str
    most: int  # rows, or 0
    sizes: tuple[int, ...]  # of batches, where most is 0
    parts: bool = False  # whether the network's parts are compiled, too

    tolerance = TOLERANCE
    whole_size = True

    @property
    def models(self) -> dict[str, int]:
        """Their names inside, and the rows that they are compiled with."""
        return {f"{size}_rows": size for size in self.sizes} or {"model": min(self.most, 8)}

    def facts(self, network: nn.Module) -> dict[str, object]:
        """The keys that packages have besides those of every network."""
        dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
        facts = {
            "dtype": dtype,
            "device": self.device,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "batch": f"1-{self.most}" if self.most else " ".join(map(str, self.sizes)),
        }
        if self.device == "cuda":
            facts["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
        return {key: str(value) for key, value in facts.items()}

    def save(self, network: nn.Module, values: Mapping[str, object], inputs: Inputs, path: Path) -> None:
        """Compiles a model for each batch size, and for its parts. The first has the weights in it, others ask for them."""
        from torch._inductor.utils import fresh_cache
        from torch.export.pt2_archive import PT2ArchiveWriter

        reserve(path, 3 * size_of(network))  # the compiler has copies
        network.to(self.device)
        with (
            # Of the whole path: the compiler runs in another folder.
            tempfile.TemporaryDirectory(prefix=path.name, dir=path.absolute().parent, ignore_cleanup_errors=True) as folder,
            fresh_cache(dir=folder),
            open(path, "wb") as file,
            PT2ArchiveWriter(file) as archive,
        ):
            for name, value in metadata({**values, **self.facts(network)}).items():
                archive.write_string(f"extra/{name}", value)
            with_weights = True
            for name, rows in self.models.items():
                say(f"compiling for batches of {f'1 to {self.most}' if self.most else rows} on {self.device}")
                example = in_type(inputs(rows), next(network.parameters()).dtype, self.device)
                for method, arguments in self.methods(network, example):
                    with calling(network, method):
                        files = self.compiled(network, arguments, with_weights)
                    for part in files:
                        require_shared_library(Path(part))
                        archive.write_file(f"data/aotinductor/{name_of(name, method)}/{Path(part).name}", part)
                        Path(part).unlink()
                    with_weights = False

    @torch.no_grad()
    def methods(self, network: nn.Module, example: tuple[Tensor, ...]) -> list[tuple[str, tuple]]:
        """Those that are compiled, with arguments of each."""
        methods: list[tuple[str, tuple]] = [("forward", example)]
        if self.parts:
            embedded = [each.clone(memory_format=torch.contiguous_format) for each in network.forecast_embed(*example)]
            feature = network.forecast_blocks([each.clone() for each in embedded]).contiguous()
            arguments = (example, (embedded,), (embedded, feature))
            methods += list(zip(PARTS, arguments))
        return methods

    @torch.no_grad()
    def compiled(self, network: nn.Module, example: tuple, with_weights: bool) -> list[str]:
        """The paths of a model's files."""
        options = {
            "aot_inductor.package": True,
            "aot_inductor.package_constants_in_so": with_weights,
            "aot_inductor.precompile_headers": False,  # they are compiled once or twice here
            "cpp.dynamic_threads": True,  # as many as torch has where it runs, not as many as it has here
        }
        rows = {0: torch.export.Dim("rows", min=1, max=self.most)} if self.most > 1 else None
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # where there is no GPU
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(network, example, dynamic_shapes=tree_map(lambda _: rows, example))
                arguments, keywords = program.example_inputs
                module = program.module(check_guards=False)
                return torch._inductor.aot_compile(module, arguments, keywords, options=options)
        except OSError:
            raise
        except Exception as error:
            fail(f"--format: aot-inductor must be able to compile the network, got '{cause(error)}'")

    def load(self, path: Path, network: nn.Module) -> list[tuple[int, Callable[..., Tensor]]]:
        """What it wrote, as functions and the rows that each takes at most."""
        weights = dict(network.state_dict())
        if len(self.models) == 1 and not self.parts:
            network.to("meta")
        functions = []
        first = True
        for name, rows in self.models.items():
            loaders = []
            for method in ("forward", *PARTS) if self.parts else ("forward",):
                loader = torch._C._aoti.AOTIModelPackageLoader(str(path), name_of(name, method), True, 1, -1)
                if not first:
                    own = {constant: weights.get(constant) for constant in loader.get_constant_fqns()}
                    if lacking := [constant for constant, tensor in own.items() if tensor is None]:
                        fail(f"--format: aot-inductor must find all constants among the weights, got {lacking[0]}")
                    loader.load_constants(own, False, True, True)
                first = False
                loaders.append(loader)
            size = 0 if self.most else rows
            functions.append((self.most or rows, self.function(loaders[:1], size)))
            if self.parts:
                functions.append((self.most or rows, self.function(loaders[1:], size)))
        return functions

    @staticmethod
    def function(loaders: "list[torch._C._aoti.AOTIModelPackageLoader]", size: int) -> Callable[..., Tensor]:
        """@loaders: of the whole network, or of its three parts. @size: to which a batch is filled up."""

        def call(*arguments: Tensor) -> Tensor:
            rows = len(arguments[0])
            more = [torch.cat([a, *[a[-1:]] * (size - rows)]) if size > rows else a for a in arguments]
            outputs = loaders[0].run(more)
            if len(loaders) > 1:
                embedded = [each.contiguous() for each in outputs]
                outputs = loaders[2].run([*embedded, loaders[1].run(embedded)[0].contiguous()])
            return outputs[0][:rows]

        return call


def require_shared_library(file: Path) -> None:
    """Of a compiled model: with a C++ library of its own beside torch's, torch would crash when it loads it."""
    if file.suffix == ".so" and b"libstdc++.so" not in file.read_bytes() and b"libc++.so" not in file.read_bytes():
        compiler = os.environ.get("CXX", "g++")
        fail(f"--format: aot-inductor must have a compiler that links the C++ library as a shared one, got {compiler}; set CXX")


@contextlib.contextmanager
def calling(network: nn.Module, method: str) -> Iterator[None]:
    """`forward` is this method. Weights keep their names, which a module around the network would change."""
    if method == "forward":
        yield
        return
    network.forward = getattr(network, method)
    try:
        yield
    finally:
        del network.forward


def name_of(model: str, method: str) -> str:
    """What the model of this method is called. Torch takes for a model's all files in folders that begin with its name."""
    return model if method == "forward" else f"{method}_{model}"
