"""Python draws what tstitch_sample draws, to the bit: tool_test.py TSTITCH_SAMPLE MODELS SCRATCH

Of the bundled pair, over samplers, guidance, forecasts, ratios, profiles, presets, budgets and inversion, of latents with
their decoder and encoder, and of pipelines.
"""

import concurrent.futures
import itertools
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

from harness import Decodes, Encodes, Latents, check, equal, has, main, refuses, require, save_module, save_pipeline, torch, tstitch

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
        if name.startswith("diffusers-flow-"):  # of other networks
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


def test_inversion():
    """The noise of a picture: what the tool draws from it, over samplers, routings and numbers of steps."""
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    numpy.save(scratch / "image.npy", image.numpy())
    levels = (image[0].movedim(0, -1) * 127.5 + 128).to(torch.uint8).numpy()
    files, given = ["image.npy"], [image]
    if has("PIL"):
        from PIL import Image

        Image.fromarray(levels).save(scratch / "image.png")
        files, given = [*files, "image.png"], [*given, Image.fromarray(levels)]
    ways = [dict(sampler="ddim"), dict(sampler="dpm-solver++"), dict(profile="diffusers-ddim"),
            dict(sampler="heun", spacing="trailing", forecast="every:2")]  # fmt: skip
    for file, picture, (ratio, steps), way in [
        *((files[0], given[0], *each) for each in itertools.product(((0, 3), (0.5, 4)), ways)),
        *((file, picture, (0.3, 4), ways[0]) for file, picture in zip(files, given)),
        (files[0], given[0], (0.4, None), dict(preset="fastest")),
    ]:
        way = {**way, "steps": steps}
        flags = [word for name, value in {**way, "ratio": ratio}.items() if value is not None for word in (f"--{name}", value)]
        noise = tstitch.invert(pair, picture, ratio=ratio, **way)
        drawing = dict(ratio=ratio, labels=4, guidance=1.5, initial_noise=noise, **way)
        compare([*flags, "--invert", scratch / file, "--class", 4, "--guidance", 1.5], **drawing)
        check(not noise.equal(image) and noise.shape == image.shape, f"{noise.shape}")


