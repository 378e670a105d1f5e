"""Stitched trajectories by tstitch beside diffusers' networks and scheduler, measured in turns on one device.

    python benchmark_peers.py TSTITCH_BENCHMARK                                  DiT-S/2 and DiT-XL/2 at 256x256, on a GPU
    python benchmark_peers.py TSTITCH_BENCHMARK --size bundled --device cpu      the pair in examples/models
    python benchmark_peers.py TSTITCH_BENCHMARK --size tiny --device cpu         in seconds

Makes two networks of random weights, writes them with examples/export/export_dit.py, and takes the time of whole stitched
trajectories: by TSTITCH_BENCHMARK (build/tests/examples/tstitch_benchmark), and by a plain Python loop over diffusers'
DiTTransformer2DModel of the same weights and diffusers' DDIMScheduler, eager and through torch.compile. Every program draws
the same number of pictures from noise to x_0, with the same timesteps, guidance and shares of the steps.

Figures are medians over --rounds, in each of which every program has its turn at --repeats trajectories of every ratio, after
a warm-up of its own. The clock is wall time from an idle device to an idle device. The peer keeps x in the type of its
networks, as its pipelines do, has its timesteps on the device before the loop, and waits for nothing within it.

Accuracy is the root mean square difference of the last x of one batch, relative to the root mean square of the one that
diffusers' networks draw eagerly in float32 (without diffusers: tstitch in float32), all from the same noise by address.

Needs torch; diffusers and numpy for the peer, else tstitch is measured alone.
"""

import argparse
import copy
import dataclasses
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "torch", beside=("diffusers", "numpy"))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1]
EXPORTER = EXAMPLES / "export/export_dit.py"
sys.path.append(str(EXAMPLES.parent / "tests/peers"))  # behind export/, which has a dit.py, too
from dit import DiT, DiTConfig, sin_cos_position_embedding  # noqa: E402
from export_dit import parts_of  # noqa: E402

# width, depth, heads of the official networks with patches of 2.
SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
BUNDLED = {name: EXAMPLES / f"models/cifar10_dit_{name}.pt" for name in ("small", "large")}
SIZES = {  # small, large, and what both take
    "full": (SHAPES["S"], SHAPES["XL"], {"channels": 4, "size": 32, "num_classes": 1000}),
    "tiny": ((32, 2, 2), (64, 3, 4), {"channels": 4, "size": 8, "num_classes": 10}),
    "bundled": ((128, 6, 2), (256, 12, 4), {"channels": 3, "size": 32, "num_classes": 10}),
}
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass
class Source:
    """A network: what it is, its file, and its tensors in the official layout, float32."""

    shape: DiTConfig
    file: Path
    weights: dict[str, Tensor]


def say(message: str) -> None:
    print(message, flush=True)


# ------------------------------------------------------------------------------------------------ networks


def random_weights(shape: DiTConfig, seed: int, deviation: float | None = None) -> dict[str, Tensor]:
    """Gates and output not zero, as they would be at the usual start; the output is of the size of noise.

    Of a deviation that is given all weights and biases have it, whatever that makes of the output.
    """
    with torch.device("meta"):
        network = DiT(shape)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in network.named_parameters():
        usual = parameter.shape[1:].numel() ** -0.5 if parameter.ndim > 1 else 0.02
        weights[name] = torch.empty(parameter.shape).normal_(0, deviation or usual, generator=generator)
    return weights


def make_source(args: argparse.Namespace, name: str, numbers: tuple[int, int, int], seed: int) -> Source:
    width, depth, heads = numbers
    taken = SIZES[args.size][2]
    shape = DiTConfig(width=width, depth=depth, heads=heads, patch=2, **taken)
    if args.size == "bundled":
        module = torch.jit.load(BUNDLED[name], "cpu")
        weights = {name: tensor.float() for name, tensor in module.state_dict().items()}
        return Source(shape, BUNDLED[name], weights)
    weights = random_weights(shape, seed, args.weight_deviation)
    of_weights = f"-{args.weight_deviation}" if args.weight_deviation else ""
    file = args.scratch / f"dit-{width}-{depth}-{heads}-{taken['size']}-{taken['num_classes']}-{seed}{of_weights}.pt"
    if not file.exists():
        checkpoint = file.with_suffix(".weights.pt")
        torch.save(weights, checkpoint)
        start = time.perf_counter()
        command = [sys.executable, EXPORTER, checkpoint, file, "--size", str(shape.size), "--heads", str(heads),
                   "--null-class", str(shape.num_classes)]  # fmt: skip
        # The exporter would also say of each step what it does.
        done = subprocess.run(command, capture_output=True, text=True)
        checkpoint.unlink()
        if done.returncode:
            sys.exit(f"{EXPORTER.name} failed: {done.stderr or done.stdout}")
        say(f"exported the {name} network in {time.perf_counter() - start:.0f} s: {file}")
    return Source(shape, file, weights)


