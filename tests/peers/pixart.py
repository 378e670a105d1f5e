"""Stitched PixArt by tstitch beside diffusers' networks and schedulers of the same weights.

    python pixart.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Two transformers of different width with random weights, conditioned on text embeddings with masks, resolution and
aspect ratio; DPM-Solver++ 12 and DDIM 10, guidance 4.5 and none, ratios 0, 0.4 and 1, from the same noise. Fails when a
latent differs by more than 2e-3 of the standard deviation. Exits with 77 where diffusers or numpy is missing.
"""

import itertools
import json
import subprocess
import sys

try:
    import numpy as np
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PixArtTransformer2DModel

    from harness import Latents, export, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BOUND = 2e-3
SIZE, TOKENS, TEXT_WIDTH = 8, 20, 16
SHAPES = {"small": (2, 2, 12), "large": (3, 3, 16)}  # layers, heads, width of a head
SCHEDULERS = {"diffusers-dpmpp": (DPMSolverMultistepScheduler, 12), "diffusers-ddim": (DDIMScheduler, 10)}
NAMES = ("text_embedding", "text_mask", "resolution", "aspect_ratio")


def network(name: str, seed: int) -> PixArtTransformer2DModel:
    layers, heads, head_width = SHAPES[name]
    torch.manual_seed(seed)
    model = PixArtTransformer2DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=head_width, sample_size=SIZE,
        cross_attention_dim=heads * head_width, caption_channels=TEXT_WIDTH, use_additional_conditions=True,
    )  # fmt: skip
    # With these the output is of the size of noise, and depends on the text.
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1 and "table" not in key:
            torch.nn.init.normal_(parameter, std=parameter.shape[1:].numel() ** -0.5)
    return model.eval()


@torch.no_grad()
def sample(networks, kind: str, ratio: float, scale: float, given: dict, null: dict, device: str) -> torch.Tensor:
    """diffusers' scheduler around the routed network; returns x_0 [n, 4, SIZE, SIZE]."""
    maker, steps = SCHEDULERS[kind]
    scheduler = maker(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(steps)
    count = len(given["text_mask"])
    x = torch.from_numpy(np.stack([noise(i, 0, 0, (4, SIZE, SIZE)) for i in range(count)])).float().to(device)
    # As the pipeline has it, the rows without the prompt come first.
    rows = [torch.cat([null[name].repeat(count, *[1] * (given[name].ndim - 1)), given[name]]) for name in NAMES]
    text, mask, resolution, aspect_ratio = (r if scale != 1 else r[count:] for r in (row.to(device) for row in rows))
    for i, t in enumerate(scheduler.timesteps):
        model = networks[0] if i < round(ratio * steps) else networks[1]
        output = model(
            torch.cat([x, x]) if scale != 1 else x, encoder_hidden_states=text, encoder_attention_mask=mask,
            timestep=t.expand(len(text)).to(device),
            added_cond_kwargs={"resolution": resolution, "aspect_ratio": aspect_ratio},
        ).sample  # fmt: skip
        if scale != 1:
            without, prompted = output.chunk(2)
            output = without + scale * (prompted - without)
        x = scheduler.step(output.chunk(2, dim=1)[0], t, x).prev_sample
    return x


def main() -> None:
    args = parse_arguments(__doc__)

    networks, files = [], []
    for seed, name in enumerate(SHAPES):
        model = network(name, seed)
        pipeline, file = args.scratch / name, args.scratch / f"{name}.pt"
        model.save_pretrained(pipeline / "transformer")
        DPMSolverMultistepScheduler(beta_schedule="linear").save_pretrained(pipeline / "scheduler")
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
        export("export_pixart.py", pipeline, file, "--dtype", "float32", "--text-tokens", str(TOKENS))
        networks.append(model.to(args.device))
        files += ["--model", str(file)]

    # Two prompts of different length, one picture of each; the null prompt is a single token.
    generator = torch.Generator().manual_seed(5)
    places = torch.arange(TOKENS)
    given = {
        "text_embedding": torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator),
        "text_mask": (places < torch.tensor([[13], [4]])).long(),
        "resolution": torch.tensor([[1024.0, 1024.0], [832.0, 1216.0]]),
        "aspect_ratio": torch.tensor([[1.0], [832 / 1216]]),
    }
    null = {
        "text_embedding": torch.randn(1, TOKENS, TEXT_WIDTH, generator=generator),
        "text_mask": (places < 1).long()[None],
        "resolution": torch.tensor([[1024.0, 1024.0]]),
        "aspect_ratio": torch.tensor([[1.0]]),
    }
    prompts, file = args.scratch / "prompts.pt", args.scratch / "latents.npy"
    torch.save(given | {f"{name}.null": null[name] for name in NAMES}, prompts)

    latents = Latents()
    for kind, scale, ratio in itertools.product(SCHEDULERS, (1.0, 4.5), (0.0, 0.4, 1.0)):
        steps = SCHEDULERS[kind][1]
        subprocess.run(
            [args.tool, *files, "--profile", kind, "--steps", str(steps), "--ratio", str(ratio), "--guidance",
             str(scale), "--device", args.device, "--dtype", "float32", "--condition", str(prompts), "--latents",
             str(file), "--quiet"],
            check=True,
        )  # fmt: skip
        expected = sample(networks, kind, ratio, scale, given, null, args.device)
        latents.compare(f"{kind} {steps} steps, guidance {scale}, ratio {ratio}", file, expected, BOUND)
    latents.finish()


if __name__ == "__main__":
    main()
