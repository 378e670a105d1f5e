"""Runs taken apart: forks, files, threads, callbacks, and what networks of Python raise: run_test.py MODELS SCRATCH"""

import gc
import itertools
import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

from harness import check, equal, main, refuses, torch, tstitch

models, scratch = Path(sys.argv[1]), Path(sys.argv[2])
scratch.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


class Net(torch.nn.Module):
    """Depends on x, t, the label and a condition, where there are any."""

    def __init__(self, classes=0, text=0):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.classes = torch.nn.Embedding(classes + 1, 3) if classes else None
        self.text = torch.nn.Linear(text, 3) if text else None
        self.calls = 0

    def forward(self, x, t, labels=None, text=None):
        self.calls += 1
        check(x.shape[0] == t.shape[0] and not torch.is_grad_enabled(), "arguments of the network")
        bias = torch.sin(t.to(x.dtype) / 300)[:, None]
        if labels is not None:
            bias = bias + self.classes(labels)
        if text is not None:
            bias = bias + self.text(text).mean(1)
        return self.conv(x).tanh() + bias[:, :, None, None].to(x.dtype)


LINEAR = dict(noise_schedule="linear")
small, large = Net(10), Net(10)
known = dict(num_classes=10, null_class=10, **LINEAR)
pair = [tstitch.Network(small, name="small", **known), tstitch.Network(large, name="large", **known)]
what = dict(labels=[1, 2, 3], seeds=[4, 5, 6], guidance=2.0, shape=(3, 8, 8))

SAMPLERS = [
    dict(sampler="ddpm"), dict(sampler="ddim", eta=0.5), dict(sampler="dpm-solver++", order=3), dict(sampler="unipc"),
    dict(sampler="pndm"), dict(sampler="dpm-solver++-sde"), dict(sampler="dpm-solver++-adaptive", sampler_options={"carry_step_size": True}),
    dict(sampler="heun", sampler_options={"s_churn": 5.0}),
]  # fmt: skip


def test_begin_and_advance_are_sample():
    for way in SAMPLERS:
        sampler = tstitch.Sampler(pair, steps=7, **way)
        whole = sampler.sample(**what)
        run = sampler.begin(**what)
        check(
            run.next == 0
            and not run.finished
            and run.x_0 is None
            and run.seeds == [4, 5, 6]
            and run.labels == [1, 2, 3],
            repr(run),
        )
        while not run.finished:
            check(sampler.advance(run) is run, "advance returns the trajectory")
        equal(run.x, whole.images, f"{way}")
        equal(sampler.finish(sampler.begin(**what)).images, whole.images, f"{way} by finish")
        refuses(ValueError, "steps left", sampler.advance, run)


def test_fork_and_file():
    """A fork and a file go on to the same bits, whatever the rule keeps."""
    sampler_of = dict(projected=tstitch.ProjectedGuidance(eta=0.1, norm_threshold=3.0, momentum=-0.5))
    for way in SAMPLERS:
        for guidance in (1.0, 2.0, tstitch.Guidance([1.5, 3.0], begin=0.2, **sampler_of)):
            request = {**what, "guidance": guidance}
            sampler = tstitch.Sampler(pair, steps=6, ratio=0.5, **way)
            run = sampler.advance(sampler.begin(**request), 4)
            fork, file = run.fork(), scratch / "run.pt"
            run.save(file)
            sampler.advance(run, 2)
            check(fork.next == 4, "a fork stays where it is")
            loaded = tstitch.Sampler(pair, steps=6, ratio=0.5, **way).load(file)
            check(loaded.next == 4 and loaded.plan == run.plan, repr(loaded))
            for other in (fork, loaded, sampler.load(fork.state_dict())):
                equal(sampler.advance(other, 2).x, run.x, f"{way} {guidance}")
            equal(run.x, sampler.sample(**request).images, f"{way} whole")


