"""Stitched trajectories of Stable Diffusion 3.5 by tstitch beside diffusers' networks and scheduler, in turns on one device.

    python benchmark_sd3.py TSTITCH_BENCHMARK                              medium and large at 1024x1024, on a GPU
    python benchmark_sd3.py TSTITCH_BENCHMARK --size tiny --device cpu     in seconds

Makes transformers of the published shapes with random weights on the device, in bfloat16 (float32 on a CPU), and writes them
as files that tstitch loads, with what 8 bits must know of each layer's inputs, seen along a trajectory. Takes the time of
whole stitched trajectories from noise to the last latent, one picture, by a plain Python loop over diffusers'
SD3Transformer2DModel of the same weights, eager and through torch.compile, stepped by diffusers'
FlowMatchEulerDiscreteScheduler; and then by TSTITCH_BENCHMARK, with each --backend, and again with each --forecast, of the
large network's steps or of all. Both take the same timesteps, texts, guidance and shares of the steps.

Figures are medians of --repeats, in which the ratios take turns, after a warm-up. The clock is wall time from an idle device
to an idle device. Errors are of one call at t = 500 of the file's weights, root mean square, relative to float32: diffusers'
to diffusers', tstitch's to TorchScript's.

With 141 GB of memory the GPU holds all of it; the files need 22 GB in --scratch.
"""

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "torch", "diffusers")
import diffusers  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import common  # noqa: E402
import sd3  # noqa: E402
from common import condition_lines, shape_of_x  # noqa: E402

SHIFT = 3.0  # of Stable Diffusion 3's scheduler
PUBLISHED = {"channels": 16, "text_width": 4096, "pooled_width": 2048, "qk_norm": True}
TINY = {"channels": 4, "text_width": 32, "pooled_width": 16, "qk_norm": True}
SIZES = {  # small, large, size of the latent, tokens of the text
    "full": (
        sd3.SD3Config(width=1536, depth=24, heads=24, grid=384, dual_attention=tuple(range(13)), **PUBLISHED),
        sd3.SD3Config(width=2432, depth=38, heads=38, grid=192, **PUBLISHED),
        128,
        333,
    ),
    "tiny": (
        sd3.SD3Config(width=32, depth=2, heads=2, grid=12, dual_attention=(0,), out_channels=4, **TINY),
        sd3.SD3Config(width=48, depth=3, heads=3, grid=12, out_channels=4, **TINY),
        8,
        20,
    ),
}


def say(message: str) -> None:
    print(message, flush=True)


# ------------------------------------------------------------------------------------------------ networks


def random_network(shape: sd3.SD3Config, args: argparse.Namespace, seed: int) -> nn.Module:
    """diffusers', with weights that make the output of the size of noise, which depends on the text."""
    with torch.device("meta"):
        model = diffusers.SD3Transformer2DModel(
            sample_size=args.latent, patch_size=shape.patch, in_channels=shape.channels, out_channels=shape.channels,
            num_layers=shape.depth, num_attention_heads=shape.heads, attention_head_dim=shape.width // shape.heads,
            joint_attention_dim=shape.text_width, caption_projection_dim=shape.width, pooled_projection_dim=shape.pooled_width,
            pos_embed_max_size=shape.grid, dual_attention_layers=shape.dual_attention, qk_norm="rms_norm",
        )  # fmt: skip
    model = model.to(args.dtype).to_empty(device=args.device).eval().requires_grad_(False)
    generator = torch.Generator(args.device).manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            deviation = 0.5 if name == "pos_embed.pos_embed" else 0.7 * tensor.shape[1:].numel() ** -0.5
            tensor.normal_(0, deviation, generator=generator)
        else:
            tensor.normal_(0, 0.02, generator=generator).add_("norm" in name and name.endswith("weight"))
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """One for each layer that the engine may compute in 8 bits, in its order, with the same input."""
    layers = []
    for block in model.transformer_blocks:
        layers += [block.attn.to_q, block.attn.to_out[0], block.ff.net[0].proj, block.ff.net[2]]
        if block.attn2 is not None:
            layers += [block.attn2.to_q, block.attn2.to_out[0]]
        layers.append(block.attn.add_q_proj)
        if block.ff_context is not None:
            layers += [block.attn.to_add_out, block.ff_context.net[0].proj, block.ff_context.net[2]]
    return layers


