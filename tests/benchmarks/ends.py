"""How soon a job is settled once its execution has ended: by a reply that is there at once, by the
reporter alone, and on Kestra's engine with the notifier beside it.

Few jobs are in flight at once, so that nothing waits for its turn: a time that grows with the load
says nothing of the way that the news of an end takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from bridge.operate.flows import NOTIFIER, shipped
from tests.benchmarks import engine
from tests.benchmarks.bridges import Bridge, settled_after
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import Figure
from tests.benchmarks.stage import BenchmarkStage, standin

PREFETCH = 2
REPLY_AIM = 5.0
END_AIM = 1000.0


def measure(stage: BenchmarkStage, *, jobs: int) -> list[Figure]:
    """Milliseconds from an execution's end, by Kestra's clock, to the line that says that it was
    settled.
    """
    with standin(stage) as (_, kestra):
        by_reply = _settled_after(stage, kestra, jobs)
    with engine.own_server(stage) as server:
        kestra = server.kestra
        _settled_after(stage, kestra, jobs)  # warms up
        by_reporter = _settled_after(stage, kestra, jobs)
        (notifier,) = [each for each in shipped(kestra.version()) if each.name == NOTIFIER]
        kestra.save(str(NOTIFIER), notifier.source)
        by_notifier = _settled_after(stage, kestra, jobs)
    on_engine = "on the engine, from an execution's end to the ack"
    return [
        *_figures("from a reply to the ack", by_reply, p50=REPLY_AIM),
        *_figures(f"{on_engine}, by the reporter", by_reporter, p99=END_AIM),
        *_figures(f"{on_engine}, by the notifier", by_notifier, p99=END_AIM),
    ]


def _figures(
    what: str, times: Sequence[float], *, p50: float | None = None, p99: float | None = None
) -> Iterable[Figure]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    for name, value, aim in (("p50", cuts[49], p50), ("p99", cuts[98], p99)):
        yield Figure(benchmark="ends", what=f"{what}, {name}", value=value, unit="ms", at_most=aim)


def _settled_after(stage: BenchmarkStage, kestra: Kestra, jobs: int) -> list[float]:
    stage.fill(jobs)
    settings = {**kestra.settings, "BRIDGE_PREFETCH": str(PREFETCH)}
    with stage.consumer("bridge", jobs, settings) as consumer:
        consumer.timeline()
        return settled_after([Bridge(consumer.child)], kestra.ends)
