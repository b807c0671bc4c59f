"""Second executions of one attempt: there should be none, and where there is one it is ended.

Kestra knows no idempotency key, so a create that stayed invisible for too long can come true beside
the one that took its place, and two replicas that get two copies of one message at the same instant
both find nothing and both create. Every replica tells the one that counts from the others by the
same rule, so that no two of them disagree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import structlog

from bridge.errors import REFUSALS, KestraError
from bridge.job.execution import Execution, by_attempt, choose
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics

SOON = 1.0
"""Seconds from a create to the second look: longer than another replica's, of the same instant,
takes to be seen."""

log = structlog.get_logger(__name__)


def among(executions: Iterable[Execution]) -> list[Execution]:
    """Those of the executions, of any jobs, that are a second one of their attempt."""
    return [
        duplicate
        for same in by_attempt(executions).values()
        if len(same) > 1
        for duplicate in choose(same).duplicates
    ]


class Duplicates:
    """Ends second executions, and counts and logs each."""

    def __init__(self, *, kestra: Kestra, metrics: Metrics) -> None:
        self._kestra = kestra
        self._metrics = metrics

    async def end(self, duplicates: Iterable[Execution]) -> None:
        """Kill those that still run. Doing it twice does no harm.

        Raises KestraUnavailable where Kestra does not answer. A refusal is logged and left to the
        next sweep: no job waits for it.
        """
        for duplicate in duplicates:
            if not duplicate.state.terminal:
                await self._kill(duplicate)

    async def _kill(self, duplicate: Execution) -> None:
        facts: dict[str, Any] = {"execution": duplicate.id}
        if key := duplicate.attempt_key:
            facts |= {"job": key.job, "attempt": str(key.attempt)}
        try:
            await self._kestra.kill(duplicate.id)
        except REFUSALS as error:
            log.error(
                "a second execution of one attempt goes on, its kill is refused",
                **facts,
                error=str(error),
            )
            return
        self._metrics.duplicates.inc()
        log.error("a second execution of one attempt was killed", **facts)


class SecondLook:
    """Looks again, soon after creates, for what another replica created at the same instant.

    One listing by date serves all creates of a second, and costs no more than it tells. What it
    misses, because Kestra doesn't answer, shows an execution late or starts very many, is left to
    the sweep.
    """

    def __init__(self, *, kestra: Kestra, metrics: Metrics) -> None:
        self._kestra = kestra
        self._duplicates = Duplicates(kestra=kestra, metrics=metrics)
        self._created = asyncio.Event()
        self._since: datetime | None = None

    def note(self, execution: Execution) -> None:
        """This one was created now."""
        started = execution.started or self._kestra.now()
        self._since = min(started, self._since or started)
        self._created.set()

    async def run(self) -> None:
        """Look after each create, for ever."""
        while True:
            await self._created.wait()
            await asyncio.sleep(SOON)
            try:
                await self.look()
            except KestraError as error:
                log.info("no second look, the sweep will see", error=str(error))

    async def look(self) -> None:
        """End every second execution among those that started since the first create that was not
        looked after.

        Whoever created the earlier of two sees the later one, so that no time before that needs to
        be read.
        """
        since, self._since = self._since, None
        self._created.clear()
        if since is not None:
            # One page: where more start in a second, to read them all for each replica's look would
            # be a load.
            found, _ = await self._kestra.started_since(since)
            await self._duplicates.end(among(found))
