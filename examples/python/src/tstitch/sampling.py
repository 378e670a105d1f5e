"""Samplers, and what they make: plans, trajectories, samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Union

import torch

from . import _core
from .arguments import is_list, only, real, reals, shown, tensor, whole, wholes
from .autoencoders import Decoder, DecoderLike, decoder_of
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
    #: What makes pictures of latents; None where none was given.
    decoder: Decoder | None = None

    @cached_property
    def pictures(self) -> torch.Tensor:
        """[n, C, H, W] in [-1, 1]: images, decoded where they are latents; videos [n, C, F, H, W]."""
        return self.images if self.decoder is None else self.decoder(self.images)

    def numpy(self) -> Any:
        """Pictures as a uint8 array, [n, H, W, C] in 0..255; videos [n, F, H, W, C]."""
        return to_uint8(self.pictures).numpy()

    def pil(self) -> list[Any]:
        """Pictures as PIL has them; of videos a list of its frames for each."""
        from PIL import Image

        def made(each: Any) -> Any:
            if each.ndim == 4:
                return [made(frame) for frame in each]
            return Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each)

        return [made(each) for each in self.numpy()]

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
            ValueError: for callables, which are no data: noise_source, log_density, and the forecast of guidance.
        """
        plan = self.plan
        facts = {"sampler": plan.sampler, "noise_schedule": plan.noise_schedule, "spacing": plan.spacing,
                 "timesteps": plan.timesteps, "networks": plan.networks,
                 "guidance": [each.guidance for each in plan], "forecast": [each.forecast for each in plan]}  # fmt: skip
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
        decoder: DecoderLike | None = None,
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
            decoder: of networks that make latents: a `Decoder` or the path of one, by which `Samples` make pictures of them.

        Where neither sampler, profile, preset nor anything else from order to previous_timestep is given, the profile and the
        steps that the last network's file recommends are taken.

        Raises:
            ValueError, TypeError: naming the argument.
            RuntimeError: for files, and for networks that do not fit together.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "networks")}
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
        self._given = given
        self._decoder = None if decoder is None else decoder_of(decoder, self._sources.device)
        if self._decoder is not None:
            self._decoder._require(last)
        self._guidance: Guidance | None = None
        self._predicted_seconds: float | None = None
        self._routing = _routing_of(routing, ratio, fractions, len(infos), noise.num_train_timesteps)
        self._sampler: _core.Sampler = _core.Sampler(noise, self._routing, options, rule)

    @property
    def networks(self) -> list[Network]:
        """The networks, loaded."""
        return self._sources.networks()

    @property
    def noise_schedule(self) -> _core.NoiseSchedule:
        return self._sampler.noise_schedule

    @property
    def predicted_seconds(self) -> float | None:
        """What a batch takes, where `within` chose this sampler; else None."""
        return self._predicted_seconds

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
        return Samples(trajectory.x, seeds, trajectory.labels, self._classes(trajectory.labels), len(seeds), True,
                       trajectory.plan, self._decoder)  # fmt: skip

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
        return Samples(images, drawn, labels_of_rows, self._classes(labels_of_rows), finished_images, finished, plan,
                       self._decoder)  # fmt: skip

    def invert(
        self,
        image: Any,
        *,
        rule: Rule = "ddim",
        iterations: int = 3,
        labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | Guidance = 1.0,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """The noise from which pictures are drawn again, at the steps and by the routing of this sampler, without forecasts.

        `sample(initial_noise=noise)` gives the picture by the same rule; with another label it edits it. How much comes back
        depends on how smooth the networks are; more steps and iterations bring more.

        Args:
            image: as `initial_image` of `sample`.
            rule: that is inverted, whatever this sampler's own is: without history and without noise, "ddim", "euler", "heun".
            iterations: of the fixed-point iteration of a step (arXiv 2309.04907, 2311.18387), in [1, 10000].
            labels, conditions, guidance, batch_size: as for `sample`; without labels that of no class, where networks have it.

        Returns:
            [n, C, ...], for `initial_noise`.

        Raises:
            ValueError: for rules that have a history or draw noise, and as `sample`.
            RuntimeError: as `sample`.
        """
        if image is None:
            raise TypeError("image: must be a picture, got None")
        null = next((each.null_class for each in reversed(self._sources.infos) if each.null_class is not None), None)
        if labels is None and null is not None:
            labels = null
        guided = self._stated_guidance(guidance, {})
        if guided.forecast is None:
            guided = replace(guided, forecast="none")  # not a preset's
        given = {"initial_image": image, "labels": labels, "conditions": conditions, "guidance": guided,
                 "batch_size": batch_size, "callback": None, "seeds": 0, "strength": 1.0}  # fmt: skip
        made = _rule_of(rule, None, None, None)
        inversion = self._sampler.inversion(made, whole("iterations", iterations, 1, 10000))
        request, _ = self._request({**dict.fromkeys(_OF_REQUESTS), **given})
        images, _, _, _ = inversion.sample(self._sources.loaded(), request, None)
        assert images is not None  # nothing stops it
        return images

    def within(
        self,
        budget: str,
        *,
        quality: str | os.PathLike | None = None,
        labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | Sequence[float] | Guidance | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        shape: Sequence[int] | None = None,
        batch_size: int | None = None,
        pad_batches: bool = False,
    ) -> Sampler:
        """The best way to draw that a budget allows, as a sampler of its own. Draws, to measure what networks take.

        Without a quality table the last network takes as many steps as fit, then the one before it, whatever fractions were
        given of more than two. With one, the way of the least distance that fits is taken; what was said of sampler, profile,
        steps, ratio and forecasts stays as it was said.

        Args:
            budget: "80ms" or "1.5s" for a batch, or "20img/s".
            quality: a file of `quality_table.py`, of these networks.
            labels, conditions, guidance, seeds, count, shape, batch_size, pad_batches: of what will be drawn, as for `sample`;
                the sampler that is returned has this guidance where it is not told another.

        Raises:
            ValueError: for budgets that nothing fits into, saying what the cheapest way takes; where there is nothing to
                choose; and as `sample`.
            RuntimeError: for a quality table that is damaged; and as `sample`.
        """
        given = {**dict.fromkeys(_OF_REQUESTS), "strength": 1.0, "callback": None, "labels": labels, "conditions": conditions,
                 "seeds": seeds, "count": count, "shape": shape, "batch_size": batch_size, "pad_batches": pad_batches}  # fmt: skip
        return _within(self, budget, quality, guidance, given)

    def __repr__(self) -> str:
        names = ", ".join(repr(each.name) for each in self._sources.infos)
        return f"Sampler([{names}], {self._plan_of(_core.Guidance([1.0], 0.0, 1.0, 0, 0.0, None, None, None), 1.0)!r})"

    def _plan_of(self, guidance: _core.Guidance, strength: float) -> Plan:
        return Plan(self._sampler.plan(guidance, strength), len(self._sources.infos))

    def _classes(self, labels: Sequence[int]) -> list[str]:
        names = next((each.class_names for each in reversed(self._sources.infos) if each.class_names), None)
        return [names[label] if 0 <= label < len(names) else "" for label in labels] if names else []

    def _guidance_of(self, guidance: Any, conditions: Mapping[str, Any]) -> _core.Guidance:
        return self._stated_guidance(guidance, conditions)._core_with(self._guidance_forecast)

    def _stated_guidance(self, guidance: Any, conditions: Mapping[str, Any]) -> Guidance:
        """With what is not said filled in."""
        if guidance is None:
            guidance = self._guidance
        if guidance is None:
            last = self._sources.infos[-1]
            wanted = {each.name for each in last.conditions}
            guidable = last.null_class is not None or any(
                null is not None and key in wanted for key, (_, null) in conditions.items()
            )
            guidance = last.guidance_scale if guidable else 1.0
        if not isinstance(guidance, Guidance):
            guidance = Guidance(tuple(reals("guidance", guidance)) if is_list(guidance) else real("guidance", guidance))
        return guidance if guidance.channels else replace(guidance, channels=self._guidance_channels)

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
                           ("guidance", [each.guidance for each in own]),
                           ("forecast", [each.forecast for each in own])):  # fmt: skip
            saved = len(facts.get("timesteps", ())) if name == "steps" else facts.get(name)
            if saved != mine:
                raise ValueError(f"load: the file's run has {name} {shown(saved)}, this sampler has {shown(mine)}")
        raise ValueError("load: the file's run is of another plan than this sampler's")


