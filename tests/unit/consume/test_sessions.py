"""Sessions that break: what was under way is delivered again, runs once, and is settled once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.consume.service import Policies
from bridge.errors import BrokerUnavailable, TopologyMismatch
from bridge.job.execution import Execution
from bridge.job.message import Message
from bridge.settings import Lane
from tests.support.memory_broker import MemoryBroker
from tests.support.replica import DEAD, QUEUE, Replica, World
from tests.support.standin import Ends


async def session_number(world: World, number: int) -> None:
    """Wait until a replica holds its session of that number, from 1."""
    await world.until(lambda: len(world.events("consuming")) >= number, f"session {number}")


async def second_session(world: World) -> None:
    await session_number(world, 2)


class TestASessionThatIsLost:
    async def test_has_its_job_adopted_from_the_redelivery(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            world.broker.cut()
            await second_session(world)
            await world.kestra.end(run.id)
            (line,) = await world.settled(job="one")
        assert (line["how"], line["redelivered"], len(world.kestra.created)) == ("adopted", True, 1)

    async def test_has_a_job_adopted_whose_create_was_under_way(self) -> None:
        async with World() as world, world.replica():
            world.kestra.answers.clear()
            await world.submit("one")
            await world.running()
            world.broker.cut()
            await second_session(world)
            world.kestra.answers.set()
            await world.settled(job="one", settlement="ack")
        assert len(world.kestra.created) == 1

    async def test_has_a_job_adopted_that_ended_meanwhile(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            world.broker.refusal = BrokerUnavailable("away")
            world.broker.cut()
            await world.kestra.end(run.id)
            world.broker.refusal = None
            await world.settled(job="one", settlement="ack")
        assert len(world.kestra.created) == 1

    async def test_settles_nothing_any_more(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            world.broker.refusal = BrokerUnavailable("away")
            world.broker.cut()
            await world.until(lambda: world.events("left to the broker"), "it is dropped")
            await world.kestra.end(run.id)
            assert (world.broker.acked, world.broker.depth(QUEUE)) == ([], 1)
            world.broker.refusal = None

    async def test_is_logged_with_its_cause(self) -> None:
        async with World() as world, world.replica():
            world.broker.cut("channel_closed")
            await second_session(world)
        (line,) = world.events("the session with RabbitMQ ended")
        assert line["cause"] == "channel_closed"

    async def test_is_counted_by_its_cause(self) -> None:
        async with World() as world, world.replica() as replica:
            world.broker.cut("consumer_cancelled")
            await second_session(world)
            assert replica.metric("consumer_restarts_total", cause="consumer_cancelled") == 1

    async def test_costs_no_job_an_attempt(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            for sessions in (2, 3, 4):
                world.broker.cut()
                await session_number(world, sessions)
            await world.kestra.end(run.id)
            (line,) = await world.settled(job="one")
        assert line["attempt"] == 1

    async def test_is_waited_for_even_where_only_an_operator_can_help(self) -> None:
        async with World() as world, world.replica():
            world.broker.refusal = TopologyMismatch("an operator changes it")
            world.broker.cut()
            await world.until(lambda: world.events("no session with RabbitMQ"), "it waits")
            world.broker.refusal = None
            await second_session(world)

    async def test_is_not_followed_at_once_by_the_next_where_it_was_short(self) -> None:
        def wary(policies: Policies) -> Policies:
            return replace(policies, sessions=replace(policies.sessions, stable_after=60.0))

        async with World() as world, world.replica(wary):
            world.broker.cut()
            await second_session(world)
        assert len(world.events("no session with RabbitMQ")) == 1

    async def test_is_followed_by_one_that_makes_a_deleted_queue_anew(self) -> None:
        async with World() as world, world.replica():
            world.broker.delete(QUEUE)
            await second_session(world)
            await world.submit("one")
            await world.settled(job="one", settlement="ack")


class TestThePrefetch:
    @pytest.mark.parametrize("prefetch", [1, 3])
    async def test_is_never_exceeded(self, prefetch: int) -> None:
        async with World(prefetch=prefetch) as world:
            most = 0

            def behave(_: Execution) -> Ends:
                nonlocal most
                open_now = [run for run in world.kestra.executions.values() if not run.ended]
                most = max(most, len(open_now) + 1)
                return Ends(after=0.001)

            world.kestra.flow("test", "job", behave)
            for number in range(5 * prefetch):
                await world.submit(f"job-{number}")
            async with world.replica():
                await world.settled(5 * prefetch)
        assert most == prefetch

    async def test_keeps_the_rest_in_the_queue(self) -> None:
        async with World(prefetch=2) as world:
            world.run_until_ended()
            for number in range(5):
                await world.submit(f"job-{number}")
            async with world.replica():
                await world.running(2)
                held, ready = world.broker.unsettled(QUEUE), world.broker.depth(QUEUE)
        assert (held, ready) == (2, 3)


class TestPriorities:
    async def test_say_which_job_starts_first(self) -> None:
        async with World(prefetch=1) as world:
            for number, priority in enumerate([0, 5, 1, 9, 5, 10]):
                await world.submit(f"{number}-of-{priority}", priority=priority)
            async with world.replica():
                await world.settled(6)
        started = [run.labels["bridgeJob"] for run in world.kestra.created]
        assert started == ["5-of-10", "3-of-9", "1-of-5", "4-of-5", "2-of-1", "0-of-0"]

    async def test_let_a_late_job_overtake_all_that_is_not_in_flight(self) -> None:
        async with World(prefetch=2) as world:
            world.run_until_ended()
            for number in range(5):
                await world.submit(f"low-{number}", priority=1)
            async with world.replica():
                await world.running(2)
                await world.submit("high", priority=9)
                await world.kestra.end(world.kestra.created[0].id)
                runs = await world.running(3)
        assert runs[-1].labels["bridgeJob"] == "high"

    async def test_count_how_long_a_message_waited(self) -> None:
        async with World() as world, world.replica() as replica:
            now = world.kestra.now()
            await world.submit("one", priority=200, timestamp=now)
            await world.settled()
            counted = replica.metric("queue_wait_seconds_count", lane=QUEUE, priority="10")
        assert counted == 1


class TestTwoReplicas:
    async def test_share_the_lane(self) -> None:
        async with World(prefetch=1) as world:
            world.run_until_ended()
            async with world.replica() as one, world.replica() as other:
                await world.submit("a")
                await world.submit("b")
                await world.running(2)
                assert [one.service.in_flight, other.service.in_flight] == [1, 1]

    async def test_hear_of_an_end_wherever_it_is_awaited(self) -> None:
        async with World(prefetch=1) as world:
            world.run_until_ended()
            async with world.replica(), world.replica():
                await world.submit("a")
                await world.submit("b")
                for run in await world.running(2):
                    await world.kestra.end(run.id)
                await world.settled(2, settlement="ack")

    async def test_take_over_from_one_another(self) -> None:
        async with World(prefetch=1) as world:
            world.run_until_ended()
            async with world.replica():
                async with world.replica():
                    await world.submit("a")
                    await world.submit("b")
                    runs = await world.running(2)
                await world.kestra.end(runs[0].id)
                await world.kestra.end(runs[1].id)
                await world.settled(2, settlement="ack")
        assert len(world.kestra.created) == 2


class TestTwoLanes:
    async def test_start_their_own_flows(self) -> None:
        async with World() as world:
            lanes = [Lane(queue=name, prefetch=1, flow=f"test/{name}") for name in ("a", "b")]
            world.broker = MemoryBroker(*lanes)
            for name in ("a", "b"):
                world.kestra.flow("test", name)
                await world.broker.submit(name, Message(body=b"{}", message_id=f"of-{name}"))
            async with world.replica():
                lines = await world.settled(2, settlement="ack")
        assert {(line["job"], line["lane"], line["flow"]) for line in lines} == {
            ("of-a", "a", "test/a"),
            ("of-b", "b", "test/b"),
        }

    async def test_take_no_slot_of_one_another(self) -> None:
        async with World() as world:
            lanes = [Lane(queue=name, prefetch=1, flow="test/job") for name in ("slow", "fast")]
            world.broker = MemoryBroker(*lanes)
            world.run_until_ended()
            async with world.replica():
                await world.broker.submit("slow", Message(body=b"{}", message_id="slow-1"))
                await world.running()
                await world.broker.submit("fast", Message(body=b"{}", message_id="fast-1"))
                runs = await world.running(2)
        assert [run.labels["bridgeJob"] for run in runs] == ["slow-1", "fast-1"]


class TestAMessageThatEndsConnections:
    @staticmethod
    def poisoned(message: Message) -> bool:
        return message.headers.get("of-others") == "poison"

    async def poison(self, world: World, replica: Replica) -> float:
        """How many sessions ended over it, once it is a dead letter."""
        world.broker.poison = self.poisoned
        world.submit_without_waiting("poison", b"not JSON", headers={"of-others": "poison"})
        await world.settled(job="poison", settlement="dead_letter")
        return replica.metric("consumer_restarts_total", cause="connection_closed")

    async def test_ends_one_session(self) -> None:
        async with World() as world, world.replica() as replica:
            assert await self.poison(world, replica) == 1

    async def test_becomes_a_dead_letter_without_what_others_gave_it(self) -> None:
        async with World() as world, world.replica() as replica:
            await self.poison(world, replica)
            (letter,) = world.broker.messages(DEAD)
        assert (letter.body, "of-others" in letter.headers) == (b"not JSON", False)
