"""What becomes of a delivery, as a table."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.job.execution import Execution, Outcome, State
from bridge.job.flow_name import FlowName
from bridge.job.settlement import Ack, Policy, Reason, Retry, Settlement, ToDeadLetter, decide

POLICY = Policy(max_attempts=3, retry_delays=(30, 300), ack_warning=True)


def outcome(
    state: State,
    *,
    timed_out: bool = False,
    machine_lost: bool = False,
    error: str | None = "why",
) -> Outcome:
    execution = Execution(id="e1", flow=FlowName("n", "f"), state=state)
    return Outcome(execution=execution, timed_out=timed_out, machine_lost=machine_lost, error=error)


def decided(
    state: State,
    *,
    attempt: int = 1,
    first_attempt: int = 1,
    timed_out: bool = False,
    policy: Policy = POLICY,
) -> Settlement:
    return decide(
        outcome(state, timed_out=timed_out),
        attempt=attempt,
        first_attempt=first_attempt,
        policy=policy,
    )


def retry(attempt: int, delay: int) -> Retry:
    return Retry(attempt=attempt, delay=delay, error="why")


def dead(reason: Reason) -> ToDeadLetter:
    return ToDeadLetter(reason=reason, error="why")


@pytest.mark.parametrize(
    ("state", "timed_out", "first", "last"),
    [
        (State.SUCCESS, False, Ack(), Ack()),
        (State.SUCCESS, True, Ack(), Ack()),
        (State.WARNING, False, Ack(), Ack()),
        (State.FAILED, False, retry(2, 30), dead(Reason.FAILED)),
        (State.CANCELLED, False, retry(2, 30), dead(Reason.CANCELLED)),
        (State.KILLED, True, retry(2, 30), dead(Reason.TIMED_OUT)),
        (State.FAILED, True, retry(2, 30), dead(Reason.TIMED_OUT)),
        (State.KILLED, False, dead(Reason.KILLED), dead(Reason.KILLED)),
        (State.RETRIED, False, retry(2, 30), dead(Reason.FAILED)),
        (State.SKIPPED, False, retry(2, 30), dead(Reason.FAILED)),
        (State.UNKNOWN, False, retry(2, 30), dead(Reason.FAILED)),
    ],
)
def test_an_end_decides_at_the_first_and_at_the_last_attempt(
    state: State, timed_out: bool, first: Settlement, last: Settlement
) -> None:
    assert decided(state, timed_out=timed_out, attempt=1) == first
    assert decided(state, timed_out=timed_out, attempt=3) == last


@pytest.mark.parametrize(
    ("attempt", "settlement"), [(1, retry(2, 30)), (2, retry(3, 300)), (3, dead(Reason.FAILED))]
)
def test_a_warning_is_a_failure_where_the_operator_says_so(
    attempt: int, settlement: Settlement
) -> None:
    policy = Policy(max_attempts=3, retry_delays=(30, 300), ack_warning=False)
    assert decided(State.WARNING, attempt=attempt, policy=policy) == settlement


@pytest.mark.parametrize(
    ("delays", "waits"),
    [((30, 300), [30, 300, 300, 300]), ((5,), [5, 5, 5, 5]), ((1, 2, 3, 4, 5), [1, 2, 3, 4])],
)
def test_the_last_delay_repeats(delays: tuple[int, ...], waits: list[int]) -> None:
    policy = Policy(max_attempts=5, retry_delays=delays)
    assert [decided(State.FAILED, attempt=n, policy=policy) for n in (1, 2, 3, 4)] == [
        retry(n + 1, wait) for n, wait in zip((1, 2, 3, 4), waits, strict=True)
    ]


@pytest.mark.parametrize(
    ("attempt", "settlement"),
    [(4, retry(5, 30)), (5, retry(6, 300)), (6, dead(Reason.FAILED)), (7, dead(Reason.FAILED))],
)
def test_a_replayed_message_has_its_budget_anew(attempt: int, settlement: Settlement) -> None:
    assert decided(State.FAILED, attempt=attempt, first_attempt=4) == settlement


def test_one_attempt_means_no_retry() -> None:
    assert decided(State.FAILED, policy=Policy(max_attempts=1)) == dead(Reason.FAILED)


def test_an_end_without_a_reason_names_the_execution_and_its_state() -> None:
    settlement = decide(
        outcome(State.KILLED, error=None), attempt=1, first_attempt=1, policy=POLICY
    )
    assert settlement == ToDeadLetter(reason=Reason.KILLED, error="execution e1 ended KILLED")


class TestALostMachine:
    policy = Policy(max_attempts=2, retry_delays=(30, 300), max_machines_lost=2)

    def lost(self, *, attempt: int, before: int, first_attempt: int = 1) -> Settlement:
        return decide(
            outcome(State.FAILED, machine_lost=True),
            attempt=attempt,
            first_attempt=first_attempt,
            machines_lost=before,
            policy=self.policy,
        )

    def failed(self, *, attempt: int, before: int) -> Settlement:
        return decide(
            outcome(State.FAILED),
            attempt=attempt,
            first_attempt=1,
            machines_lost=before,
            policy=self.policy,
        )

    @pytest.mark.parametrize(
        ("before", "settlement"),
        [
            (0, Retry(attempt=10, delay=30, error="why", machines_lost=1)),
            (1, Retry(attempt=10, delay=300, error="why", machines_lost=2)),
            (
                2,
                ToDeadLetter(
                    reason=Reason.MACHINE_LOST,
                    error="why (3 machines lost)",
                    machines_lost=3,
                ),
            ),
        ],
    )
    def test_is_followed_by_the_next_attempt_up_to_a_limit_of_its_own(
        self, before: int, settlement: Settlement
    ) -> None:
        assert self.lost(attempt=9, first_attempt=7, before=before) == settlement

    def test_costs_no_attempt_of_the_budget(self) -> None:
        retried = Retry(attempt=3, delay=30, error="why", machines_lost=1)
        assert self.failed(attempt=2, before=1) == retried

    def test_is_told_in_the_dead_letter_of_a_job_that_failed_by_itself(self) -> None:
        settlement = self.failed(attempt=3, before=1)
        assert settlement == ToDeadLetter(
            reason=Reason.FAILED, error="why (1 machine lost)", machines_lost=1
        )

    def test_stands_in_a_header_of_the_dead_letter(self) -> None:
        settlement = self.lost(attempt=3, before=2)
        assert isinstance(settlement, ToDeadLetter)
        headers = settlement.headers(
            queue="q", attempt=3, execution_id="e1", at=datetime(2026, 1, 31, tzinfo=UTC)
        )
        assert headers["x-bridge-machines-lost"] == 3


@given(
    state=st.sampled_from(State),
    timed_out=st.booleans(),
    attempt=st.integers(1, 10),
    budget=st.integers(1, 5),
    ack_warning=st.booleans(),
)
def test_nothing_but_success_and_a_warning_that_counts_as_one_is_ever_acked(
    state: State, timed_out: bool, attempt: int, budget: int, ack_warning: bool
) -> None:
    policy = Policy(max_attempts=budget, ack_warning=ack_warning)
    settlement = decided(state, timed_out=timed_out, attempt=attempt, policy=policy)
    well = state is State.SUCCESS or (state is State.WARNING and ack_warning)
    assert isinstance(settlement, Ack) is well
