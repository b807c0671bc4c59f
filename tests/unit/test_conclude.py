"""Starting an execution once, and waiting for its end in all the ways in which it can come or stay away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from bridge import conclude, start
from bridge.conclude import Concluder, Vanished
from bridge.errors import KestraRejected
from bridge.execution import Outcome, State
from bridge.job import FlowName, Job
from bridge.kestra import Kestra
from bridge.metrics import Metrics
from bridge.replies import News, Watch
from bridge.start import Starter
from tests.harness import settings_of, starter_of
from tests.standin import Ends, Standin

JOB = Job(id="one", flow=FlowName("test", "job"))


@dataclass
class Rig:
    kestra: Standin
    client: Kestra
    watch: Watch
    starter: Starter
    concluder: Concluder

    async def outcome(self, job: Job = JOB) -> Outcome:
        started = await self.starter.start(job, redelivered=False)
        return await self.concluder.outcome(job, started.execution)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """The real parts with short waits, a stand-in for Kestra, and its replies brought straight to the watch."""
    monkeypatch.setattr(conclude, "CONFIRM_AFTER", 0.05)
    metrics = Metrics()
    watch = Watch(metrics)
    async with Standin() as kestra:
        kestra.flow("test", "job")

        async def reply(told: dict[str, str]) -> None:
            watch.tell(News(execution_id=told["executionId"], state=State(told["state"])))

        kestra.replies.on_end = reply
        async with Kestra(settings_of(kestra), metrics) as client:
            starter = starter_of(client, metrics)
            concluder = Concluder(kestra=client, watch=watch, starter=starter, job_timeout=10, kill_round=0.1)
            yield Rig(kestra, client, watch, starter, concluder)


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
    assert (outcome.label, outcome.error) == ("failed", f"execution {outcome.execution.id} ended FAILED")


async def test_a_flows_own_retry_is_followed_to_its_end(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.05, retries=2))
    outcome = await rig.outcome()
    assert (outcome.label, outcome.execution.id) == ("success", rig.kestra.executions_of("one")[-1].id)


async def test_an_execution_past_its_time_is_killed(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    outcome = await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))
    assert (outcome.timed_out, outcome.label) == (True, "timed_out")


async def test_success_in_the_last_moment_beats_the_kill(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=0.3))
    rig.kestra.faults.add("kill", delay=0.5)
    outcome = await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))
    assert outcome.label == "success"


async def test_a_kill_that_sticks_is_repeated_and_then_counts_as_a_time_out(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
    outcome = await rig.outcome(Job(id="one", flow=JOB.flow, timeout=0.2))
    assert (outcome.label, len(rig.kestra.kills)) == ("timed_out", conclude.KILL_ROUNDS)


async def test_an_operators_kill_before_the_deadline_is_no_time_out(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("KILLED", after=0.2))
    assert (await rig.outcome()).label == "killed"


async def test_a_kill_at_the_deadline_by_another_replica_is_a_time_out(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends("KILLED", after=0.3))
    started = await rig.starter.start(JOB, redelivered=False)
    await rig.kestra.until(lambda: rig.kestra.created[0].ended is not None, "the execution was killed")
    job = Job(id="one", flow=JOB.flow, timeout=0.3)
    assert (await rig.concluder.outcome(job, started.execution)).label == "timed_out"


async def test_an_execution_that_is_gone_has_vanished(rig: Rig) -> None:
    rig.kestra.flow("test", "job", Ends(after=None))
    started = await rig.starter.start(JOB, redelivered=False)
    rig.kestra.forget(started.execution.id)
    failed = replace(started.execution, state=State.FAILED)
    with pytest.raises(Vanished):
        await rig.concluder.outcome(JOB, failed)


async def test_a_job_over_which_kestra_fails_while_others_are_created_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "MANY_FAILURES", 3)
    rig.kestra.faults.add("create", status=500, times=None, when=lambda call: "poison" in call.url)
    poison = asyncio.create_task(rig.starter.start(Job(id="poison", flow=JOB.flow), redelivered=False))
    await rig.kestra.until(lambda: rig.kestra.requests["create"] >= 1, "the first failure")
    await rig.starter.start(JOB, redelivered=False)
    with pytest.raises(KestraRejected):
        await asyncio.wait_for(poison, 10)


async def test_a_kestra_that_fails_over_every_job_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MANY_FAILURES", 3)
    rig.kestra.faults.add("create", status=500, times=6)
    assert (await rig.starter.start(JOB, redelivered=False)).execution.labels["bridgeJob"] == "one"


async def test_an_execution_of_another_flow_is_found_after_the_lanes_flow_was_changed(rig: Rig) -> None:
    rig.kestra.flow("test", "new")
    first = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="q"), redelivered=False)
    second = await rig.starter.start(Job(id="one", flow=FlowName("test", "new"), queue="q"), redelivered=True)
    assert (second.adopted, second.execution.id) == (True, first.execution.id)


async def test_a_job_of_the_same_id_in_another_queue_is_another_job(rig: Rig) -> None:
    first = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="q"), redelivered=False)
    second = await rig.starter.start(Job(id="one", flow=JOB.flow, queue="other"), redelivered=False)
    assert (second.adopted, second.execution.id != first.execution.id) == (False, True)
