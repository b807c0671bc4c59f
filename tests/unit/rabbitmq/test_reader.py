"""How a queue is read and given back, on queues in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from bridge.errors import BrokerUnavailable
from bridge.job.message import Message
from bridge.rabbitmq.reader import QueueReader, opened
from tests.support.memory_queues import QUICK, MemoryBroker, MemoryConnection, MemoryQueue

IDS = [f"job-{number}" for number in range(10)]


def broker(*bodies: bytes) -> MemoryBroker:
    queue = MemoryQueue()
    queue.put(
        *(
            Message(body=body, headers={}, message_id=name)
            for name, body in zip(IDS, bodies or [b"{}"] * len(IDS), strict=False)
        )
    )
    return MemoryBroker({"q": queue})


async def pages(reader: QueueReader) -> list[list[str | None]]:
    return [[held.message.message_id for held in page] async for page in reader.pages()]


async def test_every_message_is_read_once_in_pages_of_bounded_length() -> None:
    there = broker()
    async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
        read = await pages(reader)
    assert read == [IDS[:4], IDS[4:8], IDS[8:]]


async def test_a_page_is_bounded_by_the_largest_body_so_far() -> None:
    there = broker(*[b"x" * 600] * 4)
    limits = replace(QUICK, page_bytes=1200)
    async with opened(MemoryConnection(there).typed, "q", limits) as reader:
        read = await pages(reader)
    assert list(map(len, read)) == [2, 2]


async def test_a_look_leaves_the_order_and_counts_nothing_as_failed() -> None:
    there = broker()
    for _ in range(2):
        async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
            await pages(reader)
    queue = there.queues["q"]
    failures = {stored.failures for stored in (*queue.returned, *queue.fresh)}
    assert (queue.ids, failures) == (IDS, {0})


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_look_that_is_interrupted_leaves_the_order(error: type[BaseException]) -> None:
    there = broker()
    async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
        await pages(reader)
    with suppress(error):
        async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
            await reader.next_page()
            raise error
    assert there.queues["q"].ids == IDS


async def test_what_is_acked_is_gone_and_the_rest_keeps_its_order() -> None:
    there = broker()
    async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
        async for page in reader.pages():
            await reader.ack([held.delivery_tag for held in page[::2]])
    read = there.queues["q"].ids
    assert (len(read), read) == (10 - 5, sorted(str(name) for name in read))


async def test_few_settlements_are_under_way_before_their_effect_is_awaited() -> None:
    there = broker()
    limits = replace(QUICK, page_messages=20, in_flight=3)
    async with opened(MemoryConnection(there).typed, "q", limits) as reader:
        (page,) = [page async for page in reader.pages()]
        there.log.clear()
        await reader.ack([held.delivery_tag for held in page])
    settled = " ".join(there.log).replace("ack q", "a").replace("get q", "g").split()
    assert "".join(settled) == "aaagaaagaaagag"


async def test_others_are_waited_for_and_counted() -> None:
    there = broker()
    there.queues["q"].consumers = 2
    async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
        assert await reader.others(patience=0.01) == 2


async def test_a_lost_connection_is_an_error_of_the_brokers() -> None:
    there = broker()
    there.operations_left = 2
    with pytest.raises(BrokerUnavailable, match="the connection to RabbitMQ was lost: cut off"):
        async with opened(MemoryConnection(there).typed, "q", QUICK) as reader:
            await pages(reader)