class LargestInputs:
    """The largest absolute input of each layer while this is entered."""

    def __init__(self, model: nn.Module):
        self.layers = layers_of(model)

    def __enter__(self) -> list[Tensor]:
        largest: list[Tensor] = [torch.zeros((), device=next(layer.parameters()).device) for layer in self.layers]

        def look(k: int) -> Callable:
            def hook(_, arguments: tuple[Tensor, ...]) -> None:
                largest[k] = torch.maximum(largest[k], arguments[0].abs().max().float())

            return hook

        self.hooks = [layer.register_forward_pre_hook(look(k)) for k, layer in enumerate(self.layers)]
        return largest

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


def write_file(model: nn.Module, shape: sd3.SD3Config, args: argparse.Namespace, largest: list[Tensor], path: Path) -> None:
    """What export_sd3.py would write, without its check, which takes minutes on a host."""
    with torch.device("meta"):
        network = sd3.SD3(shape)
    network.load_state_dict(model.state_dict(), assign=True)
    values = {
        "format": 1, "name": path.stem, **shape_of_x(shape.channels, args.latent, args.latent), "prediction": "flow",
        "num_classes": 0, "conditions": condition_lines(sd3.conditions(shape, args.text_tokens)), "timestep_type": "float32",
        "noise_schedule": "flow", "num_train_timesteps": 1000, "flow_shift": SHIFT, "decoding": "none", "architecture": "sd3",
        "width": shape.width, "depth": shape.depth, "heads": shape.heads, "patch_size": shape.patch, "mlp_ratio": 4.0,
        "e4m3_inputs": "\n".join(f"{value.item():.6g}" for value in largest),
    }  # fmt: skip
    scripted = torch.jit.script(network.eval())
    torch.jit.save(scripted, str(path), _extra_files=common.metadata(values))


# ------------------------------------------------------------------------------------------------ the peer


