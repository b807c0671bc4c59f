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


async def test_each_attempt_has_one_execution_of_its_own(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=3) as bridge:
        await stage.submit("one", body={"inputs": {"failures": 2}})
        await bridge.settled(job="one", settlement="ack")
    attempts = [
        execution.labels["bridgeAttempt"] for execution in await stage.executions(bridgeJob="one")
    ]
    assert attempts == ["1", "2", "3"]


async def test_a_job_that_fails_every_time_is_a_dead_letter_that_says_why(
    stage: EngineStage,
) -> None:
    async with stage.bridge(max_attempts=2) as bridge:
        await stage.submit("one", body={"inputs": {"failures": 9}}, priority=7)
        await bridge.settled(job="one", settlement="dead_letter")
        letter = await stage.dead_letter()
    assert (letter.headers["x-bridge-reason"], letter.headers["x-bridge-attempt"]) == ("failed", 2)
    assert "failed on purpose" in letter.headers["x-bridge-error"]


async def test_a_dead_letter_keeps_body_and_properties(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        body = b'{"inputs": {"failures": 9}}'
        await stage.submit(
            "one",
            body=body,
            priority=7,
            correlation_id="c",
            headers={"mine": "kept"},
            type="report",
        )
        await bridge.settled(job="one", settlement="dead_letter")
        letter = await stage.dead_letter()
    kept = (
        letter.body,
        letter.message_id,
        letter.priority,
        letter.correlation_id,
        letter.headers["mine"],
        letter.type,
    )
    assert kept == (body, "one", 7, "c", "kept", "report")


async def test_a_dead_letter_names_its_last_execution_and_its_queue(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", body={"inputs": {"failures": 9}})
        await bridge.settled(job="one", settlement="dead_letter")
        letter = await stage.dead_letter()
    (execution,) = await stage.executions(bridgeJob="one")
    assert (letter.headers["x-bridge-execution"], letter.headers["x-bridge-queue"]) == (
        execution.id,
        stage.queue,
    )


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


async def test_a_job_past_its_time_is_killed_and_counts_as_failed(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=2, job_timeout=2) as bridge:
        await stage.submit("one", body={"inputs": {"seconds": 60}})
        await bridge.settled(job="one", settlement="dead_letter")
    assert [line.get("reason", "retry") for line in bridge.events("settled")] == [
        "retry",
        "timed_out",
    ]


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


@pytest.mark.parametrize(("ack_warning", "settlement"), [("true", "ack"), ("false", "dead_letter")])
async def test_a_warning_is_a_success_unless_the_operator_says_otherwise(
    stage: EngineStage, ack_warning: str, settlement: str
) -> None:
    await stage.deploy(
        f"{{id: warns, namespace: {stage.name},"
        " tasks: [{id: no, type: io.kestra.plugin.core.execution.Fail, allowFailure: true}]}"
    )
    async with stage.bridge(
        flow=f"{stage.name}/warns", ack_warning=ack_warning, max_attempts=1
    ) as bridge:
        await stage.submit("one")
        (line,) = await bridge.settled(job="one")
    assert (line["state"], line["settlement"]) == ("WARNING", settlement)


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


async def test_bad_messages_do_not_keep_a_good_one_from_success(stage: EngineStage) -> None:
    async with stage.bridge(prefetch=1) as bridge:
        for number in range(5):
            await stage.submit(f"bad-{number}", body=b"{")
        await stage.submit("good")
        await bridge.settled(job="good", settlement="ack")
    assert bridge.count("settled", reason="invalid_message") == 5


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


async def test_only_the_last_attempt_is_told_to_reply_to(stage: EngineStage) -> None:
    async with stage.bridge(max_attempts=2) as bridge:
        reply_queue, results = await stage.client.reply_queue()
        await stage.submit("one", body={"inputs": {"failures": 9}}, reply_to=reply_queue)
        await bridge.settled(job="one", settlement="dead_letter")
        result = await asyncio.wait_for(results.get(), 10)
    assert (result["state"], result["reason"], result["attempts"], results.qsize()) == (
        "FAILED",
        "failed",
        2,
        0,
    )


@pytest.mark.parametrize("reply_to", ["nobody", "amq.rabbitmq.reply-to.forged", "x" * 255])
async def test_a_result_that_nobody_takes_does_not_keep_the_job(
    stage: EngineStage, reply_to: str
) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", reply_to=reply_to)
        await bridge.settled(job="one", settlement="ack")
        assert await bridge.metric("bridge_consumer_restarts_total") == 0


async def test_a_message_without_an_id_is_stamped_and_run(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await publish_without_id(stage)
        await bridge.settled(settlement="ack")
    (stamp,) = bridge.events("settled", settlement="stamp")
    assert [execution.labels["bridgeJob"] for execution in await stage.executions()] == [
        stamp["stamped"]
    ]


async def publish_without_id(stage: EngineStage) -> None:
    """Through the management API, as our client's library gives an id to every message."""
    body = {
        "properties": {"delivery_mode": 2},
        "routing_key": stage.queue,
        "payload": "{}",
        "payload_encoding": "string",
    }
    answer = await asyncio.to_thread(
        stage.node.api, "exchanges/%2F/amq.default/publish", method="POST", body=body
    )
    assert answer == {"routed": True}


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


async def test_a_duplicate_publish_after_success_starts_nothing(stage: EngineStage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one")
        await bridge.settled(1, settlement="ack")
        await stage.submit("one")
        await bridge.settled(2, settlement="ack")
    assert len(await stage.executions(bridgeJob="one")) == 1


async def test_two_messages_with_one_id_at_the_same_instant_are_one_execution(
    stage: EngineStage,
) -> None:
    async with stage.bridge() as bridge:
        await asyncio.gather(*(stage.submit("one") for _ in range(8)))
        await bridge.settled(8, settlement="ack")
    assert len(await stage.executions(bridgeJob="one")) == 1


async def test_a_lane_takes_no_slot_of_another(stage: EngineStage) -> None:
    fast, slow = f"{stage.name}.fast", f"{stage.name}.slow"
    lanes = json.dumps(
        [{"queue": queue, "prefetch": 1, "flow": f"{stage.name}/job"} for queue in (fast, slow)]
    )
    async with stage.bridge(lanes=lanes) as bridge:
        await stage.client.submit(slow, {"inputs": {"seconds": 60}}, job="slow-1")
        await stage.running(bridgeJob="slow-1")
        await stage.client.submit(fast, job="fast-1")
        (line,) = await bridge.settled(job="fast-1")
    assert line["lane"] == fast


async def test_in_flight_never_exceeds_the_prefetch(stage: EngineStage) -> None:
    async with stage.bridge(prefetch=2) as bridge:
        for number in range(5):
            await stage.submit(f"job-{number}", body={"inputs": {"seconds": 60}})
        await stage.running(2)
        await eventually(lambda: _depth_is(stage, 3), "three jobs left in the queue")
        assert await bridge.metric("bridge_in_flight", lane=stage.queue) == 2


async def _depth_is(stage: EngineStage, count: int) -> bool:
    return await stage.client.depth(stage.queue) == count
