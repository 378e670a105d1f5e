"""Writes a trained network as a TorchScript file that tstitch loads.

The file is an ordinary TorchScript archive: `torch.jit.load` reads it too. What a sampler has to know about the network
(shape, prediction type, noise schedule, classes) rides along as extra files, one value per key, all under `tstitch/`.
The same checkpoint always gives the same bytes.
"""

import argparse
import io
import itertools
import os
import sys
from pathlib import Path

import torch

from dit import DiT, DiTConfig

TRAINING_DATA = "CIFAR-10 training set (Krizhevsky, 2009), 50,000 pictures of 32x32, mirrored at random"

# Largest difference from the float32 network, relative to the RMS of its output, that rounding explains.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def metadata(config: DiTConfig, checkpoint: dict, args: argparse.Namespace) -> dict[str, str]:
    """The `tstitch/` keys. Numbers are written with repr(), so that reading them back gives the same double."""
    schedule = checkpoint["noise_schedule"]
    values = {
        "format": 1,
        "name": args.name,
        "input_channels": config.channels,
        "input_height": config.size,
        "input_width": config.size,
        "prediction": "epsilon",
        "variance": "learned_range",
        "num_classes": config.num_classes,
        "null_class": config.num_classes,
        "class_names": "\n".join(checkpoint["class_names"]),
        "timestep_type": "int64",
        "noise_schedule": "linear",
        "num_train_timesteps": schedule["num_train_timesteps"],
        "beta_start": schedule["beta_start"],
        "beta_end": schedule["beta_end"],
        "decoding": "pixels",
        "guidance_scale": args.guidance_scale,
        "training_data": args.training_data,
        "license": args.license,
        "images_seen": checkpoint["images_seen"],
        "architecture": "dit",
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "patch_size": config.patch,
        "mlp_ratio": config.mlp_ratio,
    }
    return {f"tstitch/{key}": v if isinstance(v, str) else repr(v) for key, v in values.items()}


def sort_constants(code: bytes) -> bytes:
    """Sorts each run of `name : Final[type] = value` lines: TorchScript prints them in the order of a Python set."""
    lines = code.splitlines(keepends=True)
    runs = itertools.groupby(lines, key=lambda line: b" : Final[" in line)
    return b"".join(line for constants, run in runs for line in (sorted(run) if constants else run))


def canonical(archive: bytes) -> bytes:
    """Rewrites a TorchScript archive without what the exporting machine left in it.

    That is the order of constants, which changes from run to run, and the `.debug_pkl` records, which hold the paths of
    the source files.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in sorted(reader.get_all_records()):
        if (
            name.endswith(".debug_pkl") or name == ".data/serialization_id"
        ):  # the writer makes a serialization_id of its own
            continue
        record = reader.get_record(name)
        if name.startswith("code/"):
            record = sort_constants(record)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


@torch.no_grad()
def largest_difference(archive: bytes, source: DiT, config: DiTConfig) -> float:
    """Runs the exported network beside its float32 source on random input; the difference is relative to the RMS."""
    loaded = torch.jit.load(io.BytesIO(archive), map_location="cpu").eval()
    dtype = next(loaded.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for n in (1, 3):  # a traced constant would show as a fixed batch size
        x = torch.randn(n, config.channels, config.size, config.size, generator=generator)
        t = torch.randint(1000, (n,), generator=generator)
        y = torch.randint(config.num_classes + 1, (n,), generator=generator)
        expected = source(x, t, y)
        got = loaded(x.to(dtype), t, y).float()
        worst = max(worst, ((got - expected).abs().max() / expected.square().mean().sqrt().clamp_min(1e-6)).item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    parser.add_argument("output", type=Path, help="the .pt file to write")
    parser.add_argument("--name", help="name of the network (default: the output's file name)")
    parser.add_argument(
        "--weights",
        choices=["ema", "raw"],
        default="ema",
        help="which of the two sets of weights; raw ones are for --init",
    )
    parser.add_argument(
        "--dtype", choices=sorted(TOLERANCE), default="float16", help="stored precision (default: %(default)s)"
    )
    parser.add_argument(
        "--guidance-scale", type=float, default=2.0, help="the default a sampler should use (default: %(default)s)"
    )
    parser.add_argument(
        "--training-data", default=TRAINING_DATA, help="what the network was trained on (default: %(default)s)"
    )
    parser.add_argument("--license", default="MIT", help="licence of the weights (default: %(default)s)")
    args = parser.parse_args()
    args.name = args.name or args.output.stem

    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    config = DiTConfig(**checkpoint["config"])
    source = DiT(config).eval()
    source.load_state_dict(checkpoint[args.weights])
    stored = DiT(config).eval()
    stored.load_state_dict(checkpoint[args.weights])
    stored.to(getattr(torch, args.dtype))

    buffer = io.BytesIO()
    # Not frozen: the parameter names must survive, for loaders that take the weights and bring their own network.
    torch.jit.save(torch.jit.script(stored), buffer, _extra_files=metadata(config, checkpoint, args))
    archive = canonical(buffer.getvalue())

    difference = largest_difference(archive, source, config)
    tolerance = TOLERANCE[args.dtype]
    if not difference <= tolerance:
        sys.exit(
            f"{args.output}: not written: it differs from its source by {difference:.2e} of the output's RMS, "
            f"more than {tolerance:.0e}"
        )

    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_bytes(archive)
    os.replace(temporary, args.output)
    print(
        f"{args.output}: {len(archive):,} bytes, {args.dtype}, "
        f"{sum(p.numel() for p in source.parameters()):,} parameters, "
        f"{config.flops() / 1e9:.2f} GFLOP a picture, largest difference {difference:.1e} of the output's RMS"
    )


if __name__ == "__main__":
    main()
