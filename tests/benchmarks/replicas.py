"""What is asked of Kestra by one replica and by several, with the same jobs in flight in all.

The executions, of a stand-in for Kestra, never end, so that all requests are those at intervals:
the questions for what has ended. Probes are left out, since each replica needs its own.
"""

from __future__ import annotations

import math
import time

from tests.benchmarks.bridges import Bridge
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import FLOW, SLOWEST_RATE, START_SECONDS, BenchmarkStage, standin

JOBS = 2_000
REPLICAS = (1, 2, 4, 8)
SECONDS = 60.0
"""Two reconcile intervals."""

GROWTH_AIM = 1.2
LEFT_OUT = "probe"


def measure(stage: BenchmarkStage, *, jobs: int, seconds: float) -> list[Figure]:
    """Requests a second by the number of replicas, and how much the most replicas ask more than
    one.
    """
    rates: dict[int, float] = {}
    for count in REPLICAS:
        rates[count] = _rate(stage, count, jobs, seconds)
        stage.say(f"replicas: {jobs} in flight in {count}: {rates[count]:.2f} requests/s")
    found = [
        Figure(
            benchmark="replicas",
            what=f"{jobs} in flight in {count}, requests to Kestra",
            value=rate,
            unit="a second",
        )
        for count, rate in rates.items()
    ]
    most = max(REPLICAS)
    growth = Figure(
        benchmark="replicas",
        what=f"requests of {most} replicas in proportion to those of one",
        value=rates[most] / rates[1],
        unit="times",
        at_most=GROWTH_AIM,
    )
    return [*found, growth]


def _rate(stage: BenchmarkStage, count: int, jobs: int, seconds: float) -> float:
    """The requests a second of so many replicas that hold so many jobs."""
    stage.fill(jobs)
    with standin(stage, tells=False) as (_, kestra):
        settings = {
            **kestra.settings,
            "BRIDGE_FLOW": f"{FLOW.split('/')[0]}/hold",
            "BRIDGE_PREFETCH": str(math.ceil(jobs / count)),
        }
        bridges = [stage.bridge(**settings) for _ in range(count)]
        try:
            _until_held(bridges, jobs)
            before, began = _asked(bridges), time.monotonic()
            time.sleep(seconds)
            return (_asked(bridges) - before) / (time.monotonic() - began)
        finally:
            for bridge in bridges:
                bridge.child.kill()
            stage.drop()


def _until_held(bridges: list[Bridge], jobs: int) -> None:
    """Wait until the bridges hold so many jobs in all.

    Raises:
        BenchmarkError: one ended, or it took too long.
    """

    def held() -> bool:
        if not all(bridge.child.alive for bridge in bridges):
            raise BenchmarkError("one of the bridges ended")
        return sum(bridge.metric("bridge_executions_total") for bridge in bridges) >= jobs

    bridges[0].until(held, f"{jobs} in flight", START_SECONDS + jobs / SLOWEST_RATE)


def _asked(bridges: list[Bridge]) -> float:
    return sum(
        count
        for bridge in bridges
        for operation, (count, _) in bridge.requests().items()
        if operation != LEFT_OUT
    )
