"""How soon a job is settled once its execution has ended: by the stand-in's own reply, and by the
engine's notifier.

Few jobs are in flight at once, so that nothing waits for its turn: a time that grows with the load
says nothing of the way that a reply takes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime

import httpx

from deploy.local.processes import Child
from tests.benchmarks import engine
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import BenchmarkStage, Kestra, standin

PREFETCH = 2
REPLY_AIM = 5.0
END_AIM = 1000.0
PAGE = 500


def measure(stage: BenchmarkStage, *, jobs: int) -> list[Figure]:
    """Milliseconds from an execution's end, by Kestra's word, to the line that says that it was
    settled."""
    with standin(stage) as (_, kestra):
        by_reply = _settled_after(stage, kestra, jobs)
    with engine.running_engine(stage) as (_, kestra):
        _settled_after(stage, kestra, jobs)  # warms up
        by_notifier = _settled_after(stage, kestra, jobs)
    reply, notifier = "from a reply to the ack", "on the engine, from an execution's end to the ack"
    return [
        *_figures(reply, by_reply, p50=REPLY_AIM),
        *_figures(notifier, by_notifier, p99=END_AIM),
    ]


def _figures(
    what: str, times: Sequence[float], *, p50: float | None = None, p99: float | None = None
) -> Iterable[Figure]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    for name, value, aim in (("p50", cuts[49], p50), ("p99", cuts[98], p99)):
        yield Figure(
            benchmark="replies", what=f"{what}, {name}", value=value, unit="ms", at_most=aim
        )


def _settled_after(stage: BenchmarkStage, kestra: Kestra, jobs: int) -> list[float]:
    stage.fill(jobs)
    settings = {**kestra.settings, "BRIDGE_PREFETCH": str(PREFETCH)}
    with stage.consumer("bridge", jobs, settings) as consumer:
        consumer.timeline()
        settled = _settled(consumer.child)
    ends = _ends(kestra, set(settled))
    return [1000 * (settled[key] - ends[key]).total_seconds() for key in settled]


def _settled(child: Child) -> dict[str, datetime]:
    """When the bridge settled which execution's job."""
    lines = [line for line in map(json.loads, child.log.open()) if line["event"] == "settled"]
    return {line["execution"]: datetime.fromisoformat(line["timestamp"]) for line in lines}


def _ends(kestra: Kestra, wanted: set[str]) -> dict[str, datetime]:
    """When these executions, the latest there are, ended by Kestra's word."""
    ends: dict[str, datetime] = {}
    with httpx.Client(**kestra.client) as http:
        for page in range(1, 2 + 2 * len(wanted) // PAGE):
            params = {"sort": "state.startDate:desc", "size": str(PAGE), "page": str(page)}
            answer = http.get("/executions/search", params=params)
            answer.raise_for_status()
            for row in answer.json()["results"]:
                if row["id"] in wanted:
                    ends[row["id"]] = datetime.fromisoformat(row["state"]["endDate"])
    if missing := wanted - set(ends):
        raise BenchmarkError(
            f"Kestra shows no end of {len(missing)} executions, such as {min(missing)}"
        )
    return ends
