"""A ratio sweep: pictures of the same noise at many ratios, what they cost, and how far they are from the large network's.

    python sweep.py [small.pt large.pt] [--out sweep_of_ratios.png] [--metric distance|contrast]

Reads from top to bottom like a notebook: each part between the lines of %% is a cell. Needs matplotlib.
"""

# %% What is drawn
import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import tstitch

MODELS = Path(__file__).resolve().parent.parent / "models"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("networks", nargs="*", default=[MODELS / "cifar10_dit_small.pt", MODELS / "cifar10_dit_large.pt"])
parser.add_argument("--out", default="sweep_of_ratios.png")
parser.add_argument("--metric", default="distance", help="distance, contrast, or write your own below")
parser.add_argument("--steps", type=int, default=15)
parser.add_argument("--ratios", type=int, default=6, help="how many, from 0 to 1")
args = parser.parse_args()

labels = list(range(8))
networks = tstitch.load_networks(args.networks)


# %% A metric of your choice: pictures and those of the large network alone, [n, C, H, W] in [-1, 1] -> a number
def distance(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square from what the large network draws."""
    return (images - reference).square().mean().sqrt().item()


def contrast(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean deviation of a picture."""
    return images.flatten(1).std(1).mean().item()


metric = {"distance": distance, "contrast": contrast}[args.metric]

# %% The plan of each ratio is known before anything is drawn
ratios = [i / (args.ratios - 1) for i in range(args.ratios)]
for ratio in ratios:
    print(f"ratio {ratio:.2f}: {tstitch.plan(networks, ratio=ratio, profile='recommended', steps=args.steps)!r}")

# %% The same noise at every ratio
drawn, seconds = [], []
for ratio in ratios:
    sampler = tstitch.Sampler(networks, ratio=ratio, profile="recommended", steps=args.steps)
    sampler.sample(labels=labels[:1])  # what is done once
    start = time.perf_counter()
    samples = sampler.sample(labels=labels, seeds=0, guidance=1.5)
    drawn.append(samples.images.cpu())  # waits for a GPU
    seconds.append(time.perf_counter() - start)
scores = [metric(images, drawn[0]) for images in drawn]
for ratio, score, spent in zip(ratios, scores, seconds):
    print(f"ratio {ratio:.2f}: {args.metric} {score:.4f}, {spent:.2f} s")

# %% Pictures above, the metric against the seconds below
figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 9), height_ratios=[2, 1], layout="constrained")
rows = [torch.cat(list(images), dim=-1) for images in drawn]
top.imshow(torch.cat(rows, dim=-2).clamp(-1, 1).add(1).div(2).permute(1, 2, 0))
height = drawn[0].shape[-2]
top.set_yticks([height * (i + 0.5) for i in range(len(ratios))], [f"ratio {ratio:.2f}" for ratio in ratios])
top.set_xticks([])
bottom.plot(seconds, scores, "o-")
for ratio, score, spent in zip(ratios, scores, seconds):
    bottom.annotate(f"{ratio:.2f}", (spent, score), textcoords="offset points", xytext=(6, 4))
bottom.set_xlabel(f"seconds for {len(labels)} pictures")
bottom.set_ylabel(args.metric)
figure.savefig(args.out, dpi=120)
print(f"figure: {args.out}")