def test_pipelines():
    """A folder draws from a prompt what the tool draws, whatever is asked for in its stead."""
    folder = save_pipeline(scratch / "pipeline")
    pipeline = tstitch.load_pipeline(folder, device="cpu")
    check(pipeline.name == "tiny" and [each.name for each in pipeline.networks] == ["small", "large"], repr(pipeline))
    check(pipeline.stated["steps"] == 5 and pipeline.stated["license"] == "CC0", f"{pipeline.stated}")
    seen = []
    for said, asked in (
        ([], {}),
        (["--negative", "bad"], dict(negative_prompt="bad")),
        (["--steps", 3, "--guidance", "4", "--seed", 7], dict(steps=3, guidance_scale=4, seeds=7)),
        (["--ratio", 1, "--guidance", "2,1.5"], dict(ratio=1.0, guidance_scale=[2, 1.5])),
        (["--ratio", 0], dict(ratio=0)),
        (["--size", "32x20"], dict(height=32, width=20)),
        (["--profile", "diffusers-dpmpp", "--steps", 4], dict(profile="diffusers-dpmpp", steps=4)),
    ):
        samples = pipeline("a fox in the snow", **asked)
        equal(samples.images, drawn("--pipeline", folder, "--prompt", "a fox in the snow", *said), f"{said}")
        equal(samples.pictures, pipeline.decoder(samples.images), f"{said}")
        check(not any(other.shape == samples.images.shape and torch.equal(other, samples.images) for other in seen), f"{said}")
        seen.append(samples.images)
    samples = pipeline("a fox in the snow", height=32, width=20)
    check(list(samples.pictures.shape) == [1, 3, 32, 20] and samples.prompts == ["a fox in the snow"], repr(samples))
    expected = {"pipeline": "tiny", "networks": ["small", "large"], "steps": 5, "guidance": [2.5], "ratio": 0.4, "license": "CC0",
                "negative_prompt": "blurry", "shape": [4, 16, 10]}  # fmt: skip
    check({key: samples.metadata[key] for key in expected} == expected, f"{samples.metadata}")

    # Several prompts, and several pictures of each; by seeds in a list, too.
    two = pipeline(["a fox", "in the snow"], count=2, seeds=5)
    check(two.prompts == ["a fox", "in the snow"] * 2 and two.seeds == [5, 6, 7, 8], f"{two.prompts} {two.seeds}")
    for i in range(4):
        equal(pipeline(two.prompts[i], seeds=5 + i).images, two.images[i : i + 1], f"picture {i}")
    equal(pipeline(("a fox", "in the snow"), count=2, seeds=[8, 6, 7, 5]).images[3:], pipeline("in the snow", seeds=[5]).images, "seeds")
    if has("PIL"):
        from PIL import Image

        drawn("--pipeline", folder, "--prompt", "a fox", "--output", scratch / "foxes")
        files = sorted((scratch / "foxes").glob("*.png"))
        check(len(files) == 1, f"{files}")
        check((numpy.asarray(Image.open(files[0])) == pipeline("a fox").numpy()[0]).all(), "the picture in the tool's file")

    # Loaded otherwise, and by several threads: the same.
    expected = pipeline("a fox").images
    for how in (dict(keep_text_encoders=False), dict(prompt_cache=scratch / "cache"), dict(prompt_cache=scratch / "cache")):
        equal(tstitch.load_pipeline(folder, device="cpu", **how)("a fox").images, expected, f"{how}")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: pipeline("a fox").images, range(8)):
            equal(made, expected, "threads")
    reports = []
    stopped = pipeline("a fox", callback=lambda report: reports.append(report.done) or report.done < 2)
    check(not stopped.finished and reports == [1, 2], f"{reports} {stopped!r}")

    # Of classes, without texts and decoder.
    classes = scratch / "classes"
    classes.mkdir(exist_ok=True)
    for path in paths:
        shutil.copy(path, classes)
    (classes / "pipeline.txt").write_text(
        "tstitch pipeline 1\nname classes\nnetwork cifar10_dit_small.pt\nnetwork cifar10_dit_large.pt\nprofile dit-ddim\nsteps 3\n"
    )
    of_classes = tstitch.load_pipeline(classes, device="cpu")
    samples = of_classes(labels="cat", seeds=2)
    equal(samples.images, drawn("--pipeline", classes, "--class", "cat", "--seed", 2), "classes")
    check(samples.classes == ["cat"] and samples.decoder is None and samples.prompts == [], repr(samples))

    for kind, pattern, call, asked in [
        (ValueError, "prompts must be at least one, got none", pipeline, {}),
        (ValueError, "prompts are for pipelines with text encoders, got 'a fox'", of_classes, dict(prompt="a fox")),
        (ValueError, "prompt: must be a str or a list of at least one, got an empty list", pipeline, dict(prompt=[])),
        (TypeError, r"prompt\[1\]: must be a str, got 3", pipeline, dict(prompt=["a", 3])),
        (TypeError, "prompt: must be a list, got 3", pipeline, dict(prompt=3)),
        (ValueError, "prompt: must be UTF-8", pipeline, dict(prompt="\udcff")),
        (TypeError, "negative_prompt: must be a str, got 1", pipeline, dict(prompt="a", negative_prompt=1)),
        (ValueError, "steps: must be at least 1, got 0", pipeline, dict(prompt="a", steps=0)),
        (TypeError, "steps: must be an int, got 2.5", pipeline, dict(prompt="a", steps=2.5)),
        (ValueError, "ratio must be in \\[0, 1\\], got 1.5", pipeline, dict(prompt="a", ratio=1.5)),
        (ValueError, "ratio: must be a finite number, got nan", pipeline, dict(prompt="a", ratio=float("nan"))),
        (ValueError, "guidance_scale: must be one, or one for each of the 2 networks, got 3", pipeline,
         dict(prompt="a", guidance_scale=[1, 2, 3])),
        (ValueError, "profile: must be one of recommended, .*, got 'theirs'", pipeline, dict(prompt="a", profile="theirs")),
        (ValueError, "height and width must be multiples of 2, got 31 and 0", pipeline, dict(prompt="a", height=31)),
        (ValueError, "height: must be at least 1, got 0", pipeline, dict(prompt="a", height=0)),
        (ValueError, "frames are for networks whose x is a video", pipeline, dict(prompt="a", frames=5)),
        (ValueError, "seeds: must be an int, or one for each of the 2 pictures, got 3", pipeline, dict(prompt=["a", "b"], seeds=[1, 2, 3])),
        (ValueError, "seeds: must be at least 0, got -1", pipeline, dict(prompt="a", seeds=-1)),
        (ValueError, "count: must be at least 1, got 0", pipeline, dict(prompt="a", count=0)),
        (ValueError, "labels: are for networks with classes, got 3", pipeline, dict(prompt="a", labels=3)),
        (ValueError, "labels: must be one of airplane", of_classes, dict(labels="fox")),
        (TypeError, "callback: must be callable, got 3", pipeline, dict(prompt="a", callback=3)),
    ]:  # fmt: skip
        refuses(kind, pattern, call, **asked)
    refuses(RuntimeError, "pipeline.txt", tstitch.load_pipeline, scratch / "absent", device="cpu")
    refuses(ValueError, "backend: must be one of auto", tstitch.load_pipeline, folder, backend="theirs")
    refuses(ValueError, "dtype: must be 'auto'", tstitch.load_pipeline, folder, dtype="int8")
    refuses(ValueError, "overlap: must be below tile, 3, got 3", tstitch.load_pipeline, folder, tile=3, overlap=3)
    (classes / "pipeline.txt").write_text("tstitch pipeline 1\nname classes\nnetwork cifar10_dit_small.pt 0123456789abcdef\n")
    refuses(RuntimeError, "must have the fingerprint", tstitch.load_pipeline, classes, device="cpu")
    (classes / "in_place.txt").write_text("tstitch network 1\nweights a.safetensors\nname a\n")
    (classes / "pipeline.txt").write_text("tstitch pipeline 1\nname classes\nnetwork in_place.txt\n")
    refuses(RuntimeError, "a description of a network, whose weights lie elsewhere", tstitch.load_pipeline, classes, device="cpu")