def diffusers_network(diffusers, source: Source) -> nn.Module:
    """diffusers' network of these weights, float32 on the CPU, with the two constants of the official arithmetic."""
    shape = source.shape
    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=shape.heads, attention_head_dim=shape.width // shape.heads, in_channels=shape.channels,
            out_channels=shape.out_channels, num_layers=shape.depth, sample_size=shape.size, patch_size=shape.patch,
            num_embeds_ada_norm=shape.num_classes, norm_eps=shape.mlp_norm_eps,
        )  # fmt: skip
    tensors = {}
    for name, tensor in source.weights.items():
        parts = parts_of(name)
        tensors.update(zip(parts, tensor.chunk(len(parts)), strict=True))
    embeddings = {name: tensor for name, tensor in tensors.items() if ".norm1.emb." in name}
    for block in range(1, shape.depth):  # in diffusers every block has them
        for name, tensor in embeddings.items():
            tensors[name.replace("transformer_blocks.0.", f"transformer_blocks.{block}.")] = tensor
    positions = tensors.pop("pos_embed.pos_embed", None)  # a file's are rounded to its type
    if positions is None:
        positions = sin_cos_position_embedding(shape.width, shape.size // shape.patch)
    model.pos_embed.register_buffer("pos_embed", positions.clone(), persistent=False)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------ the peer


class Peer:
    """A plain stitched loop over diffusers' networks, stepped by diffusers' scheduler.

    @call is what to do before each call of a network; CUDA graphs have to be told that the output of the one before
    may be written over.
    """

    def __init__(self, diffusers, networks: list[Callable], args: argparse.Namespace, dtype: torch.dtype,
                 call: Callable[[], None] = lambda: None):  # fmt: skip
        self.networks = networks
        self.dtype = dtype
        self.device = torch.device(args.device)
        self.guidance = args.guidance
        self.shape = args.sources[0].shape
        self.call = call
        self.pixels = args.size == "bundled"
        self.scheduler = diffusers.DDIMScheduler(
            beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="leading", clip_sample=self.pixels,
        )  # fmt: skip

    @torch.no_grad()
    def draw(self, batch: int, ratio: float, steps: int, noise: Tensor | None = None) -> Tensor:
        """x_0 [batch, channels, size, size]; from @noise, or what torch draws."""
        channels, size, classes = self.shape.channels, self.shape.size, self.shape.num_classes
        guided = self.guidance != 1
        rows = 2 * batch if guided else batch
        self.scheduler.set_timesteps(steps)
        times = self.scheduler.timesteps.to(self.device)[:, None].expand(steps, rows).contiguous()
        labels = [i % classes for i in range(batch)] + ([classes] * batch if guided else [])
        labels = torch.tensor(labels, device=self.device)
        if noise is None:
            x = torch.randn(batch, channels, size, size, device=self.device, dtype=self.dtype)
        else:
            x = noise.to(self.device, self.dtype)
        first = round(ratio * steps)
        for i, t in enumerate(self.scheduler.timesteps.tolist()):
            network = self.networks[0] if i < first else self.networks[1]
            self.call()
            output = network(torch.cat([x, x]) if guided else x, timestep=times[i], class_labels=labels).sample
            eps = output[:, :channels]
            if guided:
                given, null = eps.chunk(2)
                eps = null + self.guidance * (given - null)
            x = self.scheduler.step(eps, t, x, use_clipped_model_output=self.pixels).prev_sample
        return x

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, batch: int, ratio: float, steps: int) -> float:
        self.wait()
        start = time.perf_counter()
        self.draw(batch, ratio, steps)
        self.wait()
        return time.perf_counter() - start

    def warm_up(self, batch: int, steps: int) -> None:
        """Both networks, often enough that a CUDA graph is captured and replayed."""
        for ratio in (0.0, 1.0):
            self.draw(batch, ratio, min(steps, 5))
        self.wait()


