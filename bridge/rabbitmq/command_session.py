"""A connection for one command: everything that commands do at RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)

from aio_pika.abc import AbstractConnection

from bridge.rabbitmq import alarms, declaration, lock, reader, reply_queue, topology
from bridge.rabbitmq.alarms import Alarm
from bridge.rabbitmq.connection import version_of
from bridge.rabbitmq.error_translation import translated
from bridge.rabbitmq.inspector import Inspector
from bridge.rabbitmq.publisher import Publisher
from bridge.rabbitmq.reader import QueueReader
from bridge.rabbitmq.reply_queue import ReplyQueue
from bridge.rabbitmq.topology import Kind, Version
from bridge.settings import BrokerSettings


class CommandSession:
    """One connection with what a command needs on it.

    Every method raises `BrokerUnavailable` or `BrokerDenied` where RabbitMQ does not do it.
    """

    def __init__(self, connection: AbstractConnection, settings: BrokerSettings) -> None:
        self._connection = connection
        self._settings = settings
        self.publisher = Publisher(connection, lost=lambda _: None)

    @property
    def version(self) -> Version:
        """The broker's major and minor version."""
        return version_of(self._connection)

    @contextmanager
    def alarms_heard(self, say: Callable[[str], None]) -> Iterator[Alarm]:
        """Report at once, through `say`, when an alarm keeps this connection waiting and when it is
        over.
        """
        with alarms.heard(self._connection, say) as alarm:
            yield alarm

    async def declare(self) -> dict[str, Kind]:
        """Declare every lane; returns the type of each lane's queue.

        Raises:
            TopologyMismatch: a queue or an exchange exists with other arguments.
        """
        with translated(self._settings):
            return await declaration.declare_lanes(self._connection, self._settings)

    async def ensure(self) -> None:
        """Declare the lanes that don't exist; raises as `declare` does."""
        with translated(self._settings):
            await declaration.declare_missing_lanes(self._connection, self._settings)

    async def declare_replay(self, queue: str) -> None:
        """Declare the replay queue of a lane; raises as `declare` does."""
        with translated(self._settings):
            planned = topology.plan_replay(queue, version=self.version)
            await declaration.declare_one(self._connection, planned)

    @asynccontextmanager
    async def reply_queue(self) -> AsyncIterator[ReplyQueue]:
        """An exclusive queue for results."""
        async with AsyncExitStack() as stack:
            with translated(self._settings):
                opened = await stack.enter_async_context(reply_queue.opened(self._connection))
            yield opened

    @asynccontextmanager
    async def inspector(self) -> AsyncIterator[Inspector]:
        """An inspector; errors on the connection are translated within the context."""
        with translated(self._settings):
            yield Inspector(self._connection)

    def reader(self, queue: str) -> AbstractAsyncContextManager[QueueReader]:
        """A reader of a queue, which gives back what it holds when the context ends."""
        return reader.opened(self._connection, queue)

    async def ready(self, queue: str) -> int | None:
        """The number of ready messages in a queue, or None where there is no such queue."""
        return await reader.count_ready(self._connection, queue)

    def lock(
        self, name: str, *, patience: float, required: bool
    ) -> AbstractAsyncContextManager[None]:
        """Exclude every other command that asks for the same lock; see `lock.exclusive`."""
        return lock.exclusive(self._connection, name, patience=patience, required=required)