def _within(sampler: Sampler, budget: Any, quality: Any, guidance: Any, given: dict[str, Any]) -> Sampler:
    """`Sampler.within`."""
    if not isinstance(budget, str):
        raise TypeError(f"budget: must be a text such as '80ms' or '20img/s', got {shown(budget)}")
    wanted = _core.Budget.by_name(budget)
    if wanted.is_flop:
        raise ValueError(
            f"budget: must be of time, as '80ms' or '20img/s'; operations are counted by tstitch_sample, got {budget!r}"
        )
    said, infos = sampler._given, sampler._sources.infos
    if said["routing"] not in (None, "stitch"):
        raise ValueError(f"budget: chooses the shares of the networks for routing 'stitch', got {shown(said['routing'])}")
    if len(infos) == 2:  # of more they must be given, and are replaced
        only("budget", {"fractions": said["fractions"]})
    if len(infos) < 2 or (quality is None and said["ratio"] is not None):
        got = "one network" if len(infos) < 2 else f"ratio {said['ratio']} and no quality table"
        raise ValueError(f"budget: must have something to choose, got {got}")
    stated = sampler._stated_guidance(guidance, conditions_of(given["conditions"]))
    if quality is not None:
        ways = _ways_of(sampler, os.fspath(quality), guidance, stated)
        stated = ways[0][2]
    networks = sampler._sources.loaded()
    request, batch = _batch_of(sampler, {**given, "guidance": replace(stated, forecast=None)})
    most = wanted.most(batch)
    times = _core.RunTimes(networks, request)

    def made(way: dict[str, Any], guided: Guidance) -> Sampler:
        """This sampler with something changed."""
        other = Sampler(sampler.networks, **{**said, "decoder": sampler._decoder, **way})
        other._guidance = guided
        return other

    def cost(other: Sampler) -> float:
        return times.predict(other._sampler, other._guidance_of(None, {}))

    def choose() -> tuple[Sampler, bool]:
        """The best that fits by what is known, or the cheapest where nothing does."""
        if quality is not None:
            others = [made(way, guided) for _, way, guided in ways]
            index, fits = _core.best_within([way[0] for way in ways], most, lambda i: cost(others[i]))
            return others[index], fits
        steps = len(sampler._sampler.plan(_core.Guidance([1.0], 0.0, 1.0, 0, 0.0, None, None, None)))

        def by_counts(counts: Sequence[int]) -> Sampler:
            shares = [each / steps for each in counts]
            return made({"ratio": shares[0]} if len(shares) == 2 else {"fractions": shares}, stated)

        counts = _core.largest_networks_within(len(infos), steps, most, lambda tried: cost(by_counts(tried)))
        return by_counts(counts or [steps] + [0] * (len(infos) - 1)), counts is not None

    # What is chosen is drawn, which corrects what is predicted of the others, until it has been drawn and fits.
    chosen, fits = choose()
    while not times.is_measured(chosen._sampler, chosen._guidance_of(None, {})):
        times.measure(chosen._sampler, chosen._guidance_of(None, {}))
        chosen, fits = choose()
    seconds = cost(chosen)
    if not fits:
        if budget.endswith("img/s"):
            rule = f"at most what the cheapest way reaches, {batch / seconds:.4g} img/s"
        else:
            rule = f"what the cheapest way takes, {1e3 * seconds:.4g} ms for {batch} pictures, or more"
        raise ValueError(f"budget: must be {rule}, got {budget!r}")
    chosen._predicted_seconds = seconds
    return chosen