def compiled(diffusers, models: list[nn.Module], args: argparse.Namespace, dtype: torch.dtype) -> Peer:
    """@models through torch.compile, for one shape of their arguments."""
    torch._dynamo.reset()
    networks = [torch.compile(model, mode=args.compile_mode, dynamic=False) for model in models]
    return Peer(diffusers, networks, args, dtype, torch.compiler.cudagraph_mark_step_begin)


# ------------------------------------------------------------------------------------------------ tstitch


def run_tstitch(args: argparse.Namespace, dtype: str, batch: int, ratios: list[float], *more: str) -> dict:
    """What tstitch_benchmark says of every backend."""
    report = args.scratch / "tstitch.json"
    command = [args.tstitch_benchmark, *itertools.chain(*(("--model", source.file) for source in args.sources)),
               "--batch", batch, "--ratio", ",".join(map(str, ratios)), "--dtype", dtype, "--steps", args.steps,
               "--spacing", "leading", "--guidance", args.guidance, "--device", args.device, "--no-first-picture",
               "--json", report, *more]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{args.tstitch_benchmark} failed: {done.stderr or done.stdout}")
    return json.loads(report.read_text())


def tstitch_latents(args: argparse.Namespace, dtype: str, backend: str) -> Tensor:
    """The first batch at one ratio, float32 [n, C, H, W]."""
    file = args.scratch / "latents.npy"
    run_tstitch(args, dtype, args.batch[0], [args.accuracy_ratio], "--backend", backend, "--repeats", "1",
                "--latents", file)  # fmt: skip
    # A header of a few lines, then the numbers: format 1.0, whose header has its length in bytes 8 and 9.
    data = file.read_bytes()
    begin = 10 + int.from_bytes(data[8:10], "little")
    shape = args.sources[0].shape
    return torch.frombuffer(bytearray(data[begin:]), dtype=torch.float32).view(-1, shape.channels, shape.size, shape.size)


# ------------------------------------------------------------------------------------------------ both


