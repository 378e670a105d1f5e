"""Stitched trajectories by tstitch beside diffusers' networks and scheduler, measured in turns on one device.

    python benchmark_peers.py TSTITCH_BENCHMARK                                  DiT-S/2 and DiT-XL/2 at 256x256, on a GPU
    python benchmark_peers.py TSTITCH_BENCHMARK --size bundled --device cpu      the pair in examples/models
    python benchmark_peers.py TSTITCH_BENCHMARK --size tiny --device cpu         in seconds
    python benchmark_peers.py TSTITCH_BENCHMARK --forecast every:2 --peers eager,taylorseer,taylorseer-lite,first-block-cache

Makes two networks of random weights, writes them with examples/export/export_dit.py, and takes the time of whole stitched
trajectories: by TSTITCH_BENCHMARK (build/tests/examples/tstitch_benchmark), and by a plain Python loop over diffusers'
DiTTransformer2DModel of the same weights and diffusers' DDIMScheduler, eager and through torch.compile. Every program draws
the same number of pictures from noise to x_0, with the same timesteps, guidance and shares of the steps.

Figures are medians over --rounds, in each of which every program has its turn at --repeats trajectories of every ratio, after
a warm-up of its own. The clock is wall time from an idle device to an idle device. The peer keeps x in the type of its
networks, as its pipelines do, has its timesteps on the device before the loop, and by itself waits for nothing within it.

With --forecast tstitch also has its turn with forecast steps of the large network, with --forecast-guidance also with these
and forecast guidance, and diffusers' caches on the large network can be peers. They compute as many of its steps as tstitch
with --forecast, or as near as they come to it; every cell says how many. Their settings:

    taylorseer         TaylorSeerCacheConfig with the interval, order and warm-up of --forecast; predicts what attention and
                       MLP of each block add
    taylorseer-lite    the same, which leaves out whole blocks and predicts the output of the network
    first-block-cache  FirstBlockCacheConfig, which decides in each step, by what the first block adds, whether to repeat what
                       the others added, and waits for the GPU to know; its threshold is found by bisection, with the noise
                       that is drawn from later

Each of them with +compile behind its name has what its hooks leave out compiled by torch.compile, without CUDA graphs, for
the hooks keep outputs; the hooks themselves run in between. By itself a cache runs eagerly.

Accuracy is the root mean square difference of the last x of one batch, relative to the root mean square of the one that
diffusers' networks draw eagerly in float32 (without diffusers: tstitch in float32), all from the same noise by address.

Needs torch; diffusers and numpy for the peer, else tstitch is measured alone.
"""

import argparse
import contextlib
import copy
import dataclasses
import datetime
import itertools
import json
import os
import platform
import re
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
CACHES = {  # what diffusers calls their configurations
    "taylorseer": "TaylorSeerCacheConfig",
    "taylorseer-lite": "TaylorSeerCacheConfig",
    "first-block-cache": "FirstBlockCacheConfig",
}
PEERS = ("eager", "compile", *CACHES, *(f"{name}+compile" for name in CACHES))


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


def network_class(diffusers) -> type[nn.Module]:
    """diffusers' DiT, whose caches are switched on by its CacheMixin, which other networks have and this one has not."""
    mixin = getattr(diffusers, "CacheMixin", None)
    network = diffusers.DiTTransformer2DModel
    return type("DiTTransformer2DModel", (network, mixin), {}) if mixin else network


