#!/usr/bin/env python3
"""Records what other projects' samplers compute on one small closed-form problem, one JSON file a case.

Runs the samplers of diffusers and k-diffusion (installed packages), and of dpm-solver, guided-diffusion and
latent-diffusion (folders that hold the commits named in SOURCES), all on the same start, network and noise, and writes
every state that they pass through:

    python make_golden.py --dpm-solver DIR --guided-diffusion DIR --latent-diffusion DIR

README.md beside this file describes the problem and the format. No peer's code is in this script.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import math
import sys
import types
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

Array = np.ndarray

PROFILE_STEPS = (7, 10, 13, 20, 25, 30, 50, 61, 100, 250, 999)
VARIANT_STEPS = (7, 10, 25)
FLOAT64_STEPS = (7, 25, 250, 999)
START = np.array([1.0, -0.5, 0.8, -1.2, 0.4])
# Two pictures of five pixels: levels of 256, both ends among them.
PICTURES = np.array([[0, 255, 64, 190, 128], [77, 3, 252, 120, 255]]) / 127.5 - 1
MIXED = "float32 tables, float64 states"

# The commits that the folders must hold, known by the digest of the file that does the sampling.
SOURCES = {
    "dpm-solver": (
        "52bc3fbcd5de56d60917b826b15d2b69460fc2fa",
        "dpm_solver_pytorch.py",
        "673c59fd6ec4ce40f339d7335bc00711552cf87ea15acfa3548f5dcca026d9d2",
    ),
    "guided-diffusion": (
        "22e0df8183507e13a7813f8d38d51b072ca1e67c",
        "guided_diffusion/gaussian_diffusion.py",
        "ece0176dc6f3a176774d4343c4887d5a44733925f8e47299c39ede3e7a9c797e",
    ),
    "latent-diffusion": (
        "a506df5756472e2ebaf9078affdde2c4f1502cd4",
        "ldm/models/diffusion/ddim.py",
        "3086330c774355809af6c4ce02220a01811187a01a7d0be5cc914c4ac07e4a48",
    ),
}


# ------------------------------------------------------------------------------------------------ the problem


def linear_betas() -> Array:
    return np.linspace(1e-4, 0.02, 1000, dtype=np.float64)


def cosine_betas() -> Array:
    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - level((i + 1) / 1000) / level(i / 1000), 0.999) for i in range(1000)])


class Discrete:
    """The level (alpha, sigma) at a timestep; log alpha is linear between the integers, and beyond the last one."""

    def __init__(self, betas: Array) -> None:
        self.betas = betas
        self.alphas_cumprod = np.cumprod(1 - betas)
        self.log_alpha = 0.5 * np.log(self.alphas_cumprod)

    def at(self, t: float) -> tuple[float, float]:
        k = min(max(math.floor(t), 0), len(self.betas) - 2)
        log_alpha = self.log_alpha[k] + (t - k) * (self.log_alpha[k + 1] - self.log_alpha[k])
        return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))

    def ratio(self, index: int) -> float:
        """sigma / alpha at an integer timestep."""
        return float(np.sqrt((1 - self.alphas_cumprod[index]) / self.alphas_cumprod[index]))


class Flow:
    """The straight line of flow matching: t is 1000 times the share of noise."""

    def at(self, t: float) -> tuple[float, float]:
        return 1 - t / 1000, t / 1000


def predict(x: Array, alpha: float, sigma: float) -> tuple[Array, Array]:
    """(epsilon, x_0) of the problem's network for rows x of five numbers, all in float64."""
    x_0 = np.empty_like(x)
    eps = np.empty_like(x)

    # Channel 0: normally distributed data.
    x_0[:, 0] = (alpha * 0.25 * x[:, 0] + sigma**2 * 0.3) / (alpha**2 * 0.25 + sigma**2)

    # Channel 1: data from a mixture of two normal distributions.
    weight, mean, deviation = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.2, 0.3])
    variance = alpha**2 * deviation**2 + sigma**2
    y = x[:, 1:2]
    log_share = np.log(weight) - 0.5 * np.log(variance) - (y - alpha * mean) ** 2 / (2 * variance)
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    x_0[:, 1] = (share * (alpha * deviation**2 * y + sigma**2 * mean) / variance).sum(axis=1)
    eps[:, :2] = (x[:, :2] - alpha * x_0[:, :2]) / sigma

    # Channels 2 to 4: no data stands behind this one, it only has to mix channels and to bend.
    i, j = np.meshgrid(np.arange(3), np.arange(3), indexing="ij")
    log_ratio = math.log(alpha / sigma) if alpha > 0 else -math.inf
    h = np.tanh(x[:, 2:] @ (0.7 * np.sin(1 + 3 * i + j)).T + 0.1 * log_ratio)
    eps[:, 2:] = sigma * x[:, 2:] + 0.3 * h
    x_0[:, 2:] = (x[:, 2:] - sigma * eps[:, 2:]) / alpha if alpha > 0 else math.nan
    return eps, x_0


