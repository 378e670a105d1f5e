"""T-Stitch sampling of diffusion models from Python, by the C++ library tstitch (arXiv 2402.14167).

    samples = tstitch.sample([small, large], ratio=0.4, sampler="dpm-solver++", steps=20, shape=(3, 32, 32),
                             noise_schedule="linear", prediction="epsilon", seeds=range(8))

The small network takes the first, noisy 0.4 of the steps, the large one the rest. `sample` draws; `plan` says before it what
will happen; `Sampler` is both taken apart: `begin`, `advance`, fork, save. `tstitch.diffusers` runs diffusers' pipelines so.
"""

import torch as _torch  # loads the libraries that the extension is linked with

from . import _build


def _require_torch(built: str, found: str) -> None:
    """The extension is machine code for one minor version of torch; another one would crash in it."""
    minor = [version.split("+")[0].split(".")[:2] for version in (built, found)]
    if minor[0] != minor[1]:
        raise ImportError(
            f"tstitch was built for torch {built}, and torch here is {found}. Build it again for this one: "
            "pip install --force-reinstall --no-deps ./examples/python (in a checkout of tstitch)"
        )
    if "+cu" in built and "+cu" in found and built.split("+cu")[1][:2] != found.split("+cu")[1][:2]:
        raise ImportError(f"tstitch was built for torch {built} with another CUDA than torch {found}; build it again")


_require_torch(_build.torch, _torch.__version__)

from . import _core  # noqa: E402
from ._core import (  # noqa: E402
    NoiseLevel,
    NoiseSchedule,
    PlannedStep,
    Prediction,
    ProjectedGuidance,
    Spacing,
    Step,
    StepInput,
    StepReport,
    Thresholding,
    diagnostics,
)
from .autoencoders import Decoder, Encoder, load_decoder, load_encoder  # noqa: E402
from .guidance import Guidance  # noqa: E402
from .networks import Network, load_network, load_networks, noise_schedule_of  # noqa: E402
from .pipelines import Pipeline, PipelineSamples, load_pipeline  # noqa: E402
from .plans import Plan  # noqa: E402
from .sampling import Sampler, Samples, Trajectory, invert, plan, sample  # noqa: E402

__version__ = _core.version

#: What the extension was built with: torch, its CUDA, whether graphs and kernels are in it, and why not where they are not.
build_info = {
    "version": _core.version,
    "torch": _build.torch,
    "torch_cuda": _build.cuda or None,
    "with_cuda": _core.with_cuda,
    "without_cuda_because": _build.without_cuda or None,
    "compiler": _build.compiler,
}


def samplers() -> dict[str, dict]:
    """All update rules by name: what each is, and its options with their usual values."""
    return {each["name"]: {"help": each["help"], "options": dict(each["options"])} for each in _core.update_rules}


def routings() -> dict[str, str]:
    """All routings by name, and what each is; "timestep" and "logsnr" are written with numbers, "timestep:600"."""
    return {
        each["name"] + (":" + each["boundaries"] if each["boundaries"] else ""): each["help"] for each in _core.routings
    }


def spacings() -> dict[str, str]:
    """All spacings by name, and what each is."""
    return {each["name"]: each["help"] for each in _core.spacings}


def profiles() -> dict[str, str]:
    """All profiles by name: what other programs mean by a sampler's name."""
    return dict(_core.profiles)


def presets() -> dict[str, str]:
    """All presets by name: a pair's whole way of sampling in a word."""
    return dict(_core.presets)


__all__ = [
    "Decoder",
    "Encoder",
    "Guidance",
    "Network",
    "NoiseLevel",
    "NoiseSchedule",
    "Pipeline",
    "PipelineSamples",
    "Plan",
    "PlannedStep",
    "Prediction",
    "ProjectedGuidance",
    "Sampler",
    "Samples",
    "Spacing",
    "Step",
    "StepInput",
    "StepReport",
    "Thresholding",
    "Trajectory",
    "build_info",
    "diagnostics",
    "invert",
    "load_decoder",
    "load_encoder",
    "load_network",
    "load_networks",
    "load_pipeline",
    "noise_schedule_of",
    "plan",
    "presets",
    "profiles",
    "routings",
    "sample",
    "samplers",
    "spacings",
]