class Report:
    """Seconds of every program in every cell, and what was left out, on disk after every cell."""

    def __init__(self, args: argparse.Namespace, diffusers):
        gpu = args.device.startswith("cuda")
        self.args = args
        self.head = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__ if diffusers else None,
            "processor": processor(),
            "gpu": torch.cuda.get_device_name(args.device) if gpu else None,
            "device": args.device,
            "threads": torch.get_num_threads(),
            "networks": [dataclasses.asdict(source.shape) for source in args.sources],
            "sampler": "ddim, leading timesteps",
            "compile_mode": args.compile_mode,
            **{key: getattr(args, key) for key in ("size", "steps", "guidance", "repeats", "rounds")},
        }
        self.seconds: dict[tuple[str, int, float], dict[str, list[float]]] = {}
        self.accuracy: list[dict] = []
        self.skipped: list[str] = []

    def add(self, dtype: str, batch: int, ratio: float, program: str, seconds: list[float]) -> None:
        self.seconds.setdefault((dtype, batch, ratio), {}).setdefault(program, []).extend(seconds)

    def skip(self, reason: str) -> None:
        if reason not in self.skipped:
            say(f"left out: {reason}")
            self.skipped.append(reason)

    def cells(self) -> list[dict]:
        cells = []
        for (dtype, batch, ratio), programs in self.seconds.items():
            medians = {program: statistics.median(seconds) for program, seconds in programs.items()}
            ours = {program: value for program, value in medians.items() if program.startswith("tstitch ")}
            for program, value in medians.items():
                cell = {"dtype": dtype, "batch": batch, "ratio": ratio, "program": program, "seconds": value,
                        "fastest_seconds": min(programs[program]), "images_per_second": batch / value,
                        "all_seconds": programs[program]}  # fmt: skip
                if program not in ours:
                    cell["times_as_long_as"] = {name: value / other for name, other in ours.items()}
                cells.append(cell)
        return cells

    def write(self) -> None:
        if self.args.json:
            whole = {**self.head, "cells": self.cells(), "accuracy": self.accuracy, "skipped": self.skipped}
            part = self.args.json.with_name(self.args.json.name + ".part")
            part.write_text(json.dumps(whole, indent=2) + "\n")
            part.replace(self.args.json)

    def print(self) -> None:
        programs = list(dict.fromkeys(cell["program"] for cell in self.cells()))
        peers = [program for program in programs if not program.startswith("tstitch ")]
        ours = [program for program in programs if program.startswith("tstitch ")]
        device = self.head["gpu"] or f"{self.head['threads']} threads of {self.head['processor']}"
        say(f"\nDDIM, {self.args.steps} steps, guidance {self.args.guidance:g}, {device}, torch {torch.__version__}, diffusers "
            f"{self.head['diffusers']}; seconds, in brackets how many times as long as {', '.join(ours)}")  # fmt: skip
        width = max(map(len, programs)) + 8
        say(f"{'dtype':<9} {'batch':>5} {'ratio':>5} " + " ".join(f"{program:>{width}}" for program in programs))
        for (dtype, batch, ratio), _ in self.seconds.items():
            line = f"{dtype:<9} {batch:>5} {ratio:>5g} "
            found = {cell["program"]: cell for cell in self.cells()
                     if (cell["dtype"], cell["batch"], cell["ratio"]) == (dtype, batch, ratio)}  # fmt: skip
            for program in programs:
                text = "-"
                if cell := found.get(program):
                    text = f"{cell['seconds']:.4f}"
                    if program in peers and (factors := cell["times_as_long_as"]):
                        text += " (" + ", ".join(f"{factor:.2f}" for factor in factors.values()) + ")"
                line += f" {text:>{width}}"
            say(line)
        for entry in self.accuracy:
            say(f"accuracy  {entry['dtype']:<9} {entry['program']:<{width}} {entry['relative_rms_difference']:.2e} from "
                f"{entry['reference']}, batch {entry['batch']}, ratio {entry['ratio']:g}")  # fmt: skip


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def import_diffusers(report_skip: Callable[[str], None]):
    try:
        import diffusers
        import numpy  # noqa: F401

        diffusers.logging.set_verbosity_error()
        return diffusers
    except ImportError as error:
        report_skip(f"the peer: {error}")
        return None


def noise_of(args: argparse.Namespace) -> Tensor:
    """What tstitch_benchmark begins with: image i has seed i."""
    import numpy as np
    from noise import noise

    shape = args.sources[0].shape
    size = (shape.channels, shape.size, shape.size)
    return torch.from_numpy(np.stack([noise(seed, 0, 0, size) for seed in range(args.batch[0])])).float()


