"""Stitched Stable Diffusion 3.5 by tstitch beside diffusers' networks and scheduler of the same weights.

    python sd3.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Two transformers of different shape with random weights, the small one with dual attention as SD3.5 medium has it, the
large one without; FlowMatchEuler with shift 3, 28 steps and 6, guidance 4.5 and none, ratios 0, 0.4 and 1, squares and
rectangles, from the same noise. Fails when a latent differs by more than 1e-5 of the standard deviation. Exits with 77
where diffusers or numpy is missing.
"""

import sys

try:
    import torch
    from diffusers import SD3Transformer2DModel

    import flow
    from harness import parse_arguments
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

CHANNELS, TOKENS, TEXT_WIDTH, POOLED_WIDTH = 16, 20, 32, 24
SHAPES = {"small": (2, 2, 16, [0]), "large": (3, 3, 16, [])}  # layers, heads, width of a head, blocks with dual attention


def network(name: str, seed: int) -> SD3Transformer2DModel:
    layers, heads, head_width, dual = SHAPES[name]
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=8, num_layers=layers, num_attention_heads=heads, attention_head_dim=head_width, in_channels=CHANNELS,
        out_channels=CHANNELS, joint_attention_dim=TEXT_WIDTH, caption_projection_dim=heads * head_width,
        pooled_projection_dim=POOLED_WIDTH, pos_embed_max_size=12, dual_attention_layers=dual, qk_norm="rms_norm",
    )  # fmt: skip
    # With these the output is of the size of noise, and depends on the text.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[1:].numel() ** -0.5)
    return model.eval()


def call(model: SD3Transformer2DModel, x: torch.Tensor, t: torch.Tensor, rows: dict) -> torch.Tensor:
    return model(x, encoder_hidden_states=rows["text_embedding"], pooled_projections=rows["pooled_embedding"], timestep=t).sample


def main() -> None:
    args = parse_arguments(__doc__)

    networks = {name: network(name, seed) for seed, name in enumerate(SHAPES)}
    files = flow.export_pair(args, networks, "export_sd3.py", "StableDiffusion3Pipeline")
    generator = torch.Generator().manual_seed(5)
    given = {
        "text_embedding": torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator),
        "pooled_embedding": torch.randn(2, POOLED_WIDTH, generator=generator),
    }
    null = {name: torch.randn(1, *tensor.shape[1:], generator=generator) for name, tensor in given.items()}
    flow.compare(args, networks.values(), files, call, CHANNELS, 28, given, null)


if __name__ == "__main__":
    main()
