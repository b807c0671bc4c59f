"""Looks at RabbitMQ over AMQP, without changing anything there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from bridge.rabbitmq import topology
from bridge.rabbitmq.connection import announced_version

OWN_QUEUES = "amq.gen-*"
"""RabbitMQ's names for queues that belong to one connection."""

Right = Literal["configure", "write", "read"]


@dataclass(frozen=True, slots=True)
class Depth:
    """The number of ready messages and of consumers of a queue."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class DeclareResult:
    """Whether a queue or an exchange exists, and what differs from the plan, in the broker's
    words.
    """

    exists: bool
    differs: str | None = None
    of_before: bool = False
    """It is as RabbitMQ 3 or an earlier bridge made it (`topology`), which is no difference."""


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """A right that the user lacks, and on what."""

    right: Right
    on: str


class Inspector:
    """Looks, on a connection of `CommandSession.inspector`. Missing rights are noted in
    `refused`.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.refused: set[Refusal] = set()

    @property
    def version(self) -> str:
        """The broker's version as it announced it."""
        return announced_version(self._connection)

    async def depth(self, queue: str) -> Depth | None:
        """A queue's depth, or None where there is none of that name."""
        try:
            async with self._connection.channel() as channel:
                declared = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelNotFoundEntity:
            return None
        return Depth(declared.message_count or 0, declared.consumer_count or 0)

    async def check(self, thing: topology.Queue | topology.Exchange) -> DeclareResult:
        """Whether a queue or an exchange exists as planned: an existing one is declared once more,
        which changes nothing.

        A user who may not configure it does not learn what differs.
        """
        try:
            await self._declare(thing, passive=True)
            await self._declare(thing, passive=False)
        except ChannelNotFoundEntity:
            return DeclareResult(exists=False)
        except ChannelPreconditionFailed as error:
            if thing.of_before != thing and await self._matches(thing.of_before):
                return DeclareResult(exists=True, of_before=True)
            return DeclareResult(exists=True, differs=" ".join(str(error).split()))
        except ChannelAccessRefused:
            self.refused.add(Refusal("configure", thing.name))
        return DeclareResult(exists=True)

    async def try_rights(self, name: str) -> None:
        """Note whether the user may write to and read from a queue and the exchange of the same
        name.

        Removes a binding that doesn't exist, which needs both rights and is no error. If the queue
        or the exchange is missing, nothing is noted.
        """
        try:
            async with self._connection.channel() as channel:
                raw = await channel.get_underlay_channel()
                await raw.queue_unbind(
                    queue=name, exchange=name, routing_key=f"none-{uuid.uuid4().hex}"
                )
        except ChannelAccessRefused as error:
            right: Right = "read" if _on_exchange(error) else "write"
            self.refused.add(Refusal(right, name))
        except ChannelNotFoundEntity:
            pass

    async def try_publishing(self) -> None:
        """Note whether the user may publish to queues by their names, and to the reply exchange.

        Declaring a queue whose dead letters go the same way needs that right too. Nothing is
        published: during an alarm RabbitMQ stops reading from a connection that did.
        """
        for exchange, name in (("", "amq.default"), (topology.REPLIES, topology.REPLIES)):
            try:
                async with self._connection.channel() as channel:
                    await channel.declare_queue(
                        exclusive=True,
                        auto_delete=True,
                        arguments={"x-dead-letter-exchange": exchange},
                    )
            except ChannelAccessRefused as error:
                if _on_exchange(error):
                    self.refused.add(Refusal("write", name))

    @asynccontextmanager
    async def replies(self, routing_key: str) -> AsyncIterator[asyncio.Queue[bytes] | None]:
        """Messages of the reply exchange, in a queue of our own as each replica has one.

        None where there is no such exchange, or where the user may not read from it.
        """
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(message: DeliveredMessage) -> None:
            arrived.put_nowait(message.body)

        async with self._connection.channel(publisher_confirms=False) as channel:
            raw = await channel.get_underlay_channel()
            needed: tuple[Right, str] = ("configure", OWN_QUEUES)
            try:
                queue = await channel.declare_queue(exclusive=True, auto_delete=True)
                needed = ("write", OWN_QUEUES)
                await queue.bind(topology.REPLIES, routing_key=routing_key)
                needed = ("read", OWN_QUEUES)
                await raw.basic_consume(queue.name, take, no_ack=True)
            except ChannelAccessRefused as error:
                if _on_exchange(error):
                    needed = ("read", topology.REPLIES)
                self.refused.add(Refusal(*needed))
            except ChannelNotFoundEntity:
                pass
            yield None if raw.is_closed else arrived

    async def _matches(self, thing: topology.Queue | topology.Exchange) -> bool:
        try:
            await self._declare(thing, passive=False)
        except ChannelPreconditionFailed:
            return False
        return True

    async def _declare(self, thing: topology.Queue | topology.Exchange, *, passive: bool) -> None:
        arguments = None if passive else dict(thing.arguments)
        async with self._connection.channel() as channel:
            if isinstance(thing, topology.Exchange):
                await channel.declare_exchange(
                    thing.name, thing.type, durable=True, passive=passive, arguments=arguments
                )
            else:
                await channel.declare_queue(
                    thing.name, durable=True, passive=passive, arguments=arguments
                )


def _on_exchange(error: ChannelAccessRefused) -> bool:
    """Whether the right that is missing is on an exchange, not on a queue."""
    return " to exchange " in str(error)
