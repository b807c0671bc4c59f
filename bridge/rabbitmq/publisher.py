"""Publishes with confirms and `mandatory`: RabbitMQ confirms even what no queue takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq.abc import AbstractChannel as RawChannel

from bridge.aio import KeyedLock
from bridge.errors import BrokerError, BrokerUnavailable, PublishFailed, QueueFull
from bridge.job.message import OWN_REPLIES, Message
from bridge.rabbitmq.connection import close, frame_max, version_of
from bridge.rabbitmq.content_header import properties_of
from bridge.rabbitmq.error_translation import BROKEN, CAUSED_BY_A_FRAME, closed_named, reason
from bridge.text import short

CONFIRM_TIMEOUT = 30.0

DIRECT_REPLIES_HAVE_A_QUEUE = (4, 2)
"""Earlier versions return a message to a direct reply-to as unroutable, and deliver it all the
same."""


class Publisher:
    """Publishes with confirms: when `publish` returns, the message is in a queue, and on disk where
    the queue is durable.

    `lost` is called when the channel, or what it publishes to, can't be relied on any more.
    """

    def __init__(
        self, connection: AbstractConnection, *, lost: Callable[[BrokerError], None]
    ) -> None:
        self._connection = connection
        self._lost = lost
        self._ids = KeyedLock()
        self._opening = asyncio.Lock()
        self._raw: RawChannel | None = None

    async def open(self) -> Publisher:
        """Open the channel ahead of the first publish."""
        await self._channel()
        return self

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish and wait for the broker's confirm. Headers that don't fit into a frame are left
        out and named.

        Raises:
            PublishFailed: no queue took it, or the queue refused it (`QueueFull`). It is not kept.
            BrokerUnavailable: the channel is gone or the confirm never came. The message may or may
            not be in a queue.
        """
        # aiormq matches a returned message with its publish by message id, so two messages with one
        # id must not be under way at once.
        async with self._ids.hold(message.message_id or object()):
            try:
                with closed_named():
                    raw = await self._channel()
                    await raw.basic_publish(
                        message.body,
                        exchange=exchange,
                        routing_key=short(routing_key),
                        properties=properties_of(message, frame_max(self._connection)),
                        mandatory=not self._returned_although_delivered(exchange, routing_key),
                        timeout=CONFIRM_TIMEOUT,
                    )
            except PublishError as error:
                # Somebody removed a queue or a binding; a new session declares them again.
                failed = PublishFailed(f"no queue takes {routing_key!r} of exchange {exchange!r}")
                self._lost(failed)
                raise failed from error
            except DeliveryError as error:
                raise QueueFull(
                    f"the broker refused a message for {exchange or routing_key!r}; is "
                    "a queue full?"
                ) from error
            except BROKEN as error:
                lost = BrokerUnavailable(
                    f"a publish was not confirmed: {reason(error)}",
                    blames_message=isinstance(error, CAUSED_BY_A_FRAME),
                )
                self._lost(lost)
                raise lost from error

    async def close(self) -> None:
        """Close the connection."""
        await close(self._connection)

    def _returned_although_delivered(self, exchange: str, routing_key: str) -> bool:
        """Whether the broker returns a mandatory message that it delivers."""
        if exchange or not routing_key.startswith(f"{OWN_REPLIES}."):
            return False
        return version_of(self._connection) < DIRECT_REPLIES_HAVE_A_QUEUE

    async def _channel(self) -> RawChannel:
        async with self._opening:
            if self._raw is None:
                channel = await self._connection.channel(on_return_raises=True)
                self._raw = await channel.get_underlay_channel()
            return self._raw