def measure(args: argparse.Namespace) -> Report:
    reasons: list[str] = []
    diffusers = import_diffusers(reasons.append) if args.peers else None
    report = Report(args, diffusers)
    for reason in reasons:
        report.skip(reason)
    masters = [diffusers_network(diffusers, source) for source in args.sources] if diffusers else []
    for source in args.sources:
        source.weights.clear()
    reference, reference_name, noise = None, "", None
    if diffusers and not args.no_accuracy:
        noise = noise_of(args)
        models = [copy.deepcopy(master).to(args.device) for master in masters]
        peer = Peer(diffusers, models, args, torch.float32)
        reference = peer.draw(args.batch[0], args.accuracy_ratio, args.steps, noise).float().cpu()
        reference_name = "diffusers eager in float32"
        del models, peer

    def compare(dtype: str, program: str, latents: Tensor) -> None:
        nonlocal reference, reference_name
        if reference is None:
            reference, reference_name = latents, f"{program} in {dtype}"
        difference = (latents.double() - reference.double()).square().mean().sqrt() / reference.double().square().mean().sqrt()
        if not difference.isfinite():
            sys.exit(f"{program} in {dtype}: latents must be finite, as those of {reference_name}, got nan or infinity")
        report.accuracy.append({"dtype": dtype, "program": program, "batch": args.batch[0], "ratio": args.accuracy_ratio,
                                "reference": reference_name, "relative_rms_difference": difference.item()})  # fmt: skip

    for dtype in args.dtype:
        models = [copy.deepcopy(master).to(args.device, TYPES[dtype]) for master in masters]
        if not args.no_accuracy:
            for backend in args.backend:
                compare(dtype, f"tstitch {backend}", tstitch_latents(args, dtype, backend))
        for batch in args.batch:
            peers: dict[str, Peer] = {}
            if diffusers and "eager" in args.peers:
                peers["diffusers eager"] = Peer(diffusers, models, args, TYPES[dtype])
            if diffusers and "compile" in args.peers:
                peers["diffusers compile"] = compiled(diffusers, models, args, TYPES[dtype])
            for program, peer in list(peers.items()):
                start = time.perf_counter()
                try:
                    peer.warm_up(batch, args.steps)
                    if noise is not None and batch == args.batch[0]:
                        compare(dtype, program, peer.draw(batch, args.accuracy_ratio, args.steps, noise).float().cpu())
                except Exception as error:  # a compiler that is not there, or memory that is not
                    del peers[program]
                    words = (str(error).strip().splitlines() or [""])[0]
                    report.skip(f"{program}, {dtype}, batch {batch}: {type(error).__name__}: {words[:200]}")
                else:
                    say(f"{program}, {dtype}, batch {batch}: warm after {time.perf_counter() - start:.1f} s")
            for _ in range(args.rounds):
                ours = run_tstitch(args, dtype, batch, args.ratio, "--backend", ",".join(args.backend), "--repeats",
                                   str(args.repeats))  # fmt: skip
                for cell in ours["cells"]:
                    report.add(dtype, batch, cell["ratio"], f"tstitch {cell['backend']}", cell["all_seconds"])
                for program, peer in peers.items():
                    peer.draw(batch, args.ratio[0], min(args.steps, 2))  # what was forgotten while others had their turn
                    for _ in range(args.repeats):
                        for ratio in args.ratio:
                            report.add(dtype, batch, ratio, program, [peer.seconds(batch, ratio, args.steps)])
            report.write()
            peers.clear()
        del models
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    report.write()
    return report


# ------------------------------------------------------------------------------------------------ command line


def listed(kind: Callable, rule: Callable = lambda value: True) -> Callable[[str], list]:
    """Values between commas, each once and ascending where they are numbers."""

    def parse(text: str) -> list:
        try:
            values = list(dict.fromkeys(kind(part) for part in text.split(",")))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be values with commas between, got '{text}'") from error
        for value in values:
            if not rule(value):
                raise argparse.ArgumentTypeError(f"must be values that it knows, got '{value}'")
        return values if kind is str else sorted(values)

    return parse


