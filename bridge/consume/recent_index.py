"""Whose executions started lately, known from a few listings, so that a fresh message costs no
search of its own.

A search by label makes a Kestra on H2 or MySQL read every execution of the time asked for, 20 µs
each on H2 (2.0, tried): the longer the history, the more each message costs. Once searches are seen
to be slow, the window is listed once, by date, which every database of Kestra's has an index for,
and from then on what is new, for all who look at the same time.

What is kept here only ever says that there is nothing to be found. Where it can't say so, the
search decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog

from bridge.aio import SingleFlight
from bridge.errors import KestraError
from bridge.job.execution import Execution
from bridge.job.job import Job
from bridge.kestra import Kestra

SLOW_SEARCH = 0.03
SLOW_IN_A_ROW = 3
"""So many searches, one after the other, that took so many seconds more than one by an index (the
probe's) are no chance, and it is not the way to Kestra either."""

HOLDS = 600.0
"""Seconds for which that is believed, or that there are too many executions to list. A Kestra that
was only slow for a moment costs each fresh message a wait for a listing no longer than that."""

MOST = 50_000
"""A window with more executions than that isn't listed: it would take longer than the searches it
spares."""

EVERY = 0.1
"""Seconds from one listing to the next. Each reads the last ones again, so that more of them would
cost more than they spare; who looks for an execution waits half of that, which is little beside
what the execution takes."""

OVERLAP = timedelta(seconds=1)
DEEP_EVERY = 10.0
DEEP_OVERLAP = timedelta(seconds=30)
"""An execution can be seen later than one that started after it, by as long as its create call
takes; so every listing reads back a little, and every few seconds one reads back further."""

log = structlog.get_logger(__name__)


class Recent:
    """The (job, attempt)s whose executions started within the window, once searches are slow."""

    def __init__(self, kestra: Kestra, *, window: timedelta) -> None:
        self._kestra = kestra
        self._window = window
        self._slow = 0
        self._slow_until = self._too_many_until = self._counted = -HOLDS
        self._listed = SingleFlight(self._list)
        self.searching = asyncio.Semaphore(1)
        """Whose turn it is to search: one at a time until a search was quick, as a slow one costs
        Kestra much, and then as many as it is asked at once anyway."""
        self._all_at_once = False
        self._forget()

    @property
    def wanted(self) -> bool:
        """Whether searches are slow, and the window isn't too long to be listed."""
        return self._too_many_until < time.monotonic() < self._slow_until

    def note_search(self, seconds: float, *, usual: float) -> None:
        """How long a search took that has just been answered, and how long an indexed one takes.

        Those that waited at the same time count as one.
        """
        now = time.monotonic()
        if seconds - usual <= SLOW_SEARCH:
            self._slow = 0
            self._let_all_search()
        elif now - seconds >= self._counted:
            self._slow, self._counted = self._slow + 1, now
        if self._slow >= SLOW_IN_A_ROW:
            self._slow, self._slow_until = 0, now + HOLDS

    def _let_all_search(self) -> None:
        if not self._all_at_once:
            self._all_at_once = True
            for _ in range(self._kestra.limits.concurrent_questions - 1):
                self.searching.release()

    def note(self, job: Job) -> None:
        """This (job, attempt) has an execution now."""
        if self.wanted:
            self._known.add(hash(job.key))

    async def lacks(self, job: Job) -> bool:
        """Whether it is certain that no execution of this (job, attempt) has started within the
        window.

        That is so by a listing that began after this call. False where only a search can tell.
        """
        if not self.wanted:
            return False
        try:
            await self._listed()
        except KestraError as error:
            log.debug("the recent executions can't be listed, searching", error=str(error))
            return False
        return self._complete and self._known.isdisjoint(map(hash, job.keys))

    def _forget(self) -> None:
        self._known: set[int] = set()
        self._complete = False
        self._seen_until = self._kestra.now() - self._window
        self._last = self._last_deep = 0.0

    async def _list(self) -> None:
        """Read on from where the last listing ended, to the end. One that fails on the way is gone
        on with.
        """
        await asyncio.sleep(self._last + EVERY - time.monotonic())
        if len(self._known) > 2 * MOST:
            self._forget()
        self._last = time.monotonic()
        since, page = self._seen_until - self._overlap(), 1
        while True:
            rows, total = await self._kestra.started_since(since, page)
            if not self._complete and total > MOST:
                self._give_up(total)
                return
            newest = self._take(rows)
            if page * self._kestra.limits.page_size >= total or not rows:
                break
            # A page may be full of one instant.
            since, page = (newest, 1) if newest and newest > since else (since, page + 1)
        if not self._complete:
            log.info(
                "searches in kestra are slow, listing its recent executions instead",
                executions=len(self._known),
            )
            self._complete = True

    def _overlap(self) -> timedelta:
        if not self._complete:
            return timedelta()
        if self._last - self._last_deep < DEEP_EVERY:
            return OVERLAP
        self._last_deep = self._last
        return DEEP_OVERLAP

    def _take(self, rows: Iterable[Execution]) -> datetime | None:
        """Note them; returns when the newest of them started."""
        newest = None
        for execution in rows:
            if key := execution.attempt_key:
                # Small. Two keys that share a hash cost a search.
                self._known.add(hash(key))
            newest = execution.started or newest
        if newest is not None:
            # One server's clock may be ahead, and what the others start meanwhile is to be seen,
            # too.
            self._seen_until = max(self._seen_until, min(newest, self._kestra.now()))
        return newest

    def _give_up(self, total: int) -> None:
        self._too_many_until = time.monotonic() + HOLDS
        self._let_all_search()
        log.info(
            "searches in kestra are slow, and there are too many recent executions to list",
            executions=total,
        )
