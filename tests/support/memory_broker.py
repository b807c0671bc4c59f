"""RabbitMQ in memory, as far as the bridge sees it: queues, consumers, confirms and dead letters.

    broker = MemoryBroker(Lane(queue="q", prefetch=2), retry_delays=[30])
    await broker.submit("q", Message(body=b"{}", message_id="one"))
    async with broker.session(on_delivery, on_reply, hold=60) as session:
        ...
    broker.elapse(30)  # its clock stands still otherwise

`tests.support.broker_suite` holds it to what a real RabbitMQ does.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from bridge.errors import (
    BrokerError,
    BrokerUnavailable,
    PublishFailed,
    QueueFull,
    QueueMissing,
)
from bridge.job.message import Delivery, Message
from bridge.rabbitmq.isolation import IsolatedPublisher, ReopeningPublisher, ResultPublisher
from bridge.rabbitmq.topology import (
    REPLIES,
    Kind,
    dead_exchange,
    dead_queue,
    ledger_queue,
    retry_queue,
)
from bridge.settings import Lane

OnDelivery = Callable[[Lane, Delivery], None]
OnReply = Callable[[bytes], None]
OnEntry = Callable[[int, bytes], None]


@dataclass(order=True, slots=True)
class Stored:
    """A message in a queue: those of a higher priority first, and then by their arrival."""

    rank: int
    order: int
    message: Message = field(compare=False)
    redelivered: bool = field(default=False, compare=False)
    due: float = field(default=0.0, compare=False)


@dataclass(eq=False)
class MemoryQueue:
    """A queue. With `delay` its messages go on to the queue `back_to` after that many seconds."""

    name: str
    priorities: int = 0
    delay: float | None = None
    back_to: str = ""
    most: int | None = None
    ready: list[Stored] = field(default_factory=list)
    consumers: deque[Consumer] = field(default_factory=deque)


@dataclass(eq=False)
class Consumer:
    """A session's consumer on one lane's queue."""

    session: MemorySession
    lane: Lane
    unsettled: dict[int, Stored] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        return len(self.unsettled) < self.lane.prefetch


class MemoryBroker:
    """A broker with these lanes.

    What a test may set: `refusal` is raised in place of a session, and `no_ledger` in place of a
    ledger. `silent` lets a session never be
    opened. While `confirms` is cleared, messages stand in their queues and nobody is told.
    `lost_confirms` publishes on the session's own publisher get no confirm, which ends the session.
    A message that `poison` holds for ends every connection that it is published on. With `mute`,
    nobody may publish to the reply exchange.
    """

    def __init__(
        self, *lanes: Lane, retry_delays: Iterable[int] = (1,), max_priority: int = 10
    ) -> None:
        self.lanes = lanes
        self.sessions: list[MemorySession] = []
        self.opened = 0
        self.hold = 0.0
        self.refusal: BrokerError | None = None
        self.no_ledger: BrokerError | None = None
        self.silent = False
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.lost_confirms = 0
        self.poison: Callable[[Message], bool] = lambda _: False
        self.acked: list[Message] = []
        self.mute = False
        self.leaders: dict[str, MemorySession] = {}
        self.told: list[tuple[str, Message]] = []
        """What the bridge published to the reply exchange, each with its routing key."""
        self.violations: list[str] = []
        """What no bridge may do: settle a delivery twice, or exceed its prefetch."""
        self._retry_delays = tuple(retry_delays)
        self._max_priority = max_priority
        self.ledgers: dict[str, list[bytes]] = {}
        self.readers: list[MemoryLedger] = []
        self._queues: dict[str, MemoryQueue] = {}
        self._order = 0
        self._now = 0.0
        self._declare()

    # The bridge's side.

    @asynccontextmanager
    async def session(
        self, on_delivery: OnDelivery, on_reply: OnReply, *, hold: float
    ) -> AsyncIterator[MemorySession]:
        """Consume all lanes; what is unsettled at the block's end goes back to the queues."""
        if self.silent:
            await asyncio.Event().wait()
        if self.refusal:
            raise self.refusal
        self._declare()
        self.hold = hold
        session = MemorySession(self, on_delivery, on_reply)
        self.sessions.append(session)
        self.opened += 1
        for consumer in session.consumers:
            self._queues[consumer.lane.queue].consumers.append(consumer)
        self._dispatch()
        try:
            yield session
        finally:
            session.end("connection_closed", "the bridge closed it")
            self.sessions.remove(session)

    @asynccontextmanager
    async def ledger(
        self, queue: str, on_entry: OnEntry, *, window: float
    ) -> AsyncIterator[MemoryLedger]:
        """Read a lane's ledger from its beginning on: in memory nothing is older than `window`."""
        del window
        if self.no_ledger:
            raise self.no_ledger
        entries = self.ledgers.setdefault(ledger_queue(queue), [])
        reader = MemoryLedger(self, ledger_queue(queue), on_entry, empty=not entries)
        for offset, entry in enumerate(entries):
            on_entry(offset, entry)
        self.readers.append(reader)
        try:
            yield reader
        finally:
            reader.end("the bridge closed it")
            self.readers.remove(reader)

    def append(self, name: str, entry: bytes) -> None:
        """Add an entry to a ledger, and bring it to all that read it; nothing where it is gone."""
        entries = self.ledgers.get(name)
        if entries is None:
            return
        entries.append(entry)
        for reader in self.readers:
            if reader.name == name:
                reader.on_entry(len(entries) - 1, entry)

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Put a message into its queue and confirm it; raises as a real publisher does."""
        if self.poison(message):
            raise BrokerUnavailable("the connection was closed", blames_message=True)
        if exchange == REPLIES and self.mute:
            raise BrokerUnavailable("a publish was not confirmed: write access refused")
        if exchange == REPLIES:
            self.told.append((routing_key, message))
            self.reply(message.body)
            return
        queue = self._route(exchange, routing_key)
        if queue.most is not None and len(queue.ready) >= queue.most:
            raise QueueFull(f"the broker refused a message for {queue.name!r}")
        self._store(queue, message)
        await self.confirms.wait()

    # The test's side.

    async def submit(self, queue: str, message: Message) -> None:
        """Publish a message as a client does."""
        await self.publish(message, routing_key=queue)

    def put(self, queue: str, message: Message) -> None:
        """Have a message in a queue, whatever becomes of confirms."""
        self._store(self._queue(queue), message)

    def reply(self, body: bytes) -> None:
        """Publish a reply to the reply exchange."""
        for session in self.sessions:
            session.on_reply(body)

    def depth(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        return len(self._queue(queue).ready)

    def unsettled(self, queue: str) -> int:
        """How many messages of a queue its consumers hold."""
        consumers = [consumer for session in self.sessions for consumer in session.consumers]
        return sum(len(each.unsettled) for each in consumers if each.lane.queue == queue)

    def messages(self, queue: str) -> list[Message]:
        """The messages that are ready in a queue, in their order."""
        return [stored.message for stored in self._queue(queue).ready]

    def take(self, queue: str) -> Message:
        """The first message of a queue, taken out of it."""
        return self._queue(queue).ready.pop(0).message

    def elapse(self, seconds: float) -> None:
        """Let time pass: messages whose delay is over go on."""
        self._now += seconds
        for queue in list(self._queues.values()):
            due = [stored for stored in queue.ready if queue.back_to and stored.due <= self._now]
            for stored in due:
                queue.ready.remove(stored)
                self._store(self._queue(queue.back_to), stored.message)

    def cut(self, cause: str = "connection_closed") -> None:
        """End every session and every ledger's reader, as a broken network does."""
        for session in list(self.sessions):
            session.end(cause, "cut by the test")
        self.cut_ledgers()

    def cut_ledgers(self) -> None:
        """End every ledger's reader."""
        for reader in self.readers:
            reader.end("cut by the test")

    def limit(self, queue: str, most: int | None) -> None:
        """Let a queue refuse what is published to it beyond that many messages."""
        self._queue(queue).most = most

    def delete(self, queue: str) -> None:
        """Delete a queue or a ledger, which ends the sessions that consume it."""
        if queue in self.ledgers:
            del self.ledgers[queue]
            self.cut_ledgers()
            return
        for consumer in list(self._queues.pop(queue).consumers):
            consumer.unsettled.clear()
            consumer.session.end("consumer_cancelled", f"queue {queue} was deleted")

    # Inside.

    def _declare(self) -> None:
        for lane in self.lanes:
            name = lane.queue
            self._add(MemoryQueue(name, priorities=self._max_priority))
            self._add(MemoryQueue(dead_queue(name)))
            for delay in self._retry_delays:
                self._add(MemoryQueue(retry_queue(name, delay), delay=delay, back_to=name))

    def _add(self, queue: MemoryQueue) -> None:
        self._queues.setdefault(queue.name, queue)

    def _queue(self, name: str) -> MemoryQueue:
        if name not in self._queues:
            raise QueueMissing(name)
        return self._queues[name]

    def _route(self, exchange: str, routing_key: str) -> MemoryQueue:
        queue = None
        if exchange in ("", routing_key):
            queue = self._queues.get(routing_key)
        for lane in self.lanes:
            if exchange == dead_exchange(lane.queue):
                queue = self._queues.get(dead_queue(lane.queue))
        if queue is None:
            raise PublishFailed(f"no queue takes {routing_key!r} of exchange {exchange!r}")
        return queue

    def _store(self, queue: MemoryQueue, message: Message) -> None:
        self._order += 1
        priority = min(message.priority or 0, queue.priorities)
        due = self._now + (queue.delay or 0.0)
        insort(queue.ready, Stored(-priority, self._order, message, due=due))
        self._dispatch()

    def _dispatch(self) -> None:
        """Deliver what is ready to consumers with room, one after the other in turn."""
        for queue in self._queues.values():
            while queue.ready:
                consumer = next((each for each in queue.consumers if each.has_room), None)
                if consumer is None:
                    break
                queue.consumers.remove(consumer)
                queue.consumers.append(consumer)
                consumer.session.deliver(consumer, queue.ready.pop(0))

    def settle(self, consumer: Consumer, tag: int, *, reject: bool) -> None:
        """Take note of an ack or a reject."""
        stored = consumer.unsettled.pop(tag, None)
        if stored is None:
            self.violations.append(f"delivery {tag} was settled twice")
            raise AssertionError(self.violations[-1])
        if reject:
            headers = {**stored.message.headers, "x-first-death-reason": "rejected"}
            dead = replace(stored.message, headers=headers)
            self._store(self._queue(dead_queue(consumer.lane.queue)), dead)
        else:
            self.acked.append(stored.message)
        self._dispatch()

    def take_back(self, consumer: Consumer, *, stopped: bool = False) -> None:
        """Deliver to a consumer no more; what it holds goes back to its place in the queue, unless
        it may still settle that."""
        queue = self._queues.get(consumer.lane.queue)
        if queue is None:
            return
        if consumer in queue.consumers:
            queue.consumers.remove(consumer)
        if not stopped:
            for stored in consumer.unsettled.values():
                insort(queue.ready, replace(stored, redelivered=True))
            consumer.unsettled.clear()
        self._dispatch()


