"""What becomes of a message, from the queue to its settlement, with a real broker and Kestra's real
engine."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.engine_stage import EngineStage
from tests.support.harness import eventually


async def test_a_job_that_succeeds_is_acked(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["state"], await stage.client.depth(stage.queue)) == (
        "ack",
        "SUCCESS",
        0,
    )


async def test_a_reply_settles_a_job_long_before_the_sweep_would(stage: EngineStage) -> None:
    async with stage.bridge(reconcile_interval=3600) as bridge:
        await stage.submit("one")
        await bridge.settled(job="one")
        assert await bridge.metric("bridge_replies_total", match="awaited") == 1


async def test_a_job_that_fails_once_is_retried_and_acked(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", body={"inputs": {"failures": 1}})
        await bridge.settled(job="one", settlement="ack")
    assert [line["attempt"] for line in bridge.events("settled")] == [1, 2]


async def test_a_job_that_fails_every_time_is_a_dead_letter_that_says_why(
    stage: EngineStage,
) -> None:
    async with stage.bridge(max_attempts=2) as bridge:
        await stage.submit("one", body={"inputs": {"failures": 9}}, priority=7)
        await bridge.settled(job="one", settlement="dead_letter")
        letter = await stage.dead_letter()
    assert (letter.headers["x-bridge-reason"], letter.headers["x-bridge-attempt"]) == ("failed", 2)
    assert "failed on purpose" in letter.headers["x-bridge-error"]


FAILS_UNLESS_RESTARTED = """
id: fails-at-first
namespace: {namespace}
tasks:
  - id: work
    type: io.kestra.plugin.core.execution.Fail
    condition: "{{{{ (labels.system.restarted ?? 'false') == 'false' }}}}"
  - {{id: wait, type: io.kestra.plugin.core.flow.Pause}}