def shape_named(text: str) -> tuple[int, int, int]:
    """S, B, L, XL, or WIDTH,DEPTH,HEADS."""
    if text in SHAPES:
        return SHAPES[text]
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if len(numbers) != 3 or min(numbers) < 1 or numbers[0] % numbers[2] or numbers[0] % 4:
        raise argparse.ArgumentTypeError(f"must be {', '.join(SHAPES)} or WIDTH,DEPTH,HEADS, got '{text}'")
    return numbers


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("tstitch_benchmark", metavar="TSTITCH_BENCHMARK", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="full", help="of the networks and what they take" + default)
    parser.add_argument("--small", type=shape_named, metavar="SHAPE", help="S, B, L, XL or WIDTH,DEPTH,HEADS (default: S)")
    parser.add_argument("--large", type=shape_named, metavar="SHAPE", help="the same (default: XL)")
    parser.add_argument("--weight-deviation", type=float, metavar="D",
                        help="of all weights and biases (default: what keeps the output as large as noise)")  # fmt: skip
    parser.add_argument("--batch", type=listed(int, lambda n: n > 0), metavar="N,...", help="(default: 1,8,32; on a CPU 1,4)")
    parser.add_argument("--ratio", type=listed(float, lambda r: 0 <= r <= 1), default=[0.0, 0.4, 1.0], metavar="R,...",
                        help="(default: 0,0.4,1)")  # fmt: skip
    parser.add_argument("--dtype", type=listed(str, TYPES.__contains__), metavar="TYPE,...",
                        help="float32, float16, bfloat16 (default: bfloat16,float32; on a CPU float32)")  # fmt: skip
    parser.add_argument("--backend", type=listed(str), metavar="NAME,...",
                        help="of tstitch_benchmark (default: torchscript+graph,native+graph,native-e4m3+graph; on a CPU "
                        "torchscript,native)")  # fmt: skip
    parser.add_argument("--peers", type=listed(str, ("eager", "compile", "").__contains__), default=["eager", "compile"],
                        metavar="NAME,...", help="eager, compile, or '' for none (default: eager,compile)")  # fmt: skip
    parser.add_argument("--compile-mode", help="of torch.compile (default: max-autotune; on a CPU default)")
    parser.add_argument("--steps", type=int, help="(default: 100; on a CPU 10)")
    parser.add_argument("--guidance", type=float, default=1.5, help="1 is without" + default)
    parser.add_argument("--repeats", type=int, default=3, help="trajectories of each ratio in a turn" + default)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each program" + default)
    parser.add_argument("--accuracy-ratio", type=float, default=0.4, help="at which latents are compared" + default)
    parser.add_argument("--no-accuracy", action="store_true", help="compare no latents")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help=default.strip())
    parser.add_argument("--threads", type=int, help="of every program on a CPU (default: as many as torch takes)")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "tstitch_benchmark_peers",
                        help="folder in which exported networks stay for the next time" + default)  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON; written after every batch size")
    args = parser.parse_args()
    if not args.tstitch_benchmark.is_file():
        parser.error(f"{args.tstitch_benchmark}: must be the program tstitch_benchmark, got no file")
    args.tstitch_benchmark = args.tstitch_benchmark.resolve()
    if args.device == "cuda":
        args.device = "cuda:0"
    gpu = args.device.startswith("cuda")
    if not gpu and args.device != "cpu":
        parser.error(f"--device: must be cpu, cuda or cuda:N, got {args.device}")
    if gpu and not torch.cuda.is_available():
        parser.error(f"--device: must be there, got {args.device} on a machine without CUDA")
    if args.size == "bundled" and (args.small or args.large):
        parser.error("--small, --large: are for random weights, got --size bundled")
    if args.weight_deviation is not None and not 0 < args.weight_deviation < float("inf"):
        parser.error(f"--weight-deviation: must be greater than 0 and finite, got {args.weight_deviation:g}")
    if args.size == "bundled" and args.weight_deviation:
        parser.error("--weight-deviation: is for random weights, got --size bundled")
    for name in ("repeats", "rounds", "steps", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name}: must be at least 1, got {value}")
    if not abs(args.guidance) < float("inf"):
        parser.error(f"--guidance: must be finite, got {args.guidance:g}")
    if not 0 <= args.accuracy_ratio <= 1:
        parser.error(f"--accuracy-ratio: must be in [0, 1], got {args.accuracy_ratio:g}")
    args.batch = args.batch or ([1, 8, 32] if gpu else [1, 4])
    args.dtype = args.dtype or (["bfloat16", "float32"] if gpu else ["float32"])
    if "float32" in args.dtype:  # first: without the peer the others are compared with it
        args.dtype = ["float32", *(dtype for dtype in args.dtype if dtype != "float32")]
    args.backend = args.backend or (
        ["torchscript+graph", "native+graph", "native-e4m3+graph"] if gpu else ["torchscript", "native"]
    )
    args.steps = args.steps or (100 if gpu else 10)
    args.compile_mode = args.compile_mode or ("max-autotune" if gpu else "default")
    args.peers = [peer for peer in args.peers if peer]
    args.scratch = args.scratch.resolve()
    return args


def main() -> None:
    args = parse_arguments()
    args.scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.scratch / "inductor"))
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the programs that are started
    # As tstitch computes float32: in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    small, large, _ = SIZES[args.size]
    args.sources = [
        make_source(args, "small", args.small or small, 0),
        make_source(args, "large", args.large or large, 1),
    ]
    measure(args).print()
    if args.json:
        say(f"json: {args.json}")


if __name__ == "__main__":
    main()