def test_file_of_editing():
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    request = {**what, "initial_image": image, "mask": mask, "strength": 0.5}
    for seed in (None, 3):
        sampler = tstitch.Sampler(pair, steps=8, sampler="ddim", eta=1)
        run = sampler.advance(sampler.begin(**request, torch_seed=seed), 2)
        check(run.next == 6 and len(run.plan) == 4, repr(run))
        loaded = sampler.load(run.state_dict())
        equal(sampler.finish(loaded).images, sampler.finish(run).images, f"seed {seed}")
        equal(run.x[..., 4:], image.expand(3, -1, -1, -1)[..., 4:].contiguous(), "what the mask keeps")


def test_other_plans_are_refused():
    sampler = tstitch.Sampler(pair, steps=6, sampler="ddim")
    file = scratch / "other.pt"
    sampler.advance(sampler.begin(**what)).save(file)
    others = {
        "sampler 'DDIM', this sampler has 'DPMSolver'": dict(steps=6, sampler="dpm-solver++"),
        "steps 6, this sampler has 7": dict(steps=7, sampler="ddim"),
        r"networks \[0, 0, 1, 1, 1, 1\], this sampler has \[0, 0, 0, 0, 0, 1\]": dict(
            steps=6, sampler="ddim", ratio=0.8
        ),
        "spacing 'linspace'": dict(steps=6, sampler="ddim", spacing="leading"),
        r"sampler 'DDIM', this sampler has 'DDIM \(eta 1\)'": dict(steps=6, sampler="ddim", eta=1),
    }
    for reason, way in others.items():
        refuses(ValueError, f"load: the file's run has {reason}", tstitch.Sampler(pair, **way).load, file)
    cosine = [tstitch.Network(each, **{**known, "noise_schedule": "cosine"}) for each in (small, large)]
    refuses(ValueError, "noise_schedule", tstitch.Sampler(cosine, steps=6, sampler="ddim").load, file)
    file.write_bytes(file.read_bytes()[:1000])
    refuses(ValueError, "must be a file of Trajectory.save", sampler.load, file)
    torch.save({"x": torch.zeros(3)}, file)
    refuses(ValueError, "must be a 'tstitch trajectory 1'", sampler.load, file)
    refuses(FileNotFoundError, "absent", sampler.load, scratch / "absent.pt")
    whole = sampler.advance(sampler.begin(**what)).state_dict()
    for key in whole["state"]:
        part = {**whole, "state": {name: value for name, value in whole["state"].items() if name != key}}
        refuses(ValueError, "load: the file must hold a whole trajectory", sampler.load, part)
        for odd in ("text", -1, [1], None):
            try:
                sampler.finish(sampler.load({**whole, "state": {**whole["state"], key: odd}}))
            except (ValueError, RuntimeError):
                pass  # said in one way or another
    refuses(
        ValueError,
        "load: the file's run has|another plan",
        sampler.load,
        {**whole, "plan": None, "state": {**whole["state"], "plan": 3}},
    )
    callables = {
        "noise_source is a callable; torch_seed": dict(
            noise_source=lambda seeds, step, draw, shape, dtype, device: torch.ones(len(seeds), *shape)
        ),
        "log_density is a callable": dict(log_density=lambda picture, t, labels, conditions: picture.sum((1, 2, 3))),
        "guidance.forecast is a callable; give a name or a list of bools": dict(
            guidance=tstitch.Guidance(2.0, forecast=lambda step, network, taken: False)
        ),
    }
    file.unlink()
    for reason, request in callables.items():
        refuses(ValueError, f"save: a file holds plain data, and {reason}", sampler.begin(**{**what, **request}).save, file)
        check(not list(scratch.glob("other.pt*")), "a refused file is not there")


def in_parts(gain):
    """A network whose blocks depend on x, t and the label."""
    return tstitch.Network.in_parts(
        embed=lambda x, t, labels: [x * 0.25, t, labels],
        blocks=lambda x, t, labels: x + (torch.sin(t.float() / 150) + torch.cos(gain * labels))[:, None, None, None],
        head=lambda feature, x, t, labels: (0.7 * feature).tanh(),
        prediction="sample", timestep_type="float32", num_classes=10, null_class=10, **LINEAR,
    )  # fmt: skip