def diffusers_network(diffusers, source: Source) -> nn.Module:
    """diffusers' network of these weights, float32 on the CPU, with the two constants of the official arithmetic."""
    shape = source.shape
    with torch.device("meta"):
        model = network_class(diffusers)(
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

    def can_draw(self, ratio: float) -> bool:
        return True

    def prepare(self, batch: int, ratio: float) -> str:
        """Before trajectories of another ratio. What was set for them, in words."""
        return ""

    def computed(self, ratio: float, steps: int) -> int:
        """Steps of the last trajectory in which all of the large network ran."""
        return steps - round(ratio * steps)

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


def taylor_steps(steps: int, before: int, after: int, interval: int) -> int:
    """How many of @steps diffusers' TaylorSeer computes."""
    return sum(i < before or i >= after or (i - before - 1) % interval == 0 for i in range(steps))


class CachedPeer(Peer):
    """A peer whose large network has one of diffusers' caches, set to compute @targets[ratio] of its steps.

    DiT's block is in diffusers' TransformerBlockRegistry as it comes, as BasicTransformerBlock, which the cache by the first
    block asks for. The names that TaylorSeer looks for are not DiT's ('attn' and 'proj_out', where DiT has 'attn1' and
    'proj_out_2'): by itself it hooks nothing, and its lite mode leaves out the blocks and predicts nothing in their place.
    So it is told DiT's names, for which its configuration has fields. MLPs are among them, because otherwise they would be
    computed in every step, and with them more than half of the work.
    """

    def __init__(self, diffusers, networks: list[nn.Module], args: argparse.Namespace, dtype: torch.dtype, name: str,
                 targets: dict[float, int], noise: Tensor):  # fmt: skip
        self.cache, _, compiled = name.partition("+")
        self.targets = targets
        if missing := [needed for needed in (CACHES[self.cache], "CacheMixin") if not hasattr(diffusers, needed)]:
            raise NotImplementedError(f"diffusers {diffusers.__version__} has no {' and no '.join(missing)}")
        self.configuration = getattr(diffusers, CACHES[self.cache])
        # Modules of its own, for the hooks, around the same weights.
        self.large = copy.deepcopy(networks[1], {id(weight): weight for weight in networks[1].parameters()})
        super().__init__(diffusers, [networks[0], self.large_network], args, dtype)
        self.ratios = args.ratio
        self.steps = args.steps
        self.forecast = args.forecast
        self.noise = noise.to(self.device, dtype)
        self.found: dict[float, dict] = {}  # by ratio
        self.calls = 0

        blocks = self.large.transformer_blocks
        left_out = [module for block in blocks for module in (block.attn1, block.ff)] if self.cache == "taylorseer" else blocks
        if compiled:
            mode = {"max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "default"}.get(
                args.compile_mode, args.compile_mode)  # fmt: skip
            torch._dynamo.reset()
            for module in left_out:
                module.forward = torch.compile(module.forward, mode=mode, dynamic=False)
        # Below the hooks: a module whose output is cached or left out is not called.
        counted = left_out[-1]
        forward = counted.forward

        def count(*positional, **named):
            self.calls += 1
            return forward(*positional, **named)

        counted.forward = count

    def large_network(self, *positional, **named):
        with self.large.cache_context("both halves"):  # of guidance, one batch as in diffusers' pipeline
            return self.large(*positional, **named)

    def can_draw(self, ratio: float) -> bool:
        return super().computed(ratio, self.steps) > 0

    def computed(self, ratio: float, steps: int) -> int:
        return self.calls

    def draw(self, batch: int, ratio: float, steps: int, noise: Tensor | None = None) -> Tensor:
        self.large._reset_stateful_cache()  # as diffusers' pipelines do
        self.calls = 0
        return super().draw(batch, ratio, steps, self.noise if noise is None else noise)

    def warm_up(self, batch: int, steps: int) -> None:
        for ratio in filter(self.can_draw, self.ratios):
            self.prepare(batch, ratio)
            self.draw(batch, ratio, steps)
        self.wait()

    def enable(self, **settings) -> None:
        if self.large.is_cache_enabled:
            self.large.disable_cache()
        self.large.enable_cache(self.configuration(**settings))

    def prepare(self, batch: int, ratio: float) -> str:
        if ratio not in self.found:
            find = self.find_threshold if self.cache == "first-block-cache" else self.find_interval
            self.found[ratio] = find(batch, ratio)
        self.enable(**self.found[ratio])
        return ", ".join(f"{name} {value:.6g}" for name, value in self.found[ratio].items() if isinstance(value, int | float))

    def find_interval(self, batch: int, ratio: float) -> dict:
        steps = super().computed(ratio, self.steps)
        interval, order, warm_up = self.forecast
        # As in --forecast, moved where that computes a step more or less.
        before, after = min(
            itertools.product(range(order + 1, max(steps, order + 1) + 1), (steps - 1, steps)),
            key=lambda ends: (abs(taylor_steps(steps, *ends, interval) - self.targets[ratio]), abs(ends[0] - warm_up), ends[1]),
        )
        names = (
            {"cache_identifiers": [r"transformer_blocks\.\d+\.(attn1|ff)"]}
            if self.cache == "taylorseer"
            else {"cache_identifiers": ["proj_out_2"], "skip_predict_identifiers": [r"transformer_blocks\.\d+"]}
        )
        return {"cache_interval": interval, "max_order": order, "disable_cache_before_step": before,
                "disable_cache_after_step": after, "taylor_factors_dtype": self.dtype, **names}  # fmt: skip

    def find_threshold(self, batch: int, ratio: float) -> dict:
        low, high = 1e-6, 10.0  # of the change of what the first block adds, relative
        found: dict[int, float] = {}
        for _ in range(20):
            threshold = (low * high) ** 0.5
            self.enable(threshold=threshold)
            self.draw(batch, ratio, self.steps)
            found.setdefault(abs(self.calls - self.targets[ratio]), threshold)
            if self.calls == self.targets[ratio]:
                break
            low, high = (threshold, high) if self.calls > self.targets[ratio] else (low, threshold)
        return {"threshold": found[min(found)]}


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


def tstitch_variants(args: argparse.Namespace) -> dict[str, list[str]]:
    """What to tell tstitch_benchmark, by what is said behind the backend."""
    variants: dict[str, list[str]] = {"": []}
    if args.forecast_text != "none":
        variants[f" forecast {args.forecast_text}"] = ["--forecast", args.forecast_text]
    if args.forecast_guidance != "none":
        name, options = list(variants.items())[-1]
        variants[f"{name or ' forecast'} guidance {args.forecast_guidance}"] = [
            *options, "--forecast-guidance", args.forecast_guidance]  # fmt: skip
    return variants


def computed_by_forecasts(args: argparse.Namespace) -> dict[float, int]:
    """Steps of the large network that tstitch computes with --forecast, by ratio."""
    ratios = sorted({*args.ratio, *([] if args.no_accuracy else [args.accuracy_ratio])})
    ours = run_tstitch(args, args.dtype[0], 1, ratios, "--backend", args.backend[0], "--repeats", "1", "--forecast",
                       args.forecast_text)  # fmt: skip
    return {cell["ratio"]: cell["calls"][1] for cell in ours["cells"]}


def tstitch_latents(args: argparse.Namespace, dtype: str, backend: str, options: list[str]) -> tuple[Tensor, int]:
    """The first batch at one ratio, float32 [n, C, H, W], and how many steps of the large network were computed."""
    file = args.scratch / "latents.npy"
    ours = run_tstitch(args, dtype, args.batch[0], [args.accuracy_ratio], "--backend", backend, "--repeats", "1",
                       "--latents", file, *options)  # fmt: skip
    # A header of a few lines, then the numbers: format 1.0, whose header has its length in bytes 8 and 9.
    data = file.read_bytes()
    begin = 10 + int.from_bytes(data[8:10], "little")
    shape = args.sources[0].shape
    latents = torch.frombuffer(bytearray(data[begin:]), dtype=torch.float32)
    return latents.view(-1, shape.channels, shape.size, shape.size), ours["cells"][0]["calls"][1]


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
            "forecast": args.forecast_text,
            **{key: getattr(args, key) for key in ("forecast_guidance", "size", "steps", "guidance", "repeats", "rounds")},
        }
        self.seconds: dict[tuple[str, int, float], dict[str, list[float]]] = {}
        self.computed: dict[tuple[str, int, float, str], int] = {}
        self.settings: dict[tuple[str, int, float, str], str] = {}
        self.accuracy: list[dict] = []
        self.skipped: list[str] = []

    def add(self, dtype: str, batch: int, ratio: float, program: str, seconds: list[float], computed: int) -> None:
        self.seconds.setdefault((dtype, batch, ratio), {}).setdefault(program, []).extend(seconds)
        self.computed[dtype, batch, ratio, program] = computed

    def set(self, dtype: str, batch: int, ratio: float, program: str, setting: str, computed: int, target: int) -> None:
        """What a cache was told, and how many steps it computes with it."""
        say(f"{program}, {dtype}, batch {batch}, ratio {ratio:g}: {setting}: computes {computed} of "
            f"{self.large_steps(ratio)} steps of the large network, tstitch {target}")  # fmt: skip
        self.settings[dtype, batch, ratio, program] = setting

    def large_steps(self, ratio: float) -> int:
        return self.args.steps - round(ratio * self.args.steps)

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
                        "large_steps": self.large_steps(ratio),
                        "computed_large_steps": self.computed[dtype, batch, ratio, program],
                        "all_seconds": programs[program]}  # fmt: skip
                if setting := self.settings.get((dtype, batch, ratio, program)):
                    cell["setting"] = setting
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
        counts = len(tstitch_variants(self.args)) > 1
        say(f"\nDDIM, {self.args.steps} steps, guidance {self.args.guidance:g}, {device}, torch {torch.__version__}, diffusers "
            f"{self.head['diffusers']}; seconds, in brackets how many times as long as {', '.join(ours)}"
            + ("; computed of the large network's steps" if counts else ""))  # fmt: skip
        lines = [["dtype", "batch", "ratio", *programs]]
        for (dtype, batch, ratio), _ in self.seconds.items():
            found = {cell["program"]: cell for cell in self.cells()
                     if (cell["dtype"], cell["batch"], cell["ratio"]) == (dtype, batch, ratio)}  # fmt: skip
            lines.append([dtype, str(batch), f"{ratio:g}"])
            for program in programs:
                text = "-"
                if cell := found.get(program):
                    text = f"{cell['seconds']:.4f}"
                    if program in peers and (factors := cell["times_as_long_as"]):
                        text += " (" + ", ".join(f"{factor:.2f}" for factor in factors.values()) + ")"
                    if counts:
                        text += f" {cell['computed_large_steps']}/{cell['large_steps']}"
                lines[-1].append(text)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        widths[:3] = [9, 5, 5]
        for line in lines:
            say(f"{line[0]:<9} " + " ".join(f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)))
        width = max(len(entry["program"]) for entry in self.accuracy) if self.accuracy else 0
        for entry in self.accuracy:
            say(f"accuracy  {entry['dtype']:<9} {entry['program']:<{width}} {entry['relative_rms_difference']:.2e} from "
                f"{entry['reference']}, batch {entry['batch']}, ratio {entry['ratio']:g}"
                + (f", {entry['computed_large_steps']} large steps computed" if counts else ""))  # fmt: skip


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


