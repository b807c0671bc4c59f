"""A bridge as a child process, followed by its log and its metrics."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.processes import Child
from tests.benchmarks.measure import Asked, BenchmarkError
from tests.support.harness import metric, scrape

LOOK_EVERY = 0.05
REQUESTS = "bridge_kestra_request_seconds"


class Bridge:
    """A bridge that runs, or has run."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.began = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.began

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with those labels. Until the bridge says where its metrics
        are, it is 0.
        """
        return metric(self._metrics(), name, **labels)

    def requests(self) -> dict[str, tuple[float, float]]:
        """By operation, how many requests to Kestra it has made, and the seconds that they took."""
        return requests_in(self._metrics())

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of such an event."""
        with self.child.log.open() as lines:
            # The last line may be half written.
            whole = [line for line in lines if f'"{name}"' in line and line.endswith("\n")]
        return [line for line in map(json.loads, whole) if line["event"] == name]

    def settled(self) -> dict[str, datetime]:
        """By execution, when it acked the job."""
        return {
            line["execution"]: datetime.fromisoformat(line["timestamp"])
            for line in self.events("settled")
            if line["settlement"] == "ack"
        }

    def until_consuming(self, seconds: float) -> None:
        """Wait until it takes messages; otherwise as `until`."""
        self.until(lambda: bool(self.events("consuming")), "consuming", seconds)

    def until(self, so: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until something is so.

        Raises:
            BenchmarkError: the bridge ended, or it took longer than so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not so():
            if not self.child.alive:
                code = self.child.returncode
                raise BenchmarkError(f"the bridge ended with {code}{self.child.tail()}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not {what} within {seconds:g} s{self.child.tail()}")
            time.sleep(LOOK_EVERY)

    def _metrics(self) -> str:
        for line in self.events("starting"):
            return scrape(line["http"])
        return ""


def requests_in(metrics: str) -> dict[str, tuple[float, float]]:
    """By operation, the number of requests to Kestra in a bridge's metrics, and their seconds."""
    counts: defaultdict[str, float] = defaultdict(float)
    seconds: defaultdict[str, float] = defaultdict(float)
    totals = {f"{REQUESTS}_count": counts, f"{REQUESTS}_sum": seconds}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name][sample.labels["operation"]] += sample.value
    return {operation: (count, seconds[operation]) for operation, count in sorted(counts.items())}


def asked_for(requests: Mapping[str, tuple[float, float]], jobs: int) -> dict[str, Asked]:
    """The same for each of so many jobs."""
    return {
        operation: Asked(count / jobs, 1000 * seconds / jobs)
        for operation, (count, seconds) in requests.items()
    }


def settled_after(
    bridges: Iterable[Bridge], ends: Callable[[set[str]], Mapping[str, datetime]]
) -> list[float]:
    """For each job, the milliseconds from its execution's end, by Kestra's clock, to the line that
    says that it was settled.
    """
    settled: dict[str, datetime] = {}
    for bridge in bridges:
        for execution, at in bridge.settled().items():
            # An ack that was lost with its bridge comes a second time.
            settled[execution] = max(at, settled.get(execution, at))
    ended = ends(set(settled))
    return [1000 * (settled[key] - ended[key]).total_seconds() for key in settled]
