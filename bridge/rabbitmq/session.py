"""A session: consumers on all lanes and on the reply exchange, and the publishers beside them.

A session is connect, declare, consume. Whatever ends one part of it (a channel, a connection, a
consumer that the broker cancels) ends all of it, and a new session starts from nothing: no delivery
outlives the channel that brought it, and the broker delivers again what was not settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Literal

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage

from bridge.errors import BrokerError, BrokerUnavailable
from bridge.job.message import Delivery
from bridge.rabbitmq import declaration, lock
from bridge.rabbitmq.codec import to_message
from bridge.rabbitmq.connection import parse_version
from bridge.rabbitmq.error_translation import BROKEN, CAUSED_BY_A_FRAME, closed_named, reason
from bridge.rabbitmq.isolation import IsolatedPublisher, ResultPublisher
from bridge.rabbitmq.publisher import Publisher
from bridge.rabbitmq.topology import Kind, Version
from bridge.settings import Lane

CANCEL_TIMEOUT = 5.0

Cause = Literal["connection_closed", "channel_closed", "consumer_cancelled"]
OnDelivery = Callable[[Lane, Delivery], None]
OnReply = Callable[[bytes], None]


class Session:
    """Consumers on all lanes, until a part of it breaks."""

    def __init__(
        self,
        version: str,
        kinds: Mapping[str, Kind],
        consuming: AbstractConnection,
        publishing: AbstractConnection,
        *,
        results: ResultPublisher,
        isolated: IsolatedPublisher,
        publisher_apart: Callable[[str], Awaitable[Publisher]],
    ) -> None:
        self.version = version
        self.kinds = kinds
        self._consuming = consuming
        self._publisher_apart = publisher_apart
        self.publisher = Publisher(publishing, lost=self._publisher_lost)
        self.results = results
        self.isolated = isolated
        self.over_a_publish = False
        """Whether RabbitMQ ended the session over something that was published."""
        self._ended: asyncio.Future[tuple[Cause, str]] = asyncio.get_running_loop().create_future()
        self._consumers: list[tuple[RawChannel, str]] = []

    async def ended(self) -> tuple[Cause, str]:
        """Wait until the session has ended; returns the cause as a word and as a line."""
        return await asyncio.shield(self._ended)

    async def consume(
        self,
        lane: Lane,
        on_delivery: OnDelivery,
        *,
        tag: str,
        hold: float,
    ) -> None:
        """Consume a lane. `hold` is how many seconds a delivery may stay unsettled."""
        channel = await self._watched_channel()
        await channel.set_qos(prefetch_count=lane.prefetch)
        raw = await channel.get_underlay_channel()

        async def take(message: DeliveredMessage) -> None:
            on_delivery(lane, self._to_delivery(message, lane.queue, raw))

        arguments = _consumer_arguments(parse_version(self.version), self.kinds[lane.queue], hold)
        self._consumers.append((raw, tag))
        await raw.basic_consume(lane.queue, take, consumer_tag=tag, arguments=arguments)

    async def consume_replies(self, on_reply: OnReply) -> None:
        """Consume what is published to the reply exchange."""
        channel = await self._watched_channel()
        queue = await declaration.declare_replies(channel, "")
        raw = await channel.get_underlay_channel()

        async def take(message: DeliveredMessage) -> None:
            on_reply(message.body)

        # Without acks: no single reply matters, and the sweep finds what a lost one would have
        # said.
        await raw.basic_consume(queue, take, no_ack=True)

    @asynccontextmanager
    async def leading(self, name: str) -> AsyncIterator[Publisher | None]:
        """Hold an exclusive queue of that name; gives a publisher with a connection of its own, or
        None where another session holds the queue.

        What the publisher meets with ends only its own connection.

        Raises:
            BrokerUnavailable, BrokerDenied: that can't be found out, or there is no connection.
        """
        async with AsyncExitStack() as stack:
            if not await stack.enter_async_context(lock.held_if_free(self._consuming, name)):
                yield None
                return
            publisher = await self._publisher_apart("reporter")
            stack.push_async_callback(publisher.close)
            yield publisher

    async def stop_consuming(self) -> None:
        """Take no more deliveries. Those that have arrived can still be settled."""
        for raw, tag in self._consumers:
            try:
                with closed_named():
                    await raw.basic_cancel(tag, timeout=CANCEL_TIMEOUT)
            except BROKEN:
                continue

    def publishing_ended(self, error: object) -> None:
        """End the session because the connection for publishing has ended."""
        if isinstance(error, CAUSED_BY_A_FRAME):
            self.over_a_publish = True
        self.end("connection_closed", reason(error))

    def end(self, cause: Cause, why: str) -> None:
        """End the session; only the first cause counts."""
        if not self._ended.done():
            self._ended.set_result((cause, why))

    def _publisher_lost(self, error: BrokerError) -> None:
        if isinstance(error, BrokerUnavailable) and error.blames_message:
            self.over_a_publish = True
        self.end("channel_closed", str(error))

    async def _watched_channel(self) -> AbstractChannel:
        """A channel whose end is the session's end."""
        channel = await self._consuming.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda _, error: self.end("channel_closed", reason(error)))
        raw = await channel.get_underlay_channel()
        # Nothing else reports that the broker cancels a consumer, which would stay silent for ever.
        raw.on_consumer_cancel_callbacks.add(
            lambda frame: self.end(
                "consumer_cancelled", f"the broker cancelled consumer {frame.consumer_tag}"
            )
        )
        return channel

    def _to_delivery(self, message: DeliveredMessage, lane: str, raw: RawChannel) -> Delivery:
        tag = message.delivery_tag
        assert tag is not None, "a delivery has a tag"

        async def settle(send: Callable[[], Awaitable[None]]) -> None:
            try:
                with closed_named():
                    await send()
            except CONNECTION_EXCEPTIONS as error:
                self.end("channel_closed", f"a settlement could not be sent: {reason(error)}")
                raise BrokerUnavailable(
                    f"the settlement could not be sent: {reason(error)}"
                ) from error

        return Delivery(
            message=to_message(message),
            lane=lane,
            redelivered=bool(message.redelivered),
            ack=partial(settle, partial(raw.basic_ack, tag)),
            reject=partial(settle, partial(raw.basic_reject, tag, requeue=False)),
        )


def _consumer_arguments(version: Version, kind: Kind, hold: float) -> dict[str, Any] | None:
    """The arguments that let a consumer keep deliveries unsettled for `hold` seconds.

    Only quorum queues from 4.3 on accept them; elsewhere the operator sets the limit.
    """
    if version >= (4, 3) and kind == "quorum":
        return {"x-consumer-timeout": int(hold * 1000)}
    return None
