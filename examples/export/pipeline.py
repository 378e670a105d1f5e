"""What a pipeline of diffusers says beside its networks.

How it draws: which of tstitch's profiles its scheduler is, and in how many steps. What its network predicts, and on
which noise schedule. The scale and shift of its latents.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from common import Config, ask, condition_lines, fail, say, shape_of_x
from options import finite_real, positive, positive_real, token_count
from single_file import OPEN_PREDICTION, config_of, index_of, latent_scale_of, scheduler_of

NO_KARRAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "timestep_spacing": "leading"}
# Schedulers that are a profile of tstitch, with what their keys must be. Of two values the first is what diffusers takes
# where the key is absent, and the second what the profile is.
PROFILES: dict[str, tuple[str, dict[str, object]]] = {
    "PNDMScheduler": (
        "diffusers-pndm",
        {"skip_prk_steps": (False, True), "set_alpha_to_one": False, "steps_offset": (0, 1), "timestep_spacing": "leading"},
    ),
    "EulerDiscreteScheduler": (
        "diffusers-euler",
        NO_KARRAS
        | {"interpolation_type": "linear", "timestep_spacing": ("linspace", "leading"), "steps_offset": (0, 1)}
        | {"timestep_type": "discrete", "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None},
    ),
    "DDIMScheduler": ("diffusers-ddim", CLIPPED | {"set_alpha_to_one": True, "steps_offset": 0}),
    "DDPMScheduler": ("diffusers-ddpm", CLIPPED | {"variance_type": "fixed_small", "steps_offset": 0}),
    "DPMSolverMultistepScheduler": (
        "diffusers-dpmpp",
        NO_KARRAS
        | {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
        | {"euler_at_final": False, "use_lu_lambdas": False, "use_flow_sigmas": False, "final_sigmas_type": "zero"}
        | {"variance_type": None, "thresholding": False, "timestep_spacing": "linspace"},
    ),
    "LCMScheduler": (
        "diffusers-lcm",
        {"original_inference_steps": 50, "clip_sample": False, "set_alpha_to_one": True, "timestep_scaling": 10.0}
        | {"thresholding": False, "timestep_spacing": "leading"},
    ),
}
# Of the noise schedule, which is read elsewhere, of what is off, and of other schedulers, which published folders have left
# there.
OTHER_KEYS = {
    "clip_sample", "set_alpha_to_one", "skip_prk_steps",
    "beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type",
    "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "steps_offset", "flow_shift",
    "lambda_min_clipped", "rescale_betas_zero_snr", "use_dynamic_shifting", "time_shift_type",
}  # fmt: skip
# What the pipelines take where nothing is asked for. In latent consistency models it is the scheduler that counts.
STEPS = {
    "StableDiffusion": 50, "LatentConsistencyModel": 4, "PixArt": 20, "DiT": 50, "DDIM": 50, "DDPM": 1000, "PNDM": 50,
}  # fmt: skip
# The noise schedules by diffusers' names, and by tstitch's.
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def is_consistency_model(folder: Path) -> bool:
    """Whether it is drawn by the sampler of latent consistency models, without guidance by a second evaluation."""
    scheduler = scheduler_of(folder)
    return scheduler is not None and scheduler.values.get("_class_name") == "LCMScheduler"


def unlike(values: Mapping[str, object], keys: Mapping[str, object], others: Iterable[str]) -> str | None:
    """The first key of a scheduler by which it is not a profile. @keys: as PROFILES has them. @others: of no effect."""
    for key, wanted in keys.items():
        default, wanted = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        value = values.get(key, default)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            return key
    # Another key may change what the scheduler does, unless it is off.
    unknown = (key for key in values if not key.startswith("_") and key not in keys and key not in others)
    return next((key for key in unknown if values[key] not in (None, False)), None)


def sampler_of(folder: Path) -> dict[str, object]:
    """The keys profile and steps, where the pipeline's scheduler is one that tstitch has a profile of."""
    scheduler = scheduler_of(folder)
    found = PROFILES.get(scheduler.values.get("_class_name")) if scheduler else None
    if found is None:
        return {}
    profile, keys = found
    values = scheduler.values
    if unlike(values, keys, OTHER_KEYS) is not None:
        return {}
    if values.get("rescale_betas_zero_snr") or values.get("lambda_min_clipped", "-inf") not in ("-inf", float("-inf")):
        return {}
    index = index_of(folder)
    name = index.values.get("_class_name") if index else None
    steps = next((n for start, n in STEPS.items() if isinstance(name, str) and name.startswith(start)), None)
    if profile == "diffusers-lcm":
        steps = STEPS["LatentConsistencyModel"]
    return {"profile": profile, **({"steps": steps} if steps else {})}


