"""Stitched Sana by tstitch beside diffusers' networks and scheduler of the same weights.

    python sana.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Two transformers of different shape with random weights, the large one with norms of queries and keys as Sana 1.5 has them;
FlowMatchEuler with shift 3, 20 steps and 6, guidance 4.5 and none, ratios 0, 0.4 and 1, squares and rectangles, from the
same noise, with texts of different length. Fails when a latent differs by more than 1e-5 of the standard deviation. Exits
with 77 where diffusers or numpy is missing.
"""

import sys

try:
    import torch
    from diffusers import SanaTransformer2DModel

    import flow
    from harness import parse_arguments
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

CHANNELS, TOKENS, TEXT_WIDTH = 32, 20, 24
SHAPES = {"small": (2, 2, None), "large": (3, 3, "rms_norm_across_heads")}  # layers, heads, norm of queries and keys


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


def call(model: SanaTransformer2DModel, x: torch.Tensor, t: torch.Tensor, rows: dict) -> torch.Tensor:
    given = {"encoder_hidden_states": rows["text_embedding"], "encoder_attention_mask": rows["text_mask"]}
    return model(x, timestep=t, **given).sample


def main() -> None:
    args = parse_arguments(__doc__)

    networks = {name: network(name, seed) for seed, name in enumerate(SHAPES)}
    files = flow.export_pair(args, networks, "export_sana.py", "SanaPipeline")
    generator = torch.Generator().manual_seed(5)
    places = torch.arange(TOKENS)
    given = {
        "text_embedding": torch.randn(2, TOKENS, TEXT_WIDTH, generator=generator),
        "text_mask": (places < torch.tensor([[13], [4]])).long(),
    }
    null = {"text_embedding": torch.randn(1, TOKENS, TEXT_WIDTH, generator=generator), "text_mask": (places < 2).long()[None]}
    flow.compare(args, networks.values(), files, call, CHANNELS, 20, given, null)


if __name__ == "__main__":
    main()
