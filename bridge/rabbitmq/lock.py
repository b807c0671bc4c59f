"""Mutual exclusion of commands, and of replicas, through exclusive queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aio_pika.abc import AbstractConnection

from bridge.errors import BrokerDenied, BrokerError, QueueInUse
from bridge.rabbitmq.error_translation import translated_on_queue

ANSWER_TIMEOUT = 60.0
TRY_EVERY = 0.2


@asynccontextmanager
async def exclusive(
    connection: AbstractConnection, name: str, *, patience: float, required: bool
) -> AsyncIterator[None]:
    """Hold the lock of that name, an exclusive queue, which ends with its connection at the latest.

    A user who may not declare queues goes on without the lock, unless it is `required`.

    Raises:
        QueueInUse: another command still holds it after `patience` seconds.
        BrokerDenied: it is required, and the user may not declare it.
    """
    deadline = asyncio.get_running_loop().time() + patience
    try:
        while not await _acquire(connection, name):
            if asyncio.get_running_loop().time() > deadline:
                raise QueueInUse(
                    f"another command is at work there ({name}); try again when it has ended"
                )
            await asyncio.sleep(TRY_EVERY)
    except BrokerDenied:
        if required:
            raise
        yield
        return
    yield
    await _release(connection, name)


@asynccontextmanager
async def held_if_free(connection: AbstractConnection, name: str) -> AsyncIterator[bool]:
    """Whether the lock of that name was free; if so, it is held until the end of the block.

    A connection that is lost gives the lock up: RabbitMQ deletes its exclusive queues.

    Raises:
        BrokerUnavailable, BrokerDenied: that can't be found out.
    """
    held = await _acquire(connection, name)
    try:
        yield held
    finally:
        if held and not connection.is_closed:
            with suppress(BrokerError):
                await _release(connection, name)


async def _release(connection: AbstractConnection, name: str) -> None:
    with translated_on_queue(name):
        async with connection.channel(publisher_confirms=False) as channel:
            raw = await channel.get_underlay_channel()
            await raw.queue_delete(name, timeout=ANSWER_TIMEOUT)


async def _acquire(connection: AbstractConnection, name: str) -> bool:
    try:
        with translated_on_queue(name):
            async with connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                # A virtual host's default may be quorum, and such a queue can't be exclusive.
                await raw.queue_declare(
                    name,
                    exclusive=True,
                    auto_delete=True,
                    arguments={"x-queue-type": "classic"},
                    timeout=ANSWER_TIMEOUT,
                )
    except QueueInUse:
        return False
    return True
