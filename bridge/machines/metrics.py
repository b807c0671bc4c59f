"""Metrics of the machines, as a file for node_exporter's textfile collector.

`machine reap` runs for seconds on a Kestra worker, where nothing can be scraped from it. A file
needs no further server and no network, and its age shows when the rounds stop. A push gateway would
be one more server, and would show the last round's values for ever.
"""

from __future__ import annotations

from collections import Counter as Count
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families

from bridge.machines.reaping import Judgement, Sweep

_REASONS = (Judgement.DEADLINE, Judgement.ENDED, Judgement.UNKNOWN)
_PREFIX = "bridge_machines_"
_REAPED = f"{_PREFIX}reaped"
_REFUSED = f"{_PREFIX}destroys_refused"
Key = tuple[str, str]


def write_metrics(sweep: Sweep, file: Path, *, now: float) -> None:
    """Write the metrics of that round to the file, all at once.

    Counters go on from what the file has. `now` is in seconds since 1970.

    Raises:
        OSError: the file can't be written.
    """
    write_to_textfile(str(file), registry_of(sweep, _counted(file), now=now))


def registry_of(sweep: Sweep, before: Count[Key], *, now: float) -> CollectorRegistry:
    """The metrics of that round. Counters go on from `before`, by name and reason."""
    registry = CollectorRegistry()
    _gauge_machines(registry, sweep, now)
    _count_destroyed(registry, sweep, before)
    at = Gauge(f"{_PREFIX}reap_timestamp_seconds", "Time of the last round.", registry=registry)
    at.set(now)
    return registry


def _gauge_machines(registry: CollectorRegistry, sweep: Sweep, now: float) -> None:
    destroyed = {row.machine.id for row in sweep.reaped if row.error is None}
    left = [machine for machine in sweep.seen if machine.id not in destroyed]
    machines = Gauge(
        "bridge_machines", "Machines after the last round.", ["state"], registry=registry
    )
    for state, number in {"running": 0, **Count(machine.state for machine in left)}.items():
        machines.labels(state).set(number)
    overdue = Gauge(
        f"{_PREFIX}overdue_seconds",
        "How far the oldest machine is beyond its deadline.",
        registry=registry,
    )
    overdue.set(max([0.0, *(now - machine.tags.deadline for machine in left)]))
    brake = Gauge(
        f"{_PREFIX}reap_refused",
        "Whether the last round found most machines unknown to Kestra, and left them.",
        registry=registry,
    )
    brake.set(int(sweep.refused))


def _count_destroyed(registry: CollectorRegistry, sweep: Sweep, before: Count[Key]) -> None:
    reaped = Counter(_REAPED, "Machines that rounds destroyed.", ["reason"], registry=registry)
    for reason in _REASONS:
        done = [row for row in sweep.reaped if row.verdict is reason and row.error is None]
        reaped.labels(reason.value).inc(before[_REAPED, reason.value] + len(done))
    refused = Counter(_REFUSED, "Machines that rounds could not destroy.", registry=registry)
    failed = [row for row in sweep.reaped if row.error is not None]
    refused.inc(before[_REFUSED, ""] + len(failed))


def _counted(file: Path) -> Count[Key]:
    """The counters that the file has, by name and reason. They begin anew if it can't be read."""
    counted: Count[Key] = Count()
    with suppress(OSError, ValueError):
        for family in text_string_to_metric_families(file.read_text()):
            if family.name not in (_REAPED, _REFUSED):
                continue
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    counted[family.name, sample.labels.get("reason", "")] = int(sample.value)
    return counted
