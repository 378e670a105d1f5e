"""Samplers, and what they make: plans, trajectories, samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch

from . import _core
from .arguments import is_list, only, real, reals, shown, tensor, whole, wholes
from .guidance import Guidance, forecast_of
from .images import image_tensor, mask_tensor, to_uint8
from .networks import Network, NetworkLike, NoiseScheduleLike, Sources, Stated, label_of, noise_schedule_of
from .plans import Plan

Routing = Union[str, Sequence[int], Callable[[_core.Step], int]]
Rule = Union[str, Callable[[_core.StepInput], torch.Tensor]]
SpacingLike = Union[str, _core.Spacing, Sequence[float]]
Callback = Callable[[_core.StepReport], Union[bool, None]]

_FORMAT = "tstitch trajectory 1"


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn."""

    #: [n, C, ...], x_0 of each in the order of the request.
    images: torch.Tensor
    #: One a row.
    seeds: list[int]
    #: One a row; empty where the networks take none.
    labels: list[int]
    #: The names of the labels, where the networks name them.
    classes: list[str]
    #: The first so many rows ran all their steps.
    finished_images: int
    #: Whether the request was carried out whole.
    finished: bool
    plan: Plan

    def numpy(self) -> Any:
        """Pictures as a uint8 array, [n, H, W, C] in 0..255."""
        return to_uint8(self.images).numpy()

    def pil(self) -> list[Any]:
        """Pictures as PIL has them."""
        from PIL import Image

        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in self.numpy()]

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        state = "" if self.finished else f", stopped with {self.finished_images} finished"
        return (
            f"Samples({list(self.images.shape)} {str(self.images.dtype).removeprefix('torch.')}, {self.plan!r}{state})"
        )


class Trajectory:
    """A run in flight: all that lives from step to step. `fork` copies it, any sampler with the same timesteps takes it on."""

    def __init__(self, run: _core.Trajectory, begun_by: Sampler) -> None:
        self._run = run
        self._begun_by = begun_by

    @property
    def next(self) -> int:
        """Index of the step to come; also how many are done of the whole run."""
        return self._run.next

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self._run.count

    @property
    def finished(self) -> bool:
        return self._run.finished

    @property
    def x(self) -> torch.Tensor:
        """[n, C, ...] as the step to come takes it; not to be changed in place. Another of its shape may be assigned."""
        return self._run.x

    @x.setter
    def x(self, value: torch.Tensor) -> None:
        self._run.set_x(tensor("x", value))

    @property
    def x_0(self) -> torch.Tensor | None:
        """[n, C, ...], the newest prediction; None before the first step."""
        return self._run.x_0

    @property
    def level(self) -> _core.NoiseLevel:
        """How noisy x is."""
        return self._run.level

    @property
    def seeds(self) -> list[int]:
        return self._run.seeds

    @property
    def labels(self) -> list[int]:
        return self._run.labels

    @property
    def strength(self) -> float:
        return self._run.strength

    @property
    def plan(self) -> Plan:
        """The plan that it was begun with."""
        return self._begun_by._plan_of(self._run.guidance, self.strength)

    def fork(self) -> Trajectory:
        """A run of its own from here on. Costs no copy of tensors, which are never changed in place."""
        return Trajectory(self._run.fork(), self._begun_by)

    __copy__ = fork

    def __deepcopy__(self, memo: dict) -> Trajectory:
        return self.fork()

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain data, for torch.save.

        Raises:
            ValueError: for what is no data: a noise_source, a log_density, and what networks keep for forecasts.
        """
        plan = self.plan
        facts = {"sampler": plan.sampler, "noise_schedule": plan.noise_schedule, "spacing": plan.spacing,
                 "timesteps": plan.timesteps, "networks": plan.networks,
                 "guidance": [each.guidance for each in plan]}  # fmt: skip
        return {"format": _FORMAT, "plan": facts, "state": self._run.state()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `state_dict` to a file, which `Sampler.load` reads. The file is whole or not there."""
        state = self.state_dict()
        path = os.fspath(path)
        unfinished = f"{path}.{os.getpid()}.tmp"
        try:
            torch.save(state, unfinished)
            os.replace(unfinished, path)
        finally:
            if os.path.exists(unfinished):
                os.unlink(unfinished)

    def __repr__(self) -> str:
        return f"Trajectory({self.next} of {self.steps} steps done, x {list(self.x.shape)} at sigma {self.level.sigma:.4g})"


