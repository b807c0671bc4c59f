"""Reads a queue and holds its messages; what is not settled goes back in the order in which it
came.

Messages come in pages. Each page has a consumer of its own, which is cancelled as soon as the page
is complete. So any number of messages can be held while the bodies of only one page are in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage
from aiormq.tools import shield
from pamqp.commands import Basic, Queue

from bridge.errors import BridgeError, QueueMissing
from bridge.job.message import Message
from bridge.rabbitmq.codec import to_message
from bridge.rabbitmq.error_translation import translated_on_queue

Each = TypeVar("Each")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderLimits:
    """How much a reader takes at once, and how long it waits; times are in seconds."""

    page_messages: int = 128
    page_bytes: int = 16 * 1024 * 1024
    """A page has no more messages than fit into this if each is as large as the largest so far.
    RabbitMQ itself offers no prefetch by bytes."""
    in_flight: int = 16
    """Settlements to send before their effect is awaited. From 32 on RabbitMQ's channel holds
    settlements for a quorum queue back, mixes up their order, and drops them when it closes
    (`rabbit_fifo_client`, its soft limit)."""
    answer_timeout: float = 60.0
    idle: float = 0.1
    """Ask whether anything is left when no message has arrived for this time."""
    poll: float = 0.02
    stalled: float = 3.0
    """Stop waiting for messages, delivered or returned, when none has come for this time."""
    after_failure: float = 10.0
    """The time to return all messages after an error or an interruption."""


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message that a reader holds, with its delivery tag."""

    message: Message
    delivery_tag: int