def test_decoders():
    """Pictures of latents: whole and in tiles, grey and of colour, the levels of the tool's files."""
    if not has("PIL"):
        return
    from PIL import Image

    network = save_module(scratch, "latents", Latents(), latent_scale=0.5, latent_shift=0.25)
    scale = dict(latent_channels=4, upsampling=2, latent_scale=0.5, latent_shift=0.25)
    for channels, tile in itertools.product((1, 3), (0, 17)):
        file = save_module(scratch, "decodes", Decodes(channels), kind="decoder", picture_channels=channels, **scale)
        folder = scratch / "decoded"
        shutil.rmtree(folder, ignore_errors=True)
        latents = drawn("--model", network, "--steps", 3, "--count", 3, "--decoder", file, "--output", folder, "--sampler", "ddim",
                        *(["--tile", tile] if tile else []))  # fmt: skip
        decoder = tstitch.load_decoder(file, device="cpu", tile=tile)
        check(decoder.upsampling == 2 and decoder.picture_channels == channels and "decodes" in repr(decoder), repr(decoder))
        tiling = dict(decoder=decoder) if tile else dict(decoder=file)
        samples = tstitch.sample([network], device="cpu", steps=3, count=3, sampler="ddim", **tiling)
        equal(samples.images, latents, "latents")
        equal(samples.pictures, decoder(latents), "pictures")
        check(list(samples.pictures.shape) == [3, channels, 48, 40] and samples.numpy().shape == (3, 48, 40, channels), "shapes")
        tools = [numpy.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
        check(len(tools) == 3, f"{tools}")
        for mine, its in zip(samples.pil(), tools):
            check(numpy.array_equal(numpy.asarray(mine), its), f"{channels} channels, tile {tile}")
        sampler = tstitch.Sampler([network], device="cpu", steps=3, sampler="ddim", decoder=decoder)
        equal(sampler.finish(sampler.begin(count=3)).pictures, samples.pictures, "finish")

    # What does not fit is refused before anything is drawn.
    options = dict(device="cpu", steps=2, sampler="ddim")

    def other(name="odd", **values):
        return save_module(scratch, name, Decodes(3), **{**dict(kind="decoder", **scale), **values})

    for pattern, networks, decoder in [
        ("decoder: is for networks that make latents, got 'odd' for 'cifar10-dit-large'", pair, other()),
        ("decoder: must take the 4 channels of 'latents', 'five' takes 5", [network], other("five", latent_channels=5)),
        ("decoder: must have latents of scale 0.5 and shift 0.25 for 'latents', 'scaled' has 0.7 and 0", [network],
         other("scaled", latent_scale=0.7, latent_shift=0)),
    ]:  # fmt: skip
        refuses(ValueError, pattern, tstitch.Sampler, networks, decoder=decoder, **options)
    refuses(TypeError, "decoder: must be a Decoder or the path of one, got 3", tstitch.Sampler, [network], decoder=3, **options)
    refuses(RuntimeError, "absent.pt", tstitch.Sampler, [network], decoder=scratch / "absent.pt", **options)
    refuses(RuntimeError, "kind|decoder", tstitch.load_decoder, network, device="cpu")
    refuses(ValueError, "overlap: must be below tile, 3, got 3", tstitch.load_decoder, other(), tile=3, overlap=3)
    refuses(ValueError, "tile: must be at least 0, got -1", tstitch.load_decoder, other(), tile=-1)
    refuses(ValueError, "dtype: must be 'auto'", tstitch.load_decoder, other(), dtype="int8")
    refuses(ValueError, "decoder=... for networks that make latents", tstitch.sample([network], **options).pil)
    one, tiny = other("one", latent_scale=1, latent_shift=0), other("tiny", latents="scaled", latent_scale=1, latent_shift=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for decoder in (one, tiny):
            tstitch.Sampler([network], decoder=decoder, **options)
    check(len(said) == 1 and "'one' has latents of scale 1" in str(said[0].message), f"{said}")


class DecodesVideos(torch.nn.Module):
    """A decoder of 4 channels to twice the size, of F frames to 2 (F - 1) + 1."""

    def forward(self, x):
        y = x[:, :3].repeat_interleave(2, dim=2)[:, :, 1:]
        return y.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4).tanh()


def test_videos():
    """Videos of latents with a scale and a shift for each channel: the frames of the tool's files."""
    if not has("PIL"):
        return
    from PIL import Image, ImageSequence

    def lines(*numbers):
        return "\n".join(map(str, numbers))

    scale, shift = (0.5, 1, 2, 4), (0.25, 0, -1, 0.5)
    latents = dict(latent_scale=lines(*scale), latent_shift=lines(*shift))
    of_network = dict(kind="network", input_shape="4 3 6 5", prediction="epsilon", timestep_type="int64", noise_schedule="linear",
                      num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)  # fmt: skip
    network = save_module(scratch, "videos", Latents(), **of_network, **latents)
    of_decoder = dict(kind="decoder", latent_channels=4, upsampling=2, temporal_upsampling=2)
    file = save_module(scratch, "decodes_videos", DecodesVideos(), **of_decoder, **latents)
    info = tstitch._core.load_network_info(str(network))
    check((info.latent_scale, info.latent_shift) == (list(map(float, scale)), list(map(float, shift))), "scale and shift")
    info.latent_scale, info.latent_shift = 3, [1, 2, 3, 4]
    check((info.latent_scale, info.latent_shift) == (3, [1, 2, 3, 4]), "as they are set")

    folder = scratch / "films"
    shutil.rmtree(folder, ignore_errors=True)
    made = drawn("--model", network, "--steps", 3, "--count", 2, "--decoder", file, "--output", folder, "--sampler", "ddim",
                 "--video", "apng", "--frames-per-second", 20)  # fmt: skip
    decoder = tstitch.load_decoder(file, device="cpu")
    check(decoder.temporal_upsampling == 2 and decoder.latent_scale == list(scale), repr(decoder))
    samples = tstitch.sample([network], device="cpu", steps=3, count=2, sampler="ddim", decoder=decoder)
    equal(samples.images, made, "latents")
    check(list(samples.pictures.shape) == [2, 3, 5, 12, 10] and samples.numpy().shape == (2, 5, 12, 10, 3), "shapes")
    expected = made / torch.tensor(scale).view(4, 1, 1, 1) + torch.tensor(shift).view(4, 1, 1, 1)
    check((samples.pictures - DecodesVideos()(expected)).abs().max() < 1e-6, "decoded")
    files = sorted(folder.glob("*.png"))
    check(len(files) == 2, f"{files}")
    for mine, path in zip(samples.pil(), files):
        frames = [numpy.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))]
        check(len(mine) == len(frames) == 5, f"{len(frames)} frames")
        check(all(numpy.array_equal(numpy.asarray(a), b) for a, b in zip(mine, frames)), "the frames of the file")

    options = dict(device="cpu", steps=2, sampler="ddim")
    pictures = save_module(scratch, "latents", Latents(), latent_scale=0.5)
    of_pictures = save_module(scratch, "still", Decodes(3), kind="decoder", latent_channels=4, upsampling=2, **latents)
    another = save_module(scratch, "another", DecodesVideos(), **of_decoder, latent_scale=lines(0.5, 1, 2, 3), latent_shift=latents["latent_shift"])
    for pattern, of, given in [
        ("decoder: must be of videos for 'videos', whose x is .4, 3, 6, 5., 'still' is not", network, of_pictures),
        ("decoder: must be of pictures for 'latents', whose x is .4, 24, 20., 'decodes_videos' is not", pictures, file),
        ("must have latents of scale 4 and shift 0.5 in channel 3 for 'videos', 'another' has 3 and 0.5", network, another),
    ]:
        refuses(ValueError, pattern, tstitch.Sampler, [of], decoder=given, **options)


