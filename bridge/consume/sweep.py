"""The sweep: find the ends of executions that no reply told of.

It asks Kestra once for all executions that have *not* ended, and then only for those that somebody
waits for and that are not among them. A page of that listing that shifts while it is read costs a
needless question and never hides an end, which listing the ended ones by date would.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

from bridge.consume import duplicates
from bridge.consume.completions import Completion, CompletionRouter
from bridge.errors import KestraDenied, KestraError
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics

CONCURRENT_LOOKS = 8
GONE_AFTER = 3
"""In so many sweeps in a row must an execution be unknown to be gone: a clustered Kestra may show a
new one late."""

log = structlog.get_logger(__name__)


class Reconciler:
    """Sweeps at an interval (seconds), for as long as `run` runs."""

    def __init__(
        self, *, kestra: Kestra, watch: CompletionRouter, metrics: Metrics, interval: float
    ) -> None:
        self._kestra = kestra
        self._watch = watch
        self._metrics = metrics
        self._interval = interval
        self._looking = asyncio.Semaphore(CONCURRENT_LOOKS)
        self._duplicates = duplicates.Duplicates(kestra=kestra, metrics=metrics)
        self._unknown: Counter[str] = Counter()

    async def run(self) -> None:
        """Sweep for ever. Kestra being away only means that this sweep tells nothing."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.sweep()
            except KestraDenied as error:
                log.error("sweep failed", error=str(error))
            except KestraError as error:
                log.warning("sweep failed", error=str(error))

    async def sweep(self) -> int:
        """Look once for what has ended; returns how many ends nobody had told of.

        The server's version is asked for too, so that an idle bridge knows whether Kestra is there,
        and speaks rightly to one that was upgraded meanwhile.
        """
        await self._kestra.probe()
        awaited = self._watch.awaited()
        if not awaited:
            return 0
        running = await self._kestra.unfinished()
        await self._duplicates.end(duplicates.among(running))
        unfinished = {execution.id for execution in running}
        self._unknown = Counter(
            {key: count for key, count in self._unknown.items() if key in awaited - unfinished}
        )
        found = await asyncio.gather(
            *(self._look(execution_id) for execution_id in awaited - unfinished)
        )
        return sum(found)

    async def _look(self, execution_id: str) -> bool:
        async with self._looking:
            execution = await self._kestra.get(execution_id)
        if execution is None:
            return self._miss(execution_id)
        del self._unknown[execution_id]
        if not execution.state.terminal:
            return False
        return self._tell(
            Completion(execution_id=execution_id, state=execution.state, ended=execution.ended)
        )

    def _miss(self, execution_id: str) -> bool:
        self._unknown[execution_id] += 1
        return self._unknown[execution_id] >= GONE_AFTER and self._tell(
            Completion(execution_id=execution_id, state=None)
        )

    def _tell(self, news: Completion) -> bool:
        told = self._watch.tell(news)
        if told:
            self._metrics.reconciled.inc()
        return told