def noise_of(args: argparse.Namespace, batch: int) -> Tensor:
    """What tstitch_benchmark begins with: image i has seed i."""
    import numpy as np
    from noise import noise

    shape = args.sources[0].shape
    size = (shape.channels, shape.size, shape.size)
    return torch.from_numpy(np.stack([noise(seed, 0, 0, size) for seed in range(batch)])).float()


@contextlib.contextmanager
def leaving_out(report: Report, program: str, dtype: str, batch: int, peers: dict[str, Peer]):
    """Whatever a peer cannot do within, it is no peer any longer, and the report says why."""
    try:
        yield
    except Exception as error:  # a compiler that is not there, or memory that is not
        peers.pop(program, None)
        words = (str(error).strip().splitlines() or [""])[0]
        report.skip(f"{program}, {dtype}, batch {batch}: {type(error).__name__}: {words[:200]}")


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
        noise = noise_of(args, args.batch[0])
        models = [copy.deepcopy(master).to(args.device) for master in masters]
        peer = Peer(diffusers, models, args, torch.float32)
        reference = peer.draw(args.batch[0], args.accuracy_ratio, args.steps, noise).float().cpu()
        reference_name = "diffusers eager in float32"
        del models, peer

    def compare(dtype: str, program: str, latents: Tensor, computed: int) -> None:
        nonlocal reference, reference_name
        if reference is None:
            reference, reference_name = latents, f"{program} in {dtype}"
        difference = (latents.double() - reference.double()).square().mean().sqrt() / reference.double().square().mean().sqrt()
        if not difference.isfinite():
            sys.exit(f"{program} in {dtype}: latents must be finite, as those of {reference_name}, got nan or infinity")
        report.accuracy.append({"dtype": dtype, "program": program, "batch": args.batch[0], "ratio": args.accuracy_ratio,
                                "reference": reference_name, "relative_rms_difference": difference.item(),
                                "computed_large_steps": computed})  # fmt: skip

    caches = [name for name in args.peers if name.partition("+")[0] in CACHES] if diffusers else []
    targets = computed_by_forecasts(args) if caches else {}
    for dtype in args.dtype:
        models = [copy.deepcopy(master).to(args.device, TYPES[dtype]) for master in masters]
        if not args.no_accuracy:
            for backend, (variant, options) in itertools.product(args.backend, tstitch_variants(args).items()):
                compare(dtype, f"tstitch {backend}{variant}", *tstitch_latents(args, dtype, backend, options))
        for batch in args.batch:
            peers: dict[str, Peer] = {}
            if diffusers and "eager" in args.peers:
                peers["diffusers eager"] = Peer(diffusers, models, args, TYPES[dtype])
            if diffusers and "compile" in args.peers:
                peers["diffusers compile"] = compiled(diffusers, models, args, TYPES[dtype])
            for name in caches:
                program = f"diffusers {name}"
                with leaving_out(report, program, dtype, batch, peers):
                    peers[program] = CachedPeer(diffusers, models, args, TYPES[dtype], name, targets, noise_of(args, batch))
            for program, peer in list(peers.items()):
                start = time.perf_counter()
                with leaving_out(report, program, dtype, batch, peers):
                    peer.warm_up(batch, args.steps)
                    if noise is not None and batch == args.batch[0] and peer.can_draw(args.accuracy_ratio):
                        peer.prepare(batch, args.accuracy_ratio)
                        latents = peer.draw(batch, args.accuracy_ratio, args.steps, noise).float().cpu()
                        compare(dtype, program, latents, peer.computed(args.accuracy_ratio, args.steps))
                    say(f"{program}, {dtype}, batch {batch}: warm after {time.perf_counter() - start:.1f} s")
            for turn in range(args.rounds):
                for variant, options in tstitch_variants(args).items():
                    ours = run_tstitch(args, dtype, batch, args.ratio, "--backend", ",".join(args.backend), "--repeats",
                                       str(args.repeats), *options)  # fmt: skip
                    for cell in ours["cells"]:
                        program = f"tstitch {cell['backend']}{variant}"
                        report.add(dtype, batch, cell["ratio"], program, cell["all_seconds"], cell["calls"][1])
                for program, peer in peers.items():
                    ratios = list(filter(peer.can_draw, args.ratio))
                    if ratios:
                        peer.draw(batch, ratios[0], min(args.steps, 2))  # what was forgotten while others had their turn
                    for repeat, ratio in itertools.product(range(args.repeats), ratios):
                        setting = peer.prepare(batch, ratio)
                        seconds = peer.seconds(batch, ratio, args.steps)
                        computed = peer.computed(ratio, args.steps)
                        report.add(dtype, batch, ratio, program, [seconds], computed)
                        if setting and turn == repeat == 0:
                            report.set(dtype, batch, ratio, program, setting, computed, targets[ratio])
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
    parser.add_argument("--peers", type=listed(str, (*PEERS, "").__contains__), default=["eager", "compile"], metavar="NAME,...",
                        help=f"{', '.join(PEERS)}, or '' for none (default: eager,compile)")  # fmt: skip
    parser.add_argument("--forecast", dest="forecast_text", default="none", metavar="every:N[,ORDER[,WARM_UP]]",
                        help="steps of the large network that tstitch forecasts in turns of its own" + default)  # fmt: skip
    parser.add_argument("--forecast-guidance", default="none", metavar="every:N[,ORDER[,WARM_UP]]",
                        help="steps in which it forecasts guidance, likewise" + default)  # fmt: skip
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
    args.forecast = None
    if caches := [peer for peer in args.peers if peer.partition("+")[0] in CACHES]:
        numbers = re.fullmatch(r"every:(\d+)(?:,(\d+))?(?:,(\d+))?", args.forecast_text)
        if not numbers:
            parser.error(f"--peers {caches[0]}: needs --forecast every:N, of which it computes as many steps, got "
                         f"--forecast {args.forecast_text}")  # fmt: skip
        args.forecast = tuple(int(given or usual) for given, usual in zip(numbers.groups(), ("2", "1", "3"), strict=True))
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
