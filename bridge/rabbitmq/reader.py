"""Queues whose messages are read and held, not consumed: what isn't settled goes back in the order
in which it came.

Messages are delivered to consumers of a small prefetch. Once its prefetch is used up by messages
that are only held, another one takes over, so that any number can be held while few bodies are in
memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource
from aiormq.tools import shield
from pamqp.commands import Basic, Queue

from bridge.errors import BridgeError, BrokerDenied, BrokerUnavailable, QueueInUse, QueueMissing
from bridge.job.message import Message
from bridge.rabbitmq.codec import to_message

Each = TypeVar("Each")

WINDOW = 256
"""Messages that a consumer may hold; at most twice as many bodies wait here to be looked at."""

ANSWER_TIMEOUT = 60.0
IDLE = 0.1
SETTLED_AT_ONCE = 16
"""RabbitMQ's channel keeps back acks for a quorum queue when 32 are under way, and drops them when
it ends (`rabbit_fifo_client`, its soft limit)."""

LOCK_EVERY = 0.2
RETURN_TIMEOUT = 3.0
RETURN_ANYWAY = 10.0
"""Seconds to give back all that is held where something else has ended the reading."""

LOOK_EVERY = 0.02


@dataclass(slots=True)
class Consumer:
    """One that messages were delivered to: by what name, and the tags of those that we still hold,
    in order.
    """

    name: str
    active: bool = False
    held: dict[int, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """By what a message that we hold is settled: its tag on the channel, and whose it was."""

    tag: int
    consumer: Consumer


@dataclass(frozen=True, slots=True)
class Held:
    """A message that we hold."""

    message: Message
    receipt: Receipt


class Desk:
    """One channel on which several queues are read; what is sent on it reaches the broker in that
    order.
    """

    def __init__(self, raw: RawChannel) -> None:
        self._raw = raw
        self._browsers: list[Browser] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, connection: AbstractConnection) -> AsyncIterator[Desk]:
        """A desk on that connection. At the end, whichever it is, everything that isn't settled
        goes back.
        """
        with _translated("a channel"):
            channel = await connection.channel(publisher_confirms=False)
            raw = await channel.get_underlay_channel()
            await raw.basic_qos(prefetch_count=WINDOW, timeout=ANSWER_TIMEOUT)
        desk = cls(raw)
        try:
            yield desk
        except (Exception, asyncio.CancelledError):
            # What is taken from a connection that closes goes back in another order, and as failed
            # deliveries.
            with suppress(BridgeError, TimeoutError):
                async with asyncio.timeout(RETURN_ANYWAY):
                    await desk.take_the_rest()
                    await desk.give_back()
            raise
        await desk.give_back()
        with _translated("a channel"):
            await channel.close()

    def browser(self, queue: str) -> Browser:
        """What reads that queue here."""
        browser = Browser(self._raw, queue)
        self._browsers.append(browser)
        return browser

    async def take_the_rest(self) -> None:
        """Take hold of what is not read yet of queues of which something is held.

        What is given back comes after what was given back before: a part of a queue would change
        places with the rest.
        """
        for browser in self._browsers:
            # What was asked for when that was cut off has come once another question is answered.
            while browser.begun and await browser.ready() and browser.holds:
                async for _ in browser.read():
                    pass

    async def give_back(self) -> None:
        """Give back all that is held, in the order in which it came.

        By nack: RabbitMQ would give back in another order, and count a failed delivery, what it
        takes from a channel that closes. One consumer's after the other's, since it keeps the order
        only within each; a few at once, since it mixes up those of more (see `SETTLED_AT_ONCE`),
        and done is what is there again.
        """
        for browser in self._browsers:
            await browser.stop()
        holding = [browser for browser in self._browsers if browser.holds]
        for group in _grouped(sorted(tag for browser in holding for tag in browser.last_tags)):
            expected = [await browser.ready() + browser.returned(group[-1]) for browser in holding]
            with _translated("a channel"):
                for tag in group:
                    await self._raw.basic_nack(tag, multiple=True, requeue=True)
            for browser, ready in zip(holding, expected, strict=True):
                await browser.await_ready(ready)
        with _translated("a channel"):
            await self._raw.basic_nack(0, multiple=True, requeue=True)


class Browser:
    """One queue that is read.

    Every method raises `QueueMissing`, `BrokerDenied` or `BrokerUnavailable`.
    """

    def __init__(self, raw: RawChannel, queue: str) -> None:
        self.queue = queue
        self._raw = raw
        self._consumers: list[Consumer] = []
        self._room = 0
        self.begun = False
        """Whether anything was read, or asked for."""
        self._arrived: asyncio.Queue[Held] = asyncio.Queue()

    async def others(self, patience: float = 0) -> int:
        """How many others consume or hold messages, after that time.

        A connection that has just ended counts for a moment longer. How many messages others hold,
        RabbitMQ tells in its management API alone.
        """
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            others = await self._count_others()
            if not others or asyncio.get_running_loop().time() > deadline:
                return others
            await asyncio.sleep(LOOK_EVERY)

    async def ready(self) -> int:
        """How many messages are there that nobody holds."""
        return (await self._declared()).message_count or 0

    async def read(self) -> AsyncIterator[Held]:
        """Every message that is ready now, once; later ones may stay unread.

        The first is asked for by itself: the answer comes when RabbitMQ has done what it had still
        to do in this queue. After a large give-back, 3.10 says for seconds that there's nothing.
        """
        self.begun = True
        if not await self._get():
            return
        left = 1 + await self.ready()
        while left > 0:
            await self._keep_reading(left)
            held = await self._next(IDLE)
            if held is not None:
                left -= 1
                yield held
            elif await self.ready() == 0 and self._arrived.empty():
                # What was under way when that count was made has come once another question is
                # answered.
                await self.ready()
                if self._arrived.empty():
                    return

    async def next(self) -> Held:
        """The next message, which must be on its way."""
        await self._keep_reading(1)
        held = await self._next(ANSWER_TIMEOUT)
        if held is None:
            raise BrokerUnavailable(
                f"RabbitMQ delivers nothing of {self.queue}, though there is something"
            )
        return held

    def arrived(self) -> list[Held]:
        """What is here and was not read yet."""
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    async def ack(self, receipts: Sequence[Receipt]) -> None:
        """Take messages away for good; returns when RabbitMQ has done so, on disk where the queue
        is a quorum queue.
        """
        await self._settle(receipts, self._raw.basic_ack)

    async def reject(self, receipts: Sequence[Receipt]) -> None:
        """Have RabbitMQ hand messages to the queue's dead-letter exchange; returns when that is
        certain to happen.
        """
        await self._settle(receipts, lambda tag: self._raw.basic_reject(tag, requeue=False))

    async def stop(self) -> None:
        """Take no more messages; those that are held stay so."""
        if self._consumers:
            await self.ready()  # and what was under way has come
        with _translated(self.queue):
            for consumer in self._consumers:
                if consumer.active:
                    await self._raw.basic_cancel(consumer.name, timeout=ANSWER_TIMEOUT)
                    consumer.active = False

    @property
    def holds(self) -> bool:
        """Whether any message of it is held."""
        return any(consumer.held for consumer in self._consumers)

    @property
    def last_tags(self) -> list[int]:
        """The last tag of each consumer that holds something."""
        return [next(reversed(consumer.held)) for consumer in self._consumers if consumer.held]

    def returned(self, tag: int) -> int:
        """Hold no longer what goes back up to that tag; says how many that are."""
        before = sum(len(consumer.held) for consumer in self._consumers)
        for consumer in self._consumers:
            if consumer.held and next(iter(consumer.held)) <= tag:
                consumer.held = {held: None for held in consumer.held if held > tag}
        return before - sum(len(consumer.held) for consumer in self._consumers)

    async def await_ready(self, expected: int) -> None:
        """Wait until there are so many, unless others take them."""
        ready, since = -1, 0.0
        while (now_ready := await self.ready()) < expected:
            now = asyncio.get_running_loop().time()
            if now_ready != ready:
                ready, since = now_ready, now
            elif now - since > RETURN_TIMEOUT:
                return
            await asyncio.sleep(LOOK_EVERY)

    async def _count_others(self) -> int:
        ours = sum(1 for consumer in self._consumers if consumer.held or consumer.active)
        return max(0, ((await self._declared()).consumer_count or 0) - ours)

    @shield  # a call that is cut off in the middle closes its channel
    async def _declared(self) -> Queue.DeclareOk:
        with _translated(self.queue):
            return await self._raw.queue_declare(self.queue, passive=True, timeout=ANSWER_TIMEOUT)

    async def _keep_reading(self, left: int) -> None:
        """Let another consumer take over when the last one can't take much more."""
        if self._room < WINDOW // 2 and self._arrived.qsize() < min(left, WINDOW):
            await self._consume()

    @shield
    async def _consume(self) -> None:
        consumer = Consumer(f"browse.{self.queue}.{len(self._consumers)}", active=True)
        self._consumers.append(consumer)
        self._room += WINDOW
        with _translated(self.queue):
            await self._raw.basic_consume(
                self.queue,
                partial(self._take, consumer),
                consumer_tag=consumer.name,
                timeout=ANSWER_TIMEOUT,
            )

    async def _take(self, consumer: Consumer, message: DeliveredMessage) -> None:
        assert message.delivery_tag is not None, "a delivery has a tag"
        consumer.held[message.delivery_tag] = None
        self._room -= consumer.active
        self._arrived.put_nowait(Held(to_message(message), Receipt(message.delivery_tag, consumer)))

    async def _next(self, timeout: float) -> Held | None:
        if not self._arrived.empty():
            return self._arrived.get_nowait()
        try:
            async with asyncio.timeout(timeout):
                return await self._arrived.get()
        except TimeoutError:
            return None

    async def _settle(
        self, receipts: Sequence[Receipt], send: Callable[[int], Awaitable[None]]
    ) -> None:
        with _translated(self.queue):
            for group in _grouped(receipts):
                for receipt in group:
                    await send(receipt.tag)
                await self._get()
                for receipt in group:
                    del receipt.consumer.held[receipt.tag]
                    self._room += receipt.consumer.active

    @shield
    async def _get(self) -> bool:
        """Ask for one message, and wait until what was sent before is done: RabbitMQ works through
        it in order.
        """
        with _translated(self.queue):
            message = await self._raw.basic_get(self.queue, timeout=ANSWER_TIMEOUT)
        if isinstance(message.delivery, Basic.GetEmpty):
            return False
        # For as long as it's held it counts as a consumer, which has no name.
        self._consumers.append(Consumer(""))
        await self._take(self._consumers[-1], message)
        return True


