"""Kestra failing in every way that a server can: no job is lost, none runs twice, and none pays
with an attempt."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import pytest

from tests.support.broker_stage import BrokerStage
from tests.support.harness import eventually
from tests.support.standin import EMPTY, HTML, TRUNCATED, Call, Ends

# How the answer to a create call can go wrong, with the work done all the same or not.
CREATE_FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "500-html": {"status": 500, "body": HTML},
    "502-html": {"status": 502, "body": HTML},
    "503": {"status": 503},
    "504": {"status": 504},
    "429": {"status": 429},
    "401": {"status": 401},
    "403": {"status": 403},
    "404-html": {"status": 404, "body": HTML},
    "404-of-a-gateway": {"status": 404, "body": {"message": "no Route matched with those values"}},
    "409-of-a-gateway": {"status": 409, "body": {"message": "conflict"}},
    "redirect": {"status": 302, "body": ""},
    "reset": {"reset": True},
    "never": {"hang": True},
    "500-after-the-work": {"status": 500, "worked": True},
    "502-after-the-work": {"status": 502, "body": HTML, "worked": True},
    "504-after-the-work": {"status": 504, "worked": True},
    "reset-after-the-work": {"reset": True, "worked": True},
    "never-after-the-work": {"hang": True, "worked": True},
    "empty-after-the-work": {"status": 200, "body": EMPTY, "worked": True},
    "truncated-after-the-work": {"status": 200, "body": TRUNCATED, "worked": True},
    "wrong-shape-after-the-work": {"status": 200, "body": ["?"], "worked": True},
    "html-after-the-work": {"status": 200, "body": HTML, "worked": True},
    "disappeared": {"disappeared": True},
}


async def test_creates_that_go_wrong_end_in_one_execution_each(one_stage: BrokerStage) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "job", Ends(after=0.2))
    for job, fault in CREATE_FAULTS.items():
        kestra.faults.add("create", when=partial(is_of, job), **fault)
    async with one_stage.bridge(
        prefetch=len(CREATE_FAULTS), ambiguous_wait=1, adopt_grace=1
    ) as bridge:
        for job in CREATE_FAULTS:
            await one_stage.submit(job)
        await bridge.settled(len(CREATE_FAULTS), settlement="ack", timeout=90)
    assert kestra.per_attempt() == Counter({(job, "1"): 1 for job in CREATE_FAULTS})


def is_of(job: str, call: Call) -> bool:
    """Whether a create call is of that job."""
    return ("labels", f"bridgeJob:{job}") in call.query


@pytest.mark.parametrize("operation", ["search", "get", "configs"])
async def test_a_question_that_goes_wrong_is_asked_again(
    one_stage: BrokerStage, operation: str
) -> None:
    kestra, faults = one_stage.kestra, ("500", "502-html", "401", "reset", "redirect")
    kestra.flow("test", "job", Ends(after=0.5))
    kestra.replies.drop = 1.0
    async with one_stage.bridge(reconcile_interval=0.5) as bridge:
        for fault in faults:
            planted = kestra.faults.add(operation, times=2, **CREATE_FAULTS[fault])
            await one_stage.submit(fault)
            await bridge.settled(job=fault)
            assert planted.hits == 2, fault
    settled = [(line["job"], line["settlement"]) for line in bridge.events("settled")]
    assert settled == [(fault, "ack") for fault in faults]
    assert kestra.per_attempt() == Counter({(fault, "1"): 1 for fault in faults})


async def test_a_kestra_that_is_down_for_a_while_costs_nothing(one_stage: BrokerStage) -> None:
    one_stage.kestra.flow("test", "job", Ends(after=0.5))
    async with one_stage.bridge(prefetch=5) as bridge:
        for number in range(10):
            await one_stage.submit(f"job-{number}")
        await bridge.settled(2, settlement="ack")
        await one_stage.kestra.down()
        await one_stage.submit("job-10")
        await eventually(
            lambda: bridge.count("kestra does not answer, asking again") >= 3,
            "the bridge asks again",
        )
        await one_stage.kestra.up()
        await bridge.settled(11, settlement="ack")
    assert one_stage.kestra.per_attempt() == Counter(
        {(f"job-{number}", "1"): 1 for number in range(11)}
    )


async def test_faults_and_lost_replies_at_random_lose_no_job_and_run_none_twice(
    one_stage: BrokerStage,
) -> None:
    kestra, count = one_stage.kestra, 100
    kestra.flow("test", "job", Ends(after=0.1))
    kestra.replies.drop, kestra.replies.copies, kestra.replies.shuffle = 0.3, 2, 3
    for fault in (
        {"status": 500},
        {"status": 504, "worked": True},
        {"reset": True, "worked": True},
        {"reset": True},
    ):
        kestra.faults.add("create", times=None, share=0.1, **fault)
    kestra.faults.add("search", times=None, share=0.1, status=503)
    async with one_stage.bridge(
        prefetch=20, reconcile_interval=0.5, ambiguous_wait=1, adopt_grace=1
    ) as bridge:
        for number in range(count):
            await one_stage.submit(f"job-{number}")
        await bridge.settled(count, settlement="ack", timeout=90)
    assert kestra.per_attempt() == Counter({(f"job-{number}", "1"): 1 for number in range(count)})


async def test_a_flows_own_retry_is_followed_to_its_end(one_stage: BrokerStage) -> None:
    one_stage.kestra.flow("test", "job", Ends(retries=2, after=0.1))
    async with one_stage.bridge() as bridge:
        await one_stage.submit("one")
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["attempt"]) == ("ack", 1)


async def test_a_job_whose_execution_somebody_deletes_is_a_dead_letter_and_not_run_beside_it(
    one_stage: BrokerStage,
) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "job", Ends(after=None))
    async with one_stage.bridge(reconcile_interval=0.5, adopt_grace=1) as bridge:
        await one_stage.submit("one")
        await kestra.until(lambda: len(kestra.created) == 1, "the job runs")
        kestra.forget(kestra.created[0].id)
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"], len(kestra.created)) == (
        "dead_letter",
        "vanished",
        1,
    )


async def test_a_kestra_that_accepts_kills_and_does_nothing_frees_the_slot_at_the_executions_end(
    one_stage: BrokerStage,
) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
    async with one_stage.bridge(prefetch=1, job_timeout=1) as bridge:
        await one_stage.submit("one")
        await kestra.until(lambda: len(kestra.kills) >= 1, "a kill", timeout=30)
        early = bridge.count("settled")
        kestra.flow("test", "job")
        await one_stage.submit("two")
        await kestra.end(kestra.created[0].id, "SUCCESS")
        lines = await bridge.settled(2, settlement="ack")
    assert (early, [line["job"] for line in lines], len(kestra.created)) == (0, ["one", "two"], 2)


async def test_jobs_of_a_flow_that_kestra_denies_keep_no_other_job_from_starting(
    one_stage: BrokerStage,
) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "denied")
    kestra.faults.add(
        "create", status=403, times=None, when=lambda call: "/test/denied" in call.url
    )
    async with one_stage.bridge(
        prefetch=3, allowed_flows='["test/*"]', retry_delays="[1]"
    ) as bridge:
        for number in range(3):
            await one_stage.submit(f"denied-{number}", {"flow": "test/denied"})
        await one_stage.submit("good")
        await bridge.settled(job="good", settlement="ack", timeout=60)
        lines = await bridge.settled(3, settlement="dead_letter", timeout=60)
    assert {(line["job"], line["reason"], line["attempt"]) for line in lines} == {
        (f"denied-{number}", "rejected_by_kestra", 1) for number in range(3)
    }


async def test_a_fresh_message_costs_no_search(one_stage: BrokerStage) -> None:
    async with one_stage.bridge(reconcile_interval=3600, report_interval=0) as bridge:
        await eventually(lambda: bridge.count("the ledger is read"), "the ledger is read")
        before = one_stage.kestra.requests["search"]
        await one_stage.submit("one")
        await bridge.settled(job="one")
    assert one_stage.kestra.requests["search"] == before


async def test_a_sweep_is_one_search_for_many_jobs(one_stage: BrokerStage) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "job", Ends(after=None))
    async with one_stage.bridge(
        prefetch=40, deduplicate="redelivered", reconcile_interval=0.5, report_interval=0
    ) as bridge:
        for number in range(40):
            await one_stage.submit(f"job-{number}")
        await kestra.until(lambda: len(kestra.created) == 40, "all jobs run")
        swept = kestra.requests["configs"]
        searches = kestra.requests["search"]
        await kestra.until(lambda: kestra.requests["configs"] >= swept + 4, "four sweeps")
        assert bridge.count("settled") == 0
    # Each sweep probes with one search and lists with another.
    assert kestra.requests["search"] - searches <= 2 * (kestra.requests["configs"] - swept) + 1


@pytest.mark.parametrize("version", ["1.3.25", "2.0.0"])
async def test_both_dialects_of_kestra_are_spoken(one_stage: BrokerStage, version: str) -> None:
    one_stage.kestra.version = version
    one_stage.kestra.flow("test", "job", Ends(outputs={"answer": 42}))
    async with one_stage.bridge() as bridge:
        reply_queue, results = await one_stage.client.reply_queue()
        await one_stage.submit("one", reply_to=reply_queue)
        await bridge.settled(job="one")
        result = await asyncio.wait_for(results.get(), 10)
    assert result["outputs"] == {"answer": 42}


async def test_the_outputs_of_a_job_that_failed_are_told_too(one_stage: BrokerStage) -> None:
    one_stage.kestra.flow("test", "job", Ends("FAILED", outputs={"answer": 42}))
    async with one_stage.bridge(max_attempts=1) as bridge:
        reply_queue, results = await one_stage.client.reply_queue()
        await one_stage.submit("one", reply_to=reply_queue)
        await bridge.settled(job="one", settlement="dead_letter")
        result = await asyncio.wait_for(results.get(), 10)
    assert result["outputs"] == {"answer": 42}
