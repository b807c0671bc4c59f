"""One replica's time as the reporter: it asks Kestra what has ended, and tells all replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from bridge.aio import together
from bridge.consume.duplicates import duplicates_among, end_duplicates
from bridge.consume.hearing import ToldEnds
from bridge.consume.ports import KestraPort, PublisherPort
from bridge.consume.reports import LIST_KEY, SIGN_KEY, end_reply, list_parts, sign
from bridge.errors import KestraError
from bridge.job.execution import Execution
from bridge.job.message import Message
from bridge.rabbitmq.topology import REPLIES
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPolicy:
    """How the reporter asks and tells. Times in seconds.

    It asks for ended executions every `interval` (0: never), less often where the questions would
    take more than `share` of its time, and lists what has not ended every `list_every`.

    A question goes back `overlap` before the latest end that is known, since an end can be seen
    late. One question in `deep_every` goes back `deep_overlap`. While nothing ends, questions go
    back `quiet` before now: more than Kestra's clock can be misjudged by.

    So that Kestra need not read its whole history for each question, it is asked every
    `oldest_every` which unfinished execution started first. A question leaves out what started
    `unseen` before that, a deep one `deep_unseen`: an execution is seen some time after its start.
    None reads further back than `longest`; the end of what ran for longer is seen by the list.

    A sign of life is given every `sign_every`. A replica that hears none for `silent_after` tries
    to become the reporter. The reporter gives way once Kestra has not answered it for
    `gives_way_after`, and rests for `rest`, which doubles up to `rest_at_most`.
    """

    interval: float = 0.5
    share: float = 0.5
    list_every: float = 30.0
    overlap: float = 1.0
    deep_overlap: float = 15.0
    deep_every: float = 10.0
    quiet: float = 120.0
    oldest_every: float = 5.0
    unseen: float = 15.0
    deep_unseen: float = 120.0
    longest: float = 86400.0
    sign_every: float = 1.0
    silent_after: float = 2.5
    again_after: float = 1.0
    gives_way_after: float = 10.0
    rest: float = 5.0
    rest_at_most: float = 60.0
    at_once: int = 100

    def pause_after(self, took: float) -> float:
        """Seconds to the next question, after one that took so long."""
        return max(self.interval, took / self.share - took)

    def rest_after(self, failures: int) -> float:
        """Seconds for which a replica that failed so often before leaves reporting to others."""
        return float(min(self.rest * 2 ** min(failures, 10), self.rest_at_most))


def ask_from(latest: datetime, now: datetime, *, overlap: float, quiet: float) -> datetime:
    """The moment from which on to ask for ends, by Kestra's clock.

    `latest` is the latest end that is known. One that is ahead of now was dated by a node whose
    clock is wrong, and must not hide what others date.
    """
    earliest = now - timedelta(seconds=quiet)
    return max(min(latest, now), earliest) - timedelta(seconds=overlap)


def read_from(oldest: datetime | None, now: datetime, *, unseen: float, longest: float) -> datetime:
    """The moment from which on executions must have started for a question to read them.

    `oldest` is the earliest start of what had not ended before the last question was asked: that
    question told what had ended. It is None where it isn't known.
    """
    earliest = now - timedelta(seconds=longest)
    if oldest is None:
        return earliest
    return max(oldest - timedelta(seconds=unseen), earliest)


def look_back(unasked_for: float, *, list_every: float) -> float:
    """Seconds that a new reporter looks back: to the last answer that the one before it had.

    What ended before two lists were due was found without it.
    """
    return min(unasked_for, 2 * list_every)


def latest_end(latest: datetime, ended: Iterable[Execution]) -> datetime:
    """The latest of that moment and these ends."""
    return max([latest, *(execution.ended for execution in ended if execution.ended)])


def untold(ended: Iterable[Execution], told: ToldEnds) -> list[Execution]:
    """The executions of whose ends no reply has told yet."""
    return [
        execution
        for execution in ended
        if not told.has(execution.id, execution.state, execution.ended)
    ]


class Reporting:
    """A reporter at work. `back` is how many seconds it looks back at first."""

    def __init__(
        self,
        *,
        name: str,
        publisher: PublisherPort,
        kestra: KestraPort,
        told: ToldEnds,
        metrics: Metrics,
        back: float,
        policy: ReportPolicy,
    ) -> None:
        self._name = name
        self._publisher = publisher
        self._kestra = kestra
        self._told = told
        self._metrics = metrics
        self._policy = policy
        self._latest = kestra.now() - timedelta(seconds=back)
        self._deep_at = self._well_at = time.monotonic()
        self._answered_at = self._well_at - back
        self._oldest: datetime | None = None
        self._oldest_at = float("-inf")
        self._answered = asyncio.Event()

    async def run(self) -> None:
        """Report for ever.

        Raises:
            BrokerError: nothing can be told.
            KestraError: Kestra has not answered for too long.
        """
        await together(self._ask(), self._list(), self._give_signs())

    async def tell_ended(self) -> None:
        """Tell of what has ended since the last time and was not told.

        Raises:
            BrokerError, KestraError: some of it was not told.
        """
        began = time.monotonic()
        deep = began >= self._deep_at
        since, started = self._reach(deep)
        oldest = await self._oldest_start(began)
        self._latest = await self._tell_since(since, started)
        # What had ended before it was asked for is told now, so no question reads it again.
        self._oldest = oldest
        self._answered_at = self._well_at = time.monotonic()
        if deep:
            self._deep_at = began + self._policy.deep_every
        self._metrics.report_seconds.observe(self._answered_at - began)
        self._answered.set()

    def _reach(self, deep: bool) -> tuple[datetime, datetime]:
        """The moments from which on executions ended and started that a question asks for."""
        policy, now = self._policy, self._kestra.now()
        overlap = policy.deep_overlap if deep else policy.overlap
        unseen = policy.deep_unseen if deep else policy.unseen
        since = ask_from(self._latest, now, overlap=overlap, quiet=policy.quiet)
        return since, read_from(self._oldest, now, unseen=unseen, longest=policy.longest)

    async def _tell_since(self, since: datetime, started: datetime) -> datetime:
        """Tell what ended since then, and return the latest end that is known afterwards.

        The latest ends come first, so nothing may follow them before the last page is told.
        """
        latest, page, last = self._latest, 1, False
        while not last:
            ended, last = await self._kestra.ended_since(since, page, started=started)
            await self._tell(untold(ended, self._told))
            latest = latest_end(latest, ended)
            page += 1
        return latest

    async def _oldest_start(self, now: float) -> datetime | None:
        """The earliest start of what has not ended, as of some seconds ago; None if unknown."""
        if now < self._oldest_at + self._policy.oldest_every:
            return self._oldest
        asked = self._kestra.now()
        execution = await self._kestra.oldest_unfinished()
        self._oldest_at = now
        if execution is None:
            return asked
        if execution.started is None:
            return None
        return min(asked, execution.started)

    async def tell_unfinished(self) -> None:
        """Tell what has not ended.

        Raises:
            BrokerError, KestraError: it was not told.
        """
        began = time.monotonic()
        running = await self._kestra.unfinished()
        await end_duplicates(self._kestra, self._metrics, duplicates_among(running))
        ids = [execution.id for execution in running]
        for part in list_parts(self._name, ids, seconds=time.monotonic() - began):
            await self._publish(LIST_KEY, part)

    async def _ask(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self.tell_ended()
            except KestraError as error:
                log.warning("the reporter's question failed", error=str(error))
                if time.monotonic() - self._well_at >= self._policy.gives_way_after:
                    raise
                await asyncio.sleep(self._policy.again_after)
                continue
            await asyncio.sleep(self._policy.pause_after(time.monotonic() - began))

    async def _list(self) -> None:
        """List at intervals, after the first question: that one tells what would be missing."""
        await self._answered.wait()
        while True:
            began = time.monotonic()
            try:
                await self.tell_unfinished()
            except KestraError as error:
                log.warning("the reporter's list failed", error=str(error))
                await asyncio.sleep(min(self._policy.again_after, self._policy.list_every))
                continue
            took = time.monotonic() - began
            await asyncio.sleep(max(self._policy.list_every - took, took))

    async def _give_signs(self) -> None:
        while True:
            asked = time.monotonic() - self._answered_at
            await self._publish(SIGN_KEY, sign(self._name, asked=asked))
            await asyncio.sleep(self._policy.sign_every)

    async def _tell(self, ended: list[Execution]) -> None:
        for start in range(0, len(ended), self._policy.at_once):
            batch = ended[start : start + self._policy.at_once]
            await asyncio.gather(*map(self._tell_end, batch))

    async def _tell_end(self, execution: Execution) -> None:
        key, message = end_reply(execution)
        await self._publish(key, message)
        self._told.note(execution.id, execution.state, execution.ended)
        self._metrics.ends_told.inc()

    async def _publish(self, key: str, message: Message) -> None:
        await self._publisher.publish(message, exchange=REPLIES, routing_key=key)
