"""From the folders of Wan and of Sana to videos and pictures, beside diffusers' decoders of the same weights.

    python video.py TSTITCH_SAMPLE SCRATCH_FOLDER [--device cuda]

Makes small pipelines of random weights, exports networks and decoders, lets the tool draw, decodes the same latents with
diffusers, and compares the 8-bit values in the files: of animated PNG, of frames in a folder, of pictures, and where ffmpeg
is installed about those of MP4. Fails when more than 0.1 % are off by one, or any by more. Exits with 77 where diffusers,
numpy or Pillow is missing.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import diffusers
    import numpy as np
    import torch
    from PIL import Image

    from harness import export, parse_arguments
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

SIZE, TOKENS, TEXT_WIDTH = (16, 3, 6, 8), 7, 24  # of a video's latent; frames, height and width become 9, 48 and 64
FRAMES, HEIGHT, WIDTH = 9, 48, 64


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """With these weights outputs are of the size of noise, and depend on the text."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[1:].numel() ** -0.5)
    return model.eval()


def save(folder: Path, kind: str, parts: dict[str, object]) -> None:
    for part, value in parts.items():
        value.save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))


def compare(what: str, got: np.ndarray, decoded: torch.Tensor) -> None:
    """@decoded: [n, C, ..., H, W] in [-1, 1]; got has the channels last."""
    expected = (decoded.double() * 127.5 + 128).clamp(0, 255).floor().movedim(1, -1).numpy().astype(int)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    difference = np.abs(got.astype(int) - expected)
    clipped, off = np.mean((expected == 0) | (expected == 255)), np.mean(difference == 1)
    print(f"{what}: {got.shape}, {100 * clipped:.1f} % clipped: {100 * off:.4f} % off by one, {np.sum(difference > 1)} by more")
    if not (clipped < 0.5 and expected.std() > 20 and off <= 1e-3 and difference.max() <= 1):
        sys.exit(1)


def frames_of(path: Path) -> np.ndarray:
    """[F, H, W, C] of an animated PNG, shown at 16 a second."""
    with Image.open(path) as animation:
        found = []
        for i in range(getattr(animation, "n_frames", 1)):
            animation.seek(i)
            assert abs(animation.info["duration"] - 1000 / 16) < 0.01, animation.info
            found.append(np.asarray(animation.convert("RGB")))
    return np.stack(found)


class Drawing:
    """The tool with a pair and its decoder."""

    def __init__(self, tool: str, folder: Path, device: str, *words: str) -> None:
        self.folder, self.latents = folder, folder / "latents.npy"
        models = [word for name in ("small", "large") for word in ("--model", folder / f"{name}.pt")]
        self.words = [tool, *models, "--ratio", "0.4", "--condition", folder / "texts.pt", "--steps", "5", "--device", device,
                      "--dtype", "float32", "--quiet", *words]  # fmt: skip

    def run(self, *more: object) -> str:
        """What it says where it fails."""
        done = subprocess.run([*map(str, (*self.words, *more))], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1, 2), done
        return done.stderr.strip()

    def draw(self, name: str, *more: object) -> Path:
        output = self.folder / name
        shutil.rmtree(output, ignore_errors=True)
        error = self.run("--decoder", self.folder / "decoder.pt", "--latents", self.latents, "--output", output, *more)
        assert not error, error
        return output


