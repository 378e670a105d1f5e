"""Writes a trained network as a file that tstitch loads: TorchScript, or compiled.

A TorchScript file is an ordinary archive: `torch.jit.load` reads it too. What a sampler has to know about the network
(shape, prediction type, noise schedule, classes) rides along as extra files, one value per key, all under `tstitch/`.
The same checkpoint always gives the same bytes. For compiled ones see ../export/aot_inductor.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "torch", beside=("numpy", "PIL"))
import torch  # noqa: E402
from aot_inductor import add_form, form_of  # noqa: E402
from common import TOLERANCE, fill, require_place, say, shape_of_x, write  # noqa: E402
from dit import DiT, DiTConfig, random_inputs  # noqa: E402
from options import finite_real  # noqa: E402

TRAINING_DATA = "CIFAR-10 training set (Krizhevsky, 2009), 50,000 pictures of 32x32, mirrored at random"


def metadata(config: DiTConfig, checkpoint: dict, args: argparse.Namespace) -> dict[str, object]:
    """The `tstitch/` keys and their values."""
    schedule = checkpoint["noise_schedule"]
    return {
        "format": 1,
        "name": args.name,
        **shape_of_x(config.channels, config.size, config.size),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    parser.add_argument("output", type=Path, help="the .pt or .pt2 file to write")
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
        "--guidance-scale", type=finite_real, default=2.0, help="the default a sampler should use (default: %(default)s)"
    )
    parser.add_argument(
        "--training-data", default=TRAINING_DATA, help="what the network was trained on (default: %(default)s)"
    )
    parser.add_argument("--license", default="MIT", help="licence of the weights (default: %(default)s)")
    add_form(parser, parts=True)
    args = parser.parse_args()
    require_place(args.output, args.checkpoint)
    form = form_of(args)
    args.name = args.name or args.output.stem

    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    config = DiTConfig(**checkpoint["config"])
    network = DiT(config)
    fill(network, checkpoint[args.weights], args.checkpoint)
    say(f"{config.flops() / 1e9:.2f} GFLOP a picture")
    write(args.output, network, metadata(config, checkpoint, args), random_inputs(config), args.dtype, form=form)


if __name__ == "__main__":
    main()