async def peek(connection: AbstractConnection, queue: str) -> int | None:
    """How many messages are ready in a queue, or None where there's no such queue; raises as a
    browser does.
    """
    try:
        with _translated(queue):
            async with connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                return (
                    await raw.queue_declare(queue, passive=True, timeout=ANSWER_TIMEOUT)
                ).message_count or 0
    except QueueMissing:
        return None


@asynccontextmanager
async def alone(
    connection: AbstractConnection, name: str, *, patience: float, needed: bool
) -> AsyncIterator[None]:
    """Keep out everybody else who asks for the same name, by an exclusive queue, which ends with
    its connection.

    A user who may not declare one does without, unless that is `needed`.

    Raises:
        QueueInUse: somebody else is there, and still was after `patience` seconds.
        BrokerDenied: it is needed, and the user may not.
    """
    deadline = asyncio.get_running_loop().time() + patience
    try:
        while not await _locked(connection, name):
            if asyncio.get_running_loop().time() > deadline:
                raise QueueInUse(
                    f"another command is at work there ({name}); try again when it has ended"
                )
            await asyncio.sleep(LOCK_EVERY)
    except BrokerDenied:
        if needed:
            raise
        yield
        return
    yield
    with _translated(name):
        async with connection.channel(publisher_confirms=False) as channel:
            await (await channel.get_underlay_channel()).queue_delete(name, timeout=ANSWER_TIMEOUT)