class Sampler:
    """An update rule under a routing, for given networks.

    Holds no run state: several threads may use one. `sample` is the loop over `begin` and `advance`.
    """

    def __init__(
        self,
        networks: Sequence[NetworkLike],
        *,
        ratio: float | None = None,
        fractions: Sequence[float] | None = None,
        routing: Routing | None = None,
        sampler: Rule | None = None,
        order: int | None = None,
        eta: float | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        steps: int | None = None,
        spacing: SpacingLike | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        final_sigma: str | None = None,
        previous_timestep: str | None = None,
        thresholding: str | _core.Thresholding | None = None,
        at_switch: str | None = None,
        forecast: str | Sequence[bool] | Callable[[_core.Step, int, int], bool] | None = None,
        profile: str | None = None,
        preset: str | None = None,
        noise_schedule: NoiseScheduleLike | None = None,
        prediction: str | None = None,
        num_classes: int | None = None,
        null_class: int | None = None,
        class_names: Sequence[str] | None = None,
        learned_variance: bool | None = None,
        timestep_type: str | None = None,
        decoding: str | None = None,
        device: torch.device | str | None = None,
        dtype: str = "auto",
        backend: str | Sequence[str] = "auto",
        _conditions: Mapping[str, _core.ConditionInfo] | None = None,
    ) -> None:
        """
        Args:
            networks: in the order of use, the small one first: modules, functions, `Network`s, or paths of files.
            ratio: in [0, 1], the share of the steps for the first of two networks; 0.4 without.
            fractions: instead, one share for each network, adding up to 1.
            routing: how shares become steps, by name ("stitch", "both-ends", "interleaved", "dit", see `tstitch.routings`), or
                boundaries ("timestep:600", "logsnr:-2"); a list with the index of a network for each step; or a callable
                (step) -> index, which is asked when the plan is made.
            sampler: an update rule by name (`tstitch.samplers`), "ddim" without; or a callable (StepInput) -> x after the
                step. A callable may have `name`, `history` (how many earlier steps it wants) and `evaluations` (an int, or a
                callable of the step).
            order, eta: the rule's options of these names.
            sampler_options: its others, by name: {"solver_type": "heun"}.
            steps: how many; 50 without.
            spacing: where they are: by name (`tstitch.spacings`, "shifted:3"), a `Spacing`, or a list of timesteps.
                "linspace" without, "shifted" for flow matching.
            timesteps, sigmas: where the steps begin, instead of steps and spacing; sigmas are sigma / alpha.
            final_sigma: "zero", or "sigma_min": the noise level of t = 0.
            previous_timestep: "in_plan", or "by_stride" as diffusers' DDIM.
            thresholding: "automatic" (clips where the networks make pixels), "none", "clip", "dynamic" (arXiv 2205.11487), or
                a `Thresholding`.
            at_switch: of multistep histories when another network takes over: "keep", "reset" or "re_evaluate".
            forecast: steps whose blocks do not run: "every:2", a list of bools, or a callable (step, network, taken) -> bool;
                of the last network. For DiTs of files and `Network.in_parts`.
            profile: in the place of all from sampler to at_switch: what another program does (`tstitch.profiles`), as
                "diffusers-ddim" with these steps.
            preset: a whole way in a word: "exact", "fast" or "fastest".
            noise_schedule, prediction, num_classes, null_class, class_names, learned_variance, timestep_type, decoding: of
                networks that are plain modules or functions, see `Network`.
            device: of files and functions. Without, that of the modules, or the first GPU where there is one.
            dtype, backend: of files, see `load_networks`.

        Where neither sampler, profile, preset nor anything else from order to previous_timestep is given, the profile and the
        steps that the last network's file recommends are taken.

        Raises:
            ValueError, TypeError: naming the argument.
            RuntimeError: for files, and for networks that do not fit together.
        """
        stated = Stated(
            noise_schedule, prediction, num_classes, null_class, class_names, learned_variance, timestep_type, decoding
        )
        self._sources = Sources(networks, stated, _conditions or {}, device, dtype, backend)
        infos = self._sources.infos
        last = infos[-1]
        if noise_schedule is not None:
            noise = noise_schedule_of(noise_schedule)
        else:
            known = [each.noise_schedule for each in infos if each.noise_schedule is not None]
            if not known:
                raise ValueError(
                    "noise_schedule: must be given, as 'linear' or 'flow', because none of the networks states one"
                )
            noise = known[-1]
        way = {"sampler": sampler, "order": order, "eta": eta, "sampler_options": sampler_options, "spacing": spacing,
               "timesteps": timesteps, "sigmas": sigmas, "final_sigma": final_sigma, "previous_timestep": previous_timestep,
               "thresholding": thresholding}  # fmt: skip
        self._guidance_channels, self._guidance_forecast, self._rows_per_image = 0, None, 1
        if preset is None and profile is None and all(each is None for each in way.values()):
            recommended = last.profile.replace("_", "-")
            profile = recommended if recommended in dict(_core.profiles) else None
            steps = last.steps if steps is None and last.steps > 0 else steps
        if preset is not None:
            only("preset", {**way, "profile": profile, "steps": steps, "forecast": forecast, "at_switch": at_switch})
            if len(infos) != 2:
                raise ValueError(f"preset: is for two networks, got {len(infos)}")
            made, its_ratio, self._guidance_forecast = _core.preset_by_name(str(preset), noise)
            ratio = its_ratio if ratio is None else ratio
            options, rule, noise = made.options, made.rule, made.noise_schedule
        elif profile is not None:
            only("profile", way)
            made = _core.Profile.by_name(str(profile), noise, whole("steps", 50 if steps is None else steps, 1))
            options, rule, noise = made.options, made.rule, made.noise_schedule
            self._guidance_channels, self._rows_per_image = made.guidance_channels, made.rows_per_image
        else:
            options = _core.Options()
            rule = _rule_of("ddim" if sampler is None else sampler, order, eta, sampler_options)
            _take_spacing(options, noise, steps, spacing, timesteps, sigmas)
            if final_sigma is not None:
                options.set_final_sigma(str(final_sigma))
            if previous_timestep is not None:
                options.set_previous_timestep(str(previous_timestep))
            if thresholding is not None:
                options.thresholding = _thresholding_of(thresholding)
        if at_switch is not None:
            options.set_at_switch(str(at_switch))
        if forecast is not None:
            options.forecast = forecast_of("forecast", forecast, len(infos) - 1, 3) or options.forecast
        self._routing = _routing_of(routing, ratio, fractions, len(infos), noise.num_train_timesteps)
        self._sampler: _core.Sampler = _core.Sampler(noise, self._routing, options, rule)

    @property
    def networks(self) -> list[Network]:
        """The networks, loaded."""
        return self._sources.networks()

    @property
    def noise_schedule(self) -> _core.NoiseSchedule:
        return self._sampler.noise_schedule

    def plan(self, *, guidance: float | Sequence[float] | Guidance | None = None, strength: float = 1.0) -> Plan:
        """What a run will do, without loading a network.

        Args:
            guidance: of the run; without, what the last network recommends.
            strength: of the run; below 1 the plan holds the steps that are left.
        """
        return self._plan_of(self._guidance_of(guidance, {}), real("strength", strength))

    def begin(
        self,
        *,
        labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | Guidance | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        shape: Sequence[int] | None = None,
        initial_noise: Any = None,
        initial_image: Any = None,
        strength: float = 1.0,
        mask: Any = None,
        torch_seed: int | None = None,
        noise_source: Callable[..., torch.Tensor] | None = None,
        log_density: Callable[..., torch.Tensor] | None = None,
        log_density_scale: float = 1.0,
        log_density_of: str = "x_0",
    ) -> Trajectory:
        """Checks everything that can be checked and draws the initial noise; all is one batch. See `sample` for the arguments."""
        request, _ = self._request(locals())
        return Trajectory(self._sampler.begin(self._sources.loaded(), request), self)

    def advance(self, trajectory: Trajectory, steps: int = 1) -> Trajectory:
        """Takes steps, and returns the trajectory. Where it raises, the trajectory is as it was before the step that failed.

        Raises:
            ValueError: for a trajectory that is finished, or was begun with other timesteps or for other networks.
            RuntimeError: for a network or a rule that returns what it must not, and where another thread advances the same
                trajectory. What a network of Python raises comes as it is.
        """
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory: must be a Trajectory, got {shown(trajectory)}")
        self._sampler.advance(self._sources.loaded(), trajectory._run, whole("steps", steps, 1))
        return trajectory

    def finish(self, trajectory: Trajectory) -> Samples:
        """Takes the steps that are left.

        Raises:
            RuntimeError: where values are not finite numbers; and as `advance`.
        """
        if not trajectory.finished:
            self.advance(trajectory, trajectory.steps - trajectory.next)
        if not trajectory.x.isfinite().all():
            raise RuntimeError(
                "finish: values must be finite numbers, got nan or infinity; `sample` says which network made them"
            )
        seeds = trajectory.seeds
        return Samples(
            trajectory.x, seeds, trajectory.labels, self._classes(trajectory.labels), len(seeds), True, trajectory.plan
        )

    def load(self, source: str | os.PathLike | Mapping[str, Any]) -> Trajectory:
        """A trajectory that `Trajectory.save` wrote, or its `state_dict`, to go on to the same bits. Runs no code of the file.

        Raises:
            ValueError: for a run of another plan, saying in what it differs, and for what is no trajectory.
        """
        if not isinstance(source, Mapping):
            path = os.fspath(source)
            try:
                source = torch.load(path, map_location=self._sources.device, weights_only=True)
            except FileNotFoundError:
                raise
            except Exception as error:
                raise ValueError(f"load: {path!r} must be a file of Trajectory.save: {error}") from error
        if not isinstance(source, Mapping) or source.get("format") != _FORMAT:
            raise ValueError(
                f"load: must be a {_FORMAT!r}, got {shown(source.get('format') if isinstance(source, Mapping) else source)}"
            )
        try:
            run = _core.Trajectory.from_state(dict(source["state"]))
        except Exception as error:  # whatever is thrown at what is no trajectory
            raise ValueError(f"load: the file must hold a whole trajectory: {error!r}") from error
        made = Trajectory(run, self)
        self._require_plan(made, source.get("plan") or {})
        return made

    def sample(
        self,
        *,
        labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | Guidance | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        shape: Sequence[int] | None = None,
        initial_noise: Any = None,
        initial_image: Any = None,
        strength: float = 1.0,
        mask: Any = None,
        torch_seed: int | None = None,
        noise_source: Callable[..., torch.Tensor] | None = None,
        log_density: Callable[..., torch.Tensor] | None = None,
        log_density_scale: float = 1.0,
        log_density_of: str = "x_0",
        batch_size: int | None = None,
        pad_batches: bool = False,
        callback: Callback | None = None,
    ) -> Samples:
        """Draws.

        Args:
            labels: classes by number, name or synonym; one for all, or one for each picture. Without, for networks with
                classes: each class, and ten of them, evenly spread, where there are more; in turn where pictures are more.
            conditions: what networks take besides, by name: tensors [n or 1, ...], or pairs (tensor, null tensor), of which
                guidance takes the second for the half without the condition. "name.null" is another way to give that. Tensors
                of any kind: torch's, NumPy's, DLPack's.
            guidance: the scale of classifier-free guidance, 1 is off; one for each network; or a `Guidance`. Without, what
                the last network recommends where it can be guided, else 1.
            seeds: of the first picture, those after it have one more each; or a list with one for each. The noise of a
                picture depends on its seed alone.
            count: how many pictures; without, as many as there are seeds, labels or rows of conditions.
            shape: [C, ...] of one picture, where the networks leave it open.
            initial_noise: [n, C, ...] instead of noise by seeds; float32 or float64.
            initial_image: to begin from (SDEdit, arXiv 2108.01073): PIL, uint8 arrays [H, W, C] and uint8 tensors [C, H, W]
                are in 0..255; floating arrays and tensors [n, C, ...] are as networks know them, for pictures in [-1, 1].
            strength: in (0, 1], with an initial_image: of N steps the last round(strength N) are taken.
            mask: [1 or n, 1 or C, ...] with an initial_image: 1 where the picture is drawn, 0 where it is kept; bool, floating
                in [0, 1], or uint8 and PIL of 0 and 255.
            torch_seed: draw the random numbers that torch.manual_seed and torch.randn give on the CPU, one batch.
            noise_source: (seeds, step, draw, shape, dtype, device) -> [n, *shape], step -1 for the initial noise; the same
                for the same arguments.
            log_density: (picture, t, labels, conditions) -> [n] with gradients, by which x_0 is moved (arXiv 2105.05233,
                2209.14687); picture is x_0, or x where log_density_of is "x".
            log_density_scale: the factor of its gradient.
            log_density_of: "x_0" or "x".
            batch_size: pictures that a network sees at once; guidance makes twice as many rows. Without, 16 on the CPU and
                256 elsewhere.
            pad_batches: fill up batches, so that a picture has the same bits beside any others.
            callback: called with a `StepReport` after each step; returns nothing, or False to stop the run.

        Returns:
            Samples: after a stop, what exists then.

        Raises:
            ValueError, TypeError: naming the argument.
            RuntimeError: for networks that do not fit together, that return what they must not, or whose values are no finite
                numbers. What a network or a callback raises comes as it is, and Ctrl-C as KeyboardInterrupt.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: must be callable, got {shown(callback)}")
        request, guide = self._request(locals())
        images, drawn, finished_images, finished = self._sampler.sample(self._sources.loaded(), request, callback)
        if images is None:  # stopped before anything was predicted
            images = torch.empty([0, *(request.shape or [0])])
        labels_of_rows = (
            list(request.labels) * len(drawn) if len(request.labels) == 1 else list(request.labels)[: len(drawn)]
        )
        plan = self._plan_of(guide, request.strength)
        return Samples(images, drawn, labels_of_rows, self._classes(labels_of_rows), finished_images, finished, plan)

    def __repr__(self) -> str:
        names = ", ".join(repr(each.name) for each in self._sources.infos)
        return f"Sampler([{names}], {self._plan_of(_core.Guidance([1.0], 0.0, 1.0, 0, 0.0, None, None, None), 1.0)!r})"

    def _plan_of(self, guidance: _core.Guidance, strength: float) -> Plan:
        return Plan(self._sampler.plan(guidance, strength), len(self._sources.infos))

    def _classes(self, labels: Sequence[int]) -> list[str]:
        names = next((each.class_names for each in reversed(self._sources.infos) if each.class_names), None)
        return [names[label] if 0 <= label < len(names) else "" for label in labels] if names else []

    def _guidance_of(self, guidance: Any, conditions: Mapping[str, Any]) -> _core.Guidance:
        if guidance is None:
            last = self._sources.infos[-1]
            wanted = {each.name for each in last.conditions}
            guidable = last.null_class is not None or any(
                null is not None and key in wanted for key, (_, null) in conditions.items()
            )
            guidance = last.guidance_scale if guidable else 1.0
        if not isinstance(guidance, Guidance):
            guidance = Guidance(tuple(reals("guidance", guidance)) if is_list(guidance) else real("guidance", guidance))
        channels = guidance.channels or self._guidance_channels
        made = guidance if channels == guidance.channels else Guidance(**{**guidance.__dict__, "channels": channels})
        if self._guidance_forecast is None or made.forecast is not None:
            return made._core()
        return _core.Guidance(made._core().scale, made.begin, made.end, made.channels, made.rescale, made.projected,
                              made.guide_network, self._guidance_forecast)  # fmt: skip

    def _request(self, given: dict[str, Any]) -> tuple[_core.Request, _core.Guidance]:
        infos = self._sources.infos
        request = _core.Request()
        conditions = conditions_of(given["conditions"])
        for name, (value, null) in conditions.items():
            request.add_condition(name, value, null)
        guidance = self._guidance_of(given["guidance"], conditions)
        request.guidance = guidance
        pixels = any(each.decoding == "pixels" for each in infos)
        if given["initial_noise"] is not None:
            # Not the caller's memory, which a run in flight would share.
            request.initial_noise = tensor("initial_noise", given["initial_noise"]).clone()
        if given["initial_image"] is not None:
            grey = any(list(each.full_shape)[:1] == [1] for each in infos)
            request.initial_image = image_tensor("initial_image", given["initial_image"], pixels, grey)
        if given["mask"] is not None:
            request.mask = mask_tensor("mask", given["mask"])
        request.strength = real("strength", given["strength"])
        if given["shape"] is not None:
            request.shape = wholes("shape", given["shape"], 1)
        seeds = given["seeds"]
        if is_list(seeds):
            request.seeds = wholes("seeds", seeds, 0, 2**64 - 1)
            if not request.seeds:
                raise ValueError("seeds: must be an int or a list of at least one, got an empty list")
        else:
            request.seed = whole("seeds", seeds, 0, 2**64 - 1)
        rows = [value.shape[0] for pair in conditions.values() for value in pair if value is not None and value.dim()]
        rows += [
            each.shape[0] for each in (request.initial_noise, request.initial_image) if each is not None and each.dim()
        ]
        count = None if given["count"] is None else whole("count", given["count"], 1)
        self._take_labels(request, given["labels"], count, max([len(request.seeds), *rows], default=0))
        if count is not None:
            request.count = count
        batch = given.get("batch_size")
        if batch is not None:
            request.batch_size = whole("batch_size", batch, 1)
        elif "callback" in given and given["torch_seed"] is None:  # a generator's numbers are for one batch
            request.batch_size = 16 if self._sources.device.type == "cpu" else 256
        request.pad_batches = bool(given.get("pad_batches", False))
        if given["torch_seed"] is not None:
            if given["noise_source"] is not None:
                raise ValueError("torch_seed: must not be given with noise_source")
            request.set_torch_noise(whole("torch_seed", given["torch_seed"], 0, 2**64 - 1), self._rows_per_image)
        if given["noise_source"] is not None:
            if not callable(given["noise_source"]):
                raise TypeError(f"noise_source: must be callable, got {shown(given['noise_source'])}")
            request.set_noise_source(given["noise_source"])
        if given["log_density"] is not None:
            if not callable(given["log_density"]):
                raise TypeError(f"log_density: must be callable, got {shown(given['log_density'])}")
            request.set_log_density(
                given["log_density"], real("log_density_scale", given["log_density_scale"]), given["log_density_of"]
            )
        return request, guidance

    def _take_labels(self, request: _core.Request, labels: Any, count: int | None, rows: int) -> None:
        info = next((each for each in reversed(self._sources.infos) if each.num_classes), None)
        if info is None:
            if labels is not None:
                raise ValueError("labels: these networks take none; say num_classes=... where they are modules that do")
            return
        if labels is None:
            number = min(info.num_classes, 10)
            each = [i * info.num_classes // number for i in range(number)]
            images = count or rows or number
            request.labels = [each[i % number] for i in range(images)]
            return
        if isinstance(labels, str) or not is_list(labels):
            request.labels = [label_of("labels", labels, info)]
            return
        request.labels = [label_of(f"labels[{i}]", value, info) for i, value in enumerate(
            labels.tolist() if hasattr(labels, "tolist") else labels)]  # fmt: skip
        if not request.labels:
            raise ValueError("labels: must be at least one, got an empty list")

    def _require_plan(self, made: Trajectory, facts: Mapping[str, Any]) -> None:
        own = made.plan
        if own._plan.fingerprint() == made._run.plan:
            return
        for name, mine in (("noise_schedule", own.noise_schedule), ("spacing", own.spacing), ("sampler", own.sampler),
                           ("steps", len(own)), ("timesteps", own.timesteps), ("networks", own.networks),
                           ("guidance", [each.guidance for each in own])):  # fmt: skip
            saved = len(facts.get("timesteps", ())) if name == "steps" else facts.get(name)
            if saved != mine:
                raise ValueError(f"load: the file's run has {name} {shown(saved)}, this sampler has {shown(mine)}")
        raise ValueError("load: the file's run is of another plan than this sampler's")


def conditions_of(given: Mapping[str, Any] | None) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """Each condition with its null counterpart, or None."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"conditions: must be a dict of tensors by name, got {shown(given)}")
    made: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for name, value in given.items():
        place = f"conditions[{name!r}]"
        if not isinstance(name, str):
            raise TypeError(f"conditions: names must be str, got {shown(name)}")
        if name.endswith(".null"):
            if name.removesuffix(".null") not in given:
                raise ValueError(f"{place}: must come with {name.removesuffix('.null')!r}")
            continue
        null = given.get(name + ".null")
        if isinstance(value, tuple):
            if len(value) != 2 or null is not None:
                raise ValueError(f"{place}: must be a tensor, or one pair of a tensor and its null counterpart")
            value, null = value
        made[name] = (tensor(place, value), None if null is None else tensor(place + " (null)", null))
    return made


