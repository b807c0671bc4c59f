"""How late ends are told when the reporter dies.

Two replicas take jobs of a second each from a stand-in for Kestra that tells of no end itself. In
the middle, the replica that is the reporter is killed. The other one gets its jobs, and has to
become the reporter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.benchmarks.bridges import Bridge, settled_after
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import FLOW, START_SECONDS, BenchmarkStage, standin

SECONDS = 20
JOBS_A_SECOND = 10
AIM = 5000.0
REPORTER = "bridge_reporter"


def measure(stage: BenchmarkStage, *, seconds: int) -> list[Figure]:
    """The longest time from an execution's end to the ack, with one reporter killed."""
    with standin(stage, tells=False) as (_, kestra):
        settings = {
            **kestra.settings,
            "BRIDGE_FLOW": f"{FLOW.split('/')[0]}/second",
            # One replica has room for all jobs: none waits for anything but the news of its end.
            "BRIDGE_PREFETCH": str(seconds * JOBS_A_SECOND),
        }
        bridges = [stage.bridge(**settings) for _ in range(2)]
        try:
            _course(stage, bridges, seconds)
            late = settled_after(bridges, kestra.ends)
        finally:
            for bridge in bridges:
                bridge.child.kill()
    stage.say(f"failover: the latest of {len(late)} ends was told after {max(late):.0f} ms")
    return [
        Figure(
            benchmark="failover",
            what="the reporter killed, from an execution's end to the ack, the latest",
            value=max(late),
            unit="ms",
            at_most=AIM,
        )
    ]


def _course(stage: BenchmarkStage, bridges: Sequence[Bridge], seconds: int) -> None:
    """Publish jobs at a steady pace, kill the reporter half-way, and wait until all are settled."""
    for bridge in bridges:
        bridge.until_consuming(START_SECONDS)
    bridges[0].until(lambda: any(map(_reports, bridges)), "a reporter elected", START_SECONDS)
    rest = list(bridges)
    for number in range(seconds):
        if number == seconds // 2:
            rest.remove(_kill_reporter(bridges))
        stage.fill(JOBS_A_SECOND)
        time.sleep(1)
    jobs = seconds * JOBS_A_SECOND
    rest[0].until(lambda: _settled(bridges) >= jobs, f"all {jobs} settled", START_SECONDS)


def _kill_reporter(bridges: Sequence[Bridge]) -> Bridge:
    """Kill the replica that reports, and return it.

    Raises:
        BenchmarkError: none does.
    """
    for bridge in bridges:
        if _reports(bridge):
            bridge.child.kill()
            return bridge
    raise BenchmarkError("no replica is the reporter")


def _reports(bridge: Bridge) -> bool:
    return bridge.metric(REPORTER) > 0


def _settled(bridges: Sequence[Bridge]) -> int:
    executions: set[str] = set()
    for bridge in bridges:
        executions |= set(bridge.settled())
    return len(executions)
