"""A delivery's way through the bridge: when its message is acked, and where it stands otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from bridge.consume.service import Policies
from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)
from bridge.job.execution import Execution
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.message import Message
from bridge.kestra import always
from bridge.rabbitmq.topology import retry_queue
from tests.support.memory_broker import MemoryQueue
from tests.support.memory_kestra import MemoryKestra
from tests.support.replica import DEAD, QUEUE, Replica, World
from tests.support.standin import Ends

SOON, LATE = retry_queue(QUEUE, 30), retry_queue(QUEUE, 300)


def acked(world: World) -> list[str | None]:
    return [message.message_id for message in world.broker.acked]


def sweeping(policies: Policies) -> Policies:
    return replace(policies, sweep=replace(policies.sweep, interval=0.002))


class TestSuccess:
    async def test_is_not_acked_while_the_execution_runs(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica(sweeping):
                await world.submit("one")
                await world.running()
                await world.until(lambda: world.kestra.requests["unfinished"] >= 3, "sweeps")
                assert (acked(world), world.broker.unsettled(QUEUE)) == ([], 1)

    async def test_is_acked_once_the_execution_has_ended(self) -> None:
        async with World() as world, world.replica():
            await world.submit("one")
            await world.settled(job="one", settlement="ack", state="SUCCESS")
            assert acked(world) == ["one"]

    async def test_is_logged_with_what_identifies_it(self) -> None:
        async with World() as world, world.replica():
            await world.submit("one")
            (line,) = await world.settled()
        wanted = {
            "event": "settled",
            "settlement": "ack",
            "job": "one",
            "lane": QUEUE,
            "redelivered": False,
            "flow": "test/job",
            "attempt": 1,
            "execution": world.kestra.created[0].id,
            "how": "created",
            "state": "SUCCESS",
        }
        assert wanted.items() <= line.items()

    async def test_is_counted(self) -> None:
        async with World() as world, world.replica() as replica:
            await world.submit("one")
            await world.settled()
            counted = [
                replica.metric("deliveries_total", lane=QUEUE, redelivered="false"),
                replica.metric("executions_total", lane=QUEUE, how="created"),
                replica.metric("outcomes_total", lane=QUEUE, state="success"),
                replica.metric("settlements_total", lane=QUEUE, settlement="ack", reason=""),
                replica.metric("job_seconds_count", lane=QUEUE),
                replica.metric("settle_seconds_count", lane=QUEUE),
            ]
        assert counted == [1] * 6

    async def test_includes_a_warning_where_the_operator_says_so(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("WARNING"))
            await world.submit("one")
            await world.settled(settlement="ack", state="WARNING")

    async def test_does_not_include_a_warning_otherwise(self) -> None:
        async with World() as world, world.replica(ack_warning=False):
            world.kestra.flow("test", "job", Ends("WARNING"))
            await world.submit("one")
            await world.settled(settlement="retry", state="WARNING")


class OneThatTakesItsTime(MemoryKestra):
    """A Kestra that shows an execution only a while after it was asked to create it."""

    async def create(self, job: Job, *, permitted: Callable[[], None] = always) -> Execution:
        await asyncio.sleep(0.01)
        return await super().create(job, permitted=permitted)


def executions_of(replica: Replica) -> float:
    """How many executions a replica has created or adopted."""
    hows = ("created", "adopted")
    return sum(replica.metric("executions_total", lane=QUEUE, how=how) for how in hows)


class TestLookingUp:
    """Whether an execution exists already is found out before one is created."""

    async def execution_of(self, world: World, job: str = "one", queue: str = QUEUE) -> str:
        """An execution that another replica created."""
        asked = Job(id=job, flow=FlowName("test", "job"), queue=queue)
        return (await world.kestra.create(asked)).id

    async def deliver_again(self, world: World) -> None:
        """Have a message redelivered that a replica held which died before it created anything."""
        await world.submit("one")
        async with world.broker.session(lambda *_: None, lambda _: None, hold=1):
            pass
        assert world.broker.depth(QUEUE) == 1

    async def test_a_redelivered_message_adopts_its_execution(self) -> None:
        async with World() as world:
            await self.deliver_again(world)
            existing = await self.execution_of(world)
            async with world.replica(deduplicate="redelivered"):
                (line,) = await world.settled(job="one", settlement="ack")
        assert (line["execution"], line["how"], len(world.kestra.created)) == (
            existing,
            "adopted",
            1,
        )

    async def test_a_redelivered_message_without_an_execution_gets_one(self) -> None:
        async with World() as world:
            await self.deliver_again(world)
            async with world.replica():
                (line,) = await world.settled(job="one", settlement="ack")
        assert (line["how"], len(world.kestra.created)) == ("created", 1)

    async def test_a_redelivered_message_that_nobody_claimed_is_looked_for_once(self) -> None:
        async with World() as world:
            await self.deliver_again(world)
            async with world.replica():
                await world.settled(job="one", settlement="ack")
        assert world.kestra.requests["find"] == 1

    async def test_beside_replicas_that_claim_nothing_a_create_on_its_way_is_waited_for(
        self,
    ) -> None:
        def patient(policies: Policies) -> Policies:
            return replace(policies, start=replace(policies.start, adopt_grace=20.0))

        async with World() as world:
            await self.execution_of(world, "earlier")
            await self.deliver_again(world)
            async with world.replica(patient):
                await world.until(lambda: world.kestra.requests["find"] >= 3, "looks")
                existing = await self.execution_of(world)
                (line,) = await world.settled(job="one", settlement="ack")
        assert (line["execution"], len(world.kestra.created)) == (existing, 2)

    async def test_a_duplicate_message_adopts_the_execution_of_the_first(self) -> None:
        async with World() as world, world.replica():
            await world.submit("one")
            await world.settled(1, job="one")
            await world.submit("one")
            lines = await world.settled(2, job="one", settlement="ack")
        assert ([line["how"] for line in lines], len(world.kestra.created)) == (
            ["created", "adopted"],
            1,
        )

    async def test_duplicates_in_flight_together_share_an_execution(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            await world.submit("one")
            (run,) = await world.running()
            await world.kestra.end(run.id)
            await world.settled(2, job="one", settlement="ack")
        assert len(world.kestra.created) == 1

    async def test_duplicates_that_arrive_at_the_same_instant_share_an_execution(self) -> None:
        async with World(kestra=OneThatTakesItsTime()) as world:
            world.run_until_ended()
            await world.submit("one")
            await world.submit("one")
            async with world.replica() as replica:
                await world.until(lambda: executions_of(replica) == 2, "both have an execution")
        assert len(world.kestra.created) == 1

    async def test_a_fresh_message_costs_no_search_where_only_redelivered_ones_are_looked_up(
        self,
    ) -> None:
        async with (
            World() as world,
            world.replica(
                lambda policies: replace(policies, start=replace(policies.start, always_look=False))
            ),
        ):
            await world.submit("one")
            await world.settled(job="one")
        assert world.kestra.requests["find"] == 0

    async def test_a_job_of_the_same_id_in_another_queue_is_another_job(self) -> None:
        async with World() as world:
            await self.execution_of(world, queue="other")
            async with world.replica():
                await world.submit("one")
                (line,) = await world.settled(job="one")
        assert line["how"] == "created"


class TestSecondExecutions:
    async def two_of(self, world: World) -> tuple[str, str]:
        """Two executions of one attempt, which two replicas created."""
        job = Job(id="one", flow=FlowName("test", "job"), queue=QUEUE)
        world.run_until_ended()
        return (await world.kestra.create(job)).id, (await world.kestra.create(job)).id

    async def test_are_killed_when_the_first_one_is_adopted(self) -> None:
        async with World() as world:
            first, second = await self.two_of(world)
            async with world.replica():
                await world.submit("one")
                await world.until(lambda: world.kestra.kills, "a kill")
                await world.kestra.end(first)
                (line,) = await world.settled(job="one", settlement="ack")
        assert (line["execution"], world.kestra.kills) == (first, [second])

    async def test_are_counted_when_they_are_killed(self) -> None:
        async with World() as world:
            await self.two_of(world)
            async with world.replica() as replica:
                await world.submit("one")
                await world.until(lambda: world.kestra.kills, "a kill")
                await world.until(
                    lambda: replica.metric("duplicate_executions_killed_total") == 1, "the metric"
                )

    async def test_are_killed_by_the_sweep(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica(sweeping):
                await world.submit("one")
                (run,) = await world.running()
                job = Job(id="one", flow=FlowName("test", "job"), queue=QUEUE)
                second = await world.kestra.create(job)
                await world.until(lambda: world.kestra.kills, "a kill")
                await world.kestra.end(run.id)
                await world.settled(settlement="ack")
        assert set(world.kestra.kills) == {second.id}

    async def test_are_left_to_the_next_look_where_a_kill_is_refused(self) -> None:
        async with World() as world:
            first, _ = await self.two_of(world)
            world.kestra.fail("kill", KestraDenied("no right to kill"))
            async with world.replica():
                await world.submit("one")
                await world.until(lambda: world.kestra.kills, "a kill")
                await world.kestra.end(first)
                await world.settled(job="one", settlement="ack")


class TestARetry:
    async def test_stands_in_its_queue_before_the_ack(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            world.broker.confirms.clear()
            world.submit_without_waiting("one")
            await world.until(lambda: world.broker.depth(SOON), "the retry stands")
            before = acked(world)
            world.broker.confirms.set()
            await world.settled(settlement="retry")
        assert (before, acked(world)) == ([], ["one"])

    async def test_is_not_acked_where_its_confirm_is_lost(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            world.broker.lost_confirms = 1
            await world.submit("one")
            await world.until(lambda: len(world.events("consuming")) == 2, "a second session")
            await world.settled(settlement="retry")
        assert len(world.broker.acked) == 1

    async def test_carries_the_number_of_the_next_attempt(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one")
            await world.settled(settlement="retry")
            (waiting,) = world.broker.messages(SOON)
        assert waiting.headers["x-bridge-attempt"] == 2

    async def test_keeps_its_body_its_id_and_its_priority(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one", {"inputs": {"x": 1}}, priority=7, correlation_id="c")
            await world.settled(settlement="retry")
            (waiting,) = world.broker.messages(SOON)
        assert (json.loads(waiting.body), waiting.message_id, waiting.priority) == (
            {"inputs": {"x": 1}},
            "one",
            7,
        )

    async def test_waits_for_its_delay(self) -> None:
        async with World() as world, world.replica():
            world.fail_first_attempts()
            await world.submit("one")
            await world.settled(settlement="retry")
            world.broker.elapse(29)
            assert world.broker.depth(SOON) == 1

    async def test_runs_as_the_next_attempt_after_its_delay(self) -> None:
        async with World() as world, world.replica():
            world.fail_first_attempts()
            await world.submit("one")
            await world.settled(settlement="retry")
            world.broker.elapse(30)
            (line,) = await world.settled(settlement="ack")
        assert (line["attempt"], world.kestra.per_attempt()) == (
            2,
            {("one", "1"): 1, ("one", "2"): 1},
        )

    async def test_waits_as_long_as_the_operator_says_and_the_last_delay_repeats(self) -> None:
        async with World() as world, world.replica(max_attempts=4):
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one")
            for number in range(3):
                await world.settled(number + 1)
                world.broker.elapse(300)
            lines = await world.settled(4)
        assert [line.get("delay") for line in lines] == [30, 300, 300, None]

    async def test_is_logged_with_its_delay_and_why(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED", error="disk full"))
            await world.submit("one")
            (line,) = await world.settled(settlement="retry")
        assert (line["next_attempt"], line["delay"], line["error"]) == (
            2,
            30,
            "task work ended FAILED: disk full",
        )

    async def test_follows_a_cancellation_too(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("CANCELLED"))
            await world.submit("one")
            await world.settled(settlement="retry", state="CANCELLED")

    async def test_waits_for_room_in_its_queue(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            world.broker.limit(SOON, 0)
            await world.submit("one")
            await world.until(
                lambda: len(world.events("a publish failed, trying again")) >= 2, "tries"
            )
            before = acked(world)
            world.broker.limit(SOON, None)
            await world.settled(settlement="retry")
        assert before == []


class TestADeadLetter:
    async def dead_letter(self, world: World) -> Message:
        await world.settled(settlement="dead_letter")
        (letter,) = world.broker.messages(DEAD)
        return letter

    async def test_stands_in_its_queue_before_the_ack(self) -> None:
        async with World() as world, world.replica():
            world.broker.confirms.clear()
            world.submit_without_waiting("bad", b"not JSON")
            await world.until(lambda: world.broker.depth(DEAD), "the dead letter stands")
            before = acked(world)
            world.broker.confirms.set()
            await world.settled(settlement="dead_letter")
        assert (before, acked(world)) == ([], ["bad"])

    async def test_says_why_in_its_headers(self) -> None:
        async with World() as world, world.replica(max_attempts=1):
            world.kestra.flow("test", "job", Ends("FAILED", error="disk full"))
            await world.submit("one")
            headers = dict((await self.dead_letter(world)).headers)
        assert datetime.fromisoformat(headers.pop("x-bridge-at")).tzinfo is not None
        assert headers == {
            "x-bridge-reason": "failed",
            "x-bridge-error": "task work ended FAILED: disk full",
            "x-bridge-attempt": 1,
            "x-bridge-queue": QUEUE,
            "x-bridge-execution": world.kestra.created[0].id,
        }

    async def test_keeps_its_body_and_its_properties(self) -> None:
        body = b'{"flow": "test/job"}'
        async with World() as world, world.replica(max_attempts=1):
            world.kestra.flow("test", "job", Ends("FAILED"))
            more = {"correlation_id": "c", "message_type": "report", "headers": {"mine": "kept"}}
            await world.submit("one", body, priority=7, **more)
            letter = await self.dead_letter(world)
        kept = letter.correlation_id, letter.message_type, letter.headers["mine"]
        assert (letter.message_id, letter.body, letter.priority) == ("one", body, 7)
        assert kept == ("c", "report", "kept")

    async def test_follows_the_last_attempt(self) -> None:
        async with World() as world, world.replica(max_attempts=2):
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one")
            await world.settled(settlement="retry")
            world.broker.elapse(30)
            letter = await self.dead_letter(world)
        assert letter.headers["x-bridge-attempt"] == 2

    async def test_counts_the_attempts_of_a_replayed_message_from_its_first(self) -> None:
        async with World() as world, world.replica(max_attempts=2):
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one", headers={"x-bridge-attempt": 4, "x-bridge-first-attempt": 4})
            await world.settled(settlement="retry")
            (waiting,) = world.broker.messages(SOON)
        assert (
            waiting.headers["x-bridge-attempt"],
            waiting.headers["x-bridge-first-attempt"],
        ) == (5, 4)

    async def test_is_what_a_kill_by_an_operator_makes(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            await world.kestra.end(run.id, "KILLED")
            assert (await self.dead_letter(world)).headers["x-bridge-reason"] == "killed"

    @pytest.mark.parametrize("body", [b"not JSON", b"[]", b'{"inputs": 1}', b""])
    async def test_is_what_an_invalid_message_becomes(self, body: bytes) -> None:
        async with World() as world, world.replica():
            await world.submit("bad", body)
            letter = await self.dead_letter(world)
        assert (letter.headers["x-bridge-reason"], letter.body, world.kestra.created) == (
            "invalid_message",
            body,
            [],
        )

    async def test_is_what_a_flow_that_is_not_allowed_becomes(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("other", "job")
            await world.submit("one", {"flow": "other/job"})
            letter = await self.dead_letter(world)
        assert (letter.headers["x-bridge-reason"], world.kestra.created) == (
            "flow_not_allowed",
            [],
        )

    async def test_is_what_kestra_rejects(self) -> None:
        async with World() as world, world.replica():
            world.kestra.fail("create", KestraRejected("input x is missing"))
            await world.submit("one")
            letter = await self.dead_letter(world)
        assert (letter.headers["x-bridge-reason"], letter.headers["x-bridge-error"]) == (
            "rejected_by_kestra",
            "flow test/job: input x is missing",
        )

    async def test_is_what_an_execution_that_is_gone_leaves(self) -> None:
        async with World() as world, world.replica(sweeping):
            world.run_until_ended()
            await world.submit("one")
            (run,) = await world.running()
            world.kestra.forget(run.id)
            letter = await self.dead_letter(world)
        assert (letter.headers["x-bridge-reason"], letter.headers["x-bridge-execution"]) == (
            "vanished",
            run.id,
        )

    async def test_waits_for_its_exchange_to_be_made_anew(self) -> None:
        async with World() as world, world.replica():
            world.broker.delete(DEAD)
            await world.submit("bad", b"not JSON")
            assert (await self.dead_letter(world)).message_id == "bad"


class TestADeadline:
    async def test_kills_the_execution(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            await world.submit("one", {"timeout": 0.01})
            (line,) = await world.settled(settlement="retry")
        assert (len(world.kestra.kills), line["error"]) == (
            1,
            "killed after its time of 0.01 s was up",
        )

    async def test_is_a_reason_of_its_own(self) -> None:
        async with World() as world, world.replica(max_attempts=1):
            world.run_until_ended()
            await world.submit("one", {"timeout": 0.01})
            await world.settled(settlement="dead_letter", reason="timed_out")

    async def test_holds_for_a_job_that_names_none(self) -> None:
        def short(policies: Policies) -> Policies:
            return replace(policies, wait=replace(policies.wait, job_timeout=0.01))

        async with World() as world, world.replica(short):
            world.run_until_ended()
            await world.submit("one")
            await world.settled(settlement="retry")
        assert len(world.kestra.kills) == 1

    async def test_has_its_kill_repeated_until_the_execution_has_ended(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
            await world.submit("one", {"timeout": 0.01})
            await world.until(lambda: len(world.kestra.kills) >= 4, "four kills")
            before = acked(world)
            await world.kestra.end(world.kestra.created[0].id, "KILLED")
            await world.settled(settlement="retry")
        assert before == []

    async def test_has_a_kill_repeated_that_is_refused(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            world.kestra.fail("kill", KestraIncompatible("what?"), times=2)
            await world.submit("one", {"timeout": 0.01})
            await world.settled(settlement="retry")
        assert len(world.kestra.kills) == 3

    async def test_shows_the_execution_that_does_not_end_by_a_metric(self) -> None:
        async with World() as world, world.replica() as replica:
            world.kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
            await world.submit("one", {"timeout": 0.01})
            await world.until(
                lambda: replica.metric("stuck_executions", why="kill_without_effect") == 1,
                "the metric",
            )

    async def test_kills_nothing_that_kestra_has_not_started(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends(after=None, starts=False))
            await world.submit("one", {"timeout": 0.01})
            await world.until(lambda: world.kestra.requests["get"] >= 3, "three looks")
        assert world.kestra.kills == []

    async def test_does_not_outdo_a_success_in_the_last_moment(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
            await world.submit("one", {"timeout": 0.01})
            await world.until(lambda: world.kestra.kills, "a kill")
            await world.kestra.end(world.kestra.created[0].id)
            await world.settled(settlement="ack")


class TestAMessageWithoutAnId:
    async def test_gets_one_and_runs(self) -> None:
        async with World() as world, world.replica():
            await world.submit(None)
            (stamp,) = await world.settled(settlement="stamp")
            (line,) = await world.settled(settlement="ack")
        assert line["job"] == stamp["stamped"]

    async def test_is_acked_only_once_the_stamped_one_stands(self) -> None:
        async with World(prefetch=1) as world, world.replica():
            world.broker.confirms.clear()
            world.submit_without_waiting(None)
            await world.until(lambda: world.broker.depth(QUEUE), "the stamped one stands")
            before = acked(world)
            world.broker.confirms.set()
            await world.settled(settlement="ack")
        assert before == []

    async def test_takes_the_way_over_a_retry_queue_where_the_lane_is_full(self) -> None:
        async with World() as world, world.replica():
            world.broker.limit(QUEUE, 0)
            world.submit_without_waiting(None)
            await world.settled(settlement="stamp")
            assert world.broker.depth(SOON) == 1


class TestADeniedFlow:
    async def test_puts_its_job_off_without_costing_it_an_attempt(self) -> None:
        async with World() as world, world.replica():
            world.kestra.fail("create", KestraDenied("no right to create"), times=None)
            await world.submit("one")
            (line,) = await world.settled(settlement="park")
            (waiting,) = world.broker.messages(SOON)
        assert (line["delay"], waiting.headers["x-bridge-attempt"]) == (30, 1)

    async def test_keeps_no_other_job_from_starting(self) -> None:
        async with World(prefetch=1) as world, world.replica():
            world.kestra.flow("test", "denied")
            world.kestra.fail(
                "create",
                KestraDenied("no right to create"),
                times=None,
                when=lambda job: job.flow.id == "denied",
            )
            await world.submit("denied", {"flow": "test/denied"})
            await world.submit("good")
            await world.settled(job="good", settlement="ack")

    async def test_is_rejected_once_others_were_created_meanwhile(self) -> None:
        async with World(prefetch=1) as world, world.replica():
            world.kestra.flow("test", "denied")
            world.kestra.fail(
                "create",
                KestraDenied("no right to create"),
                times=None,
                when=lambda job: job.flow.id == "denied",
            )
            for job in ("first", "good", "second"):
                body = {"flow": "test/job" if job == "good" else "test/denied"}
                await world.submit(job, body)
            await world.settled(job="second", reason="rejected_by_kestra")


class TestTroubleWithKestra:
    async def test_costs_no_job_an_attempt(self) -> None:
        async with World() as world, world.replica():
            for operation in ("create", "find", "get"):
                world.kestra.fail(operation, KestraUnavailable("away"), times=3)
            await world.submit("one")
            (line,) = await world.settled(settlement="ack")
        assert line["attempt"] == 1

    async def test_leaves_one_execution_after_a_create_in_doubt_that_worked(self) -> None:
        async with World() as world, world.replica():
            world.kestra.fail("create", KestraAmbiguous("no answer"), worked=True)
            await world.submit("one")
            (line,) = await world.settled(settlement="ack")
        assert (line["how"], len(world.kestra.created)) == ("adopted", 1)

    async def test_creates_again_after_a_create_in_doubt_that_did_not_work(self) -> None:
        async with World() as world, world.replica():
            world.kestra.fail("create", KestraAmbiguous("no answer"))
            await world.submit("one")
            (line,) = await world.settled(settlement="ack")
        assert (line["how"], len(world.kestra.created)) == ("created", 1)

    async def test_waits_for_the_execution_that_an_error_names(self) -> None:
        async with World() as world, world.replica():
            error = KestraAmbiguous("disappeared", "execution-1")
            world.kestra.fail("create", error, worked=True)
            await world.submit("one")
            (line,) = await world.settled(settlement="ack")
        assert (line["execution"], line["how"]) == ("execution-1", "created")

    async def test_has_an_end_found_by_the_sweep_that_no_reply_told_of(self) -> None:
        async with World() as world, world.replica(sweeping) as replica:
            world.run_until_ended()
            world.kestra.on_end = None
            await world.submit("one")
            (run,) = await world.running()
            await world.kestra.end(run.id)
            await world.settled(settlement="ack")
            assert replica.metric("reconciled_total") == 1

    async def test_has_a_reply_kept_that_comes_before_the_create_is_answered(self) -> None:
        async with World() as world, world.replica():
            world.run_until_ended()
            world.kestra.answers.clear()
            await world.submit("one")
            (run,) = await world.running()
            await world.kestra.end(run.id)
            world.kestra.answers.set()
            await world.settled(settlement="ack")

    async def test_has_a_failure_settled_without_its_reason(self) -> None:
        async with World() as world, world.replica():
            world.kestra.flow("test", "job", Ends("FAILED"))
            world.kestra.fail("explain", KestraUnavailable("away"))
            await world.submit("one")
            (line,) = await world.settled(settlement="retry")
        assert line["error"] == "execution execution-1 ended FAILED"


class TestAJobWhoseMachineIsLost:
    lost = Ends(
        "FAILED",
        error="kestra-bridge: kestra-a: the connection was lost; Command failed with exit code 74",
    )

    async def test_runs_again_up_to_a_limit_of_its_own(self) -> None:
        async with World() as world, world.replica(max_attempts=1, max_machines_lost=2):
            world.kestra.flow("test", "job", self.lost)
            await world.submit("one")
            for times, delay in ((1, 30), (2, 300)):
                await world.settled(times, settlement="retry")
                world.broker.elapse(delay)
            await world.settled(settlement="dead_letter", reason="machine_lost")
            (letter,) = world.broker.messages(DEAD)
        counted = [letter.headers[f"x-bridge-{name}"] for name in ("attempt", "machines-lost")]
        assert counted == [3, 3]

    async def test_keeps_its_attempts_for_failures_of_its_own(self) -> None:
        async with World() as world, world.replica(max_attempts=2):
            world.kestra.flow("test", "job", self.lost)
            await world.submit("one")
            await world.settled(1, settlement="retry")
            world.kestra.flow("test", "job", Ends("FAILED"))
            for times in (2, 3):
                world.broker.elapse(30)
                await world.settled(times)
            (letter,) = world.broker.messages(DEAD)
        assert letter.headers["x-bridge-attempt"] == 3

    async def test_is_counted_as_an_outcome_of_its_own(self) -> None:
        async with World() as world, world.replica() as replica:
            world.kestra.flow("test", "job", self.lost)
            await world.submit("one")
            await world.settled(settlement="retry")
            assert replica.metric("outcomes_total", lane=QUEUE, state="machine_lost") == 1

    async def test_keeps_the_count_while_kestra_denies_its_start(self) -> None:
        headers = {"x-bridge-attempt": 3, "x-bridge-machines-lost": 2}
        async with World() as world, world.replica():
            world.kestra.fail("create", KestraDenied("no"))
            await world.submit("one", headers=headers)
            await world.settled(settlement="park")
            (waiting,) = world.broker.messages(SOON)
        assert waiting.headers["x-bridge-machines-lost"] == 2


class TestMachineSeconds:
    outputs = {"machine": {"size": "small", "seconds": 1800.0}}  # noqa: RUF012

    async def test_are_counted_and_kept_from_attempt_to_attempt_up_to_the_dead_letter(
        self,
    ) -> None:
        settings: dict[str, Any] = {
            "flows_with_machines": ("test/*",),
            "prices_per_hour": {"small": 0.5},
        }
        async with World() as world, world.replica(max_attempts=2, **settings) as replica:
            world.kestra.flow("test", "job", Ends("FAILED", outputs=self.outputs))
            await world.submit("one")
            await world.settled(settlement="retry")
            world.broker.elapse(30)
            await world.settled(settlement="dead_letter")
            (letter,) = world.broker.messages(DEAD)
            counted = replica.metric("machine_seconds_total", lane=QUEUE, size="small")
        told = [letter.headers[f"x-bridge-machine-{name}"] for name in ("seconds", "cost")]
        assert (told, counted) == (['{"small": 3600.0}', "0.5"], 3600.0)

    async def test_are_asked_for_of_no_other_flow(self) -> None:
        async with World() as world, world.replica():
            await world.submit("one")
            await world.settled(settlement="ack")
        assert world.kestra.requests["outputs"] == 0

    async def test_cost_no_settlement_where_kestra_does_not_tell(self) -> None:
        async with World() as world, world.replica(flows_with_machines=("test/*",)):
            world.kestra.fail("outputs", KestraUnavailable("away"))
            await world.submit("one")
            await world.settled(settlement="ack")


class TestAnEarlierAttemptThatIsBroughtBack:
    async def retried(self, world: World) -> str:
        """A job whose retry waits; returns its first execution."""
        world.run_until_ended()
        await world.submit("one")
        (run,) = await world.running()
        await world.kestra.end(run.id, "FAILED")
        await world.settled(settlement="retry")
        world.kestra.restart(run.id)
        world.broker.elapse(30)
        await world.until(
            lambda: world.events("an earlier attempt was brought back in Kestra"), "it is found"
        )
        return run.id

    async def test_is_waited_for_in_place_of_the_retry(self) -> None:
        async with World() as world, world.replica():
            earlier = await self.retried(world)
            await world.kestra.end(earlier)
            (line,) = await world.settled(settlement="ack")
        assert (line["execution"], len(world.kestra.created)) == (earlier, 1)

    async def test_is_followed_by_the_retry_where_it_fails_once_more(self) -> None:
        async with World() as world, world.replica():
            earlier = await self.retried(world)
            await world.kestra.end(earlier, "FAILED")
            _, second = await world.running(2)
            await world.kestra.end(second.id)
            (line,) = await world.settled(settlement="ack")
        assert (line["attempt"], line["execution"]) == (2, second.id)


class TestAResult:
    @staticmethod
    def listen(world: World) -> list[dict[str, Any]]:
        """What arrives in the queue `results`."""
        world.broker._add(MemoryQueue("results"))
        return [
            json.loads(message.body) | {"correlation_id": message.correlation_id}
            for message in world.broker.messages("results")
        ]

    async def test_tells_of_a_success_with_its_outputs(self) -> None:
        async with World() as world, world.replica():
            self.listen(world)
            world.kestra.flow("test", "job", Ends(outputs={"answer": 42}))
            await world.submit("one", reply_to="results", correlation_id="c")
            await world.settled(settlement="ack")
            (result,) = self.listen(world)
        assert result == {
            "job": "one",
            "state": "SUCCESS",
            "execution": "execution-1",
            "url": "http://kestra/ui/execution-1",
            "outputs": {"answer": 42},
            "attempts": 1,
            "correlation_id": "c",
        }

    async def test_tells_of_the_machines_that_the_job_had(self) -> None:
        outputs = {"machine": {"size": "small", "seconds": 1800.0}}
        async with World() as world, world.replica(flows_with_machines=("test/*",)):
            self.listen(world)
            world.kestra.flow("test", "job", Ends(outputs=outputs))
            await world.submit("one", reply_to="results")
            await world.settled(settlement="ack")
            (result,) = self.listen(world)
        assert (result["machine_seconds"], result["machine_cost"]) == ({"small": 1800.0}, None)

    async def test_tells_of_a_dead_letter_with_its_reason(self) -> None:
        async with World() as world, world.replica():
            self.listen(world)
            await world.submit("bad", b"not JSON", reply_to="results")
            await world.settled(settlement="dead_letter")
            (result,) = self.listen(world)
        assert (result["state"], result["execution"], result["reason"], result["attempts"]) == (
            None,
            None,
            "invalid_message",
            0,
        )

    async def test_tells_the_outputs_of_a_job_that_failed_too(self) -> None:
        async with World() as world, world.replica(max_attempts=1):
            self.listen(world)
            world.kestra.flow("test", "job", Ends("FAILED", outputs={"answer": 42}))
            await world.submit("one", reply_to="results")
            await world.settled(settlement="dead_letter")
            (result,) = self.listen(world)
        assert (result["state"], result["outputs"]) == ("FAILED", {"answer": 42})

    async def test_is_not_sent_for_a_retry(self) -> None:
        async with World() as world, world.replica():
            self.listen(world)
            world.kestra.flow("test", "job", Ends("FAILED"))
            await world.submit("one", reply_to="results")
            await world.settled(settlement="retry")
            assert self.listen(world) == []

    async def test_is_sent_before_the_ack(self) -> None:
        async with World() as world, world.replica():
            self.listen(world)
            world.broker.confirms.clear()
            world.submit_without_waiting("one", reply_to="results")
            await world.until(lambda: self.listen(world), "the result")
            before = acked(world)
            world.broker.confirms.set()
            await world.settled(settlement="ack")
        assert before == []

    async def test_that_nobody_takes_holds_up_no_job(self) -> None:
        async with World() as world, world.replica() as replica:
            await world.submit("one", reply_to="nowhere")
            await world.settled(settlement="ack")
            assert replica.metric("results_total", lane=QUEUE, result="undeliverable") == 1

    async def test_goes_without_outputs_that_kestra_refuses(self) -> None:
        async with World() as world, world.replica():
            self.listen(world)
            world.kestra.fail("outputs", KestraRejected("no"))
            await world.submit("one", reply_to="results")
            await world.settled(settlement="ack")
            (result,) = self.listen(world)
        assert result["outputs"] is None


class TestASettlement:
    async def test_is_left_to_the_broker_where_the_session_is_gone(self) -> None:
        async with World() as world, world.replica():
            world.broker.confirms.clear()
            world.submit_without_waiting("bad", b"not JSON")
            await world.until(lambda: world.broker.depth(DEAD), "the dead letter stands")
            world.broker.cut()
            world.broker.confirms.set()
            await world.settled(job="bad", settlement="dead_letter")
        assert acked(world) == ["bad"]

    async def test_that_was_cancelled_leaves_the_message_in_its_queue(self) -> None:
        async with World() as world:
            world.run_until_ended()
            async with world.replica():
                await world.submit("one", timestamp=world.kestra.now() - timedelta(seconds=5))
                await world.running()
                await asyncio.sleep(0)
            assert [message.message_id for message in world.broker.messages(QUEUE)] == ["one"]