class MemorySession:
    """A session with the broker, as `bridge.consume.ports.SessionPort` has it."""

    version = "4.3.0"

    def __init__(self, broker: MemoryBroker, on_delivery: OnDelivery, on_reply: OnReply) -> None:
        self.on_reply = on_reply
        self.kinds: Mapping[str, Kind] = {lane.queue: "quorum" for lane in broker.lanes}
        self.consumers = [Consumer(self, lane) for lane in broker.lanes]
        self.publisher = MemoryPublisher(broker, self)
        alone = ReopeningPublisher(partial(_line, broker))
        self.isolated = IsolatedPublisher(alone, pause=0.0)
        self.results = ResultPublisher(ReopeningPublisher(partial(_line, broker)), self.isolated)
        self.over_a_publish = False
        self._broker = broker
        self._on_delivery = on_delivery
        self._ended: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self._tags = 0

    @property
    def over(self) -> bool:
        return self._ended.done()

    async def ended(self) -> tuple[str, str]:
        """Wait for the session's end; returns the cause and a line."""
        return await asyncio.shield(self._ended)

    @asynccontextmanager
    async def leading(self, name: str) -> AsyncIterator[Line | None]:
        """Lead in the matter of that name, unless another session does."""
        if self.over:
            raise BrokerUnavailable("the connection was lost")
        if name in self._broker.leaders:
            yield None
            return
        self._broker.leaders[name] = self
        try:
            yield Line(self._broker)
        finally:
            self.lead_no_more()

    def lead_no_more(self) -> None:
        """Give up what it leads in."""
        for name in [name for name, held_by in self._broker.leaders.items() if held_by is self]:
            del self._broker.leaders[name]

    async def stop_consuming(self) -> None:
        """Take no more deliveries."""
        for consumer in self.consumers:
            self._broker.take_back(consumer, stopped=True)

    def end(self, cause: str, why: str) -> None:
        """Declare it over: the broker delivers again what is unsettled."""
        if not self.over:
            self._ended.set_result((cause, why))
        self.lead_no_more()
        for consumer in self.consumers:
            self._broker.take_back(consumer)

    def deliver(self, consumer: Consumer, stored: Stored) -> None:
        """Hand a message over."""
        self._tags += 1
        tag = self._tags
        consumer.unsettled[tag] = stored
        if len(consumer.unsettled) > consumer.lane.prefetch:
            self._broker.violations.append("a consumer holds more than its prefetch")

        async def settle(*, reject: bool) -> None:
            if self.over:
                raise BrokerUnavailable("the settlement could not be sent")
            self._broker.settle(consumer, tag, reject=reject)

        delivery = Delivery(
            message=stored.message,
            lane=consumer.lane.queue,
            redelivered=stored.redelivered,
            ack=partial(settle, reject=False),
            reject=partial(settle, reject=True),
        )
        self._on_delivery(consumer.lane, delivery)


