"""Replicas and their reporter: who it is, who follows it, and that jobs settle by what it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from bridge.consume.reports import LIST_KEY
from bridge.consume.service import Policies
from bridge.errors import KestraUnavailable
from bridge.rabbitmq.topology import reporter_lock
from tests.support.memory_broker import MemorySession
from tests.support.replica import QUEUE, Replica, World, settings_for_a_test

LOCK = reporter_lock(QUEUE)


def reporting(policies: Policies) -> Policies:
    """A reporter that asks every few milliseconds; its signs and lists come as often."""
    report = replace(
        policies.report,
        interval=0.002,
        sign_every=0.002,
        silent_after=0.02,
        again_after=0.002,
        list_every=0.01,
        gives_way_after=0.01,
        rest=0.05,
    )
    sweep = replace(policies.sweep, reporting=True, shown_within=0.0, told_within=0.0)
    return replace(policies, report=report, sweep=sweep)


def listening(policies: Policies) -> Policies:
    """A replica that is never the reporter, nor expects one."""
    return replace(policies, sweep=replace(policies.sweep, shown_within=0.0, told_within=0.0))


def alone(policies: Policies) -> Policies:
    """A replica that expects a reporter and hears none."""
    sweep = replace(policies.sweep, reporting=True, interval=0.01)
    return replace(policies, sweep=sweep)


@asynccontextmanager
async def quiet_world() -> AsyncIterator[World]:
    """A Kestra without a notifier."""
    async with World() as world:
        world.kestra.on_end = None
        yield world


def reporters(*replicas: Replica) -> list[float]:
    return [each.metric("reporter") for each in replicas]


def lists_told(world: World) -> int:
    return [key for key, _ in world.broker.told].count(LIST_KEY)


async def test_a_job_settles_by_what_the_reporter_tells() -> None:
    async with quiet_world() as world, world.replica(reporting):
        await world.submit("one")
        await world.settled(job="one", settlement="ack")


async def test_a_replica_that_is_not_the_reporter_hears_it() -> None:
    async with quiet_world() as world, world.replica(reporting):
        await world.until(lambda: LOCK in world.broker.leaders, "a reporter")
        async with world.replica(listening) as other:
            for job in range(2 * world.prefetch):
                await world.submit(f"job-{job}")
            await world.settled(2 * world.prefetch, settlement="ack")
        assert other.metric("deliveries_total", lane=QUEUE, redelivered="false") > 0


async def test_one_of_several_replicas_is_the_reporter() -> None:
    async with quiet_world() as world, AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(world.replica(reporting)) for _ in range(3)]
        await world.until(lambda: sum(reporters(*replicas)) == 1, "a reporter")
        told = len(world.broker.told)
        await world.until(lambda: len(world.broker.told) > told + 20, "signs and lists")
        assert sum(reporters(*replicas)) == 1


async def test_another_replica_takes_over() -> None:
    async with quiet_world() as world, world.replica(reporting) as first:
        await world.until(lambda: reporters(first) == [1], "a reporter")
        async with world.replica(reporting) as second:
            leader = world.broker.leaders[LOCK]
            leader.end("connection_closed", "cut by the test")
            assert isinstance(leader, MemorySession)
            await world.until(lambda: sum(reporters(first, second)) == 1, "a reporter")
            await world.submit("one")
            await world.settled(job="one", settlement="ack")


async def test_the_reporter_gives_way_where_kestra_does_not_answer_it() -> None:
    async with quiet_world() as world, world.replica(reporting):
        await world.until(lambda: LOCK in world.broker.leaders, "a reporter")
        world.kestra.fail("ended_since", KestraUnavailable("away"), times=None)
        await world.until(lambda: LOCK not in world.broker.leaders, "no reporter")
        world.kestra.recover()
        await world.submit("one")
        await world.settled(job="one", settlement="ack")


async def test_an_end_that_only_the_list_shows_is_found() -> None:
    async with quiet_world() as world, world.replica(reporting) as replica:
        world.run_until_ended()
        await world.submit("one")
        (run,) = await world.running()
        await world.kestra.end(run.id)
        ended = world.kestra.executions[run.id].ended
        assert ended is not None
        # As a node dates it whose clock is an hour behind.
        world.kestra.executions[run.id] = replace(
            world.kestra.executions[run.id], ended=ended.replace(year=2020)
        )
        await world.settled(job="one", settlement="ack")
        assert replica.metric("reconciled_total") == 1


async def test_a_replica_that_hears_no_reporter_sweeps() -> None:
    async with quiet_world() as world, world.replica(alone):
        await world.submit("one")
        await world.settled(job="one", settlement="ack")


async def test_replicas_that_may_not_tell_each_other_anything_sweep() -> None:
    def sweeping(policies: Policies) -> Policies:
        policies = reporting(policies)
        return replace(policies, sweep=replace(policies.sweep, interval=0.01))

    async with quiet_world() as world:
        world.broker.mute = True
        async with world.replica(sweeping):
            await world.submit("one")
            await world.settled(job="one", settlement="ack")
            await world.until(lambda: world.events("no reports from here"), "the log says why")


async def test_a_replica_that_hears_the_reporter_does_not_sweep() -> None:
    async with quiet_world() as world, world.replica(reporting):
        await world.until(lambda: LOCK in world.broker.leaders, "a reporter")
        async with world.replica(alone):
            world.run_until_ended()
            await world.submit("one")
            await world.running()
            before = lists_told(world), world.kestra.requests["unfinished"]
            await world.until(lambda: lists_told(world) >= before[0] + 10, "lists")
            lists = lists_told(world) - before[0]
            listings = world.kestra.requests["unfinished"] - before[1]
        # A replica that hears none sweeps as often. A busy machine may keep one from being heard.
        assert listings <= 1.5 * lists


async def test_eight_replicas_ask_kestra_no_more_than_the_reporter_does() -> None:
    async with quiet_world() as world, AsyncExitStack() as stack:
        world.run_until_ended()
        world.prefetch = 1
        for _ in range(8):
            await stack.enter_async_context(world.replica(reporting))
        for job in range(8):
            await world.submit(f"job-{job}")
        await world.running(8)
        before, lists = world.kestra.requests.copy(), lists_told(world)
        await world.until(lambda: lists_told(world) >= lists + 10, "lists")
        asked = world.kestra.requests - before
    assert set(asked) - {"oldest_unfinished"} == {"ended_since", "unfinished"}
    assert asked["unfinished"] <= 12


async def test_a_draining_replica_goes_on_reporting() -> None:
    def draining(policies: Policies) -> Policies:
        policies = reporting(policies)
        return replace(policies, sessions=replace(policies.sessions, drain=20.0))

    async with quiet_world() as world, world.replica(draining) as replica:
        world.run_until_ended()
        await world.submit("one")
        (run,) = await world.running()
        replica.stop.set()
        await asyncio.sleep(0)
        await world.kestra.end(run.id)
        await world.settled(job="one", settlement="ack")


async def test_an_interval_of_nothing_keeps_a_replica_from_reporting() -> None:
    async with quiet_world() as world, world.replica():
        await world.submit("one")
        await world.running()
        assert (world.broker.leaders, world.kestra.requests["ended_since"]) == ({}, 0)


async def test_the_notifier_and_the_reporter_together_settle_a_job_once() -> None:
    async with World() as world, world.replica(reporting):
        await world.submit("one")
        await world.settled(job="one", settlement="ack")
        ends = [json.loads(message.body) for _, message in world.broker.told]
        assert len(world.events("settled")) == 1
        assert sum("executionId" in body for body in ends) <= 1


@pytest.mark.parametrize("interval", [0.0, 0.5])
def test_replicas_that_report_expect_reports(interval: float) -> None:
    policies = Policies.of(settings_for_a_test(report_interval=interval))
    assert (policies.report.interval, policies.sweep.reporting) == (interval, interval > 0)
