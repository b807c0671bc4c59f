"""Publishers beside the session, on connections whose end costs no delivery.

RabbitMQ can close a connection over one message that is published on it, and with it goes
everything else that is under way there. So messages that others influence (results to a `reply_to`,
and suspected messages) have connections of their own. What failed there beside others is sent again
in isolation, where a failure is the message's own doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from tenacity import stop_after_attempt, wait_exponential

from bridge.errors import BrokerDenied, BrokerUnavailable, MessageRefused, PublishFailed
from bridge.job.message import Message
from bridge.retrying import retry

TRIES = 3
"""Failures in a row, in isolation, that prove a message's fault: a broker in trouble closes
connections over harmless messages, too."""

PAUSE = 0.2
"""Seconds before the second try; doubled before the third."""

RESULT_SECONDS = 45.0
"""Seconds that a result may take: longer than one publish waits for its confirm, so that a result
that fails beside another is sent again."""


class Line(Protocol):
    """A publisher with a connection of its own."""

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish with a confirm; raises as `bridge.rabbitmq.publisher.Publisher.publish` does."""

    async def close(self) -> None:
        """Close the connection."""


class ReopeningPublisher:
    """Publishes over a line that is opened for the first publish, and again after a failure."""

    def __init__(self, connect: Callable[[], Awaitable[Line]]) -> None:
        self._connect = connect
        self._opening = asyncio.Lock()
        self._line: Line | None = None

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish with a confirm; raises as `bridge.rabbitmq.publisher.Publisher.publish` does."""
        async with self._opening:
            if self._line is None:
                self._line = await self._connect()
            line = self._line
        try:
            await line.publish(message, exchange=exchange, routing_key=routing_key)
        except BrokerUnavailable:
            await self._drop(line)
            raise

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._line is not None:
            await self._drop(self._line)

    async def _drop(self, line: Line) -> None:
        """Stop using a line. If several publishes failed on it, the first one closes it."""
        if self._line is line:
            self._line = None
            await line.close()


class IsolatedPublisher:
    """Publishes one message at a time, so that it is clear over which one RabbitMQ closes the
    connection.
    """

    def __init__(self, line: ReopeningPublisher, *, pause: float = PAUSE) -> None:
        self._line = line
        self._pause = pause
        self._turn = asyncio.Lock()

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish with a confirm.

        Raises:
            MessageRefused: RabbitMQ closes the connection or the channel over it each time.
            PublishFailed: it was not confirmed. A lost connection costs nothing else here.
        """
        async with self._turn:
            try:
                await retry(
                    partial(
                        self._line.publish, message, exchange=exchange, routing_key=routing_key
                    ),
                    on=(BrokerUnavailable,),
                    stop=stop_after_attempt(TRIES),
                    wait=wait_exponential(multiplier=self._pause),
                )
            except BrokerUnavailable as error:
                if error.blames_message:
                    raise MessageRefused(
                        f"RabbitMQ closes the connection over it: {error}"
                    ) from error
                raise PublishFailed(str(error)) from error
            except BrokerDenied as error:
                # The broker let the session in, but one more connection can be too many.
                raise PublishFailed(str(error)) from error


class ResultPublisher:
    """Publishes results, many at once. A result that fails beside others is sent again in
    isolation, with the same id.
    """

    def __init__(
        self,
        line: ReopeningPublisher,
        isolated: IsolatedPublisher,
        *,
        patience: float = RESULT_SECONDS,
    ) -> None:
        self._line = line
        self._isolated = isolated
        self._patience = patience

    async def publish(self, message: Message, *, routing_key: str) -> None:
        """Publish with a confirm; raises as `IsolatedPublisher.publish` does, and `PublishFailed`
        after `patience` seconds.

        A recipient's queue that never confirms must hold up neither the delivery nor the next
        message in isolation.
        """
        try:
            async with asyncio.timeout(self._patience):
                try:
                    await self._line.publish(message, routing_key=routing_key)
                except BrokerUnavailable:
                    await self._isolated.publish(message, routing_key=routing_key)
        except TimeoutError as error:
            raise PublishFailed(f"not confirmed within {self._patience:g} s") from error
