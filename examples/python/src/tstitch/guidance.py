"""How much guidance a run has, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import _core
from .arguments import is_list, real, reals, whole


def forecast_of(name: str, value: Any, first_network: int, warm_up: int) -> _core.Forecast | None:
    """A forecast schedule from "every:2", a list of bools (one a step), or a callable (step, network, taken) -> bool.

    A callable may have `order`, an int in [0, 8], and `first_network`.
    """
    if value is None or (isinstance(value, str) and value == "none"):
        return None
    if isinstance(value, str):
        return _core.Forecast.by_name(value, first_network, warm_up, name)
    if callable(value):
        order = whole(f"{name}.order", getattr(value, "order", 1), 0, 8)
        return _core.Forecast.callable(
            value, order, whole(f"{name}.first_network", getattr(value, "first_network", first_network), 0)
        )
    if is_list(value):
        return _core.Forecast.table([bool(each) for each in value], 1, first_network)
    raise TypeError(
        f"{name}: must be 'every:2', a list of bools or a callable (step, network, taken) -> bool, got {value!r}"
    )


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u), with c and u the outputs with and without the condition.

    1 is off, and costs nothing; else each evaluation has twice the rows.
    """

    #: One number, or one for each network.
    scale: float | Sequence[float] = 1.0
    #: The share of the steps at which guidance begins and ends (arXiv 2404.07724).
    begin: float = 0.0
    end: float = 1.0
    #: Only the first so many channels are guided; 0 means all. DiT's own pictures have 3 of 4.
    channels: int = 0
    #: In [0, 1], phi of arXiv 2305.08891, Eq. 14 to 16.
    rescale: float = 0.0
    #: Adaptive projected guidance (arXiv 2410.02416).
    projected: _core.ProjectedGuidance | None = None
    #: Autoguidance (arXiv 2406.02507): u is the conditional prediction of this network.
    guide_network: int | None = None
    #: When guidance is forecast and not computed: "every:2", a list of bools, or a callable (step, network, taken) -> bool.
    forecast: str | Sequence[bool] | Callable[[_core.Step, int, int], bool] | None = None

    def _core_with(self, forecast: _core.Forecast | None) -> _core.Guidance:
        """The same for the library; where no forecast is said, with this one."""
        scale = reals("guidance", self.scale) if is_list(self.scale) else [real("guidance", self.scale)]
        guide = None if self.guide_network is None else whole("guide_network", self.guide_network, 0)
        return _core.Guidance(
            scale, real("begin", self.begin), real("end", self.end), whole("channels", self.channels, 0),
            real("rescale", self.rescale), self.projected, guide,
            forecast if self.forecast is None else forecast_of("guidance.forecast", self.forecast, 0, 2),
        )  # fmt: skip
