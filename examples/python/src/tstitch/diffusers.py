"""diffusers' pipelines, stitched, and this library's samplers as a scheduler for them.

pipe = tstitch.diffusers.stitch(small_pipe, large_pipe, ratio=0.4)   # unchanged calls
pipe.scheduler = tstitch.diffusers.Scheduler.from_config(pipe.scheduler.config, profile="recommended")
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from . import _core
from .arguments import shown, whole
from .networks import Network
from .plans import Plan
from .sampling import Routing, Sampler, _routing_of

__all__ = ["Scheduler", "SchedulerOutput", "noise_schedule", "stitch"]


def _is_flow_match(config: Any) -> bool:
    """Whether it is of a FlowMatch scheduler, whose configs name their class in files alone, and have a shift and no betas."""
    return "FlowMatch" in (config.get("_class_name") or "") or ("shift" in config and "beta_schedule" not in config)


def noise_schedule(config: Any) -> _core.NoiseSchedule:
    """The noise schedule that a diffusers scheduler's config describes.

    Args:
        config: a scheduler, or its config, with beta_schedule "linear", "scaled_linear" or "squaredcos_cap_v2", or
            trained_betas; or of flow matching.
    """
    name = type(config).__name__
    config = getattr(config, "config", config)
    if not hasattr(config, "get"):
        raise TypeError(f"config: must be a diffusers scheduler or its config, got {shown(config)}")
    get = config.get
    count = whole("num_train_timesteps", get("num_train_timesteps", 1000), 1)
    kind = get("beta_schedule")
    if kind == "flow" or get("use_flow_sigmas") or "FlowMatch" in name or _is_flow_match(config):
        return _core.NoiseSchedule.flow(count)
    if get("trained_betas") is not None:
        made = _core.NoiseSchedule.from_betas([float(beta) for beta in get("trained_betas")], "trained_betas")
    elif kind in (None, "linear"):
        made = _core.NoiseSchedule.linear(count, get("beta_start", 1e-4), get("beta_end", 0.02))
    elif kind == "scaled_linear":
        made = _core.NoiseSchedule.scaled_linear(count, get("beta_start", 0.00085), get("beta_end", 0.012))
    elif kind == "squaredcos_cap_v2":
        made = _core.NoiseSchedule.cosine(count)
    else:
        raise ValueError(
            f"beta_schedule: must be 'linear', 'scaled_linear', 'squaredcos_cap_v2' or 'flow', got {kind!r}"
        )
    return made.with_zero_terminal_snr() if get("rescale_betas_zero_snr") else made


@dataclass
class SchedulerOutput(BaseOutput):
    """What a step makes, both [n, C, ...]."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class _Asked(Exception):
    """The update rule asks for one more evaluation of the network, at this x."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Scheduler(SchedulerMixin, ConfigMixin):
    """A drop-in scheduler that computes by this library: each step is the library's own, on a trajectory of its own.

    Update rules that ask the network several times a step have as many entries in `timesteps`.
    """

    config_name = "scheduler_config.json"  # type: ignore[assignment]
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        profile: str | None = None,
        sampler: str | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        spacing: str | None = None,
        shift: float = 1.0,
        solver_options: dict | None = None,
        rescale_betas_zero_snr: bool = False,
        clip_sample: bool = False,
        steps_offset: int = 1,
    ) -> None:
        """
        Args:
            profile: what another program does (`tstitch.profiles`): "diffusers-ddim", "diffusers-dpmpp", "recommended". Without
                profile and sampler, "recommended", and "euler" for flow matching.
            sampler: instead, an update rule by name (`tstitch.samplers`).
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type, rescale_betas_zero_snr:
                as diffusers' schedulers have them; beta_schedule "flow" is flow matching, prediction "flow_prediction".
            spacing: of `sampler`, by name (`tstitch.spacings`); without, linspace, and for flow matching that of diffusers'
                FlowMatchEulerDiscreteScheduler with its `shift`.
            solver_options: of `sampler`, by name: {"order": 3}.
            clip_sample: clip x_0 to [-1, 1], with `sampler`; profiles do as their programs do.
            steps_offset: read by pipelines, which expect 1; of no effect.
        """
        if profile is not None and sampler is not None:
            raise ValueError(f"sampler: must not be given with profile, got {sampler!r} and {profile!r}")
        self._noise = noise_schedule(self.config)
        self._shift = float(shift)
        prediction = "flow" if self._noise.is_flow and prediction_type == "epsilon" else prediction_type
        if profile is None and sampler is None:
            profile, sampler = (None, "euler") if self._noise.is_flow else ("recommended", None)
        self._way: dict[str, Any] = {"profile": profile}
        if sampler is not None:
            if sampler.endswith("adaptive"):
                raise ValueError(f"sampler: must be one whose evaluations are known before the run, got {sampler!r}")
            self._way = {"sampler": sampler, "spacing": spacing, "sampler_options": solver_options,
                         "thresholding": "clip" if clip_sample else "none"}  # fmt: skip
        self._network = Network(self._answer, name="pipeline", noise_schedule=self._noise, prediction=prediction,
                                timestep_type="float32")  # fmt: skip
        self._outputs: list[torch.Tensor] = []
        self.set_timesteps(min(50, num_train_timesteps))

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any):
        """Of another scheduler's config: its noise schedule and prediction, with what is given here."""
        config = getattr(config, "config", config)
        if hasattr(config, "get") and _is_flow_match(config):
            options = {"beta_schedule": "flow", "prediction_type": "flow_prediction", **options}
        return super().from_config(config, return_unused_kwargs, **options)

    def _answer(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self._recorded is not None:
            self._recorded.append((self._step_now, float(t[0])))
            return torch.zeros_like(x)
        if self._given == len(self._outputs):
            raise _Asked(x)
        self._given += 1
        return self._outputs[self._given - 1]

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lays the timesteps, and forgets the run before."""
        steps = whole("num_inference_steps", num_inference_steps, 1)
        self._lay(steps)
        self.num_inference_steps = steps
        self._recorded: list[tuple[int, float]] | None = []
        run = self._sampler.begin(initial_noise=torch.zeros(1, 1, 1, 1))
        for self._step_now in range(run.steps):
            self._sampler.advance(run)
        evaluations, self._recorded = self._recorded, None
        if {step for step, _ in evaluations} != set(range(run.steps)):
            raise ValueError(
                f"sampler: must ask the network in every step, which {self._sampler.plan().sampler} does not"
            )
        self._step_of = [step for step, _ in evaluations]
        times = [t for _, t in evaluations]
        whole_times = all(t == int(t) for t in times)
        self.timesteps = torch.tensor(times, dtype=torch.int64 if whole_times else torch.float32, device=device)
        self._times = times
        self._reset()

    def _lay(self, steps: int) -> None:
        way = dict(self._way)
        if "spacing" in way and way["spacing"] is None and self._noise.is_flow:
            way["spacing"] = _core.Spacing.flow_match_euler(self._shift)
        self._sampler = Sampler([self._network], steps=steps, noise_schedule=self._noise, **way)

    def _reset(self) -> None:
        self._run: Any = None
        self._index: int | None = None
        self._begin: int | None = None
        self._returned: torch.Tensor | None = None
        self._outputs, self._given = [], 0
        self._noises: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def plan(self) -> Plan:
        """What the steps are."""
        return self._sampler.plan()

    @property
    def step_index(self) -> int | None:
        """Position in `timesteps` of the evaluation to come; None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where in `timesteps` a run begins that is none of all steps."""
        self._begin = whole("begin_index", begin_index, 0, len(self._times) - 1)

    def index_for_timestep(self, timestep: Any) -> int:
        """Position in `timesteps` of the first evaluation at this timestep."""
        t = float(timestep)
        near = min(range(len(self._times)), key=lambda i: abs(self._times[i] - t))
        if abs(self._times[near] - t) > 1e-3 * max(1.0, abs(t)):
            raise ValueError(f"timestep: must be one of timesteps, got {t:g}")
        return near

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample itself: x is alpha x_0 + sigma noise all along."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """Takes the network's answer and goes to where it is asked next.

        Args:
            model_output: [n, C, ...], what the network made of sample at the timestep.
            timestep: of `timesteps`; looked at when a run begins, whose evaluations then come in their order.
            sample: [n, C, ...] as it was before; what was changed of it since the last step is taken as it is.
            generator: for stochastic rules, drawn from as diffusers does.
        """
        if self._index is not None and self._index >= len(self._times):
            self._reset()  # a pipeline that is called again without new timesteps
        if self._index is None:
            self._start(timestep, sample)
        elif self._run.x.shape != sample.shape:
            raise ValueError(
                f"sample: must be {list(self._run.x.shape)} as in the step before, got {list(sample.shape)}"
            )
        if not self._outputs and sample is not self._returned:
            self._run.x = sample.to(self._run.x)
        self._draw_from = (generator, sample.dtype)
        self._outputs.append(model_output.to(self._run.x.dtype))
        self._given = 0
        try:
            self._sampler.advance(self._run)
        except _Asked as asked:
            x, x_0 = asked.x, self._run.x_0
        else:
            self._outputs = []
            x, x_0 = self._run.x, self._run.x_0
        assert self._index is not None
        self._index += 1
        self._returned = previous = x.to(sample.dtype)
        x_0 = None if x_0 is None else x_0.to(sample.dtype)
        return SchedulerOutput(previous, x_0) if return_dict else (previous, x_0)

    def _start(self, timestep: Any, sample: torch.Tensor) -> None:
        first = self._begin if self._begin is not None else self.index_for_timestep(timestep)
        self._index, self._outputs = first, []
        x = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        if x.device != self._network.device:
            self._network = Network(self._answer, name="pipeline", noise_schedule=self._noise, timestep_type="float32",
                                    prediction=self._network.prediction, device=x.device)  # fmt: skip
            self._lay(self.num_inference_steps)
        self._run = self._sampler.begin(initial_noise=x, noise_source=self._draw)
        if first > 0:
            step = self._sampler.plan()[self._step_of[first]].step
            self._run._run.jump(step.index, step.from_level)

    def _draw(
        self, seeds: list[int], step: int, draw: int, shape: tuple, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        # A step of several evaluations is computed again for each of them, with the same noise.
        if (step, draw) not in self._noises:
            generator, kind = self._draw_from
            self._noises = {key: value for key, value in self._noises.items() if key[0] == step}
            self._noises[step, draw] = randn_tensor(
                (len(seeds), *shape), generator=generator, device=device, dtype=kind
            ).to(dtype)
        return self._noises[step, draw]

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha x_0 + sigma noise at timesteps [n] or one."""
        times = torch.as_tensor(timesteps).flatten().tolist()
        levels = [self._noise.at(t) for t in times]
        shape = [-1] + [1] * (original_samples.dim() - 1)
        alpha = original_samples.new_tensor([each.alpha for each in levels]).view(shape)
        sigma = original_samples.new_tensor([each.sigma for each in levels]).view(shape)
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return self._noise.num_train_timesteps

    def __deepcopy__(self, memo: dict) -> Scheduler:
        """The same scheduler, without the run of this one."""
        return type(self).from_config(self.config)

    def __repr__(self) -> str:
        return f"Scheduler({self._sampler.plan()!r})"


def _parts(pipe: Any, name: str) -> tuple[str, Any]:
    for part in ("transformer", "unet"):
        module = getattr(pipe, part, None)
        if isinstance(module, torch.nn.Module):
            return part, module
    raise TypeError(f"{name}: must be a diffusers pipeline with a transformer or a unet, got {type(pipe).__name__}")


class StitchedModel(torch.nn.Module):
    """In the place of a pipeline's transformer or unet: asks the small network at the noisier timesteps, the large one at the
    others. Its config and all else that pipelines ask for are the large one's.
    """

    small: Any
    large: Any

    def __init__(self, small: torch.nn.Module, large: torch.nn.Module, routing: _core.Routing, pipe: Any) -> None:
        super().__init__()
        self.small, self.large = small, large
        self._routing = routing
        self._pipe = weakref.ref(pipe)
        self._known: tuple[Any, list[float], list[int]] | None = None
        self._parameters_of = inspect.signature(large.forward)
        #: Calls of each network since the pipeline was made.
        self.calls = [0, 0]

    @property
    def config(self) -> Any:
        return self.large.config

    @property
    def dtype(self) -> Any:
        return self.large.dtype

    @property
    def device(self) -> Any:
        return self.large.device

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("small", "large"):
                raise
            return getattr(self.large, name)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a stitched pipeline is two; save the pipelines that it was made of")

    def networks(self) -> list[tuple[float, int]]:
        """Each timestep that the pipeline's scheduler visits now, and the network that takes it, 0 the small one."""
        pipe = self._pipe()
        if pipe is None:
            raise RuntimeError("tstitch.diffusers.stitch: the pipeline is gone; keep it as long as its network")
        timesteps = pipe.scheduler.timesteps
        if self._known is None or self._known[0] is not timesteps:
            # Schedulers that evaluate twice at a timestep list it twice; both evaluations have one network.
            visited = list(dict.fromkeys(torch.as_tensor(timesteps).double().tolist()))
            noise = noise_schedule(pipe.scheduler)
            levels = [noise.at(min(max(t, 0.0), noise.noisiest)) for t in visited] + [_core.NoiseLevel(1.0, 0.0)]
            steps = [
                _core.Step(i, len(visited), t, levels[i], levels[i + 1], (visited + [0.0])[i + 1])
                for i, t in enumerate(visited)
            ]
            self._known = (timesteps, visited, [self._routing(step) for step in steps])
        return list(zip(self._known[1], self._known[2]))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._parameters_of.bind(*args, **kwargs).arguments
        t = bound.get("timestep")
        if t is None:
            raise ValueError("tstitch.diffusers.stitch: the network must be called with a timestep, got none")
        t = float(t.flatten()[0]) if isinstance(t, torch.Tensor) else float(t)
        _, network = min(self.networks(), key=lambda each: abs(each[0] - t))
        if network not in (0, 1):
            raise ValueError(
                f"routing: must be 0 for the small network or 1 for the large one, got {network} at t = {t:g}"
            )
        self.calls[network] += 1
        module = self.large if network else self.small
        returned = module(*args, **kwargs)
        channels = getattr(self.large.config, "out_channels", None)
        if network == 0 and channels is not None and self.small.config.out_channels != channels:
            # It has a learned variance, and the large one has none.
            if isinstance(returned, tuple):
                return (returned[0][:, :channels], *returned[1:])
            returned.sample = returned.sample[:, :channels]
        return returned


# What must be the same of two networks that take the same latents, embeddings and labels, in either's config.
_SAME = ("in_channels", "cross_attention_dim", "caption_channels", "joint_attention_dim", "pooled_projection_dim",
         "num_embeds_ada_norm", "time_cond_proj_dim", "addition_embed_type", "class_embed_type", "encoder_hid_dim",
         "projection_class_embeddings_input_dim")  # fmt: skip


def _require_same(small: Any, large: Any, small_pipe: Any, large_pipe: Any) -> None:
    differ = []
    for key in _SAME:
        a, b = getattr(small.config, key, None), getattr(large.config, key, None)
        if a != b and isinstance(a, (list, tuple)) == isinstance(b, (list, tuple)):
            differ.append(f"{key} ({a} and {b})")
    a, b = small.config.out_channels or small.config.in_channels, large.config.out_channels or large.config.in_channels
    if a < b:
        differ.append(f"out_channels ({a} and {b})")
    noises = [noise_schedule(pipe.scheduler) for pipe in (small_pipe, large_pipe)]
    if noises[0].distance(noises[1]) > 1e-6:
        differ.append(f"noise schedule ({noises[0].name} and {noises[1].name})")
    kinds = [pipe.scheduler.config.get("prediction_type", "epsilon") for pipe in (small_pipe, large_pipe)]
    if kinds[0] != kinds[1]:
        differ.append(f"prediction_type ({kinds[0]} and {kinds[1]})")
    vaes = [getattr(getattr(pipe, "vae", None), "config", None) for pipe in (small_pipe, large_pipe)]
    for key in ("scaling_factor", "shift_factor", "latent_channels"):
        a, b = (getattr(each, key, None) for each in vaes)
        if all(vaes) and a != b:
            differ.append(f"vae {key} ({a} and {b})")
    devices = [next(each.parameters()).device for each in (small, large)]
    if devices[0] != devices[1]:
        differ.append(f"device ({devices[0]} and {devices[1]})")
    types = [next(each.parameters()).dtype for each in (small, large)]
    if types[0] != types[1]:
        differ.append(f"dtype ({types[0]} and {types[1]})")
    if differ:
        raise ValueError(
            "pipe_small: these networks cannot share a trajectory, the first and the second differ in "
            + ", ".join(differ)
        )


def stitch(
    pipe_small: Any,
    pipe_large: Any,
    ratio: float | None = None,
    *,
    routing: Routing | None = None,
) -> Any:
    """A pipeline of the large one's class that runs both networks in turn, with unchanged calls.

    Its text encoders, autoencoder and settings are the large pipeline's, its scheduler a copy of the large one's. Shares are of
    the timesteps that the scheduler visits: where it evaluates twice at one (Heun), both evaluations have one network. The
    given pipelines are left as they are. Tried with DiTPipeline, StableDiffusionPipeline, StableDiffusion3Pipeline and
    PixArtAlphaPipeline; others with a `transformer` or a `unet` that takes a `timestep` do, too.

    Args:
        pipe_small: of the small network; only that is used of it. May be the network alone where its scheduler and autoencoder
            are known to be those of the large pipeline.
        pipe_large: of the large network.
        ratio: in [0, 1], share of the timesteps for the small network; 0.4 without. 0 is the large pipeline.
        routing: by name ("both-ends", "timestep:600", see `tstitch.routings`) or a callable (step) -> 0 or 1.

    Raises:
        ValueError: for networks that do not fit together, with all that differs.
    """
    part, large = _parts(pipe_large, "pipe_large")
    if isinstance(pipe_small, torch.nn.Module):
        small, small_pipe = pipe_small, pipe_large
    else:
        small_part, small = _parts(pipe_small, "pipe_small")
        small_pipe = pipe_small
        if small_part != part:
            raise ValueError(f"pipe_small: must have a {part} as pipe_large, got a {small_part}")
    if isinstance(large, StitchedModel) or isinstance(small, StitchedModel):
        raise ValueError("pipe_large: must be a pipeline of one network, got one that is stitched")
    if routing is not None and not isinstance(routing, str) and not callable(routing):
        raise TypeError(f"routing: must be a name or a callable (step) -> index, got {shown(routing)}")
    _require_same(small, large, small_pipe, pipe_large)
    count = noise_schedule(pipe_large.scheduler).num_train_timesteps
    rule = _routing_of(routing, ratio, None, 2, count)
    pipe = copy.copy(pipe_large)
    pipe.scheduler = copy.deepcopy(pipe_large.scheduler)
    setattr(pipe, part, StitchedModel(small, large, rule, pipe))
    return pipe
