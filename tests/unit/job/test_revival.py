"""Which earlier attempt an operator brought back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.revival import revived
from bridge.job.settlement import Policy

FLOW = FlowName("test", "job")
BEGAN = datetime(2026, 11, 27, tzinfo=UTC)


def execution(
    attempt: int, state: State, *, number: int = 0, original: str | None = None
) -> Execution:
    return Execution(
        id=f"{attempt}-{number}",
        flow=FLOW,
        state=state,
        labels={"bridgeJob": "one", "bridgeAttempt": str(attempt)},
        started=BEGAN + timedelta(seconds=number),
        original_id=original,
    )


def found(
    *executions: Execution, attempt: int = 3, first: int = 1, ack_warning: bool = True
) -> str | None:
    """The id of the execution that is taken for the job's."""
    job = Job(id="one", flow=FLOW, attempt=attempt, first_attempt=first)
    result = revived(job, executions, accepts=Policy(ack_warning=ack_warning).accepts)
    return result[1].id if result else None


def test_attempts_that_stand_as_they_failed_are_none() -> None:
    assert found(execution(1, State.FAILED), execution(2, State.KILLED)) is None


@pytest.mark.parametrize(
    "state", [State.RUNNING, State.RESTARTED, State.QUEUED, State.SUCCESS, State.WARNING]
)
def test_one_that_runs_or_succeeded_is_the_jobs(state: State) -> None:
    assert found(execution(1, state), execution(2, State.FAILED)) == "1-0"


def test_a_warning_is_no_success_where_the_policy_says_so() -> None:
    assert found(execution(2, State.WARNING), ack_warning=False) is None


def test_of_two_the_later_counts() -> None:
    assert found(execution(1, State.RUNNING), execution(2, State.RUNNING)) == "2-0"


def test_a_replay_in_kestra_of_an_earlier_attempt_is_followed() -> None:
    replay = execution(2, State.RUNNING, number=1, original="2-0")
    assert found(execution(2, State.FAILED, original="2-0"), replay) == "2-1"


def test_an_attempt_before_a_replay_of_the_dead_letter_does_not_count() -> None:
    assert found(execution(1, State.SUCCESS), first=2) is None


def test_none_counts_once_the_jobs_own_attempt_has_begun() -> None:
    assert found(execution(1, State.RUNNING), execution(3, State.RUNNING)) is None


def test_it_is_named_by_its_own_attempt() -> None:
    job = Job(id="one", flow=FLOW, attempt=2)
    result = revived(job, [execution(1, State.RUNNING)], accepts=Policy().accepts)
    assert result is not None
    assert result[0].attempt == 1
