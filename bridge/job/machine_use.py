"""How long a job used machines, by their size, and what that cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.job.message import MACHINE_COST, MACHINE_SECONDS

_LONGEST_SIZE = 100
_MOST_SIZES = 20
"""More are nobody's machines, and would need too much room among the headers."""
_MOST_SECONDS = 315_360_000.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class MachineUse:
    """Seconds of machines by size. `cost` is None where it isn't known."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None

    def plus(self, seconds: Mapping[str, float], *, prices: Mapping[str, float]) -> MachineUse:
        """This use and that of one more attempt, at these prices of an hour by size."""
        rounded = {}
        for size in sorted(self.seconds.keys() | seconds.keys()):
            total = self.seconds.get(size, 0.0) + seconds.get(size, 0.0)
            rounded[size] = round(total, 3)
        if not rounded or rounded.keys() - prices.keys():
            return MachineUse(rounded)
        cost = sum(value / _HOUR * prices[size] for size, value in rounded.items())
        return MachineUse(rounded, round(cost, 6))

    @property
    def headers(self) -> dict[str, Any]:
        """The headers by which a message keeps it; none where no machine was used."""
        if not self.seconds:
            return {}
        headers = {MACHINE_SECONDS: json.dumps(self.seconds)}
        if self.cost is not None:
            headers[MACHINE_COST] = f"{self.cost:f}".rstrip("0").rstrip(".")
        return headers

    @property
    def words(self) -> str:
        """It for people, on one line."""
        times = [f"{value:g} s of {size}" for size, value in sorted(self.seconds.items())]
        if self.cost is not None:
            times.append(f"cost {self.cost:g}")
        return ", ".join(times)

    @property
    def data(self) -> dict[str, Any]:
        """It for programs; empty where no machine was used."""
        if not self.seconds:
            return {}
        return {"machine_seconds": dict(self.seconds), "machine_cost": self.cost}


def use_in_headers(headers: Mapping[str, Any]) -> MachineUse:
    """What a message's headers say of the attempts so far. Anybody can write them: it may be none
    of it.
    """
    try:
        seconds = json.loads(headers[MACHINE_SECONDS])
        cost = float(headers.get(MACHINE_COST, "nan"))
    except (KeyError, TypeError, ValueError, RecursionError):
        return MachineUse()
    if not isinstance(seconds, dict) or len(seconds) > _MOST_SIZES:
        return MachineUse()
    return MachineUse(dict(_sensible(seconds.items())), cost if math.isfinite(cost) else None)


def seconds_in_outputs(outputs: Mapping[str, Any]) -> dict[str, float]:
    """The seconds by size that a flow's outputs tell: those of `vm-job`, or of each job of
    `vm-batch`.
    """
    jobs = outputs.get("jobs")
    tellers = [outputs, *(jobs if isinstance(jobs, list) else ())]
    machines = [one.get("machine") for one in tellers if isinstance(one, dict)]
    told = [(one.get("size"), one.get("seconds")) for one in machines if isinstance(one, dict)]
    total: dict[str, float] = {}
    for size, seconds in _sensible(told):
        if size in total or len(total) < _MOST_SIZES:
            total[size] = total.get(size, 0.0) + seconds
    return total


def _sensible(pairs: Any) -> Iterator[tuple[str, float]]:
    """The pairs of a size and of a number of seconds that there can be."""
    for size, seconds in pairs:
        if not isinstance(size, str) or not isinstance(seconds, (int, float)):
            continue
        if 0 < len(size) <= _LONGEST_SIZE and 0 < seconds <= _MOST_SECONDS:
            yield size, float(seconds)
