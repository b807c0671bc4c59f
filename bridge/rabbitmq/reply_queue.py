"""An exclusive queue for the results of jobs that were submitted here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage

from bridge.errors import BrokerUnavailable
from bridge.job.message import Message
from bridge.rabbitmq.codec import to_message
from bridge.rabbitmq.error_translation import reason


class ReplyQueue:
    """An exclusive queue for results; it lives as long as its connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()
        self._why = ""

    async def take(self) -> Message:
        """The next message, without a time limit.

        Raises:
            BrokerUnavailable: the queue is gone, and all messages that would have come with it.
        """
        message = await self._arrived.get()
        if message is None:
            self._arrived.put_nowait(None)
            raise BrokerUnavailable(f"the connection to RabbitMQ was lost: {self._why}")
        return message

    def put(self, message: Message) -> None:
        """Note a message that arrived."""
        self._arrived.put_nowait(message)

    def lose(self, why: str) -> None:
        """Note that the queue is gone; only the first cause counts."""
        self._why = self._why or why
        self._arrived.put_nowait(None)


@asynccontextmanager
async def opened(connection: AbstractConnection) -> AsyncIterator[ReplyQueue]:
    """A reply queue on a connection. Raises what aio-pika raises."""
    channel = await connection.channel(publisher_confirms=False)
    queue = await channel.declare_queue(exclusive=True, auto_delete=True)
    reply_queue = ReplyQueue(queue.name)
    channel.close_callbacks.add(lambda _, error: reply_queue.lose(reason(error)))
    connection.close_callbacks.add(lambda _, error: reply_queue.lose(reason(error)))
    raw = await channel.get_underlay_channel()
    raw.on_consumer_cancel_callbacks.add(
        lambda _: reply_queue.lose("the broker cancelled the consumer")
    )

    async def take(message: DeliveredMessage) -> None:
        reply_queue.put(to_message(message))

    await raw.basic_consume(queue.name, take, no_ack=True)
    yield reply_queue
