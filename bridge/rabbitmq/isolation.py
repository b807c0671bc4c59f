"""Publishing beside the session: over connections whose end costs no delivery.

RabbitMQ can close a connection over one message that is published on it, and with it goes
everything else that is under way there. So what others have a say in (results to a `reply_to`, and
messages that are suspected) goes over connections of its own; and what failed there beside others
is sent again alone, where its failure is its own doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from bridge.errors import BrokerDenied, BrokerUnavailable, MessageRefused, PublishFailed
from bridge.job.message import Message

TRIES = 3
"""So often in a row a message has to fail alone: a broker in trouble closes connections over
harmless ones, too."""

PAUSE = 0.2

RESULT_SECONDS = 45.0
"""How long a result may take: longer than one publish waits for its confirm, so that one which
fails beside another is sent again."""


class Line(Protocol):
    """A publisher with a connection of its own."""

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish by confirm; raises as `bridge.rabbitmq.publisher.Publisher.publish` does."""

    async def close(self) -> None:
        """End the connection."""


class ReopeningPublisher:
    """Publishes over a line that is opened when it is needed first, and anew once it failed."""

    def __init__(self, connect: Callable[[], Awaitable[Line]]) -> None:
        self._connect = connect
        self._opening = asyncio.Lock()
        self._line: Line | None = None

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish by confirm; raises as `bridge.rabbitmq.publisher.Publisher.publish` does."""
        line = await self._opened()
        try:
            await line.publish(message, exchange=exchange, routing_key=routing_key)
        except BrokerUnavailable:
            await self._drop(line)
            raise

    async def close(self) -> None:
        """End the connection, if there is one."""
        if self._line is not None:
            await self._drop(self._line)

    async def _opened(self) -> Line:
        async with self._opening:
            if self._line is None:
                self._line = await self._connect()
            return self._line

    async def _drop(self, line: Line) -> None:
        """Use a line no more; of several whose publishes failed on it, the first one sees to
        that.
        """
        if self._line is line:
            self._line = None
            await line.close()


class IsolatedPublisher:
    """Publishes one message at a time, so that what RabbitMQ closes the connection over is
    known.
    """

    def __init__(self, line: ReopeningPublisher, *, pause: float = PAUSE) -> None:
        self._line = line
        self._pause = pause
        self._turn = asyncio.Lock()

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish by confirm.

        Raises:
            MessageRefused: RabbitMQ closes the connection or the channel over this message, each
            time. PublishFailed: it was not confirmed; a connection that is lost costs nothing else
            here.
        """
        async with self._turn:
            try:
                await self._try(message, exchange, routing_key)
            except BrokerUnavailable as error:
                if error.blames_message:
                    raise MessageRefused(
                        f"RabbitMQ closes the connection over it: {error}"
                    ) from error
                raise PublishFailed(str(error)) from error
            except BrokerDenied as error:
                # One connection more can be one too many, where the session's own were let in.
                raise PublishFailed(str(error)) from error

    async def _try(self, message: Message, exchange: str, routing_key: str) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BrokerUnavailable),
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential(multiplier=self._pause),
            reraise=True,
        ):
            with attempt:
                await self._line.publish(message, exchange=exchange, routing_key=routing_key)


class ResultPublisher:
    """Publishes results, many at once. What fails by a neighbour's fault is sent again alone, with
    the same id.
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
        """Publish by confirm; raises as `IsolatedPublisher.publish` does, and `PublishFailed` where
        it takes too long.

        A queue of the recipient's that never confirms must hold neither the delivery nor what is to
        be sent alone next.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._publish(message, routing_key)
        except TimeoutError as error:
            raise PublishFailed(f"not confirmed within {self._patience:g} s") from error

    async def _publish(self, message: Message, routing_key: str) -> None:
        try:
            await self._line.publish(message, routing_key=routing_key)
        except BrokerUnavailable:
            await self._isolated.publish(message, routing_key=routing_key)
