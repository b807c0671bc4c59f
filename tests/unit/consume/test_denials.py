"""Creates that Kestra denies: for one flow, for all, or because it lets nobody in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from bridge.consume.denials import DenialPolicy, Denials, Parked
from bridge.consume.starter import Started, Starter, StartPolicy
from bridge.errors import KestraDenied, KestraRejected
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics
from tests.support.harness import settings_of, starter_of
from tests.support.standin import Standin

DENIED = Job(id="denied", flow=FlowName("test", "denied"))
GOOD = Job(id="good", flow=FlowName("test", "good"))


@dataclass
class Rig:
    kestra: Standin
    client: Kestra
    starter: Starter

    async def start(self, job: Job) -> Started:
        return await asyncio.wait_for(self.starter.start(job, redelivered=False), 20)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A Kestra that denies the creates of `test/denied`, and denied jobs that keep their slot for a
    moment only."""
    metrics = Metrics()
    async with Standin() as kestra, Kestra(settings_of(kestra), metrics) as client:
        for job in (DENIED, GOOD):
            kestra.flow(job.flow.namespace, job.flow.id)
        kestra.faults.add(
            "create", status=403, times=None, when=lambda call: "/test/denied" in call.url
        )
        starter = starter_of(
            client, metrics, denials=DenialPolicy(hold=0.1), policy=StartPolicy(denied_pause=0.4)
        )
        yield Rig(kestra, client, starter)


async def test_a_job_that_only_creates_are_denied_to_is_put_off(rig: Rig) -> None:
    with pytest.raises(Parked, match="test/denied: Kestra denies the user the right to create"):
        await rig.start(DENIED)


async def test_it_is_rejected_once_others_were_created_meanwhile(rig: Rig) -> None:
    with pytest.raises(Parked):
        await rig.start(DENIED)
    await rig.start(GOOD)
    with pytest.raises(KestraRejected, match="lets us create those of other flows"):
        await rig.start(DENIED)


async def test_creates_before_the_denial_say_nothing_against_the_flow(rig: Rig) -> None:
    await rig.start(GOOD)
    with pytest.raises(Parked):
        await rig.start(DENIED)


async def test_credentials_that_are_refused_everywhere_are_waited_for(rig: Rig) -> None:
    rig.kestra.faults.add("configs", status=401, times=None)
    pending = asyncio.create_task(rig.start(DENIED))
    await rig.kestra.until(lambda: rig.kestra.requests["create"] >= 2, "a second try", timeout=15)
    rig.kestra.faults.clear()
    assert not (await pending).adopted


async def test_a_flow_that_is_allowed_again_has_a_clean_slate(rig: Rig) -> None:
    with pytest.raises(Parked):
        await rig.start(DENIED)
    rig.kestra.faults.clear()
    await rig.start(DENIED)
    rig.kestra.faults.add(
        "create", status=403, times=None, when=lambda call: "/test/denied" in call.url
    )
    with pytest.raises(Parked):
        await rig.start(Job(id="another", flow=DENIED.flow))


async def test_the_next_job_of_a_denied_flow_keeps_no_slot(rig: Rig) -> None:
    with pytest.raises(Parked):
        await rig.start(DENIED)
    before = rig.kestra.requests["create"]
    with pytest.raises(Parked):
        await rig.start(Job(id="another", flow=DENIED.flow))
    assert rig.kestra.requests["create"] - before == 1


async def test_a_create_that_was_asked_for_before_the_denial_says_nothing_against_the_flow(
    rig: Rig,
) -> None:
    rig.kestra.faults.add("create", delay=0.1, when=lambda call: "/test/good" in call.url)
    good = asyncio.create_task(rig.start(GOOD))
    await rig.kestra.until(
        lambda: rig.kestra.requests["create"] == 1, "the create of another flow", timeout=15
    )
    with pytest.raises(Parked):
        await rig.start(DENIED)
    assert good.done()


async def test_an_old_denial_says_nothing_of_a_new_one(rig: Rig) -> None:
    denials = Denials(rig.client, DenialPolicy(hold=0, forget_after=0))
    with pytest.raises(Parked):
        await denials.judge(DENIED, KestraDenied("no rights"))
    denials.note_create(GOOD.flow, asked=time.monotonic())
    with pytest.raises(Parked):
        await denials.judge(DENIED, KestraDenied("no rights"))
