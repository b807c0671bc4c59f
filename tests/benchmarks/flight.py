"""Very many jobs in flight in one process: what holding them costs, and how soon a new process has
adopted them all.

The executions, of a stand-in for Kestra, never end. So there's nothing to do but to hold the
deliveries and to sweep.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from deploy.local.processes import Child
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import (
    FLOW,
    QUEUE,
    SLOWEST_RATE,
    START_SECONDS,
    BenchmarkStage,
    Kestra,
    standin,
)
from tests.support.harness import metric, scrape

SWEEP_EVERY = 30
"""Seconds; the bridge's own default."""

SWEEPS = 2
LOOK_EVERY = 0.05
MEMORY_AIM = 200.0
IDLE_AIM = 3.0
AIMS = {1_000: 10.0, 10_000: 60.0}
"""Seconds within which so many are to be adopted after a start."""


def measure(stage: BenchmarkStage, *, jobs: int, sweeps: int) -> list[Figure]:
    """Hold so many, kill the process, and have another one adopt them."""
    with standin(stage) as (_, kestra):
        bench = _Bench(stage, kestra, jobs, kestra.count())
        with bench.bridge() as (child, began):
            bench.until_consuming(child)
            starting = time.monotonic() - began
        stage.fill(jobs)
        with bench.bridge() as (child, began):
            bench.until(child, "created")
            stage.say(f"flight: {jobs} in flight {time.monotonic() - began:.1f} s after the start")
            figures = bench.hold(child, sweeps)
            child.kill()
        with bench.bridge() as (child, began):
            bench.until(child, "adopted")
            adopting = time.monotonic() - began
        stage.say(f"flight: {jobs} adopted {adopting:.1f} s after the start")
        if (executions := kestra.count() - bench.before) != jobs:
            raise BenchmarkError(f"bridge: {executions} executions for {jobs} jobs")
        stage.drop()
    start = Figure(
        benchmark="flight",
        what="from the start until it consumes, no jobs",
        value=starting,
        unit="s",
    )
    what = f"{jobs} in flight, from the start after a kill -9 until all are adopted"
    return [
        start,
        *figures,
        Figure(benchmark="flight", what=what, value=adopting, unit="s", at_most=AIMS.get(jobs)),
    ]


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: BenchmarkStage
    kestra: Kestra
    jobs: int
    before: int

    @contextmanager
    def bridge(self) -> Iterator[tuple[Child, float]]:
        """A bridge that takes all jobs at once, and when it was started."""
        settings = {
            "BRIDGE_QUEUE": QUEUE,
            "BRIDGE_FLOW": f"{FLOW.split('/')[0]}/hold",
            "BRIDGE_PREFETCH": str(self.jobs),
            "BRIDGE_RECONCILE_INTERVAL": str(SWEEP_EVERY),
            "BRIDGE_HTTP_PORT": "0",
            "BRIDGE_LOG_FORMAT": "json",
            **self.kestra.settings,
        }
        began = time.monotonic()
        child = self.stage.child("bridge", ["bridge", "run"], settings)
        try:
            yield child, began
        finally:
            child.kill()

    def until(self, child: Child, how: str) -> None:
        """Wait until every job has its execution."""
        seconds = START_SECONDS + self.jobs / SLOWEST_RATE
        self._until(
            lambda: _metric(child, "bridge_executions_total", how=how) >= self.jobs,
            f"all {how}",
            child,
            seconds,
        )

    def until_consuming(self, child: Child) -> None:
        """Wait until it takes messages."""
        self._until(
            lambda: '"consuming"' in child.log.read_text(), "consuming", child, START_SECONDS
        )

    def _until(self, so: Callable[[], bool], what: str, child: Child, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not so():
            if not child.alive:
                raise BenchmarkError(f"the bridge ended with {child.returncode}{child.tail()}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not {what} within {seconds:g} s{child.tail()}")
            time.sleep(LOOK_EVERY)

    def hold(self, child: Child, sweeps: int) -> list[Figure]:
        """What holding them costs, over so many sweeps."""
        process = psutil.Process(child.pid)
        requests, used, began = self._requests(child), _cpu(process), time.monotonic()
        time.sleep(max(1, sweeps * SWEEP_EVERY))
        seconds = time.monotonic() - began
        idle = 100 * (_cpu(process) - used) / seconds
        per_sweep = (self._requests(child) - requests) * SWEEP_EVERY / seconds
        memory = process.memory_info().rss / 2**20
        many = self.jobs == max(AIMS)
        held = f"{self.jobs} in flight"
        return [
            Figure(
                benchmark="flight",
                what=f"{held}, memory",
                value=memory,
                unit="MB",
                at_most=MEMORY_AIM if many else None,
            ),
            Figure(
                benchmark="flight",
                what=f"{held}, idle CPU",
                value=idle,
                unit="% of a core",
                at_most=IDLE_AIM if many else None,
            ),
            Figure(
                benchmark="flight",
                what=f"{held}, requests to Kestra",
                value=per_sweep,
                unit="per sweep",
            ),
        ]

    def _requests(self, child: Child) -> float:
        return _metric(child, "bridge_kestra_request_seconds_count")


def _metric(child: Child, name: str, **labels: str) -> float:
    """0 as long as the bridge doesn't say where its metrics are."""
    with child.log.open() as lines:
        for line in lines:
            if '"starting"' in line and line.endswith("\n"):
                return metric(scrape(json.loads(line)["http"]), name, **labels)
    return 0


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
