"""Queues in memory, like RabbitMQ's quorum queues in what a reader and a replay rely on.

Returned messages are served before all others, behind those that were returned earlier. A message
that a lost channel held counts as a failed delivery. Any operation can be made to fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from aio_pika.abc import AbstractConnection
from pamqp.commands import Basic

from bridge.errors import BrokerUnavailable
from bridge.job.message import Message
from bridge.rabbitmq.command_session import CommandSession
from bridge.rabbitmq.reader import QueueReader, ReaderLimits, opened

QUICK = ReaderLimits(page_messages=4, idle=0.001, poll=0, stalled=0.01)


@dataclass
class Stored:
    """A message in a queue, and how often its delivery has failed."""

    message: Message
    failures: int = 0


@dataclass
class MemoryQueue:
    """A queue; `rejected_to` is where its rejected messages go."""

    returned: list[Stored] = field(default_factory=list)
    fresh: list[Stored] = field(default_factory=list)
    rejected_to: MemoryQueue | None = None
    consumers: int = 0

    @property
    def messages(self) -> list[Message]:
        return [stored.message for stored in (*self.returned, *self.fresh)]

    @property
    def ids(self) -> list[str | None]:
        return [message.message_id for message in self.messages]

    def put(self, *messages: Message) -> None:
        self.fresh += [Stored(message) for message in messages]

    def pop(self) -> Stored | None:
        for waiting in (self.returned, self.fresh):
            if waiting:
                return waiting.pop(0)
        return None


@dataclass
class MemoryBroker:
    """The queues, what was done with them, and when the connection breaks."""

    queues: dict[str, MemoryQueue] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    operations_left: int | None = None
    done_before_the_break: bool = False

    def operate(self, what: str, do: Callable[[], Any]) -> Any:
        """Do something, unless the connection breaks now; it may break just after."""
        if self.operations_left is not None:
            self.operations_left -= 1
            if self.operations_left < 0:
                if self.done_before_the_break and self.operations_left == -1:
                    do()
                raise ConnectionError("cut off")
        self.log.append(what)
        return do()


class MemoryChannel:
    """What `bridge.rabbitmq.reader` uses of a channel."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._unsettled: dict[int, tuple[MemoryQueue, Stored]] = {}
        self._last_tag = 0
        self._prefetch = 0

    async def get_underlay_channel(self) -> MemoryChannel:
        return self

    async def queue_declare(self, name: str, **_: object) -> Any:
        queue = self._broker.queues[name]
        return SimpleNamespace(message_count=len(queue.messages), consumer_count=queue.consumers)

    async def basic_qos(self, *, prefetch_count: int, **_: object) -> None:
        self._prefetch = prefetch_count

    async def basic_get(self, name: str, **_: object) -> Any:
        delivered = self._do(f"get {name}", lambda: self._deliver(name))
        return delivered or SimpleNamespace(delivery=Basic.GetEmpty())

    async def basic_consume(
        self, name: str, take: Callable[[Any], Awaitable[None]], **_: object
    ) -> None:
        deliver = lambda: [self._deliver(name) for _ in range(self._prefetch)]  # noqa: E731
        for message in self._do(f"consume {name}", deliver):
            if message is not None:
                await take(message)

    async def basic_cancel(self, *_: object, **__: object) -> None:
        self._do("cancel", lambda: None)

    async def basic_ack(self, tag: int) -> None:
        self._do(f"ack {self._name(tag)}", lambda: self._unsettled.pop(tag))

    async def basic_reject(self, tag: int, *, requeue: bool) -> None:
        assert not requeue
        self._do(f"reject {self._name(tag)}", lambda: self._reject(tag))

    async def basic_nack(self, tag: int, *, multiple: bool, requeue: bool) -> None:
        assert (multiple, requeue) == (True, True)
        self._do(f"nack {self._name(tag)}", lambda: self._give_back(tag))

    async def close(self) -> None:
        assert not self._unsettled, "what a channel holds when it closes counts as failed"

    def lose(self) -> None:
        """The channel is gone: RabbitMQ takes everything back."""
        for queue, stored in self._unsettled.values():
            stored.failures += 1
            queue.returned.append(stored)
        self._unsettled.clear()

    def _do(self, what: str, do: Callable[[], Any]) -> Any:
        return self._broker.operate(what, do)

    def _name(self, tag: int) -> str:
        assert tag in self._unsettled, "RabbitMQ closes the channel over an unknown tag"
        queue, _ = self._unsettled[tag]
        return next(name for name, each in self._broker.queues.items() if each is queue)

    def _deliver(self, name: str) -> Any:
        queue = self._broker.queues[name]
        stored = queue.pop()
        if stored is None:
            return None
        self._last_tag += 1
        self._unsettled[self._last_tag] = queue, stored
        message = stored.message
        return SimpleNamespace(
            delivery=Basic.Deliver(),
            delivery_tag=self._last_tag,
            body=message.body,
            header=SimpleNamespace(properties=message),
            exchange=message.exchange,
            routing_key=message.routing_key,
        )

    def _reject(self, tag: int) -> None:
        queue, stored = self._unsettled.pop(tag)
        assert queue.rejected_to is not None
        queue.rejected_to.put(stored.message)

    def _give_back(self, up_to: int) -> None:
        for tag in [tag for tag in self._unsettled if tag <= up_to]:
            queue, stored = self._unsettled.pop(tag)
            queue.returned.append(stored)


class MemoryConnection:
    """What `bridge.rabbitmq.reader` uses of a connection. `lose` ends it."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._channels: list[MemoryChannel] = []

    @property
    def typed(self) -> AbstractConnection:
        return cast("AbstractConnection", self)

    async def channel(self, **_: object) -> MemoryChannel:
        self._channels.append(MemoryChannel(self._broker))
        return self._channels[-1]

    def lose(self) -> None:
        for channel in self._channels:
            channel.lose()


class MemorySession:
    """What dead letters use of a `CommandSession`."""

    version = (4, 3)

    def __init__(self, broker: MemoryBroker, limits: ReaderLimits = QUICK) -> None:
        self._broker = broker
        self._limits = limits
        self.connection = MemoryConnection(broker)
        self.publisher = self

    @property
    def typed(self) -> CommandSession:
        return cast("CommandSession", self)

    async def publish(self, message: Message, *, routing_key: str) -> None:
        put = partial(self._broker.queues[routing_key].put, message)
        try:
            self._broker.operate(f"publish {routing_key}", put)
        except ConnectionError as error:
            raise BrokerUnavailable(str(error)) from error

    async def ready(self, queue: str) -> int | None:
        found = self._broker.queues.get(queue)
        return None if found is None else len(found.messages)

    async def declare_replay(self, queue: str) -> None:
        lane = self._broker.queues.setdefault(queue, MemoryQueue())
        self._broker.queues[f"{queue}.replay"] = MemoryQueue(rejected_to=lane)

    @asynccontextmanager
    async def lock(self, *_: object, **__: object) -> AsyncIterator[None]:
        yield

    def reader(self, queue: str) -> AbstractAsyncContextManager[QueueReader]:
        return opened(self.connection.typed, queue, self._limits)
