"""Second executions of one attempt: there should be none, and where there is one it is ended.

Kestra knows no idempotency key, so a create that stayed invisible for too long can come true beside the one that took
its place. Every replica tells the one that counts from the others by the same rule, so that no two of them disagree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import structlog

from bridge.execution import Execution, choose
from bridge.job import ATTEMPT_LABEL, JOB_LABEL, QUEUE_LABEL
from bridge.kestra import Kestra
from bridge.metrics import Metrics

log = structlog.get_logger(__name__)


def among(executions: Iterable[Execution]) -> list[Execution]:
    """Those of the executions, of any jobs, that are a second one of their attempt."""
    attempts: defaultdict[tuple[str, ...], list[Execution]] = defaultdict(list)
    for execution in executions:
        labels = execution.labels
        if JOB_LABEL in labels and not execution.triggered:
            where = labels.get(QUEUE_LABEL) or f"{execution.namespace}/{execution.flow}"
            attempts[where, labels[JOB_LABEL], labels.get(ATTEMPT_LABEL, "")].append(execution)
    return [duplicate for same in attempts.values() if len(same) > 1 for duplicate in choose(same).duplicates]


class Duplicates:
    """Ends second executions, and counts and logs each."""

    def __init__(self, *, kestra: Kestra, metrics: Metrics) -> None:
        self._kestra = kestra
        self._metrics = metrics

    async def end(self, duplicates: Iterable[Execution]) -> None:
        """Kill those that still run. Doing it twice does no harm; raises as `Kestra.kill` does."""
        for duplicate in duplicates:
            if not duplicate.state.terminal:
                await self._kestra.kill(duplicate.id)
                self._metrics.duplicates.inc()
                log.error(
                    "a second execution of one attempt was killed",
                    job=duplicate.labels.get(JOB_LABEL),
                    attempt=duplicate.labels.get(ATTEMPT_LABEL),
                    execution=duplicate.id,
                )
