"""Pictures that tstitch_sample decodes beside diffusers' decoder of the same weights.

    python autoencoder.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Draws latents with a small DiT of random weights, lets the tool decode them whole and in tiles, decodes them with diffusers
too, and compares the 8-bit pictures. Fails when more than 0.1 % of the values of whole pictures are off by one, or any by
more. Exits with 77 where diffusers or numpy is missing.
"""

import subprocess
import sys
from pathlib import Path

try:
    import numpy as np
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image

    from dit import network
    from harness import export, parse_arguments
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)


def decoder() -> AutoencoderKL:
    """Of the layout of Stable Diffusion's, with random weights; its pictures fill [-1, 1] without much clipping."""
    torch.manual_seed(2)
    model = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=16,
        scaling_factor=0.18215,
    )
    torch.nn.init.normal_(model.decoder.conv_out.weight, std=0.02)
    return model.eval()


@torch.no_grad()
def main() -> None:
    args = parse_arguments(__doc__)

    dit, vae = network((2, 2, 16), 32, 0), decoder()
    dit.save_pretrained(args.scratch / "dit")
    vae.save_pretrained(args.scratch / "vae")
    export("export_dit.py", args.scratch / "dit", args.scratch / "dit.pt")
    export("export_autoencoder.py", args.scratch / "vae", args.scratch / "decoder.pt", "--part", "decoder")

    def draw(folder: Path, *more: str) -> np.ndarray:
        for file in folder.glob("*.png"):
            file.unlink()
        subprocess.run(
            [args.tool, "--model", args.scratch / "dit.pt", "--steps", "4", "--class", "1", "--count", "3", "--guidance",
             "1", "--decoder", args.scratch / "decoder.pt", "--output", folder, "--device", args.device, "--dtype", "float32",
             "--quiet", *more],
            check=True,
        )
        return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]).astype(int)

    latents = args.scratch / "latents.npy"
    pictures = draw(args.scratch / "whole", "--latents", str(latents))
    vae = vae.to(args.device)
    z = torch.from_numpy(np.load(latents)).to(args.device) / 0.18215
    decoded = vae.decode(z).sample.cpu()
    expected = (decoded.double() * 127.5 + 128).clamp(0, 255).floor().permute(0, 2, 3, 1).numpy().astype(int)
    difference = np.abs(pictures - expected)
    clipped = np.mean((expected == 0) | (expected == 255))
    print(
        f"{pictures.shape[0]} pictures of {pictures.shape[2]} x {pictures.shape[1]}, {100 * clipped:.1f} % of the values "
        f"clipped: {100 * np.mean(difference == 1):.4f} % off by one, {np.sum(difference > 1)} values by more"
    )
    tiled = np.abs(draw(args.scratch / "tiled", "--tile", "24") - expected)
    print(f"in tiles of 24 of 32: {tiled.mean():.2f} levels off on average, the deviation is {expected.std():.1f}")
    if not (clipped <= 0.5 and np.mean(difference == 1) <= 1e-3 and difference.max() <= 1):
        sys.exit(1)
    print("all pictures are those of the peer")


if __name__ == "__main__":
    main()