def _ways_of(sampler: Sampler, path: str, guidance: Any, stated: Guidance) -> list[tuple[float, dict[str, Any], Guidance]]:
    """Of the rows of a quality table that leave what was said as it was: the distance, the arguments and the guidance."""
    said = sampler._given
    names, scale, rows = _core.read_quality_table(path)
    theirs = [each.name for each in sampler._sources.infos]
    if names != theirs:
        raise ValueError(f"quality: {path!r} must be of {', '.join(theirs)}, got one of {', '.join(names)}")
    if guidance is not None and (reals("guidance", stated.scale) if is_list(stated.scale) else [stated.scale]) != [scale]:
        raise ValueError(f"guidance: must be that of the quality table, {scale}, got {shown(stated.scale)}")
    not_in_tables = ("order", "eta", "sampler_options", "spacing", "timesteps", "sigmas", "final_sigma", "previous_timestep",
                     "thresholding", "at_switch", "preset")  # fmt: skip
    only("quality", {name: said[name] for name in not_in_tables})
    wanted = None if said["profile"] is None else f"profile:{said['profile']}"
    wanted = wanted or said["sampler"]
    ways = []
    for distance, name, steps, shares, forecast, of_guidance in rows:
        for mine, row in ((wanted, name), (said["steps"], steps), (said["ratio"], shares[0]), (said["forecast"], forecast),
                          (stated.forecast, of_guidance)):  # fmt: skip
            if mine is not None and mine != row:
                break
        else:
            is_profile = name.startswith("profile:")
            way = {"profile": name.removeprefix("profile:") if is_profile else None, "sampler": None if is_profile else name,
                   "steps": steps, "forecast": forecast}  # fmt: skip
            way.update({"ratio": shares[0]} if len(shares) == 2 else {"fractions": shares})
            ways.append((distance, way, replace(stated, scale=scale, forecast=of_guidance)))
    if not ways:
        raise ValueError(f"quality: {path!r} must have rows with the options that are given, got none")
    return ways