"""


async def test_an_attempt_that_an_operator_restarts_while_its_retry_waits_is_the_jobs(
    stage: EngineStage,
) -> None:
    await stage.deploy(FAILS_UNLESS_RESTARTED.format(namespace=stage.name))
    async with stage.bridge(
        flow=f"{stage.name}/fails-at-first", max_attempts=3, retry_delays="[5]"
    ) as bridge:
        await stage.submit("one")
        (retry,) = await bridge.settled(job="one", settlement="retry")
        await stage.restart(retry["execution"])
        event = "an earlier attempt was brought back in Kestra"
        await eventually(
            lambda: bridge.count(event), "the retry finds the first attempt running", timeout=30
        )
        await stage.resume(retry["execution"])
        (line,) = await bridge.settled(job="one", settlement="ack")
    assert (line["execution"], len(await stage.executions(bridgeJob="one"))) == (
        retry["execution"],
        1,
    )


async def test_an_attempt_that_an_operator_sets_to_success_while_its_retry_waits_is_the_jobs(
    stage: EngineStage,
) -> None:
    async with stage.bridge(max_attempts=3, retry_delays="[2]") as bridge:
        await stage.submit("one", body={"inputs": {"failures": 1}})
        await bridge.settled(job="one", settlement="retry")
        (failed,) = await stage.executions(bridgeJob="one")
        await stage.change_status(failed.id, "SUCCESS")
        (line,) = await bridge.settled(job="one", settlement="ack")
    assert (line["execution"], len(await stage.executions(bridgeJob="one"))) == (failed.id, 1)


async def test_an_execution_that_an_operator_kills_is_not_tried_again(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=3) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        (execution,) = await stage.running()
        await stage.kill(execution)
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")


async def test_nothing_of_a_job_runs_on_after_its_time_out(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}, "timeout": 2})
        await bridge.settled(job="one", settlement="dead_letter")
    assert [execution.state.value for execution in await stage.executions(bridgeJob="one")] == [
        "KILLED"
    ]


async def test_a_cancelled_execution_is_tried_again_and_then_a_dead_letter(
    stage: EngineStage,
) -> None:
    await stage.deploy(
        f"{{id: one-at-a-time, namespace: {stage.name}, "
        "concurrency: {limit: 1, behavior: CANCEL},"
        " tasks: [{id: sleep, type: io.kestra.plugin.core.flow.Sleep, duration: PT30S}]}"
    )
    flow = f"{stage.name}/one-at-a-time"
    async with stage.bridge(flow=flow, max_attempts=2, job_timeout=20) as bridge:
        await stage.submit("first")
        await stage.running()
        await stage.submit("second")
        await bridge.settled(job="second", settlement="dead_letter")
        letter = await stage.dead_letter()
    assert (letter.message_id, letter.headers["x-bridge-reason"]) == ("second", "cancelled")


async def test_a_warning_is_a_success(stage: EngineStage) -> None:
    await stage.deploy(
        f"{{id: warns, namespace: {stage.name},"
        " tasks: [{id: no, type: io.kestra.plugin.core.execution.Fail, allowFailure: true}]}"
    )
    async with stage.bridge(flow=f"{stage.name}/warns") as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one")
    assert (line["state"], line["settlement"]) == ("WARNING", "ack")


BAD_INPUT: dict[str, tuple[object, str]] = {
    "not-json": (b"\xff\x00 not JSON", "invalid_message"),
    "not-an-object": ([1, 2], "invalid_message"),
    "wrong-shape": ({"inputs": "none"}, "invalid_message"),
    "not-allowed": ({"flow": "somebody/else"}, "flow_not_allowed"),
    "refused-input": ({"inputs": {"seconds": "many"}}, "rejected_by_kestra"),
    "monstrous": ({"inputs": {"text": "x" * 9_000_000}}, "invalid_message"),
}


async def test_bad_input_is_a_dead_letter_with_its_reason(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        for job, (body, _) in BAD_INPUT.items():
            await stage.submit(job, body=body)
        await bridge.settled(len(BAD_INPUT), settlement="dead_letter")
        letters = await stage.client.take(f"{stage.queue}.dead", len(BAD_INPUT))
    reasons = {letter.message_id: letter.headers["x-bridge-reason"] for letter in letters}
    assert reasons == {job: reason for job, (_, reason) in BAD_INPUT.items()}


async def test_a_job_too_big_for_the_queue_of_kestra_2_is_a_dead_letter(stage: EngineStage) -> None:
    if stage.engine.series == "1.3":
        pytest.skip("only 2.0 has such a limit by default")
    async with stage.bridge() as bridge:
        await stage.submit("one", body={"inputs": {"text": "x" * 1_500_000}})
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"]) == ("dead_letter", "rejected_by_kestra")


async def test_a_flow_that_kestra_does_not_run_is_a_dead_letter(stage: EngineStage) -> None:
    await stage.deploy(
        f"{{id: disabled, namespace: {stage.name}, disabled: true,"
        " tasks: [{id: a, type: io.kestra.plugin.core.log.Log, message: a}]}"
    )
    async with stage.bridge(allowed_flows=json.dumps([f"{stage.name}/*"])) as bridge:
        for flow in ("missing", "disabled"):
            await stage.submit(flow, body={"flow": f"{stage.name}/{flow}"})
        lines = await bridge.settled(2)
    assert {line["job"]: line["reason"] for line in lines} == {
        "missing": "rejected_by_kestra",
        "disabled": "rejected_by_kestra",
    }


HOSTILE = "a\"b'c\\d %41 $(touch /tmp/pwned) `id` {{ 1 + 1 }} {% raw %} ; é漢 :x,y&z=w"


async def test_hostile_text_reaches_the_flow_as_it_is(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        reply_queue, results = await stage.client.reply_queue()
        await stage.submit("one", body={"inputs": {"text": HOSTILE}}, reply_to=reply_queue)
        await bridge.settled(job="one")
        result = await asyncio.wait_for(results.get(), 10)
    assert result["outputs"]["text"] == HOSTILE


HOSTILE_IDS = (
    HOSTILE,
    "key:value",
    "100%",
    "a,b",
    'quote"s',
    "back\\slash",
    "é漢字🎉",
    "{{x}}",
)


async def test_a_job_with_a_hostile_id_is_found_again_and_not_run_twice(
    stage: EngineStage,
) -> None:
    async with stage.bridge() as bridge:
        for job in HOSTILE_IDS:
            await stage.submit(job)
            await stage.submit(job)
        await bridge.settled(2 * len(HOSTILE_IDS), settlement="ack")
    assert len(await stage.executions()) == len(HOSTILE_IDS)


async def test_hostile_labels_arrive_as_they_are(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", body={"labels": {"note": HOSTILE}})
        await bridge.settled(job="one", settlement="ack")
    (execution,) = await stage.executions(bridgeJob="one")
    assert execution.labels["note"] == HOSTILE


async def test_the_final_result_goes_to_reply_to(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        reply_queue, results = await stage.client.reply_queue()
        await stage.submit(
            "one", body={"inputs": {"text": "hi"}}, reply_to=reply_queue, correlation_id="c-1"
        )
        await bridge.settled(job="one")
        result = await asyncio.wait_for(results.get(), 10)
    (execution,) = await stage.executions(bridgeJob="one")
    assert result == {
        "job": "one",
        "state": "SUCCESS",
        "execution": execution.id,
        "url": f"{stage.engine.url}/ui/main/executions/{stage.name}/job/{execution.id}",
        "outputs": {"text": "hi"},
        "attempts": 1,
        "correlation_id": "c-1",
    }


async def test_a_retry_by_the_flow_itself_is_followed_to_its_end(stage: EngineStage) -> None:
    await stage.deploy(
        f"{{id: again, namespace: {stage.name},"
        " retry: {type: constant, interval: PT2S, maxAttempts: 3, behavior: CREATE_NEW_EXECUTION},"
        " tasks: [{id: no, type: io.kestra.plugin.core.execution.Fail,"
        ' condition: "{{ execution.originalId == execution.id }}"}]}'
    )
    async with stage.bridge(flow=f"{stage.name}/again") as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one", timeout=60)
    assert (line["settlement"], line["attempt"]) == ("ack", 1)


async def test_a_duplicate_publish_while_the_first_runs_joins_its_execution(
    stage: EngineStage,
) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 2}})
        await stage.running()
        await stage.submit("one", body={"inputs": {"seconds": 2}})
        await bridge.settled(2, settlement="ack")
    assert len(await stage.executions(bridgeJob="one")) == 1