def test_encoders():
    """An encoder's latents are what initial_image takes: the picture that the tool encodes."""
    if not has("PIL"):
        return
    from PIL import Image

    network = save_module(scratch, "latents", Latents(), latent_scale=0.5, latent_shift=0.25)
    file = save_module(scratch, "encodes", Encodes(), kind="encoder", latent_channels=4, upsampling=2, latent_scale=0.5, latent_shift=0.25)
    picture = Image.fromarray((torch.rand(48, 40, 3) * 255).to(torch.uint8).numpy())
    picture.save(scratch / "picture.png")
    encoder = tstitch.load_encoder(file, device="cpu")
    latents = encoder(picture)
    check(list(latents.shape) == [1, 4, 24, 20] and encoder.upsampling == 2, f"{latents.shape}")
    decoder = save_module(scratch, "decodes", Decodes(3), kind="decoder", latent_channels=4, upsampling=2, latent_scale=0.5, latent_shift=0.25)
    its = drawn("--model", network, "--steps", 4, "--sampler", "ddim", "--init-image", scratch / "picture.png", "--strength", 0.5,
                "--encoder", file, "--decoder", decoder)  # fmt: skip
    options = dict(device="cpu", steps=4, sampler="ddim", initial_image=latents, strength=0.5)
    equal(tstitch.sample([network], **options).images, its, "an encoded picture")
    refuses(ValueError, "multiples of 2", encoder, torch.zeros(1, 3, 5, 4))
    refuses(ValueError, "must be in", encoder, torch.full((1, 3, 4, 4), 3.0))
    refuses(RuntimeError, "encoder|kind", tstitch.load_encoder, decoder, device="cpu")


