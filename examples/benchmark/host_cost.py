"""Host cost of tstitch's samplers and of diffusers' schedulers around a free network, measured in turns on one thread.

    python host_cost.py path/to/host_cost [rounds]

Needs torch and diffusers. Prints microseconds a step (the median over the rounds of medians over runs) and the ratio, and
fails when two loops that do the same do not end in the same x or when tstitch is less than five times as fast.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, here and in the other program

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "diffusers", "torch")
import diffusers  # noqa: E402
import torch  # noqa: E402

STEPS, RUNS, WARM_UP = 50, 30, 5
LEAST_RATIO = 5.0

# name -> scheduler, options, whether both loops end in the same x. They do not where noise is drawn, where diffusers goes on
# with another noise after clipping, and where its scheduler places its timesteps or its end elsewhere.
SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}, True),
    "DDIM_clipped": (diffusers.DDIMScheduler, {}, False),
    "DDPM": (diffusers.DDPMScheduler, {"clip_sample": False}, False),
    "DPMSolverMultistep_2": (diffusers.DPMSolverMultistepScheduler, {}, True),
    "DPMSolverMultistep_3": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}, False),
    "DPMSolverMultistep_SDE": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, False),
    "DEIS_2": (diffusers.DEISMultistepScheduler, {"solver_order": 2}, False),
    "Euler": (diffusers.EulerDiscreteScheduler, {}, False),
    "EulerAncestral": (diffusers.EulerAncestralDiscreteScheduler, {}, False),
    "Heun": (diffusers.HeunDiscreteScheduler, {}, False),
    "KDPM2": (diffusers.KDPM2DiscreteScheduler, {}, False),
    "LMS": (diffusers.LMSDiscreteScheduler, {}, False),
    "PNDM": (diffusers.PNDMScheduler, {"skip_prk_steps": True}, False),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}, False),
}


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
    for name, (kind, options, _) in SCHEDULERS.items():
        scheduler = kind(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
        microseconds = []
        for run in range(WARM_UP + RUNS):
            start = time.perf_counter()
            scheduler.set_timesteps(STEPS)
            x = noise
            for t in scheduler.timesteps:
                x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x).prev_sample
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

    for name, (_, _, same) in SCHEDULERS.items():
        left, right = ours[0][name + "_result"], theirs[0][name + "_result"]
        if same and not abs(left - right) <= 1e-3 * abs(right):
            sys.exit(f"{name}: the loops end in different x: sum of squares {left} and {right}")

    slow = []
    print(f"{'microseconds a step':<26}  tstitch   diffusers {diffusers.__version__}   ratio")
    for name in SCHEDULERS:
        mine, other = (statistics.median(r[name] for r in results) for results in (ours, theirs))
        print(f"{name:<26}  {mine:7.2f}   {other:16.2f}   {other / mine:5.1f}")
        if not other >= LEAST_RATIO * mine:
            slow.append(name)
    if slow:
        sys.exit(f"tstitch must be {LEAST_RATIO:g} times as fast: {', '.join(slow)}")


if __name__ == "__main__":
    main()
