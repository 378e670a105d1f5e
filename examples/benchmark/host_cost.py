"""Host cost of tstitch's DDIM loop and of diffusers' around a free network, measured in turns on one thread.

    python host_cost.py path/to/host_cost [rounds]

Needs torch and diffusers. Prints microseconds a step (the median over the rounds of medians over runs) and the ratio, and
fails when the two loops do not end in the same x or when tstitch is less than five times as fast.
"""

import os
import statistics
import subprocess
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, here and in the other program

import torch
from diffusers import DDIMScheduler

STEPS, RUNS, WARM_UP = 50, 60, 10
LEAST_RATIO = 5.0


def measure_tstitch(program):
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: float(value) for name, value in map(str.split, lines)}


@torch.no_grad()
def measure_diffusers():
    index = torch.arange(4 * 3 * 32 * 32, dtype=torch.float64).view(4, 3, 32, 32)
    noise, output = index.sin().float(), index.cos().float()

    def model(x, t):
        return output

    measured = {}
    for name, clip in (("plain", False), ("clipped", True)):
        scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=clip)
        microseconds = []
        for run in range(WARM_UP + RUNS):
            start = time.perf_counter()
            scheduler.set_timesteps(STEPS)
            x = noise
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t), t, x).prev_sample
            spent = time.perf_counter() - start
            if run >= WARM_UP:
                microseconds.append(spent * 1e6 / STEPS)
        measured[name] = statistics.median(microseconds)
        measured[name + "_result"] = x.square().sum(dtype=torch.float64).item()
    return measured


def main():
    program, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7
    torch.set_num_threads(1)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(measure_tstitch(program))
        theirs.append(measure_diffusers())

    # Not compared with clipping, where diffusers goes on with the network's noise and tstitch, like guided-diffusion,
    # with the noise that fits the clipped x_0.
    left, right = ours[0]["plain_result"], theirs[0]["plain_result"]
    if abs(left - right) > 1e-3 * abs(right):
        sys.exit(f"the loops end in different x: sum of squares {left} and {right}")

    fast_enough = True
    print("microseconds a step   tstitch   diffusers   ratio")
    for name in ("plain", "clipped"):
        mine, other = (statistics.median(r[name] for r in results) for results in (ours, theirs))
        print(f"DDIM, {name:<14}  {mine:7.2f}   {other:9.2f}   {other / mine:5.1f}")
        fast_enough = fast_enough and other >= LEAST_RATIO * mine
    if not fast_enough:
        sys.exit(f"tstitch must be {LEAST_RATIO:g} times as fast")


if __name__ == "__main__":
    main()
