"""Replies that are lost, doubled or early, and answers of Kestra that never came."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika

from tests.support.engine_stage import EngineStage
from tests.support.harness import Proxy, eventually
from tests.support.http_proxy import (
    HttpProxy,
    gateway_timeout_after_the_work,
)

NOTIFIER = "/flows/bridge.system/notifier"


@asynccontextmanager
async def no_notifier(stage: EngineStage) -> AsyncIterator[None]:
    """Take the notifier away for a while, so that no reply comes: soon, as Kestra keeps flows in
    memory."""
    source = (await stage.api.get(NOTIFIER, params={"source": "true"})).json()["source"]
    headers = {"Content-Type": "application/x-yaml"}
    changed = await stage.api.put(
        NOTIFIER, content=f"{source}\ndisabled: true\n".encode(), headers=headers
    )
    assert changed.status_code == 200, changed.text
    try:
        yield
    finally:
        await stage.api.put(NOTIFIER, content=source.encode(), headers=headers)


async def reply(stage: EngineStage, execution_id: str, state: str, times: int = 1) -> None:
    """Publish a reply as the notifier would."""
    body = {"executionId": execution_id, "state": state, "namespace": stage.name, "flowId": "job"}
    exchange = await stage.client.channel.get_exchange("kestra.replies", ensure=False)
    for _ in range(times):
        await exchange.publish(
            aio_pika.Message(json.dumps(body).encode()),
            f"{state}.{stage.name}.job",
            mandatory=False,
        )


async def test_without_any_reply_every_job_is_settled(stage: EngineStage) -> None:
    async with no_notifier(stage), stage.bridge(reconcile_interval=1) as bridge:
        # What a notifier that is still there may publish goes nowhere, too.
        await stage.client.channel.exchange_delete("kestra.replies")
        for number in range(5):
            # A quick one can have ended by the time that its create call is answered, and needs no
            # sweep.
            await stage.submit(f"job-{number}", body={"inputs": {"seconds": number % 2}})
        await bridge.settled(5, settlement="ack")
        assert await bridge.metric("bridge_replies_total") == 0


async def test_a_reply_of_failure_that_is_not_true_settles_nothing(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 4}})
        (execution,) = await stage.running()
        await reply(stage, execution.id, "FAILED")
        (line,) = await bridge.settled(job="one")
    assert line["settlement"] == "ack"


async def test_a_create_that_answers_504_but_did_create_is_not_repeated(stage: EngineStage) -> None:
    async with HttpProxy(stage.engine.url) as proxy, stage.bridge(kestra_url=proxy.url) as bridge:
        proxy.once("POST", f"/executions/{stage.name}", gateway_timeout_after_the_work)
        await stage.submit("one")
        await bridge.settled(job="one", settlement="ack")
    assert len(await stage.executions(bridgeJob="one")) == 1


async def test_kestra_away_for_a_while_costs_no_job_an_attempt(stage: EngineStage) -> None:
    host, port = stage.engine.url.removeprefix("http://").split(":")
    async with (
        Proxy(host, int(port)) as proxy,
        stage.bridge(kestra_url=f"http://127.0.0.1:{proxy.port}") as bridge,
    ):
        proxy.refusing = True
        proxy.cut()
        await stage.submit("one")
        await eventually(
            lambda: bridge.count("kestra does not answer, asking again") >= 3,
            "the bridge asks again",
            timeout=60,
        )
        proxy.refusing = False
        (line,) = await bridge.settled(job="one", settlement="ack")
    assert line["attempt"] == 1


async def test_a_second_execution_of_one_attempt_is_killed_and_the_first_one_counts(
    stage: EngineStage,
) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", body={"inputs": {"seconds": 6}})
    (original,) = await stage.running()
    labels = {"labels": ["bridge:amqp", "bridgeJob:one", "bridgeAttempt:1"]}
    answer = await stage.api.post(
        f"/executions/{stage.name}/job", params=labels, files=[("seconds", (None, "60"))]
    )
    assert answer.status_code == 200, answer.text
    first.kill()
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one")
    states = {one.id: one.state.value for one in await stage.executions(bridgeJob="one")}
    assert (line["execution"], states[answer.json()["id"]]) == (original.id, "KILLED")


async def test_a_job_whose_execution_somebody_deletes_is_a_dead_letter_and_not_run_beside_it(
    stage: EngineStage,
) -> None:
    async with stage.bridge(adopt_grace=1, reconcile_interval=1) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        (execution,) = await stage.running()
        deleted = await stage.api.delete(f"/executions/{execution.id}")
        assert deleted.status_code in (200, 204), deleted.text
        (line,) = await bridge.settled(job="one")
    assert (line["reason"], line["execution"]) == ("vanished", execution.id)
