"""Second executions of one attempt: there should be none, and where there is one it is killed.

Kestra has no idempotency key. So a create that stayed invisible for too long can come true after
another one took its place. And two replicas that have no ledger, and get two copies of one message
at the same instant, both find nothing and both create. Every replica tells the execution that
counts from the others by the same rule, so that no two of them disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from bridge.consume.ports import KestraPort
from bridge.errors import REFUSALS
from bridge.job.execution import Execution, by_attempt, choose
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def duplicates_among(executions: Iterable[Execution]) -> list[Execution]:
    """Those of the executions, of any jobs, that are a second one of their attempt."""
    found: list[Execution] = []
    for of_one_attempt in by_attempt(executions).values():
        found += choose(of_one_attempt).duplicates
    return found


async def end_duplicates(
    kestra: KestraPort, metrics: Metrics, duplicates: Iterable[Execution]
) -> None:
    """Kill those that still run; count and log each. Doing it twice does no harm.

    A refusal is logged and left to the next sweep: no job waits for it.

    Raises:
        KestraUnavailable: Kestra does not answer.
    """
    for duplicate in duplicates:
        if duplicate.state.terminal:
            continue
        facts = _facts(duplicate)
        try:
            await kestra.kill(duplicate.id)
        except REFUSALS as error:
            log.error(
                "a second execution of one attempt goes on, its kill is refused",
                **facts,
                error=str(error),
            )
        else:
            metrics.duplicates.inc()
            log.error("a second execution of one attempt was killed", **facts)


def _facts(duplicate: Execution) -> dict[str, Any]:
    key = duplicate.attempt_key
    if key is None:
        return {"execution": duplicate.id}
    return {"execution": duplicate.id, "job": key.job, "attempt": str(key.attempt)}