def _thresholding_of(value: Any) -> _core.Thresholding:
    if isinstance(value, _core.Thresholding):
        return value
    makers = {"automatic": _core.Thresholding.automatic, "none": _core.Thresholding.none, "clip": _core.Thresholding.clip,
              "dynamic": _core.Thresholding.dynamic}  # fmt: skip
    if value not in makers:
        raise ValueError(f"thresholding: must be one of {', '.join(makers)} or a Thresholding, got {shown(value)}")
    return makers[value]()


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    number = float(value) if name == "inf" or value == float("inf") else real(name, value)
    return "inf" if number == float("inf") else repr(number)


def _rule_of(sampler: Any, order: Any, eta: Any, options: Mapping[str, Any] | None) -> _core.UpdateRule:
    if not isinstance(sampler, str):
        if not callable(sampler):
            raise TypeError(
                f"sampler: must be the name of one or a callable (StepInput) -> tensor, got {shown(sampler)}"
            )
        only("a callable sampler", {"order": order, "eta": eta, "sampler_options": options})
        name = getattr(sampler, "name", None) or getattr(sampler, "__name__", type(sampler).__name__)
        evaluations = getattr(sampler, "evaluations", 1)
        if not callable(evaluations):
            evaluations = whole("sampler.evaluations", evaluations, 0, 1000)
        return _core.UpdateRule.callable(
            sampler, str(name), whole("sampler.history", getattr(sampler, "history", 0), 0, 1000), evaluations
        )
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"sampler_options: must be a dict of options by name, got {shown(options)}")
    values = {str(key): _option(f"sampler_options[{key!r}]", value) for key, value in (options or {}).items()}
    for name, value in (("order", order), ("eta", eta)):
        if value is None:
            continue
        if name in values:
            raise ValueError(f"{name}: must not be given with sampler_options[{name!r}]")
        values[name] = str(whole(name, value)) if name == "order" else repr(real(name, value))
    return _core.UpdateRule.by_name(sampler, values)


