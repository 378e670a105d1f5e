"""Stable Diffusion whose deep feature is forecast by tstitch, beside diffusers with DeepCache, measured in turns.

    python benchmark_deep_feature.py PROGRAMS                                SD 1.4 and BK-SDM-Tiny, on a GPU
    python benchmark_deep_feature.py PROGRAMS --size tiny --device cpu       in seconds

PROGRAMS is the folder of tstitch_benchmark and tstitch_sample (build/tests/examples). Makes two U-Nets of random weights,
writes them with examples/export/export_unet.py (the large one with --deep-feature), and takes the time of whole stitched
trajectories of PNDM, the small network first: by tstitch_benchmark without and with --forecast every:N,0,1, and by a plain
Python loop over diffusers' networks of the same weights and its PNDMScheduler, without and with the package DeepCache
around the large network (cache_interval N, cache_branch_id 0). Both compute the first of N steps of the large network and
repeat the deep feature in the others; tstitch also computes the last step of a run. How many each computes is printed.

Figures are medians over --rounds, in each of which every program has its turn at --repeats trajectories, after a warm-up
of its own. The clock is wall time from an idle device to an idle device. The peer has its timesteps on the host, where
DeepCache looks them up; on a GPU it would wait for it in each step.

Distances are root mean square differences of the last x of one batch, relative to the root mean square of the one that
diffusers' networks draw in float32 without a cache, from the same noise by address; and of tstitch's forecast from what
DeepCache makes in the same number format.

Needs torch, diffusers, DeepCache (pip install --no-deps DeepCache==0.1.1, whose other parts need transformers), numpy and
safetensors. Ends with 77 where one of them is missing.
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

missing = []
for name in ("torch", "numpy", "safetensors", "diffusers", "DeepCache"):
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    requirements = Path(__file__).with_name("requirements.txt")
    print(f"skipped: needs the Python packages of {requirements}, got no {', '.join(missing)}")
    sys.exit(77)

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from DeepCache import DeepCacheSDHelper  # noqa: E402
from torch import Tensor  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.append(str(EXAMPLES.parent / "tests/peers"))
from noise import noise  # noqa: E402

SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
SIZES = {  # small and large
    "full": (
        SD | {  # BK-SDM-Tiny
            "layers_per_block": 1,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3,
            "mid_block_type": None,
        },
        SD,
    ),
    "tiny": tuple(
        {
            "block_out_channels": (width, 2 * width),
            "layers_per_block": layers,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "sample_size": 8,
        }
        for width, layers in ((16, 1), (32, 2))
    ),
}  # fmt: skip
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
STABLE_DIFFUSION = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}  # how its folders have PNDM
TOKENS = 77


def say(message: str) -> None:
    print(message, flush=True)


# ------------------------------------------------------------------------------------------------ networks


def scheduler(steps: int) -> diffusers.PNDMScheduler:
    made = diffusers.PNDMScheduler(**SCHEDULE, **STABLE_DIFFUSION)
    made.set_timesteps(steps)
    return made


def make_network(args: argparse.Namespace, name: str, seed: int) -> tuple[torch.nn.Module, Path]:
    """diffusers' network, on the CPU in the type that is measured, and tstitch's file of the same weights."""
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(seed)
    network = diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **SIZES[args.size][seed]).eval().to(dtype)
    file = args.scratch / f"{args.size}-{name}-{args.dtype}.pt"
    if not file.exists():
        folder = args.scratch / f"{args.size}-{name}"
        network.save_pretrained(folder / "unet")
        diffusers.PNDMScheduler(**SCHEDULE, **STABLE_DIFFUSION).save_pretrained(folder / "scheduler")
        start = time.perf_counter()
        split = ["--deep-feature"] if name == "large" else []
        run(sys.executable, EXAMPLES / "export/export_unet.py", folder, file, "--dtype", args.dtype, *split)
        say(f"exported the {name} network in {time.perf_counter() - start:.0f} s: {file}")
    return network.requires_grad_(False), file


def run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[1] if words[0] == sys.executable else words[0]} failed: {done.stderr or done.stdout}")


# ------------------------------------------------------------------------------------------------ the peer


@contextlib.contextmanager
def deep_cache(network: torch.nn.Module, steps: int, interval: int | None) -> Iterator[None]:
    """DeepCache around the network, or nothing."""
    if interval is None:
        yield
        return
    helper = DeepCacheSDHelper(SimpleNamespace(unet=network, scheduler=scheduler(steps)))
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


class Peer:
    """A plain stitched loop over diffusers' networks, stepped by diffusers' scheduler."""

    def __init__(self, networks: list[torch.nn.Module], args: argparse.Namespace, text: Tensor, null: Tensor):
        self.networks, self.args = networks, args
        self.size = networks[1].config.sample_size
        self.device, self.dtype = torch.device(args.device), next(networks[0].parameters()).dtype
        rows = [text, null.expand_as(text)] if args.guidance != 1 else [text]
        self.text = torch.cat(rows).to(self.device, self.dtype)

    @torch.no_grad()
    def draw(self, steps: int, interval: int | None, initial: Tensor | None = None) -> Tensor:
        """x_0 [batch, 4, size, size]; from @initial, or what torch draws."""
        args, stepper = self.args, scheduler(steps)
        shape = (args.batch, 4, self.size, self.size)
        x = torch.randn(shape) if initial is None else initial
        x = x.to(self.device, self.dtype)
        first = round(args.ratio * steps)
        with deep_cache(self.networks[1], steps, interval):
            for i, t in enumerate(stepper.timesteps):
                # PNDM evaluates its first step twice.
                network = self.networks[0] if max(0, i - 1) < first else self.networks[1]
                output = network(torch.cat([x, x]) if args.guidance != 1 else x, t, encoder_hidden_states=self.text).sample
                if args.guidance != 1:
                    given, without = output.chunk(2)
                    output = without + args.guidance * (given - without)
                x = stepper.step(output, t, x).prev_sample
        return x

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, interval: int | None) -> float:
        self.wait()
        start = time.perf_counter()
        self.draw(self.args.steps, interval)
        self.wait()
        return time.perf_counter() - start

    def computed(self, interval: int | None) -> int:
        """Calls of the large network in which its blocks run."""
        calls = []
        hook = self.networks[1].mid_block.resnets[0].register_forward_hook(lambda *_: calls.append(True))
        self.draw(self.args.steps, interval)
        hook.remove()
        return len(calls)


# ------------------------------------------------------------------------------------------------ tstitch


def forecast(interval: int | None) -> str:
    return "none" if interval is None else f"every:{interval},0,1"


def common_words(args: argparse.Namespace, interval: int | None) -> list[object]:
    models = [word for file in args.files for word in ("--model", file)]
    return [*models, "--steps", args.steps, "--ratio", args.ratio, "--guidance", args.guidance, "--condition", args.prompts,
            "--batch", args.batch, "--device", args.device, "--dtype", args.dtype, "--backend", args.backend,
            "--forecast", forecast(interval)]  # fmt: skip


def tstitch_seconds(args: argparse.Namespace, interval: int | None) -> dict:
    """The one cell of tstitch_benchmark."""
    report = args.scratch / "tstitch.json"
    run(args.programs / "tstitch_benchmark", *common_words(args, interval), "--sampler", "pndm", "--spacing", "leading",
        "--repeats", args.repeats, "--no-first-picture", "--json", report)  # fmt: skip
    return json.loads(report.read_text())["cells"][0]


def tstitch_latents(args: argparse.Namespace, interval: int | None) -> tuple[Tensor, int]:
    """float32 [batch, 4, size, size], and how many steps of the large network were computed."""
    report, latents = args.scratch / "sample.json", args.scratch / "latents.npy"
    run(args.programs / "tstitch_sample", *common_words(args, interval), "--profile", "diffusers-pndm",
        "--latents", latents, "--report", report, "--quiet")  # fmt: skip
    return torch.from_numpy(np.load(latents)), json.loads(report.read_text())["calls"][1]


# ------------------------------------------------------------------------------------------------ both


@dataclasses.dataclass
class Program:
    name: str
    interval: int | None
    seconds: list[float] = dataclasses.field(default_factory=list)
    computed: int = 0  # steps of the large network
    distance: float = 0  # from float32 without a cache

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def distance(got: Tensor, expected: Tensor) -> float:
    difference = (got.double() - expected.double()).square().mean().sqrt() / expected.double().square().mean().sqrt()
    if not difference.isfinite():
        sys.exit("latents must be finite, got nan or infinity")
    return difference.item()


def measure(args: argparse.Namespace) -> dict:
    generator = torch.Generator().manual_seed(5)
    width = SIZES[args.size][1]["cross_attention_dim"]
    text = torch.randn(args.batch, TOKENS, width, generator=generator)
    null = torch.randn(1, TOKENS, width, generator=generator)
    torch.save({"text_embedding": text, "text_embedding.null": null}, args.prompts)
    networks, args.files = map(list, zip(*(make_network(args, name, seed) for seed, name in enumerate(("small", "large")))))
    size = networks[1].config.sample_size
    initial = torch.from_numpy(np.stack([noise(i, 0, 0, (4, size, size)) for i in range(args.batch)]))

    networks = [network.to(args.device) for network in networks]
    exact = Peer([network.float() for network in networks], args, text, null).draw(args.steps, None, initial).cpu()
    networks = [network.to(getattr(torch, args.dtype)) for network in networks]  # the same values: they came from it
    gc.collect()
    peer = Peer(networks, args, text, null)
    intervals = [None, *args.interval]
    ours = [Program(f"tstitch {forecast(n)}", n) for n in intervals]
    theirs = [Program("diffusers" if n is None else f"DeepCache {n}", n) for n in intervals]
    made: dict[str, Tensor] = {}
    for program in ours:
        made[program.name], program.computed = tstitch_latents(args, program.interval)
    for program in theirs:
        program.computed = peer.computed(program.interval)
        made[program.name] = peer.draw(args.steps, program.interval, initial).float().cpu()
    for program in (*ours, *theirs):
        program.distance = distance(made[program.name], exact)
    # Of the same steps, where both computed as many.
    apart = {
        a.name: distance(made[a.name], made[b.name]) for a, b in zip(ours, theirs) if a.computed == b.computed
    }
    backend = None
    for _ in range(args.rounds):
        for program in ours:
            cell = tstitch_seconds(args, program.interval)
            program.seconds += cell["all_seconds"]
            backend = cell["backend"]
        for program in theirs:
            peer.draw(args.steps, program.interval)  # what was forgotten while others had their turn
            program.seconds += [peer.seconds(program.interval) for _ in range(args.repeats)]
    gpu = args.device.startswith("cuda")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "deepcache": importlib.metadata.version("DeepCache"),
        "device": args.device,
        "gpu": torch.cuda.get_device_name(args.device) if gpu else None,
        "threads": torch.get_num_threads(),
        "sampler": "pndm, leading timesteps",
        "backend": backend,
        **{key: getattr(args, key) for key in ("size", "dtype", "batch", "steps", "ratio", "guidance", "repeats", "rounds")},
        "programs": [
            {
                "program": program.name,
                "interval": program.interval,
                "seconds": program.median,
                "fastest_seconds": min(program.seconds),
                "all_seconds": program.seconds,
                "computed_steps_of_large": program.computed,
                "distance_from_float32": program.distance,
                "times_as_fast_as_whole": group[0].median / program.median,
                "distance_from_deepcache": apart.get(program.name),
            }
            for group in (ours, theirs) for program in group
        ],
    }  # fmt: skip


def show(report: dict, bar: float) -> None:
    say(f"\nPNDM, {report['steps']} steps, ratio {report['ratio']:g}, guidance {report['guidance']:g}, batch "
        f"{report['batch']}, {report['dtype']}, {report['gpu'] or report['device']}, torch {report['torch']}, diffusers "
        f"{report['diffusers']}, DeepCache {report['deepcache']}; medians")  # fmt: skip
    programs = {(p["program"].split()[0] == "tstitch", p["interval"]): p for p in report["programs"]}
    for (ours, interval), p in programs.items():
        line = (f"{p['program']:<22} {p['seconds']:8.4f} s, {p['computed_steps_of_large']:>3} steps of the large network "
                f"computed, {p['times_as_fast_as_whole']:.2f} times as fast as whole, {p['distance_from_float32']:.2e} from "
                "float32")  # fmt: skip
        if ours:
            peer = programs[False, interval]
            line += f"; {peer['seconds'] / p['seconds']:.2f} times as fast as {peer['program']}"
            if p["distance_from_deepcache"] is not None:
                line += f", {p['distance_from_deepcache']:.2e} from it"
        say(line)
    reached = [n for n in report["intervals"] if programs[True, n]["times_as_fast_as_whole"] >= bar]
    say(f"{bar:g} times as fast as without a forecast: {'every ' + ', '.join(map(str, reached)) if reached else 'none'}")


# ------------------------------------------------------------------------------------------------ command line


def numbers(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) >= 2 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be numbers from 2 on with commas between, got '{text}'")
    return sorted({int(part) for part in text.split(",")})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("programs", metavar="PROGRAMS", type=Path, help="the folder of tstitch_benchmark and tstitch_sample")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="of the networks" + default)
    parser.add_argument("--interval", type=numbers, default=[2, 3], metavar="N,...",
                        help="one of so many steps of the large network is computed (default: 2,3)")  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="(default: float16; on a CPU float32)")
    parser.add_argument("--backend", default="auto", help="of tstitch's programs" + default)
    parser.add_argument("--batch", type=int, default=1, help="pictures at once" + default)
    parser.add_argument("--steps", type=int, default=50, help="of PNDM" + default)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the steps for the small network" + default)
    parser.add_argument("--guidance", type=float, default=7.5, help="1 is without" + default)
    parser.add_argument("--repeats", type=int, default=3, help="trajectories of each program in a turn" + default)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each program" + default)
    parser.add_argument("--bar", type=float, default=1.5, help="say which intervals are so many times as fast" + default)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help=default.strip())
    parser.add_argument("--threads", type=int, help="of every program on a CPU (default: as many as torch takes)")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "tstitch_benchmark_deep_feature",
                        help="folder in which exported networks stay for the next time" + default)  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON")
    args = parser.parse_args()
    for program in ("tstitch_benchmark", "tstitch_sample"):
        if not (args.programs / program).is_file():
            parser.error(f"{args.programs}: must be the folder of {program}, got no such file")
    args.programs = args.programs.resolve()
    args.device = "cuda:0" if args.device == "cuda" else args.device
    if args.device != "cpu" and not (args.device.startswith("cuda:") and torch.cuda.is_available()):
        parser.error(f"--device: must be cpu, or a GPU that is there, got {args.device}")
    for name in ("batch", "steps", "repeats", "rounds", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name}: must be at least 1, got {value}")
    if not 0 <= args.ratio < 1:
        parser.error(f"--ratio: must be in [0, 1), so that the large network has steps, got {args.ratio:g}")
    if not abs(args.guidance) < float("inf"):
        parser.error(f"--guidance: must be finite, got {args.guidance:g}")
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    args.scratch = args.scratch.resolve()
    args.prompts = args.scratch / "prompts.pt"
    return args


def main() -> None:
    args = parse_arguments()
    args.scratch.mkdir(parents=True, exist_ok=True)
    diffusers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the programs that are started
    # As tstitch computes float32: in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = measure(args) | {"intervals": args.interval}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    show(report, args.bar)
    if args.json:
        say(f"json: {args.json}")


if __name__ == "__main__":
    main()
