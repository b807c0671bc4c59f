"""The stream of a lane's ledger: written to, and read from its beginning on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage

from bridge.errors import BrokerUnavailable, TopologyMismatch
from bridge.rabbitmq.declaration import declare_one
from bridge.rabbitmq.error_translation import BROKEN, closed_named, reason
from bridge.rabbitmq.topology import plan_ledger

OnEntry = Callable[[int, bytes], None]

PREFETCH = 2000
ACK_EVERY = 200
ANSWER_TIMEOUT = 30.0


class LedgerStream:
    """A ledger that is read, until it ends.

    What is written gets no confirm. Its writer reads it back, and a stream shows its readers only
    what a confirm would have promised.
    """

    def __init__(self, name: str, raw: RawChannel) -> None:
        self._name = name
        self._raw = raw
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def append(self, entry: bytes) -> None:
        """Write an entry, of which nobody knows yet whether it stands in the stream.

        Raises:
            BrokerUnavailable: the connection is lost.
        """
        try:
            with closed_named():
                await self._raw.basic_publish(entry, routing_key=self._name, timeout=ANSWER_TIMEOUT)
        except BROKEN as error:
            self.end(reason(error))
            raise BrokerUnavailable(f"the ledger is away: {reason(error)}") from error

    async def ended(self) -> str:
        """Wait until it has ended; returns why."""
        return await asyncio.shield(self._ended)

    def end(self, why: str) -> None:
        """Give it up; only the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(why)

    async def read(self, on_entry: OnEntry, *, window: float) -> None:
        """Have every entry of the last `window` seconds brought, and those to come, in order."""
        unacked = 0

        async def take(message: DeliveredMessage) -> None:
            nonlocal unacked
            headers = message.header.properties.headers or {}
            on_entry(int(str(headers.get("x-stream-offset", 0))), message.body)
            unacked += 1
            if unacked >= ACK_EVERY:
                unacked = 0
                await self._ack(message.delivery_tag or 0)

        await self._raw.basic_qos(prefetch_count=PREFETCH)
        since = datetime.now(UTC) - timedelta(seconds=window)
        await self._raw.basic_consume(self._name, take, arguments={"x-stream-offset": since})

    async def _ack(self, tag: int) -> None:
        try:
            with closed_named():
                await self._raw.basic_ack(tag, multiple=True)
        except BROKEN as error:
            self.end(reason(error))


@asynccontextmanager
async def opened(
    connection: AbstractConnection, queue: str, on_entry: OnEntry, *, window: float
) -> AsyncIterator[LedgerStream]:
    """The ledger of a queue, declared and read from `window` seconds ago on.

    One that exists with other limits is taken as it is; the doctor reports it.

    Raises:
        TopologyMismatch: the queue of that name is no stream.
        Whatever aio-pika raises otherwise.
    """
    planned = plan_ledger(queue, window=window)
    try:
        await declare_one(connection, planned)
    except TopologyMismatch as error:
        if "'x-queue-type'" in str(error):
            raise
    channel = await connection.channel(publisher_confirms=False)
    raw = await channel.get_underlay_channel()
    stream = LedgerStream(planned.name, raw)
    channel.close_callbacks.add(lambda _, error: stream.end(reason(error)))
    connection.close_callbacks.add(lambda _, error: stream.end(reason(error)))
    raw.on_consumer_cancel_callbacks.add(partial(_cancelled, stream))
    await stream.read(on_entry, window=window)
    yield stream


def _cancelled(stream: LedgerStream, _: object) -> None:
    """Nothing else reports that the stream was deleted, or that its node went away."""
    stream.end("the broker cancelled the reader")