def _take_spacing(
    options: _core.Options, noise: _core.NoiseSchedule, steps: Any, spacing: Any, timesteps: Any, sigmas: Any
) -> None:
    if timesteps is not None:
        only("timesteps", {"spacing": spacing, "sigmas": sigmas})
        spacing = reals("timesteps", timesteps)
    elif sigmas is not None:
        only("sigmas", {"spacing": spacing})
        values = reals("sigmas", sigmas)
        spacing = _core.Spacing.sigmas(values[:-1] if len(values) > 1 and values[-1] == 0 else values)
        count = len(values) - (1 if len(values) > 1 and values[-1] == 0 else 0)
        if steps is not None and whole("steps", steps) != count:
            raise ValueError(f"steps: must be the {count} of sigmas, got {steps}")
        steps = count
    if spacing is None:
        spacing = "shifted" if noise.is_flow else "linspace"
    if isinstance(spacing, str):
        spacing = _core.Spacing.by_name(spacing)
    elif not isinstance(spacing, _core.Spacing):
        if not is_list(spacing):
            raise TypeError(f"spacing: must be a name, a Spacing or a list of timesteps, got {shown(spacing)}")
        values = reals("spacing", spacing)
        if steps is not None and whole("steps", steps) != len(values):
            raise ValueError(f"steps: must be the {len(values)} timesteps, got {steps}")
        steps, spacing = len(values), _core.Spacing.list(values)
    options.steps = whole("steps", 50 if steps is None else steps, 1, 1_000_000)
    options.spacing = spacing


