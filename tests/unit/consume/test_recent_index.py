"""Fresh messages where a search is slow: a listing of recent executions, shared by many, says that
there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import pytest

from bridge.consume.lookup import Lookup, LookupPolicy
from bridge.consume.recent_index import ListingPolicy
from bridge.consume.search_gate import SlowSearches
from bridge.consume.starter import Started, Starter
from bridge.job.execution import Execution
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra, RequestLimits
from bridge.telemetry.metrics import Metrics
from tests.support.harness import answers, lookup_of, settings_of, starter_of
from tests.support.standin import Standin


def job(name: str, attempt: int = 1) -> Job:
    return Job(id=name, flow=FlowName("test", "short"), attempt=attempt)


ALL_SLOW = SlowSearches(longer_by=0.0)
QUICKLY = ListingPolicy(every=0.01)


@dataclass
class Rig:
    """A Kestra and a replica, to which every search is slow; `other` is somebody else's way to the
    same Kestra."""

    kestra: Standin
    client: Kestra
    other: Kestra
    metrics: Metrics
    hidden: set[str] = field(default_factory=set)
    slow: SlowSearches = ALL_SLOW
    listing: ListingPolicy = QUICKLY

    @cached_property
    def lookup(self) -> Lookup:
        policy = LookupPolicy(window=3600, slow_searches=self.slow, listing=self.listing)
        return lookup_of(self.client, self.metrics, policy)

    @cached_property
    def starter(self) -> Starter:
        return starter_of(self.client, self.metrics, lookup=self.lookup)

    async def deliver(self, *jobs: Job, redelivered: bool = False) -> list[Started]:
        return await asyncio.gather(
            *(self.starter.start(one, redelivered=redelivered) for one in jobs)
        )

    async def see_that_searches_are_slow(self) -> None:
        """After these the replica knows, and has listed what there is."""
        for number in range(ALL_SLOW.in_a_row + 1):
            await self.deliver(job(f"slow-{number}"))

    def requests(self, operation: str) -> float:
        return answers(self.metrics, operation)


@pytest.fixture
def page_size() -> int:
    """How many executions a listing reads at once. A test's parameter of that name replaces it."""
    return 500


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, page_size: int) -> AsyncIterator[Rig]:
    metrics = Metrics()
    limits = RequestLimits(page_size=page_size)
    async with Standin() as kestra:
        kestra.flow("test", "short")
        async with (
            Kestra(settings_of(kestra), metrics, limits=limits) as client,
            Kestra(settings_of(kestra)) as other,
        ):
            rig = Rig(kestra, client, other, metrics)
            rig.listing = replace(rig.listing, page_size=page_size)
            listed = client.started_since

            async def without_the_hidden(*arguments: Any) -> tuple[list[Execution], int]:
                rows, total = await listed(*arguments)
                return [row for row in rows if row.id not in rig.hidden], total

            monkeypatch.setattr(client, "started_since", without_the_hidden)
            yield rig