def add_noise(parser: argparse.ArgumentParser) -> None:
    """The options for `noise`."""
    parser.add_argument("--prediction", choices=["epsilon", "sample", "v_prediction"], help="what the network predicts")
    parser.add_argument("--noise-schedule", choices=sorted(SCHEDULES.values()), help="with the numbers that follow:")
    parser.add_argument("--num-train-timesteps", type=positive, default=1000, help="(default: %(default)s)")
    parser.add_argument("--beta-start", type=float)
    parser.add_argument("--beta-end", type=float)


def noise(folder: Path, args: argparse.Namespace, questions: Mapping[str, str] | None = None) -> dict[str, object]:
    """What the network predicts, and its noise schedule: from the options, else from the pipeline's scheduler.

    @questions: what else must be asked for.
    """
    scheduler = scheduler_of(folder)
    ends = [] if args.noise_schedule == "cosine" else ["beta_start", "beta_end"]
    options = ["prediction", "noise_schedule", *ends] if scheduler is None else ends if args.noise_schedule else []
    seen = "no scheduler/scheduler_config.json" if scheduler is None else f"--noise-schedule {args.noise_schedule}"
    absent = ", ".join(f"--{option.replace('_', '-')}" for option in options if getattr(args, option) is None)
    if folder.is_file() and args.prediction is None and scheduler is not None and "prediction_type" not in scheduler.values:
        questions = {**(questions or {}), "--prediction": OPEN_PREDICTION}
    ask(folder, {**(questions or {}), **({absent: seen} if absent else {})})

    def either(option: str, read: Callable[[Config], object]) -> object:
        value = getattr(args, option)
        return read(scheduler) if value is None else value

    kinds = ("epsilon", "sample", "v_prediction")
    values = {"prediction": either("prediction", lambda s: s.only("prediction_type", *kinds))}
    # A schedule that is given is given whole; numbers of another would not belong to it.
    if args.noise_schedule is None and scheduler is not None:
        if scheduler.get("use_flow_sigmas", False) is not False:
            scheduler.refuse("use_flow_sigmas", "must be false", scheduler.get("use_flow_sigmas"))
        betas, count = scheduler.get("trained_betas"), None
        if betas is None:
            names = list(SCHEDULES)
            if (name := scheduler.get("beta_schedule")) not in names:
                scheduler.refuse("beta_schedule", f"must be {', '.join(names)}", name)
            values["noise_schedule"] = SCHEDULES[name]
            values["num_train_timesteps"] = count = scheduler.integer("num_train_timesteps")
            if name != "squaredcos_cap_v2":
                values["beta_start"], values["beta_end"] = scheduler.real("beta_start"), scheduler.real("beta_end")
        elif not isinstance(betas, list):
            scheduler.refuse("trained_betas", "must be a list of numbers in (0, 1)", betas)
        else:
            for i, beta in enumerate(betas):
                if not (isinstance(beta, (int, float)) and 0 < beta < 1):
                    scheduler.refuse(f"trained_betas[{i}]", "must be a number in (0, 1)", beta)
        to_zero = scheduler.flag("rescale_betas_zero_snr", False)
        if betas is not None or to_zero:
            table = alphas_cumprod(betas or betas_of(values, count))
            if not len(table) > 1:
                scheduler.refuse("trained_betas", "must have more than one number", betas)
            if to_zero:
                table = zero_terminal(table)
            values = {
                "prediction": values["prediction"],
                "noise_schedule": "alphas_cumprod",
                "alphas_cumprod": "\n".join(repr(a) for a in table),
            }
        place = str(scheduler.path)
    else:
        values["noise_schedule"] = either("noise_schedule", lambda s: None)
        values["num_train_timesteps"] = args.num_train_timesteps
        place = "--noise-schedule"
        if values["noise_schedule"] != "cosine":
            values |= {option: getattr(args, option) for option in ends}
    if "beta_start" in values and not 0 < values["beta_start"] <= values["beta_end"] < 1:
        fail(f"{place}: must have 0 < beta_start <= beta_end < 1, got {values['beta_start']} and {values['beta_end']}")
    return values


