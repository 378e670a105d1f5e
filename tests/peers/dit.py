"""Stitched sampling by tstitch beside diffusers' DiT of the same weights, stepped by plain Python loops.

    python dit.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda] [--size full]

Makes two networks with random weights, exports their diffusers folders with examples/export/export_dit.py, draws latents
with tstitch_sample and with a loop over diffusers' networks, from the same noise, and compares them: DDIM 50 and DDPM 250
with learned variance, guidance 1.5 and 4 on the first three channels, ratios 0, 0.4 and 1. Fails when a latent differs by
more than 2e-3 (DDIM) or 5e-3 (DDPM) of the standard deviation. Exits with 77 where diffusers or numpy is missing.
"""

import itertools
import subprocess
import sys
import time

try:
    import numpy as np
    import torch
    from diffusers import DiTTransformer2DModel

    from harness import Latents, export, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

SHAPES = {
    "full": {"small": (12, 6, 64), "large": (28, 16, 72), "sample_size": 32},  # DiT-S/2 and DiT-XL/2 at 256 pixels
    "tiny": {"small": (2, 2, 16), "large": (3, 2, 24), "sample_size": 8},
}
BOUNDS = {"dit-ddim": 2e-3, "dit": 5e-3}
IMAGES = 2


def network(shape: tuple[int, int, int], sample_size: int, seed: int) -> DiTTransformer2DModel:
    layers, heads, head_width = shape
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=head_width, sample_size=sample_size,
        in_channels=4, out_channels=8, patch_size=2,
    )
    # At the usual start gates and output are zero. With these the output is of the size of noise.
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1:].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    # Converted checkpoints repeat these in every block.
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def respaced(count: int) -> list[int]:
    """The timesteps of DiT's code, ascending: count of 1000 at a fractional stride."""
    stride = 999 / (count - 1) if count > 1 else 1
    return [round(stride * i) for i in range(count)]


@torch.no_grad()
def sample(networks, profile: str, steps: int, ratio: float, scale: float, labels: list[int], size: int, device):
    """A plain loop in float32 with tables in float64; returns x_0 [n, 4, size, size]."""
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    timesteps = respaced(steps)

    def drawn(step: int) -> torch.Tensor:
        rows = np.stack([noise(i, step, 0, (4, size, size)) for i in range(len(labels))])
        return torch.from_numpy(rows).float().to(device)

    x = drawn(0)
    classes = torch.tensor(labels + [1000] * len(labels), device=device)
    for i, t in enumerate(reversed(timesteps)):
        model = networks[0] if i < round(ratio * steps) else networks[1]
        times = torch.full((2 * len(labels),), t, device=device)
        output = model(torch.cat([x, x]), timestep=times, class_labels=classes).sample
        given, null = output.chunk(2)
        eps = torch.cat([null[:, :3] + scale * (given[:, :3] - null[:, :3]), given[:, 3:4]], dim=1)
        abar = alphas_cumprod[t]
        before = alphas_cumprod[timesteps[steps - 2 - i]] if i < steps - 1 else 1.0
        x_0 = x / abar**0.5 - (1 / abar - 1) ** 0.5 * eps
        if profile == "dit-ddim":
            x = before**0.5 * x_0 + (1 - before) ** 0.5 * eps
            continue
        if i == steps - 1:
            x = x_0
            continue
        beta = 1 - abar / before
        low, high = beta * (1 - before) / (1 - abar), beta
        mean = before**0.5 * beta / (1 - abar) * x_0 + (abar / before) ** 0.5 * (1 - before) / (1 - abar) * x
        share = (given[:, 4:] + 1) / 2
        deviation = torch.exp(0.5 * (share * np.log(high) + (1 - share) * np.log(low)))
        x = mean + deviation * drawn(i + 1)
    return x


def main() -> None:
    args = parse_arguments(__doc__, tuple(SHAPES))

    shapes = SHAPES[args.size]
    networks, files = [], []
    for seed, name in enumerate(("small", "large")):
        model = network(shapes[name], shapes["sample_size"], seed)
        folder, file = args.scratch / name, args.scratch / f"{name}.pt"
        model.save_pretrained(folder)
        start = time.perf_counter()
        export("export_dit.py", folder, file, "--dtype", "float32")
        print(f"exported {name} in {time.perf_counter() - start:.0f} s", flush=True)
        networks.append(model.to(args.device))
        files += ["--model", str(file)]

    labels = [207, 360][:IMAGES]
    steps = {"dit-ddim": 50, "dit": 250} if args.size == "full" else {"dit-ddim": 10, "dit": 12}
    latents, file = Latents(), args.scratch / "latents.npy"
    for profile, scale, ratio in itertools.product(BOUNDS, (1.5, 4.0), (0.0, 0.4, 1.0)):
        subprocess.run(
            [args.tool, *files, "--profile", profile, "--steps", str(steps[profile]), "--ratio", str(ratio),
             "--guidance", str(scale), "--device", args.device, "--dtype", "float32", "--latents", str(file),
             "--quiet", *itertools.chain(*(["--class", str(label)] for label in labels))],
            check=True,
        )
        expected = sample(
            networks, profile, steps[profile], ratio, scale, labels, shapes["sample_size"], args.device
        )
        what = f"{profile:<9} {steps[profile]} steps, guidance {scale}, ratio {ratio}"
        latents.compare(what, file, expected, BOUNDS[profile])
    latents.finish()


if __name__ == "__main__":
    main()
