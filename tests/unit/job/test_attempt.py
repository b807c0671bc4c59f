"""Which attempt an execution belongs to, by its labels."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bridge.job.attempt import AttemptKey, attempt_key
from bridge.job.execution import Execution, State, by_attempt
from bridge.job.flow_name import FlowName
from bridge.job.job import Job

FLOW = FlowName("company.team", "report")
JOB = Job(id="one", flow=FLOW, queue="kestra.jobs", attempt=2)


def execution(
    labels: Mapping[str, str], *, flow: FlowName = FLOW, triggered: bool = False
) -> Execution:
    return Execution(id="e1", flow=flow, state=State.RUNNING, labels=labels, triggered=triggered)


def test_labels_lead_back_to_the_attempt_that_they_were_made_of() -> None:
    assert attempt_key(JOB.execution_labels, FLOW) == JOB.key


@pytest.mark.parametrize("attempt", ["", "0", "01", "-1", "1.5", "two", "²"])
def test_an_attempt_that_is_no_number_from_one_is_of_no_job(attempt: str) -> None:
    assert attempt_key({"bridgeJob": "one", "bridgeAttempt": attempt}, FLOW) is None


def test_labels_without_a_job_are_of_none() -> None:
    assert attempt_key({"bridgeAttempt": "1"}, FLOW) is None


def test_labels_without_a_queue_go_by_the_flow() -> None:
    found = attempt_key({"bridgeJob": "one", "bridgeAttempt": "2"}, FLOW)
    assert found == AttemptKey("company.team/report", "one", 2)


def test_a_job_owns_an_execution_of_its_flow_that_names_no_queue() -> None:
    assert JOB.owns(execution({"bridgeJob": "one", "bridgeAttempt": "2"}))


def test_a_job_does_not_own_one_of_another_flow_that_names_no_queue() -> None:
    other = FlowName("company.team", "other")
    assert not JOB.owns(execution({"bridgeJob": "one", "bridgeAttempt": "2"}, flow=other))


def test_a_job_does_not_own_one_of_the_same_id_from_another_queue() -> None:
    labels = {**JOB.execution_labels, "bridgeQueue": "other"}
    assert not JOB.owns(execution(labels))


def test_a_job_owns_no_execution_of_another_attempt() -> None:
    assert not JOB.owns(execution({**JOB.execution_labels, "bridgeAttempt": "1"}))


def test_a_job_names_the_executions_of_all_its_attempts() -> None:
    assert JOB.names(execution({**JOB.execution_labels, "bridgeAttempt": "1"}))


def test_an_execution_that_was_triggered_is_of_no_attempt() -> None:
    assert not JOB.names(execution(JOB.execution_labels, triggered=True))


def test_executions_of_no_attempt_are_in_no_group() -> None:
    own, foreign = execution(JOB.execution_labels), execution({})
    assert by_attempt([own, foreign]) == {JOB.key: [own]}