def test_budgets():
    """What fits: with ample budgets the tool's choice and its bits, with none a refusal that says what the cheapest takes."""
    table = models / "cifar10_quality.txt"
    ample = ["--budget", "1000s", "--quality", table, "--times", scratch / "times.txt"]
    for flags, options in [
        (["--steps", 10], dict(steps=10)),
        (["--sampler", "dpm-solver++", "--steps", 10], dict(sampler="dpm-solver++", steps=10)),
        (["--profile", "recommended", "--steps", 10, "--ratio", 0.4], dict(profile="recommended", steps=10, ratio=0.4)),
        (["--steps", 10, "--forecast", "every:2,2", "--forecast-guidance", "none"],
         dict(steps=10, forecast="every:2,2", guidance=tstitch.Guidance(1.5, forecast="none"))),
    ]:  # fmt: skip
        expected = drawn(*ample, *flags, "--class", 3)
        equal(tstitch.sample(pair, budget="1000s", quality=table, labels=3, **options).images, expected, f"{flags}")
    # Without a table as many steps of the large network as fit, here all or none.
    base = tstitch.Sampler(pair, steps=6, sampler="ddim")
    most = base.within("1000s", labels=[1, 2])
    check(most.plan().calls == [0, 6] and most.predicted_seconds > 0 and base.predicted_seconds is None, repr(most))
    equal(most.sample(labels=[1, 2]).images, tstitch.sample(pair, ratio=0, steps=6, sampler="ddim", labels=[1, 2]).images, "ratio 0")
    # Networks whose time is known: of 6 steps no more than 4 of 20 ms fit into 100 ms, whatever else is done.
    def sleeping(seconds):
        return lambda x, t: (time.sleep(seconds), x * 0.5)[1]

    for waits in ((0, 0.02), (0, 0.01, 0.02)):
        options = dict(steps=6, sampler="ddim", noise_schedule="linear")
        sleepy = [sleeping(each) for each in waits]
        begun = dict(fractions=[0.5, 0.3, 0.2]) if len(waits) > 2 else {}
        chosen = tstitch.Sampler(sleepy, **options, **begun).within("100ms", shape=(3, 4, 4))
        calls = chosen.plan().calls
        slept = sum(each * count for each, count in zip(waits, calls))
        check(1 <= calls[-1] <= 4 and sum(calls) == 6 and len(calls) == len(waits), f"{waits}: {calls}")
        check(slept <= chosen.predicted_seconds <= 0.1, f"{waits}: {calls}, {chosen.predicted_seconds}")
        drawn_so = tstitch.sample(sleepy, budget="100ms", shape=(3, 4, 4), **options)
        check(1 <= drawn_so.plan.calls[-1] <= 4 and len(drawn_so) == 1, f"{drawn_so}")
    refuses(ValueError, r"budget: must be what the cheapest way takes, \S+ ms for 2 pictures, or more, got '0.001ms'", base.within,
            "0.001ms", labels=[1, 2])  # fmt: skip
    refuses(ValueError, r"budget: must be at most what the cheapest way reaches, \S+ img/s, got '1e9img/s'", base.within,
            "1e9img/s", labels=[1, 2])  # fmt: skip


