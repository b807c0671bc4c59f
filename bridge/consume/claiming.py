"""Claims in the ledger of a lane: written, read back, and what follows from them.

The ledger is read over a connection of its own, from the beginning whenever that is new. While it
is away, or not read to its end yet, there are no claims. Starts wait for it a little, and then look
up in Kestra instead.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import partial

import structlog
from tenacity import RetryCallState

from bridge.aio import first_of
from bridge.consume.awaited_claims import AwaitedClaims
from bridge.consume.ledger import (
    NOBODY,
    Claim,
    LedgerPolicy,
    Mark,
    to_entry,
)
from bridge.consume.ledger_view import LedgerView
from bridge.consume.ports import BrokerPort, KestraPort, LedgerPort
from bridge.errors import BrokerError, BrokerUnavailable, KestraError
from bridge.retrying import error_of, retry
from bridge.telemetry.metrics import Metrics

MOST_UNWRITTEN = 10_000
"""How many claims are kept that are to be written (again) once the ledger is back."""

log = structlog.get_logger(__name__)


class Ledger:
    """The ledger of one lane.

    `nothing_before` tells whether no attempt of the lane has an execution yet, which a replica that
    begins a ledger asks.
    """

    def __init__(
        self,
        queue: str,
        *,
        broker: BrokerPort,
        nothing_before: Callable[[], Awaitable[bool]],
        metrics: Metrics,
        policy: LedgerPolicy,
    ) -> None:
        self.policy = policy
        self._queue = queue
        self._broker = broker
        self._nothing_before = nothing_before
        self.view = LedgerView(policy)
        self._stream: LedgerPort | None = None
        self._ready = asyncio.Event()
        self._lost_at = time.monotonic()
        self._mark = NOBODY
        self._awaited = AwaitedClaims()
        self._recent: deque[Claim] = deque(maxlen=MOST_UNWRITTEN)
        self._unwritten: deque[Claim] = deque(maxlen=MOST_UNWRITTEN)
        self._catching_up: asyncio.Task[None] | None = None
        self._seconds = metrics.claim_seconds.labels(queue)
        self._unanswered = metrics.ledger_unanswered.labels(queue)
        metrics.ledger_ready.labels(queue).set_function(self._ready.is_set)
        metrics.ledger_reach.labels(queue).set_function(lambda: self.view.reach)

    @property
    def ready(self) -> bool:
        """Whether it is read to its end."""
        return self._ready.is_set()

    def hope(self) -> None:
        """Have starts wait for it anew, since RabbitMQ is back."""
        self._lost_at = time.monotonic()

    async def available(self) -> bool:
        """Whether claims can be made, for which a ledger that went lately is waited for."""
        if not self.ready:
            left = self._lost_at + self.policy.patience - time.monotonic()
            await first_of(self._ready.wait(), timeout=max(0.0, left))
        return self.ready

    async def claim(self, key: int, number: int, *, token: int) -> bool:
        """Claim a round of an attempt; returns whether the claim was read back.

        It may have been written all the same. What it is worth says `standing` then.
        """
        claim = Claim(key, number, token, time.time())
        began = time.monotonic()
        while await self.available():
            try:
                await self._write(claim)
            except BrokerError:
                continue
            self._seconds.observe(time.monotonic() - began)
            self._recent.append(claim)
            return True
        self._unanswered.inc()
        return False

    def claim_later(self, key: int, number: int, *, token: int) -> None:
        """Have a claim written, now or once the ledger is back; nobody waits for it."""
        self._unwritten.append(Claim(key, number, token, time.time()))
        if self.ready:
            self._catch_up()

    async def run(self) -> None:
        """Read the ledger for ever."""
        while True:
            await retry(
                self._read_once,
                on=(BrokerError,),
                wait=self.policy.back_off,
                before_sleep=self._log_away,
            )

    async def _read_once(self) -> None:
        """Read until the ledger is lost.

        Raises:
            BrokerError: there is none, or it was lost before it was read to its end.
        """
        self._mark = new_token()
        self.view.begin()
        take = partial(self._take, self._mark)
        async with self._broker.ledger(self._queue, take, window=self.policy.window) as stream:
            self._stream, ended = stream, asyncio.ensure_future(stream.ended())
            watch = asyncio.create_task(self._end_when_silent(stream), name="a ledger's silence")
            try:
                # A broker says late whether a stream is empty, so that whoever reads it for the
                # first time asks. It counts only in the first entry of all.
                complete = not self.view.incarnation and await self._nothing_before()
                mark = to_entry(Mark(self._mark, time.time(), complete))
                while not (self.ready or ended.done()):
                    # A stream that changes its leader may lose what is written meanwhile.
                    await stream.append(mark)
                    await first_of(ended, self._ready.wait(), timeout=self.policy.answer)
                was_read = self.ready
                why = await ended
            finally:
                watch.cancel()
                ended.cancel()
                self._note_loss()
        if not was_read:
            raise BrokerUnavailable(why)
        log.warning("the ledger was lost, reading it again", queue=self._queue, why=why)

    async def _end_when_silent(self, stream: LedgerPort) -> None:
        """Give the ledger up once it answers no claim any more."""
        await self._awaited.silence(self.policy.answer)
        stream.end("it did not answer a claim")

    async def _write(self, claim: Claim) -> None:
        """Write a claim and wait until it is read back.

        Raises:
            BrokerUnavailable: the ledger, or this claim, was lost before that.
        """
        stream = self._stream
        if stream is None:
            raise BrokerUnavailable("the ledger is away")
        read_back = self._awaited.add(claim.token)
        try:
            await stream.append(to_entry(claim))
            await read_back
        except BrokerError as error:
            if self._awaited.forget(claim.token) and self._stream is stream:
                # Whoever asks again at once must not find it ready.
                stream.end(str(error))
                self._note_loss()
            raise
        finally:
            self._awaited.forget(claim.token)

    def _take(self, mark: int, offset: int, body: bytes) -> None:
        """Take note of the next entry, and tell who waits for it; nothing where it comes late of a
        reading that is over.
        """
        if mark != self._mark:
            return
        before = self.view.incarnation
        token = self.view.take(offset, body)
        if before not in (NOBODY, self.view.incarnation):
            since = time.time() - self.policy.settling
            self._unwritten.extend(claim for claim in self._recent if claim.at >= since)
        if token in self._awaited:
            self._awaited.answer(token)
        if token == mark and not self.ready:
            log.info(
                "the ledger is read",
                queue=self._queue,
                claims=len(self.view),
                reach=round(self.view.reach),
                blind=self.view.blind,
            )
            self._ready.set()
            self._catch_up()

    def _catch_up(self) -> None:
        """Have all claims written that nobody waits for."""
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._write_all(), name="claims made late")

    async def _write_all(self) -> None:
        while self._unwritten and self._stream is not None and self.ready:
            try:
                await self._stream.append(to_entry(self._unwritten[0]))
            except BrokerError:
                return
            self._unwritten.popleft()

    def _note_loss(self) -> None:
        """Have all claims fail that are under way."""
        if self._stream is None:
            return
        self._stream = None
        # What still comes of this reading would make it ready again, with nothing to write to.
        self._mark = NOBODY
        if self.ready:
            self._lost_at = time.monotonic()
        self._ready.clear()
        self._awaited.fail("the ledger was lost")

    def _log_away(self, state: RetryCallState) -> None:
        if state.attempt_number > 1:
            return
        log.warning(
            "no ledger, looking up in kestra what may have been started",
            queue=self._queue,
            error=str(error_of(state)),
        )


def ledgers_of(
    queues: Iterable[str],
    *,
    broker: BrokerPort,
    kestra: KestraPort,
    metrics: Metrics,
    policy: LedgerPolicy | None,
) -> dict[str, Ledger]:
    """The ledger of each lane by its queue; none without a policy."""
    if policy is None:
        return {}
    return {
        queue: Ledger(
            queue,
            broker=broker,
            nothing_before=partial(_nothing_before, kestra, queue, policy.window),
            metrics=metrics,
            policy=policy,
        )
        for queue in queues
    }


async def _nothing_before(kestra: KestraPort, queue: str, window: float) -> bool:
    """Whether it is certain that no job of a queue has had an execution in that many seconds."""
    try:
        return not await kestra.has_run(queue, since=kestra.now() - timedelta(seconds=window))
    except KestraError as error:
        log.info("kestra does not say what ran before", queue=queue, error=str(error))
        return False


def new_token() -> int:
    """A token that no other claim or mark has."""
    return random.getrandbits(64) or 1
