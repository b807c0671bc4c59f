"""What the bridge relies on of RabbitMQ: tests that a real one and the one in memory both pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from bridge.consume.ports import BrokerPort, LedgerPort, SessionPort
from bridge.errors import BrokerUnavailable, PublishFailed, QueueFull
from bridge.job.message import Delivery, Message
from bridge.rabbitmq.topology import (
    REPLIES,
    dead_exchange,
    dead_queue,
    ledger_queue,
    retry_queue,
)
from bridge.settings import Lane

PREFETCH = 2
DELAY = 1


class BrokerUnderTest(Protocol):
    """A broker with one lane of prefetch `PREFETCH` and retries after `DELAY`, and a test's hand in
    it."""

    @property
    def broker(self) -> BrokerPort: ...

    @property
    def queue(self) -> str: ...

    async def submit(self, message: Message) -> None:
        """Publish to the lane."""

    async def depth(self, queue: str) -> int:
        """How many messages are ready."""

    async def take(self, queue: str) -> Message:
        """The first message of a queue, once there is one; it is gone then."""

    async def elapse(self, seconds: float) -> None:
        """Let that much time pass."""

    async def quiesce(self) -> None:
        """Wait until what the broker has to do is done."""

    async def cut(self) -> None:
        """Cut every connection of the bridge's."""

    async def limit(self, queue: str, most: int) -> None:
        """Let a queue refuse what is published to it beyond that many messages."""

    async def delete(self, queue: str) -> None:
        """Delete a queue."""

    async def reply(self, body: bytes) -> None:
        """Publish to the reply exchange."""


def job(name: str, **properties: int) -> Message:
    return Message(body=b"{}", message_id=name, content_type="application/json", **properties)  # type: ignore[arg-type]


@dataclass
class Consumption:
    """A session, and what came in it."""

    session: SessionPort
    deliveries: asyncio.Queue[Delivery]
    replies: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    async def next(self) -> Delivery:
        async with asyncio.timeout(20):
            return await self.deliveries.get()

    async def names(self, count: int) -> list[str | None]:
        """The ids of the next messages, each of which is acked."""
        found = []
        for _ in range(count):
            delivery = await self.next()
            found.append(delivery.message.message_id)
            await delivery.ack()
        return found


@asynccontextmanager
async def consuming(under: BrokerUnderTest) -> AsyncIterator[Consumption]:
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    replies: asyncio.Queue[bytes] = asyncio.Queue()

    def deliver(_: Lane, delivery: Delivery) -> None:
        deliveries.put_nowait(delivery)

    async with under.broker.session(deliver, replies.put_nowait, hold=3600) as session:
        yield Consumption(session, deliveries, replies)


async def ended(session: SessionPort) -> str:
    """The cause of a session's end, once it has come."""
    async with asyncio.timeout(20):
        cause, _ = await session.ended()
        return cause


async def leads_within(session: SessionPort, name: str, *, seconds: float) -> bool:
    """Whether a session leads in the matter of that name, tried for that many seconds."""
    async with asyncio.timeout(seconds):
        while True:
            async with session.leading(name) as publisher:
                if publisher is not None:
                    return True
            await asyncio.sleep(0.1)


async def overfill(session: SessionPort, exchange: str) -> None:
    """Publish more than a queue takes that has room for one; quorum queues take a few more."""
    for _ in range(20):
        await session.publisher.publish(job("one"), exchange=exchange)


@dataclass
class Reading:
    """A ledger that is read, and its entries with their offsets."""

    ledger: LedgerPort
    entries: asyncio.Queue[tuple[int, bytes]]

    async def take(self, count: int) -> list[tuple[int, bytes]]:
        async with asyncio.timeout(20):
            return [await self.entries.get() for _ in range(count)]


@asynccontextmanager
async def reading(under: BrokerUnderTest) -> AsyncIterator[Reading]:
    entries: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    def take(offset: int, body: bytes) -> None:
        entries.put_nowait((offset, body))

    async with under.broker.ledger(under.queue, take, window=3600) as ledger:
        yield Reading(ledger, entries)


async def lost(ledger: LedgerPort) -> str:
    """Why a ledger was lost, once it is."""
    async with asyncio.timeout(20):
        return await ledger.ended()


