"""Very many jobs in flight in one process: what holding them costs, and how soon a new process has
adopted them all.

The executions, of a stand-in for Kestra, never end. So the process has only to hold the deliveries
and to ask what has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from tests.benchmarks.bridges import Bridge
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import FLOW, SLOWEST_RATE, START_SECONDS, BenchmarkStage, standin

SWEEP_EVERY = 30
"""Seconds; the bridge's own default."""

SWEEPS = 2
MEMORY_AIM = 200.0
IDLE_AIM = 3.0
AIMS = {1_000: 10.0, 10_000: 60.0}
"""Seconds within which so many are to be adopted after a start."""


def measure(stage: BenchmarkStage, *, jobs: int, sweeps: int) -> list[Figure]:
    """Hold so many, kill the process, and have another one adopt them.

    Raises:
        BenchmarkError: a job had no execution, or more than one.
    """
    with standin(stage) as (_, kestra):
        bench = _Bench(stage, kestra, jobs)
        with bench.bridge() as bridge:
            bridge.until_consuming(START_SECONDS)
            starting = bridge.age
        stage.fill(jobs)
        with bench.bridge() as bridge:
            bench.until_held(bridge, "created")
            stage.say(f"flight: {jobs} in flight {bridge.age:.1f} s after the start")
            figures = bench.hold(bridge, sweeps)
        with bench.bridge() as bridge:
            bench.until_held(bridge, "adopted")
            adopting = bridge.age
        stage.say(f"flight: {jobs} adopted {adopting:.1f} s after the start")
        if (executions := kestra.count()) != jobs:
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

    @contextmanager
    def bridge(self) -> Iterator[Bridge]:
        """A bridge that takes all jobs at once. It is killed at the end of the block."""
        settings = {
            "BRIDGE_FLOW": f"{FLOW.split('/')[0]}/hold",
            "BRIDGE_PREFETCH": str(self.jobs),
            "BRIDGE_RECONCILE_INTERVAL": str(SWEEP_EVERY),
            **self.kestra.settings,
        }
        bridge = self.stage.bridge(**settings)
        try:
            yield bridge
        finally:
            bridge.child.kill()

    def until_held(self, bridge: Bridge, how: str) -> None:
        """Wait until every job has its execution, created or adopted."""
        bridge.until(
            lambda: bridge.metric("bridge_executions_total", how=how) >= self.jobs,
            f"all {how}",
            START_SECONDS + self.jobs / SLOWEST_RATE,
        )

    def hold(self, bridge: Bridge, sweeps: int) -> list[Figure]:
        """What holding them costs, over so many sweeps."""
        process = psutil.Process(bridge.child.pid)
        requests, used, began = _asked(bridge), _cpu(process), time.monotonic()
        time.sleep(max(1, sweeps * SWEEP_EVERY))
        seconds = time.monotonic() - began
        idle = 100 * (_cpu(process) - used) / seconds
        rate = (_asked(bridge) - requests) / seconds
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
                value=rate,
                unit="a second",
            ),
        ]


def _asked(bridge: Bridge) -> float:
    return sum(count for count, _ in bridge.requests().values())


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
