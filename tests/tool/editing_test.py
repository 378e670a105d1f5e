"""Pictures that are edited, seeds, and guidance of other kinds: editing_test.py TOOL BUNDLED_MODELS TOOL_MODELS FOLDER

TOOL_MODELS is what tool_models wrote. Exits with 77 where numpy or Pillow is missing.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import numpy as np
    from PIL import Image
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

tool, bundled, models, scratch = (Path(argument).resolve() for argument in sys.argv[1:])
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
from noise import noise  # noqa: E402

shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
os.chdir(scratch)


def run(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(tool), "--device", "cpu", *map(str, words)], capture_output=True, text=True, check=False)


def drawn(*words: object, steps: int = 4, batch: int = 1) -> np.ndarray:
    """x_0 [n, C, H, W]"""
    done = run("--steps", steps, "--batch", batch, "--latents", "x.npy", "--quiet", *words)
    assert done.returncode == 0, (words, done.stderr)
    return np.load("x.npy")


def refusal(*words: object) -> str:
    done = run("--steps", 2, "--latents", "absent.npy", *words)
    assert done.returncode in (1, 2) and done.stdout == "" and not Path("absent.npy").exists(), (words, done)
    return done.stderr


def levels(a: np.ndarray, b: np.ndarray) -> float:
    return 127.5 * np.abs(np.clip(a, -1, 1) - np.clip(b, -1, 1)).max()


# ------------------------------------------------------------------------------------------------ what is begun from

plain = drawn("--class", 3, "--seed", 5)
np.save("noise.npy", noise(5, 0, 0, (3, 32, 32)).astype(np.float32)[None])
assert levels(drawn("--class", 3, "--seed", 99, "--initial-noise", "noise.npy"), plain) < 0.1
# One for each picture, in float64 and in batches.
several = np.stack([noise(seed, 0, 0, (3, 32, 32)) for seed in (5, 6, 7)])
np.save("noises.npy", several)
expected = drawn("--class", 3, "--seed", 5, "--count", 3)
assert levels(drawn("--class", 3, "--count", 3, "--initial-noise", "noises.npy", batch=2), expected) < 0.1

image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
Image.fromarray(image).save("image.png")
known = image.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
np.save("image.npy", known)
half = drawn("--class", 3, "--init-image", "image.png", "--strength", 0.5)
assert np.array_equal(drawn("--class", 3, "--init-image", "image.npy", "--strength", 0.5), half)
assert levels(half, drawn("--class", 3, "--init-image", "image.png", "--strength", 1)) > 20
# The networks that the steps have in the whole run: of 4 steps at ratio 0.5 the last two are the large one's.
run("--class", 3, "--steps", 4, "--ratio", 0.5, "--init-image", "image.png", "--strength", 0.5, "--report", "x.json",
    "--grid", "x.png")  # fmt: skip
report = json.loads(Path("x.json").read_text())
assert report["calls"] == [0, 2] and report["strength"] == 0.5 and report["init_image"] == "image.png", report
assert report["notes"] == ["'cifar10-dit-small' takes none of the 2 steps: its steps are noisier ones, which --strength leaves out"]

# Other kinds of files of the same picture, and larger ones of the same shape.
grey = Image.fromarray(image).convert("L")
for name, picture, same_as in (
    ("rgba.png", Image.fromarray(image).convert("RGBA"), known),
    ("grey.png", grey, np.repeat(np.asarray(grey, np.float32)[None, None] / 127.5 - 1, 3, 1)),
    ("large.png", Image.fromarray(image).resize((96, 96), Image.Resampling.NEAREST), known),
    ("photo.jpg", Image.fromarray(image).resize((320, 320), Image.Resampling.NEAREST), known),
):
    picture.save(name, **({"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}))
    np.save("same.npy", same_as)
    words = ("--class", 3, "--strength", 0.25, "--ratio", 0)
    error = levels(drawn(*words, "--init-image", name), drawn(*words, "--init-image", "same.npy"))
    assert error < (12 if name == "photo.jpg" else 0.1), (name, error)

# ------------------------------------------------------------------------------------------------ what is kept

mask = np.zeros((32, 32), np.uint8)
Image.fromarray(mask).save("black.png")
Image.fromarray(mask + 255).save("white.png")
mask[:, :16] = 255
Image.fromarray(mask).save("left.png")
Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST).save("left_of_64.png")
keep = ("--class", 3, "--seed", 5, "--init-image", "image.png", "--mask")
assert np.array_equal(drawn(*keep, "black.png"), known)
assert levels(drawn(*keep, "white.png"), plain) < 1e-3
left = drawn(*keep, "left.png")
assert np.array_equal(left[..., 16:], known[..., 16:]) and levels(left[..., :16], known[..., :16]) > 20
assert levels(drawn(*keep, "left_of_64.png")[..., 17:], known[..., 17:]) < 1e-3

# ------------------------------------------------------------------------------------------------ inversion

picture = drawn("--class", 7, "--seed", 3, steps=20)
np.save("picture.npy", picture)
back, away = (drawn("--class", 4, "--invert", "picture.npy", "--guidance", scale, steps=20) for scale in (0, 3))
apart = [127.5 * np.sqrt(np.square(x - picture).mean()) for x in (back, away)]
assert apart[0] < 4 and apart[1] > 12, apart  # without a class it comes back

# ------------------------------------------------------------------------------------------------ latents

latent = ("--model", models / "latent.pt", "--condition", models / "two_prompts.pt", "--encoder", models / "encoder.pt")
wanted = drawn(*latent[:4], "--guidance", 1).shape[-1]  # pixels of the latent a side
blocks = np.random.default_rng(1).integers(0, 256, (wanted, wanted, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
Image.fromarray(blocks).save("blocks.png")
Image.fromarray(np.zeros((2 * wanted, 2 * wanted), np.uint8)).save("keep.png")
kept = drawn(*latent, "--guidance", 1, "--init-image", "blocks.png", "--mask", "keep.png")
expected = (blocks[::2, ::2].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1) * 0.5  # the latent scale
assert np.abs(kept[:, :3] - expected).max() < 1e-6, np.abs(kept[:, :3] - expected).max()

# ------------------------------------------------------------------------------------------------ seeds and guidance

each = drawn("--class", 3, "--class", 8, "--seed", "12,5,18446744073709551615", steps=2)
assert each.shape[0] == 6
for i, (label, seed) in enumerate((label, seed) for seed in (12, 5, 2**64 - 1) for label in (3, 8)):
    alone = drawn("--class", label, "--seed", seed, steps=2)
    assert np.array_equal(alone[0], each[i]), (label, seed)

# Between two seeds: first and last are their own pictures, and what lies between begins with noise of the same norm.
words = ("--class", 3, "--class", 8, "--seed", "12,5", "--interpolate", 3, "--animation", "between.png", "--scale", 2)
between = drawn(*words, "--frame-seconds", 0.25, "--grid", "strip.png", steps=2)
assert between.shape[0] == 10
for i, (label, seed) in {0: (3, 12), 1: (8, 12), 8: (3, 5), 9: (8, 5)}.items():
    assert np.array_equal(between[i], drawn("--class", label, "--seed", seed, steps=2)[0]), (label, seed)
a, b = (noise(seed, 0, 0, (3, 32, 32)).ravel() for seed in (12, 5))
angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
middle = (a * np.sin(0.25 * angle) + b * np.sin(0.75 * angle)) / np.sin(angle)
np.save("middle.npy", middle.reshape(1, 3, 32, 32))
assert levels(between[6:7], drawn("--class", 3, "--initial-noise", "middle.npy", steps=2)) < 0.1
with Image.open("between.png") as animation:
    assert animation.n_frames == 5 and animation.info["loop"] == 0 and json.loads(animation.text["parameters"])["interpolate"] == 3
    for i in range(5):
        animation.seek(i)
        shown = np.asarray(animation.convert("RGB"), np.float32)[::2, ::2]  # each pixel twice
        for column in range(2):
            left = shown[:32, 33 * column : 33 * column + 32].transpose(2, 0, 1)
            assert np.abs(np.clip(127.5 * between[2 * i + column] + 127.5, 0, 255) - left).max() < 0.51, (i, column)
        assert animation.info["duration"] == 250

# ------------------------------------------------------------------------------------------------ variations


def report_of(*words: object) -> dict:
    done = run("--quiet", "--report", "r.json", *words)
    assert done.returncode == 0, (words, done.stderr)
    return json.loads(Path("r.json").read_text())


def slerp(left: np.ndarray, right: np.ndarray, share: float) -> np.ndarray:
    between = np.arccos((left * right).sum() / np.linalg.norm(left) / np.linalg.norm(right))
    return (left * np.sin((1 - share) * between) + right * np.sin(share * between)) / np.sin(between)


def of_seed(seed: int) -> np.ndarray:
    return noise(seed, 0, 0, (3, 32, 32))


# At 0 each is the picture itself, at 1 that of the other seed, bit for bit: whatever else is asked for.
small = ("--model", bundled / "cifar10_dit_small.pt")  # the quicker one, where it does not matter which
np.save("own.npy", of_seed(77).astype(np.float32)[None])
given = ("--init-image", "image.png", "--strength", 0.5)
for more, steps in (
    ((), 2), (("--guidance", 3), 2), (("--sampler", "euler-ancestral"), 3), (("--profile", "recommended"), 3), (given, 4),
    ((*given, "--mask", "left.png"), 4), (("--forecast", "every:2,1,2", "--forecast-guidance", "every:2", "--ratio", 0), 7),
):  # fmt: skip
    words = ("--class", 3, *(more if "--ratio" in more else (*small, *more)))
    plain = dict(zip((5, 6, 7), drawn(*words, "--seed", "5,6,7", steps=steps), strict=True))
    for strength, seeds in ((0, (5, 5, 5)), (1, (5, 6, 7))):
        varied = drawn(*words, "--seed", 5, "--variations", 2, "--variation-strength", strength, steps=steps)
        assert len(varied) == 3 and all(np.array_equal(varied[i], plain[s]) for i, s in enumerate(seeds)), (words, strength)
# In between it is what this noise gives, in any batch; and the noise may be given, or of a picture.
for batch, more in ((1, ()), (2, ()), (3, ("--pad-batches",))):
    varied = drawn("--class", 3, "--class", 8, "--seed", "5,9", "--variations", 2, *small, *more, batch=batch, steps=2)
    assert len(varied) == 12  # of a seed both classes, then of its variation
    for i, (seed, k, label) in enumerate((s, k, c) for s in (5, 9) for k in range(3) for c in (3, 8)):
        np.save("mixed.npy", (slerp(of_seed(seed), of_seed(seed + k), 0.2) if k else of_seed(seed))[None])
        if i not in (0, 2, 11) and (batch > 1 or i not in (3, 7)):
            continue
        error = levels(varied[i : i + 1], drawn("--class", label, *small, "--initial-noise", "mixed.npy", steps=2))
        assert error < 0.2, (batch, i, error)
kept_noise = drawn("--class", 3, *small, "--initial-noise", "own.npy", "--seed", 5, "--variations", 1, "--variation-strength", 0.5)
np.save("mixed.npy", slerp(of_seed(77), of_seed(6), 0.5)[None])
assert levels(kept_noise[1:], drawn("--class", 3, *small, "--initial-noise", "mixed.npy")) < 0.2
inverted = ("--class", 7, *small, "--invert", "picture.npy", "--seed", 5)
varied = drawn(*inverted, "--variations", 1, "--variation-strength", 0)
assert np.array_equal(varied[0], drawn(*inverted)[0]) and np.array_equal(varied[0], varied[1])
varied = drawn(*inverted, "--variations", 1, "--variation-strength", 1)
assert np.array_equal(varied[1], drawn("--class", 7, *small, "--seed", 6)[0])
report = report_of("--class", 7, "--seed", "3,9", "--variations", 2, "--steps", 1, "--output", "varied", "--grid", "varied.png")
assert report["variations"] == 2 and report["variation_strength"] == 0.2 and report["images"] == 6, report
assert [(p["seed"], p["variation"]) for p in report["pictures"]] == [(3, 0), (3, 1), (3, 2), (9, 0), (9, 1), (9, 2)]
assert Path("varied/000004-horse-seed9-variation1.png").exists() and Path("varied/000003-horse-seed9.png").exists()
with Image.open("varied.png") as grid:
    assert grid.size == (3 * (3 * 32 + 2) - 2, 2 * (3 * 32 + 2) - 2), grid.size  # a seed a row
for words in (("--variations", 2), ("--interpolate", 1, "--class", 8)):
    many = ("--class", 3, "--seed", 5, "--steps", 2, *words)
    assert run(*many, "--sweep", "0:1:0.5", "--output", "swept", "--quiet").returncode == 0
    assert run(*many, "--ratio", 0.5, "--output", "alone", "--quiet").returncode == 0
    names = sorted(path.name for path in Path("alone").iterdir())
    assert len(names) == 3 and names == sorted(path.name for path in Path("swept/ratio-0.5").iterdir()), names
    for name in names:
        swept, alone = (np.asarray(Image.open(f"{folder}/{name}"), int) for folder in ("swept/ratio-0.5", "alone"))
        assert np.abs(swept - alone).max() <= 1, name
    shutil.rmtree("alone")
    shutil.rmtree("swept")

# ------------------------------------------------------------------------------------------------ from class to class

for more, steps in (
    ((), 2), (("--guidance", 3), 2), (("--guidance", 2, "--guidance-network", 0), 2), (("--sampler", "euler-ancestral"), 3),
    (("--backend", "torchscript", "--guidance", 3), 2), (("--invert", "picture.npy"), 2), (("--initial-noise", "own.npy"), 2),
    ((*given, "--mask", "left.png"), 4), (("--forecast", "every:2,1,2", "--forecast-guidance", "every:2", "--ratio", 0), 7),
):  # fmt: skip
    pair = "--ratio" in more or "--guidance-network" in more
    words = ("--seed", 5, *(more if pair else (*small, *more)))
    way = drawn("--class", "cat,dog", "--interpolate", 3, *words, steps=steps)
    back = drawn("--class", 5, "--class", "cat", "--interpolate", 3, *words, steps=steps)
    assert len(way) == 5
    for i, label in ((0, 3), (4, 5)):  # in batches of one, what is drawn of one class is drawn as it is without the others
        assert np.array_equal(way[i], drawn("--class", label, *words, steps=steps)[0]), (words, label)
    for i in range(5):
        assert levels(way[i], back[4 - i]) < 0.5, (words, i, levels(way[i], back[4 - i]))
    steps_between = [levels(way[i], way[i + 1]) for i in range(4)]
    assert min(steps_between) > 0.3 * levels(way[0], way[4]) / 4, (words, steps_between)
# Both engines, and any batch.
words = ("--class", "cat,dog,ship", "--interpolate", 2, "--seed", 5, "--count", 2, "--guidance", 2)
way = drawn(*words, steps=3)
assert len(way) == 14
for i, (label, seed) in {0: (3, 5), 1: (3, 6), 6: (5, 5), 7: (5, 6), 13: (8, 6)}.items():
    assert np.array_equal(way[i], drawn("--class", label, "--seed", seed, "--guidance", 2, steps=3)[0]), i
for more, batch in ((("--backend", "torchscript"), 5), (("--pad-batches",), 4)):
    assert levels(drawn(*words, *more, steps=3, batch=batch), way) < 0.5, more
report = report_of(*words, "--steps", 1, "--output", "way", "--animation", "way.png", "--grid", "grid.png", "--scale", 1)
assert report["interpolated"] == "classes" and report["images"] == 14 and "a row more in each" in report["notes"][0], report
assert report["pictures"][3] == {"seed": 6, "class": "cat", "to_class": "dog", "share": 1 / 3,
                                 "file": "000003-cat-to-dog-0.33-seed6.png"}, report["pictures"][3]  # fmt: skip
with Image.open("way.png") as animation, Image.open("grid.png") as grid:
    assert animation.n_frames == 7 and animation.size == (66, 32) and grid.size == (66, 7 * 34 - 2)
said = run(*words, "--steps", 1, "--grid", "x.png")
assert "drawing 14 pictures from 'cat' to 'dog' to 'ship', " in said.stdout, said.stdout
for words, size in ((("--class", "cat,dog"), (3 * 34 - 2, 32)), (("--class", "cat,dog,ship"), (2 * 34 - 2, 3 * 34 - 2)),
                    (("--class", 3, "--seed", "1,2"), (3 * 34 - 2, 32))):  # fmt: skip
    assert run(*words, *small, "--interpolate", 1, "--steps", 1, "--grid", "x.png", "--scale", 1).returncode == 0
    with Image.open("x.png") as grid:  # one way is one row
        assert grid.size == size, (words, grid.size)
# Prompts go on a straight line, and this network is one of them: so is what it draws.
latent = ("--model", models / "latent.pt", "--condition", models / "two_prompts.pt")
for more in ((), ("--guidance", 1), ("--count", 2)):
    columns = 2 if "--count" in more else 1
    way = drawn(*latent, "--interpolate", 3, "--seed", 4, *more, batch=3)
    assert len(way) == 5 * columns
    ends = drawn(*latent, "--seed", "4,5", *(more if columns == 1 else ()))  # of a seed both prompts
    for column in range(columns):
        for i in range(5):
            expected = (1 - i / 4) * ends[2 * column] + i / 4 * ends[2 * column + 1]
            assert np.abs(way[i * columns + column] - expected).max() < 1e-4, (more, i, column)
report = report_of("--model", models / "latent.pt", "--condition", models / "named_prompts.pt", "--decoder",
                   models / "decoder.pt", "--interpolate", 1, "--steps", 1, "--output", "prompted")  # fmt: skip
assert report["interpolated"] == "prompts" and report["pictures"][1]["to_prompt"] == 1, report["pictures"]
assert report["pictures"][1]["file"].startswith("000001-prompt0-to-prompt1-0.5-A_fox_in_the_snow"), report["pictures"]

guided = ("--class", 3, "--guidance", 3)
usual = drawn(*guided)
assert np.array_equal(drawn(*guided, "--guidance-rescale", 0), usual)
assert levels(drawn(*guided, "--guidance-projection", 1), usual) < 0.1  # the formula of guidance, in x_0
assert levels(drawn(*guided, "--guidance-rescale", 1), usual) > 0.3
assert levels(drawn(*guided, "--guidance-projection", "0,5,-0.5"), usual) > 0.5
report = drawn(*guided, "--guidance-network", 0, "--report", "guide.json")
assert json.loads(Path("guide.json").read_text())["guidance_network"] == 0 and levels(report, usual) > 1

# ------------------------------------------------------------------------------------------------ what is refused

Path("text.png").write_text("no picture")
Path("text.npy").write_text("no numbers")
Path("cut.png").write_bytes(Path("image.png").read_bytes()[:200])
Image.fromarray(image[:, :16]).save("narrow.png")
np.save("wide.npy", np.zeros((1, 3, 32, 64), np.float32))
np.save("two.npy", np.zeros((2, 3, 32, 32), np.float32))
np.save("nan.npy", np.full((1, 3, 32, 32), np.nan, np.float32))
for words, says in {
    ("--init-image", "nowhere.png"): "--init-image: 'nowhere.png' must be a PNG or JPEG file, got none",
    ("--init-image", "."): "--init-image: '.' must be a PNG or JPEG file, got none",
    ("--init-image", "text.png"): "--init-image: 'text.png' must be a PNG or JPEG file, got 'unknown image type'",
    ("--init-image", "cut.png"): "--init-image: 'cut.png' must be a PNG or JPEG file, got '",
    ("--init-image", "narrow.png"): "--init-image: must be a picture of 32 x 32 or of the same proportions, got one of 16 x 32",
    ("--init-image", "text.npy"): "read_npy: 'text.npy': must be a .npy file, got something else",
    ("--init-image", "wide.npy"): "--init-image: 'wide.npy' must be [1, 3, 32, 32], got [1, 3, 32, 64]",
    ("--init-image", "nan.npy"): "--init-image: 'nan.npy' must have finite numbers, got nan or infinity",
    ("--init-image", "two.npy"): "--init-image: 'two.npy' must be [1, 3, 32, 32], got [2, 3, 32, 32]",
    ("--init-image", "image.png", "--mask", "narrow.png"): "--mask: must be a picture of 32 x 32 or of the same proportions, got one of 16 x 32",
    ("--init-image", "image.png", "--encoder", models / "encoder.pt"): "encoder.pt' must make 3 channels for 'cifar10-dit-large', got 4",
    ("--init-image", "image.png", "--invert", "image.png"): "--in",
    ("--init-image", "image.png", "--strength", 0): "--strength: must be above 0 and at most 1, got 0",
    ("--init-image", "image.png", "--strength", 1.5): "--strength: must be above 0 and at most 1, got 1.5",
    ("--init-image", "image.png", "--strength", "nan"): "--strength: must be a finite number, got 'nan'",
    ("--init-image", "image.png", "--strength", 0.1): "strength must leave at least 1 of 2 steps",
    ("--strength", 0.5): "--strength: must come with --init-image",
    ("--mask", "left.png"): "--mask: must come with --init-image",
    ("--initial-noise", "two.npy", "--count", 3, "--class", 3): "--initial-noise: 'two.npy' must be [1, 3, 32, 32] or [3, 3, 32, 32], got [2, 3, 32, 32]",
    ("--seed", "1,,2"): "--seed: ",
    ("--interpolate", 3): "--interpolate: must have two seeds, two classes that --class names, or two prompts at least, got one seed and no --class",
    ("--interpolate", 3, "--class", "cat"): "two prompts at least, got one of each",
    ("--interpolate", 3, "--class", "cat,,dog"): "--class: must be a number in [0, 9] or one of ",
    ("--interpolate", 3, "--class", "cat,hound"): "got 'hound'",
    ("--interpolate", 3, "--variations", 3, "--seed", "1,2"): "must come without --",
    ("--interpolate", 3, "--class", "cat,dog", "--budget", "1s"): "must come without --",
    ("--interpolate", 3, "--class", "cat,dog", "--seed", 2**64 - 1, "--count", 2): "--seed: must leave room for one seed more a picture",
    ("--variations", 0): "--variations: must be in [1, 10000], got '0'",
    ("--variations", 3, "--count", 3, "--class", 1): "--count: must be as many as the seeds and their variations ask for, 4, or be left out, got 3",
    ("--variations", 3, "--variation-strength", 1.5): "--variation-strength: must be in [0, 1], got '1.5'",
    ("--variations", 3, "--variation-strength", "nan"): "--variation-strength: must be a finite number, got 'nan'",
    ("--variation-strength", 0.5): "--variation-strength: must come with --variations",
    ("--variations", 3, "--seed", 2**64 - 3): "--seed: must leave room for one seed more a variation below 18446744073709551616",
    ("--variations", 3, "--seed", "1,2", "--invert", "image.png"): "--variations: is for one seed where noise is given or of a picture, got 2 seeds",
    ("--variations", 1, "--initial-noise", "two.npy", "--class", 1): "--initial-noise: 'two.npy' must be [1, 3, 32, 32], got [2, 3, 32, 32]",
    ("--interpolate", 0, "--seed", "1,2"): "--interpolate: must be in [1, 10000], got '0'",
    ("--interpolate", 3, "--seed", "1,2", "--initial-noise", "two.npy"): "--initial-noise: is for runs without --interpolate from seed to seed, which has noise of its own, got 2 seeds",
    ("--frame-seconds", 1): "--frame-seconds: must come with --animation",
    ("--animation", "absent.gif"): "--animation: must end in .png, which is what is written, got 'absent.gif'",
    ("--animation", "absent.png", "--frame-seconds", "nan"): "--frame-seconds: must be a finite number, got 'nan'",
    ("--seed", "1,2", "--count", 3): "--count: must be as many as the seeds ask for, 2, or be left out, got 3",
    ("--guidance-rescale", 2): "--guidance-rescale: must be in [0, 1], got '2'",
    ("--guidance-projection", "1,2,3,4"): "--guidance-projection: must be one to three numbers, got 4",
    ("--guidance-projection", "2"): "eta must be in [0, 1], got 2",
    ("--guidance-network", 2): "--guidance-network: must be the number of one of the 2 networks, from 0 on, got 2",
    ("--guidance-network", 0, "--guidance-rescale", 0.5, "--guidance", 2): "rescale",
}.items():  # fmt: skip
    message = refusal(*words)
    assert says in message and message.count("\n") == 1, (words, message)
print("edited, kept, inverted and refused")
