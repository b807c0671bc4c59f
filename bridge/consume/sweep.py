"""The sweep: find the ends of executions for which no reply came.

It asks Kestra once for all executions that have *not* ended, and then only for those that somebody
waits for and that are not among them. When a page of that listing shifts while it is read, this
costs a needless question. It never hides an end, which listing the ended ones by date would.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import structlog

from bridge.consume.completions import Completion, CompletionRouter
from bridge.consume.duplicates import duplicates_among, end_duplicates
from bridge.consume.ports import KestraPort
from bridge.errors import KestraDenied, KestraError
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """How often to sweep (seconds), with how many questions at once.

    `gone_after` is the number of consecutive sweeps that must miss an execution before it counts as
    deleted: a clustered Kestra may show a new one late.
    """

    interval: float = 30.0
    questions: int = 8
    gone_after: int = 3


class Reconciler:
    """Sweeps at an interval, for as long as `run` runs."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        completions: CompletionRouter,
        metrics: Metrics,
        policy: SweepPolicy = SweepPolicy(),
    ) -> None:
        self._kestra = kestra
        self._completions = completions
        self._metrics = metrics
        self._policy = policy
        self._asking = asyncio.Semaphore(policy.questions)
        self._missed: Counter[str] = Counter()

    async def run(self) -> None:
        """Sweep for ever. While Kestra is away, a sweep finds nothing."""
        while True:
            await asyncio.sleep(self._policy.interval)
            try:
                await self.sweep()
            except KestraDenied as error:
                log.error("sweep failed", error=str(error))
            except KestraError as error:
                log.warning("sweep failed", error=str(error))

    async def sweep(self) -> int:
        """Look once for what has ended; returns how many awaited ends it found.

        It asks for the server's version, too. So an idle bridge knows whether Kestra is there, and
        notices that Kestra was upgraded.

        Raises:
            KestraError: Kestra does not answer, or refuses.
        """
        await self._kestra.probe()
        awaited = self._completions.awaited()
        if not awaited:
            return 0
        running = await self._kestra.unfinished()
        await end_duplicates(self._kestra, self._metrics, duplicates_among(running))
        absent = awaited - {execution.id for execution in running}
        for execution_id in self._missed.keys() - absent:
            del self._missed[execution_id]
        found = await asyncio.gather(*map(self._look, absent))
        return sum(found)

    async def _look(self, execution_id: str) -> bool:
        """Bring the execution's end, if it has ended, to its waiters; returns whether it did."""
        async with self._asking:
            execution = await self._kestra.get(execution_id)
        if execution is None:
            self._missed[execution_id] += 1
            if self._missed[execution_id] < self._policy.gone_after:
                return False
            return self._route(Completion(execution_id=execution_id, state=None))
        del self._missed[execution_id]
        if not execution.state.terminal:
            return False
        return self._route(
            Completion(execution_id=execution_id, state=execution.state, ended=execution.ended)
        )

    def _route(self, completion: Completion) -> bool:
        awaited = self._completions.route(completion)
        if awaited:
            self._metrics.reconciled.inc()
        return awaited
