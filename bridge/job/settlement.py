"""What becomes of a delivery: a pure decision from an outcome, the attempt and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bridge.job.execution import Outcome, State
from bridge.job.message import ATTEMPT, MACHINES_LOST


class Reason(StrEnum):
    """Why a message is a dead letter (header `x-bridge-reason`)."""

    INVALID_MESSAGE = "invalid_message"
    FLOW_NOT_ALLOWED = "flow_not_allowed"
    REJECTED_BY_KESTRA = "rejected_by_kestra"
    FAILED = "failed"
    KILLED = "killed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    VANISHED = "vanished"
    MACHINE_LOST = "machine_lost"


@dataclass(frozen=True, slots=True)
class Ack:
    """The job is done: the broker may forget the message."""

    name = "ack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The same job again, as attempt `attempt`, `delay` seconds after it is published.

    `machines_lost` counts the attempts so far whose machine was lost.
    """

    name = "retry"
    attempt: int
    delay: int
    error: str
    machines_lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToDeadLetter:
    """The job ends here, unfinished, and a person may want to know why.

    `machines_lost` counts the job's attempts whose machine was lost.
    """

    name = "dead_letter"
    reason: Reason
    error: str
    machines_lost: int = 0

    def headers(
        self, *, queue: str, attempt: int, execution_id: str | None, at: datetime
    ) -> dict[str, Any]:
        """The headers that say why a message is a dead letter."""
        headers: dict[str, Any] = {
            "x-bridge-reason": self.reason.value,
            "x-bridge-error": self.error,
            ATTEMPT: attempt,
            "x-bridge-queue": queue,
            "x-bridge-at": at.isoformat(timespec="milliseconds"),
        }
        if execution_id:
            headers["x-bridge-execution"] = execution_id
        if self.machines_lost:
            headers[MACHINES_LOST] = self.machines_lost
        return headers


@dataclass(frozen=True, slots=True)
class AssignId:
    """The message goes back to its queue with a fresh job id, which identifies its attempts."""

    name = "stamp"
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Park:
    """The same attempt again, `delay` seconds from now: the job is not why it could not start."""

    name = "park"
    attempt: int
    delay: int
    error: str
    machines_lost: int = 0


Settlement = Ack | Retry | ToDeadLetter | AssignId | Park


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What settlements depend on, most of it chosen by the operator.

    `retry_delays` are seconds; the last one repeats. `max_machines_lost` is how many lost machines
    cost a job no attempt.
    """

    max_attempts: int = 3
    retry_delays: Sequence[int] = (30, 300)
    ack_warning: bool = True
    max_machines_lost: int = 5

    def accepts(self, state: State) -> bool:
        """Whether an execution that ended in that state did the job."""
        return state is State.SUCCESS or (state is State.WARNING and self.ack_warning)

    def tries_again(self, outcome: Outcome) -> bool:
        """Whether another attempt follows that outcome while the budget lasts."""
        return _reason(outcome, self) in _RETRIED_REASONS


_RETRIED_REASONS = frozenset(
    {Reason.FAILED, Reason.CANCELLED, Reason.TIMED_OUT, Reason.MACHINE_LOST}
)


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    first_attempt: int,
    policy: Policy,
    machines_lost: int = 0,
) -> Settlement:
    """What becomes of a delivery after that outcome of its attempt.

    `machines_lost`: how many attempts before this one ended because their machine was lost.

    A failure, a cancellation (Kestra's concurrency limit or SLA) and a time-out are tried again
    while the budget lasts, which counts from `first_attempt` (1, or later for a message that was
    replayed). A kill is somebody's decision and is final.

    A lost machine is no failure of the job's. The next attempt has the next number all the same, so
    that an attempt stays one execution; the budget leaves such attempts out, and they have a limit
    of their own.
    """
    reason = _reason(outcome, policy)
    if reason is None:
        return Ack()
    error = outcome.error or f"execution {outcome.execution.id} ended {outcome.execution.state}"
    if reason is Reason.MACHINE_LOST:
        machines_lost += 1
        tries = machines_lost
        is_last = machines_lost > policy.max_machines_lost
    else:
        tries = attempt - first_attempt + 1 - machines_lost
        is_last = tries >= policy.max_attempts
    if reason not in _RETRIED_REASONS or is_last:
        return ToDeadLetter(
            reason=reason, error=_with_losses(error, machines_lost), machines_lost=machines_lost
        )
    return Retry(
        attempt=attempt + 1,
        delay=_delay(tries, policy.retry_delays),
        error=error,
        machines_lost=machines_lost,
    )


def _with_losses(error: str, machines_lost: int) -> str:
    """The error, with the number of lost machines, which is why the attempts are so many."""
    if not machines_lost:
        return error
    noun = "machine" if machines_lost == 1 else "machines"
    return f"{error} ({machines_lost} {noun} lost)"


def _reason(outcome: Outcome, policy: Policy) -> Reason | None:
    state = outcome.execution.state
    if policy.accepts(state):
        return None
    if outcome.timed_out:
        return Reason.TIMED_OUT
    if state is State.KILLED:
        return Reason.KILLED
    if state is State.CANCELLED:
        return Reason.CANCELLED
    if outcome.machine_lost:
        return Reason.MACHINE_LOST
    return Reason.FAILED


def _delay(tries: int, delays: Sequence[int]) -> int:
    return delays[min(tries, len(delays)) - 1]
