"""What is counted is there from the start, by the names and the values that the rest of the bridge uses."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client import Metric

from bridge.broker import Cause
from bridge.delivery import Delivery, Message
from bridge.execution import TERMINAL, Execution, Outcome, State
from bridge.handler import Case
from bridge.job import FlowName, Job
from bridge.metrics import Metrics
from bridge.settlement import Settlement

EXECUTION = Execution(id="e1", namespace="a", flow="b", state=State.SUCCESS)


def metric(name: str) -> Metric:
    (found,) = (each for each in Metrics({"kestra.jobs": 8}).registry.collect() if each.name == f"bridge_{name}")
    return found


def values(name: str, label: str) -> set[str]:
    return {sample.labels[label] for sample in metric(name).samples}


def test_every_outcome_is_there_from_the_start() -> None:
    ended = [replace(EXECUTION, state=state) for state in TERMINAL - {State.RETRIED}]
    outcomes = [Outcome(execution=execution, timed_out=late) for execution in ended for late in (False, True)]
    assert values("outcomes", "state") == {outcome.label for outcome in outcomes}


def test_every_settlement_is_there_from_the_start() -> None:
    assert values("settlements", "settlement") == {kind.name for kind in get_args(Settlement)} | {"left"}


def test_every_cause_of_a_restart_is_there_from_the_start() -> None:
    assert values("consumer_restarts", "cause") == set(get_args(Cause))


@pytest.mark.parametrize("name", ["executions", "replies", "results", "reconciled", "duplicate_executions_killed"])
def test_a_counter_stands_at_nought_before_anything_happened(name: str) -> None:
    totals = [sample.value for sample in metric(name).samples if sample.name.endswith("_total")]
    assert totals
    assert set(totals) == {0}


@pytest.mark.parametrize(("name", "value"), [("prefetch", 8), ("in_flight", 0)])
def test_a_lane_is_there_before_its_first_delivery(name: str, value: int) -> None:
    (sample,) = metric(name).samples
    assert (sample.labels, sample.value) == ({"lane": "kestra.jobs"}, value)


def test_a_lanes_deliveries_are_there_before_the_first() -> None:
    assert values("deliveries", "redelivered") == {"false", "true"}


async def ack() -> None:
    pass


@pytest.mark.parametrize(
    ("own", "age", "overdue"), [(None, 50, 0), (None, 130, 30), (60, 50, 0), (60, 90, 30), (900, 130, 0)]
)
def test_a_delivery_is_overdue_by_its_jobs_own_time_out_or_by_the_one_for_all(
    own: float | None, age: float, overdue: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = Delivery(message=Message(body=b""), lane="kestra.jobs", redelivered=False, ack=ack, reject=ack)
    case = Case(delivery, arrived=1000.0, job=Job(id="j", flow=FlowName("a", "b"), timeout=own))
    monkeypatch.setattr("bridge.handler.time.monotonic", lambda: 1000.0 + age)
    assert case.overdue(100) == overdue


def test_a_delivery_that_is_not_decoded_is_overdue_by_the_time_out_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery(message=Message(body=b""), lane="kestra.jobs", redelivered=False, ack=ack, reject=ack)
    monkeypatch.setattr("bridge.handler.time.monotonic", lambda: 1130.0)
    assert Case(delivery, arrived=1000.0).overdue(100) == 30
