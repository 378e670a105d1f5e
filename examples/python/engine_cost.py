"""What whole trajectories of two files take from Python, and by the C++ program tstitch_benchmark: the same networks, noise and
plan on the same device, in turns.

    python engine_cost.py TSTITCH_BENCHMARK SMALL LARGE [--batch 1,32] [--rounds 3] [--most 1.02]

DDIM of 100 steps at ratio 0.4 with guidance 1.5, both from an idle device to an idle device. Prints the medians over the rounds
of the medians of five, and fails when Python takes more than --most times as long, or where its latents are not the program's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

import tstitch

REPEATS = 5


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Python:
    def __init__(self, args, device):
        self.device = device
        networks = tstitch.load_networks([args.small, args.large], device=device, dtype=args.dtype, backend=args.backend)
        self.sampler = tstitch.Sampler(networks, ratio=0.4, sampler="ddim", steps=args.steps, spacing="linspace")
        self.classes = networks[1].num_classes

    def draw(self, batch):
        labels = [i % self.classes for i in range(batch)] if self.classes else None
        return self.sampler.sample(labels=labels, seeds=range(batch), guidance=1.5).images

    def seconds(self, batch):
        spent = []
        for i in range(REPEATS + 2):
            wait(self.device)
            start = time.perf_counter()
            x = self.draw(batch)
            wait(self.device)
            if i >= 2:
                spent.append(time.perf_counter() - start)
        return statistics.median(spent), x.float().cpu().numpy()


def by_program(args, batch, folder):
    report, latents = folder / "report.json", folder / "latents.npy"
    command = [args.program, "--model", args.small, "--model", args.large, "--batch", batch, "--ratio", 0.4, "--steps", args.steps,
               "--guidance", 1.5, "--spacing", "linspace", "--device", args.device, "--backend", args.backend, "--dtype", args.dtype,
               "--no-first-picture", "--repeats", REPEATS, "--latents", latents, "--json", report]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{args.program} failed: {done.stderr or done.stdout}")
    return json.loads(report.read_text())["cells"][0]["seconds"], numpy.load(latents)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, metavar="TSTITCH_BENCHMARK")
    parser.add_argument("small", type=Path, metavar="SMALL")
    parser.add_argument("large", type=Path, metavar="LARGE")
    parser.add_argument("--batch", default="1,32", help="pictures at once, comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--backend", default="auto", help="as tstitch_benchmark knows it (default: %(default)s)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--most", type=float, default=1.02, help="times as long as the program (default: %(default)s)")
    args = parser.parse_args()
    device = torch.device(args.device)
    args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    python, slow = Python(args, device), []
    print("batch   Python      C++         ratio")
    for batch in map(int, args.batch.split(",")):
        mine, theirs = [], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.rounds):
                seconds, x = python.seconds(batch)
                mine.append(seconds)
                seconds, y = by_program(args, batch, Path(folder))
                theirs.append(seconds)
        ours, program = statistics.median(mine), statistics.median(theirs)
        print(f"{batch:5}   {ours:8.4f} s  {program:8.4f} s  {ours / program:6.3f}", flush=True)
        if not numpy.array_equal(x, y):
            sys.exit(f"batch {batch}: Python's latents differ from the program's, by up to {abs(x - y).max()}")
        if not ours <= args.most * program:
            slow.append(str(batch))
    if slow:
        sys.exit(f"Python must take at most {args.most:g} times as long as the program: batch {', '.join(slow)}")


if __name__ == "__main__":
    main()
