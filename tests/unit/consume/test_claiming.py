"""Replicas that claim jobs in the ledger, look up what others have claimed, and do without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from bridge.consume.ledger import Mark, to_entry
from bridge.consume.service import Policies
from bridge.errors import BrokerDenied, KestraRejected, KestraUnavailable
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.rabbitmq.topology import ledger_queue
from tests.support.replica import QUEUE, World

LEDGER = ledger_queue(QUEUE)


def patient(policies: Policies) -> Policies:
    """Another replica's claim, and a ledger that is away, are waited for as if for ever."""
    assert policies.ledger
    return replace(policies, ledger=replace(policies.ledger, grace=3600.0, patience=3600.0))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


async def execution_from_before(world: World, job: str = "before") -> str:
    """An execution that is not in the ledger."""
    asked = Job(id=job, flow=FlowName("test", "job"), queue=QUEUE)
    return (await world.kestra.create(asked)).id


async def redeliver(world: World) -> None:
    """Have the messages redelivered that wait in the queue."""
    async with world.broker.session(lambda *_: None, lambda _: None, hold=1):
        pass


class TestAFreshJob:
    async def test_costs_kestra_one_request(self, world: World) -> None:
        async with world.replica():
            world.kestra.requests.clear()
            await world.submit("one")
            await world.settled(job="one", settlement="ack")
        assert dict(world.kestra.requests) == {"create": 1}

    async def test_is_looked_up_where_the_operator_says_always(self, world: World) -> None:
        async with world.replica(deduplicate="always"):
            await world.submit("one")
            await world.settled(job="one", settlement="ack")
        assert world.kestra.requests["find"] == 1

    async def test_is_looked_up_where_jobs_ran_before_there_was_a_ledger(
        self, world: World
    ) -> None:
        existing = await execution_from_before(world, "one")
        async with world.replica():
            await world.submit("one")
            (line,) = await world.settled(job="one", settlement="ack")
        assert (line["how"], line["execution"]) == ("adopted", existing)

    async def test_is_not_looked_up_once_the_ledger_is_as_old_as_the_window(
        self, world: World
    ) -> None:
        await execution_from_before(world)
        world.broker.ledgers[LEDGER] = [to_entry(Mark(1, at=1.0))]
        async with world.replica():
            await world.submit("one")
            await world.settled(job="one", settlement="ack")
        assert world.kestra.requests["find"] == 0

    async def test_is_claimed_before_it_is_created(self, world: World) -> None:
        async with world.replica() as replica:
            await world.submit("one")
            await world.settled(job="one")
            assert replica.metric("claim_seconds_count", lane=QUEUE) == 1

    async def test_whose_retry_is_claimed_too_costs_no_look_up_either(self, world: World) -> None:
        world.fail_first_attempts()
        async with world.replica():
            await world.submit("one")
            await world.settled(settlement="retry")
            world.kestra.requests.clear()
            world.broker.elapse(30)
            await world.settled(job="one", settlement="ack")
        assert world.kestra.requests["find"] == 0


class TestCopies:
    async def test_at_two_replicas_at_the_same_instant_have_one_execution(
        self, world: World
    ) -> None:
        world.kestra.answers.clear()
        async with world.replica(patient), world.replica(patient):
            for name in ("one", "two", "three"):
                await world.submit(name)
                await world.submit(name)
            await world.running(3)
            world.kestra.answers.set()
            await world.settled(6, settlement="ack")
        assert (len(world.kestra.created), world.kestra.kills) == (3, [])

    async def test_of_a_job_that_is_done_adopt_its_execution(self, world: World) -> None:
        async with world.replica():
            await world.submit("one")
            await world.settled(job="one")
        async with world.replica():
            await world.submit("one")
            await world.settled(2, job="one", settlement="ack")
        assert len(world.kestra.created) == 1

    async def test_of_a_job_that_kestra_refused_wait_for_nobody(self, world: World) -> None:
        world.kestra.fail("create", KestraRejected("no such input"), times=2)
        async with world.replica(patient):
            await world.submit("one")
            await world.settled(job="one", settlement="dead_letter")
            await world.submit("one")
            await world.settled(2, job="one", settlement="dead_letter")


