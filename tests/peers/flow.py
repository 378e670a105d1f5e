"""Stitched networks that draw from text by flow matching, beside diffusers' networks and scheduler: what sd3.py and sana.py share."""

import argparse
import itertools
import json
import subprocess
from collections.abc import Callable, Iterable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from harness import Latents, export
from noise import noise

BOUND = 1e-5
SHIFT = 3.0


@torch.no_grad()
def sample(
    call: Callable[..., torch.Tensor], networks: list, steps: int, ratio: float, scale: float, shape: tuple[int, ...], given: dict,
    null: dict, device: str,
) -> torch.Tensor:  # fmt: skip
    """diffusers' scheduler around the routed network; returns x_0 [n, *shape]. @call: (network, x, t, what it is given)."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    count = len(given["text_embedding"])
    x = torch.from_numpy(np.stack([noise(i, 0, 0, shape) for i in range(count)])).float().to(device)
    # As the pipelines have it, the rows without the prompt come first.
    rows = {name: torch.cat([null[name].repeat(count, *[1] * (row.ndim - 1)), row])[0 if scale != 1 else count :].to(device)
            for name, row in given.items()}  # fmt: skip
    for i, t in enumerate(scheduler.timesteps):
        network = networks[0] if i < round(ratio * steps) else networks[1]
        output = call(network, torch.cat([x, x]) if scale != 1 else x, t.expand(len(rows["text_embedding"])).to(device), rows)
        if scale != 1:
            without, prompted = output.chunk(2)
            output = without + scale * (prompted - without)
        x = scheduler.step(output, t, x).prev_sample
    return x


def export_pair(
    args: argparse.Namespace, networks: dict[str, torch.nn.Module], program: str, pipeline_class: str
) -> list[str]:
    """Writes both as pipelines, and as files; their options for the tool."""
    files = []
    for name, model in networks.items():
        pipeline, file = args.scratch / name, args.scratch / f"{name}.pt"
        model.save_pretrained(pipeline / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(pipeline / "scheduler")
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": pipeline_class}))
        export(program, pipeline, file, "--dtype", "float32", "--size", "*")
        files += ["--model", str(file)]
    return files


def compare(
    args: argparse.Namespace, networks: Iterable[torch.nn.Module], files: list[str], call: Callable[..., torch.Tensor], channels: int,
    steps: int, given: dict, null: dict,
) -> None:  # fmt: skip
    """@steps: what the files recommend, with guidance 4.5."""
    prompts, file = args.scratch / "prompts.pt", args.scratch / "latents.npy"
    torch.save(given | {f"{name}.null": null[name] for name in given}, prompts)
    networks = [model.to(args.device) for model in networks]
    latents = Latents()
    # Profile, steps and guidance of the files are taken where nothing is said.
    cases = [((), steps, 4.5), (("--guidance", "1"), steps, 1.0), (("--steps", "6"), 6, 4.5)]
    for (options, count, scale), ratio, size in itertools.product(cases, (0.0, 0.4, 1.0), ((8, 8), (6, 20))):
        shape = (channels, *size)
        subprocess.run(
            [args.tool, *files, *options, "--ratio", str(ratio), "--shape", "x".join(map(str, shape)), "--device", args.device,
             "--dtype", "float32", "--condition", str(prompts), "--latents", str(file), "--quiet"],
            check=True,
        )  # fmt: skip
        expected = sample(call, networks, count, ratio, scale, shape, given, null, args.device)
        latents.compare(f"{count} steps, guidance {scale}, ratio {ratio}, {size[0]}x{size[1]}", file, expected, BOUND)
    latents.finish()
