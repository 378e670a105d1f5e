"""How large the inputs of a DiT's linear layers become along trajectories, for engines that compute them in 8 bits."""

import math

import torch
from torch import Tensor, nn

from common import fail, say
from dit import DiT, DiTConfig

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def alphas_cumprod(schedule: dict[str, object]) -> Tensor:
    """Of the keys of a file's noise schedule; float64 [num_train_timesteps]."""
    kind, count = schedule["noise_schedule"], int(schedule.get("num_train_timesteps", 0))
    if kind == "alphas_cumprod":
        return torch.tensor([float(line) for line in str(schedule[kind]).splitlines()], dtype=torch.float64)
    if kind == "cosine":
        bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.999)).cumprod(0)
    root = 0.5 if kind == "scaled_linear" else 1.0
    ends = float(schedule["beta_start"]) ** root, float(schedule["beta_end"]) ** root
    return (1 - torch.linspace(*ends, count, dtype=torch.float64) ** (1 / root)).cumprod(0)


def trajectory(schedule: dict[str, object], steps: int) -> list[tuple[float, float, float]]:
    """Timestep, alpha and sigma of x = alpha x_0 + sigma noise, from noise to picture."""
    if schedule["noise_schedule"] == "flow":
        return [(1000 * s, 1 - s, s) for s in torch.linspace(1, 0, steps + 1)[:-1].tolist()]
    table = alphas_cumprod(schedule)
    times = torch.linspace(len(table) - 1, 0, steps).round().long().tolist()
    return [(t, table[t].item() ** 0.5, (1 - table[t].item()) ** 0.5) for t in times]


@torch.no_grad()
def largest_inputs(network: DiT, shape: DiTConfig, schedule: dict[str, object], guidance: float, images: int,
                   steps: int = 20) -> list[float]:  # fmt: skip
    """The largest absolute input of qkv, proj, fc1 and fc2 of the first block, then of the next.

    DDIM with classifier-free guidance draws pictures of classes 0, 1, 2 ... On the GPU where there is one.
    """
    if (prediction := schedule.get("prediction", "epsilon")) not in ("epsilon", "flow"):
        fail(f"--calibrate: must be for a network that predicts epsilon or flow, got {prediction}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    largest: list[Tensor] = []
    handles = []
    for block in network.blocks:
        for name in LAYERS:
            index = len(largest)
            largest.append(torch.zeros((), device=device))

            def look(_: nn.Module, inputs: tuple[Tensor], index: int = index) -> None:
                largest[index] = torch.maximum(largest[index], inputs[0].abs().max())

            handles.append(block.get_submodule(name).register_forward_pre_hook(look))
    labels = torch.arange(images, device=device) % shape.num_classes
    labels = torch.cat([labels, torch.full_like(labels, shape.num_classes)])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, shape.channels, shape.size, shape.size, generator=generator).to(device)
    points = trajectory(schedule, steps)
    for step, (t, alpha, sigma) in enumerate(points):
        say(f"calibrating: step {step + 1} of {steps} on {device.type}")
        time = torch.full((2 * images,), t, device=device, dtype=torch.float32 if shape.flow else torch.int64)
        given, null = network(torch.cat([x, x]), time, labels)[:, : shape.channels].chunk(2)
        output = null + guidance * (given - null)
        if shape.flow:  # eps - x_0
            picture, eps = x - sigma * output, x + alpha * output
        else:
            picture, eps = (x - sigma * output) / alpha, output
        _, alpha, sigma = points[step + 1] if step + 1 < steps else (0, 1.0, 0.0)
        x = alpha * picture + sigma * eps
    for handle in handles:
        handle.remove()
    network.cpu()
    values = [value.item() for value in largest]
    if not all(map(math.isfinite, values)):
        fail(f"--calibrate: inputs must be finite, got {max(values)}; a smaller --guidance-scale may help")
    return values
