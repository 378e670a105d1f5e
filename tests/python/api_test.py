"""What people write: plans, routing, rules, pictures, labels, arrays, and what is refused: api_test.py MODELS PAGE SCRATCH"""

import ast
import itertools
import os
import re
import shutil
import sys
import types
import typing
import warnings
from pathlib import Path

from harness import Decodes, Encodes, Latents, check, equal, has, main, refuses, save_module, save_pipeline, torch, tstitch

models, page, scratch = (Path(each).resolve() for each in sys.argv[1:4])
torch.manual_seed(0)
paths = [models / "cifar10_dit_small.pt", models / "cifar10_dit_large.pt"]
LINEAR = dict(noise_schedule="linear")
half, third = (lambda x, t: x * 0.5), (lambda x, t: x / 3)


def drawn(networks=(half, third), **options):
    return tstitch.sample(
        list(networks), **{**dict(steps=6, shape=(3, 8, 8), sampler="ddim", **LINEAR), **options}
    ).images


def test_plan():
    plan = tstitch.plan(paths, steps=10, sampler="dpm-solver++", guidance=3)
    check(
        len(plan) == 10
        and plan[0].network == 0
        and plan[-1].network == 1
        and [p.network for p in plan] == plan.networks,
        repr(plan),
    )
    check([p.step.index for p in plan[2:4]] == [2, 3] and plan.calls == [4, 6] and plan.rows == [8, 12], repr(plan))
    check(plan.timesteps[0] == 999 and plan.sampler == "DPMSolver" and plan.spacing == "linspace", repr(plan))
    table = plan.table()
    check(
        len(table) == 10 and table[3]["network"] == 0 and table[0]["guidance"] == 3 and table[9]["log_snr"] > 9,
        f"{table[9]}",
    )
    check("steps: network 0 takes 4, network 1 takes 6" in str(plan), str(plan))
    check(
        repr(plan).startswith("Plan(DPMSolver, linear(1000, 0.0001, 0.02), linspace, 10 steps: network 0 takes 4"),
        repr(plan),
    )
    check(plan == tstitch.plan(paths, steps=10, sampler="dpm-solver++", guidance=3), "equal plans")
    check(plan != tstitch.plan(paths, steps=10, sampler="dpm-solver++", guidance=2) and plan != 3, "other plans")
    refuses(IndexError, "", lambda: plan[10])
    check(len(tstitch.plan(paths, steps=10, strength=0.3)) == 3, "what is left")
    default = tstitch.plan(paths)
    check("UniPC" in default.sampler or default.sampler, "the file's profile")


