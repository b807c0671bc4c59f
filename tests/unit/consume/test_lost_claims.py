"""Claims that are lost, and ledgers that are lost while claims are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from bridge.consume.claiming import Ledger
from bridge.consume.ledger import Claim, LedgerPolicy, Mark, from_entry
from bridge.consume.ports import OnEntry
from bridge.errors import BrokerUnavailable
from bridge.telemetry.metrics import Metrics
from tests.support.harness import eventually


class HeldStream:
    """A ledger whose entries are read when a test says so."""

    def __init__(self, on_entry: OnEntry) -> None:
        self.entries: list[bytes] = []
        self.broken = False
        self._on_entry = on_entry
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def append(self, entry: bytes) -> None:
        if self.broken:
            raise BrokerUnavailable("the connection is lost")
        self.entries.append(entry)

    async def ended(self) -> str:
        return await asyncio.shield(self._ended)

    def end(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)

    @property
    def is_over(self) -> bool:
        return self._ended.done()

    def read(self, number: int) -> None:
        """Have the entry of that number read."""
        self._on_entry(number, self.entries[number])


class HeldBroker:
    """A broker with such a ledger, which is a new one each time it is opened."""

    def __init__(self) -> None:
        self.streams: list[HeldStream] = []

    @asynccontextmanager
    async def ledger(
        self, queue: str, on_entry: OnEntry, *, window: float
    ) -> AsyncIterator[HeldStream]:
        del queue, window
        self.streams.append(HeldStream(on_entry))
        yield self.streams[-1]


class Rig:
    """A ledger that runs, and its broker."""

    def __init__(self, policy: LedgerPolicy) -> None:
        async def nothing_before() -> bool:
            return True

        self.broker = HeldBroker()
        self.ledger = Ledger(
            "jobs",
            broker=cast("Any", self.broker),
            nothing_before=nothing_before,
            metrics=Metrics(),
            policy=policy,
        )

    @property
    def stream(self) -> HeldStream:
        return self.broker.streams[-1]

    async def written(self, many: int) -> HeldStream:
        """The ledger, once so many entries were written to it."""

        async def stream() -> HeldStream | None:
            streams = self.broker.streams
            return streams[-1] if streams and len(streams[-1].entries) >= many else None

        return cast("HeldStream", await eventually(stream, f"{many} entries"))

    def claim(self, key: int) -> asyncio.Task[bool]:
        return asyncio.create_task(self.ledger.claim(key, 1, token=key))


@asynccontextmanager
async def running(**policy: Any) -> AsyncIterator[Rig]:
    """Such a rig, whose ledger is read to its mark."""
    rig = Rig(LedgerPolicy(patience=0.0, **policy))
    task = asyncio.create_task(rig.ledger.run())
    try:
        (await rig.written(1)).read(0)
        assert rig.ledger.ready
        yield rig
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_mark_that_comes_late_makes_no_ready_ledger_of_a_lost_one() -> None:
    async with running() as rig:
        stream = rig.stream
        stream.broken = True
        claimed = rig.claim(1)
        await asyncio.sleep(0)
        stream.read(0)
        assert not rig.ledger.ready
        assert not await asyncio.wait_for(claimed, 10)


async def test_a_claim_after_which_another_one_is_read_back_is_lost_and_written_again() -> None:
    async with running() as rig:
        lost, other = rig.claim(1), rig.claim(2)
        stream = await rig.written(3)
        stream.read(2)
        assert await asyncio.wait_for(other, 10)
        (await rig.written(4)).read(3)
        assert await asyncio.wait_for(lost, 10)
        notes = [from_entry(entry) for entry in stream.entries]
        assert [note.key for note in notes if isinstance(note, Claim)] == [1, 2, 1]


async def test_many_claims_that_are_answered_one_by_one_are_no_reason_to_give_a_ledger_up() -> None:
    async with running(answer=0.2) as rig:
        claims = [rig.claim(key) for key in range(1, 31)]
        stream = await rig.written(31)
        for number in range(1, 31):
            stream.read(number)
            await asyncio.sleep(0.02)
        assert await asyncio.wait_for(asyncio.gather(*claims), 10) == [True] * 30
        assert not stream.is_over


async def test_a_ledger_that_answers_no_claim_is_given_up_and_read_again() -> None:
    async with running(answer=0.02) as rig:
        silent = rig.stream
        claimed = rig.claim(1)
        assert not await asyncio.wait_for(claimed, 10)
        assert silent.is_over

        async def another() -> bool:
            return rig.stream is not silent and bool(rig.stream.entries)

        await eventually(another, "another reading")
        assert isinstance(from_entry(rig.stream.entries[0]), Mark)


async def test_the_claims_under_way_fail_with_their_ledger() -> None:
    async with running() as rig:
        claims = [rig.claim(key) for key in (1, 2)]
        (await rig.written(3)).end("the broker cancelled the reader")
        assert await asyncio.wait_for(asyncio.gather(*claims), 10) == [False, False]