def test_file_of_forecasts():
    """Saved in the middle and loaded by another sampler, a run with forecasts goes on to the same bits."""
    parts = [in_parts(0.9), in_parts(1.1)]
    steps = 9
    table = [i in (3, 5, 6) for i in range(steps)]
    forecasts = [None, "every:2", "every:3,2,1", table, lambda step, network, taken: taken % 2 == 1]
    of_guidance = [None, "every:2,1,1", table]
    guides = [dict(scale=1.0), dict(scale=2.0), dict(scale=[1.5, 3.0], begin=0.2, end=0.8), dict(scale=2.0, guide_network=0),
              dict(scale=2.0, projected=tstitch.ProjectedGuidance(eta=0.1, norm_threshold=3.0, momentum=-0.5))]  # fmt: skip
    kept = 0
    for way in SAMPLERS:
        if "adaptive" in way["sampler"]:
            continue
        for forecast, guided, guide in itertools.product(forecasts, of_guidance, guides):
            if forecast is None and guided is None:
                continue

            def sampler():
                return tstitch.Sampler(parts, steps=steps, ratio=0.3, forecast=forecast, **way)

            request = {**what, "guidance": tstitch.Guidance(**guide, forecast=guided)}
            name = f"{way} {forecast} {guided} {guide}"
            first = sampler()
            run, whole = first.begin(**request), first.sample(**request).images
            for i in range(1, steps):
                first.advance(run)
                if i not in (2, 5, 7):
                    continue
                if i == 5:
                    run.save(scratch / "forecasts.pt")
                    other = sampler().load(scratch / "forecasts.pt")
                else:
                    other = first.load(run.state_dict())
                state = run.state_dict()["state"]
                kept += bool(state["differences"]) or any(state["memories"])
                equal(sampler().finish(other).images, whole, f"{name} at {i}")
            equal(first.finish(run).images, whole, name)
    check(kept > 300, f"{kept} of the files had something for forecasts in them")


def test_file_of_forecasts_by_files():
    """The same of the bundled pair's engine, whose features are parts of one another."""
    paths = [models / f"cifar10_dit_{size}.pt" for size in ("small", "large")]
    sampler = tstitch.Sampler(paths, steps=9, ratio=0.3, forecast="every:2", sampler="dpm-solver++", device="cpu")
    request = dict(labels=[1, 2], guidance=tstitch.Guidance(2.0, forecast="every:2,1,1"))
    run = sampler.begin(**request)
    for i in range(8):
        sampler.advance(run).save(scratch / "engine.pt")
        equal(sampler.finish(sampler.load(scratch / "engine.pt")).images, sampler.sample(**request).images, f"step {i}")
    # Tensors that share memory are written once.
    tensors = sum(each.numel() * each.element_size() for memory in run.state_dict()["state"]["memories"] if memory
                  for _, _, each in memory["conditional"] + memory["unconditional"])  # fmt: skip
    check(0 < tensors < (scratch / "engine.pt").stat().st_size < 1.5 * tensors + 200_000, f"{tensors} bytes are kept")