def _routing_of(routing: Any, ratio: Any, fractions: Any, networks: int, timesteps: int) -> _core.Routing:
    by_name = routing is None or isinstance(routing, str)
    if not by_name:
        only("a routing of your own", {"ratio": ratio, "fractions": fractions})
        if callable(routing):
            return _core.Routing.callable(routing)
        if not is_list(routing):
            raise TypeError(
                f"routing: must be a name, a list of networks or a callable (step) -> index, got {shown(routing)}"
            )
        return _core.Routing.table(wholes("routing", routing, 0, networks - 1))
    if fractions is not None:
        only("fractions", {"ratio": ratio})
        fractions = reals("fractions", fractions)
        if len(fractions) != networks:
            raise ValueError(f"fractions: must be one for each of the {networks} networks, got {len(fractions)}")
    if ratio is not None:
        ratio = real("ratio", ratio)
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio: must be in [0, 1], got {ratio}")
        if networks != 2:
            raise ValueError(f"ratio: is for two networks, got {networks}; say fractions")
    bounded = routing is not None and ":" in routing
    if networks == 1 and routing is None and fractions is None:
        return _core.Routing.single(0)
    if networks > 2 and fractions is None and not bounded:
        raise ValueError(f"fractions: must be given for more than two networks, got none for {networks}")
    if bounded and ratio is not None:
        raise ValueError(f"ratio: must not be given with routing {routing!r}, which has its boundaries")
    return _core.Routing.by_name(
        "stitch" if routing is None else routing, 0.4 if ratio is None else ratio, fractions or [], timesteps, 0
    )


