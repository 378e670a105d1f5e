"""What sampling from Python costs on the host: microseconds a step of tstitch.sample and of diffusers' scheduler loop around the
same module, which costs next to nothing, in turns on one thread.

    python host_cost.py [rounds]

Both do all that a run needs, from the timesteps to the last x: [4, 3, 32, 32] float32, 50 steps. Prints the median over the
rounds of the medians over runs, and fails when two loops do not end in the same x, or when tstitch is less than four times as
fast. Needs diffusers.
"""

import os
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded

import diffusers
import torch

import tstitch

STEPS, RUNS, WARM_UP = 50, 30, 5
LEAST_RATIO = 4.0
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
INDEX = torch.arange(4 * 3 * 32 * 32, dtype=torch.float64).view(4, 3, 32, 32)
NOISE, OUTPUT = INDEX.sin().float(), INDEX.cos().float()


class Free(torch.nn.Module):
    """Costs what a call of a module costs."""

    def forward(self, x, t):
        return OUTPUT


# name -> diffusers' scheduler, what tstitch calls the same.
SAMPLERS = {
    "DDIM": (
        diffusers.DDIMScheduler(**BETAS, clip_sample=False),
        {"sampler": "ddim", "spacing": "leading", "thresholding": "none"},
    ),
    "DPM-Solver++ 2M": (diffusers.DPMSolverMultistepScheduler(**BETAS), {"profile": "diffusers-dpmpp"}),
}


def by_diffusers(scheduler, module):
    scheduler.set_timesteps(STEPS)
    x = NOISE
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(module(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    return x


def by_tstitch(options, modules):
    return tstitch.sample(modules, steps=STEPS, initial_noise=NOISE, noise_schedule="linear", **options).images


def median(run):
    spent = []
    for i in range(WARM_UP + RUNS):
        start = time.perf_counter()
        run()
        if i >= WARM_UP:
            spent.append((time.perf_counter() - start) * 1e6 / STEPS)
    return statistics.median(spent)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    module, other = Free(), Free()
    slow = []
    print(f"{'microseconds a step':<20}  tstitch   diffusers {diffusers.__version__}   ratio")
    for name, (scheduler, options) in SAMPLERS.items():
        a, b = by_tstitch(options, [module, other]), by_diffusers(scheduler, module)
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-3):
            sys.exit(f"{name}: the loops end in different x, by up to {(a - b).abs().max()}")
        mine, theirs = [], []
        for _ in range(rounds):
            mine.append(median(lambda: by_tstitch(options, [module, other])))
            theirs.append(median(lambda: by_diffusers(scheduler, module)))
        ours, others = statistics.median(mine), statistics.median(theirs)
        print(f"{name:<20}  {ours:7.2f}   {others:16.2f}   {others / ours:5.1f}")
        if not others >= LEAST_RATIO * ours:
            slow.append(name)
    if slow:
        sys.exit(f"tstitch must be {LEAST_RATIO:g} times as fast: {', '.join(slow)}")


if __name__ == "__main__":
    main()
