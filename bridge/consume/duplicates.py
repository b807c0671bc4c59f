"""Second executions of one attempt: there should be none, and where there is one it is killed.

Kestra has no idempotency key. So a create that stayed invisible for too long can come true after
another one took its place. And two replicas that get two copies of one message at the same instant
both find nothing and both create. Every replica tells the execution that counts from the others by
the same rule, so that no two of them disagree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import structlog

from bridge.consume.ports import KestraPort
from bridge.errors import REFUSALS, KestraError
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


class CreateCheck:
    """Looks, soon after creates, for what another replica created at the same instant.

    One listing by date serves all creates of a second, and costs no more than it returns. It misses
    what starts while Kestra does not answer, what Kestra shows late, and what is beyond the first
    page where very many start. The sweep finds those.

    `after` is how many seconds after a create it looks: longer than another replica's create, of
    the same instant, takes to be seen.
    """

    def __init__(self, *, kestra: KestraPort, metrics: Metrics, after: float = 1.0) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._after = after
        self._created = asyncio.Event()
        self._since: datetime | None = None

    def note_create(self, execution: Execution) -> None:
        """Have the next check cover this execution, which was created now."""
        started = execution.started or self._kestra.now()
        self._since = min(started, self._since or started)
        self._created.set()

    async def run(self) -> None:
        """Check after each create, for ever."""
        while True:
            await self._created.wait()
            await asyncio.sleep(self._after)
            try:
                await self.check()
            except KestraError as error:
                log.info("no second look, the sweep will see", error=str(error))

    async def check(self) -> None:
        """End every second execution among those that started since the first create not checked.

        Of two executions, the replica that created the earlier one sees the later one. So nothing
        that started before needs to be read.
        """
        since, self._since = self._since, None
        self._created.clear()
        if since is None:
            return
        # One page: where more start in a second, reading them all for each replica would be a load.
        found, _ = await self._kestra.started_since(since)
        await end_duplicates(self._kestra, self._metrics, duplicates_among(found))
