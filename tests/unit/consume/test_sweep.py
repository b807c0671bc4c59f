"""The sweep: which ends it finds, and what it makes of an execution that Kestra doesn't know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from bridge.consume.completions import CompletionRouter, CompletionWaiter
from bridge.consume.hearing import Hearing
from bridge.consume.sweep import Reconciler, SweepPolicy, must_sweep
from bridge.job.execution import State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics
from tests.support.harness import settings_of
from tests.support.standin import Ends, Standin


@dataclass
class Rig:
    kestra: Standin
    client: Kestra
    completions: CompletionRouter
    reconciler: Reconciler

    async def create(self, job: str = "one") -> str:
        return (await self.client.create(Job(id=job, flow=FlowName("test", "job")))).id


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    metrics = Metrics()
    completions = CompletionRouter(metrics)
    async with Standin() as kestra:
        kestra.flow("test", "job", Ends(after=None))
        async with Kestra(settings_of(kestra), metrics) as client:
            yield Rig(
                kestra,
                client,
                completions,
                Reconciler(
                    kestra=client,
                    completions=completions,
                    hearing=Hearing(reporter="q", completions=completions, metrics=metrics),
                    metrics=metrics,
                ),
            )


async def state_of(waiter: CompletionWaiter) -> State | None:
    return (await waiter.next(timeout=1)).state


async def test_an_end_that_no_reply_told_of_is_told(rig: Rig) -> None:
    execution = await rig.create()
    with rig.completions.waiting_for(execution) as waiter:
        await rig.kestra.end(execution, "FAILED")
        await rig.reconciler.sweep()
        assert await state_of(waiter) is State.FAILED


async def test_an_execution_that_runs_on_is_no_news(rig: Rig) -> None:
    with rig.completions.waiting_for(await rig.create()):
        assert await rig.reconciler.sweep() == 0


async def test_nobody_waiting_costs_no_listing(rig: Rig) -> None:
    await rig.create()
    await rig.reconciler.sweep()
    assert rig.kestra.requests["search"] == 0


async def test_a_hundred_that_run_cost_one_listing(rig: Rig) -> None:
    executions = [await rig.create(f"job-{number}") for number in range(100)]
    waiters = [rig.completions.waiting_for(execution) for execution in executions]
    for waiter in waiters:
        waiter.__enter__()
    await rig.reconciler.sweep()
    assert (rig.kestra.requests["search"], rig.kestra.requests["get"]) == (1, 0)


async def test_a_second_execution_of_one_attempt_is_killed(rig: Rig) -> None:
    first, second = await rig.create(), await rig.create()
    with rig.completions.waiting_for(second):
        await rig.reconciler.sweep()
    assert (rig.kestra.kills, rig.kestra.executions[first].state) == ([second], "RUNNING")


@pytest.mark.parametrize(
    ("reporting", "unlisted_for", "sweeps"),
    [(True, 31, False), (True, 60, True), (False, 30, True), (False, 29, False)],
)
def test_a_replica_sweeps_once_it_has_missed_the_reporters_lists(
    *, reporting: bool, unlisted_for: float, sweeps: bool
) -> None:
    policy = SweepPolicy(interval=30, reporting=reporting)
    assert must_sweep(policy, unlisted_for=unlisted_for) is sweeps


async def test_only_what_a_list_lacks_is_asked_for(rig: Rig) -> None:
    ended, _runs = await rig.create("one"), await rig.create("two")
    with rig.completions.waiting_for(ended) as waiter:
        await rig.kestra.end(ended, "FAILED")
        assert await rig.reconciler.look_for({ended}) == 1
        assert (await state_of(waiter), rig.kestra.requests["get"]) == (State.FAILED, 1)


async def test_an_execution_that_is_unknown_once_is_not_gone(rig: Rig) -> None:
    execution = await rig.create()
    rig.kestra.forget(execution)
    with rig.completions.waiting_for(execution):
        found = [await rig.reconciler.sweep() for _ in range(SweepPolicy().gone_after - 1)]
        assert set(found) == {0}


async def test_an_execution_that_stays_unknown_is_gone(rig: Rig) -> None:
    execution = await rig.create()
    rig.kestra.forget(execution)
    with rig.completions.waiting_for(execution) as waiter:
        for _ in range(SweepPolicy().gone_after):
            await rig.reconciler.sweep()
        assert await state_of(waiter) is None
