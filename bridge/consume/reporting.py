"""One replica's time as the reporter: it asks Kestra what has ended, and tells all replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from bridge.aio import together
from bridge.consume.duplicates import duplicates_among, end_duplicates
from bridge.consume.hearing import ToldEnds
from bridge.consume.inquiry import DEEP, QUICK, Inquiry, OldestStart, Reach, latest_end, oldest_of
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
    take more than `share` of its time. While it finds some, it asks every `busy_interval`, if that
    takes no more than `busy_share`: jobs that wait for a slot would else begin together at each
    question, and not as the ones before them end. It lists what has not ended every `list_every`.

    Besides these questions, which are `quick`, it asks `deep` ones every `deep_every`, for what
    Kestra showed late. The first of them looks back to before this reporter's time. A deep question
    finds many ends, of which most were told.

    Every `oldest_every` it asks which unfinished execution started first.

    A sign of life is given every `sign_every`. A replica that hears none for `silent_after` tries
    to become the reporter. The reporter gives way once Kestra has not answered it for
    `gives_way_after`, and rests for `rest`, which doubles up to `rest_at_most`.
    """

    interval: float = 0.5
    share: float = 0.5
    busy_interval: float = 0.1
    busy_share: float = 0.25
    list_every: float = 30.0
    quick: Reach = QUICK
    deep: Reach = DEEP
    deep_every: float = 10.0
    oldest_every: float = 5.0
    sign_every: float = 1.0
    silent_after: float = 2.5
    again_after: float = 1.0
    gives_way_after: float = 10.0
    rest: float = 5.0
    rest_at_most: float = 60.0
    at_once: int = 100

    def pause_after(self, took: float, *, told: int) -> float:
        """Seconds to the next question, after one that took so long and found so many ends."""
        pause = max(self.interval - took, took / self.share - took)
        if not told:
            return pause
        return min(pause, max(self.busy_interval - took, took / self.busy_share - took))

    def rest_after(self, failures: int) -> float:
        """Seconds for which a replica that failed so often before leaves reporting to others."""
        return float(min(self.rest * 2 ** min(failures, 10), self.rest_at_most))


def look_back(unasked_for: float, *, list_every: float) -> float:
    """Seconds that a new reporter looks back: to the last answer that the one before it had.

    What ended before two lists were due was found without it.
    """
    return min(unasked_for, 2 * list_every)


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
        now = kestra.now()
        self._quick = Inquiry(now, policy.quick)
        self._deep = Inquiry(now - timedelta(seconds=back), policy.deep)
        self._telling: set[str] = set()
        self._well_at = time.monotonic()
        self._answered_at = self._well_at - back
        self._caught_up = asyncio.Event()
        """Set once all ends before this reporter's time are told."""

    async def run(self) -> None:
        """Report for ever.

        Raises:
            BrokerError: nothing can be told.
            KestraError: Kestra has not answered for too long.
        """
        # Beside the quick questions, which are not to wait for an answer of many pages.
        deep = self._repeat(
            self.tell_late,
            every=self._policy.deep_every,
            failed="the reporter's deep question failed",
        )
        await together(self._ask(), deep, self._list(), self._give_signs())

    async def tell_ended(self) -> int:
        """Tell of what has ended since the last time and was not told; returns how many.

        Raises:
            BrokerError, KestraError: some of it was not told.
        """
        began = time.monotonic()
        told = await self._tell_answers(self._quick)
        self._note_answer()
        self._metrics.report_seconds.observe(self._well_at - began)
        return told

    async def tell_late(self) -> None:
        """Tell of what Kestra showed late, and at first of what ended before this reporter's time.

        Raises:
            BrokerError, KestraError: some of it was not told.
        """
        await self._tell_answers(self._deep)
        self._caught_up.set()
        self._note_answer()

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
                told = await self.tell_ended()
            except KestraError as error:
                log.warning("the reporter's question failed", error=str(error))
                if time.monotonic() - self._well_at >= self._policy.gives_way_after:
                    raise
                await asyncio.sleep(self._policy.again_after)
                continue
            took = time.monotonic() - began
            await asyncio.sleep(self._policy.pause_after(took, told=told))

    async def _list(self) -> None:
        """List at intervals, once all is told that would be missing in the list."""
        await self._caught_up.wait()
        failed = "the reporter's list failed"
        await self._repeat(self.tell_unfinished, every=self._policy.list_every, failed=failed)

    async def _repeat(
        self, tell: Callable[[], Awaitable[None]], *, every: float, failed: str
    ) -> None:
        """Tell at intervals, and soon again where Kestra did not answer."""
        while True:
            began = time.monotonic()
            try:
                await tell()
            except KestraError as error:
                log.warning(failed, error=str(error))
                await asyncio.sleep(min(self._policy.again_after, every))
                continue
            took = time.monotonic() - began
            await asyncio.sleep(max(every - took, took))

    async def _give_signs(self) -> None:
        while True:
            asked = time.monotonic() - self._answered_at
            await self._publish(SIGN_KEY, sign(self._name, asked=asked))
            await asyncio.sleep(self._policy.sign_every)

    async def _tell_answers(self, inquiry: Inquiry) -> int:
        """Ask the next question, and tell what was not told of its answer; returns how many.

        The latest ends come first, so nothing may follow them before the last page is told.
        """
        question = inquiry.question(self._kestra.now())
        oldest = await self._oldest(inquiry)
        latest, page, told, last = inquiry.latest, 1, 0, False
        while not last:
            ended, last = await self._kestra.ended_since(
                question.ended, page, started=question.started, size=question.page
            )
            told += await self._tell(ended)
            latest = latest_end(latest, ended)
            page += 1
        inquiry.answered(latest, oldest)
        return told

    async def _oldest(self, inquiry: Inquiry) -> OldestStart:
        """The oldest unfinished execution's start, as of some seconds ago at most."""
        now = self._kestra.now()
        known = inquiry.oldest
        if known and now - known.asked < timedelta(seconds=self._policy.oldest_every):
            return known
        return oldest_of(await self._kestra.oldest_unfinished(), now)

    def _note_answer(self) -> None:
        self._well_at = time.monotonic()
        if self._caught_up.is_set():
            self._answered_at = self._well_at

    async def _tell(self, ended: list[Execution]) -> int:
        told = 0
        for start in range(0, len(ended), self._policy.at_once):
            batch = untold(ended[start : start + self._policy.at_once], self._told)
            mine = [each for each in batch if each.id not in self._telling]
            await asyncio.gather(*map(self._tell_end, mine))
            told += len(mine)
        return told

    async def _tell_end(self, execution: Execution) -> None:
        key, message = end_reply(execution)
        self._telling.add(execution.id)
        try:
            await self._publish(key, message)
        finally:
            self._telling.discard(execution.id)
        self._told.note(execution.id, execution.state, execution.ended)
        self._metrics.ends_told.inc()

    async def _publish(self, key: str, message: Message) -> None:
        await self._publisher.publish(message, exchange=REPLIES, routing_key=key)