def betas_of(values: Mapping[str, object], count: int) -> list[float]:
    if values["noise_schedule"] == "cosine":
        level = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        return [min(1 - after / before, 0.999) for before, after in zip(level, level[1:])]
    power = 2 if values["noise_schedule"] == "scaled_linear" else 1
    ends = [values[key] ** (1 / power) for key in ("beta_start", "beta_end")]
    return [b**power for b in torch.linspace(*ends, count, dtype=torch.float64).tolist()]


def alphas_cumprod(betas: list[float]) -> list[float]:
    product, table = 1.0, []
    for beta in betas:
        product *= 1 - beta
        table.append(product)
    return table


def zero_terminal(table: list[float]) -> list[float]:
    """Shifts the square roots so that the last is 0, and stretches them so that the first is as before."""
    first, last = math.sqrt(table[0]), math.sqrt(table[-1])
    return [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in table]


FLOW_SIGMAS = NO_KARRAS | {"prediction_type": ("epsilon", "flow_prediction"), "use_flow_sigmas": (False, True)}
FLOW_SIGMAS |= {"use_dynamic_shifting": False, "final_sigmas_type": "zero", "thresholding": False, "solver_order": 2}
FLOW_SIGMAS |= {"lower_order_final": True}
# Of flow matching likewise.
FLOW_PROFILES: dict[str, tuple[str, dict[str, object]]] = {
    "FlowMatchEulerDiscreteScheduler": ("diffusers-flow-euler", {"use_dynamic_shifting": False}),
    "UniPCMultistepScheduler": (
        "diffusers-flow-unipc",
        FLOW_SIGMAS | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None},
    ),
    "DPMSolverMultistepScheduler": (
        "diffusers-flow-dpmpp",
        FLOW_SIGMAS | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "use_lu_lambdas": False},
    ),
}
# Of the timesteps and betas that there are without flow matching, and of dynamic shifting and what else is off.
FLOW_NOTES = {
    "num_train_timesteps", "shift", "flow_shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "time_shift_type", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "timestep_spacing", "steps_offset", "lambda_min_clipped", "dynamic_thresholding_ratio", "sample_max_value",
}  # fmt: skip


def flow(folder: Path, shift: float | None, steps: int) -> dict[str, object]:
    """The keys of a network by flow matching: its schedule, and how its makers draw where that is a profile of tstitch.

    @shift: of --flow-shift, else the scheduler's. @steps: of the pipeline where nothing is asked for.
    """
    scheduler = scheduler_of(folder)
    count, profile = 1000, {}
    if scheduler is not None:
        name = scheduler.values.get("_class_name")
        if not isinstance(name, str) or not (name.startswith("FlowMatch") or scheduler.values.get("use_flow_sigmas")):
            scheduler.refuse("_class_name", "must be a scheduler of flow matching", name)
        count = scheduler.integer("num_train_timesteps", 1000)
        shift = shift or scheduler.real("flow_shift" if "flow_shift" in scheduler.values else "shift", 1.0)
        if not 0 < shift <= 1000:
            scheduler.refuse("shift", "must be above 0 and at most 1000", shift)
        if not name.startswith("FlowMatch") and scheduler.get("prediction_type") != "flow_prediction":
            scheduler.refuse("prediction_type", "must be flow_prediction", scheduler.get("prediction_type"))
        found, keys = FLOW_PROFILES.get(name, (None, {}))
        different = "_class_name" if found is None else unlike(scheduler.values, keys, FLOW_NOTES)
        if different is None:
            profile = {"profile": found, "steps": steps}
        else:
            value = json.dumps(scheduler.values.get(different))
            say(f"{scheduler.path}: no profile of tstitch has {different} = {value}: the file recommends none")
    elif shift is None:
        ask(folder, {"--flow-shift": "no scheduler/scheduler_config.json"})
    return {
        "prediction": "flow", "noise_schedule": "flow", "num_train_timesteps": count, "flow_shift": float(shift), **profile,
    }  # fmt: skip