def test_odd_files_of_forecasts():
    """What forecasts cannot be made of is refused; a sampler without these forecasts is another plan."""
    options = dict(steps=9, ratio=0.3, sampler="ddim")
    sampler = tstitch.Sampler([in_parts(0.9), in_parts(1.1)], forecast="every:2", **options)
    run = sampler.advance(sampler.begin(**{**what, "guidance": tstitch.Guidance(2.0, forecast="every:2,1,1")}), 5)
    whole = run.state_dict()
    state = whole["state"]
    check(state["differences"] and state["memories"][1]["both"], f"{state}")
    plain = tstitch.Sampler([in_parts(0.9), in_parts(1.1)], **options)
    refuses(ValueError, r"load: the file's run has forecast \[False, .*True.*\], this sampler has \[False", plain.load, whole)

    def put(path, value):
        """The file with another value somewhere inside."""
        made = {**whole, "state": {**state}}
        place = made["state"]
        for key in path[:-1]:
            place[key] = place[key].copy()
            place = place[key]
        place[path[-1]] = value
        return made

    twice = [(3, 0, torch.zeros(3)), (3, 0, torch.zeros(3))]
    for path, value in [
        (("differences",), twice), (("differences",), [(3, 0, None)]), (("differences",), [(3, 0)]), (("differences",), 3),
        (("memories",), 3), (("memories", 1), 3), (("memories", 1), {}), (("memories", 1, "conditional"), twice),
        (("forecasts", "conditional"), [3, 3]), (("forecasts", "guided"), 3), (("forecasts", "guided"), -1),
        (("forecasts", "network"), -1), (("forecasts", "taken"), "many"), (("guidance", "forecast", "every"), 0),
        (("guidance", "forecast", "order"), 9), (("guidance", "forecast"), {"every": 2}), (("guidance", "forecast"), "every:2"),
        (("noise", "name"), "mine"), (("noise",), {"name": "torch"}), (("noise",), None),
        (("noise",), {"name": "torch", "seed": -1, "rows_per_image": 1, "initial_first": True}),
    ]:  # fmt: skip
        refuses(ValueError, "load: the file must hold a whole trajectory", sampler.load, put(path, value))
    refuses(RuntimeError, "a forecast must be made of evaluations that were kept", sampler.finish,
            sampler.load(put(("memories", 1), None)))  # fmt: skip


def test_another_sampler_takes_over():
    first, second = (tstitch.Sampler(pair, steps=5, sampler="ddim", routing=[k] * 5) for k in (0, 1))
    run = first.advance(first.begin(**what), 2)
    second.advance(run, 3)
    equal(run.x, tstitch.sample(pair, steps=5, sampler="ddim", routing=[0, 0, 1, 1, 1], **what).images, "taken over")
    refuses(ValueError, "same timesteps", tstitch.Sampler(pair, steps=6, sampler="ddim").advance, first.begin(**what))
    refuses(TypeError, "trajectory: must be a Trajectory, got 3", first.advance, 3)
    refuses(ValueError, "steps: must be at least 1", first.advance, first.begin(**what), 0)


def test_x_may_be_replaced():
    sampler = tstitch.Sampler(pair, steps=3, sampler="ddim")
    run = sampler.begin(**what)
    run.x = run.x * 0.5
    half = sampler.begin(**what, initial_noise=sampler.begin(**what).x * 0.5)
    equal(sampler.finish(run).images, sampler.finish(half).images, "x that was replaced")
    refuses(ValueError, "x: must have the shape", setattr, sampler.begin(**what), "x", torch.zeros(3))


def test_exceptions_come_as_they_are():
    class Mine(Exception):
        pass

    def broken(x, t):
        if t[0] < 500:
            raise Mine("a reason", 3)
        return x

    sampler = tstitch.Sampler([broken], steps=6, sampler="ddim", **LINEAR)
    error = refuses(Mine, "a reason", sampler.sample, shape=(1, 4, 4))
    check(error.args == ("a reason", 3) and error.__traceback__ is not None, "the exception itself")
    run = sampler.begin(shape=(1, 4, 4))
    refuses(Mine, "a reason", sampler.advance, run, 6)
    check(run.next == 3 and run.x.isfinite().all(), f"the steps before it were taken: {run}")
    for kind, network, message in [
        (ZeroDivisionError, lambda x, t: 1 / 0, "division"),
        (TypeError, lambda x, t: None, "must return a tensor, .*got NoneType"),
        (TypeError, lambda x, t: "text", "must return a tensor"),
        (TypeError, lambda x: x, "positional argument"),
        (RuntimeError, lambda x, t: x[:, :1], "output must be"),
        (RuntimeError, lambda x, t: x.matmul(torch.zeros(3, 5)), "mat|size"),
        (SystemExit, lambda x, t: sys.exit(3), "3"),
    ]:
        run = tstitch.Sampler([network], steps=2, sampler="ddim", **LINEAR)
        try:
            run.sample(shape=(2, 4, 4))
        except BaseException as error:
            check(type(error) is kind, f"{kind}: got {error!r}")
            refuses_text = str(error)
            check(__import__("re").search(message, refuses_text), refuses_text)
            check("frame #" not in refuses_text, f"a trace of C++: {refuses_text}")
        else:
            raise AssertionError(f"{kind} did not come")


