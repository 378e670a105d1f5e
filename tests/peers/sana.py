"""Stitched Sana by tstitch beside diffusers' networks and scheduler of the same weights.

    python sana.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Two transformers of different shape with random weights, the large one with norms of queries and keys as Sana 1.5 has them;
FlowMatchEuler with shift 3, 20 steps and 6, guidance 4.5 and none, ratios 0, 0.4 and 1, squares and rectangles, from the
same noise, with texts of different length. Fails when a latent differs by more than 1e-5 of the standard deviation. Exits
with 77 where diffusers or numpy is missing.
"""

import itertools
import json
import subprocess
import sys

try:
    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel

    from harness import Latents, export, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BOUND = 1e-5
CHANNELS, TOKENS, TEXT_WIDTH = 32, 20, 24
SHAPES = {"small": (2, 2, None), "large": (3, 3, "rms_norm_across_heads")}  # layers, heads, norm of queries and keys
SHIFT = 3.0


def network(name: str, seed: int) -> SanaTransformer2DModel:
    layers, heads, norm = SHAPES[name]
    torch.manual_seed(seed)
    model = SanaTransformer2DModel(
        sample_size=8, num_layers=layers, num_attention_heads=heads, attention_head_dim=16, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=16 * heads, caption_channels=TEXT_WIDTH, in_channels=CHANNELS,
        out_channels=CHANNELS, qk_norm=norm,
    )  # fmt: skip
    # With these the output is of the size of noise, and depends on the text.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[1:].numel() ** -0.5)
    return model.eval()


@torch.no_grad()
def sample(networks, steps: int, ratio: float, scale: float, size: tuple[int, int], given: dict, null: dict, device: str):
    """diffusers' scheduler around the routed network; returns x_0 [n, 16, *size]."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    count = len(given["text_embedding"])
    x = torch.from_numpy(np.stack([noise(i, 0, 0, (CHANNELS, *size)) for i in range(count)])).float().to(device)
    # As the pipeline has it, the rows without the prompt come first.
    rows = [torch.cat([null[name].repeat(count, *[1] * (given[name].ndim - 1)), given[name]]) for name in given]
    text, mask = (r if scale != 1 else r[count:] for r in (row.to(device) for row in rows))
    for i, t in enumerate(scheduler.timesteps):
        model = networks[0] if i < round(ratio * steps) else networks[1]
        output = model(torch.cat([x, x]) if scale != 1 else x, encoder_hidden_states=text, encoder_attention_mask=mask,
                       timestep=t.expand(len(text)).to(device)).sample  # fmt: skip
        if scale != 1:
            without, prompted = output.chunk(2)
            output = without + scale * (prompted - without)
        x = scheduler.step(output, t, x).prev_sample
    return x


def main() -> None:
    args = parse_arguments(__doc__)

    networks, files = [], []
    for seed, name in enumerate(SHAPES):
        model = network(name, seed)
        pipeline, file = args.scratch / name, args.scratch / f"{name}.pt"
        model.save_pretrained(pipeline / "transformer")
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(pipeline / "scheduler")
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
        export("export_sana.py", pipeline, file, "--dtype", "float32", "--size", "*")
        networks.append(model.to(args.device))
        files += ["--model", str(file)]

    generator = torch.Generator().manual_seed(5)
    places = torch.arange(TOKENS)
    given = {
        "text_embedding": torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator),
        "text_mask": (places < torch.tensor([[13], [4]])).long(),
    }
    null = {"text_embedding": torch.randn(1, TOKENS, TEXT_WIDTH, generator=generator), "text_mask": (places < 2).long()[None]}
    prompts, file = args.scratch / "prompts.pt", args.scratch / "latents.npy"
    torch.save(given | {f"{name}.null": null[name] for name in given}, prompts)

    latents = Latents()
    # What the files recommend, the profile, 20 steps and guidance 4.5, is taken where nothing is said.
    cases = [((), 20, 4.5), (("--guidance", "1"), 20, 1.0), (("--steps", "6"), 6, 4.5)]
    for (options, steps, scale), ratio, size in itertools.product(cases, (0.0, 0.4, 1.0), ((8, 8), (6, 20))):
        subprocess.run(
            [args.tool, *files, *options, "--ratio", str(ratio), "--shape", f"{CHANNELS}x{size[0]}x{size[1]}", "--device", args.device,
             "--dtype", "float32", "--condition", str(prompts), "--latents", str(file), "--quiet"],
            check=True,
        )  # fmt: skip
        expected = sample(networks, steps, ratio, scale, size, given, null, args.device)
        latents.compare(f"{steps} steps, guidance {scale}, ratio {ratio}, {size[0]}x{size[1]}", file, expected, BOUND)
    latents.finish()


if __name__ == "__main__":
    main()