def add_flow(parser: argparse.ArgumentParser, guidance: float | None, described: str) -> None:
    """The options for `flow_values`. @guidance: the default, or None where the network tells, as @described says."""
    parser.add_argument(
        "--flow-shift", type=positive_real, metavar="S", help="of the timesteps (default: the pipeline's scheduler's)"
    )
    parser.add_argument(
        "--text-tokens", type=token_count, metavar="N", help="of a text embedding, * for any number (default: *)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=finite_real,
        default=guidance,
        help=f"the default a sampler should use (default: {described})",
    )
    parser.add_argument("--license", default="", help="licence of the weights")


def flow_values(
    args: argparse.Namespace, architecture: str, steps: int, channels: int, size: Sequence[int | None],
    conditions: Iterable[tuple[str, str, Sequence[int | None]]],
) -> dict[str, object]:  # fmt: skip
    """The keys that networks of latents by flow matching have in common, which draw from text."""
    return {
        "format": 1,
        "name": args.name or args.output.stem,
        **shape_of_x(channels, *size),
        "num_classes": 0,
        "conditions": condition_lines(conditions),
        "timestep_type": "float32",
        "decoding": "none",
        "guidance_scale": args.guidance_scale,
        "license": args.license,
        "architecture": architecture,
        **flow(args.folder, args.flow_shift, steps),
    }


def latents(folder: Path) -> dict[str, object]:
    """The scale and shift of the pipeline's autoencoder."""
    if folder.is_file():  # with an autoencoder or without
        return latent_values(Config(folder, {"scaling_factor": latent_scale_of(folder)}), 0)
    if not (folder / "vae" / "config.json").is_file():
        return {}
    config = config_of(folder, "vae")
    key, usual = {"AutoencoderKLWan": ("z_dim", 16), "AutoencoderDC": ("latent_channels", 32)}.get(
        str(config.values.get("_class_name")), ("latent_channels", 4)
    )
    return latent_values(config, config.integer(key, usual))


def latent_values(config: Config, channels: int) -> dict[str, object]:
    """The keys latent_scale and latent_shift of an autoencoder: a number each, or one a line for each channel."""
    kind = config.values.get("_class_name")
    unscaled = ("AutoencoderTiny", "AutoencoderDC", "AutoencoderKLWan")
    scale = config.real("scaling_factor", 1.0 if kind in unscaled else 0.18215)
    if not scale > 0:
        config.refuse("scaling_factor", "must be above 0", scale)
    shift = config.real("shift_factor", 0.0)
    keys = ("latents_mean", "latents_std")
    mean, deviation = map(config.get, keys)
    if mean is None and deviation is None and kind != "AutoencoderKLWan":
        return {"latent_scale": scale, "latent_shift": shift}
    for key, numbers, least in zip(keys, (mean, deviation), (-1e9, 0)):
        if not isinstance(numbers, list) or len(numbers) != channels or not all(
            isinstance(n, (int, float)) and not isinstance(n, bool) and least < n < 1e9 for n in numbers
        ):  # fmt: skip
            rule = f"must be {channels} numbers{' above 0' if key == 'latents_std' else ''}, one for each channel"
            config.refuse(key, f"{rule}, where there is {' or '.join(keys)}", numbers)
    if shift != 0:
        config.refuse("shift_factor", "must be 0 beside latents_mean", shift)
    lines = {"latent_scale": [scale / d for d in deviation], "latent_shift": mean}
    return {key: "\n".join(repr(float(n)) for n in numbers) for key, numbers in lines.items()}
