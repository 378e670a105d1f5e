"""Flow matching by tstitch's profiles beside the schedulers of diffusers that they are named after.

    python flow_schedulers.py TSTITCH_SAMPLE SCRATCH_FOLDER

One small network as TorchScript, which mixes channels and bends, sampled from the same noise in 1 to 50 steps with shifts
from 1 to 12. Fails when a latent differs by more than 1e-5 of the standard deviation. Exits with 77 where diffusers or
numpy is missing.
"""

import itertools
import subprocess
import sys

try:
    import numpy as np
    import torch
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
    from torch import Tensor, nn

    from harness import Latents, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BOUND, SHAPE, ROWS = 1e-5, (4, 3, 5), 2
STEPS, SHIFTS = (1, 2, 3, 4, 7, 14, 15, 20, 50), (1.0, 3.0, 5.0, 12.0)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "diffusers-flow-unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "diffusers-flow-dpmpp": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
}


class Velocity(nn.Module):
    """Of data around 0.3, and of the timestep it is told."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u = (t / 1000.0).view(-1, 1, 1, 1).to(x.dtype)
        mixed = torch.tanh(1.3 * x.roll(1, 1) - 0.7 * x.roll(1, 3) + u)
        return u * x - 0.3 * (1 - u) + 0.4 * mixed


@torch.no_grad()
def sample(scheduler: object, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    network, x = Velocity(), torch.from_numpy(np.stack([noise(i, 0, 0, SHAPE) for i in range(ROWS)])).float()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(ROWS)), t, x).prev_sample
    return x


def save(path: str, shift: float) -> None:
    values = {
        "format": "1", "name": "velocity", "input_shape": " ".join(map(str, SHAPE)), "prediction": "flow",
        "timestep_type": "float32", "noise_schedule": "flow", "num_train_timesteps": "1000", "flow_shift": repr(shift),
    }  # fmt: skip
    files = {f"tstitch/{key}": value for key, value in values.items()}
    torch.jit.save(torch.jit.script(Velocity().eval()), path, _extra_files=files)


def main() -> None:
    args = parse_arguments(__doc__)
    latents, file = Latents(), args.scratch / "latents.npy"
    for shift in SHIFTS:
        network = args.scratch / f"shift{shift:g}.pt"
        save(str(network), shift)
        for (profile, make), steps in itertools.product(SCHEDULERS.items(), STEPS):
            subprocess.run(
                [args.tool, "--model", str(network), "--profile", profile, "--steps", str(steps), "--count", str(ROWS), "--latents",
                 str(file), "--quiet"],
                check=True,
            )  # fmt: skip
            latents.compare(f"{profile}, shift {shift:g}, {steps} steps", file, sample(make(shift), steps), BOUND)
    latents.finish()


if __name__ == "__main__":
    main()