def _batch_of(sampler: Sampler, given: dict[str, Any]) -> tuple[_core.Request, int]:
    """The first batch of what is to be drawn, and its pictures."""
    whole_request, _ = sampler._request(given)
    conditions = conditions_of(given["conditions"])
    rows = [value.shape[0] for pair in conditions.values() for value in pair if value is not None and value.dim()]
    images = whole_request.count or max([1, len(whole_request.labels), len(whole_request.seeds), *rows])
    batch = min(images, whole_request.batch_size or images)

    def first(value: Any) -> Any:
        return value[:batch] if is_list(value) and len(value) > 1 else value

    cut = {**given, "labels": first(whole_request.labels) or None, "count": batch}
    cut["seeds"] = first(given["seeds"])
    cut["conditions"] = {name: tuple(first(each) for each in pair) if pair[1] is not None else first(pair[0])
                         for name, pair in conditions.items()}  # fmt: skip
    return sampler._request(cut)[0], batch


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
_OF_WITHIN = ("labels", "conditions", "guidance", "seeds", "count", "shape", "batch_size", "pad_batches")


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
    decoder: DecoderLike | None = None,
    # of Sampler.within
    budget: str | None = None,
    quality: str | os.PathLike | None = None,
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

    All arguments are those of `Sampler`, of `Sampler.within`, which takes a budget, and of `Sampler.sample`. Plain modules
    take the conditions of the call as keyword arguments.
    """
    given = locals()
    given.pop("budget"), given.pop("quality")
    of_request = {name: given[name] for name in _OF_REQUESTS}
    of_sampler = {name: value for name, value in given.items() if name != "networks" and name not in of_request}
    if budget is not None and fractions is None and isinstance(networks, (list, tuple)) and len(networks) > 2:
        of_sampler["fractions"] = [1 / len(networks)] * len(networks)  # which the budget replaces
    sampler = Sampler(**of_sampler, networks=networks, _conditions=_infos_of(conditions))
    if budget is None:
        if quality is not None:
            raise ValueError(f"quality: must come with a budget, got {shown(quality)} alone")
        return sampler.sample(**of_request)
    only("budget", {name: of_request[name] for name in ("initial_noise", "initial_image", "mask", "torch_seed", "noise_source",
                                                        "log_density")})  # fmt: skip
    chosen = sampler.within(budget, quality=quality, **{name: of_request[name] for name in _OF_WITHIN})
    return chosen.sample(**{**of_request, "guidance": None})


def invert(
    networks: Sequence[NetworkLike], image: Any, *, rule: Rule = "ddim", iterations: int = 3, **options: Any
) -> torch.Tensor:
    """The noise from which pictures are drawn again: `Sampler(networks, ...).invert(image, ...)` in one call.

        noise = tstitch.invert(["small.pt", "large.pt"], picture, steps=50)
        tstitch.sample(["small.pt", "large.pt"], sampler="ddim", steps=50, initial_noise=noise, labels="cat", guidance=1)

    Args:
        networks, image, rule, iterations: see `Sampler.invert`.
        options: labels, conditions, guidance and batch_size of `Sampler.invert`, and all of `Sampler`.
    """
    of_inversion = {name: options.pop(name) for name in ("labels", "conditions", "guidance", "batch_size") if name in options}
    taken = _infos_of(of_inversion.get("conditions"))
    return Sampler(networks, _conditions=taken, **options).invert(image, rule=rule, iterations=iterations, **of_inversion)


def _infos_of(conditions: Mapping[str, Any] | None) -> dict[str, _core.ConditionInfo]:
    """What plain modules take, by what they are given."""
    return {
        name: _core.ConditionInfo(name, list(value.shape[1:]), value.is_floating_point())
        for name, (value, _) in conditions_of(conditions).items()
    }


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
