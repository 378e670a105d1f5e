"""Hands over when both networks agree: the large network begins, and as soon as it and the small one predict the same x_0 to
a tolerance, the small one takes some steps; where they part again, the large one goes on.

    python adaptive.py [small.pt large.pt] [--tolerance 0.05] [--every 3]

Around `advance` and `fork`: each decision costs a step of both networks, of which the large one's is kept.
"""

import argparse
from pathlib import Path

import tstitch

MODELS = Path(__file__).resolve().parent.parent / "models"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("networks", nargs="*", default=[MODELS / "cifar10_dit_small.pt", MODELS / "cifar10_dit_large.pt"])
parser.add_argument("--tolerance", type=float, default=0.05, help="root mean square of the difference of their x_0")
parser.add_argument(
    "--every", type=int, default=3, help="steps that the small network takes before they are compared again"
)
parser.add_argument("--steps", type=int, default=30)
args = parser.parse_args()

networks = tstitch.load_networks(args.networks)
options = {"steps": args.steps, "sampler": "dpm-solver++", "noise_schedule": networks[-1].noise_schedule}
# Samplers with the same timesteps, which may take over from one another.
small, large = (tstitch.Sampler(networks, routing=[k] * args.steps, **options) for k in (0, 1))
request = {"labels": ["cat", "horse", "ship"], "seeds": 0, "guidance": 1.5} if networks[-1].num_classes == 10 else {}

run = large.begin(**request)
taken = []
while not run.finished:
    fork = small.advance(run.fork())  # shares its tensors with the run
    large.advance(run)
    taken.append("large")
    difference = (fork.x_0 - run.x_0).square().mean().sqrt().item()
    agree = difference < args.tolerance
    print(
        f"step {run.next - 1:2d}, sigma {run.level.sigma:.3f}: they differ by {difference:.4f}"
        + (", the small one goes on" if agree else "")
    )
    if agree and not run.finished:
        steps = min(args.every, run.steps - run.next)
        small.advance(run, steps)
        taken += ["small"] * steps

whole = large.sample(**request).images
distance = (run.x - whole).square().mean().sqrt().item()
print(
    f"{taken.count('small')} of {args.steps} steps by the small network, {distance:.4f} from the large network's pictures"
)
