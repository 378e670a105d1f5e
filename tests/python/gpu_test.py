"""The Python package on a GPU: modules, files with the engine and graphs, runs taken apart, diffusers' pipelines:
gpu_test.py TSTITCH_SAMPLE MODELS SCRATCH
"""

import copy
import itertools
import subprocess
import sys
from pathlib import Path

from harness import check, equal, has, main, require, torch, tstitch

if not torch.cuda.is_available():
    print("skipped: needs a GPU")
    sys.exit(77)
require("numpy")
import numpy  # noqa: E402

tool, models, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
scratch.mkdir(parents=True, exist_ok=True)
paths = [str(models / "cifar10_dit_small.pt"), str(models / "cifar10_dit_large.pt")]
# Sums in another order: a few float32 roundings a step.
NEAR = 1e-5


def near(a, b, what, most=NEAR):
    error = ((a.double().cpu() - b.double().cpu()).square().mean().sqrt() / b.double().square().mean().sqrt()).item()
    check(error <= most, f"{what}: differ by {error:.3g}")


class Net(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh() + torch.sin(t / 300).to(x.dtype)[:, None, None, None] * 0.3


def test_modules():
    """On the GPU where the modules are, from the CPU's noise: the same seeds are the same pictures."""
    torch.backends.cudnn.allow_tf32 = False
    pair = [Net(1).eval(), Net(2).eval()]
    on_gpu = [copy.deepcopy(each).cuda() for each in pair]
    for name, ratio in itertools.product(("ddim", "dpm-solver++", "euler-ancestral", "heun"), (0, 0.4, 1)):
        options = dict(ratio=ratio, sampler=name, steps=6, shape=(3, 8, 8), noise_schedule="linear", seeds=range(3))
        mine = tstitch.sample(on_gpu, **options).images
        check(mine.device.type == "cuda", f"{name}: drawn on {mine.device}")
        near(mine, tstitch.sample(pair, **options).images, f"{name}, ratio {ratio}")
    run = tstitch.Sampler(on_gpu, steps=6, noise_schedule="linear").begin(shape=(3, 8, 8), seeds=range(2))
    check(run.x.device.type == "cuda", f"{run.x.device}")


def test_compiled_module():
    module = Net(1).eval().cuda()
    options = dict(steps=4, shape=(3, 8, 8), noise_schedule="linear", seeds=range(3))
    near(tstitch.sample([torch.compile(module)], **options).images, tstitch.sample([module], **options).images, "compiled")


def drawn(*arguments):
    file = scratch / "latents.npy"
    file.unlink(missing_ok=True)
    command = [tool, "--device", "cuda", "--quiet", "--latents", str(file), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    check(run.returncode == 0, f"{arguments}: {run.stderr}")
    return torch.from_numpy(numpy.load(file))


def test_files_are_the_tools():
    """To the bit, over backends, number formats, guidance and forecasts; twice, for the second replays graphs."""
    for backend, dtype in itertools.product(("auto", "torchscript+graph", "native", "native-e4m3+graph"), ("bfloat16", "float32")):
        if backend.startswith("native-e4m3") and dtype == "float32":
            continue
        pair = tstitch.load_networks(paths, device="cuda", dtype=dtype, backend=backend)
        for guidance, forecast in ((1, "none"), (2.5, "none"), (2.5, "every:2")):
            if forecast != "none" and "torchscript" in backend:
                continue  # the bundled files have no parts
            expected = drawn("--class", "cat", "--class", 7, "--steps", 8, "--guidance", guidance, "--forecast", forecast, "--backend",
                             backend, "--dtype", dtype, "--seed", 3)  # fmt: skip
            for turn in range(2):
                made = tstitch.sample(pair, labels=["cat", 7], steps=8, guidance=guidance, forecast=forecast, seeds=3).images
                equal(made.cpu(), expected, f"{backend}, {dtype}, guidance {guidance}, forecast {forecast}, turn {turn}")


def test_runs():
    """Forks, saved and loaded runs go on to the bits of the run in one go."""
    sampler = tstitch.Sampler(tstitch.load_networks(paths, device="cuda"), ratio=0.4, sampler="dpm-solver++", steps=6)
    whole = sampler.sample(labels=[1, 2], seeds=5, guidance=2).images
    run = sampler.begin(labels=[1, 2], seeds=5, guidance=2)
    sampler.advance(run, 3)
    fork = run.fork()
    run.save(scratch / "run.pt")
    for name, each in (("run", run), ("fork", fork), ("loaded", sampler.load(scratch / "run.pt"))):
        equal(sampler.finish(each).images, whole, name)


def test_pipelines():
    """Stitched, then moved to the GPU, as people do; ratio 0 is the large pipeline."""
    if not has("diffusers", "transformers"):
        return
    sys.argv = [sys.argv[0], str(scratch)]
    import diffusers_test as pipelines

    words = {"prompt_embeds": pipelines.words, "negative_prompt_embeds": pipelines.no_words}
    pooled = {"pooled_prompt_embeds": pipelines.pooled, "negative_pooled_prompt_embeds": pipelines.no_pooled}
    masks = {"prompt_attention_mask": pipelines.ones, "negative_prompt_attention_mask": pipelines.ones}
    given = {"DiT": {}, "StableDiffusion": words, "StableDiffusion3": {**words, **pooled}, "PixArtAlpha": {**words, **masks}}
    for name, (make_small, make_large) in pipelines.KINDS.items():
        options = {key: value.cuda() for key, value in given[name].items()}
        on_cpu = [pipelines.latents_of(each()) for each in (make_small, make_large)]
        for ratio in (0, 0.4, 1):
            pipe = tstitch.diffusers.stitch(make_small(), make_large(), ratio=ratio).to("cuda")
            made = pipelines.latents_of(pipe, **options)
            part = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
            check(part.calls == [round(5 * ratio), 5 - round(5 * ratio)], f"{name}, ratio {ratio}: {part.calls}")
            if ratio != 0.4:
                near(made, on_cpu[1 - ratio], f"{name}, ratio {ratio}", 1e-4)  # the networks' own sums


if __name__ == "__main__":
    main(sys.modules[__name__])
