"""How a pipeline of diffusers draws: which of tstitch's profiles its scheduler is, and in how many steps."""

from pathlib import Path

from common import Config

NO_KARRAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "timestep_spacing": "leading"}
# Schedulers that are a profile of tstitch, with what their keys must be. Of two values the first is what diffusers takes
# where the key is absent, and the second what the profile is.
PROFILES: dict[str, tuple[str, dict[str, object]]] = {
    "PNDMScheduler": (
        "diffusers-pndm",
        {"skip_prk_steps": (False, True), "set_alpha_to_one": False, "steps_offset": (0, 1), "timestep_spacing": "leading"},
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
# Of the noise schedule, which is read elsewhere, and of what is off.
OTHER_KEYS = {
    "beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type",
    "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "steps_offset", "flow_shift",
    "lambda_min_clipped", "rescale_betas_zero_snr", "use_dynamic_shifting", "time_shift_type",
}  # fmt: skip
# What the pipelines take where nothing is asked for. In latent consistency models it is the scheduler that counts.
STEPS = {
    "StableDiffusion": 50, "LatentConsistencyModel": 4, "PixArt": 20, "DiT": 50, "DDIM": 50, "DDPM": 1000, "PNDM": 50,
}  # fmt: skip


def scheduler_of(folder: Path) -> Config | None:
    paths = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    path = next((p for p in paths if p.is_file()), None)
    return Config(path) if path else None


def is_consistency_model(folder: Path) -> bool:
    """Whether it is drawn by the sampler of latent consistency models, without guidance by a second evaluation."""
    scheduler = scheduler_of(folder)
    return scheduler is not None and scheduler.values.get("_class_name") == "LCMScheduler"


def sampler_of(folder: Path) -> dict[str, object]:
    """The keys profile and steps, where the pipeline's scheduler is one that tstitch has a profile of."""
    scheduler = scheduler_of(folder)
    found = PROFILES.get(scheduler.values.get("_class_name")) if scheduler else None
    if found is None:
        return {}
    profile, keys = found
    for key, wanted in keys.items():
        default, wanted = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        value = scheduler.values.get(key, default)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            return {}
    values = scheduler.values
    # Another key may change what the scheduler does, unless it is off.
    unknown = (key for key in values if not key.startswith("_") and key not in keys and key not in OTHER_KEYS)
    if values.get("rescale_betas_zero_snr") or values.get("lambda_min_clipped", "-inf") not in ("-inf", float("-inf")):
        return {}
    if any(values[key] not in (None, False) for key in unknown):
        return {}
    index = folder / "model_index.json"
    name = Config(index).values.get("_class_name") if index.is_file() else None
    steps = next((n for start, n in STEPS.items() if isinstance(name, str) and name.startswith(start)), None)
    if profile == "diffusers-lcm":
        steps = STEPS["LatentConsistencyModel"]
    return {"profile": profile, **({"steps": steps} if steps else {})}
