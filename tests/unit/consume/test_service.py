"""The service in this process: how it starts, what it shows, and how it stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest

from bridge.consume.ports import SessionPort
from bridge.consume.service import Policies
from bridge.errors import (
    BrokerUnavailable,
    KestraDenied,
    KestraUnavailable,
    TopologyMismatch,
)
from deploy.local.paths import REPOSITORY
from tests.support.replica import AMQP_PASSWORD, DEAD, KESTRA_PASSWORD, QUEUE, Replica, World
from tests.support.standin import Ends

INPUT = "s3cr3t-of-a-job"


async def run_to_its_end(replica: Replica) -> None:
    """Run a service that ends by itself or was stopped, and fail if it does not."""
    async with asyncio.timeout(5):
        await replica.service.run(replica.stop)


def patient(policies: Policies) -> Policies:
    """A drain that waits as long as a test may take, for executions and for settlements."""
    sessions = replace(policies.sessions, drain=20.0, settled_within=20.0)
    return replace(policies, sessions=sessions)


def settling(policies: Policies) -> Policies:
    """A drain that waits for settlements only."""
    return replace(policies, sessions=replace(policies.sessions, settled_within=20.0))


def hasty(policies: Policies) -> Policies:
    """A drain that waits neither for executions nor for settlements."""
    sessions = replace(policies.sessions, drain=0.0, settled_within=0.0)
    return replace(policies, sessions=sessions)


class TestTheStart:
    async def test_says_that_kestra_answers_and_that_it_consumes(self) -> None:
        async with World() as world, world.replica():
            events = [line["event"] for line in world.lines]
        assert events == ["kestra answers", "the ledger is read", "consuming"]

    async def test_takes_nothing_before_kestra_answers(self) -> None:
        async with World() as world:
            world.kestra.fail("probe", KestraUnavailable("away"), times=None)
            replica = world.replica_of()
            running = asyncio.create_task(run_to_its_end(replica))
            await world.until(lambda: world.kestra.requests["probe"] >= 3, "a third probe")
            opened = world.broker.opened
            world.kestra.recover()
            await world.until(lambda: world.broker.opened, "a session")
            replica.stop.set()
            await running
        assert opened == 0

    async def test_fails_where_kestra_refuses_the_credentials(self) -> None:
        async with World() as world:
            world.kestra.fail("probe", KestraDenied("who?"))
            with pytest.raises(KestraDenied):
                await run_to_its_end(world.replica_of())

    async def test_waits_for_a_broker_that_is_away(self) -> None:
        async with World() as world:
            world.broker.refusal = BrokerUnavailable("away")
            replica = world.replica_of()
            running = asyncio.create_task(run_to_its_end(replica))
            await world.until(lambda: len(world.events("no session with RabbitMQ")) >= 2, "tries")
            world.broker.refusal = None
            await world.until(lambda: world.events("consuming"), "a session")
            replica.stop.set()
            await running

    async def test_fails_where_only_an_operator_can_help(self) -> None:
        async with World() as world:
            world.broker.refusal = TopologyMismatch("other arguments")
            with pytest.raises(TopologyMismatch):
                await run_to_its_end(world.replica_of())

    async def test_checks_once_beside_the_first_session(self) -> None:
        checked: list[SessionPort] = []

        async def check(session: SessionPort) -> None:
            checked.append(session)

        async with World() as world, world.replica(preflight=check):
            world.broker.cut()
            await world.until(lambda: len(world.events("consuming")) == 2, "a second session")
        assert len(checked) == 1

    async def test_takes_jobs_while_the_check_is_under_way(self) -> None:
        async def check(_: SessionPort) -> None:
            await asyncio.Event().wait()

        async with World() as world, world.replica(preflight=check):
            await world.submit("one")
            await world.settled(job="one", settlement="ack")

    async def test_a_part_that_fails_stops_the_service_and_is_raised(self) -> None:
        async def check(_: SessionPort) -> None:
            raise ZeroDivisionError

        async with World() as world:
            with pytest.raises(ZeroDivisionError):
                await run_to_its_end(world.replica_of(preflight=check))


class TestWhatItShows:
    async def test_ready_once_it_consumes(self) -> None:
        async with World() as world:
            replica = world.replica_of()
            before = replica.service.ready()
            async with world.replica() as consuming:
                after = consuming.service.ready()
        assert (before["broker"], after) == (
            False,
            {"broker": True, "kestra": True, "accepting": True},
        )

    async def test_not_ready_without_a_session(self) -> None:
        async with World() as world, world.replica() as replica:
            world.broker.refusal = BrokerUnavailable("away")
            world.broker.cut()
            await world.until(lambda: not replica.service.ready()["broker"], "no session")

    async def test_not_accepting_once_it_stops(self) -> None:
        async with World() as world:
            async with world.replica() as replica:
                pass
            assert not replica.service.ready()["accepting"]

    async def test_alive_while_the_event_loop_runs(self) -> None:
        async with World() as world, world.replica() as replica:
            assert replica.service.live() == {"event_loop": True}

    async def test_not_alive_once_the_event_loop_is_stuck(self) -> None:
        async with World() as world:
            stuck = world.replica_of(lambda policies: replace(policies, stuck_after=0.0))
            assert stuck.service.live() == {"event_loop": False}

    async def test_what_is_in_flight_and_for_how_long(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica() as replica:
                await world.submit("one")
                await world.running()
                shown = (
                    replica.service.in_flight,
                    replica.metric("in_flight", lane=QUEUE),
                    replica.metric("oldest_in_flight_seconds") > 0,
                )
        assert shown == (1, 1, True)

    async def test_nothing_in_flight_once_it_is_settled(self) -> None:
        async with World() as world, world.replica() as replica:
            await world.submit("one")
            await world.settled()
            await world.until(lambda: replica.service.in_flight == 0, "nothing in flight")
            assert replica.metric("in_flight", lane=QUEUE) == 0


class TestTheStop:
    async def test_comes_while_kestra_is_away(self) -> None:
        async with World() as world:
            world.kestra.fail("probe", KestraUnavailable("away"), times=None)
            replica = world.replica_of()
            running = asyncio.create_task(run_to_its_end(replica))
            await world.until(lambda: world.events("waiting for Kestra"), "it waits")
            replica.stop.set()
            await running

    async def test_comes_while_the_broker_says_nothing(self) -> None:
        async with World() as world:
            world.broker.silent = True
            replica = world.replica_of()
            running = asyncio.create_task(run_to_its_end(replica))
            await world.until(lambda: world.events("kestra answers"), "it connects")
            replica.stop.set()
            await running

    async def test_comes_while_it_waits_for_a_broker(self) -> None:
        async with World() as world:
            world.broker.refusal = BrokerUnavailable("away")
            replica = world.replica_of()
            running = asyncio.create_task(run_to_its_end(replica))
            await world.until(lambda: world.events("no session with RabbitMQ"), "it waits")
            replica.stop.set()
            await running

    async def test_settles_what_ends_within_the_drain_time(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica(patient) as replica:
                await world.submit("one")
                (run,) = await world.running()
                replica.stop.set()
                await world.until(lambda: world.events("draining"), "it drains")
                await world.kestra.end(run.id)
        assert [message.message_id for message in world.broker.acked] == ["one"]

    async def test_leaves_what_does_not_end_to_the_broker(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica():
                await world.submit("one")
                await world.running()
            assert (world.broker.depth(QUEUE), world.broker.acked) == (1, [])

    async def test_starts_nothing_for_what_it_leaves(self) -> None:
        async with World() as world:
            world.kestra.fail("create", KestraUnavailable("away"), times=None)
            async with world.replica():
                await world.submit("one")
                await world.until(lambda: world.kestra.requests["create"], "a create")
            assert (world.kestra.created, world.broker.depth(QUEUE)) == ([], 1)

    async def test_counts_what_it_leaves(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica() as replica:
                await world.submit("one")
                await world.running()
            assert (
                replica.metric("settlements_total", lane=QUEUE, settlement="left", reason="") == 1
            )

    async def test_lets_the_next_replica_adopt_what_it_left(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica():
                await world.submit("one")
                (run,) = await world.running()
            async with world.replica():
                await world.kestra.end(run.id)
                (line,) = await world.settled(job="one", settlement="ack")
        assert (line["how"], len(world.kestra.created)) == ("adopted", 1)

    async def test_takes_nothing_new(self) -> None:
        async with World(prefetch=2) as world:
            world.run_until_ended()
            async with world.replica(patient) as replica:
                await world.submit("one")
                (run,) = await world.running()
                replica.stop.set()
                await world.until(lambda: world.events("draining"), "it drains")
                await world.submit("two")
                await world.kestra.end(run.id)
        assert (len(world.kestra.created), world.broker.depth(QUEUE)) == (1, 1)

    async def test_lets_a_settlement_that_has_begun_finish(self) -> None:
        async with World() as world:
            world.broker.confirms.clear()
            async with world.replica(settling) as replica:
                world.submit_without_waiting("bad", b"not JSON")
                await world.until(lambda: world.broker.depth(DEAD), "the dead letter stands")
                replica.stop.set()
                await world.until(lambda: world.events("draining"), "it drains")
                world.broker.confirms.set()
            assert [message.message_id for message in world.broker.acked] == ["bad"]

    async def test_waits_for_no_settlement_beyond_its_time(self) -> None:
        async with World() as world:
            world.broker.confirms.clear()
            async with world.replica(hasty) as replica:
                world.submit_without_waiting("bad", b"not JSON")
                await world.until(lambda: world.broker.depth(DEAD), "the dead letter stands")
                replica.stop.set()
                await world.until(lambda: world.events("stopped"), "it has stopped")
            assert (world.broker.acked, world.broker.depth(QUEUE)) == ([], 1)

    async def test_does_not_wait_for_a_session_that_is_lost_meanwhile(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica(patient) as replica:
                await world.submit("one")
                await world.running()
                replica.stop.set()
                await world.until(lambda: world.events("draining"), "it drains")
                world.broker.cut()
            assert world.broker.depth(QUEUE) == 1


async def test_no_secret_is_in_any_log_line() -> None:
    async with World() as world:
        world.kestra.flow("test", "bad", Ends("FAILED"))
        async with world.replica(max_attempts=1):
            await world.submit("good", {"inputs": {"password": INPUT}}, reply_to=QUEUE)
            await world.submit("bad", {"flow": "test/bad", "inputs": {"password": INPUT}})
            await world.submit(None, {"inputs": {"password": INPUT}})
            await world.submit("odd", f'{{"inputs": {{"password": "{INPUT}"'.encode())
            await world.submit("denied", {"flow": "other/job", "inputs": {"password": INPUT}})
            await world.settled(5)
            world.broker.cut()
            await world.until(lambda: len(world.events("consuming")) == 2, "a second session")
        text = repr(world.lines)
    assert [each for each in (AMQP_PASSWORD, KESTRA_PASSWORD, INPUT) if each in text] == []


def test_the_consume_path_loads_nothing_of_what_people_run() -> None:
    code = (
        "import sys, bridge.consume.service\n"
        "print(*[name for name in sys.modules"
        " if name.startswith(('bridge.operate', 'bridge.machines', 'bridge.cli'))])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == ""