async def _locked(connection: AbstractConnection, name: str) -> bool:
    try:
        with _translated(name):
            async with connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                await raw.queue_declare(
                    name, exclusive=True, auto_delete=True, timeout=ANSWER_TIMEOUT
                )
    except QueueInUse:
        return False
    return True


def _grouped(each: Sequence[Each]) -> Iterable[Sequence[Each]]:
    return (each[start : start + SETTLED_AT_ONCE] for start in range(0, len(each), SETTLED_AT_ONCE))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ChannelNotFoundEntity as error:
        raise QueueMissing(
            f"RabbitMQ has no queue {what}: is BRIDGE_QUEUE right, and has a bridge run?"
        ) from error
    except ChannelAccessRefused as error:
        raise _denied(error) from error
    except ChannelLockedResource as error:
        raise QueueInUse(f"{what} is in use: {_why(error)}") from error
    except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
        raise BrokerUnavailable(f"the connection to RabbitMQ was lost: {_why(error)}") from error


def refused_rights(error: BaseException) -> BrokerDenied | None:
    """What an error is where a right that is missing led to it, as a publish on a channel tells
    it.
    """
    return _denied(error.__cause__) if isinstance(error.__cause__, ChannelAccessRefused) else None


def _denied(error: ChannelAccessRefused) -> BrokerDenied:
    return BrokerDenied(
        f"RabbitMQ refuses the user's rights: {_why(error)}; rabbitmqctl set_permissions gives them"
    )


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
