"""Networks: modules, functions and files, and what the library must know of them."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch

from . import _core
from .arguments import is_list, real, reals, shown, whole, wholes

NoiseScheduleLike = Union[str, _core.NoiseSchedule, Sequence[float], torch.Tensor]
NetworkLike = Union["Network", torch.nn.Module, Callable[..., Any], str, os.PathLike]

_SCHEDULES = {
    "linear": _core.NoiseSchedule.linear,
    "scaled_linear": _core.NoiseSchedule.scaled_linear,
    "cosine": _core.NoiseSchedule.cosine,
    "flow": _core.NoiseSchedule.flow,
}


def noise_schedule_of(value: NoiseScheduleLike, name: str = "noise_schedule") -> _core.NoiseSchedule:
    """A noise schedule from what people have.

    Args:
        value: "linear" (1000 timesteps, beta from 1e-4 to 0.02: DDPM and DiT), "scaled_linear" (Stable Diffusion's, 0.00085
            to 0.012), "cosine", "flow" (flow matching, sigma = t / 1000); a `NoiseSchedule`; or alphas_cumprod, a list or a
            tensor with one value a training timestep, decreasing.
        name: of the argument, for messages.
    """
    if isinstance(value, _core.NoiseSchedule):
        return value
    if isinstance(value, str):
        if value not in _SCHEDULES:
            known = ", ".join(map(repr, _SCHEDULES))
            raise ValueError(f"{name}: must be one of {known}, a NoiseSchedule or alphas_cumprod, got {value!r}")
        return _SCHEDULES[value]()
    if is_list(value):
        return _core.NoiseSchedule.from_alphas_cumprod(reals(name, value))
    raise TypeError(f"{name}: must be a name, a NoiseSchedule or alphas_cumprod, got {shown(value)}")


def _warn_of_training(name: str, module: torch.nn.Module) -> None:
    random = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)
    if any(each.training and isinstance(each, random) for each in module.modules()):
        warnings.warn(f"{name}: is in training mode, and its dropout or batch norm makes pictures depend on one another; "
                      "call .eval() first", stacklevel=4)  # fmt: skip


@dataclass(frozen=True)
class Stated:
    """What is said of networks that are plain modules or functions."""

    noise_schedule: NoiseScheduleLike | None = None
    prediction: str | None = None
    num_classes: int | None = None
    null_class: int | None = None
    class_names: Sequence[str] | None = None
    learned_variance: bool | None = None
    timestep_type: str | None = None
    decoding: str | None = None
    device: torch.device | None = None

    def info(self, name: str, shape: Sequence[int] | None,
             conditions: Mapping[str, Sequence[int | None] | _core.ConditionInfo]) -> _core.NetworkInfo:  # fmt: skip
        info = _core.NetworkInfo()
        info.name = name
        if self.noise_schedule is not None:
            info.noise_schedule = noise_schedule_of(self.noise_schedule)
        flow = info.noise_schedule is not None and info.noise_schedule.is_flow
        info.prediction = self.prediction if self.prediction is not None else "flow" if flow else "epsilon"
        info.timestep_type = self.timestep_type if self.timestep_type is not None else "float32" if flow else "int64"
        if self.class_names is not None:
            info.class_names = [str(each) for each in self.class_names]
            info.num_classes = len(info.class_names)
        if self.num_classes is not None:
            number = whole("num_classes", self.num_classes, 0)
            if info.class_names and number != len(info.class_names):
                raise ValueError(f"num_classes: must be the {len(info.class_names)} of class_names, got {number}")
            info.num_classes = number
        if self.null_class is not None:
            info.null_class = whole("null_class", self.null_class, 0)
        info.learned_variance = bool(self.learned_variance)
        if self.decoding is not None:
            info.decoding = self.decoding
        if shape is not None:
            info.shape = wholes("shape", shape, 0)
        info.conditions = [
            _core.ConditionInfo(key, [0 if size is None else whole(f"conditions['{key}']", size, 0) for size in sizes], True)
            if not isinstance(sizes, _core.ConditionInfo) else sizes
            for key, sizes in conditions.items()
        ]  # fmt: skip
        return info


class Network:
    """A trained network, with what the library must know of it.

    `tstitch.sample` makes these of plain modules by what it is told of all of them; make them yourself where they differ,
    such as one that predicts noise and one that predicts v.
    """

    def __init__(
        self,
        module: torch.nn.Module | Callable[..., Any],
        *,
        name: str | None = None,
        noise_schedule: NoiseScheduleLike | None = None,
        prediction: str | None = None,
        shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        null_class: int | None = None,
        class_names: Sequence[str] | None = None,
        conditions: Mapping[str, Sequence[int | None]] | None = None,
        learned_variance: bool = False,
        timestep_type: str | None = None,
        decoding: str | None = None,
        guidance_scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            module: an `nn.Module`, compiled or not, or any function, called as (x, t) with x [n, C, ...] and t [n]; as
                (x, t, labels) with labels [n] int64 where `num_classes` is given; and with each of `conditions` as a keyword
                argument. It returns [n, C, ...] as a tensor, the first of a tuple, or `.sample`, as diffusers' models do. It
                must leave its arguments as they are. Gradients are off while it is called.
            name: shown in messages and plans.
            noise_schedule: that it was trained with, see `noise_schedule_of`.
            prediction: "epsilon", "sample" (x_0), "v_prediction" or "v", "flow" (eps - x_0). Without, "epsilon", and "flow"
                with a flow schedule.
            shape: [C, ...] of x for one sample, 0 where any size will do; without, any.
            num_classes: labels are 0 to num_classes - 1. Without, it takes none.
            null_class: the label that means no class, which guidance needs.
            class_names: one a class, so that labels may be names.
            conditions: other tensors that it takes, by the names of its keyword arguments, with their sizes for one sample,
                None where any size will do: {"encoder_hidden_states": [77, 768]}.
            learned_variance: twice the channels come out, the second half for DDPM's learned range (arXiv 2102.09672).
            timestep_type: "int64", where fractional timesteps are rounded, or "float32". Without, "float32" for flow
                schedules and else "int64".
            decoding: "pixels" where x_0 is a picture in [-1, 1], which samplers then clip to; else "none".
            guidance_scale: what is taken where a call says none.
            device: where x and t are to be. Without, that of the module's parameters, and the CPU for functions.
            dtype: of x and floating conditions as the module takes them. Without, that of its parameters, and for functions
                float32. Samplers compute in float32.
        """
        if isinstance(module, Network) or not callable(module):
            raise TypeError(f"module: must be an nn.Module or a function, got {shown(module)}")
        info = Stated(
            noise_schedule, prediction, num_classes, null_class, class_names, learned_variance, timestep_type, decoding
        ).info(name if name is not None else _name_of(module), shape, conditions or {})
        info.guidance_scale = real("guidance_scale", guidance_scale)
        self._make(module, info, device, dtype)

    def _make(self, module: Any, info: _core.NetworkInfo, device: Any, dtype: torch.dtype | None) -> None:
        first = next(module.parameters(), None) if isinstance(module, torch.nn.Module) else None
        if device is None:
            device = first.device if first is not None else torch.device("cpu")
        device = torch.device(device)
        if first is not None and (
            first.device.type != device.type or (device.index is not None and first.device != device)
        ):
            raise ValueError(f"device: must be where the module is, {first.device}, got {device}")
        if dtype is None and first is not None:
            dtype = next((each.dtype for each in module.parameters() if each.is_floating_point()), None)
        if isinstance(module, torch.nn.Module):
            _warn_of_training(info.name or "module", module)
        self.module = module
        self._network: _core.Network = _core.Network(module, info, device, dtype)

    @classmethod
    def _of(cls, network: _core.Network) -> Network:
        made = cls.__new__(cls)
        made.module = None
        made._network = network
        return made

    @classmethod
    def in_parts(
        cls,
        embed: Callable[..., Sequence[torch.Tensor]],
        blocks: Callable[..., torch.Tensor],
        head: Callable[..., torch.Tensor],
        *,
        residual: bool = True,
        device: torch.device | str = "cpu",
        **stated: Any,
    ) -> Network:
        """A network whose steps may be forecast: in a forecast step its blocks, where nearly all of the time goes, do not run.

        Args:
            embed: (x, t[, labels], conditions...) -> tensors, the first [n, ...].
            blocks: (*embedded) -> feature [n, ...].
            head: (feature, *embedded) -> output [n, C, ...].
            residual: whether what the blocks add to the first embedded tensor is extrapolated, as suits transformers, or all
                that they return.
            device: where x and t are to be.
            stated: as for Network: noise_schedule, prediction and so on.
        """
        known = {key: stated.pop(key, None) for key in ("name", "shape", "conditions")}
        info = Stated(**stated).info(known["name"] or "network in parts", known["shape"], known["conditions"] or {})
        return cls._of(_core.Network.in_parts(embed, blocks, head, residual, info, torch.device(device)))

    def __call__(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None, **conditions: torch.Tensor
    ) -> torch.Tensor:
        """The raw output for x [n, C, ...] and t [n]."""
        return self._network(x, t, labels, list(conditions.items()))

    @property
    def name(self) -> str:
        return self._network.info.name

    @property
    def noise_schedule(self) -> _core.NoiseSchedule | None:
        return self._network.info.noise_schedule

    @property
    def prediction(self) -> str:
        return self._network.info.prediction

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, ...] of x for one sample, 0 where any size will do; empty where it is not stated."""
        return tuple(self._network.info.full_shape)

    @property
    def num_classes(self) -> int:
        return self._network.info.num_classes

    @property
    def null_class(self) -> int | None:
        return self._network.info.null_class

    @property
    def class_names(self) -> list[str]:
        return self._network.info.class_names

    @property
    def conditions(self) -> dict[str, list[int]]:
        """The sizes of each for one sample, 0 where any will do."""
        return {each.name: each.shape for each in self._network.info.conditions}

    @property
    def guidance_scale(self) -> float:
        """What its makers recommend."""
        return self._network.info.guidance_scale

    @property
    def device(self) -> torch.device:
        return self._network.device

    @property
    def forecasts(self) -> bool:
        """Whether its steps may be forecast."""
        return self._network.forecasts

    def __repr__(self) -> str:
        info = self._network.info
        parts = [repr(info.name), f"shape={list(self.shape)}", f"prediction={info.prediction!r}"]
        if info.noise_schedule is not None:
            parts.append(f"noise_schedule={info.noise_schedule.name}")
        if info.num_classes:
            parts.append(f"num_classes={info.num_classes}")
        if info.conditions:
            parts.append(f"conditions={self.conditions}")
        return f"Network({', '.join(parts)}, device={self.device})"


def _name_of(module: Any) -> str:
    inner = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return (
        type(inner).__name__ if isinstance(inner, torch.nn.Module) else getattr(inner, "__name__", type(inner).__name__)
    )


def _device_of(device: torch.device | str | None) -> torch.device:
    return _core.default_device() if device is None else torch.device(device)


def _backends_of(backend: str | Sequence[str], count: int) -> list[str]:
    backends = [backend] if isinstance(backend, str) else list(backend)
    if len(backends) not in (1, count):
        raise ValueError(f"backend: must be one, or one for each of the {count} files, got {len(backends)}")
    for each in backends:
        if each not in _core.backends:
            raise ValueError(f"backend: must be one of {', '.join(_core.backends)}, got {each!r}")
    return backends


def load_networks(
    paths: Sequence[str | os.PathLike],
    *,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    backend: str | Sequence[str] = "auto",
) -> list[Network]:
    """Networks from files of `examples/export`, loaded at the same time. Files are programs: load what you trust.

    Args:
        paths: TorchScript files or AOTInductor packages with metadata.
        device: without, the first GPU where there is one.
        dtype: "auto" (float32 on the CPU, else the file's own), "float32", "float16" or "bfloat16".
        backend: "auto" takes the library's own engine for DiTs and CUDA graphs on a GPU; "torchscript", "native",
            "native-e4m3", "aot-inductor", each with "+graph" behind it, too; one for all files, or one for each.

    Raises:
        RuntimeError: names the file and what is wrong with it.
    """
    names = [os.fspath(path) for path in paths]
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype: must be 'auto', 'float32', 'float16' or 'bfloat16', got {dtype!r}")
    loaded = _core.load_networks(names, _device_of(device), dtype, _backends_of(backend, len(names)), None)
    return [Network._of(each) for each in loaded]


def load_network(path: str | os.PathLike, **options: Any) -> Network:
    """A network from a file; see `load_networks`."""
    return load_networks([path], **options)[0]


class Sources:
    """The networks of a sampler, of which files are not read whole before they are needed."""

    def __init__(self, networks: Sequence[NetworkLike] | NetworkLike, stated: Stated, conditions: Mapping[str, _core.ConditionInfo],
                 device: Any, dtype: str, backend: str | Sequence[str]) -> None:  # fmt: skip
        if isinstance(networks, (str, os.PathLike, Network, torch.nn.Module)) or callable(networks):
            networks = [networks]
        if not isinstance(networks, Sequence) or not networks:
            raise TypeError(f"networks: must be a list of at least one network, got {shown(networks)}")
        self._load = (dtype, backend)
        self._files: dict[int, str] = {}
        self._made: list[Network | None] = []
        self.infos: list[_core.NetworkInfo] = []
        device = None if device is None else torch.device(device)
        modules = [each for each in networks if isinstance(each, torch.nn.Module)]
        near = next((p.device for each in modules for p in each.parameters()), None)
        near = near or next((each.device for each in networks if isinstance(each, Network)), None)
        if near is None and any(isinstance(each, (str, os.PathLike)) for each in networks):
            near = device or _core.default_device()
        for i, each in enumerate(networks):
            if isinstance(each, (str, os.PathLike)):
                self._files[i] = os.fspath(each)
                self._made.append(None)
                self.infos.append(_core.load_network_info(self._files[i]))
                continue
            if not isinstance(each, Network):
                if not callable(each):
                    raise TypeError(
                        f"networks[{i}]: must be an nn.Module, a function, a Network or a path, got {shown(each)}"
                    )
                # A module with parameters says itself where it is, and is not moved.
                says = isinstance(each, torch.nn.Module) and next(each.parameters(), None) is not None
                there = device or (None if says else near)
                made = Network.__new__(Network)
                made._make(each, stated.info(_name_of(each), None, conditions), there, None)
                each = made
            self._made.append(each)
            self.infos.append(each._network.info)
        self.device = device or near or torch.device("cpu")

    def loaded(self) -> list[_core.Network]:
        missing = [i for i, each in enumerate(self._made) if each is None]
        if missing:
            dtype, backend = self._load
            backends = _backends_of(backend, len(self._made))
            chosen = backends if len(backends) == 1 else [backends[i] for i in missing]
            found = load_networks([self._files[i] for i in missing], device=self.device, dtype=dtype, backend=chosen)
            for i, network in zip(missing, found):
                self._made[i] = network
        return [each._network for each in self._made if each is not None]

    def networks(self) -> list[Network]:
        self.loaded()
        return [each for each in self._made if each is not None]


def _synonyms(name: str) -> list[str]:
    """ImageNet's names have commas between: "tench, Tinca tinca" is both."""
    return [word.strip() for word in name.split(",") if word.strip()]


def label_of(argument: str, value: Any, info: _core.NetworkInfo) -> int:
    """The class that a number, a name or one of its synonyms means."""
    if not isinstance(value, str):
        return whole(argument, value)
    names, lower = info.class_names, value.lower()
    for same in (
        lambda name: name == value,
        lambda name: value in _synonyms(name),
        lambda name: name.lower() == lower,
        lambda name: lower in _synonyms(name.lower()),
    ):
        found = [i for i, name in enumerate(names) if same(name)]
        if len(found) > 1:
            raise ValueError(f"{argument}: must name one class, got {value!r}, which is {found[0]} and {found[1]}")
        if found:
            return found[0]
    if not names:
        raise ValueError(f"{argument}: must be a number, because the networks do not name their classes, got {value!r}")
    if len(names) <= 20:
        raise ValueError(f"{argument}: must be one of {', '.join(names)}, got {value!r}")
    near = difflib.get_close_matches(lower, [word.lower() for name in names for word in _synonyms(name)], 3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"{argument}: must be the name of one of the {len(names)} classes, got {value!r}{hint}")
