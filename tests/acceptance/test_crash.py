"""Replicas that die, stop and start: nothing is lost, nothing runs twice, nothing is acked
early."""

from __future__ import annotations

import signal
from collections import Counter

from aio_pika.abc import AbstractIncomingMessage

from tests.support.engine_stage import EngineStage
from tests.support.harness import Bridge, eventually

JOBS = 24
GRACE = 10
"""The default: on a busy machine a create of the replica that died may take its time to show."""


async def publish_jobs(stage: EngineStage, count: int = JOBS) -> list[str]:
    """Jobs of mixed length, some of which fail at first."""
    names = [f"job-{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        await stage.submit(
            name,
            body={"inputs": {"seconds": number % 3, "failures": int(number % 10 == 0)}},
            priority=number % 5,
        )
    return names


async def declared(stage: EngineStage) -> None:
    """Have the queue declared by a bridge that stops again, so that jobs can be published before
    any runs."""
    bridge = await stage.bridge().start()
    await bridge.stop()


async def all_settled(stage: EngineStage, *bridges: Bridge, timeout: float = 90) -> None:
    async def done() -> bool:
        acked = {
            line["job"] for bridge in bridges for line in bridge.events("settled", settlement="ack")
        }
        return len(acked) >= JOBS and await stage.client.depth(stage.queue) == 0

    await eventually(done, "all jobs acked", timeout=timeout, every=0.3)


async def executions_per_attempt(stage: EngineStage) -> Counter[tuple[str, str]]:
    return Counter(
        (one.labels["bridgeJob"], one.labels["bridgeAttempt"]) for one in await stage.executions()
    )


def expected_attempts(names: list[str]) -> Counter[tuple[str, str]]:
    retried = [name for number, name in enumerate(names) if number % 10 == 0]
    return Counter([(name, "1") for name in names] + [(name, "2") for name in retried])


async def test_kill_in_mid_flight_costs_no_job_and_runs_none_twice(stage: EngineStage) -> None:
    await declared(stage)
    names = await publish_jobs(stage)
    first = await stage.bridge(prefetch=20, adopt_grace=GRACE).start()
    await eventually(lambda: first.count("settled") >= 5, "some jobs settled")
    first.kill()
    second = await stage.bridge(prefetch=20, adopt_grace=GRACE).start()
    await all_settled(stage, first, second)
    assert await executions_per_attempt(stage) == expected_attempts(names)


async def test_at_a_crash_every_job_is_in_a_queue_or_has_succeeded(stage: EngineStage) -> None:
    await declared(stage)
    names = await publish_jobs(stage)
    bridge = await stage.bridge(prefetch=20, adopt_grace=GRACE, retry_delays="[600]").start()
    await eventually(lambda: bridge.count("settled") >= 5, "some jobs settled")
    bridge.kill()
    await eventually(lambda: _nobody_consumes(stage), "the broker noticed")
    waiting = set(await stage.peek()) | {str(one.message_id) for one in await _retrying(stage)}
    succeeded = {
        one.labels["bridgeJob"] for one in await stage.executions() if one.state == "SUCCESS"
    }
    assert set(names) - waiting <= succeeded


async def _retrying(stage: EngineStage) -> list[AbstractIncomingMessage]:
    queue = f"{stage.queue}.retry.600"
    return list(await stage.client.take(queue, await stage.client.depth(queue)))


async def _nobody_consumes(stage: EngineStage) -> bool:
    async with stage.client.connection.channel() as channel:
        queue = await channel.declare_queue(stage.queue, passive=True)
        return queue.declaration_result.consumer_count == 0


async def test_with_two_replicas_one_may_die(stage: EngineStage) -> None:
    first = await stage.bridge(prefetch=10, adopt_grace=GRACE).start()
    second = await stage.bridge(prefetch=10, adopt_grace=GRACE).start()
    names = await publish_jobs(stage)
    await eventually(
        lambda: first.count("settled") >= 3 and second.count("settled") >= 3, "both settle jobs"
    )
    first.kill()
    await all_settled(stage, first, second)
    assert await executions_per_attempt(stage) == expected_attempts(names)


async def test_a_redelivered_job_is_adopted(stage: EngineStage) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", body={"inputs": {"seconds": 4}})
    await stage.running()
    first.kill()
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one")
    assert (line["how"], line["settlement"], line["redelivered"]) == ("adopted", "ack", True)


async def test_a_job_that_ended_while_no_replica_lived_is_settled_by_the_next(
    stage: EngineStage,
) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", body={"inputs": {"seconds": 2}})
    (execution,) = await stage.running()
    first.kill()
    await eventually(lambda: _succeeded(stage), "the execution went on to its end")
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one")
    assert (line["execution"], line["settlement"]) == (execution.id, "ack")


async def _succeeded(stage: EngineStage) -> bool:
    return [one.state.value for one in await stage.executions()] == ["SUCCESS"]


async def test_a_stopping_bridge_settles_what_ends_in_its_drain_time(stage: EngineStage) -> None:
    async with stage.bridge(drain_timeout=20) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 3}})
        await stage.running()
        code = await bridge.stop()
    assert (code, bridge.count("settled", job="one", settlement="ack")) == (0, 1)


async def test_a_stopping_bridge_retries_what_fails_in_its_drain_time(stage: EngineStage) -> None:
    async with stage.bridge(drain_timeout=20) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 2, "failures": 1}})
        await stage.running()
        await bridge.stop()
    assert bridge.count("settled", job="one", settlement="retry") == 1


async def test_a_stopping_bridge_takes_nothing_new(stage: EngineStage) -> None:
    async with stage.bridge(prefetch=1, drain_timeout=20) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 3}})
        await stage.running()
        await stage.submit("two")
        await bridge.stop()
    assert (await stage.peek(), len(await stage.executions())) == (["two"], 1)


async def test_a_stopping_bridge_leaves_what_does_not_end_to_the_next(stage: EngineStage) -> None:
    async with stage.bridge(drain_timeout=1) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        await stage.running()
        await bridge.stop()
    assert (await stage.peek(), [one.state.value for one in await stage.executions()]) == (
        ["one"],
        ["RUNNING"],
    )


async def test_a_second_signal_ends_the_bridge_at_once(stage: EngineStage) -> None:
    async with stage.bridge(drain_timeout=600) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        await stage.running()
        bridge.child.signal(signal.SIGTERM)
        await eventually(lambda: bridge.count("draining"), "the bridge drains")
        bridge.child.signal(signal.SIGTERM)
        assert await bridge.exit_code(10) == 128 + signal.SIGTERM
