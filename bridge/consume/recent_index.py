"""Attempts whose executions started lately, known from a few listings.

Once searches are seen to be slow (`search_gate`), the window is listed once, by date, for which
every database of Kestra's has an index. From then on what is new is listed, for all that look at
the same time, so that a fresh message costs no search of its own.

The index only ever says that there is nothing to be found. Where it can't say so, the search
decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from bridge.aio import SingleFlight
from bridge.consume.ports import KestraPort
from bridge.consume.search_gate import SearchGate
from bridge.errors import KestraError
from bridge.job.execution import Execution
from bridge.job.job import Job
from bridge.kestra import DEFAULT_LIMITS

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingPolicy:
    """How recent executions are listed. Times in seconds, where no other type says so.

    A window with more than `most` executions is not listed: that would take longer than the
    searches that it spares. Listings are `every` apart: each reads the last executions again, so
    more of them would cost more than they spare. A look-up waits half of that, which is little
    beside what an execution takes.

    An execution can be seen later than one that started after it, by as long as its create call
    takes. So every listing reads back by `overlap`, and one in `deep_every` by `deep_overlap`.
    """

    most: int = 50_000
    every: float = 0.1
    overlap: timedelta = timedelta(seconds=1)
    deep_every: float = 10.0
    deep_overlap: timedelta = timedelta(seconds=30)
    page_size: int = DEFAULT_LIMITS.page_size


class RecentIndex:
    """The attempts whose executions started within the window, once searches are slow."""

    def __init__(
        self,
        kestra: KestraPort,
        *,
        gate: SearchGate,
        window: timedelta,
        listing: ListingPolicy = ListingPolicy(),
    ) -> None:
        self._kestra = kestra
        self._gate = gate
        self._window = window
        self._listing = listing
        self._listed = SingleFlight(self._list)
        self._forget()

    def note_start(self, job: Job) -> None:
        """Know that this attempt has an execution now."""
        if self._gate.slow:
            self._known.add(hash(job.key))

    async def lacks(self, job: Job) -> bool:
        """Whether it is certain that no execution of this attempt started within the window.

        A listing that began after this call says so. False where only a search can tell.
        """
        if not self._gate.slow:
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
        """Read on to the end from where the last listing ended. The next goes on with one that
        failed.
        """
        await asyncio.sleep(self._last + self._listing.every - time.monotonic())
        if len(self._known) > 2 * self._listing.most:
            self._forget()
        self._last = time.monotonic()
        since, page = self._seen_until - self._overlap(), 1
        while True:
            rows, total = await self._kestra.started_since(since, page)
            if not self._complete and total > self._listing.most:
                self._give_up(total)
                return
            newest = self._take(rows)
            if page * self._listing.page_size >= total or not rows:
                break
            if newest is not None and newest > since:
                since, page = newest, 1
            else:
                # The whole page is of one instant.
                page += 1
        if not self._complete:
            log.info(
                "searches in kestra are slow, listing its recent executions instead",
                executions=len(self._known),
            )
            self._complete = True

    def _overlap(self) -> timedelta:
        if not self._complete:
            return timedelta()
        if self._last - self._last_deep < self._listing.deep_every:
            return self._listing.overlap
        self._last_deep = self._last
        return self._listing.deep_overlap

    def _take(self, rows: Iterable[Execution]) -> datetime | None:
        """Note them; returns when the newest of them started."""
        newest = None
        for execution in rows:
            if key := execution.attempt_key:
                # A hash is small. Two keys that share one cost a search.
                self._known.add(hash(key))
            newest = execution.started or newest
        if newest is not None:
            # One server's clock may be ahead. What others start meanwhile has to be seen, too.
            self._seen_until = max(self._seen_until, min(newest, self._kestra.now()))
        return newest

    def _give_up(self, total: int) -> None:
        self._gate.prefer_searches()
        log.info(
            "searches in kestra are slow, and there are too many recent executions to list",
            executions=total,
        )
