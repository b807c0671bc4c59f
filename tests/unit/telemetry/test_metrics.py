"""What is counted is there from the start, by the names and the values that the rest of the bridge
uses."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client import Metric

from bridge import __version__
from bridge.consume.handling import Decoded, Handling
from bridge.job.execution import TERMINAL, Execution, Outcome, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.message import Delivery, Message
from bridge.job.settlement import Policy, Reason, Retry, Settlement, decide
from bridge.rabbitmq.broker import Cause
from bridge.telemetry.metrics import PRIORITIES_FROM_THE_START, Metrics
from deploy.local.paths import REPOSITORY

EXECUTION = Execution(id="e1", flow=FlowName("a", "b"), state=State.SUCCESS)


def metric(name: str, *, max_priority: int = 10) -> Metric:
    metrics = Metrics({"kestra.jobs": 8}, max_priority=max_priority)
    (found,) = (each for each in metrics.registry.collect() if each.name == f"bridge_{name}")
    return found


def values(name: str, label: str) -> set[str]:
    return {sample.labels[label] for sample in metric(name).samples}


def outcomes() -> list[Outcome]:
    """Every way in which an attempt can end."""
    ended = [replace(EXECUTION, state=state) for state in TERMINAL - {State.RETRIED}]
    failed = replace(EXECUTION, state=State.FAILED)
    return [
        *(
            Outcome(execution=execution, timed_out=late)
            for execution in ended
            for late in (False, True)
        ),
        Outcome(execution=failed, machine_lost=True),
    ]


def test_every_outcome_is_there_from_the_start() -> None:
    assert values("outcomes", "state") == {outcome.label for outcome in outcomes()}


def test_every_settlement_is_there_from_the_start() -> None:
    assert values("settlements", "settlement") == {kind.name for kind in get_args(Settlement)} | {
        "left"
    }


def reasons(settlement: str) -> set[str]:
    found = [
        sample.labels
        for sample in metric("settlements").samples
        if sample.labels["settlement"] == settlement
    ]
    return {labels["reason"] for labels in found}


def test_every_reason_of_a_dead_letter_is_there_from_the_start() -> None:
    assert reasons("dead_letter") == set(Reason)


def operations() -> set[str]:
    """All that is asked of Kestra, by the name in the metrics."""
    asks = re.compile(r"""(?:read|send|_send_yaml|all|page)\(\s*"([a-z]+)\"""")
    sources = (REPOSITORY / "bridge" / "kestra").glob("*.py")
    return {name for path in sources for name in asks.findall(path.read_text())}


OF_COMMANDS = {"correlated", "delete", "deploy", "reworked", "story", "validate"}


@pytest.mark.parametrize("name", ["kestra_refused", "kestra_request_seconds"])
def test_every_operation_of_the_consumer_is_there_from_the_start(name: str) -> None:
    assert values(name, "operation") == operations() - OF_COMMANDS


def test_every_outcome_that_is_tried_again_is_there_from_the_start() -> None:
    policies = [Policy(ack_warning=accepted) for accepted in (False, True)]
    tried_again = {
        outcome.label
        for outcome in outcomes()
        for policy in policies
        if isinstance(decide(outcome, attempt=1, first_attempt=1, policy=policy), Retry)
    }
    assert reasons("retry") == tried_again


@pytest.mark.parametrize("settlement", ["ack", "stamp", "park", "left"])
def test_what_is_neither_a_retry_nor_a_dead_letter_has_no_reason(settlement: str) -> None:
    assert reasons(settlement) == {""}


@pytest.mark.parametrize("highest", [1, 10])
def test_every_priority_is_there_from_the_start(highest: int) -> None:
    samples = metric("queue_wait_seconds", max_priority=highest).samples
    assert {sample.labels["priority"] for sample in samples} == {
        str(priority) for priority in range(highest + 1)
    }


def test_of_very_many_priorities_only_some_are_there_from_the_start() -> None:
    samples = metric("queue_wait_seconds", max_priority=255).samples
    assert len({sample.labels["priority"] for sample in samples}) == PRIORITIES_FROM_THE_START


def test_the_version_of_the_bridge_is_a_label() -> None:
    (sample,) = metric("build_info").samples
    assert (sample.labels, sample.value) == ({"version": __version__}, 1)


def test_every_cause_of_a_restart_is_there_from_the_start() -> None:
    assert values("consumer_restarts", "cause") == set(get_args(Cause))


@pytest.mark.parametrize(
    "name",
    [
        "executions",
        "settlements",
        "outcomes",
        "replies",
        "results",
        "reconciled",
        "duplicate_executions_killed",
    ],
)
def test_a_counter_is_zero_before_anything_happened(name: str) -> None:
    totals = [sample.value for sample in metric(name).samples if sample.name.endswith("_total")]
    assert totals
    assert set(totals) == {0}


@pytest.mark.parametrize(("name", "value"), [("prefetch", 8), ("in_flight", 0)])
def test_a_lane_is_there_before_its_first_delivery(name: str, value: int) -> None:
    (sample,) = metric(name).samples
    assert (sample.labels, sample.value) == ({"lane": "kestra.jobs"}, value)


def test_a_lanes_deliveries_are_there_before_the_first() -> None:
    assert values("deliveries", "redelivered") == {"false", "true"}


@pytest.mark.parametrize("name", ["job_seconds", "settle_seconds", "queue_wait_seconds"])
def test_a_lanes_times_are_there_before_its_first_job(name: str) -> None:
    counts = [sample for sample in metric(name).samples if sample.name.endswith("_count")]
    assert {(sample.labels["lane"], sample.value) for sample in counts} == {("kestra.jobs", 0)}


async def ack() -> None:
    pass


@pytest.mark.parametrize(
    ("own", "age", "overdue"),
    [(None, 50, 0), (None, 130, 30), (60, 50, 0), (60, 90, 30), (900, 130, 0)],
)
def test_a_delivery_is_overdue_by_its_jobs_own_time_out_or_by_the_one_for_all(
    own: float | None, age: float, overdue: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = Delivery(
        message=Message(body=b""), lane="kestra.jobs", redelivered=False, ack=ack, reject=ack
    )
    handling = Handling(delivery, arrived=1000.0)
    handling.progress = Decoded(delivery, Job(id="j", flow=FlowName("a", "b"), timeout=own))
    monkeypatch.setattr("bridge.consume.handling.time.monotonic", lambda: 1000.0 + age)
    assert handling.overdue(100) == overdue


def test_a_delivery_that_is_not_decoded_is_overdue_by_the_time_out_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delivery = Delivery(
        message=Message(body=b""), lane="kestra.jobs", redelivered=False, ack=ack, reject=ack
    )
    monkeypatch.setattr("bridge.consume.handling.time.monotonic", lambda: 1130.0)
    assert Handling(delivery, arrived=1000.0).overdue(100) == 30