_OF_REQUESTS = ("labels", "conditions", "guidance", "seeds", "count", "shape", "initial_noise", "initial_image", "strength", "mask",
                "torch_seed", "noise_source", "log_density", "log_density_scale", "log_density_of", "batch_size",
                "pad_batches", "callback")  # fmt: skip


def sample(
    networks: Sequence[NetworkLike],
    *,
    # of Sampler
    ratio: float | None = None,
    fractions: Sequence[float] | None = None,
    routing: Routing | None = None,
    sampler: Rule | None = None,
    order: int | None = None,
    eta: float | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    spacing: SpacingLike | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    final_sigma: str | None = None,
    previous_timestep: str | None = None,
    thresholding: str | _core.Thresholding | None = None,
    at_switch: str | None = None,
    forecast: str | Sequence[bool] | Callable[[_core.Step, int, int], bool] | None = None,
    profile: str | None = None,
    preset: str | None = None,
    noise_schedule: NoiseScheduleLike | None = None,
    prediction: str | None = None,
    num_classes: int | None = None,
    null_class: int | None = None,
    class_names: Sequence[str] | None = None,
    learned_variance: bool | None = None,
    timestep_type: str | None = None,
    decoding: str | None = None,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    backend: str | Sequence[str] = "auto",
    # of Sampler.sample
    labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
    guidance: float | Sequence[float] | Guidance | None = None,
    seeds: int | Sequence[int] = 0,
    count: int | None = None,
    shape: Sequence[int] | None = None,
    initial_noise: Any = None,
    initial_image: Any = None,
    strength: float = 1.0,
    mask: Any = None,
    torch_seed: int | None = None,
    noise_source: Callable[..., torch.Tensor] | None = None,
    log_density: Callable[..., torch.Tensor] | None = None,
    log_density_scale: float = 1.0,
    log_density_of: str = "x_0",
    batch_size: int | None = None,
    pad_batches: bool = False,
    callback: Callback | None = None,
) -> Samples:
    """Draws with several networks in turn: `Sampler(networks, ...).sample(...)` in one call.

        samples = tstitch.sample([small, large], ratio=0.4, sampler="dpm-solver++", steps=20, shape=(3, 32, 32),
                                 noise_schedule="linear", labels=[0, 1, 2], num_classes=10, null_class=10, guidance=2.0)

    All arguments are those of `Sampler` and of `Sampler.sample`. Plain modules take the conditions of the call as keyword
    arguments.
    """
    given = locals()
    of_request = {name: given[name] for name in _OF_REQUESTS}
    of_sampler = {name: value for name, value in given.items() if name != "networks" and name not in of_request}
    taken = {
        name: _core.ConditionInfo(name, list(value.shape[1:]), value.is_floating_point())
        for name, (value, _) in conditions_of(conditions).items()
    }
    return Sampler(**of_sampler, networks=networks, _conditions=taken).sample(**of_request)