@torch.no_grad()
def wan(tool: str, folder: Path, device: str) -> None:
    torch.manual_seed(0)
    flow = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    vae = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.02)
    for name, layers in (("small", 1), ("large", 2)):
        network = loud(diffusers.WanTransformer3DModel(
            num_layers=layers, num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_WIDTH, freq_dim=16, ffn_dim=24,
        ))  # fmt: skip
        save(folder / name, "WanPipeline", {"transformer": network, "scheduler": flow, "vae": vae})
        export("export_wan.py", folder / name, folder / f"{name}.pt", "--dtype", "float32")
    export("export_autoencoder.py", folder / "large", folder / "decoder.pt")
    text = torch.randn(1, TOKENS, TEXT_WIDTH)
    torch.save({"text_embedding": text, "text_embedding.null": torch.zeros_like(text)}, folder / "texts.pt")

    drawing = Drawing(tool, folder, device, "--shape", "x".join(map(str, SIZE)))
    report = folder / "report.json"
    output = drawing.draw("videos", "--count", 2, "--report", report)
    names = ["000000-seed0.png", "000001-seed1.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert [each["file"] for each in json.loads(report.read_text())["pictures"]] == names
    made = np.stack([frames_of(output / name) for name in names])
    assert made.shape == (2, FRAMES, HEIGHT, WIDTH, 3), made.shape
    latents = torch.from_numpy(np.load(drawing.latents))
    mean, deviation = (torch.tensor(each).view(1, 16, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    expected = vae.decode(latents * deviation + mean).sample
    compare("Wan", made, expected)
    # Videos and frames differ from one another.
    assert np.abs(made[0].astype(int) - made[1]).mean() > 5
    assert all(np.abs(a.astype(int) - b).mean() > 1 for a, b in zip(made[0], made[0, 1:]))
    with Image.open(output / names[1]) as picture:
        told = json.loads(picture.text["parameters"])
    assert (told["image_seed"], told["video"], told["frames_per_second"]) == (1, "apng", 16), told

    inside = drawing.draw("frames", "--count", 2, "--video", "png") / "000001-seed1"
    files = sorted(inside.iterdir())
    assert [path.name for path in files] == [f"{i:06}.png" for i in range(FRAMES)]
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in files]), made[1])

    tiled = drawing.draw("tiled", "--count", 2, "--tile", 17)  # no smaller than the latent: the whole
    assert np.array_equal(frames_of(tiled / names[0]), made[0])

    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg:
        file = drawing.draw("mp4", "--video", "mp4", "--frames-per-second", 24) / "000000-seed0.mp4"
        read = subprocess.run([ffmpeg, "-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
        shown = np.frombuffer(read.stdout, np.uint8).reshape(FRAMES, HEIGHT, WIDTH, 3)
        assert b"24 fps" in read.stderr and b"bt709" in read.stderr, read.stderr
        # Noise in colour loses much to 4:2:0; its grey does not.
        off = np.abs(shown.astype(int).mean(-1) - made[0].astype(int).mean(-1)).mean()
        print(f"MP4: the grey of pixels is {off:.1f} levels off on average")
        assert off < 12, off
    else:
        print("not run: MP4 needs ffmpeg")
        error = drawing.run("--decoder", folder / "decoder.pt", "--output", folder / "none", "--video", "mp4")
        assert "needs the program ffmpeg, got 'none in PATH'" in error and not list((folder / "none").iterdir()), error

    decoder = ("--decoder", folder / "decoder.pt")
    for words, expected in {
        (*decoder, "--grid", "g.png"): "--output: must be given, or --latents, without --grid",
        (*decoder, "--output", folder / "none", "--preview", "blocks"): "--output: must be given, or --latents, without --grid",
        ("--latents", "l.npy", "--output", folder / "none", "--video", "png"): "--video: goes, as --frames-per-second does",
        (*decoder, "--video", "png"): "--video: must come with --output",
        (*decoder, "--output", folder / "none", "--video", "gif"): "--video: must be one of apng, mp4, png, got 'gif'",
        (*decoder, "--output", folder / "none", "--frames-per-second", "nan"): "--frames-per-second: must be",
        (*decoder, "--output", folder / "none", "--frames-per-second", "101"): "--frames-per-second: must be in [1, 100]",
    }.items():
        error = drawing.run(*words)
        assert expected in error and "\n" not in error, (words, error)


@torch.no_grad()
def sana(tool: str, folder: Path, device: str) -> Path:
    torch.manual_seed(0)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    blocks, widths = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, [4, 4, 8, 8, 16, 32]
    vae = diffusers.AutoencoderDC(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_layers_per_block=[1] * 6,
        decoder_layers_per_block=[1] * 6, encoder_block_types=blocks, decoder_block_types=blocks, attention_head_dim=8,
        downsample_block_type="Conv", upsample_block_type="interpolate", scaling_factor=0.41407,
    ).eval()  # fmt: skip
    for name, layers in (("small", 1), ("large", 2)):
        network = loud(diffusers.SanaTransformer2DModel(
            sample_size=4, num_layers=layers, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
            cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=TEXT_WIDTH,
        ))  # fmt: skip
        save(folder / name, "SanaPipeline", {"transformer": network, "scheduler": flow, "vae": vae})
        export("export_sana.py", folder / name, folder / f"{name}.pt", "--dtype", "float32")
    for part in ("decoder", "encoder"):
        export("export_autoencoder.py", folder / "large", folder / f"{part}.pt", "--part", part)
    text = torch.randn(1, TOKENS, TEXT_WIDTH)
    masks = dict.fromkeys(("text_mask", "text_mask.null"), torch.ones(1, TOKENS, dtype=torch.int64))
    torch.save({"text_embedding": text, "text_embedding.null": torch.zeros_like(text), **masks}, folder / "texts.pt")
    drawing = Drawing(tool, folder, device)
    output = drawing.draw("pictures", "--count", 2)
    made = np.stack([np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))])
    assert made.shape == (2, 128, 128, 3), made.shape
    compare("Sana", made, vae.decode(torch.from_numpy(np.load(drawing.latents)) / 0.41407).sample)

    # A picture that is encoded, and drawn again in no step, is what diffusers makes of its latent.
    source = next(output.glob("*0.png"))
    drawing.draw("again", "--init-image", source, "--encoder", folder / "encoder.pt", "--strength", "0.2")
    error = drawing.run("--decoder", folder / "decoder.pt", "--output", folder / "none", "--video", "png")
    assert "--video: goes, as --frames-per-second does" in error, error
    return folder / "decoder.pt"


def main() -> None:
    args = parse_arguments(__doc__)
    shutil.rmtree(args.scratch)
    of_pictures = sana(args.tool, args.scratch / "sana", args.device)
    wan(args.tool, args.scratch / "wan", args.device)
    drawing = Drawing(args.tool, args.scratch / "wan", args.device, "--shape", "x".join(map(str, SIZE)))
    error = drawing.run("--decoder", of_pictures, "--output", args.scratch / "none")
    assert "must be a decoder of videos, for x of [C, F, H, W], got one of pictures" in error, error
    drawing = Drawing(args.tool, args.scratch / "sana", args.device)
    error = drawing.run("--decoder", args.scratch / "wan/decoder.pt", "--output", args.scratch / "none")
    assert "must be a decoder of pictures, for x of [C, H, W], got one of videos" in error, error
    print("all frames and pictures are those of the peer")


if __name__ == "__main__":
    main()
