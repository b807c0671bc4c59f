"""Starting an execution once, and waiting for its end in all the ways in which it can come or stay
away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from bridge.consume.completions import CompletionRouter
from bridge.consume.deadline import KillPolicy
from bridge.consume.reports import Completion
from bridge.consume.starter import Started, Starter, StartPolicy
from bridge.consume.waiter import OutcomeWaiter, Vanished, WaitPolicy
from bridge.errors import KestraRejected
from bridge.job.execution import Outcome, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.retrying import BackOff
from bridge.telemetry.metrics import Metrics
from tests.support.harness import lookup_of, settings_of, starter_of
from tests.support.standin import Ends, Standin

JOB = Job(id="one", flow=FlowName("test", "job"))


@dataclass
class Rig:
    kestra: Standin
    client: Kestra
    completions: CompletionRouter
    metrics: Metrics
    starter: Starter
    waiter: OutcomeWaiter

    async def outcome(self, job: Job = JOB) -> Outcome:
        started = await self.starter.start(job, redelivered=False)
        return await self.waiter.outcome(job, started)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """The real parts with short waits, a stand-in for Kestra, and its replies brought straight to
    the router."""
    metrics = Metrics()
    completions = CompletionRouter(metrics)
    async with Standin() as kestra:
        kestra.flow("test", "job")

        async def reply(told: dict[str, str]) -> None:
            completions.route(
                Completion(execution_id=told["executionId"], state=State(told["state"]))
            )

        kestra.replies.on_end = reply
        async with Kestra(settings_of(kestra), metrics) as client:
            waiter = OutcomeWaiter(
                kestra=client,
                completions=completions,
                lookup=lookup_of(client, metrics),
                metrics=metrics,
                policy=WaitPolicy(
                    job_timeout=10,
                    confirm_after=0.05,
                    refused_for=1,
                    refusals=BackOff(shortest=0.1, longest=0.2),
                    kill=KillPolicy(again_after=0.1, again_at_most=0.2, look_again_after=0.1),
                ),
            )
            starter = starter_of(client, metrics, policy=StartPolicy(many_failures=3))
            yield Rig(kestra, client, completions, metrics, starter, waiter)


async def test_success_is_taken_at_its_word(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.1))
    outcome = await rig.outcome()
    assert (outcome.label, rig.kestra.requests["get"]) == ("success", 0)


async def test_failure_is_told_with_the_task_and_its_error(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=0.1, error="disk full"), task="copy")
    assert (await rig.outcome()).error == "task copy ended FAILED: disk full"


async def test_a_failure_that_kestra_does_not_explain_is_a_failure_all_the_same(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=0.1))
    rig.kestra.faults.add("logs", times=None, status=500)
    outcome = await rig.outcome()
    assert (outcome.label, outcome.error) == (
        "failed",
        f"execution {outcome.execution.id} ended FAILED",
    )


async def test_a_flows_own_retry_is_followed_to_its_end(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.05, retries=2))
    outcome = await rig.outcome()
    assert (outcome.label, outcome.execution.id) == (
        "success",
        rig.kestra.executions_of("one")[-1].id,
    )


async def test_an_execution_past_its_time_is_killed(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    outcome = await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))
    assert (outcome.timed_out, outcome.label) == (True, "timed_out")


async def test_success_in_the_last_moment_beats_the_kill(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.3))
    rig.kestra.faults.add("kill", delay=0.5)
    outcome = await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))
    assert outcome.label == "success"


def stuck(rig: Rig, why: str) -> float | None:
    return rig.metrics.registry.get_sample_value("bridge_stuck_executions", {"why": why})


class TestAKillWithoutEffect:
    @pytest.fixture
    async def pending(self, rig: Rig) -> AsyncIterator[asyncio.Task[Outcome]]:
        """A job past its time whose execution Kestra does not end, whatever it answers to a
        kill."""
        rig.kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
        task = asyncio.create_task(rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2)))
        yield task
        task.cancel()

    async def test_is_repeated_for_as_long_as_the_execution_runs(
        self, rig: Rig, pending: asyncio.Task[Outcome]
    ) -> None:
        await rig.kestra.until(lambda: len(rig.kestra.kills) >= 4, "four kills")
        assert not pending.done()

    @pytest.mark.usefixtures("pending")
    async def test_is_shown_by_a_metric(self, rig: Rig) -> None:
        await rig.kestra.until(lambda: stuck(rig, "kill_without_effect") == 1, "the metric")

    async def test_frees_the_slot_at_the_executions_end(
        self, rig: Rig, pending: asyncio.Task[Outcome]
    ) -> None:
        await rig.kestra.until(lambda: len(rig.kestra.kills) >= 2, "two kills")
        await rig.kestra.end(rig.kestra.created[0].id, "SUCCESS")
        assert (await asyncio.wait_for(pending, 10)).label == "success"

    async def test_is_a_time_out_once_it_worked(
        self, rig: Rig, pending: asyncio.Task[Outcome]
    ) -> None:
        await rig.kestra.until(lambda: len(rig.kestra.kills) >= 2, "two kills")
        await rig.kestra.end(rig.kestra.created[0].id, "KILLED")
        assert (await asyncio.wait_for(pending, 10)).label == "timed_out"


@pytest.mark.parametrize("status", [400, 401, 403, 405, 406, 422, 500, 503])
async def test_a_kill_that_is_refused_does_not_keep_the_slot_beyond_the_end(
    rig: Rig, status: int
) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    rig.kestra.faults.add("kill", status=status, times=None)
    pending = asyncio.create_task(rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2)))
    await rig.kestra.until(lambda: rig.kestra.requests["kill"] >= 2, "a kill that is asked again")
    await rig.kestra.end(rig.kestra.created[0].id, "SUCCESS")
    assert (await asyncio.wait_for(pending, 10)).label == "success"


async def test_an_end_that_no_reply_tells_is_seen_between_two_kills(rig: Rig) -> None:
    rig.kestra.replies.on_end = None
    rig.kestra.flow("test", "job", Ends(after=None))
    assert (await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))).label == "timed_out"


class TestAnExecutionThatKestraDoesNotStart:
    @pytest.fixture
    async def pending(self, rig: Rig) -> AsyncIterator[asyncio.Task[Outcome]]:
        rig.kestra.flow("test", "job", Ends(after=None, starts=False))
        task = asyncio.create_task(rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2)))
        await rig.kestra.until(
            lambda: stuck(rig, "never_started") == 1, "the metric of executions that never started"
        )
        yield task
        task.cancel()

    async def test_is_not_killed(self, rig: Rig, pending: asyncio.Task[Outcome]) -> None:
        await rig.kestra.until(lambda: rig.kestra.requests["get"] >= 3, "a third look")
        assert (rig.kestra.kills, pending.done()) == ([], False)

    async def test_has_all_its_time_once_it_has_started(
        self, rig: Rig, pending: asyncio.Task[Outcome]
    ) -> None:
        run = rig.kestra.created[0]
        rig.kestra.begin(run.id)
        await asyncio.wait_for(pending, 10)
        times = dict(run.histories)
        assert (times["KILLED"] - times["RUNNING"]).total_seconds() >= 0.19

    async def test_counts_once_it_has_ended(self, rig: Rig, pending: asyncio.Task[Outcome]) -> None:
        await rig.kestra.end(rig.kestra.created[0].id, "SUCCESS")
        assert (await asyncio.wait_for(pending, 10)).label == "success"


async def test_a_restarted_execution_that_kestra_does_not_run_yet_is_not_killed(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=None))
    started = await rig.starter.start(JOB, redelivered=False)
    await rig.kestra.end(started.execution.id, "FAILED")
    rig.kestra.halt()
    rig.kestra.restart(started.execution.id)
    adopted = await rig.starter.start(JOB, redelivered=True)
    pending = asyncio.create_task(rig.waiter.outcome(replace(JOB, timeout=0.2), adopted))
    await rig.kestra.until(
        lambda: stuck(rig, "never_started") == 1, "the metric of executions that never started"
    )
    pending.cancel()
    assert rig.kestra.kills == []


async def test_a_wait_for_the_start_is_no_time_of_what_the_flows_retry_makes(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.5, retries=1))
    rig.kestra.halt()
    pending = asyncio.create_task(rig.outcome(replace(JOB, timeout=2)))
    await rig.kestra.until(
        lambda: stuck(rig, "never_started") == 1, "the metric of executions that never started"
    )
    rig.kestra.go_on()
    assert ((await asyncio.wait_for(pending, 20)).label, rig.kestra.kills) == ("success", [])


async def test_what_an_execution_ran_is_time_of_what_the_flows_retry_makes(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.8, retries=3))
    assert (await asyncio.wait_for(rig.outcome(replace(JOB, timeout=1)), 20)).label == "timed_out"


async def test_a_kill_that_kestra_fails_over_is_shown_by_a_metric_and_asked_again(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    rig.kestra.faults.add("kill", status=500, times=None)
    pending = asyncio.create_task(rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2)))
    await rig.kestra.until(lambda: stuck(rig, "kill_unanswered") == 1, "the metric")
    rig.kestra.faults.clear()
    assert (await asyncio.wait_for(pending, 10)).label == "timed_out"


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_gateways_clock_brings_no_deadline_forward_or_back(
    rig: Rig, ahead: timedelta
) -> None:
    rig.kestra.date_skew = ahead
    rig.kestra.flow("test", "job", Ends(after=None))
    began = time.monotonic()
    outcome = await asyncio.wait_for(rig.outcome(Job(id="one", flow=JOB.flow, timeout=1)), 20)
    assert (outcome.label, time.monotonic() - began >= 1) == ("timed_out", True)


@pytest.mark.parametrize("status", [403, 406, 422])
async def test_an_end_is_confirmed_without_the_look_ups_that_kestra_refuses(
    rig: Rig, status: int
) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=0.1))
    started = await rig.starter.start(JOB, redelivered=False)
    rig.kestra.faults.add("search", status=status, times=None)
    assert (await asyncio.wait_for(rig.waiter.outcome(JOB, started), 10)).label == "failed"


@pytest.mark.parametrize("status", [401, 403, 406, 422])
async def test_an_end_that_can_not_be_confirmed_for_long_counts_as_it_was_told(
    rig: Rig, status: int
) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=0.1))
    started = await rig.starter.start(JOB, redelivered=False)
    for operation in ("search", "get"):
        rig.kestra.faults.add(operation, status=status, times=None)
    assert (await asyncio.wait_for(rig.waiter.outcome(JOB, started), 10)).label == "failed"


@pytest.mark.parametrize("status", [401, 403, 406])
async def test_an_end_is_confirmed_after_refusals_that_pass(rig: Rig, status: int) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.05, retries=1))
    started = await rig.starter.start(JOB, redelivered=False)
    for operation in ("search", "get"):
        rig.kestra.faults.add(operation, status=status, times=2)
    assert (await asyncio.wait_for(rig.waiter.outcome(JOB, started), 10)).label == "success"


async def test_one_refusal_that_was_long_in_coming_is_none_that_lasts(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.05, retries=1))
    started = await rig.starter.start(JOB, redelivered=False)
    for operation in ("search", "get"):
        rig.kestra.faults.add(operation, status=403, times=1, delay=0.6)
    assert (await asyncio.wait_for(rig.waiter.outcome(JOB, started), 10)).label == "success"


async def test_of_many_failures_at_once_each_is_explained(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("FAILED", after=0.1, error="disk full"), task="copy")
    rig.kestra.faults.add("logs", delay=0.2, times=None)
    jobs = [Job(id=f"job-{number}", flow=JOB.flow) for number in range(60)]
    outcomes = await asyncio.gather(*map(rig.outcome, jobs))
    assert {outcome.error for outcome in outcomes} == {"task copy ended FAILED: disk full"}


async def test_a_deadline_that_a_gateways_clock_moves_back_comes_forward_once_the_clock_is_known(
    rig: Rig,
) -> None:
    rig.kestra.date_skew = timedelta(hours=-1)
    rig.kestra.flow("test", "job", Ends(after=None))
    run = rig.kestra.past({}, "RUNNING")
    found = await rig.client.get(run.id)
    assert found is not None
    adopted = Started(found, adopted=True)
    pending = asyncio.create_task(rig.waiter.outcome(replace(JOB, timeout=0.2), adopted))
    await asyncio.sleep(0)
    assert run.id in rig.completions.awaited()
    rig.kestra.date_skew = None
    await rig.starter.start(replace(JOB, id="other"), redelivered=False)
    await rig.kestra.until(
        lambda: bool(rig.kestra.kills), "a kill of the execution whose time is up"
    )
    pending.cancel()


async def test_an_operators_kill_before_the_deadline_is_no_time_out(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("KILLED", after=0.2))
    assert (await rig.outcome()).label == "killed"


async def test_a_kill_at_the_deadline_by_another_replica_is_a_time_out(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("KILLED", after=0.3))
    started = await rig.starter.start(JOB, redelivered=False)
    await rig.kestra.until(
        lambda: rig.kestra.created[0].ended is not None, "the execution was killed"
    )
    job = Job(id="one", flow=JOB.flow, timeout=0.3)
    assert (await rig.waiter.outcome(job, started)).label == "timed_out"


async def test_an_execution_that_is_gone_has_vanished(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    started = await rig.starter.start(JOB, redelivered=False)
    rig.kestra.forget(started.execution.id)
    failed = replace(started.execution, state=State.FAILED)
    with pytest.raises(Vanished):
        await rig.waiter.outcome(JOB, replace(started, execution=failed))


async def test_a_job_over_which_kestra_fails_while_others_are_created_is_refused(rig: Rig) -> None:
    rig.kestra.faults.add("create", status=500, times=None, when=lambda call: "poison" in call.url)
    poison = asyncio.create_task(
        rig.starter.start(Job(id="poison", flow=JOB.flow), redelivered=False)
    )
    await rig.kestra.until(lambda: rig.kestra.requests["create"] >= 1, "the first failure")
    await rig.starter.start(JOB, redelivered=False)
    with pytest.raises(KestraRejected):
        await asyncio.wait_for(poison, 10)


async def test_a_kestra_that_fails_over_every_job_is_waited_for(rig: Rig) -> None:
    rig.kestra.faults.add("create", status=500, times=6)
    assert (await rig.starter.start(JOB, redelivered=False)).execution.labels["bridgeJob"] == "one"


async def test_an_execution_of_another_flow_is_found_after_the_lanes_flow_was_changed(
    rig: Rig,
) -> None:
    rig.kestra.flow("test", "new")
    first = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="q"), redelivered=False)
    second = await rig.starter.start(
        Job(id="one", flow=FlowName("test", "new"), queue="q"), redelivered=True
    )
    assert (second.adopted, second.execution.id) == (True, first.execution.id)


async def test_a_job_of_the_same_id_in_another_queue_is_another_job(rig: Rig) -> None:
    first = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="q"), redelivered=False)
    second = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="other"), redelivered=False)
    assert (second.adopted, second.execution.id != first.execution.id) == (False, True)
