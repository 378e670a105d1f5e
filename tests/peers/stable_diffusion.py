"""Stitched Stable Diffusion by tstitch beside diffusers' networks and schedulers of the same weights.

    python stable_diffusion.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda] [--size full]

Two U-Nets of different width with random weights, conditioned on text embeddings; PNDM 50 and LCM 4, guidance 7.5 (PNDM),
ratios 0, 0.3 and 1, from the same noise. Fails when a latent differs by more than 2e-3 of the standard deviation.
--size full times SD 1.4 and BK-SDM-Tiny shapes in float16 instead: from the embedding of a prompt to the PNG file of one
picture of 512 x 512, both programs in turns, the mean of three. Exits with 77 where diffusers or numpy is missing.
"""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

try:
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, LCMScheduler, PNDMScheduler, UNet2DConditionModel
    from PIL import Image

    from harness import Latents, export, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BOUND = 2e-3
SD = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
SHAPES = {
    "full": {
        "small": SD | {  # BK-SDM-Tiny
            "layers_per_block": 1,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "mid_block_type": None,
        },
        "large": SD,
    },
    "tiny": {
        name: {
            "block_out_channels": (width, 2 * width),
            "layers_per_block": layers,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "sample_size": 8,
        }
        for name, width, layers in (("small", 16, 1), ("large", 32, 2))
    },
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def network(shape: dict, seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(in_channels=4, out_channels=4, **shape).eval()


def autoencoder() -> AutoencoderKL:
    """Of Stable Diffusion's shape, with random weights."""
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).eval()


@torch.no_grad()
def save(vae: AutoencoderKL, latents: torch.Tensor, path: Path) -> None:
    """The picture of the first latent."""
    pixels = vae.decode(latents / vae.config.scaling_factor).sample.float().mul(127.5).add(128).clamp(0, 255).byte()
    Image.fromarray(pixels[0].permute(1, 2, 0).cpu().numpy()).save(path)


@torch.no_grad()
def sample(networks, kind: str, steps: int, ratio: float, scale: float, text, null, count: int, device, dtype):
    """diffusers' scheduler around the routed network; returns x_0 [n, 4, size, size]."""
    size = networks[1].config.sample_size
    draws = itertools.count()

    def drawn(*_, **__) -> torch.Tensor:
        step = next(draws)
        rows = np.stack([noise(i, step, 0, (4, size, size)) for i in range(count)])
        return torch.from_numpy(rows).to(device, dtype)

    if kind == "diffusers-pndm":
        scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    else:
        scheduler = LCMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    x = drawn() * scheduler.init_noise_sigma
    embeddings = torch.cat([text, null.expand_as(text)]) if scale != 1 else text
    for i, t in enumerate(scheduler.timesteps):
        # PNDM evaluates its first step twice.
        index = max(0, i - 1) if kind == "diffusers-pndm" else i
        model = networks[0] if index < round(ratio * steps) else networks[1]
        output = model(torch.cat([x, x]) if scale != 1 else x, t, encoder_hidden_states=embeddings).sample
        if scale != 1:
            given, without = output.chunk(2)
            output = without + scale * (given - without)
        with mock.patch("diffusers.schedulers.scheduling_lcm.randn_tensor", drawn):
            step = scheduler.step(output, t, x)
        x = step.prev_sample
    return x


def main() -> None:
    args = parse_arguments(__doc__, tuple(SHAPES))

    networks, files = [], []
    for seed, name in enumerate(("small", "large")):
        model = network(SHAPES[args.size][name], seed)
        pipeline, file = args.scratch / name, args.scratch / f"{name}.pt"
        model.save_pretrained(pipeline / "unet")
        PNDMScheduler(**SCHEDULE, skip_prk_steps=True).save_pretrained(pipeline / "scheduler")
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
        dtype = "float32" if args.size == "tiny" else "float16"
        export("export_unet.py", pipeline, file, "--dtype", dtype)
        networks.append(model.to(args.device))
        files += ["--model", str(file)]

    count, width = 2, SHAPES[args.size]["large"]["cross_attention_dim"]
    generator = torch.Generator().manual_seed(5)
    text, null = (torch.randn(n, 77, width, generator=generator) for n in (count, 1))
    prompts = args.scratch / "prompts.pt"

    def draw(kind: str, steps: int, ratio: float, scale: float, dtype: str, report: Path, *output: str) -> None:
        subprocess.run(
            [args.tool, *files, "--profile", kind, "--steps", str(steps), "--ratio", str(ratio), "--guidance",
             str(scale), "--device", args.device, "--dtype", dtype, "--condition", str(prompts), "--report",
             str(report), "--quiet", *output],
            check=True,
        )

    file, report = args.scratch / "latents.npy", args.scratch / "report.json"
    if args.size == "tiny":
        torch.save({"text_embedding": text, "text_embedding.null": null}, prompts)
        latents = Latents()
        for (kind, steps, scale), ratio in itertools.product(
            (("diffusers-pndm", 50, 7.5), ("diffusers-lcm", 4, 1.0)), (0.0, 0.3, 1.0)
        ):
            draw(kind, steps, ratio, scale, "float32", report, "--latents", str(file))
            expected = sample(
                networks, kind, steps, ratio, scale, text.to(args.device), null.to(args.device), count, args.device,
                torch.float32,
            )
            latents.compare(f"{kind} {steps} steps, ratio {ratio}", file, expected, BOUND)
        latents.finish()
        return

    # Weights loaded and warm on both sides.
    torch.save({"text_embedding": text[:1], "text_embedding.null": null}, prompts)
    vae, decoder = autoencoder(), args.scratch / "decoder.pt"
    vae.save_pretrained(args.scratch / "vae")
    export("export_autoencoder.py", args.scratch / "vae", decoder, "--part", "decoder", "--dtype", "float16")
    networks = [model.half() for model in networks]
    vae = vae.to(args.device).half()
    half_text, half_null = text[:1].to(args.device).half(), null.to(args.device).half()
    pictures = 3
    for ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
        spent = []
        for _ in range(pictures + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            x = sample(
                networks, "diffusers-pndm", 50, ratio, 7.5, half_text, half_null, 1, args.device, torch.float16
            )
            save(vae, x, args.scratch / "peer.png")
            spent.append(time.perf_counter() - start)
        theirs = sum(spent[1:]) / pictures  # the first is for warming up
        draw("diffusers-pndm", 50, ratio, 7.5, "float16", report, "--count", str(pictures), "--batch", "1",
             "--decoder", str(decoder), "--output", str(args.scratch / "pictures"))  # fmt: skip
        ours = json.loads(report.read_text())["seconds"] / pictures
        print(f"ratio {ratio}: tstitch {ours:.3f} s, diffusers {theirs:.3f} s, {theirs / ours:.2f} times", flush=True)


if __name__ == "__main__":
    main()