class MemoryLedger:
    """A reader of a ledger, as `bridge.consume.ports.LedgerPort` has it."""

    def __init__(self, broker: MemoryBroker, name: str, on_entry: OnEntry, *, empty: bool) -> None:
        self.name = name
        self.on_entry = on_entry
        self.empty = empty
        self._broker = broker
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def append(self, entry: bytes) -> None:
        """Write an entry, which all readers get in a moment."""
        if self._ended.done():
            raise BrokerUnavailable("the ledger is away")
        asyncio.get_running_loop().call_soon(self._broker.append, self.name, entry)

    async def ended(self) -> str:
        """Wait until it is lost; returns why."""
        return await asyncio.shield(self._ended)

    def end(self, why: str) -> None:
        """Give it up."""
        if not self._ended.done():
            self._ended.set_result(why)


class MemoryPublisher:
    """The publisher of a session, whose failure to reach a queue ends it."""

    def __init__(self, broker: MemoryBroker, session: MemorySession) -> None:
        self._broker = broker
        self._session = session

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish and wait for the confirm."""
        if self._session.over:
            raise BrokerUnavailable("a publish was not confirmed: the channel is closed")
        try:
            await self._broker.publish(message, exchange=exchange, routing_key=routing_key)
        except QueueFull:
            raise
        except PublishFailed as error:
            self._session.end("channel_closed", str(error))
            raise
        except BrokerUnavailable as error:
            self._session.over_a_publish = error.blames_message
            self._session.end("connection_closed", str(error))
            raise
        if self._broker.lost_confirms:
            self._broker.lost_confirms -= 1
            self._session.end("connection_closed", "no confirm came")
            raise BrokerUnavailable("a publish was not confirmed: no confirm came")


class Line:
    """A publisher with a connection of its own."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        await self._broker.publish(message, exchange=exchange, routing_key=routing_key)

    async def close(self) -> None:
        """There is nothing to close."""


async def _line(broker: MemoryBroker) -> Line:
    return Line(broker)