class Peer:
    """A plain stitched loop over networks with diffusers' arguments."""

    def __init__(
        self, networks: list[Callable], given: dict[str, Tensor], args: argparse.Namespace, dtype: torch.dtype | None = None
    ):
        self.networks = networks
        self.given = given
        self.args = args
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        halves = ["", ".null"] if args.guidance != 1 else [""]
        self.text, self.pooled = (
            torch.cat([given[name + end] for end in halves]).to(args.device, dtype or args.dtype)
            for name in ("text_embedding", "pooled_embedding")
        )

    def call(self, network: Callable, x: Tensor, t: Tensor) -> Tensor:
        rows = torch.cat([x, x]) if self.args.guidance != 1 else x
        return network(rows, encoder_hidden_states=self.text, pooled_projections=self.pooled, timestep=t.expand(len(rows)),
                       return_dict=False)[0]  # fmt: skip

    @torch.no_grad()
    def draw(self, x: Tensor, ratio: float, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps, device=self.args.device)
        first = round(ratio * steps)
        for i, t in enumerate(self.scheduler.timesteps):
            output = self.call(self.networks[i >= first], x, t)
            if self.args.guidance != 1:
                given, null = output.chunk(2)
                output = null + self.args.guidance * (given - null)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        return x

    def wait(self) -> None:
        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def measure(self, x: Tensor) -> dict[float, list[float]]:
        for k in (0, 1):
            self.draw(x, 1.0 - k, 3)
        seconds: dict[float, list[float]] = {ratio: [] for ratio in self.args.ratio}
        for repeat in range(self.args.repeats):
            for ratio in self.args.ratio[:: -1 if repeat % 2 else 1]:
                self.wait()
                start = time.perf_counter()
                self.draw(x, ratio, self.args.steps)
                self.wait()
                seconds[ratio].append(time.perf_counter() - start)
        return seconds

    @torch.no_grad()
    def errors(self, x: Tensor, exact: Callable[[nn.Module], nn.Module]) -> list[float]:
        """Of each network, of the same in float32."""
        found = []
        for network in self.networks:
            t = torch.tensor(500.0, device=self.args.device)
            got = self.call(network, x, t).double()
            expected = Peer([], self.given, self.args, torch.float32).call(exact(network), x.float(), t).double()
            found.append(((got - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item())
        return found


# ------------------------------------------------------------------------------------------------ the program


def medians(cells: dict[float, list[float]]) -> str:
    return ", ".join(f"ratio {ratio:g} {statistics.median(seconds):.3f} s" for ratio, seconds in cells.items())


def run_tstitch(args: argparse.Namespace, files: list[Path], condition: Path, *more: str) -> dict:
    report = args.scratch / "tstitch.json"
    command = [args.tstitch_benchmark, "--model", files[0], "--model", files[1], "--condition", condition, "--batch", 1,
               "--ratio", ",".join(map(str, args.ratio)), "--dtype", str(args.dtype).removeprefix("torch."),
               "--steps", args.steps,
               "--sampler", "euler", "--guidance", args.guidance, "--backend", ",".join(args.backend), "--device", args.device,
               "--repeats", args.repeats, "--no-first-picture", "--json", report, *more]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{args.tstitch_benchmark} failed: {done.stderr or done.stdout}")
    return json.loads(report.read_text())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("tstitch_benchmark", metavar="TSTITCH_BENCHMARK", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="full", help="of the networks and what they take" + default)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.0, 0.4], metavar="R", help="shares of the steps" + default)
    parser.add_argument("--steps", type=int, default=28, help=default.strip())
    parser.add_argument("--guidance", type=float, default=4.5, help="1 is without" + default)
    parser.add_argument("--backend", nargs="+", metavar="NAME",
                        help="of tstitch_benchmark (default: native+graph native-e4m3+graph; on a CPU native)")  # fmt: skip
    parser.add_argument("--forecast", nargs="+", default=["every:2", "all:every:2"], metavar="NAME",
                        help="of the large network's steps or of all, each in a turn of its own, or none" + default)  # fmt: skip
    parser.add_argument("--peers", nargs="*", choices=("eager", "compile"), default=["compile"], help="default: compile")
    parser.add_argument("--compile-mode", default="default", help="of torch.compile" + default)
    parser.add_argument("--no-errors", action="store_true", help="look at no distances from float32")
    parser.add_argument("--repeats", type=int, default=3, help=default.strip())
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help=default.strip())
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "tstitch_benchmark_sd3",
                        help="folder for the files" + default)  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON")
    args = parser.parse_args()
    if not args.tstitch_benchmark.is_file():
        parser.error(f"{args.tstitch_benchmark}: must be the program tstitch_benchmark, got no file")
    for name in ("repeats", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: must be at least 1, got {getattr(args, name)}")
    if not all(0 <= ratio <= 1 for ratio in args.ratio):
        parser.error(f"--ratio: must be in [0, 1], got {args.ratio}")
    gpu = args.device.startswith("cuda")
    args.tstitch_benchmark = args.tstitch_benchmark.resolve()
    args.backend = args.backend or (["native+graph", "native-e4m3+graph"] if gpu else ["native"])
    args.dtype = torch.bfloat16 if gpu else torch.float32
    *args.shapes, args.latent, args.text_tokens = SIZES[args.size]
    return args


def main() -> None:
    args = parse_arguments()
    args.scratch.mkdir(parents=True, exist_ok=True)
    # As tstitch computes float32: in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    started = time.perf_counter()

    def done(what: str) -> None:
        say(f"{time.perf_counter() - started:6.1f} s: {what}")

    models = [random_network(shape, args, seed) for seed, shape in enumerate(args.shapes)]
    generator = torch.Generator().manual_seed(7)
    shape = args.shapes[0]
    sizes = {"text_embedding": (1, args.text_tokens, shape.text_width), "pooled_embedding": (1, shape.pooled_width)}
    given = {name + end: torch.randn(size, generator=generator) for end in ("", ".null") for name, size in sizes.items()}
    condition = args.scratch / "condition.pt"
    torch.save(given, condition)
    x = torch.randn(1, shape.channels, args.latent, args.latent, generator=generator).to(args.device, args.dtype)
    eager = Peer(models, given, args)
    done("networks made")

    files = [args.scratch / f"{args.size}-{name}.pt" for name in ("small", "large")]
    for k, (model, file) in enumerate(zip(models, files, strict=True)):
        with LargestInputs(model) as largest:
            eager.draw(x, 1.0 - k, 4)
        write_file(model, args.shapes[k], args, largest, file)
    done("files written")

    programs: dict[str, dict[float, list[float]]] = {}
    report = {"torch": torch.__version__, "diffusers": diffusers.__version__, "device": args.device, "size": args.size,
              "steps": args.steps, "guidance": args.guidance, "forecast": args.forecast, "errors": {}}  # fmt: skip
    if args.device.startswith("cuda"):
        report["gpu"] = torch.cuda.get_device_name(args.device)
    if not args.no_errors:
        report["errors"]["diffusers"] = eager.errors(x, lambda network: copy.deepcopy(network).float())
        done("errors of diffusers")
    peer, compiled = eager, None
    for name in args.peers:
        peer = eager
        if name == "compile":
            compiled = [torch.compile(model, mode=args.compile_mode, dynamic=False) for model in models]
            peer = Peer(compiled, given, args)
        programs[f"diffusers {name}"] = peer.measure(x)
        done(f"diffusers {name}: {medians(programs[f'diffusers {name}'])}")
    del models, eager, peer, model
    compiled = None
    torch._dynamo.reset()
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()

    for variant in dict.fromkeys(["none", *args.forecast]):
        whole = variant == "none"
        more = ["--accuracy"] if whole and not args.no_errors else []
        ours = run_tstitch(args, files, condition, "--forecast", variant, *more)
        for cell in ours["cells"]:
            name = f"tstitch {cell['backend']}" + ("" if whole else f" forecast {variant}")
            programs.setdefault(name, {})[cell["ratio"]] = cell["all_seconds"]
        for name in list(programs)[-len(args.backend) :]:
            say(f"{name}: {medians(programs[name])}")
        for forward in ours["forwards"]:
            say(f"{forward['backend']}, {forward['network']}, {forward['rows']} rows: {forward['milliseconds']:.2f} ms"
                + (f", forecast {forward['forecast_milliseconds']:.2f} ms" if "forecast_milliseconds" in forward else "")
            )  # fmt: skip
            if "error" in forward:
                report["errors"].setdefault(f"tstitch {forward['backend']}", []).append(forward["error"])
        done(f"tstitch, forecast {variant}")

    report["seconds"] = {name: {str(r): all_ for r, all_ in cells.items()} for name, cells in programs.items()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    base = next((name for name in ("diffusers compile", "diffusers eager") if name in programs), None)
    say(f"\nEuler, {args.steps} steps, guidance {args.guidance:g}, one picture, {report.get('gpu', args.device)}, torch "
        f"{torch.__version__}, diffusers {diffusers.__version__}; seconds"
        + (f", in brackets {base}'s over them" if base else ""))  # fmt: skip
    width = max(map(len, programs))
    say(f"{'':{width}} " + " ".join(f"{f'ratio {ratio:g}':>15}" for ratio in args.ratio))
    for name, cells in programs.items():
        texts = []
        for ratio in args.ratio:
            median = statistics.median(cells[ratio])
            texts.append(f"{median:.3f}" + (f" ({statistics.median(programs[base][ratio]) / median:.2f})" if base else ""))
        say(f"{name:{width}} " + " ".join(f"{text:>15}" for text in texts))
    for name, errors in report["errors"].items():
        say(f"{name}: {', '.join(f'{error:.2e}' for error in errors)} from float32 (small, large)")


if __name__ == "__main__":
    main()
