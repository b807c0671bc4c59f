"""Look for the execution that an attempt has already, whoever created it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from bridge.consume.duplicates import end_duplicates
from bridge.consume.ports import KestraPort
from bridge.consume.unfinished_index import UnfinishedIndex
from bridge.job.execution import Execution, choose
from bridge.job.job import Job
from bridge.retrying import Retrying
from bridge.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupPolicy:
    """How executions are looked for. Times in seconds.

    `window` is how far back the execution of a fresh message is looked for. `every` is the pause
    between two looks for one job. From `many` jobs on that look at once, one listing of all
    unfinished executions is cheaper than a search for each.
    """

    window: float = 604_800.0
    every: float = 1.0
    many: int = 16


class Lookup:
    """Finds the execution that counts for an attempt, and kills any second one it sees."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        metrics: Metrics,
        retrying: Retrying,
        policy: LookupPolicy = LookupPolicy(),
    ) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._retrying = retrying
        self._policy = policy
        self._window = timedelta(seconds=policy.window)
        self._unfinished = UnfinishedIndex(lambda: retrying.ask(kestra.unfinished))
        self._looking = 0

    async def current(
        self, job: Job, *, retrying: Retrying | None = None, since: datetime | None = None
    ) -> Execution | None:
        """The attempt's execution by one search; None where there is none that started since then.

        Raises:
            Released: the bridge is stopping.
            KestraError: what `retrying` does not wait out.
        """
        retrying = retrying or self._retrying
        found = await retrying.ask(partial(self._kestra.find, job, since=since))
        return await self._choose(found, retrying)

    async def until(self, job: Job, moment: float, *, fresh: bool = False) -> Execution | None:
        """The attempt's execution, looked for once or, before that moment (monotonic), repeatedly.

        That of a `fresh` message, which is one of an earlier message of the same job, counts only
        if it started within the window.

        One listing serves many jobs, but only a search finds an execution that has ended. What is
        awaited after the first look is a create that comes true late. To end before a listing shows
        it, it has to be quick, and then the last look finds it, which is a search.
        """
        since = self._kestra.now() - self._window if fresh else None
        self._looking += 1
        try:
            search = True
            while True:
                found = await self._look(job, since, search=search, again=moment > time.monotonic())
                if found is not None:
                    return found
                left = moment - time.monotonic()
                if left <= 0 and search:
                    return None
                await self._retrying.pause(min(self._policy.every, max(0.05, left)))
                search = moment - time.monotonic() <= 0
        finally:
            self._looking -= 1

    async def _look(
        self, job: Job, since: datetime | None, *, search: bool, again: bool
    ) -> Execution | None:
        many = self._looking >= self._policy.many
        if many and again:
            listed = await self._unfinished.get(job)
            found = await self._choose(listed, self._retrying)
            if found is not None:
                return found
        if many and not search:
            return None
        return await self.current(job, since=since)

    async def _choose(
        self, executions: Iterable[Execution], retrying: Retrying
    ) -> Execution | None:
        found = choose(executions)
        await retrying.ask(partial(end_duplicates, self._kestra, self._metrics, found.duplicates))
        return found.current
