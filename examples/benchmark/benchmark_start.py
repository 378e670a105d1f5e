"""From the start of a process to a picture: tstitch_sample with a whole pipeline of Stable Diffusion 3.5, medium and large.

    python benchmark_start.py TSTITCH_SAMPLE --scratch FOLDER                           at 1024x1024, on a GPU
    python benchmark_start.py TSTITCH_SAMPLE --scratch FOLDER --size tiny --device cpu  in seconds

Makes a folder as export_pipeline.py writes it, of the published shapes with random weights: networks and T5 in bfloat16, both
CLIP encoders and the decoder in float32, and tokenizers with tables of the published sizes. What is measured is the wall time
of `tstitch_sample --pipeline FOLDER --prompt ...` from its start to its end, which has read the files from the page cache,
encoded the prompt, drawn and written a picture; and its largest resident memory. Medians of --repeats. --keep takes the folder
that is there.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "torch", "diffusers")
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import benchmark_sd3  # noqa: E402
import common  # noqa: E402
from autoencoder import AutoencoderKL, KLConfig  # noqa: E402
from text_encoder import Clip, ClipConfig, T5, T5Config, TextEncoder  # noqa: E402

# Of the text encoders of Stable Diffusion 3.
SIZES = {
    "full": (
        ClipConfig(projection=768, penultimate=True, pooled=True),
        ClipConfig(width=1280, hidden=5120, depth=32, heads=20, activation="gelu", projection=1280, penultimate=True, pooled=True),
        T5Config(masked=False, mask=False),
        KLConfig(latent_channels=16, quant_conv=False, post_quant_conv=False),
        333,
    ),
    "tiny": (
        ClipConfig(width=8, hidden=16, depth=2, heads=2, projection=6, penultimate=True, pooled=True),
        ClipConfig(width=12, hidden=16, depth=2, heads=2, projection=10, penultimate=True, pooled=True),
        T5Config(width=32, key_width=8, hidden=16, depth=2, heads=2, masked=False, mask=False),
        KLConfig(latent_channels=4, widths=(8, 8, 8, 8), groups=4, quant_conv=False, post_quant_conv=False),
        333,
    ),
}


class Words(nn.Module):
    """A tokenizer of bytes, which has the tables of a published one to load."""

    pieces: dict[str, int]

    def __init__(self, pieces: int, most: int, length: int):
        super().__init__()
        self.pieces = {f"piece {i} of the vocabulary": i for i in range(pieces)}
        self.most, self.length = most, length

    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        tokens, cut = torch.zeros([len(texts), self.length], dtype=torch.int64), torch.zeros([len(texts)], dtype=torch.int64)
        for i in range(len(texts)):
            for k in range(min(len(texts[i]), self.length - 1)):
                tokens[i, k] = ord(texts[i][k]) % self.most
            tokens[i, min(len(texts[i]), self.length - 1)] = self.most - 1
            cut[i] = max(0, len(texts[i]) + 1 - self.length)
        return tokens, torch.ones_like(tokens), cut


def random_weights(network: nn.Module, device: str) -> nn.Module:
    """As large as makes the output of a layer as large as its input."""
    network = network.to_empty(device=device).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, tensor.shape[1:].numel() ** -0.5)
        else:
            tensor.normal_(0, 0.02).add_("norm" in name and name.endswith("weight"))
    return network


def save(network: nn.Module, path: Path, values: dict[str, object]) -> None:
    torch.jit.save(torch.jit.script(network), str(path), _extra_files=common.metadata({"format": 1, "name": path.stem, **values}))


def write_encoder(network: nn.Module, pieces: int, vocabulary: int, length: int, path: Path) -> None:
    encoder = TextEncoder(Words(pieces, vocabulary, length), network)
    with torch.no_grad():
        device = next(network.parameters()).device
        sample = network(torch.zeros(1, length, dtype=torch.int64, device=device), torch.ones(1, length, dtype=torch.int64, device=device))
    outputs = "\n".join(" ".join([name, "float", *map(str, found.shape[1:])]) for name, found in sample.items())
    save(encoder, path, {"kind": "text_encoder", "architecture": type(network).__name__, "outputs": outputs, "text_tokens": length})


def make(args: argparse.Namespace) -> None:
    """Writes the folder."""
    args.scratch.mkdir(parents=True, exist_ok=True)
    *shapes, latent, tokens = benchmark_sd3.SIZES[args.size]
    own = argparse.Namespace(latent=latent, text_tokens=333, device=args.device, dtype=args.dtype)
    for name, shape in zip(("small", "large"), shapes):
        model = benchmark_sd3.random_network(shape, own, seed=len(name))
        benchmark_sd3.write_file(model, shape, own, [], args.scratch / f"{name}.pt")
        del model
    clip_l, clip_g, t5, vae, length = SIZES[args.size]
    for name, config in (("text_encoder", clip_l), ("text_encoder_2", clip_g)):
        with torch.device("meta"):
            network = Clip(config)
        write_encoder(random_weights(network, args.device), 2 * 49408, config.vocabulary, 77, args.scratch / f"{name}.pt")
    with torch.device("meta"):
        network = T5(t5)
    network = random_weights(network.to(args.dtype), args.device)
    write_encoder(network, 32100, t5.vocabulary, length - 77, args.scratch / "text_encoder_3.pt")
    del network
    with torch.device("meta"):
        network = AutoencoderKL(vae).half("decoder")
    values = {"kind": "decoder", "latent_channels": vae.latent_channels, "upsampling": 8, "latent_scale": 1.5305, "latent_shift": 0.0609}
    save(random_weights(network, args.device), args.scratch / "decoder.pt", values)
    width = shapes[-1].text_width
    (args.scratch / "pipeline.txt").write_text(
        "tstitch pipeline 1\nname random\nnetwork small.pt\nnetwork large.pt\ntext_encoder text_encoder.pt\n"
        "text_encoder text_encoder_2.pt beside\ntext_encoder text_encoder_3.pt behind\ndecoder decoder.pt\n"
        f"fill text_embedding {length} {width}\nprofile diffusers-flow-euler\nsteps 28\nguidance 4.5\nratio 0.4\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", type=Path, metavar="TSTITCH_SAMPLE")
    parser.add_argument("--scratch", type=Path, required=True, help="the folder; 35 GB for full")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="take the folder that is there")
    args, more = parser.parse_known_args()
    args.dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if not args.keep:
        start = time.perf_counter()
        make(args)
        if args.device != "cpu":
            torch.cuda.empty_cache()
        print(f"made {args.scratch} in {time.perf_counter() - start:.0f} s")
    size = sum(path.stat().st_size for path in args.scratch.iterdir()) / 1e9
    seconds = []
    for _ in range(args.repeats + 1):  # the first brings the files into the page cache
        start = time.perf_counter()
        command = [args.tool, "--pipeline", args.scratch, "--device", args.device, "--prompt", "a fox in the snow"]
        subprocess.run([*map(str, command), "--grid", str(args.scratch / "fox.png"), "--quiet", *more], check=True)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{statistics.median(seconds[1:]):.2f} s from start to picture (first {seconds[0]:.2f} s), of files of {size:.1f} GB; "
        f"at most {peak:.1f} GiB of memory on the host"
    )


if __name__ == "__main__":
    main()
