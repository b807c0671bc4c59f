"""Many jobs that look for their executions at once, as after a restart: one listing serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property

import pytest

from bridge.consume.lookup import LookupPolicy
from bridge.consume.starter import Started, Starter
from bridge.consume.unfinished_index import UnfinishedIndex
from bridge.errors import KestraUnavailable
from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics
from tests.support.harness import answers, eventually, lookup_of, settings_of, starter_of
from tests.support.standin import Ends, Standin

QUICKLY = LookupPolicy(window=3600, every=0.05)
MANY = 5 * QUICKLY.many


def job(number: int, flow: str = "long") -> Job:
    return Job(id=f"job-{number}", flow=FlowName("test", flow))


@dataclass
class Rig:
    kestra: Standin
    client: Kestra
    metrics: Metrics
    grace: float = 0.5

    @cached_property
    def starter(self) -> Starter:
        lookup = lookup_of(self.client, self.metrics, QUICKLY)
        return starter_of(self.client, self.metrics, grace=self.grace, lookup=lookup)

    async def create(self, *jobs: Job) -> dict[str, str]:
        """The executions of these jobs by the jobs' ids, as a replica made them that died since."""
        made = await asyncio.gather(*map(self.client.create, jobs))
        return {one.id: execution.id for one, execution in zip(jobs, made, strict=True)}

    async def adopt(self, *jobs: Job) -> dict[str, Started]:
        started = await asyncio.gather(*(self.starter.start(one, redelivered=True) for one in jobs))
        return {one.id: found for one, found in zip(jobs, started, strict=True)}

    def requests(self, operation: str) -> float:
        return answers(self.metrics, operation)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    metrics = Metrics()
    async with Standin() as kestra:
        kestra.flow("test", "long", Ends(after=None))
        kestra.flow("test", "short")
        async with Kestra(settings_of(kestra), metrics) as client:
            yield Rig(kestra, client, metrics)


async def test_many_redelivered_jobs_get_their_own_executions(rig: Rig) -> None:
    jobs = [job(number) for number in range(MANY)]
    made = await rig.create(*jobs)
    adopted = await rig.adopt(*jobs)
    assert {key: found.execution.id for key, found in adopted.items()} == made


async def test_many_redelivered_jobs_are_found_by_few_requests(rig: Rig) -> None:
    jobs = [job(number) for number in range(MANY)]
    await rig.create(*jobs)
    await rig.adopt(*jobs)
    assert rig.requests("find") + rig.requests("sweep") < 2 * QUICKLY.many


async def test_executions_that_have_ended_meanwhile_are_adopted_too(rig: Rig) -> None:
    jobs = [job(number, "short") for number in range(MANY)]
    made = await rig.create(*jobs)
    adopted = await rig.adopt(*jobs)
    assert {key: found.execution.id for key, found in adopted.items()} == made


async def test_many_jobs_without_an_execution_get_one_each(rig: Rig) -> None:
    await rig.adopt(*(job(number) for number in range(MANY)))
    assert set(rig.kestra.per_attempt().values()) == {1}


async def test_jobs_without_an_execution_are_searched_twice_and_not_all_the_while(rig: Rig) -> None:
    await rig.adopt(*(job(number) for number in range(MANY)))
    assert rig.requests("find") <= 2 * MANY + QUICKLY.many * (0.5 / 0.05)


async def test_a_create_that_comes_true_late_and_ends_at_once_is_found_by_the_last_look(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.client, "unfinished", _nothing)
    rig.grace = 3
    jobs = [job(number, "short") for number in range(QUICKLY.many)]
    adopting = asyncio.create_task(rig.adopt(*jobs))
    await eventually(lambda: rig.requests("find") >= QUICKLY.many, "each was searched once")
    made = await rig.create(*jobs)
    assert {key: found.execution.id for key, found in (await adopting).items()} == made


async def test_a_second_running_execution_is_killed_when_a_listing_shows_it(rig: Rig) -> None:
    jobs = [job(number) for number in range(MANY)]
    await rig.create(*jobs)
    second = (await rig.create(jobs[-1]))[jobs[-1].id]
    await rig.adopt(*jobs)
    assert rig.kestra.kills == [second]


async def _nothing() -> list[Execution]:
    return []


class Source:
    """Lists nothing, once it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self._error = error

    async def __call__(self) -> list[Execution]:
        self.calls += 1
        await self.go.wait()
        if self._error:
            raise self._error
        labels = {JOB_LABEL: "job-1", ATTEMPT_LABEL: "1"}
        return [
            Execution(id="own", flow=FlowName("test", "long"), state=State.RUNNING, labels=labels)
        ]


async def test_who_asks_during_a_listing_shares_the_next() -> None:
    source = Source()
    listing = UnfinishedIndex(source)
    first = asyncio.create_task(listing.get(job(1)))
    await eventually(lambda: source.calls, "the listing began", every=0)
    others = [asyncio.create_task(listing.get(job(1))) for _ in range(5)]
    source.go.set()
    await asyncio.gather(first, *others)
    assert source.calls == 2


async def test_one_who_gives_up_takes_the_listing_from_nobody() -> None:
    source = Source()
    listing = UnfinishedIndex(source)
    first, second = (asyncio.create_task(listing.get(job(1))) for _ in range(2))
    await eventually(lambda: source.calls, "the listing began", every=0)
    first.cancel()
    source.go.set()
    assert [execution.id for execution in await second] == ["own"]


async def test_a_listing_that_fails_fails_for_all_who_share_it() -> None:
    source = Source(KestraUnavailable("away"))
    listing = UnfinishedIndex(source)
    source.go.set()
    answers = await asyncio.gather(*(listing.get(job(1)) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [KestraUnavailable] * 3


async def test_the_listing_after_one_that_failed_is_a_new_one() -> None:
    source = Source(KestraUnavailable("away"))
    listing = UnfinishedIndex(source)
    source.go.set()
    await asyncio.gather(listing.get(job(1)), return_exceptions=True)
    source._error = None
    assert await listing.get(job(1))
