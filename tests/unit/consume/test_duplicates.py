"""Two replicas that get two copies of one message at the same instant: the second execution is soon
seen, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from bridge.consume.duplicates import CreateCheck
from bridge.consume.starter import Starter, StartPolicy
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import DEFAULT_LIMITS, Kestra, RequestLimits
from bridge.telemetry.metrics import Metrics
from tests.support.harness import answers, eventually, settings_of, starter_of
from tests.support.standin import Ends, Standin


def job(name: str = "twice", attempt: int = 1) -> Job:
    return Job(id=name, flow=FlowName("test", "job"), attempt=attempt)


@dataclass
class Replica:
    starter: Starter
    check: CreateCheck
    metrics: Metrics

    async def look(self) -> float:
        """How often it listed; on a host so busy that searches seem slow, starting many lists them
        before."""
        before = self.looks
        await self.check.check()
        return self.looks - before

    @property
    def looks(self) -> float:
        return answers(self.metrics, "recent")


@asynccontextmanager
async def replica(
    kestra: Standin,
    *,
    always_look: bool = True,
    after: float = 1.0,
    limits: RequestLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Replica]:
    metrics = Metrics()
    async with Kestra(settings_of(kestra), metrics, limits=limits) as client:
        check = CreateCheck(kestra=client, metrics=metrics, after=after)
        policy = StartPolicy(always_look=always_look)
        starter = starter_of(client, metrics, check=check, policy=policy)
        yield Replica(starter, check, metrics)


@pytest.fixture
async def kestra() -> AsyncIterator[Standin]:
    async with Standin() as kestra:
        kestra.flow("test", "job", Ends(after=None))
        yield kestra


@pytest.fixture
async def pair(kestra: Standin) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas, each of which has created an execution of the same attempt."""
    kestra.faults.add("create", times=2, delay=0.3)
    async with replica(kestra) as one, replica(kestra) as other:
        await asyncio.gather(
            *(each.starter.start(job(), redelivered=False) for each in (one, other))
        )
        yield one, other


async def test_copies_at_the_same_instant_are_both_created(
    kestra: Standin, pair: tuple[Replica, Replica]
) -> None:
    assert kestra.per_attempt() == {("twice", "1"): 2}


async def test_the_second_look_kills_the_later_execution(
    kestra: Standin, pair: tuple[Replica, Replica]
) -> None:
    for each in pair:
        await each.look()
    assert set(kestra.kills) == {kestra.created[1].id}


async def test_the_replica_that_was_first_sees_the_second_execution_by_itself(
    kestra: Standin, pair: tuple[Replica, Replica]
) -> None:
    first = next(each for each in pair if each.check._since == kestra.created[0].started)
    await first.look()
    assert kestra.kills == [kestra.created[1].id]


async def test_many_creates_are_looked_after_by_one_listing(kestra: Standin) -> None:
    async with replica(kestra) as one:
        await asyncio.gather(
            *(one.starter.start(job(f"job-{number}"), redelivered=False) for number in range(50))
        )
        assert await one.look() == 1


async def test_no_more_than_a_page_is_read(kestra: Standin) -> None:
    async with replica(kestra, limits=RequestLimits(page_size=2)) as one:
        await asyncio.gather(
            *(one.starter.start(job(f"job-{number}"), redelivered=False) for number in range(5))
        )
        assert await one.look() == 1


async def test_nothing_is_listed_when_nothing_was_created_since(kestra: Standin) -> None:
    async with replica(kestra) as one:
        await one.starter.start(job(), redelivered=False)
        await one.look()
        await one.look()
        assert one.looks == 1


async def test_an_adopted_execution_is_not_looked_after(kestra: Standin) -> None:
    async with replica(kestra) as one, replica(kestra) as other:
        await one.starter.start(job(), redelivered=False)
        await other.starter.start(job(), redelivered=True)
        await other.look()
        assert other.looks == 0


async def test_a_fresh_message_that_is_not_looked_up_is_not_looked_after(kestra: Standin) -> None:
    async with replica(kestra, always_look=False) as one:
        await one.starter.start(job(), redelivered=False)
        await one.look()
        assert one.looks == 0


async def test_a_later_attempt_is_looked_after_in_any_case(kestra: Standin) -> None:
    async with replica(kestra, always_look=False) as one:
        await one.starter.start(job(attempt=2), redelivered=False)
        await one.look()
        assert one.looks == 1


async def test_looking_goes_on_after_a_look_that_failed(kestra: Standin) -> None:
    failing = kestra.faults.add(
        "search", status=500, when=lambda call: not any("labels" in key for key, _ in call.query)
    )
    async with replica(kestra, after=0.01) as one:
        looking = asyncio.create_task(one.check.run())
        try:
            await one.starter.start(job("one"), redelivered=False)
            await eventually(lambda: failing.hits == 1, "a look that failed")
            await one.starter.start(job("two"), redelivered=False)
            await eventually(lambda: one.looks == 1, "another look")
        finally:
            looking.cancel()