def test_nan_is_refused_with_the_name():
    def bad(x, t):
        return torch.full_like(x, float("nan")) if t[0] < 400 else x

    for networks, name in (([lambda x, t: x, bad], r"network 1 \('bad'\)"), ([bad, bad], r"network 1 \('bad'\)")):
        refuses(RuntimeError, f"must be finite numbers, got nan or infinity .*by {name}", tstitch.sample, networks, steps=6,
                sampler="dpm-solver++", shape=(1, 4, 4), **LINEAR)  # fmt: skip
    sampler = tstitch.Sampler([bad], steps=4, sampler="ddim", **LINEAR)
    refuses(RuntimeError, "finite", sampler.finish, sampler.begin(shape=(1, 4, 4)))


def test_callback():
    seen = []
    samples = tstitch.sample(pair, steps=4, batch_size=2, callback=seen.append, **what)
    check([(r.first, r.images, r.done, r.steps) for r in seen] == [(0, 2, i, 4) for i in (1, 2, 3, 4)] + [(2, 1, i, 4) for i in (1, 2, 3, 4)],
          f"{seen}")  # fmt: skip
    check([r.network for r in seen[:4]] == [0, 0, 1, 1] and seen[0].seconds > 0 and seen[0].step.t == 999, f"{seen}")
    equal(seen[3].x, samples.images[:2], "x of the last step")
    check("1 of 4 done" in repr(seen[0]), repr(seen[0]))
    stopped = tstitch.sample(pair, steps=4, batch_size=2, callback=lambda r: not (r.first == 2 and r.done == 2), **what)
    check(not stopped.finished and stopped.finished_images == 2 and len(stopped) == 3, repr(stopped))
    at_once = tstitch.sample(pair, steps=4, callback=lambda r: False, **what)
    check(len(at_once) == 3 and at_once.finished_images == 0, repr(at_once))
    refuses(
        TypeError,
        "callback: must return nothing, or False",
        tstitch.sample,
        pair,
        steps=4,
        callback=lambda r: 3,
        **what,
    )
    refuses(KeyError, "mine", tstitch.sample, pair, steps=4, callback=lambda r: {}["mine"], **what)
    refuses(TypeError, "callback: must be callable", tstitch.sample, pair, callback=3, **what)


def interrupted(call, after=0.3):
    """KeyboardInterrupt comes out of the call soon."""
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        return time.monotonic() - start
    raise AssertionError("was not interrupted")


def test_ctrl_c():
    """Of networks of Python, and of a file, whose steps hold no lock of Python."""
    slow = tstitch.Sampler([lambda x, t: (time.sleep(0.005), x)[1]], steps=1000, sampler="ddim", **LINEAR)
    check(interrupted(lambda: slow.sample(shape=(1, 4, 4))) < 3, "a network of Python")
    file = tstitch.Sampler([models / "cifar10_dit_large.pt"], steps=1000, sampler="ddim", device="cpu")
    run = file.begin(labels=[0])
    check(interrupted(lambda: file.advance(run, 1000)) < 10, "a file")
    check(0 < run.next < 1000, f"{run}")


