"""What a real broker makes of the bridge: priorities, prefetch, retries, and sessions that
break."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.broker_stage import BrokerStage, Kind, memory_alarm, open_stage
from tests.support.harness import Bridge, Client, Proxy, eventually
from tests.support.standin import Ends, Run

PATIENT = {"reconcile_interval": 1, "adopt_grace": 1}


def jobs_of(runs: list[Run]) -> list[str]:
    return [run.labels["bridgeJob"] for run in runs]


async def test_jobs_start_in_the_order_of_their_priority(one_stage: BrokerStage) -> None:
    stage = one_stage
    await stage.declare()
    for number, priority in enumerate([0, 5, 1, 9, 5, 10]):
        await stage.submit(f"{number}-of-{priority}", priority=priority)
    async with stage.bridge(prefetch=1) as bridge:
        await bridge.settled(6)
    assert jobs_of(stage.kestra.created) == [
        "5-of-10",
        "3-of-9",
        "1-of-5",
        "4-of-5",
        "2-of-1",
        "0-of-0",
    ]


async def test_in_flight_never_exceeds_the_prefetch(one_stage: BrokerStage) -> None:
    stage = one_stage
    most = 0

    def behave(_: Run) -> Ends:
        nonlocal most
        most = max(most, sum(run.ended is None for run in stage.kestra.created))
        return Ends(after=0.05)

    stage.kestra.flow("test", "job", behave)
    await stage.declare()
    for number in range(40):
        await stage.submit(f"job-{number}")
    async with stage.bridge(prefetch=5) as bridge:
        await bridge.settled(40)
    assert 1 < most + 1 <= 5


async def test_a_lane_takes_no_slot_of_another(one_stage: BrokerStage) -> None:
    stage, slow, fast = one_stage, f"{one_stage.queue}.slow", f"{one_stage.queue}.fast"
    stage.kestra.flow("test", "job", Ends(after=None))
    lanes = [{"queue": queue, "prefetch": 1, "flow": "test/job"} for queue in (slow, fast)]
    async with stage.bridge(lanes=json.dumps(lanes)):
        await stage.client.submit(slow, job="slow-1")
        await stage.kestra.until(lambda: len(stage.kestra.created) == 1, "the first job runs")
        await stage.client.submit(fast, job="fast-1")
        await stage.kestra.until(lambda: len(stage.kestra.created) == 2, "the other lane's job")
    assert jobs_of(stage.kestra.created) == ["slow-1", "fast-1"]


async def test_a_retry_waits_for_its_delay(one_stage: BrokerStage) -> None:
    stage = one_stage
    stage.kestra.flow(
        "test",
        "job",
        lambda run: Ends("FAILED" if run.labels["bridgeAttempt"] == "1" else "SUCCESS"),
    )
    async with stage.bridge(retry_delays="[2]") as bridge:
        await stage.submit("one")
        await bridge.settled(2)
    first, second = stage.kestra.created
    assert first.ended is not None
    assert (second.started - first.ended).total_seconds() >= 2


async def test_a_connection_that_is_cut_costs_no_job_and_runs_none_twice(
    one_stage: BrokerStage,
) -> None:
    stage = one_stage
    stage.kestra.flow("test", "job", Ends(after=0.5))
    async with Proxy(stage.rabbit.host, stage.rabbit.port) as proxy:
        url = stage.rabbit.amqp_url.replace(f":{stage.rabbit.port}/", f":{proxy.port}/")
        async with stage.bridge(amqp_url=url, prefetch=10, **PATIENT) as bridge:
            for number in range(30):
                await stage.submit(f"job-{number}")
            for rounds in range(3):
                await bridge.settled(5 * (rounds + 1), settlement="ack")
                proxy.cut()
            await _all_done(stage, [f"job-{number}" for number in range(30)])
    assert stage.kestra.per_attempt() == Counter(
        {(f"job-{number}", "1"): 1 for number in range(30)}
    )


async def test_two_copies_of_a_job_that_fails_come_back_one_after_the_other(
    one_stage: BrokerStage,
) -> None:
    stage = one_stage
    stage.kestra.flow("test", "job", Ends(after=None))
    async with (
        stage.bridge(prefetch=1, retry_delays="[1]") as one,
        stage.bridge(prefetch=1, retry_delays="[1]") as other,
    ):
        for _ in range(2):
            await stage.submit("twice")
            await eventually(
                lambda: stage.kestra.executions_of("twice"), "the first copy's execution"
            )
        await eventually(lambda: _awaited_by(one, other), "both replicas wait for it")
        stage.kestra.faults.add("create", times=None, delay=0.5)
        await stage.kestra.end(stage.kestra.created[0].id, "FAILED")
        await stage.kestra.until(
            lambda: bool(stage.kestra.executions_of("twice", attempt=2)), "the second attempt"
        )
        await eventually(
            lambda: _awaited_by(one, other, attempts=4), "both replicas wait for the second attempt"
        )
    assert stage.kestra.per_attempt() == {("twice", "1"): 1, ("twice", "2"): 1}


async def _awaited_by(*bridges: Bridge, attempts: int = 2) -> bool:
    started = [await bridge.metric("bridge_executions_total") for bridge in bridges]
    return sum(started) >= attempts


async def test_a_connection_that_goes_silent_is_given_up(one_stage: BrokerStage) -> None:
    stage = one_stage
    stage.kestra.flow("test", "job", Ends(after=None))
    async with Proxy(stage.rabbit.host, stage.rabbit.port) as proxy:
        url = (
            stage.rabbit.amqp_url.replace(f":{stage.rabbit.port}/", f":{proxy.port}/")
            + "?heartbeat=2"
        )
        async with stage.bridge(amqp_url=url, **PATIENT) as bridge:
            await stage.submit("one")
            await stage.kestra.until(lambda: len(stage.kestra.created) == 1, "the job runs")
            proxy.stall()
            await eventually(
                lambda: bridge.count("the session with RabbitMQ ended"), "the silence is noticed"
            )
            proxy.resume()
            await eventually(lambda: bridge.count("consuming") == 2, "a new session")
            await stage.kestra.end(stage.kestra.created[0].id)
            (line,) = await bridge.settled(job="one")
    assert (line["how"], len(stage.kestra.created)) == ("adopted", 1)


@pytest.mark.parametrize(("series", "kind"), [("3.10", "classic"), ("4.3", "quorum")])
async def test_a_broker_that_restarts_costs_no_job_and_runs_none_twice(
    series: Series, kind: Kind, tmp_path: Path
) -> None:
    rabbit = RabbitMQ(tmp_path / "own", series=series)
    rabbit.start()
    try:
        async with open_stage(tmp_path, rabbit, kind) as own:
            own.kestra.flow("test", "job", Ends(after=0.5))
            bridge = await own.bridge(prefetch=10, **PATIENT).start()
            names = [f"job-{number}" for number in range(20)]
            for name in names:
                await own.submit(name)
            await bridge.settled(3, settlement="ack")
            own.kestra.replies.on_end = None  # its connection goes with the broker
            await asyncio.to_thread(rabbit.restart)
            async with Client.connect(rabbit.amqp_url) as client:
                own.client = client
                await _all_done(own, names, timeout=60)
            assert own.kestra.per_attempt() == Counter({(name, "1"): 1 for name in names})
    finally:
        rabbit.kill()


async def _all_done(stage: BrokerStage, names: list[str], *, timeout: float = 60) -> None:
    """Wait until each job was acked and the queue is empty, whichever session or replica did it."""

    async def done() -> bool:
        acked = {
            line["job"]
            for bridge in stage.bridges
            for line in bridge.events("settled", settlement="ack")
        }
        return acked >= set(names) and await stage.client.depth(stage.queue) == 0

    await eventually(done, "all jobs acked", timeout=timeout, every=0.2)


async def test_a_deleted_dead_letter_exchange_costs_no_dead_letter(one_stage: BrokerStage) -> None:
    async with one_stage.bridge() as bridge:
        await one_stage.client.channel.exchange_delete(f"{one_stage.queue}.dead")
        await one_stage.submit("bad", b"not JSON")
        await bridge.settled(job="bad", timeout=40)
        assert (await one_stage.dead_letter()).message_id == "bad"


async def test_a_deleted_retry_queue_costs_no_retry(one_stage: BrokerStage) -> None:
    one_stage.kestra.flow(
        "test",
        "job",
        lambda run: Ends("FAILED" if run.labels["bridgeAttempt"] == "1" else "SUCCESS"),
    )
    async with one_stage.bridge() as bridge:
        await one_stage.client.channel.queue_delete(f"{one_stage.queue}.retry.1")
        await one_stage.submit("one")
        await bridge.settled(job="one", settlement="ack", timeout=40)
    assert one_stage.kestra.per_attempt() == Counter({("one", "1"): 1, ("one", "2"): 1})


async def test_a_deleted_queue_is_noticed_and_made_anew(one_stage: BrokerStage) -> None:
    async with one_stage.bridge() as bridge:
        await one_stage.client.channel.queue_delete(one_stage.queue)
        await eventually(lambda: bridge.count("consuming") == 2, "a new session")
        await one_stage.submit("one")
        await bridge.settled(job="one", settlement="ack")


async def test_a_broker_short_of_memory_still_gets_acks(one_stage: BrokerStage) -> None:
    rabbit, kestra = one_stage.rabbit, one_stage.kestra
    kestra.flow("test", "job", Ends(after=None))
    kestra.replies.on_end = None
    async with one_stage.bridge(reconcile_interval=1) as bridge:
        await one_stage.submit("bad", b"not JSON")
        await bridge.settled(job="bad")
        await one_stage.submit("one")
        await kestra.until(lambda: len(kestra.created) == 1, "the job runs")
        await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.000001")
        try:
            await kestra.end(kestra.created[0].id)
            await bridge.settled(job="one", settlement="ack")
            ready = await asyncio.to_thread(rabbit.ctl, "list_queues", "name", "messages")
        finally:
            await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.6")
    assert f"{one_stage.queue}\t0" in ready


SHORT_TIMEOUT = {"consumer_timeout": "4000"}
FREQUENT_TICKS = "[{rabbit, [{channel_tick_interval, 500}]}]."


async def test_the_acknowledgement_timeout_on_3_10_starts_no_second_execution(
    tmp_path: Path,
) -> None:
    rabbit = RabbitMQ(
        tmp_path / "own", series="3.10", settings=SHORT_TIMEOUT, advanced=FREQUENT_TICKS
    )
    rabbit.start()
    try:
        async with open_stage(tmp_path, rabbit, "classic") as own:
            await _outlive_the_timeout(own, "channel_closed")
    finally:
        rabbit.kill()


async def test_the_brokers_cancel_on_4_3_starts_no_second_execution(
    one_stage: BrokerStage,
) -> None:
    await _outlive_the_timeout(one_stage, "consumer_cancelled", consumer_timeout=4)


async def _outlive_the_timeout(stage: BrokerStage, cause: str, **settings: object) -> None:
    """A job that takes longer than the broker lets a delivery be unsettled is adopted, and acked
    once it has ended."""
    stage.kestra.flow("test", "job", Ends(after=None))
    async with stage.bridge(**PATIENT, **settings) as bridge:
        await stage.submit("one")
        await stage.kestra.until(lambda: len(stage.kestra.created) == 1, "the job runs")
        await eventually(
            lambda: bridge.count("the session with RabbitMQ ended", cause=cause), f"{cause} noticed"
        )
        await eventually(lambda: bridge.count("consuming") >= 2, "a new session")
        await stage.kestra.end(stage.kestra.created[0].id)
        (line,) = await bridge.settled(job="one", settlement="ack")
    assert (line["how"], len(stage.kestra.created)) == ("adopted", 1)


async def test_a_long_job_outlives_the_default_timeout_of_4_3_by_the_consumers_own(
    tmp_path: Path,
) -> None:
    rabbit = RabbitMQ(tmp_path / "own", series="4.3", settings={"consumer_timeout": "3000"})
    rabbit.start()
    try:
        async with open_stage(tmp_path, rabbit, "quorum") as own:
            own.kestra.flow("test", "job", Ends(after=6))
            async with own.bridge() as bridge:
                await own.submit("one")
                await bridge.settled(job="one", settlement="ack")
                assert await bridge.metric("bridge_consumer_restarts_total") == 0
    finally:
        rabbit.kill()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_what_the_broker_itself_gives_up_lands_with_the_dead_letters(
    one_stage: BrokerStage, kind: str
) -> None:
    await one_stage.declare(queue_type=kind)
    await one_stage.submit("expired", expiration=0.1)
    letter = await one_stage.dead_letter()
    assert (letter.message_id, letter.headers["x-first-death-reason"]) == ("expired", "expired")


async def test_an_alarm_that_keeps_settlements_waiting_is_logged_with_its_reason(
    one_stage: BrokerStage,
) -> None:
    await one_stage.declare()
    await one_stage.submit("one", b"no JSON")
    async with memory_alarm(one_stage.rabbit), one_stage.bridge() as bridge:
        said = await eventually(lambda: bridge.events("an alarm of RabbitMQ"), "it is logged")
    assert "takes no messages: low on" in said[0]["what"]