class Network:
    """What the peers call; remembers the timesteps (or noise ratios) that it was given."""

    def __init__(self, schedule: Discrete | Flow, prediction: str = "epsilon", learned: bool = False) -> None:
        self.schedule, self.prediction, self.learned = schedule, prediction, learned
        self.given: list[int | float] = []

    def output(self, x: Array, alpha: float, sigma: float) -> Array:
        eps, x_0 = predict(x, alpha, sigma)
        if self.prediction == "sample":
            out = x_0
        elif self.prediction == "v_prediction":
            out = alpha * eps - sigma * x_0
        elif self.prediction == "flow":
            out = eps - x_0
            # At the start of a flow alpha is 0 and x_0 does not follow from epsilon: there is no data behind these
            # channels, so that their expression is taken for the velocity itself.
            out[:, 2:] = eps[:, 2:]
        else:
            out = eps
        return np.concatenate([out, 0.5 * np.tanh(x)], axis=1) if self.learned else out

    def __call__(self, x: torch.Tensor, t: Any, *_: Any) -> torch.Tensor:
        t = torch.as_tensor(t).reshape(-1)[0]
        self.given.append(int(t) if not t.is_floating_point() else float(t))
        out = self.output(rows(x), *self.schedule.at(float(t)))
        return torch.from_numpy(out).to(x.dtype).reshape(len(out), -1, 1, 1)

    def denoised(self, x: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        """For peers that keep x_0 + ratio * epsilon and hand the ratio."""
        s = float(ratio.reshape(-1)[0])
        self.given.append(s)
        alpha = 1 / math.sqrt(1 + s * s)
        eps = self.output(rows(x) * alpha, alpha, s * alpha)
        return x - s * torch.from_numpy(eps).to(x.dtype).reshape(x.shape)


class Noise:
    """Stands in for the peers' draws: at channel c the k-th is sqrt(2) sin(12.9898 (c + 1) + 78.233 (k + 1))."""

    def __init__(self) -> None:
        self.count = 0

    def like(self, x: torch.Tensor) -> torch.Tensor:
        channel = torch.arange(1, 6, dtype=torch.float64)
        row = math.sqrt(2) * torch.sin(12.9898 * channel + 78.233 * (self.count + 1))
        self.count += 1
        return row.to(x.dtype).reshape(1, 5, 1, 1).expand(x.shape).clone()

    def shaped(self, shape: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> torch.Tensor:
        return self.like(torch.empty(tuple(shape), dtype=dtype or torch.float32))


def rows(x: torch.Tensor) -> Array:
    return x.detach().to(torch.float64).reshape(x.shape[0], -1).numpy()


def start(dtype: torch.dtype, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    return torch.from_numpy(START).to(dtype).reshape(1, 5, 1, 1) * scale


# ------------------------------------------------------------------------------------------------ what is recorded


@dataclass
class Run:
    timesteps: list[int | float]
    states: list[torch.Tensor]
    draws: list[int] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    name: str  # of the file; begins with the peer's name
    call: str
    run: Callable[[int], Run]
    steps: tuple[int, ...] = VARIANT_STEPS
    dtype: str = "float32"
    scaling: str = "vp"
    network: str = "epsilon"
    schedule: str = "linear"


def spell(function: str, arguments: dict[str, Any]) -> str:
    return f"{function}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def number(value: int | float, dtype: str) -> str:
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "null"
    return f"{value:.9g}" if dtype == "float32" else f"{value:.17g}"


def listed(values: Any, dtype: str) -> str:
    return f"[{', '.join(number(value, dtype) for value in values)}]"


def run_text(steps: int, case: Case) -> str:
    try:
        run = case.run(steps)
    except Exception as error:  # a peer's failure is a result like any other
        line = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return f'{{"steps": {steps}, "error": {json.dumps(line)}}}'
    parts = [f'"steps": {steps}', f'"timesteps": {listed(run.timesteps, case.dtype)}']
    if any(run.draws):
        parts.append(f'"draws": {listed(run.draws, case.dtype)}')
    parts += [f'"{key}": {listed(v, case.dtype) if isinstance(v, list) else v}' for key, v in run.extra.items()]
    states = ",\n".join(listed(rows(x).ravel().tolist(), case.dtype) for x in run.states)
    return "{" + ",\n".join([*parts, f'"states": [\n{states}]']) + "}"


def head(name: str, call: str, **more: str) -> str:
    peer = next(peer for peer in PEERS if name.startswith(peer.replace("-", "_")))
    entries = {"peer": peer, "version": PEERS[peer](), "torch": torch.__version__.split("+")[0], "call": call, **more}
    entries["script"] = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())


def case_text(case: Case) -> str:
    fields = {"dtype": case.dtype, "scaling": case.scaling, "network": case.network, "schedule": case.schedule}
    runs = ",\n".join(run_text(steps, case) for steps in case.steps)
    return "{" + head(case.name, case.call, **fields) + ',\n"runs": [\n' + runs + "]}\n"


PEERS: dict[str, Callable[[], str]] = {
    "diffusers": lambda: importlib.metadata.version("diffusers"),
    "k-diffusion": lambda: importlib.metadata.version("k-diffusion"),
    **{peer: lambda commit=commit: commit for peer, (commit, _, _) in SOURCES.items()},
}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def differences(marks: list[int]) -> list[int]:
    return [after - before for before, after in zip(marks, marks[1:])]


# ------------------------------------------------------------------------------------------------ guided-diffusion


def guided_diffusion(variance: str, steps: int) -> Any:
    gd = importlib.import_module("guided_diffusion.gaussian_diffusion")
    respace = importlib.import_module("guided_diffusion.respace")
    return respace.SpacedDiffusion(
        respace.space_timesteps(1000, [steps]),
        betas=gd.get_named_beta_schedule("linear", 1000),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType[variance],
        loss_type=gd.LossType.MSE,
    )


def guided_run(sampler: str, variance: str, clip: bool, eta: float, dtype: torch.dtype, steps: int) -> Run:
    diffusion = guided_diffusion(variance, steps)
    network, noise = Network(Discrete(linear_betas()), learned=variance == "LEARNED_RANGE"), Noise()
    x = start(dtype)
    loop = diffusion.p_sample_loop_progressive
    if sampler == "ddim":
        loop = partial(diffusion.ddim_sample_loop_progressive, eta=eta)
    states, marks = [], [0]
    with unittest.mock.patch.object(torch, "randn_like", noise.like):
        for out in loop(network, x.shape, noise=x, clip_denoised=clip, device="cpu"):
            states.append(out["sample"])
            marks.append(noise.count)
    return Run(network.given, states, differences(marks))


def guided_bound_run(variance: str, clip: bool, steps: int) -> Run:
    network, noise = Network(Discrete(linear_betas()), learned=variance == "LEARNED_RANGE"), Noise()
    pictures = torch.from_numpy(PICTURES).reshape(-1, 5, 1, 1)
    with unittest.mock.patch.object(torch, "randn_like", noise.like):
        bound = guided_diffusion(variance, steps).calc_bpd_loop(network, pictures, clip_denoised=clip)
    extra = {"prior": bound["prior_bpd"].tolist(), "total": bound["total_bpd"].tolist()}
    return Run(network.given, list(bound["vb"].T), [1] * steps, extra)


def guided_cases() -> Iterator[Case]:
    def case(
        name: str,
        sampler: str,
        variance: str,
        clip: bool,
        eta: float,
        steps: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> Case:
        loop = f"p_sample_loop_progressive(model, noise=x, clip_denoised={clip})"
        if sampler == "ddim":
            loop = f"ddim_sample_loop_progressive(model, noise=x, clip_denoised={clip}, eta={eta})"
        run = partial(guided_run, sampler, variance, clip, eta, dtype)
        if sampler == "bound":
            loop = f"calc_bpd_loop(model, pictures, clip_denoised={clip})"
            run = partial(guided_bound_run, variance, clip)
        call = (
            "SpacedDiffusion(space_timesteps(1000, [N]), betas=get_named_beta_schedule('linear', 1000), "
            f"model_mean_type=EPSILON, model_var_type={variance}, loss_type=MSE).{loop}"
        )
        network = "epsilon, variance" if variance == "LEARNED_RANGE" else "epsilon"
        arithmetic = "float32" if dtype == torch.float32 else MIXED
        return Case(f"guided_diffusion_{name}", call, run, steps, arithmetic, network=network)

    learned = "LEARNED_RANGE"
    yield case("ddpm", "ddpm", learned, False, 0.0, (*PROFILE_STEPS, 1))
    yield case("ddim", "ddim", learned, False, 0.0, (*PROFILE_STEPS, 1))
    yield case("ddim_eta1", "ddim", learned, False, 1.0, VARIANT_STEPS)
    yield case("ddpm_fixed_small", "ddpm", "FIXED_SMALL", False, 0.0, VARIANT_STEPS)
    yield case("ddpm_fixed_large", "ddpm", "FIXED_LARGE", False, 0.0, VARIANT_STEPS)
    yield case("ddpm_clip", "ddpm", learned, True, 0.0, VARIANT_STEPS)
    yield case("ddim_clip", "ddim", learned, True, 0.0, VARIANT_STEPS)
    yield case("ddim_clip_eta1", "ddim", learned, True, 1.0, VARIANT_STEPS)
    # How much of a difference from the float32 runs is their states' and how much their tables'.
    yield case("ddim_float64", "ddim", learned, False, 0.0, FLOAT64_STEPS, torch.float64)
    yield case("bound", "bound", learned, False, 0.0, (*VARIANT_STEPS, 250, 1), torch.float64)
    yield case("bound_clip", "bound", learned, True, 0.0, VARIANT_STEPS, torch.float64)
    yield case("bound_fixed_small", "bound", "FIXED_SMALL", False, 0.0, VARIANT_STEPS, torch.float64)
    yield case("bound_fixed_large", "bound", "FIXED_LARGE", False, 0.0, VARIANT_STEPS, torch.float64)


def spacing_text() -> str:
    """The file of timestep lists alone: some in full, the others by digests."""
    space = importlib.import_module("guided_diffusion.respace").space_timesteps

    def digest(steps: list[int]) -> str:
        weighted = sum((i + 1) * t for i, t in enumerate(steps))
        return f'{len(steps)}, {weighted}, "{hashlib.sha256(",".join(map(str, steps)).encode()).hexdigest()[:16]}"'

    lists, uniform, strided, errors = [], [], [], {}
    full = ["ddim10", "ddim25", "ddim50", "10,15,20", "1", "2", "7", "13", "21", "50"]
    for total, sections in [*((1000, s) for s in full), (300, "10,15,20"), (999, "5,0,7,1"), (1000, "10,10,10")]:
        lists.append(f'{{"total": {total}, "sections": "{sections}", "timesteps": {sorted(space(total, sections))}}}')
    for n in range(1, 1001):
        uniform.append(f"[{n}, {digest(sorted(space(1000, [n])))}]")
        try:
            strided.append(f"[{n}, {digest(sorted(space(1000, f'ddim{n}')))}]")
        except ValueError as error:
            errors.setdefault(f"ValueError: {error}", []).append(n)
    failed = [f'{{"error": {json.dumps(error)}, "sections": "ddimN", "N": {ns}}}' for error, ns in errors.items()]
    for total, sections in [(1000, "1001"), (1000, "400,400,10"), (10, "3,5,3")]:
        try:
            space(total, sections)
        except ValueError as error:
            failed.append(f'{{"error": "ValueError: {error}", "sections": "{sections}", "total": {total}}}')
    blocks = {"lists": lists, "uniform": uniform, "ddim": strided, "errors": failed}
    body = ",\n".join(f'"{key}": [\n' + ",\n".join(lines) + "]" for key, lines in blocks.items())
    note = (
        "uniform is space_timesteps(1000, [N]) and ddim is space_timesteps(1000, 'ddimN'), each an entry "
        "[N, count, sum of (i + 1) * t_i over the ascending list, first 16 hex digits of the SHA-256 of the ascending "
        "list joined by commas]"
    )
    call = "sorted(space_timesteps(total, sections))"
    return "{" + head("guided_diffusion", call, digests=note) + ",\n" + body + "}\n"


# ------------------------------------------------------------------------------------------------ diffusers


def diffusers_run(
    scheduler_name: str,
    options: dict[str, Any],
    step: dict[str, Any],
    network: Callable[[], Network],
    dtype: torch.dtype,
    steps: int,
) -> Run:
    diffusers = importlib.import_module("diffusers")
    options = {key: value(steps) if callable(value) else value for key, value in options.items()}
    scheduler = getattr(diffusers, scheduler_name)(**options)
    scheduler.set_timesteps(steps)
    module = sys.modules[type(scheduler).__module__]
    model, noise = network(), Noise()
    x = start(dtype, getattr(scheduler, "init_noise_sigma", 1.0))
    states, marks = [], [0]
    patch = contextlib.nullcontext()
    if hasattr(module, "randn_tensor"):
        patch = unittest.mock.patch.object(module, "randn_tensor", noise.shaped)
    with patch, torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(scaled, t), t, x, **step).prev_sample
            states.append(x)
            marks.append(noise.count)
    return Run(model.given, states, differences(marks))


def diffusers_cases() -> Iterator[Case]:
    linear = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    cosine = {"beta_schedule": "squaredcos_cap_v2"}

    def case(
        name: str,
        scheduler: str,
        steps: tuple[int, ...] = VARIANT_STEPS,
        scaling: str = "vp",
        step: dict[str, Any] | None = None,
        betas: dict[str, Any] = linear,
        spelled: dict[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Case:
        learned = options.get("variance_type") == "learned_range"
        prediction = "flow" if scheduler.startswith("FlowMatch") else options.get("prediction_type", "epsilon")
        noise_schedule = "flow" if prediction == "flow" else "cosine" if betas is cosine else "linear"
        options = options if prediction == "flow" else {**betas, **options}
        levels = {"flow": Flow, "cosine": lambda: Discrete(cosine_betas()), "linear": lambda: Discrete(linear_betas())}

        def network() -> Network:
            return Network(levels[noise_schedule](), prediction, learned)

        call = spell(f"{scheduler}Scheduler", {k: v for k, v in options.items() if not callable(v)})
        for key, value in (spelled or {}).items():
            call = f"{call[:-1]}, {key}={value})"
        extra = "".join(f", {key}={value!r}" for key, value in (step or {}).items())
        call += f"; set_timesteps(N); x *= init_noise_sigma; step(model(scale_model_input(x, t), t), t, x{extra})"
        run = partial(diffusers_run, f"{scheduler}Scheduler", options, step or {}, network, dtype)
        output = {"v_prediction": "v", "flow": "velocity", "sample": "x_0"}.get(prediction, prediction)
        output += ", variance" if learned else ""
        arithmetic = "float32" if dtype == torch.float32 else MIXED
        return Case(f"diffusers_{name}", call, run, steps, arithmetic, scaling, output, noise_schedule)

    yield case("ddpm", "DDPM", PROFILE_STEPS)
    yield case("ddpm_linspace", "DDPM", timestep_spacing="linspace")
    yield case("ddpm_trailing", "DDPM", timestep_spacing="trailing")
    yield case("ddpm_trailing_fixed_large", "DDPM", timestep_spacing="trailing", variance_type="fixed_large")
    yield case("ddpm_fixed_large", "DDPM", variance_type="fixed_large")
    yield case("ddpm_learned_range", "DDPM", variance_type="learned_range")
    yield case("ddpm_no_clip", "DDPM", clip_sample=False)

    yield case("ddim", "DDIM", PROFILE_STEPS)
    yield case("ddim_no_clip", "DDIM", clip_sample=False)
    yield case("ddim_linspace", "DDIM", timestep_spacing="linspace")
    yield case("ddim_trailing", "DDIM", (7, 10, 13, 25), timestep_spacing="trailing")
    yield case("ddim_offset1", "DDIM", (*VARIANT_STEPS, 1000), set_alpha_to_one=False, steps_offset=1)
    yield case("ddim_eta05", "DDIM", step={"eta": 0.5})
    yield case("ddim_eta1_clipped_output", "DDIM", step={"eta": 1.0, "use_clipped_model_output": True})
    yield case("ddim_v", "DDIM", prediction_type="v_prediction")
    yield case("ddim_sample", "DDIM", prediction_type="sample")
    yield case("ddim_thresholding", "DDIM", thresholding=True)
    yield case("ddim_float64", "DDIM", FLOAT64_STEPS, dtype=torch.float64)

    multistep = partial(case, scheduler="DPMSolverMultistep")
    yield multistep("dpmpp", steps=PROFILE_STEPS)
    yield multistep("dpmpp_order1", solver_order=1)
    yield multistep("dpmpp_order3", steps=(7, 10, 14, 15, 25), solver_order=3)
    yield multistep("dpmpp_heun", solver_type="heun")
    yield multistep("dpmpp_trailing", timestep_spacing="trailing")
    yield multistep("dpmpp_leading", timestep_spacing="leading")
    yield multistep("dpmpp_leading_offset1", timestep_spacing="leading", steps_offset=1)
    yield multistep("dpmpp_karras", use_karras_sigmas=True)
    yield multistep("dpmpp_exponential", use_exponential_sigmas=True)
    yield multistep("dpmpp_beta", use_beta_sigmas=True)
    yield multistep("dpmpp_lu", use_lu_lambdas=True)
    yield multistep("dpmpp_sigma_min", final_sigmas_type="sigma_min")
    yield multistep("dpmpp_sigma_min_order3", final_sigmas_type="sigma_min", solver_order=3)
    yield multistep("dpmpp_euler_at_final", euler_at_final=True)
    yield multistep("dpmpp_sigma_min_euler_at_final", final_sigmas_type="sigma_min", euler_at_final=True)
    yield multistep("dpmpp_v", prediction_type="v_prediction")
    yield multistep("dpmpp_sample", prediction_type="sample")
    yield multistep("dpmpp_thresholding", thresholding=True)
    yield multistep("dpmpp_cosine", betas=cosine)
    yield multistep("dpmpp_cosine_clipped", betas=cosine, lambda_min_clipped=-5.1)
    for order in (1, 2, 3):
        options = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": order}
        yield multistep(f"dpm_order{order}", **options)
    yield multistep("dpm_heun", algorithm_type="dpmsolver", final_sigmas_type="sigma_min", solver_type="heun")
    for order in (1, 2):  # order 3 adds where its formula subtracts
        yield multistep(f"sde_dpmpp_order{order}", algorithm_type="sde-dpmsolver++", solver_order=order)
    yield multistep("sde_dpmpp_heun", algorithm_type="sde-dpmsolver++", solver_type="heun")
    yield multistep("sde_dpmpp_karras", algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)

    for order in (1, 2, 3):
        yield case(f"dpmpp_singlestep_order{order}", "DPMSolverSinglestep", solver_order=order)
    yield case("dpmpp_singlestep_lower_final", "DPMSolverSinglestep", solver_order=3, lower_order_final=True)

    for kind in ("bh1", "bh2"):
        for order in (2, 3):
            yield case(f"unipc_{kind}_order{order}", "UniPCMultistep", solver_type=kind, solver_order=order)
    # With the final sigma of zero, the last state of bh1 is not a number.
    yield case("unipc_bh1_sigma_min", "UniPCMultistep", solver_type="bh1", final_sigmas_type="sigma_min")
    yield case(
        "unipc_no_corrector",
        "UniPCMultistep",
        spelled={"disable_corrector": "list(range(N))"},
        disable_corrector=lambda steps: list(range(steps)),
    )
    for order in (2, 3):
        yield case(f"deis_order{order}", "DEISMultistep", solver_order=order)

    ratio = partial(case, scaling="ve")
    yield ratio("euler", scheduler="EulerDiscrete")
    yield ratio("euler_leading", scheduler="EulerDiscrete", timestep_spacing="leading")
    yield ratio("euler_trailing", scheduler="EulerDiscrete", timestep_spacing="trailing")
    yield ratio("euler_karras", scheduler="EulerDiscrete", use_karras_sigmas=True)
    yield ratio("euler_ancestral", scheduler="EulerAncestralDiscrete")
    yield ratio("heun", scheduler="HeunDiscrete")
    yield ratio("heun_karras", scheduler="HeunDiscrete", use_karras_sigmas=True)
    yield ratio("lms", scheduler="LMSDiscrete")
    yield ratio("lms_karras", scheduler="LMSDiscrete", use_karras_sigmas=True)
    yield ratio("kdpm2", scheduler="KDPM2Discrete")
    yield ratio("kdpm2_ancestral", scheduler="KDPM2AncestralDiscrete")

    yield case("pndm", "PNDM")
    yield case("pndm_skip_prk", "PNDM", skip_prk_steps=True)
    yield case("pndm_skip_prk_offset1", "PNDM", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    yield case("lcm", "LCM", (1, 2, 4, 8))
    for shift in (1.0, 3.0):
        yield case(f"flow_euler_shift{shift:g}", "FlowMatchEulerDiscrete", shift=shift)
        yield case(f"flow_heun_shift{shift:g}", "FlowMatchHeunDiscrete", shift=shift)


# ------------------------------------------------------------------------------------------------ dpm-solver


def dpm_solver_run(solver: dict[str, Any], sample: dict[str, Any], steps: int) -> Run:
    dpm = importlib.import_module("dpm_solver_pytorch")
    with default_dtype(torch.float64):  # its time steps have the default type
        network = Network(Discrete(linear_betas()))
        schedule = dpm.NoiseScheduleVP("discrete", betas=torch.from_numpy(linear_betas()), dtype=torch.float64)
        model = dpm.model_wrapper(network, schedule, model_type="noise")
        options = {"skip_type": "time_uniform", "return_intermediate": True, **sample}
        x = start(torch.float64)
        _, states = dpm.DPM_Solver(model, schedule, **solver).sample(x, steps=steps, **options)
        if options["method"] == "multistep":
            del states[0]  # the start
        return Run(network.given, states)


def dpm_solver_adaptive_run(solver: dict[str, Any], order: int, steps: int) -> Run:
    del steps
    dpm = importlib.import_module("dpm_solver_pytorch")
    trials: list[tuple[float, float, torch.Tensor]] = []

    class Watched(dpm.DPM_Solver):
        """Notes every trial of the update that the step is taken with."""

        def noted(self, update: Callable[..., Any], x: Any, s: Any, t: Any, **more: Any) -> Any:
            out = update(x, s, t, **more)
            if not more.get("return_intermediate"):
                trials.append((float(s), float(t), out))
            return out

        def singlestep_dpm_solver_second_update(self, x: Any, s: Any, t: Any, **more: Any) -> Any:
            return self.noted(super().singlestep_dpm_solver_second_update, x, s, t, **more)

        def singlestep_dpm_solver_third_update(self, x: Any, s: Any, t: Any, **more: Any) -> Any:
            return self.noted(super().singlestep_dpm_solver_third_update, x, s, t, **more)

    with default_dtype(torch.float64):
        network = Network(Discrete(linear_betas()))
        schedule = dpm.NoiseScheduleVP("discrete", betas=torch.from_numpy(linear_betas()), dtype=torch.float64)
        model = dpm.model_wrapper(network, schedule, model_type="noise")
        x = torch.cat([start(torch.float64), start(torch.float64, -0.5)])
        end = Watched(model, schedule, **solver).sample(x, order=order, method="adaptive")
    # A trial was accepted if the next one starts where it ended.
    accepted = [a for a, b in zip(trials, trials[1:]) if b[0] == a[1]] + trials[-1:]
    assert torch.equal(accepted[-1][2], end)
    times, states = [t for _, t, _ in accepted], [x for _, _, x in accepted]
    return Run(network.given, states, extra={"accepted": times, "trials": len(trials), "nfe": order * len(trials)})


def dpm_solver_cases() -> Iterator[Case]:
    def case(
        name: str,
        method: str,
        algorithm: str = "dpmsolver++",
        steps: tuple[int, ...] = VARIANT_STEPS,
        solver: dict[str, Any] | None = None,
        **sample: Any,
    ) -> Case:
        solver = {"algorithm_type": algorithm, **(solver or {})}
        sample = {"method": method, **sample}
        shown = {"skip_type": "time_uniform", "return_intermediate": True, **sample}
        call = "NoiseScheduleVP('discrete', betas=betas, dtype=float64); model_wrapper(model, ns, model_type='noise'); "
        call += f"DPM_Solver(model, ns, {spell('', solver)[1:-1]}).sample(x, steps=N, {spell('', shown)[1:]}"
        run = partial(dpm_solver_run, solver, sample)
        return Case(f"dpm_solver_{name}", call, run, steps, "float64")

    yield case("multistep2", "multistep", order=2, steps=PROFILE_STEPS)
    yield case("multistep1", "multistep", order=1)
    yield case("multistep3", "multistep", order=3)
    yield case("multistep2_taylor", "multistep", order=2, solver_type="taylor")
    yield case("multistep2_logsnr", "multistep", order=2, skip_type="logSNR")
    yield case("multistep2_quadratic", "multistep", order=2, skip_type="time_quadratic")
    yield case("multistep2_not_lower_final", "multistep", order=2, lower_order_final=False)
    yield case("multistep2_denoise_to_zero", "multistep", order=2, denoise_to_zero=True)
    yield case("multistep2_thresholding", "multistep", order=2, solver={"correcting_x0_fn": "dynamic_thresholding"})
    yield case("noise_multistep1", "multistep", "dpmsolver", order=1)
    yield case("noise_multistep2", "multistep", "dpmsolver", order=2)
    yield case("noise_multistep3", "multistep", "dpmsolver", order=3)
    yield case("noise_multistep2_taylor", "multistep", "dpmsolver", order=2, solver_type="taylor")
    for prefix, algorithm in (("", "dpmsolver++"), ("noise_", "dpmsolver")):
        for order in (2, 3):
            for suffix, skip in (("uniform", "time_uniform"), ("logsnr", "logSNR"), ("quadratic", "time_quadratic")):
                name = f"{prefix}singlestep{order}_{suffix}"
                yield case(name, "singlestep", algorithm, order=order, skip_type=skip)
            name = f"{prefix}singlestep{order}_taylor"
            yield case(name, "singlestep", algorithm, order=order, solver_type="taylor")
            name = f"{prefix}singlestep{order}_fixed"
            yield case(name, "singlestep_fixed", algorithm, order=order)
            solver = {"algorithm_type": algorithm}
            call = f"DPM_Solver(model, ns, algorithm_type={algorithm!r}).sample(torch.cat([x, -0.5 * x]), order={order}"
            call += ", method='adaptive')"
            run = partial(dpm_solver_adaptive_run, solver, order)
            yield Case(f"dpm_solver_{prefix}adaptive{order}", call, run, (0,), "float64")
    yield case("singlestep3_denoise_to_zero", "singlestep", order=3, denoise_to_zero=True)


# ------------------------------------------------------------------------------------------------ k-diffusion


def k_diffusion_sampling() -> types.ModuleType:
    """k_diffusion.sampling without the package's __init__, which imports training code and what that needs."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
        absent = [name for name in ("torchvision", "safetensors") if importlib.util.find_spec(name) is None]
        stubs = {name: unittest.mock.MagicMock() for top in absent for name in (top, f"{top}.transforms")}
        with unittest.mock.patch.dict(sys.modules, stubs):
            importlib.import_module("k_diffusion.utils")
        importlib.import_module("k_diffusion.sampling")
    return sys.modules["k_diffusion.sampling"]


def k_diffusion_run(sampler: str, options: dict[str, Any], steps: int) -> Run:
    sampling = k_diffusion_sampling()
    schedule = Discrete(linear_betas())
    low, high = schedule.ratio(0), schedule.ratio(999)
    network, noise = Network(schedule), Noise()
    states: list[torch.Tensor] = []
    marks: list[int] = []
    options = {"disable": True, **options}
    if "noise_sampler" in inspect.signature(sampling.__dict__[sampler]).parameters:
        options["noise_sampler"] = lambda *_: noise.like(x)

    def outer(count: int, **_: Any) -> Iterator[int]:
        for i in range(count):
            marks.append(noise.count)
            yield i

    def before_step(info: dict[str, Any]) -> None:
        if info["i"] > 0:
            states.append(info["x"])
        if sampler == "sample_dpm_fast":
            marks.append(noise.count)

    patches = [
        unittest.mock.patch.object(torch, "randn_like", noise.like),
        # Some draw before they call back: only the loop itself tells where a step begins.
        unittest.mock.patch.object(sampling, "trange", outer),
    ]
    with default_dtype(torch.float64), patches[0], patches[1]:
        x = start(torch.float64, math.sqrt(1 + high**2))
        call = partial(sampling.__dict__[sampler], network.denoised, x, callback=before_step, **options)
        if sampler == "sample_dpm_fast":
            end = call(sigma_min=low, sigma_max=high, n=steps)
        else:
            end = call(sigmas=sampling.get_sigmas_karras(steps, low, high))
    return Run(network.given, [*states, end], differences([*marks, noise.count]))


def k_diffusion_adaptive_run(order: int, eta: float, steps: int) -> Run:
    del steps
    sampling = k_diffusion_sampling()
    schedule = Discrete(linear_betas())
    low, high = schedule.ratio(0), schedule.ratio(999)
    network, noise = Network(schedule), Noise()
    trials: list[dict[str, Any]] = []

    def after_trial(info: dict[str, Any]) -> None:
        trials.append({**info, "draws": noise.count})

    with default_dtype(torch.float64):
        x = start(torch.float64, math.sqrt(1 + high**2))
        _, info = sampling.sample_dpm_adaptive(
            network.denoised,
            x,
            low,
            high,
            callback=after_trial,
            disable=True,
            order=order,
            eta=eta,
            noise_sampler=lambda *_: noise.like(x),
            return_info=True,
        )
    counts = [0, *(trial["n_accept"] for trial in trials)]
    accepted = [trial for trial, a, b in zip(trials, counts, counts[1:]) if b > a]
    sigmas = [float(trial["sigma"]) for trial in accepted]
    extra = {"accepted": sigmas, "trials": info["steps"], "nfe": info["nfe"]}
    draws = differences([0, *(trial["draws"] for trial in accepted)])
    return Run(network.given, [trial["x"] for trial in accepted], draws, extra)


def k_diffusion_cases() -> Iterator[Case]:
    def case(name: str, steps: tuple[int, ...] = VARIANT_STEPS, sampler: str = "", **options: Any) -> Case:
        sampler = f"sample_{sampler or name}"
        more = "".join(f", {key}={value!r}" for key, value in options.items())
        call = f"{sampler}(denoiser, x * (1 + sigma_max ** 2) ** 0.5, get_sigmas_karras(N, sigma_min, sigma_max){more})"
        if name == "dpm_fast":
            call = f"{sampler}(denoiser, x * (1 + sigma_max ** 2) ** 0.5, sigma_min, sigma_max, n=N{more})"
        return Case(f"k_diffusion_{name}", call, partial(k_diffusion_run, sampler, options), steps, "float64", "ve")

    yield case("dpmpp_2m", PROFILE_STEPS)
    for name in ("euler", "heun", "dpm_2", "lms", "euler_ancestral", "dpm_2_ancestral"):
        yield case(name)
    for name in ("dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_fast"):
        yield case(name)
    yield case("dpmpp_2m_sde_heun", sampler="dpmpp_2m_sde", solver_type="heun")
    yield case("dpmpp_2m_sde_eta0", sampler="dpmpp_2m_sde", eta=0.0)
    yield case("dpmpp_3m_sde_eta0", sampler="dpmpp_3m_sde", eta=0.0)
    for order in (2, 3):
        for eta in (0.0, 1.0):
            call = "sample_dpm_adaptive(denoiser, x * (1 + sigma_max ** 2) ** 0.5, sigma_min, sigma_max, "
            call += f"order={order}, eta={eta}, return_info=True)"
            name = f"k_diffusion_dpm_adaptive{order}" + ("_eta1" if eta else "")
            yield Case(name, call, partial(k_diffusion_adaptive_run, order, eta), (0,), "float64", "ve")


# ------------------------------------------------------------------------------------------------ latent-diffusion


def latent_run(kind: str, discretize: str, eta: float, steps: int) -> Run:
    module = importlib.import_module(f"ldm.models.diffusion.{kind}")
    schedule = Discrete(linear_betas())
    network, noise = Network(schedule), Noise()
    before = np.append(1.0, schedule.alphas_cumprod[:-1])
    model = types.SimpleNamespace(
        num_timesteps=1000,
        device=torch.device("cpu"),
        betas=torch.tensor(schedule.betas, dtype=torch.float32),
        alphas_cumprod=torch.tensor(schedule.alphas_cumprod, dtype=torch.float32),
        alphas_cumprod_prev=torch.tensor(before, dtype=torch.float32),
        apply_model=network,
    )
    base = module.DDIMSampler if kind == "ddim" else module.PLMSSampler

    class OnCpu(base):
        def register_buffer(self, name: str, attr: Any) -> None:  # theirs moves every table to a GPU
            setattr(self, name, attr)

        def make_schedule(self, ddim_num_steps: int, **options: Any) -> None:  # sample() does not hand this one on
            super().make_schedule(ddim_num_steps, **{**options, "ddim_discretize": discretize})

    marks = [0]
    with unittest.mock.patch.object(module, "noise_like", noise.shaped):
        _, seen = OnCpu(model).sample(
            S=steps,
            batch_size=1,
            shape=(5, 1, 1),
            eta=eta,
            x_T=start(torch.float32),
            log_every_t=1,
            callback=lambda _: marks.append(noise.count),
            verbose=False,
        )
    return Run(network.given, seen["x_inter"][1:], differences(marks))


def latent_cases() -> Iterator[Case]:
    def case(name: str, kind: str, steps: tuple[int, ...], discretize: str = "uniform", eta: float = 0.0) -> Case:
        call = f"{kind.upper()}Sampler(model).sample(S=N, batch_size=1, shape=(5, 1, 1), eta={eta}, x_T=x, "
        call += f"log_every_t=1), make_schedule with ddim_discretize={discretize!r}"
        return Case(f"latent_diffusion_{name}", call, partial(latent_run, kind, discretize, eta), steps)

    yield case("ddim", "ddim", PROFILE_STEPS)
    yield case("ddim_eta1", "ddim", PROFILE_STEPS, eta=1.0)
    yield case("ddim_quad", "ddim", VARIANT_STEPS, "quad")
    yield case("plms", "plms", VARIANT_STEPS)


# ------------------------------------------------------------------------------------------------ the program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer, (commit, file, _) in SOURCES.items():
        parser.add_argument(f"--{peer}", type=Path, required=True, help=f"folder with {file} of commit {commit[:12]}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where the JSON files go")
    parser.add_argument("--only", default="", help="make only the files whose names begin with this")
    options = vars(parser.parse_args())
    for peer, (commit, file, digest) in SOURCES.items():
        folder: Path = options[peer.replace("-", "_")]
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
            parser.error(f"{folder / file} is not that of commit {commit}")
        sys.path.insert(0, str(folder.resolve()))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    texts: dict[str, Callable[[], str]] = {"guided_diffusion_spacing": spacing_text}
    for cases in (guided_cases, diffusers_cases, dpm_solver_cases, k_diffusion_cases, latent_cases):
        texts |= {case.name: partial(case_text, case) for case in cases()}
    for name, text in texts.items():
        if not name.startswith(options["only"]):
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # peers chat
            made = text()
        (options["output"] / f"{name}.json").write_text(made)
        failures = [f"N={run['steps']} {run['error']}" for run in json.loads(made).get("runs", []) if "error" in run]
        print(name, len(made), *failures, sep="  ")


if __name__ == "__main__":
    main()