async def test_fresh_messages_cost_no_search_of_their_own(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    before = rig.requests("find")
    await rig.deliver(*(job(f"job-{number}") for number in range(50)))
    assert rig.requests("find") == before


async def test_fresh_messages_share_listings(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    before = rig.requests("recent")
    await rig.deliver(*(job(f"job-{number}") for number in range(50)))
    assert rig.requests("recent") - before <= 2


async def test_while_searches_are_quick_there_is_no_listing(rig: Rig) -> None:
    rig.slow = SlowSearches(longer_by=60.0)
    await rig.see_that_searches_are_slow()
    assert rig.requests("recent") == 0


async def test_a_kestra_that_is_far_away_is_not_slow(rig: Rig) -> None:
    rig.slow = SlowSearches(longer_by=0.1)
    rig.kestra.faults.add("*", times=None, delay=0.15)
    await rig.client.probe()
    await rig.see_that_searches_are_slow()
    assert rig.requests("recent") == 0


async def test_slow_searches_are_few_before_they_are_spared(rig: Rig) -> None:
    await rig.deliver(*(job(f"job-{number}") for number in range(50)))
    assert rig.requests("find") == ALL_SLOW.in_a_row


async def test_searches_that_are_slow_at_the_same_moment_are_no_reason_to_list(rig: Rig) -> None:
    rig.slow = SlowSearches(longer_by=0.1)
    await rig.deliver(job("quick"))
    rig.kestra.faults.add("search", times=None, delay=0.2)
    await rig.deliver(*(job(f"job-{number}") for number in range(2 * rig.slow.in_a_row)))
    rig.kestra.faults.clear()
    await rig.deliver(job("another"))
    assert rig.requests("recent") == 0


async def test_after_a_while_searches_may_have_become_quick(rig: Rig) -> None:
    rig.slow = replace(ALL_SLOW, believed_for=0.0)
    await rig.see_that_searches_are_slow()
    before = rig.requests("find")
    await rig.deliver(*(job(f"job-{number}") for number in range(ALL_SLOW.in_a_row - 1)))
    assert rig.requests("find") - before == ALL_SLOW.in_a_row - 1


async def test_when_searches_are_slow_again_what_started_meanwhile_is_known(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    rig.lookup._gate._slow_until = 0.0
    earlier = await rig.other.create(job("meanwhile"))
    await rig.see_that_searches_are_slow()
    (found,) = await rig.deliver(job("meanwhile"))
    assert (found.adopted, found.execution.id) == (True, earlier.id)


async def test_a_duplicate_of_what_was_there_before_the_first_listing_is_adopted(rig: Rig) -> None:
    earlier = await rig.other.create(job("twice"))
    await rig.see_that_searches_are_slow()
    (found,) = await rig.deliver(job("twice"))
    assert (found.adopted, found.execution.id) == (True, earlier.id)


async def test_a_duplicate_of_what_another_replica_has_started_since_is_adopted(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    earlier = await rig.other.create(job("twice"))
    (found,) = await rig.deliver(job("twice"))
    assert (found.adopted, found.execution.id) == (True, earlier.id)


async def test_a_duplicate_of_its_own_is_adopted_though_no_listing_shows_it_yet(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    (first,) = await rig.deliver(job("twice"))
    rig.hidden.add(first.execution.id)
    (second,) = await rig.deliver(job("twice"))
    assert (second.adopted, second.execution.id) == (True, first.execution.id)


async def test_an_execution_that_is_seen_late_is_found_by_a_listing_that_reads_back_further(
    rig: Rig,
) -> None:
    deep_every = 0.3
    rig.listing = replace(QUICKLY, overlap=timedelta(), deep_every=deep_every)
    await rig.see_that_searches_are_slow()
    late = await rig.other.create(job("late"))
    rig.hidden.add(late.id)
    await rig.deliver(job("after"))
    rig.hidden.clear()
    rig.lookup._recent._last_deep -= deep_every
    (found,) = await rig.deliver(job("late"))
    assert (found.adopted, found.execution.id) == (True, late.id)


@pytest.mark.parametrize("page_size", [2])
async def test_more_than_a_page_is_read_before_anything_is_certain(rig: Rig) -> None:
    made = {name: (await rig.other.create(job(name))).id for name in map(str, range(7))}
    await rig.see_that_searches_are_slow()
    found = await rig.deliver(*map(job, made))
    assert [one.execution.id for one in found] == list(made.values())


@pytest.mark.parametrize("page_size", [1])
async def test_a_page_that_is_full_of_one_instant_ends(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    made = {name: (await rig.other.create(job(name))).id for name in map(str, range(4))}
    found = await rig.deliver(*map(job, made))
    assert [one.execution.id for one in found] == list(made.values())


async def test_too_long_a_history_is_searched_and_not_listed(rig: Rig) -> None:
    rig.listing = replace(QUICKLY, most=2)
    await rig.see_that_searches_are_slow()
    before = rig.requests("find")
    await rig.deliver(*map(job, "abc"))
    assert (rig.requests("find") - before, rig.requests("recent")) == (3, 1)


async def test_where_there_is_too_much_to_list_searches_go_on_side_by_side(rig: Rig) -> None:
    rig.listing = replace(QUICKLY, most=2)
    await rig.see_that_searches_are_slow()
    rig.kestra.faults.add("search", times=None, delay=1.0)
    asked, answered = rig.kestra.requests["search"], rig.requests("find")
    delivering = asyncio.create_task(rig.deliver(*map(job, "abc")))
    await rig.kestra.until(lambda: rig.kestra.requests["search"] == asked + 3, "three searches")
    meanwhile = rig.requests("find")
    await delivering
    assert meanwhile == answered


async def test_a_duplicate_is_adopted_after_what_is_known_became_too_much(rig: Rig) -> None:
    rig.listing = replace(QUICKLY, most=6)
    earlier = await rig.other.create(job("twice"))
    await rig.see_that_searches_are_slow()
    for number in range(2 * rig.listing.most):
        await rig.other.create(job(f"much-{number}"))
    await rig.deliver(job("one more"))
    (found,) = await rig.deliver(job("twice"))
    assert (found.adopted, found.execution.id) == (True, earlier.id)


async def test_where_listing_fails_the_search_decides(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    earlier = await rig.other.create(job("twice"))
    before = rig.requests("find")
    rig.kestra.faults.add("search", status=500)
    (found,) = await rig.deliver(job("twice"))
    assert (found.execution.id, rig.requests("find") - before) == (earlier.id, 1)


async def test_a_redelivered_message_s_execution_is_searched_all_the_same(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    before = rig.requests("find")
    await rig.deliver(job("one"), redelivered=True)
    assert rig.requests("find") > before


async def test_a_later_attempt_s_execution_is_searched_all_the_same(rig: Rig) -> None:
    await rig.see_that_searches_are_slow()
    before = rig.requests("find")
    await rig.deliver(job("one", attempt=2))
    assert rig.requests("find") == before + 1
