"""The bridge with Kestra 1.3: its real engine, its dialect, and the notifier that ships for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.rabbitmq import RabbitMQ
from tests.support.engine_stage import Broker, EngineStage, deploy_flows
from tests.support.given import Server, given
from tests.support.harness import eventually

NEVER = 3600


@pytest.fixture(scope="module")
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    rabbit: RabbitMQ | Broker,
) -> Iterator[Engine | Server]:
    server = given(request.config)
    if server and server.series != "1.3":
        pytest.skip(f"what is tried with 1.x, and this is {server.version}")
    if server:
        deploy_flows(server)
        yield server
        return
    amqp = AmqpAddress.from_url(rabbit.amqp_url)
    with Engine(tmp_path_factory.mktemp("kestra-1"), series="1.3", amqp=amqp) as running:
        deploy_flows(running)
        yield running


@asynccontextmanager
async def no_notifier(stage: EngineStage) -> AsyncIterator[None]:
    answer = await stage.api.delete("/flows/bridge.system/notifier")
    assert answer.status_code == 204, answer.text
    try:
        yield
    finally:
        await asyncio.to_thread(deploy_flows, stage.engine)


async def states(stage: EngineStage) -> list[str]:
    return [execution.state.value for execution in await stage.executions()]


async def test_a_job_that_succeeds_is_acked_by_its_reply(stage: EngineStage) -> None:
    async with stage.bridge(reconcile_interval=NEVER) as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one")
    assert (line["state"], line["settlement"]) == ("SUCCESS", "ack")


async def test_a_job_whose_reply_never_comes_is_settled_by_the_sweep(stage: EngineStage) -> None:
    async with no_notifier(stage), stage.bridge() as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 1}})
        (line,) = await bridge.settled(job="one")
    assert (line["state"], line["settlement"]) == ("SUCCESS", "ack")


async def test_a_dead_letter_quotes_what_the_failed_task_logged(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", body={"inputs": {"failures": 9}})
        await bridge.settled(job="one", settlement="dead_letter")
        letter = await stage.dead_letter()
    assert str(letter.headers["x-bridge-error"]).startswith(
        "task fail ended FAILED: failed on purpose"
    )


async def test_an_execution_that_an_operator_kills_is_a_dead_letter(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=3, reconcile_interval=NEVER) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        (execution,) = await stage.running()

        async def killed() -> bool:
            # Again and again, as 1.3 may pass over a kill that comes before the first task runs.
            await stage.api.delete(f"/executions/{execution.id}/kill")
            return await states(stage) == ["KILLED"]

        await eventually(killed, "the execution is killed", every=1)
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")


async def test_a_job_past_its_time_is_killed(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=1, job_timeout=1) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        (line,) = await bridge.settled(job="one")
    assert (line["reason"], await states(stage)) == ("timed_out", ["KILLED"])


async def test_a_cancelled_execution_is_tried_again_and_then_a_dead_letter(
    stage: EngineStage,
) -> None:
    await stage.deploy(
        f"{{id: crowded, namespace: {stage.name}, concurrency: {{limit: 1, behavior: CANCEL}},"
        " tasks: [{id: hold, type: io.kestra.plugin.core.flow.Pause}]}"
    )
    async with stage.bridge(flow=f"{stage.name}/crowded", max_attempts=2) as bridge:
        await stage.submit("first")
        await eventually(lambda: _holds(stage), "the first one holds the slot")
        await stage.submit("second")
        await bridge.settled(job="second", settlement="dead_letter")
    assert [line.get("reason", "retry") for line in bridge.events("settled", job="second")] == [
        "retry",
        "cancelled",
    ]


async def _holds(stage: EngineStage) -> bool:
    return await states(stage) == ["PAUSED"]


async def test_the_flow_s_outputs_go_to_reply_to(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        reply_queue, results = await stage.client.reply_queue()
        await stage.submit("one", body={"inputs": {"text": "hi"}}, reply_to=reply_queue)
        await bridge.settled(job="one")
        result = await asyncio.wait_for(results.get(), 10)
    assert (result["state"], result["outputs"]) == ("SUCCESS", {"text": "hi"})


async def test_a_retry_by_the_flow_itself_is_followed_to_its_end(stage: EngineStage) -> None:
    await stage.deploy(
        f"{{id: again, namespace: {stage.name},"
        " retry: {type: constant, interval: PT1S, maxAttempts: 3, behavior: CREATE_NEW_EXECUTION},"
        " tasks: [{id: no, type: io.kestra.plugin.core.execution.Fail,"
        ' condition: "{{ execution.originalId == execution.id }}"}]}'
    )
    async with stage.bridge(flow=f"{stage.name}/again") as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one", timeout=60)
    assert (line["settlement"], line["attempt"], await states(stage)) == (
        "ack",
        1,
        ["RETRIED", "SUCCESS"],
    )


async def test_a_job_with_a_hostile_id_is_found_again_and_not_run_twice(
    stage: EngineStage,
) -> None:
    jobs = ("a\"b'c\\d %41 {{ 1 + 1 }} :x,y&z=w", "é漢字🎉")
    async with stage.bridge() as bridge:
        for job in jobs:
            await stage.submit(job)
            await stage.submit(job)
        await bridge.settled(4, settlement="ack")
    assert len(await stage.executions()) == len(jobs)


async def test_the_doctor_finds_nothing_wrong_and_its_probe_comes_back(stage: EngineStage) -> None:
    async with stage.bridge():

        async def silent() -> bool:
            return await stage.diagnosed() == []

        await eventually(silent, "nothing is wrong", timeout=20, every=0.5)
        assert await stage.diagnosed(patience=30) == []