def test_odd_budgets():
    table = models / "cifar10_quality.txt"
    refusals = [
        ("budget: must be 80ms or 1.5s", dict(budget="soon")),
        ("budget: must be 80ms or 1.5s", dict(budget="-1s")),
        ("budget: must be 80ms or 1.5s", dict(budget="nans")),
        ("operations are counted by tstitch_sample, got '4TFLOP'", dict(budget="4TFLOP")),
        ("routing 'stitch', got 'both-ends'", dict(budget="1s", routing="both-ends")),
        ("must have something to choose, got ratio 0.5 and no quality table", dict(budget="1s", ratio=0.5)),
        ("fractions: must not be given with budget", dict(budget="1s", fractions=[0.5, 0.5])),
        ("initial_noise: must not be given with budget", dict(budget="1s", initial_noise=torch.zeros(1, 3, 32, 32))),
        ("torch_seed: must not be given with budget", dict(budget="1s", torch_seed=3)),
        ("quality: must come with a budget, got .* alone", dict(quality=table)),
        ("order: must not be given with quality", dict(budget="1s", quality=table, sampler="dpm-solver++", order=3)),
        ("preset: must not be given with quality", dict(budget="1s", quality=table, preset="fast")),
        ("guidance: must be that of the quality table, 1.5, got 3", dict(budget="1s", quality=table, guidance=3)),
        ("must have rows with the options that are given, got none", dict(budget="1s", quality=table, steps=17)),
    ]
    for pattern, options in refusals:
        refuses(ValueError, pattern, tstitch.sample, pair, labels=3, **options)
    refuses(TypeError, "budget: must be a text such as '80ms'", tstitch.sample, pair, budget=0.08)
    refuses(ValueError, "something to choose, got one network", tstitch.sample, pair[:1], budget="1s")
    refuses(ValueError, "must be of cifar10-dit-large, cifar10-dit-small, got one of cifar10-dit-small, cifar10-dit-large",
            tstitch.sample, pair[::-1], budget="1s", quality=table)  # fmt: skip
    (scratch / "broken.txt").write_text(table.read_text()[:300])
    refuses(RuntimeError, "broken.txt", tstitch.sample, pair, budget="1s", quality=scratch / "broken.txt")


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
