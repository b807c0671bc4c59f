"""The broker in memory does what a real one does, and notices what no bridge may do."""

from __future__ import annotations

import asyncio

import pytest

from bridge.job.message import Message
from bridge.settings import Lane
from tests.support.broker_suite import (
    DELAY,
    PREFETCH,
    BrokerSuite,
    BrokerUnderTest,
    consuming,
    job,
)
from tests.support.memory_broker import MemoryBroker

QUEUE = "test.jobs"


class MemoryUnderTest:
    """The broker in memory with the test's hand in it."""

    queue = QUEUE

    def __init__(self) -> None:
        self.broker = MemoryBroker(Lane(queue=QUEUE, prefetch=PREFETCH), retry_delays=[DELAY])

    async def submit(self, message: Message) -> None:
        await self.broker.submit(QUEUE, message)

    async def depth(self, queue: str) -> int:
        return self.broker.depth(queue)

    async def take(self, queue: str) -> Message:
        return self.broker.take(queue)

    async def elapse(self, seconds: float) -> None:
        self.broker.elapse(seconds)

    async def quiesce(self) -> None:
        await asyncio.sleep(0)

    async def cut(self) -> None:
        self.broker.cut()

    async def limit(self, queue: str, most: int) -> None:
        self.broker.limit(queue, most)

    async def delete(self, queue: str) -> None:
        self.broker.delete(queue)

    async def reply(self, body: bytes) -> None:
        self.broker.reply(body)


@pytest.fixture
def under() -> BrokerUnderTest:
    return MemoryUnderTest()


class TestMemoryBroker(BrokerSuite):
    """The broker in memory, held to what real ones do."""


async def test_settling_twice_is_an_error() -> None:
    under = MemoryUnderTest()
    await under.submit(job("one"))
    async with consuming(under) as consumption:
        delivery = await consumption.next()
        await delivery.ack()
        with pytest.raises(AssertionError, match="settled twice"):
            await delivery.ack()
    assert under.broker.violations
