"""The sweep: find the ends of executions that no reply told of.

It asks Kestra once for all executions that have *not* ended, and then only for those that somebody waits for and that
are not among them. A page of that listing that shifts while it is read costs a needless question and never hides an
end, which listing the ended ones by date would.
"""

from __future__ import annotations

import asyncio

import structlog

from bridge.errors import KestraDenied, KestraError
from bridge.kestra import Kestra
from bridge.metrics import Metrics
from bridge.replies import News, Watch

CONCURRENT_LOOKS = 8

log = structlog.get_logger(__name__)


class Reconciler:
    """Sweeps at an interval (seconds), for as long as `run` runs."""

    def __init__(self, *, kestra: Kestra, watch: Watch, metrics: Metrics, interval: float) -> None:
        self._kestra = kestra
        self._watch = watch
        self._metrics = metrics
        self._interval = interval
        self._looking = asyncio.Semaphore(CONCURRENT_LOOKS)

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

        The server's version is asked for too, so that an idle bridge knows whether Kestra is there, and speaks rightly
        to one that was upgraded meanwhile.
        """
        await self._kestra.probe()
        awaited = self._watch.awaited()
        if not awaited:
            return 0
        unfinished = {execution.id for execution in await self._kestra.unfinished()}
        found = await asyncio.gather(*(self._look(execution_id) for execution_id in awaited - unfinished))
        return sum(found)

    async def _look(self, execution_id: str) -> bool:
        async with self._looking:
            execution = await self._kestra.get(execution_id)
        if execution is not None and not execution.state.terminal:
            return False
        state, ended = (execution.state, execution.ended) if execution else (None, None)
        told = self._watch.tell(News(execution_id=execution_id, state=state, ended=ended))
        if told:
            self._metrics.reconciled.inc()
        return told