class TestARedeliveredJob:
    async def test_adopts_what_the_replica_before_created(self, world: World) -> None:
        world.run_until_ended()
        async with world.replica(patient):
            await world.submit("one")
            (run,) = await world.running()
        async with world.replica(patient):
            await world.kestra.end(run.id)
            await world.settled(job="one", settlement="ack", how="adopted")

    async def test_is_created_where_the_replica_before_died_before_it_did(
        self, world: World
    ) -> None:
        world.kestra.fail("create", KestraUnavailable("not yet"), times=None)
        async with world.replica(patient):
            await world.submit("one")
            await world.until(lambda: len(world.broker.ledgers[LEDGER]) == 2, "a claim")
        world.kestra.recover()
        async with world.replica():
            await world.settled(job="one", settlement="ack", how="created")

    async def test_that_nobody_claimed_is_looked_for_all_the_same(self, world: World) -> None:
        await world.submit("one")
        await redeliver(world)
        async with world.replica():
            await world.settled(job="one", how="created")
        assert world.kestra.requests["find"] >= 1


class TestALedgerThatIsAway:
    async def test_lets_jobs_start_by_looking_them_up(self, world: World) -> None:
        world.broker.no_ledger = BrokerDenied("no right to the ledger")
        async with world.replica() as replica:
            await world.submit("one")
            await world.settled(job="one", settlement="ack", how="created")
            assert replica.metric("ledger_ready", lane=QUEUE) == 0
        assert world.kestra.requests["find"] == 1

    async def test_is_warned_of(self, world: World) -> None:
        world.broker.no_ledger = BrokerDenied("no right to the ledger")
        async with world.replica():
            await world.until(
                lambda: world.events(
                    "no ledger, looking up in kestra what may have been started",
                    error="no right to the ledger",
                ),
                "a warning",
            )

    async def test_is_waited_for_at_first(self, world: World) -> None:
        world.broker.no_ledger = BrokerDenied("not yet")
        async with world.replica(patient):
            await world.submit("one")
            await world.until(lambda: world.broker.unsettled(QUEUE), "a delivery")
            world.broker.no_ledger = None
            await world.settled(job="one", settlement="ack")
        assert world.kestra.requests["find"] == 0

    async def test_gets_the_claims_later_that_it_missed(self, world: World) -> None:
        world.broker.no_ledger = BrokerDenied("not yet")
        async with world.replica():
            await world.submit("one")
            await world.settled(job="one")
            world.broker.no_ledger = None
            await world.until(lambda: len(world.broker.ledgers.get(LEDGER, [])) == 2, "a claim")

    async def test_is_read_again_after_a_cut(self, world: World) -> None:
        async with world.replica() as replica:
            await world.submit("one")
            await world.settled(job="one")
            world.broker.cut_ledgers()
            await world.until(lambda: len(world.events("the ledger is read")) == 2, "a reading")
            await world.submit("one")
            await world.settled(2, job="one", settlement="ack")
            assert replica.metric("ledger_ready", lane=QUEUE) == 1
        assert len(world.kestra.created) == 1

    async def test_that_is_deleted_is_begun_again_and_misses_nothing(self, world: World) -> None:
        async with world.replica(), world.replica():
            await world.submit("one")
            await world.settled(job="one")
            world.broker.delete(LEDGER)
            await world.until(lambda: len(world.events("the ledger is read")) == 4, "a reading")
            await world.submit("one")
            await world.submit("two")
            await world.settled(2, job="one", settlement="ack")
            await world.settled(job="two", settlement="ack")
        assert len(world.kestra.created) == 2

    async def test_is_not_asked_for_where_the_operator_wants_none(self, world: World) -> None:
        async with world.replica(deduplicate="redelivered"):
            await world.submit("one")
            await world.settled(job="one", settlement="ack")
        assert (world.broker.ledgers, world.kestra.requests["find"]) == ({}, 0)
