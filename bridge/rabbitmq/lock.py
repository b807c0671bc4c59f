"""Mutual exclusion of commands, through exclusive queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractConnection

from bridge.errors import BrokerDenied, QueueInUse
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
    with translated_on_queue(name):
        async with connection.channel(publisher_confirms=False) as channel:
            raw = await channel.get_underlay_channel()
            await raw.queue_delete(name, timeout=ANSWER_TIMEOUT)


async def _acquire(connection: AbstractConnection, name: str) -> bool:
    try:
        with translated_on_queue(name):
            async with connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                await raw.queue_declare(
                    name, exclusive=True, auto_delete=True, timeout=ANSWER_TIMEOUT
                )
    except QueueInUse:
        return False
    return True