class BrokerSuite:
    """Subclasses give the fixture `under`. The lane is declared when a test begins."""

    async def test_a_message_is_delivered_as_it_was_published(self, under: BrokerUnderTest) -> None:
        sent = Message(
            body=b'{"inputs": {}}',
            message_id="one",
            headers={"x-mine": "yes"},
            priority=3,
            correlation_id="c",
            reply_to="somewhere",
            content_type="application/json",
        )
        await under.submit(sent)
        async with consuming(under) as consumption:
            got = (await consumption.next()).message
        assert (
            got.body,
            got.message_id,
            dict(got.headers),
            got.priority,
            got.correlation_id,
            got.reply_to,
        ) == (sent.body, "one", {"x-mine": "yes"}, 3, "c", "somewhere")

    async def test_messages_come_by_priority_and_then_by_arrival(
        self, under: BrokerUnderTest
    ) -> None:
        for name, priority in (("a", 0), ("b", 5), ("c", 5), ("d", 9), ("e", 0)):
            await under.submit(job(name, priority=priority))
        async with consuming(under) as consumption:
            assert await consumption.names(5) == ["d", "b", "c", "a", "e"]

    async def test_a_priority_above_the_highest_comes_before_lower_ones(
        self, under: BrokerUnderTest
    ) -> None:
        # Not before the highest itself: classic queues count it as that, and 4.3's quorum queues
        # have 32 priorities whatever the settings say.
        await under.submit(job("low", priority=0))
        await under.submit(job("above", priority=200))
        async with consuming(under) as consumption:
            assert await consumption.names(2) == ["above", "low"]

    async def test_no_more_than_the_prefetch_is_delivered(self, under: BrokerUnderTest) -> None:
        for number in range(PREFETCH + 2):
            await under.submit(job(f"job-{number}"))
        async with consuming(under) as consumption:
            for _ in range(PREFETCH):
                await consumption.next()
            await under.quiesce()
            assert consumption.deliveries.empty()

    async def test_an_ack_makes_room_for_the_next(self, under: BrokerUnderTest) -> None:
        for number in range(PREFETCH + 1):
            await under.submit(job(f"job-{number}"))
        async with consuming(under) as consumption:
            first, _ = await consumption.next(), await consumption.next()
            await first.ack()
            assert (await consumption.next()).message.message_id == f"job-{PREFETCH}"

    async def test_what_is_acked_does_not_come_again(self, under: BrokerUnderTest) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            await (await consumption.next()).ack()
            await under.quiesce()
        await under.quiesce()
        assert await under.depth(under.queue) == 0

    async def test_a_fresh_message_is_not_redelivered(self, under: BrokerUnderTest) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            assert not (await consumption.next()).redelivered

    async def test_what_is_unsettled_at_the_sessions_end_is_redelivered(
        self, under: BrokerUnderTest
    ) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            await consumption.next()
        async with consuming(under) as consumption:
            again = await consumption.next()
        assert (again.message.message_id, again.redelivered) == ("one", True)

    async def test_what_comes_back_goes_before_what_came_later(
        self, under: BrokerUnderTest
    ) -> None:
        await under.submit(job("first"))
        async with consuming(under) as consumption:
            await consumption.next()
            for number in range(PREFETCH + 1):
                await under.submit(job(f"later-{number}"))
            await consumption.next()
        async with consuming(under) as consumption:
            assert (await consumption.next()).message.message_id == "first"

    async def test_a_session_that_is_cut_says_that_it_has_ended(
        self, under: BrokerUnderTest
    ) -> None:
        async with consuming(under) as consumption:
            await under.cut()
            assert await ended(consumption.session) in ("connection_closed", "channel_closed")

    async def test_what_a_cut_leaves_unsettled_is_redelivered(self, under: BrokerUnderTest) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            await consumption.next()
            await under.cut()
            await ended(consumption.session)
        async with consuming(under) as consumption:
            assert (await consumption.next()).redelivered

    async def test_nothing_can_be_acked_after_a_cut(self, under: BrokerUnderTest) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            delivery = await consumption.next()
            await under.cut()
            await ended(consumption.session)
            with pytest.raises(BrokerUnavailable):
                await delivery.ack()

    async def test_nothing_can_be_published_after_a_cut(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as consumption:
            await under.cut()
            await ended(consumption.session)
            with pytest.raises(BrokerUnavailable):
                await consumption.session.publisher.publish(job("one"), routing_key=under.queue)

    async def test_what_is_rejected_is_a_dead_letter(self, under: BrokerUnderTest) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            await (await consumption.next()).reject()
            letter = await under.take(dead_queue(under.queue))
        assert (letter.message_id, letter.headers["x-first-death-reason"]) == ("one", "rejected")

    async def test_a_dead_letter_stands_in_its_queue_once_it_is_confirmed(
        self, under: BrokerUnderTest
    ) -> None:
        async with consuming(under) as consumption:
            await consumption.session.publisher.publish(
                job("one"), exchange=dead_exchange(under.queue), routing_key=under.queue
            )
            assert (await under.take(dead_queue(under.queue))).message_id == "one"

    async def test_a_retry_waits_for_its_delay(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as consumption:
            retries = retry_queue(under.queue, DELAY)
            await consumption.session.publisher.publish(job("one"), routing_key=retries)
            await under.elapse(DELAY / 3)
            assert consumption.deliveries.empty()

    async def test_a_retry_comes_back_with_its_priority_and_is_not_redelivered(
        self, under: BrokerUnderTest
    ) -> None:
        async with consuming(under) as consumption:
            retries = retry_queue(under.queue, DELAY)
            await consumption.session.publisher.publish(job("one", priority=7), routing_key=retries)
            await under.elapse(DELAY)
            back = await consumption.next()
        assert (back.message.message_id, back.message.priority, back.redelivered) == (
            "one",
            7,
            False,
        )

    async def test_what_no_queue_takes_fails_and_ends_the_session(
        self, under: BrokerUnderTest
    ) -> None:
        async with consuming(under) as consumption:
            with pytest.raises(PublishFailed):
                await consumption.session.publisher.publish(job("one"), routing_key="nowhere")
            assert await ended(consumption.session) == "channel_closed"

    async def test_a_full_queue_refuses_and_ends_no_session(self, under: BrokerUnderTest) -> None:
        await under.limit(dead_queue(under.queue), 1)
        async with consuming(under) as consumption:
            with pytest.raises(QueueFull):
                await overfill(consumption.session, dead_exchange(under.queue))
            await under.submit(job("two"))
            assert await consumption.names(1) == ["two"]

    async def test_a_result_that_no_queue_takes_ends_no_session(
        self, under: BrokerUnderTest
    ) -> None:
        async with consuming(under) as consumption:
            with pytest.raises(PublishFailed):
                await consumption.session.results.publish(job("result"), routing_key="nowhere")
            await under.submit(job("two"))
            assert await consumption.names(1) == ["two"]

    async def test_a_session_hears_replies(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as consumption:
            await under.reply(b"told")
            async with asyncio.timeout(20):
                assert await consumption.replies.get() == b"told"

    async def test_one_session_leads_at_a_time(self, under: BrokerUnderTest) -> None:
        name = f"{under.queue}.reporter"
        async with (
            consuming(under) as one,
            consuming(under) as other,
            one.session.leading(name) as first,
            other.session.leading(name) as second,
        ):
            assert (first is not None, second) == (True, None)

    async def test_another_session_leads_once_the_first_has_given_up(
        self, under: BrokerUnderTest
    ) -> None:
        name = f"{under.queue}.reporter"
        async with consuming(under) as one, consuming(under) as other:
            async with one.session.leading(name):
                pass
            async with other.session.leading(name) as publisher:
                assert publisher is not None

    async def test_another_session_leads_once_the_first_has_ended(
        self, under: BrokerUnderTest
    ) -> None:
        name = f"{under.queue}.reporter"
        async with consuming(under) as one, one.session.leading(name):
            await under.cut()
            await ended(one.session)
            async with consuming(under) as other:
                assert await leads_within(other.session, name, seconds=20)

    async def test_every_session_hears_what_the_leader_tells(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as one, consuming(under) as other:
            async with one.session.leading(f"{under.queue}.reporter") as publisher:
                assert publisher is not None
                told = Message(body=b"told")
                await publisher.publish(told, exchange=REPLIES, routing_key="SUCCESS.test.job")
            async with asyncio.timeout(20):
                heard = [await each.replies.get() for each in (one, other)]
        assert heard == [b"told", b"told"]

    async def test_after_the_stop_nothing_new_comes_and_what_is_here_can_be_acked(
        self, under: BrokerUnderTest
    ) -> None:
        await under.submit(job("one"))
        async with consuming(under) as consumption:
            held = await consumption.next()
            await consumption.session.stop_consuming()
            await under.submit(job("two"))
            await held.ack()
            await under.quiesce()
            assert (consumption.deliveries.empty(), await under.depth(under.queue)) == (True, 1)

    async def test_two_sessions_share_the_lane(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as one, consuming(under) as other:
            for number in range(2 * PREFETCH):
                await under.submit(job(f"job-{number}"))
            for _ in range(PREFETCH):
                await one.next()
                await other.next()

    async def test_a_queue_that_is_deleted_ends_the_session(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as consumption:
            await under.delete(under.queue)
            assert await ended(consumption.session) == "consumer_cancelled"

    async def test_a_new_session_declares_what_was_deleted(self, under: BrokerUnderTest) -> None:
        await under.delete(under.queue)
        await under.delete(dead_queue(under.queue))
        async with consuming(under) as consumption:
            await under.submit(job("one"))
            await (await consumption.next()).reject()
            assert (await under.take(dead_queue(under.queue))).message_id == "one"

    async def test_a_session_says_of_which_type_the_queue_is(self, under: BrokerUnderTest) -> None:
        async with consuming(under) as consumption:
            assert consumption.session.kinds[under.queue] in ("classic", "quorum")

    async def test_all_who_read_a_ledger_read_the_same_in_one_order(
        self, under: BrokerUnderTest
    ) -> None:
        async with reading(under) as one, reading(under) as other:
            for number in range(20):
                writer = (one, other)[number % 2]
                await writer.ledger.append(b"%d" % number)
            assert await one.take(20) == await other.take(20)

    async def test_a_ledger_is_read_from_its_beginning(self, under: BrokerUnderTest) -> None:
        async with reading(under) as first:
            await first.ledger.append(b"one")
            await first.ledger.append(b"two")
            await first.take(2)
        async with reading(under) as later:
            assert await later.take(2) == [(0, b"one"), (1, b"two")]

    async def test_more_entries_come_than_are_under_way_at_once(
        self, under: BrokerUnderTest
    ) -> None:
        async with reading(under) as writer:
            for number in range(3000):
                await writer.ledger.append(b"%d" % number)
            entries = await writer.take(3000)
        assert [offset for offset, _ in entries] == list(range(3000))

    async def test_a_new_ledger_is_empty_and_a_used_one_is_not(
        self, under: BrokerUnderTest
    ) -> None:
        async with reading(under) as first:
            await first.ledger.append(b"one")
            await first.take(1)
            async with reading(under) as second:
                assert (first.ledger.empty, second.ledger.empty) == (True, False)

    async def test_a_ledger_that_is_deleted_is_lost(self, under: BrokerUnderTest) -> None:
        async with reading(under) as one:
            await under.delete(ledger_queue(under.queue))
            assert await lost(one.ledger)

    async def test_a_ledger_that_was_deleted_begins_anew(self, under: BrokerUnderTest) -> None:
        async with reading(under) as one:
            await one.ledger.append(b"old")
            await one.take(1)
            await under.delete(ledger_queue(under.queue))
            await lost(one.ledger)
        async with reading(under) as one:
            await one.ledger.append(b"new")
            assert await one.take(1) == [(0, b"new")]

    async def test_a_ledger_is_lost_with_its_connection(self, under: BrokerUnderTest) -> None:
        async with reading(under) as one:
            await under.cut()
            assert await lost(one.ledger)

    async def test_nothing_can_be_written_to_a_ledger_after_a_cut(
        self, under: BrokerUnderTest
    ) -> None:
        async with reading(under) as one:
            await under.cut()
            await lost(one.ledger)
            with pytest.raises(BrokerUnavailable):
                await one.ledger.append(b"late")