def test_routing():
    """Stitch, a list, a callable and names give the plans that they say."""

    def networks(**options):
        return tstitch.plan([half, third], steps=10, **LINEAR, **options).networks

    check(networks() == [0] * 4 + [1] * 6 == networks(ratio=0.4) == networks(fractions=[0.4, 0.6]), "a ratio")
    for ratio in (0, 0.25, 0.5, 1):
        check(networks(ratio=ratio).count(0) == round(ratio * 10), f"ratio {ratio}")
    check(
        networks(routing=[1, 0] * 5) == [1, 0] * 5 == networks(routing=lambda step: (step.index + 1) % 2),
        "a list and a callable",
    )
    check(networks(routing=torch.tensor([1, 0] * 5)) == [1, 0] * 5, "a tensor")
    check(networks(routing="both-ends", ratio=0.4) == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0], "both ends")
    check(networks(routing=lambda step: int(step.t < 600)) == networks(routing="timestep:600"), "by timestep")
    check(
        networks(routing=lambda step: int(2 * step.from_level.log_snr_half >= -2)) == networks(routing="logsnr:-2"),
        "by level",
    )
    refuses(ValueError, "ratio: must be in", networks, ratio=1.5)
    refuses(TypeError, "ratio: must be a number, got 'half'", networks, ratio="half")
    refuses(ValueError, "ratio: must not be given with a routing", networks, ratio=0.5, routing=[0] * 10)
    refuses(ValueError, "fractions: must be one for each of the 2", networks, fractions=[1])
    refuses(ValueError, "fractions", networks, fractions=[0.5, 0.4])
    refuses(ValueError, "Table: one entry for each of the 10 steps", networks, routing=[0] * 9)
    refuses(ValueError, r"routing\[3\]: must be at most 1, got 2", networks, routing=[0, 0, 0, 2, 0, 0, 0, 0, 0, 0])
    refuses(ValueError, "must be one of stitch.*, got 'foo'", networks, routing="foo")
    refuses(TypeError, "routing: must return an int, got 0.5", networks, routing=lambda step: 0.5)
    refuses(TypeError, "routing: must return an int, got True", networks, routing=lambda step: True)
    refuses(ValueError, "index of a network at step 0, got -1", networks, routing=lambda step: -1)
    refuses(ZeroDivisionError, "", networks, routing=lambda step: 1 // 0)
    refuses(ValueError, "goes? to network|gives step 0 to network 5", drawn, routing=lambda step: 5)
    refuses(ValueError, "fractions: must be given for more than two", tstitch.plan, [half] * 3, **LINEAR)


def test_rule_in_python_is_ddim():
    """Ten lines of DDIM are the library's DDIM, to rounding; so is Heun's method, which asks twice."""

    def my_ddim(step):
        level, to = step.step.from_level, step.step.to_level
        x_0 = step.predict().x_0
        return to.alpha * x_0 + to.sigma * (step.x - level.alpha * x_0) / level.sigma

    class MyHeun:
        name, history = "my Heun", 0

        @staticmethod
        def evaluations(step):
            return 1 if step.to_level.sigma == 0 else 2

        def __call__(self, step):
            level, to = step.step.from_level, step.step.to_level
            x_0 = step.predict().x_0
            if to.sigma == 0:
                return x_0
            s, s_to = level.sigma / level.alpha, to.sigma / to.alpha
            y = step.x / level.alpha
            slope = (y - x_0) / s
            euler = y + slope * (s_to - s)
            slope_to = (euler - step.denoise(euler * to.alpha, step.step.t_to, to).x_0) / s_to
            return (y + (slope + slope_to) * ((s_to - s) / 2)) * to.alpha

    for mine, name in ((my_ddim, "ddim"), (MyHeun(), "heun")):
        a, b = (drawn(sampler=each, steps=8, decoding="pixels") for each in (mine, name))
        check((a - b).abs().max() < 2e-5, f"{name}: {(a - b).abs().max()}")
    plan = tstitch.plan([half, third], steps=5, sampler=MyHeun(), **LINEAR)
    check(plan.sampler == "my Heun" and plan.calls == [4, 5], repr(plan))

    def two_step(step):
        check(len(step.history) == min(step.step.index, 2), "the history that it asked for")
        return step.x * 0.9 + 0 * step.noise(0) + (step.history[-1].x_0 * 0 if step.history else 0)

    two_step.history = 2
    drawn(sampler=two_step)
    kept = []
    drawn(sampler=lambda step: (kept.append(step), step.x)[1])
    refuses(RuntimeError, "must be used while the update rule is called", lambda: kept[0].x)
    refuses(RuntimeError, "the update rule must return Float .*got", drawn, sampler=lambda step: step.x[:1, :1])
    refuses(TypeError, "sampler: must return a tensor, got int", drawn, sampler=lambda step: 3)
    refuses(RuntimeError, "leave x as it is", drawn, sampler=lambda step: step.x.mul_(2))
    refuses(ValueError, "number of its own", drawn, sampler=lambda step: step.noise(1) + step.noise(1))


def test_sampler_names():
    check({"ddim", "dpm-solver++", "unipc", "euler"} <= set(tstitch.samplers()), f"{list(tstitch.samplers())}")
    check(tstitch.samplers()["dpm-solver++"]["options"]["order"] == "2", "options of samplers")
    refuses(ValueError, "update_rule_by_name.*ddim.*got 'dimm'", drawn, sampler="dimm")
    refuses(ValueError, "options of ddim must be one of .*got 'ordr'", drawn, sampler_options={"ordr": 3})
    refuses(
        ValueError,
        "order: must not be given with sampler_options",
        drawn,
        sampler="unipc",
        order=2,
        sampler_options={"order": 3},
    )
    refuses(ValueError, "options of ddim", drawn, order=3)
    refuses(ValueError, "sampler: must not be given with profile", drawn, profile="dit")
    refuses(ValueError, "profile_by_name.*got 'dti'", drawn, profile="dti", sampler=None)
    refuses(ValueError, "steps: must not be given with preset", drawn, preset="fast", sampler=None)
    refuses(ValueError, "spacing: must be leading.*got 'foo'", drawn, spacing="foo")
    refuses(ValueError, "steps: must be the 3 timesteps", drawn, spacing=[900, 500, 20])
    refuses(ValueError, "steps: must be at least 1, got 0", drawn, steps=0)
    refuses(TypeError, "steps: must be an int, got 2.5", drawn, steps=2.5)
    refuses(TypeError, "steps: must be an int, got True", drawn, steps=True)
    refuses(ValueError, "thresholding: must be one of automatic", drawn, thresholding="foo")
    refuses(ValueError, "at_switch: must be one of 'keep'", drawn, at_switch="foo")
    refuses(ValueError, "final_sigma: must be one of", drawn, final_sigma="foo")
    check(drawn(thresholding="clip").abs().max() <= 1, "clipped")


def test_noise_schedules():
    table = tstitch.NoiseSchedule.linear().alphas_cumprod
    equal(drawn(noise_schedule=table), drawn(), "a list of alphas_cumprod")
    equal(drawn(noise_schedule=torch.tensor(table, dtype=torch.float64)), drawn(), "a tensor of them")
    equal(drawn(noise_schedule=tstitch.NoiseSchedule.linear()), drawn(), "an object")
    refuses(ValueError, "noise_schedule: must be one of 'linear'.*got 'cosin'", drawn, noise_schedule="cosin")
    refuses(ValueError, "noise_schedule: must be given", drawn, noise_schedule=None)
    refuses(ValueError, "strictly decreasing", drawn, noise_schedule=[0.9, 0.95])
    refuses(TypeError, "noise_schedule: must be a name", drawn, noise_schedule=3)
    refuses(ValueError, "prediction: must be one of 'epsilon'.*got 'x'", drawn, prediction="x")
    level = tstitch.NoiseSchedule.linear().at(500)
    check(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12 and "sigma=" in repr(level), repr(level))


def test_predictions():
    """A network of Gaussian data has the same trajectory whatever it predicts."""

    def network(kind, noise, flow):
        def call(x, t):
            level = noise.at(float(t[0]))
            a, s = level.alpha, level.sigma
            x_0 = x * (a * 0.25 / (a * a * 0.25 + s * s))  # of data with deviation 0.5
            eps = (x - a * x_0) / s
            return {"epsilon": eps, "sample": x_0, "v": a * eps - s * x_0, "flow": eps - x_0}[kind]

        return call

    for name, kinds in (("linear", ("epsilon", "sample", "v")), ("flow", ("flow", "sample"))):
        noise = tstitch.noise_schedule_of(name)
        made = [
            drawn([network(kind, noise, name)], noise_schedule=noise, prediction=kind, sampler="euler", steps=20)
            for kind in kinds
        ]
        for each in made[1:]:
            check((each - made[0]).abs().max() < 1e-4, f"{name}: {(each - made[0]).abs().max()}")
        check(0.4 < made[0].std() < 0.6, f"{name}: {made[0].std()}")
    check(tstitch.Network(half, noise_schedule="flow").prediction == "flow", "flow predicts flow")


def test_forecasts():
    names = dict(embed=lambda x, t: [x], blocks=lambda x: x * 0.5, head=lambda feature, x: feature)
    calls = []
    parts = tstitch.Network.in_parts(**{**names, "blocks": lambda x: (calls.append(1), x * 0.5)[1]}, **LINEAR)
    options = dict(steps=12, sampler="ddim", shape=(1, 4, 4))
    tstitch.sample([half, parts], forecast="every:2", ratio=0, **options)
    check(
        len(calls)
        == 12
        - sum(p.forecast for p in tstitch.plan([half, parts], forecast="every:2", ratio=0, steps=12, sampler="ddim")),
        f"{len(calls)}",
    )
    by_list = [i in (5, 7) for i in range(12)]
    plan = tstitch.plan([parts], forecast=by_list, steps=12)
    check([p.forecast for p in plan] == by_list and plan.calls == [10], str(plan))

    def mine(step, network, taken):
        return taken > 3 and step.index % 3 == 2

    mine.order = 2
    check(
        [p.step.index for p in tstitch.plan([parts], forecast=mine, steps=12) if p.forecast] == [5, 8, 11], "a callable"
    )
    refuses(
        TypeError, "forecast: must return True or False", tstitch.plan, [parts], forecast=lambda step, network, taken: 1
    )
    refuses(ValueError, "forecast: must be none or every:N", tstitch.plan, [parts], forecast="teacache")
    refuses(
        ValueError,
        "is for networks whose parts can be asked",
        tstitch.sample,
        [half],
        forecast="every:2",
        **options,
        **LINEAR,
    )


def test_labels():
    def labels(given):
        return tstitch.sample(paths, device="cpu", steps=1, sampler="ddim", labels=given, guidance=1)

    samples = labels(["cat", "Truck", 3])
    check(samples.labels == [3, 9, 3] and samples.classes == ["cat", "truck", "cat"], repr(samples.classes))
    check(labels(torch.tensor([1, 2])).labels == [1, 2] and labels(7).labels == [7], "a tensor and a number")
    three = tstitch.sample(paths, device="cpu", steps=1, sampler="ddim", labels="cat", seeds=range(3), guidance=1)
    check(three.labels == [3] * 3 and len(three) == 3, f"one label for all: {three.labels}")
    refuses(ValueError, r"labels\[1\]: must be one of airplane.*got 'cow'", labels, ["cat", "cow"])
    refuses(ValueError, "labels must be in", labels, [11])
    refuses(TypeError, r"labels\[0\]: must be an int, got 1.5", labels, [1.5])
    refuses(ValueError, "labels: must be at least one", labels, [])
    refuses(ValueError, "labels: these networks take none; say num_classes", drawn, labels=[1])
    refuses(
        ValueError, "labels.*one for each of the 3", tstitch.sample, paths, device="cpu", labels=[1, 2], seeds=range(3)
    )
    refuses(ValueError, "null class", drawn, networks=[lambda x, t, y: x], num_classes=3, labels=[1], guidance=2.0)


def test_conditions():
    seen = []

    def text(x, t, words=None, mask=None):
        seen.append((None if words is None else tuple(words.shape), None if mask is None else mask.dtype))
        return x * 0.1 if words is None else x * words.mean((1, 2))[:, None, None, None]

    words, null = torch.rand(2, 5, 4), torch.rand(1, 5, 4)
    a = drawn([text, text], conditions={"words": (words, null)}, guidance=2.0)
    check(a.shape[0] == 2 and seen[0][0] == (4, 5, 4), f"{seen[0]}")
    equal(drawn([text, text], conditions={"words": words, "words.null": null}, guidance=2.0), a, "name.null")
    equal(drawn([text, text], conditions={"words": (Lent(words), Lent(null))}, guidance=2.0), a, "DLPack")
    equal(
        drawn([lambda x, t: x * words.mean((1, 2))[:, None, None, None]], seeds=range(2)),
        drawn([text], conditions={"words": words}),
        "unguided",
    )
    network = tstitch.Network(text, conditions={"words": [None, 4]}, **LINEAR)
    equal(tstitch.Sampler([network], steps=6, sampler="ddim").sample(conditions={"words": words}, shape=(3, 8, 8)).images,
          drawn([text], conditions={"words": words}), "a network that lists them")  # fmt: skip
    refuses(ValueError, "conditions: 'words' is needed by network 0", tstitch.sample, [network], shape=(3, 8, 8))
    refuses(
        ValueError,
        "conditions: 'words' must be .n or 1",
        tstitch.sample,
        [network],
        shape=(3, 8, 8),
        conditions={"words": torch.rand(2, 5, 5)},
    )
    refuses(ValueError, "each must be one that a network asks for", tstitch.sample, [network], shape=(3, 8, 8),
            conditions={"words": words, "other": words})  # fmt: skip
    refuses(ValueError, "'x.null'.: must come with 'x'", drawn, conditions={"x.null": null})
    refuses(TypeError, "conditions: must be a dict", drawn, conditions=[words])
    refuses(TypeError, r"conditions\['words'\]: must be a tensor", drawn, conditions={"words": "a fox"})


class Lent:
    """An array of another library, as far as DLPack goes."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_arrays():
    noise = torch.randn(2, 3, 8, 8)
    want = drawn(initial_noise=noise)
    equal(drawn(initial_noise=Lent(noise)), want, "DLPack")
    if has("numpy"):
        array = noise.numpy().copy()
        equal(drawn(initial_noise=array), want, "NumPy")
        array.flags.writeable = False
        equal(drawn(initial_noise=array), want, "an array that may not be written to")
        array = noise.numpy().copy()
        run = (sampler := tstitch.Sampler([half], steps=2, **LINEAR)).begin(initial_noise=array)
        array[:] = 0
        equal(
            sampler.finish(run).images, sampler.sample(initial_noise=noise).images, "an array that is changed meanwhile"
        )
    check(drawn(initial_noise=noise.double()).dtype == torch.float64, "float64")
    refuses(ValueError, "initial_noise must be float32 or float64", drawn, initial_noise=noise.half())
    refuses(ValueError, "initial_noise must be .n, C, .* one row an image", drawn, initial_noise=noise, seeds=range(3))
    refuses(TypeError, "initial_noise: must be a tensor", drawn, initial_noise="noise")


def test_pictures():
    if not has("numpy", "PIL"):
        return
    import numpy
    from PIL import Image

    bytes_ = (torch.rand(8, 8, 3) * 255).to(torch.uint8)
    floating = bytes_.permute(2, 0, 1)[None].float() / 127.5 - 1
    options = dict(strength=0.5, decoding="pixels")
    want = drawn(initial_image=floating, **options)
    for given in (
        Image.fromarray(bytes_.numpy()),
        bytes_.numpy(),
        bytes_.permute(2, 0, 1),
        floating[0],
        floating.numpy(),
        [bytes_.numpy()],
    ):
        equal(drawn(initial_image=given, **options), want, f"{type(given)}")
    check(drawn(initial_image=[bytes_.numpy()] * 2, **options).shape[0] == 2, "two of them")
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    want = drawn(initial_image=floating, mask=mask[None, None], decoding="pixels")
    for given in (
        mask,
        mask.bool(),
        (mask * 255).to(torch.uint8),
        Image.fromarray((mask.numpy() * 255).astype(numpy.uint8)),
        mask.numpy(),
    ):
        equal(drawn(initial_image=floating, mask=given, decoding="pixels"), want, f"{type(given)}")
    check(torch.equal(want[..., 4:, :], floating[..., 4:, :]), "what is kept")
    refuses(
        ValueError,
        r"initial_image: floating pictures must be in \[-1, 1\]",
        drawn,
        initial_image=floating * 100,
        **options,
    )
    refuses(
        ValueError,
        "initial_image: a uint8 array must be",
        drawn,
        initial_image=bytes_.permute(2, 0, 1).numpy(),
        **options,
    )
    refuses(
        TypeError, "initial_image: must be uint8 in 0..255 or floating", drawn, initial_image=floating.long(), **options
    )
    refuses(ValueError, "mask needs an initial_image", drawn, mask=mask)
    refuses(ValueError, "mask: uint8 masks must be 0 or 255", drawn, initial_image=floating, mask=mask.to(torch.uint8))
    refuses(ValueError, "mask must be in", drawn, initial_image=floating, mask=mask * 3)
    refuses(ValueError, "strength", drawn, initial_image=floating, strength=0)
    samples = tstitch.sample([half], steps=2, shape=(3, 8, 8), seeds=[1, 2], **LINEAR)
    check(
        len(samples.pil()) == 2 and samples.pil()[0].size == (8, 8) and samples.numpy().dtype == numpy.uint8,
        repr(samples),
    )
    refuses(ValueError, "images: must be pictures", tstitch.sample([half], steps=2, shape=(4, 8, 8), **LINEAR).pil)


def test_inversion():
    """Sampling from the noise gives the picture again, by each rule that can be inverted; others are refused."""
    smooth = [lambda x, t, gain=gain: (x * gain).tanh() * 0.3 + t.float()[:, None, None, None] / 4000 for gain in (0.4, 0.5)]
    options = dict(steps=12, thresholding="none", **LINEAR)
    picture = torch.rand(2, 3, 4, 4) * 2 - 1
    for way, routing in itertools.product(
        (dict(sampler="ddim"), dict(sampler="euler"), dict(sampler="heun"), dict(sampler="dpm-solver++", order=1)),
        (dict(ratio=0.4), dict(routing="both-ends", ratio=0.5), dict(routing=lambda step: step.index % 2)),
    ):
        rule = way["sampler"] if "order" not in way else "ddim"
        sampler = tstitch.Sampler(smooth, **way, **routing, **options)
        before = 1.0
        for iterations in (1, 8):
            noise = sampler.invert(picture, rule=rule, iterations=iterations)
            back = sampler.sample(initial_noise=noise).images
            error = (back - picture).abs().max()
            check(error < before, f"{way} {iterations} iterations: {error}")
            before = error / 10
        check(error < 1e-4 and (noise - picture).abs().max() > 0.1, f"{way} {routing}: {error}")
        check(noise.shape == picture.shape and sampler.invert(picture, batch_size=1).shape == picture.shape, "batches")
    for way in (dict(sampler="unipc"), dict(sampler="ddim", forecast="every:2"), dict(sampler="ddpm")):
        equal(tstitch.invert(smooth, picture, **way, **options), tstitch.invert(smooth, picture, sampler="ddim", **options),
              f"{way}: DDIM is inverted")  # fmt: skip

    # Labels: those of no class where nothing is said.
    def by_label(x, t, labels):
        seen.append(labels.tolist())
        return x * 0.1

    seen, known = [], dict(num_classes=10, null_class=10)
    tstitch.invert([by_label], picture, **known, **options)
    check(seen and all(each == [10, 10] for each in seen), f"{seen[:2]}")
    seen.clear()
    tstitch.invert([by_label], picture, labels=[1, 2], **known, **options)
    check(all(each == [1, 2] for each in seen), f"{seen[:2]}")
    seen.clear()
    tstitch.invert([by_label], picture, labels=3, guidance=2.0, **known, **options)
    check(all(each == [3, 3, 10, 10] for each in seen), f"{seen[:2]}")

    refusals = [
        (ValueError, "needs a rule without history, got 1", dict(rule="dpm-solver++")),
        (ValueError, "needs a rule without noise", dict(rule="ddpm")),
        (ValueError, "iterations: must be at least 1, got 0", dict(iterations=0)),
        (ValueError, "iterations: must be at most 10000", dict(iterations=10001)),
        (TypeError, "sampler: must be the name of one", dict(rule=3)),
        (ValueError, "forecasts are for update rules that go to the picture", dict(guidance=tstitch.Guidance(forecast="every:2"))),
        (TypeError, "must be a picture, got None", dict(image=None)),
        (ValueError, "labels: these networks take none", dict(labels=3)),
        (ValueError, "batch_size: must be at least 1", dict(batch_size=0)),
        (TypeError, "unexpected keyword argument 'strength'", dict(strength=0.5)),
    ]
    for kind, pattern, odd in refusals:
        refuses(kind, pattern, tstitch.invert, smooth, **{"image": picture, **options, **odd})


def test_seeds_and_batches():
    """A picture depends on its seed alone."""
    whole = drawn(seeds=range(5))
    equal(drawn(seeds=[3])[0], whole[3], "one of five")
    equal(drawn(seeds=2, count=2), whole[2:4], "from a seed on")
    equal(drawn(seeds=range(5), batch_size=2), whole, "in batches")
    equal(drawn(seeds=torch.tensor([4, 0])), whole[[4, 0]], "a tensor")
    check(not torch.equal(drawn(seeds=2**64 - 1), drawn(seeds=0)), "the largest seed")
    refuses(ValueError, "seeds: must be at least 0", drawn, seeds=-1)
    refuses(ValueError, r"seeds\[0\]: must be at most", drawn, seeds=[2**64])
    refuses(ValueError, "seeds: must be an int or a list of at least one", drawn, seeds=[])
    refuses(ValueError, "batch_size: must be at least 1, got 0", drawn, batch_size=0)
    refuses(ValueError, "shape or initial_noise", drawn, shape=None)
    torch.manual_seed(7)
    noise = torch.randn(2, 3, 8, 8)
    equal(drawn(torch_seed=7, count=2), drawn(initial_noise=noise), "torch's noise")
    own = drawn(
        noise_source=lambda seeds, step, draw, shape, dtype, device: noise if step < 0 else torch.zeros_like(noise),
        count=2,
        eta=1.0,
    )
    check(own.isfinite().all(), "a source of noise")
    refuses(ValueError, "torch_seed: must not be given with noise_source", drawn, torch_seed=1, noise_source=print)


def test_log_density():
    """Guidance by a gradient pulls the picture where it says, through the network and by x."""

    def pull(picture, t, labels, conditions):
        return -(picture - 1).square().flatten(1).sum(1)

    noise = tstitch.NoiseSchedule.linear()

    def denoiser(x, t):  # of data with deviation 0.5
        level = noise.at(float(t[0]))
        return x * (level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2))

    for of in ("x", "x_0"):
        free, pulled = (drawn([denoiser], prediction="sample", steps=20, **given)
                        for given in ({}, dict(log_density=pull, log_density_scale=0.5, log_density_of=of)))  # fmt: skip
        check((pulled - 1).abs().mean() < (free - 1).abs().mean(), of)
    refuses(ValueError, "log_density_of: must be one of", drawn, log_density=pull, log_density_of="y")


def test_modules():
    """Parameters say device and type; a module in training mode is warned of; compiled ones do the same."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Dropout(0.5))

    class Takes(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t):
            return self.inner(x)

    network = Takes(module)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        drawn([network])
    check(any("training mode" in str(each.message) for each in seen), "no warning")
    network.eval()
    want = drawn([network])
    compiled = torch.compile(network, backend="eager")
    equal(drawn([compiled]), want, "compiled")
    check(tstitch.Network(compiled).name == "Takes", tstitch.Network(compiled).name)
    half_precision = Takes(torch.nn.Conv2d(3, 3, 3, padding=1)).bfloat16()
    check(drawn([half_precision]).dtype == torch.float32, "samplers compute in float32")
    refuses(ValueError, "device: must be where the module is, cpu, got meta", tstitch.Network, network, device="meta")
    refuses(TypeError, "module: must be an nn.Module or a function", tstitch.Network, 3)
    refuses(TypeError, r"networks\[1\]: must be an nn.Module, a function, a Network or a path, got 3", drawn, [half, 3])
    refuses(TypeError, "networks: must be a list of at least one", drawn, [])

    class Output:
        def __init__(self, sample):
            self.sample = sample

    equal(drawn([lambda x, t: Output(x * 0.5)]), drawn([half]), ".sample")
    equal(drawn([lambda x, t: (x * 0.5, 3)]), drawn([half]), "a tuple")
    mixed = [
        tstitch.Network(half, noise_schedule="linear", name="a"),
        tstitch.Network(half, noise_schedule="cosine", name="b"),
    ]
    refuses(RuntimeError, "cannot share a trajectory\n  noise schedule", tstitch.sample, mixed, shape=(3, 8, 8))


def test_files():
    refuses(RuntimeError, "absent.pt", tstitch.plan, [models / "absent.pt"])
    refuses(RuntimeError, "absent.pt", tstitch.load_network, models / "absent.pt")
    refuses(ValueError, "backend: must be one of auto", tstitch.load_networks, paths, backend="fast", device="cpu")
    refuses(ValueError, "dtype: must be 'auto'", tstitch.load_networks, paths, dtype="int8", device="cpu")
    network = tstitch.load_network(paths[0], device="cpu")
    check(
        network.num_classes == 10
        and network.shape == (3, 32, 32)
        and network.forecasts
        and "cifar10-dit-small" in repr(network),
        repr(network),
    )
    out = network(torch.zeros(2, 3, 32, 32), torch.tensor([5, 5]), torch.tensor([1, 2]))
    check(out.shape == (2, 6, 32, 32), f"{out.shape}")


def test_it_says_what_it_is():
    sampler = tstitch.Sampler([half, third], steps=6, **LINEAR)
    run = sampler.advance(sampler.begin(shape=(1, 4, 4)))
    shown = [sampler, run, run.plan, run.plan[0], run.plan[0].step, run.level, sampler.noise_schedule, tstitch.Spacing.karras(),
             sampler.finish(run), tstitch.Network(half, **LINEAR), tstitch.Guidance(2.0), tstitch.ProjectedGuidance()]  # fmt: skip
    for each in shown:
        check(repr(each) and " object at 0x" not in repr(each), repr(each))
    check(tstitch.build_info["torch"].split("+")[0] == torch.__version__.split("+")[0], f"{tstitch.build_info}")
    for name in tstitch.__all__:
        each = getattr(tstitch, name)
        check(name == "build_info" or each.__doc__, f"{name} has no docstring")
    check((Path(tstitch.__file__).parent / "py.typed").exists(), "py.typed")
    for function in (tstitch.Sampler.__init__, tstitch.Sampler.sample, tstitch.load_networks):
        typing.get_type_hints(function)


def test_stubs():
    """The stubs of the extension name what is in it, and nothing else; arguments have the names that they can be given by."""
    core = tstitch._core
    stubs = ast.parse((Path(tstitch.__file__).parent / "_core.pyi").read_text())

    def named(body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name, node
            elif isinstance(node, ast.AnnAssign):
                yield node.target.id, node

    def arguments(function):
        """Those that have names in the extension, which says arg0 of the others."""
        return re.findall(r"(\w+): ", (function.__doc__ or "").partition("\n")[0])

    def compare(where, body, there):
        stated = dict(named(body))
        known = {name for name in vars(there) if not name.startswith("_") or name in ("__init__", "__call__", "__len__")}
        if isinstance(there, type):
            known -= {"__init__"}  # all have one, many none to be called
        missing = known - set(stated)
        check(not missing, f"_core.pyi: {where} must name {sorted(missing)}")
        gone = {name for name in stated if not hasattr(there, name)}
        check(not gone, f"_core.pyi: {where} names {sorted(gone)}, which are not there")
        for name, node in stated.items():
            if isinstance(node, ast.ClassDef):
                compare(f"{where}.{name}", node.body, getattr(there, name))
            elif isinstance(node, ast.FunctionDef) and callable(getattr(there, name)):
                said = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
                for argument in arguments(getattr(there, name)):
                    check(argument in said or argument == "self" or argument.startswith("arg"),
                          f"_core.pyi: {where}.{name} must take {argument}, takes {said}")  # fmt: skip

    compare("_core", stubs.body, core)


def test_the_page():
    """What the documentation shows runs, but for diffusers' pipelines and pictures of others."""
    if not has("PIL"):
        return
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    for name, path in zip(("small.pt", "large.pt", "quality.txt"), [*paths, models / "cifar10_quality.txt"]):
        shutil.copyfile(path, name)
    latents = [save_module(scratch, f"latent_{size}", Latents(), latent_scale=0.5) for size in ("small", "large")]
    for kind, module in (("decoder", Decodes(3)), ("encoder", Encodes())):
        save_module(scratch, kind, module, kind=kind, latent_channels=4, upsampling=2, latent_scale=0.5)
    save_pipeline(scratch / "sd35")
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    check(len(blocks) >= 12, f"{len(blocks)} blocks")

    def network(x, t, labels, encoder_hidden_states=None):
        return x * 0.5

    known = dict(
        class_names=[f"class {i}" for i in range(7)] + ["cat"] + ["more"] * 992,
        null_class=1000,
        noise_schedule="linear",
    )
    takes = dict(conditions={"encoder_hidden_states": [None, 4]})
    plain = [tstitch.Network(lambda x, t, labels: x * 0.5, shape=(3, 8, 8), **known)] * 2
    told = [tstitch.Network(network, shape=(3, 8, 8), **takes, **known)] * 2
    parts = dict(embed=lambda x, t: [x], blocks=lambda x: x * 0.5, head=lambda feature, x: feature)
    forecasting = [tstitch.Network.in_parts(**parts, shape=(3, 8, 8), noise_schedule="linear")] * 2
    pandas = types.SimpleNamespace(DataFrame=lambda table: table)
    ran = 0
    for block in blocks:
        if "pipe(" in block or "pipe." in block:
            continue
        names = dict(
            tstitch=tstitch, torch=torch, pandas=pandas, small=half, large=third, module=network, networks=plain
        )
        if "conditions=" in block:
            names.update(networks=told, text=torch.rand(8, 5, 4), empty=torch.rand(1, 5, 4), picture=torch.zeros(1, 3, 8, 8),
                         mask=torch.ones(8, 8))  # fmt: skip
        if "forecast=" in block:
            names.update(networks=forecasting)
        if "decoder" in block:
            names.update(networks=latents, picture=torch.zeros(1, 3, 48, 40))
            block = block.replace(", labels=7", "")
        if "invert" in block:
            names.update(picture=torch.zeros(1, 3, 8, 8))
        block = block.replace("examples/models", str(models))
        block = block.replace("80ms", "80s")  # which a slow machine keeps, too
        exec(compile(block, str(page), "exec"), names)
        ran += 1
    check(ran >= 10, f"{ran} blocks ran")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.modules[__name__])