class QueueReader:
    """Reads one queue on a channel of its own.

    Every method raises `QueueMissing`, `BrokerDenied` or `BrokerUnavailable`.
    """

    def __init__(self, raw: RawChannel, queue: str, limits: ReaderLimits) -> None:
        self.queue = queue
        self._raw = raw
        self._limits = limits
        # An RPC that is cancelled closes its channel, so the RPCs are shielded. Whatever follows an
        # interruption waits for this lock, and so for the RPC under way.
        self._turn = asyncio.Lock()
        self._batches = 0
        self._held: dict[int, int] = {}
        """The batch of each held message, by delivery tag."""
        self._largest = 1
        self._arrived: list[HeldMessage] = []
        self._returning = False

    async def others(self, patience: float = 0) -> int:
        """The number of others that consume or hold messages, while this reader holds none.

        Waits up to `patience` seconds for them to go: a connection that has just ended still counts
        for a moment. Only RabbitMQ's management API knows how many messages they hold.
        """
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            consumers = (await self._declared()).consumer_count or 0
            if not consumers or asyncio.get_running_loop().time() > deadline:
                return consumers
            await asyncio.sleep(self._limits.poll)

    async def ready(self) -> int:
        """The number of messages that nobody holds."""
        return (await self._declared()).message_count or 0

    async def pages(self) -> AsyncIterator[list[HeldMessage]]:
        """Every message that nobody else holds, once, in pages."""
        while page := await self.next_page():
            yield page

    @shield
    async def next_page(self) -> list[HeldMessage]:
        """The next messages; none where the queue is empty."""
        async with self._turn:
            if await self._get():
                await self._fill_page()
            page, self._arrived = self._arrived, []
            return page

    async def ack(self, tags: Sequence[int]) -> None:
        """Remove the messages with these delivery tags; returns when RabbitMQ has done
        so, on disk where the queue is a quorum queue.
        """
        for group in _grouped(tags, self._limits.in_flight):
            await self._settle(group, self._raw.basic_ack)

    async def reject(self, tags: Sequence[int]) -> None:
        """Hand messages to the queue's dead-letter exchange; returns when RabbitMQ is certain to
        do so.
        """
        for group in _grouped(tags, self._limits.in_flight):
            await self._settle(group, partial(self._raw.basic_reject, requeue=False))

    async def take_rest(self) -> None:
        """Take hold of what was not read yet, if anything is held and nothing was given back.

        RabbitMQ queues returned messages behind those that were returned before: the part of a
        queue that was read would change places with the rest.
        """
        async with self._turn:
            if self._returning or not self._held:
                return
        while await self.next_page():
            pass

    @shield
    async def give_back(self) -> None:
        """Return all held messages in their order; nothing may be read after that.

        With nack: RabbitMQ counts what it takes back from a closed channel as failed deliveries,
        and returns it in another order. Batch by batch, since RabbitMQ keeps the order only within
        a consumer. A few batches at a time (see `ReaderLimits.in_flight`), until they are there.
        """
        async with self._turn:
            self._returning = True
            batches: dict[int, list[int]] = {}
            for tag, batch in self._held.items():
                batches.setdefault(batch, []).append(tag)
            for group in _grouped(list(batches.values()), self._limits.in_flight):
                expected = await self.ready() + sum(map(len, group))
                for tags in group:
                    for tag in tags:
                        del self._held[tag]
                    with translated_on_queue(self.queue):
                        await self._raw.basic_nack(tags[-1], multiple=True, requeue=True)
                await self._await_ready(expected)

    async def _await_ready(self, expected: int) -> None:
        """Wait until that many messages are ready, unless others take them."""
        loop = asyncio.get_running_loop()
        highest, since = -1, loop.time()
        while (ready := await self.ready()) < expected:
            if ready > highest:
                highest, since = ready, loop.time()
            elif loop.time() - since > self._limits.stalled:
                return
            await asyncio.sleep(self._limits.poll)

    async def _fill_page(self) -> None:
        """Have messages delivered until the page is full, or others have taken them."""
        limits, loop = self._limits, asyncio.get_running_loop()
        fitting = max(1, limits.page_bytes // self._largest)
        room = min(limits.page_messages, fitting) - len(self._arrived)
        wanted = min(room, await self.ready())
        if wanted <= 0:
            return
        full = len(self._arrived) + wanted
        take = self._in_new_batch()
        arrival = asyncio.Event()

        async def delivered(message: DeliveredMessage) -> None:
            take(message)
            arrival.set()

        with translated_on_queue(self.queue):
            consumer, timeout = f"read.{self.queue}.{self._batches}", limits.answer_timeout
            await self._raw.basic_qos(prefetch_count=wanted, timeout=timeout)
            await self._raw.basic_consume(
                self.queue, delivered, consumer_tag=consumer, timeout=timeout
            )
            last_arrival = loop.time()
            while len(self._arrived) < full:
                arrival.clear()
                try:
                    await asyncio.wait_for(arrival.wait(), limits.idle)
                    last_arrival = loop.time()
                except TimeoutError:
                    stalled = loop.time() - last_arrival > limits.stalled
                    if stalled or not await self.ready():
                        break
            # Once this is answered, all that is under way has arrived.
            await self._raw.basic_cancel(consumer, timeout=timeout)

    @shield
    async def _settle(self, tags: Sequence[int], send: Callable[[int], Awaitable[None]]) -> None:
        async with self._turn:
            with translated_on_queue(self.queue):
                for tag in tags:
                    del self._held[tag]
                    await send(tag)
            await self._get()

    async def _get(self) -> bool:
        """Ask for one message; returns whether there was one, which is then held.

        RabbitMQ works through a channel in order, so the answer also says that all that was sent
        before is done. And it is current where a count is not: after a large return 3.10 counts no
        messages for seconds.
        """
        with translated_on_queue(self.queue):
            message = await self._raw.basic_get(self.queue, timeout=self._limits.answer_timeout)
        if isinstance(message.delivery, Basic.GetEmpty):
            return False
        self._in_new_batch()(message)
        return True

    def _in_new_batch(self) -> Callable[[DeliveredMessage], None]:
        """A function that notes messages as one batch: to RabbitMQ, those of one consumer."""
        self._batches += 1
        batch = self._batches

        def take(delivered: DeliveredMessage) -> None:
            assert delivered.delivery_tag is not None, "a delivery has a tag"
            message = to_message(delivered)
            self._held[delivered.delivery_tag] = batch
            self._largest = max(self._largest, len(message.body))
            self._arrived.append(HeldMessage(message, delivered.delivery_tag))

        return take

    @shield
    async def _declared(self) -> Queue.DeclareOk:
        with translated_on_queue(self.queue):
            return await self._raw.queue_declare(
                self.queue, passive=True, timeout=self._limits.answer_timeout
            )


@asynccontextmanager
async def opened(
    connection: AbstractConnection, queue: str, limits: ReaderLimits | None = None
) -> AsyncIterator[QueueReader]:
    """A reader of a queue. In the end, whichever it is, everything that is held goes back."""
    limits = limits or ReaderLimits()
    with translated_on_queue("a channel"):
        channel = await connection.channel(publisher_confirms=False)
        reader = QueueReader(await channel.get_underlay_channel(), queue, limits)
    try:
        yield reader
        await reader.give_back()
    except (Exception, asyncio.CancelledError):
        with suppress(BridgeError, TimeoutError):
            async with asyncio.timeout(limits.after_failure):
                await reader.take_rest()
                await reader.give_back()
        raise
    with translated_on_queue("a channel"):
        await channel.close()


async def count_ready(connection: AbstractConnection, queue: str) -> int | None:
    """The number of ready messages in a queue, or None where there is no such queue; raises as a
    reader does.
    """
    try:
        with translated_on_queue(queue):
            async with connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                declared = await raw.queue_declare(
                    queue, passive=True, timeout=ReaderLimits().answer_timeout
                )
    except QueueMissing:
        return None
    return declared.message_count or 0


def _grouped(each: Sequence[Each], size: int) -> list[Sequence[Each]]:
    return [each[start : start + size] for start in range(0, len(each), size)]
