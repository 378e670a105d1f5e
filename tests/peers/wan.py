"""Stitched Wan by tstitch beside diffusers' networks and scheduler of the same weights.

    python wan.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Two transformers of different shape with random weights on videos of 5 frames, FlowMatchEuler with shift 5 and 12 steps,
guidance 5 and none: ratios 0, 0.4 and 1, and Wan 2.2's two experts by their boundary (--routing timestep:875). Fails when
a latent differs by more than 1e-5 of the standard deviation. Exits with 77 where diffusers or numpy is missing.
"""

import itertools
import json
import subprocess
import sys

try:
    import numpy as np
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    from harness import Latents, export, parse_arguments
    from noise import noise
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

BOUND = 1e-5
SHAPE, TOKENS, TEXT_WIDTH = (16, 5, 6, 8), 12, 24
SHAPES = {"small": (2, 2, 40), "large": (3, 3, 64)}  # layers, heads, width of the MLPs
SHIFT, STEPS, BOUNDARY = 5.0, 12, 875


def network(name: str, seed: int) -> WanTransformer3DModel:
    layers, heads, hidden = SHAPES[name]
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=16, text_dim=TEXT_WIDTH, freq_dim=32, ffn_dim=hidden,
        rope_max_seq_len=32,
    )  # fmt: skip
    # With these the output is of the size of noise, and depends on the text.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[1:].numel() ** -0.5)
    return model.eval()


@torch.no_grad()
def sample(networks, network_of, scale: float, text: torch.Tensor, null: torch.Tensor, device: str) -> torch.Tensor:
    """diffusers' scheduler around the routed network, @network_of (step, t); returns x_0 [n, *SHAPE]."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(STEPS)
    count = len(text)
    x = torch.from_numpy(np.stack([noise(i, 0, 0, SHAPE) for i in range(count)])).float().to(device)
    given, without = text.to(device), null.expand(count, -1, -1).to(device)
    for i, t in enumerate(scheduler.timesteps):
        model, times = networks[network_of(i, t)], t.expand(count).to(device)
        output = model(x, times, given).sample
        if scale != 1:  # the pipeline's two calls
            empty = model(x, times, without).sample
            output = empty + scale * (output - empty)
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
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
        export("export_wan.py", pipeline, file, "--dtype", "float32")
        networks.append(model.to(args.device))
        files += ["--model", str(file)]

    generator = torch.Generator().manual_seed(5)
    text, null = torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator), torch.randn(1, TOKENS, TEXT_WIDTH, generator=generator)
    prompts, file = args.scratch / "prompts.pt", args.scratch / "latents.npy"
    torch.save({"text_embedding": text, "text_embedding.null": null}, prompts)

    def by_ratio(ratio: float):
        return lambda i, t: 0 if i < round(ratio * STEPS) else 1

    routings = {f"ratio {ratio}": (["--ratio", str(ratio)], by_ratio(ratio)) for ratio in (0.0, 0.4, 1.0)}
    routings["by the boundary"] = (["--routing", f"timestep:{BOUNDARY}"], lambda i, t: 0 if t >= BOUNDARY else 1)
    latents = Latents()
    for (name, (options, network_of)), scale in itertools.product(routings.items(), (1.0, 5.0)):
        subprocess.run(
            [args.tool, *files, *options, "--guidance", str(scale), "--steps", str(STEPS), "--shape", "x".join(map(str, SHAPE)), "--device",
             args.device, "--dtype", "float32", "--condition", str(prompts), "--latents", str(file), "--quiet"],
            check=True,
        )  # fmt: skip
        expected = sample(networks, network_of, scale, text, null, args.device)
        latents.compare(f"{STEPS} steps, guidance {scale}, {name}", file, expected, BOUND)
    latents.finish()


if __name__ == "__main__":
    main()