def test_files_leave_python_free():
    """While a file's network runs, other threads of Python do."""
    sampler = tstitch.Sampler([models / "cifar10_dit_large.pt"], steps=6, sampler="ddim", device="cpu", routing=[0] * 6)
    sampler.sample(labels=[0], guidance=1)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.monotonic()
    sampler.advance(sampler.begin(labels=list(range(10)) * 2, guidance=1), 6)
    spent = time.monotonic() - start
    done.set()
    thread.join()
    inside = [each for each in ticks if start < each < start + spent]
    gaps = [b - a for a, b in zip(inside, inside[1:])]
    check(spent > 0.05 and max(gaps) < spent / 2, f"the longest wait was {max(gaps):.3f} of {spent:.3f} s")


def test_threads():
    """One sampler, many threads: the same bits as one after another, of modules and of files."""
    file = tstitch.Sampler([models / "cifar10_dit_small.pt"], steps=4, sampler="dpm-solver++", device="cpu")
    for sampler, options in (
        (tstitch.Sampler(pair, steps=6, sampler="unipc"), what),
        (file, dict(labels=[1, 2, 3], guidance=2.0)),
    ):
        alone = [sampler.sample(**{**options, "seeds": seed}).images for seed in range(6)]
        beside = [None] * 6

        def draw(seed):
            beside[seed] = sampler.sample(**{**options, "seeds": seed}).images

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for seed in range(6):
            equal(beside[seed], alone[seed], f"seed {seed}")


def test_one_trajectory_in_two_threads():
    begun, go_on = threading.Event(), threading.Event()

    def slow(x, t):
        begun.set()
        go_on.wait(20)
        return x

    sampler = tstitch.Sampler([slow], steps=3, sampler="ddim", **LINEAR)
    run = sampler.begin(shape=(1, 4, 4))
    thread = threading.Thread(target=sampler.advance, args=(run,))
    thread.start()
    begun.wait(20)
    try:
        refuses(RuntimeError, "another thread is advancing this trajectory; fork it", sampler.advance, run)
        check(run.next == 0 and run.x.isfinite().all() and run.fork().next == 0, "it can be looked at meanwhile")
    finally:
        go_on.set()
        thread.join()
    check(run.next == 1 and sampler.advance(run).next == 2, repr(run))


def test_nothing_is_kept():
    """Networks, callbacks and rules are let go with the sampler."""
    network, class_ = Net(), type("Callback", (), {"__call__": lambda self, report: None})
    callback = class_()
    sampler = tstitch.Sampler([network], steps=2, sampler="ddim", **LINEAR)
    sampler.sample(shape=(3, 4, 4), callback=callback)
    refs = [weakref.ref(network), weakref.ref(callback)]
    del network, callback, sampler
    gc.collect()
    check([each() for each in refs] == [None, None], "something is kept")


def test_state_of_a_rule_in_python():
    """A rule of Python keeps a dict, of which forks have their own and a step that raises leaves none."""

    def rule(step):
        x_0 = step.predict().x_0
        before = step.state.get("x_0")
        step.state["x_0"], step.state["n"] = x_0, step.state.get("n", 0) + 1
        if step.step.index == 3 and step.state["n"] == 4 and fail[0]:
            raise KeyError("failed")
        guess = x_0 if before is None else 1.5 * x_0 - 0.5 * before
        to, noise = step.step.to_level, (step.x - step.step.from_level.alpha * x_0) / step.step.from_level.sigma
        return to.alpha * guess + to.sigma * noise

    fail = [True]
    sampler = tstitch.Sampler(pair, steps=5, sampler=rule)
    run = sampler.begin(**what)
    refuses(KeyError, "failed", sampler.advance, run, 5)
    check(run.next == 3, repr(run))
    fail[0] = False
    fork, saved = run.fork(), sampler.load(run.state_dict())
    run.save(scratch / "rule.pt")
    for other in (fork, saved, sampler.load(scratch / "rule.pt")):
        equal(sampler.advance(other, 2).x, sampler.sample(**what).images, "a rule of Python")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.modules[__name__])
