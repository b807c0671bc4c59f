"""Reconciliation: find the ends of executions that no reply told.

The reporter lists for all replicas which executions have *not* ended. A replica asks Kestra only
for those that somebody waits for here and that are not in that list. When a page of the listing
shifts while it is read, this costs a needless question. It never hides an end, which listing the
ended ones by date would.

A replica that hears no list makes its own, which is a sweep.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from bridge.aio import together
from bridge.consume.completions import CompletionRouter
from bridge.consume.duplicates import duplicates_among, end_duplicates
from bridge.consume.hearing import Hearing
from bridge.consume.ports import KestraPort
from bridge.consume.reports import Completion
from bridge.errors import KestraDenied, KestraError
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """How often to sweep (seconds), with how many questions at once.

    With `reporting`, this replica expects a reporter. A list says nothing about an execution that
    was awaited for less than `shown_within` seconds. Kestra is asked for what a list lacks
    `told_within` seconds later, as most of it has just ended and is about to be told.

    `gone_after` is the number of consecutive sweeps that must miss an execution before it counts as
    deleted: a clustered Kestra may show a new one late.
    """

    interval: float = 30.0
    reporting: bool = False
    shown_within: float = 2.0
    told_within: float = 2.0
    questions: int = 8
    gone_after: int = 3


def must_sweep(policy: SweepPolicy, *, unlisted_for: float) -> bool:
    """Whether a replica must look for itself: it has heard no list for two intervals.

    One that expects no reporter, and hears none, sweeps at each interval.
    """
    intervals = 2 if policy.reporting else 1
    return unlisted_for >= intervals * policy.interval


class Reconciler:
    """Looks for ends that were not told, for as long as `run` runs."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        completions: CompletionRouter,
        hearing: Hearing,
        metrics: Metrics,
        policy: SweepPolicy = SweepPolicy(),
    ) -> None:
        self._kestra = kestra
        self._completions = completions
        self._hearing = hearing
        self._metrics = metrics
        self._policy = policy
        self._asking = asyncio.Semaphore(policy.questions)
        self._missed: Counter[str] = Counter()

    async def run(self) -> None:
        """Look for ever. While Kestra is away, nothing is found."""
        await together(self._at_intervals(), self._after_lists())

    async def sweep(self) -> int:
        """Look once for what has ended; returns how many awaited ends it found.

        Raises:
            KestraError: Kestra does not answer, or refuses.
        """
        awaited = self._completions.awaited()
        if not awaited:
            return 0
        running = await self._kestra.unfinished()
        await end_duplicates(self._kestra, self._metrics, duplicates_among(running))
        return await self.look_for(awaited - {execution.id for execution in running})

    async def look_for(self, absent: Collection[str]) -> int:
        """Ask for executions that were not among the unfinished; returns how many awaited ends it
        found.

        Raises:
            KestraError: Kestra does not answer, or refuses.
        """
        for execution_id in self._missed.keys() - absent:
            del self._missed[execution_id]
        found = await asyncio.gather(*map(self._look, absent))
        return sum(found)

    async def _at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self._policy.interval)
            try:
                # So an idle bridge knows whether Kestra is there, and notices an upgrade of it.
                await self._kestra.probe()
                if must_sweep(self._policy, unlisted_for=self._hearing.unlisted_for):
                    await self.sweep()
            except KestraError as error:
                _log_failure(error)

    async def _after_lists(self) -> None:
        while True:
            missing = await self._hearing.missing()
            await asyncio.sleep(self._policy.told_within)
            try:
                await self.look_for(missing & self._completions.awaited())
            except KestraError as error:
                _log_failure(error)

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


def _log_failure(error: KestraError) -> None:
    if isinstance(error, KestraDenied):
        log.error("sweep failed", error=str(error))
    else:
        log.warning("sweep failed", error=str(error))