def plan(
    networks: Sequence[NetworkLike],
    *,
    # of Sampler
    ratio: float | None = None,
    fractions: Sequence[float] | None = None,
    routing: Routing | None = None,
    sampler: Rule | None = None,
    order: int | None = None,
    eta: float | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    spacing: SpacingLike | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    final_sigma: str | None = None,
    previous_timestep: str | None = None,
    thresholding: str | _core.Thresholding | None = None,
    at_switch: str | None = None,
    forecast: str | Sequence[bool] | Callable[[_core.Step, int, int], bool] | None = None,
    profile: str | None = None,
    preset: str | None = None,
    noise_schedule: NoiseScheduleLike | None = None,
    prediction: str | None = None,
    num_classes: int | None = None,
    null_class: int | None = None,
    class_names: Sequence[str] | None = None,
    learned_variance: bool | None = None,
    timestep_type: str | None = None,
    decoding: str | None = None,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    backend: str | Sequence[str] = "auto",
    # of Sampler.plan
    guidance: float | Sequence[float] | Guidance | None = None,
    strength: float = 1.0,
) -> Plan:
    """What `sample` with these arguments will do at each step; files are read as far as what they state.

    All arguments are those of `Sampler` and of `Sampler.plan`.
    """
    given = locals()
    of_sampler = {name: value for name, value in given.items() if name not in ("guidance", "strength")}
    return Sampler(**of_sampler).plan(guidance=guidance, strength=strength)
