"""The plan of a run: what will happen at each step, known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, overload

from . import _core


class Plan:
    """What each step will do. Prints as a table, has a length, is indexed and iterated, and equals plans that do the same.

    `pandas.DataFrame(plan.table())` is a frame of it.
    """

    def __init__(self, plan: _core.Plan, networks: int) -> None:
        self._plan = plan
        self._networks = networks
        self._steps: list[_core.PlannedStep] = plan.steps

    @property
    def sampler(self) -> str:
        """The update rule with its options that are not the usual ones: "DPMSolver (order 3)"."""
        return self._plan.sampler

    @property
    def noise_schedule(self) -> str:
        return self._plan.noise_schedule

    @property
    def spacing(self) -> str:
        return self._plan.spacing

    @property
    def timesteps(self) -> list[float]:
        """The training timestep of each step, noisiest first."""
        return [each.step.t for each in self._steps]

    @property
    def networks(self) -> list[int]:
        """The index of the network that takes each step."""
        return [each.network for each in self._steps]

    @property
    def calls(self) -> list[int]:
        """How often each network is evaluated."""
        return self._plan.calls(self._networks)

    @property
    def rows(self) -> list[int]:
        """How many rows a picture has in all evaluations of each network; guidance makes two of one."""
        return self._plan.rows(self._networks)

    def table(self) -> list[dict[str, Any]]:
        """One dict a step: index, t, alpha, sigma, log_snr, network, guidance, evaluations, rows, forecast, forecast_guidance."""
        return [
            {
                "index": each.step.index,
                "t": each.step.t,
                "t_to": each.step.t_to,
                "alpha": each.step.from_level.alpha,
                "sigma": each.step.from_level.sigma,
                "log_snr": 2 * each.step.from_level.log_snr_half,
                "network": each.network,
                "guidance": each.guidance,
                "evaluations": each.evaluations,
                "rows": each.rows,
                "forecast": each.forecast,
                "forecast_guidance": each.forecast_guidance,
            }
            for each in self._steps
        ]

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> _core.PlannedStep: ...
    @overload
    def __getitem__(self, index: slice) -> list[_core.PlannedStep]: ...
    def __getitem__(self, index):
        return self._steps[index]

    def __iter__(self) -> Iterator[_core.PlannedStep]:
        return iter(self._steps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self._plan.fingerprint() == other._plan.fingerprint()

    def __hash__(self) -> int:
        return hash(self._plan.fingerprint())

    def __str__(self) -> str:
        return str(self._plan).rstrip("\n")

    def __repr__(self) -> str:
        takes = ", ".join(f"network {k} takes {calls}" for k, calls in enumerate(self.calls))
        return f"Plan({self.sampler}, {self.noise_schedule}, {self.spacing}, {len(self)} steps: {takes})"
