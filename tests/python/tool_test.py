"""Python draws what tstitch_sample draws, to the bit: tool_test.py TSTITCH_SAMPLE MODELS SCRATCH

Of the bundled pair, over samplers, guidance, forecasts, ratios, profiles and presets.
"""

import itertools
import subprocess
import sys
from pathlib import Path

from harness import check, equal, main, refuses, require, torch, tstitch

require("numpy")
import numpy  # noqa: E402

tool, models, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
scratch.mkdir(parents=True, exist_ok=True)
paths = [str(models / "cifar10_dit_small.pt"), str(models / "cifar10_dit_large.pt")]
pair = tstitch.load_networks(paths, device="cpu")


def drawn(*arguments):
    file = scratch / "latents.npy"
    file.unlink(missing_ok=True)
    run = subprocess.run(
        [tool, "--device", "cpu", "--quiet", "--latents", str(file), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    check(run.returncode == 0, f"{arguments}: {run.stderr}")
    return torch.from_numpy(numpy.load(file))


def compare(arguments, networks=pair, **options):
    equal(tstitch.sample(networks, **options).images, drawn(*arguments), f"{arguments}")


def test_what_the_file_recommends():
    """Without options each class; profile, steps and guidance of the last file."""
    compare(["--class", "cat"], labels="cat")
    samples = tstitch.sample(pair, steps=2)
    equal(samples.images, drawn("--steps", 2), "steps alone")
    check(samples.classes[3] == "cat" and samples.labels == list(range(10)), samples.classes)


def test_samplers():
    for name in tstitch.samplers():
        common = ["--sampler", name, "--steps", 3, "--class", "cat", "--class", 7, "--seed", 3, "--guidance", 2]
        compare(common, sampler=name, steps=3, labels=["cat", 7], seeds=3, guidance=2)


def test_ratio_guidance_forecasts():
    for ratio, guidance, (forecast, of_guidance) in itertools.product(
        (0, 0.3, 1), (1, 2.5), (("none", "none"), ("every:2", "none"), ("every:2", "every:2,1,1"))
    ):
        if guidance == 1 and of_guidance != "none":
            continue
        compare(
            ["--ratio", ratio, "--guidance", guidance, "--forecast", forecast, "--forecast-guidance", of_guidance, "--steps", 7,
             "--class", "ship", "--sampler", "dpm-solver++"],
            ratio=ratio, guidance=tstitch.Guidance(guidance, forecast=of_guidance), forecast=forecast, steps=7, labels="ship",
            sampler="dpm-solver++",
        )  # fmt: skip


def test_options_of_samplers():
    compare(["--sampler", "dpm-solver++", "--order", 3, "--eta", 0.5, "--steps", 6, "--class", 1],
            sampler="dpm-solver++", order=3, eta=0.5, steps=6, labels=1)  # fmt: skip
    compare(["--sampler", "ddim", "--eta", 1, "--steps", 4, "--class", 1, "--guidance", "1.5,3", "--guidance-interval", "0.1:0.9"],
            sampler="ddim", eta=1, steps=4, labels=[1], guidance=tstitch.Guidance([1.5, 3], begin=0.1, end=0.9))  # fmt: skip


def test_spacings():
    for name in ("leading", "trailing", "karras", "quadratic", "beta", "logsnr"):
        compare(["--spacing", name, "--steps", 4, "--class", 2], spacing=name, steps=4, labels=2)
    compare(["--timesteps", "900,500,20", "--class", 2], timesteps=[900, 500, 20], labels=2)
    compare(["--sigmas", "80,5,0.5,0", "--class", 2], sigmas=[80, 5, 0.5, 0], labels=2)


def test_routings():
    for name in (
        "large-first",
        "both-ends",
        "interleaved",
        "dit",
        "stable-diffusion",
        "latent-diffusion",
        "latent-consistency",
    ):
        compare(["--routing", name, "--ratio", 0.5, "--steps", 5, "--class", 2, "--sampler", "ddim"],
                routing=name, ratio=0.5, steps=5, labels=2, sampler="ddim")  # fmt: skip
    for bounds in ("timestep:600", "logsnr:-2"):
        compare(["--routing", bounds, "--steps", 5, "--class", 2], routing=bounds, steps=5, labels=2)
    three = [*pair, pair[1]]
    arguments = [each for path in (*paths, paths[1]) for each in ("--model", path)]
    compare(
        [*arguments, "--fractions", "0.4,0.4,0.2", "--steps", 5, "--class", 2],
        three,
        fractions=[0.4, 0.4, 0.2],
        steps=5,
        labels=2,
    )


def test_profiles():
    for name in tstitch.profiles():
        if name == "diffusers-flow-euler":  # of other networks
            refuses(ValueError, "is for flow matching, got linear", tstitch.sample, pair, profile=name, steps=5, labels=4)
            continue
        compare(["--profile", name, "--steps", 5, "--class", 4], profile=name, steps=5, labels=4)


def test_presets():
    for name in tstitch.presets():
        compare(["--preset", name, "--class", 4], preset=name, labels=4)


def test_batches():
    """Noise is by seed, and batches are 16 on the CPU as the tool's."""
    compare(["--steps", 2, "--count", 18, "--class", "dog"], steps=2, count=18, labels="dog")
    compare(["--steps", 2, "--count", 5, "--class", "dog", "--batch", 3, "--pad-batches"],
            steps=2, count=5, labels="dog", batch_size=3, pad_batches=True)  # fmt: skip


def test_torchscript_and_modules():
    """A file run by TorchScript, the same file as a module of Python (its weights are in 16 bits), and in turn with a file."""
    options = dict(
        steps=4, labels=["cat", "ship"], seeds=[5, 9], guidance=2.0, sampler="dpm-solver++", shape=(3, 32, 32)
    )
    files = tstitch.sample(paths, device="cpu", backend="torchscript", **options).images
    known = dict(noise_schedule="linear", num_classes=10, null_class=10, decoding="pixels", learned_variance=True)
    classes = dict(class_names=pair[0].class_names)
    modules = [tstitch.Network(torch.jit.load(path).eval().float(), **known, **classes) for path in paths]
    equal(tstitch.sample(modules, **options).images, files, "modules")
    equal(
        tstitch.sample([paths[0], modules[1]], device="cpu", backend="torchscript", **options).images,
        files,
        "file and module",
    )
    plain = [torch.jit.load(path).eval().float() for path in paths]
    equal(tstitch.sample(plain, **known, **classes, **options).images, files, "plain modules")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.modules[__name__])
