"""Kestra failing in every way that a server can: no job is lost, none runs twice, and none pays
with an attempt."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

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


async def test_a_question_that_goes_wrong_is_asked_again(one_stage: BrokerStage) -> None:
    kestra, faults = one_stage.kestra, ("500", "502-html", "401", "reset", "redirect")
    kestra.flow("test", "job", Ends(after=0.5))
    kestra.replies.drop = 1.0
    async with one_stage.bridge(reconcile_interval=0.5) as bridge:
        for fault in faults:
            planted = kestra.faults.add("search", times=2, **CREATE_FAULTS[fault])
            await one_stage.submit(fault)
            await bridge.settled(job=fault)
            assert planted.hits == 2, fault
    settled = [(line["job"], line["settlement"]) for line in bridge.events("settled")]
    assert settled == [(fault, "ack") for fault in faults]
    assert kestra.per_attempt() == Counter({(fault, "1"): 1 for fault in faults})


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


async def test_a_fresh_message_costs_no_search(one_stage: BrokerStage) -> None:
    async with one_stage.bridge(reconcile_interval=3600, report_interval=0) as bridge:
        await eventually(lambda: bridge.count("the ledger is read"), "the ledger is read")
        before = one_stage.kestra.requests["search"]
        await one_stage.submit("one")
        await bridge.settled(job="one")
    assert one_stage.kestra.requests["search"] == before


async def test_a_kill_without_effect_is_asked_for_again(one_stage: BrokerStage) -> None:
    kestra = one_stage.kestra
    kestra.flow("test", "job", Ends(after=None, kill_sticks=True))
    async with one_stage.bridge(job_timeout=1, drain_timeout=0):
        await one_stage.submit("one")
        await eventually(lambda: len(kestra.kills) > 1, "a second kill", timeout=60)
