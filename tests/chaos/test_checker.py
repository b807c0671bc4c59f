"""The checker finds each kind of broken promise in a history in which all is well but that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.checker import Kind, check
from tests.chaos.history import (
    Acked,
    DeadLetter,
    Delivered,
    Event,
    Execution,
    InFlight,
    Killed,
    Left,
    Limits,
    Moved,
    Published,
    Trouble,
    read,
    write,
)

LIMITS = Limits(prefetch=2, settled_within=60)


def published(
    job: str = "one", *, end: str = "success", attempts: int = 1, confirmed: int = 1
) -> Published:
    runs = end not in ("invalid_message", "flow_not_allowed")
    return Published(
        at=0,
        job=job,
        end=end,
        attempts=attempts,
        runs=runs,
        confirmed=confirmed,
        in_doubt=0,
        timeout=10,
    )


def delivered(
    at: float, tag: int, attempt: int = 1, *, job: str = "one", replica: str = "a"
) -> Delivered:
    return Delivered(
        at=at,
        replica=replica,
        channel=f"{replica}/1/1",
        tag=tag,
        job=job,
        attempt=attempt,
        redelivered=False,
    )


def acked(at: float, tag: int, *, replica: str = "a") -> Acked:
    return Acked(at=at, channel=f"{replica}/1/1", tag=tag)


def execution(
    name: str,
    created: float,
    ended: float,
    state: str = "SUCCESS",
    *,
    attempt: int = 1,
    chain: str = "",
) -> Execution:
    states = (("CREATED", created), ("RUNNING", created), (state, ended))
    return Execution(id=name, chain=chain or name, job="one", attempt=attempt, states=states)


def moved(at: float, to: str, attempt: int, *, replica: str = "a") -> Moved:
    return Moved(at=at, replica=replica, to=to, job="one", attempt=attempt)


WELL: list[Event] = [LIMITS, published(), delivered(1, 1), execution("e1", 2, 3), acked(4, 1)]
RETRIED: list[Event] = [
    LIMITS,
    published(attempts=2),
    delivered(1, 1),
    execution("e1", 2, 3, "FAILED"),
    moved(4, "jobs.retry.1", 2),
    acked(5, 1),
    delivered(6, 2, attempt=2),
    execution("e2", 7, 8, attempt=2),
    acked(9, 2),
]
DEAD: list[Event] = [
    LIMITS,
    published(end="killed"),
    delivered(1, 1),
    execution("e1", 2, 3, "KILLED"),
    moved(4, "jobs.dead", 1),
    acked(5, 1),
    DeadLetter(job="one", attempt=1, reason="killed", error="somebody killed it", execution="e1"),
]
REFUSED: list[Event] = [
    LIMITS,
    published(end="invalid_message"),
    delivered(1, 1),
    moved(2, "jobs.dead", 1),
    acked(3, 1),
    DeadLetter(job="one", attempt=1, reason="invalid_message", error="no JSON", execution=None),
]
TWICE_SENT: list[Event] = [
    LIMITS,
    published(confirmed=2),
    delivered(1, 1),
    delivered(1, 1, replica="b"),
    execution("e1", 2, 5),
    acked(6, 1),
    acked(6, 1, replica="b"),
]
ADOPTED: list[Event] = [
    LIMITS,
    published(),
    delivered(1, 1),
    execution("e1", 2, 3),
    delivered(5, 1, replica="b"),
    acked(6, 1, replica="b"),
]
RETRIED_BY_ITS_FLOW: list[Event] = [
    LIMITS,
    published(),
    delivered(1, 1),
    execution("e1", 2, 3, "RETRIED"),
    execution("e2", 3, 4, chain="e1"),
    acked(5, 1),
]
RETRIED_BY_ITS_FLOW_AND_BY_THE_BRIDGE: list[Event] = [
    LIMITS,
    published(),
    delivered(1, 1),
    execution("e1", 2, 3, "RETRIED"),
    execution("e2", 3, 5, chain="e1"),
    *RETRIED[4:7],
    acked(8, 2),
]
RESTARTED_BY_AN_OPERATOR: list[Event] = [
    *RETRIED[:3],
    Execution(
        id="e1",
        chain="e1",
        job="one",
        attempt=1,
        states=(
            ("CREATED", 2.0),
            ("RUNNING", 2.0),
            ("FAILED", 3.0),
            ("RESTARTED", 4.5),
            ("SUCCESS", 7.0),
        ),
    ),
    *RETRIED[4:7],
    acked(8, 2),
]
CHANGED_BY_AN_OPERATOR = [
    replace(event, states=(("CREATED", 2.0), ("FAILED", 3.0), ("SUCCESS", 4.5)))
    if isinstance(event, Execution)
    else event
    for event in RESTARTED_BY_AN_OPERATOR
]
BROUGHT_BACK_IN_VAIN = [
    replace(event, states=(("CREATED", 2.0), ("FAILED", 3.0), ("RESTARTED", 4.5), ("FAILED", 6.5)))
    if isinstance(event, Execution) and event.id == "e1"
    else event
    for event in RETRIED
]
TIMED_OUT: list[Event] = [
    LIMITS,
    published(end="timed_out"),
    delivered(1, 1),
    Execution(
        id="e1",
        chain="e1",
        job="one",
        attempt=1,
        states=(("CREATED", 2.0), ("RUNNING", 50.0), ("KILLING", 60.5), ("KILLED", 61.0)),
        kills=(60.1, 60.5),
    ),
    moved(62, "jobs.dead", 1),
    acked(62, 1),
    DeadLetter(job="one", attempt=1, reason="timed_out", error="killed after 10 s", execution="e1"),
]
DENIED: list[Event] = [
    LIMITS,
    replace(published(end="rejected_by_kestra"), runs=False, parks=True),
    delivered(1, 1),
    moved(11, "jobs.retry.1", 1),
    acked(12, 1),
    delivered(13, 2),
    moved(14, "jobs.dead", 1),
    acked(15, 2),
    DeadLetter(job="one", attempt=1, reason="rejected_by_kestra", error="403", execution=None),
]
IN_DOUBT: list[Event] = [LIMITS, published(confirmed=0)]


SOUND = {
    "well": WELL,
    "retried": RETRIED,
    "dead": DEAD,
    "refused": REFUSED,
    "twice": TWICE_SENT,
    "adopted": ADOPTED,
    "retried-by-its-flow": RETRIED_BY_ITS_FLOW,
    "retried-by-its-flow-and-by-the-bridge": RETRIED_BY_ITS_FLOW_AND_BY_THE_BRIDGE,
    "restarted-by-an-operator": RESTARTED_BY_AN_OPERATOR,
    "changed-by-an-operator": CHANGED_BY_AN_OPERATOR,
    "brought-back-in-vain": BROUGHT_BACK_IN_VAIN,
    "timed-out": TIMED_OUT,
    "denied": DENIED,
    "in-doubt": IN_DOUBT,
}


@pytest.mark.parametrize("history", SOUND.values(), ids=SOUND)
def test_a_history_in_which_all_is_well_breaks_nothing(history: Sequence[Event]) -> None:
    assert check(history).violations == ()


def without(history: Sequence[Event], *indexes: int) -> list[Event]:
    return [event for index, event in enumerate(history) if index not in indexes]


def changed(history: Sequence[Event], index: int, **changes: object) -> list[Event]:
    return [replace(event, **changes) if at == index else event for at, event in enumerate(history)]  # type: ignore[arg-type]


PLANTED: dict[str, tuple[Kind, Sequence[Event]]] = {
    "a-job-that-never-came-out-of-the-queue": (Kind.LOST, [LIMITS, published()]),
    "a-job-that-ran-and-was-never-acked": (Kind.LOST, without(WELL, 4)),
    "a-job-that-was-acked-and-never-ran": (Kind.LOST, without(WELL, 3)),
    "a-dead-letter-that-is-gone": (Kind.LOST, without(DEAD, 6)),
    "an-ack-before-the-success": (Kind.EARLY_ACK, changed(WELL, 4, at=2.5)),
    "an-ack-without-an-execution": (Kind.EARLY_ACK, without(WELL, 3)),
    "an-ack-of-a-running-execution": (Kind.EARLY_ACK, changed(WELL, 3, states=(("RUNNING", 2.0),))),
    "an-ack-of-a-failure": (
        Kind.EARLY_ACK,
        changed(WELL, 3, states=(("CREATED", 2.0), ("FAILED", 3.0))),
    ),
    "an-ack-by-another-attempts-success": (Kind.EARLY_ACK, changed(WELL, 3, attempt=2)),
    "an-ack-before-the-retry-is-confirmed": (Kind.EARLY_ACK, changed(RETRIED, 5, at=3.5)),
    "an-ack-whose-retry-was-never-confirmed": (Kind.EARLY_ACK, without(RETRIED, 4)),
    "an-ack-by-another-replicas-retry": (Kind.EARLY_ACK, changed(RETRIED, 4, replica="b")),
    "two-acks-for-one-dead-letter": (
        Kind.EARLY_ACK,
        [*DEAD, delivered(1, 2), acked(5.5, 2)],
    ),
    "a-second-execution-that-ran": (Kind.SECOND_EXECUTION, [*WELL, execution("e2", 2.5, 3.5)]),
    "a-second-execution-of-a-message-sent-twice": (
        Kind.SECOND_EXECUTION,
        [*TWICE_SENT, execution("e2", 2.1, 2.2)],
    ),
    "a-second-execution-that-still-runs": (
        Kind.SECOND_EXECUTION,
        changed([*WELL, execution("e2", 2.5, 3)], 5, states=(("RUNNING", 2.5),)),
    ),
    "an-attempt-after-a-success": (
        Kind.SECOND_EXECUTION,
        [*WELL, execution("e2", 5, 6, attempt=2)],
    ),
    "an-attempt-while-the-last-one-runs": (
        Kind.SECOND_EXECUTION,
        changed(RETRIED, 3, states=(("CREATED", 2.0), ("FAILED", 7.5))),
    ),
    "a-second-execution-that-was-killed": (
        Kind.KILLED_DUPLICATE,
        [
            *TWICE_SENT,
            execution("e2", 2.1, 3, "KILLED"),
            Killed(replica="a", job="one", execution="e2"),
        ],
    ),
    "the-jobs-own-execution-killed": (
        Kind.WRONG_KILL,
        [*WELL, Killed(replica="a", job="one", execution="e1")],
    ),
    "an-attempt-paid-for-trouble": (Kind.WRONG_ATTEMPTS, changed(RETRIED, 1, attempts=1)),
    "an-attempt-too-few": (Kind.WRONG_ATTEMPTS, changed(WELL, 1, attempts=2)),
    "a-refused-job-that-ran": (Kind.WRONG_ATTEMPTS, [*REFUSED, execution("e1", 2, 3)]),
    "a-job-settled-an-hour-late": (Kind.STUCK, changed(WELL, 4, at=3600.0)),
    "a-restarted-job-that-was-acked-while-it-ran": (
        Kind.EARLY_ACK,
        changed(RESTARTED_BY_AN_OPERATOR, 7, at=6.8),
    ),
    "an-ack-by-an-earlier-attempt-that-nobody-brought-back": (
        Kind.EARLY_ACK,
        changed(RESTARTED_BY_AN_OPERATOR, 3, states=(("CREATED", 2.0), ("SUCCESS", 3.0))),
    ),
    "an-ack-of-a-restarted-attempt-that-failed": (
        Kind.EARLY_ACK,
        changed(
            RESTARTED_BY_AN_OPERATOR,
            3,
            states=(("FAILED", 3.0), ("RESTARTED", 4.5), ("FAILED", 7.0)),
        ),
    ),
    "an-attempt-beside-an-earlier-one-that-was-restarted": (
        Kind.SECOND_EXECUTION,
        [*RESTARTED_BY_AN_OPERATOR, execution("e2", 6, 8, attempt=2)],
    ),
    "an-attempt-after-an-operators-success": (
        Kind.SECOND_EXECUTION,
        [*CHANGED_BY_AN_OPERATOR, execution("e2", 6, 8, attempt=2)],
    ),
    "an-attempt-too-many-for-an-operators-success": (
        Kind.WRONG_ATTEMPTS,
        [*CHANGED_BY_AN_OPERATOR, execution("e2", 6, 8, attempt=2)],
    ),
    "a-dead-letter-of-a-job-that-an-operator-ended-well": (
        Kind.WRONG_DEAD_LETTER,
        [
            *CHANGED_BY_AN_OPERATOR,
            DeadLetter(job="one", attempt=2, reason="failed", error="it failed", execution="e1"),
        ],
    ),
    "an-attempt-beside-one-that-was-never-started": (
        Kind.SECOND_EXECUTION,
        changed(RETRIED, 3, states=(("CREATED", 2.0),)),
    ),
    "a-dead-letter-of-an-execution-that-was-never-started": (
        Kind.WRONG_DEAD_LETTER,
        changed(TIMED_OUT, 3, states=(("CREATED", 2.0),), kills=()),
    ),
    "a-kill-before-kestra-ran-the-execution": (
        Kind.KILLED_TOO_SOON,
        changed(TIMED_OUT, 3, kills=(20.0, 60.5)),
    ),
    "a-kill-before-the-time-was-up": (Kind.KILLED_TOO_SOON, changed(TIMED_OUT, 3, kills=(55.0,))),
    "a-kill-of-a-restarted-execution-that-waits": (
        Kind.KILLED_TOO_SOON,
        changed(RESTARTED_BY_AN_OPERATOR, 3, kills=(5.0,)),
    ),
    "a-job-parked-that-nobody-denied": (Kind.PARKED, changed(DENIED, 1, parks=False)),
    "a-later-attempt-parked": (Kind.PARKED, [*RETRIED, moved(9, "jobs.retry.1", 2, replica="b")]),
    "a-denied-job-that-ran": (Kind.WRONG_ATTEMPTS, [*DENIED, execution("e1", 2, 3)]),
    "a-denied-job-parked-for-ever": (Kind.LOST, without(DENIED, 6, 8)),
    "a-dead-letter-that-says-denied-of-a-job-that-was-to-succeed": (
        Kind.WRONG_DEAD_LETTER,
        changed(DENIED, 1, end="success"),
    ),
    "a-dead-letter-that-says-vanished-of-an-execution-that-is-there": (
        Kind.WRONG_DEAD_LETTER,
        changed(DEAD, 6, reason="vanished"),
    ),
    "a-message-left-in-a-queue": (Kind.STUCK, [*WELL, Left(queue="jobs", messages=1)]),
    "a-delivery-in-flight-at-the-end": (Kind.STUCK, [*WELL, InFlight(replica="a", deliveries=1)]),
    "more-in-flight-than-the-prefetch": (
        Kind.ABOVE_PREFETCH,
        [*WELL, published("two", confirmed=0), *(delivered(2, tag, job="two") for tag in (2, 3))],
    ),
    "a-dead-letter-of-a-job-that-was-to-succeed": (
        Kind.WRONG_DEAD_LETTER,
        changed(DEAD, 1, end="success"),
    ),
    "a-dead-letter-for-another-reason": (Kind.WRONG_DEAD_LETTER, changed(DEAD, 6, reason="failed")),
    "a-dead-letter-after-too-few-attempts": (Kind.WRONG_DEAD_LETTER, changed(DEAD, 1, attempts=3)),
    "a-dead-letter-without-a-word": (Kind.WRONG_DEAD_LETTER, changed(DEAD, 6, error="")),
    "a-dead-letter-that-names-another-execution": (
        Kind.WRONG_DEAD_LETTER,
        changed(DEAD, 6, execution="e9"),
    ),
    "a-dead-letter-of-an-execution-that-succeeded": (
        Kind.WRONG_DEAD_LETTER,
        changed(DEAD, 3, states=(("CREATED", 2.0), ("SUCCESS", 3.0))),
    ),
    "a-dead-letter-of-a-job-that-never-ran-that-names-an-execution": (
        Kind.WRONG_DEAD_LETTER,
        changed(REFUSED, 5, execution="e1"),
    ),
    "two-dead-letters-of-one-delivery": (Kind.WRONG_DEAD_LETTER, [*DEAD, DEAD[-1]]),
    "a-job-that-nobody-published": (Kind.UNKNOWN_JOB, without(WELL, 1)),
    "a-replica-that-fell-over": (
        Kind.TROUBLE,
        [*WELL, Trouble(replica="a", what="it ended by itself")],
    ),
}


@pytest.mark.parametrize(("kind", "history"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(kind: Kind, history: Sequence[Event]) -> None:
    assert kind in check(history).broken


def test_a_companion_is_none_of_the_trials_own_jobs() -> None:
    assert (
        check([*WELL, replace(published("two", confirmed=0), companion=True)]).counts["jobs"] == 1
    )


def test_a_job_whose_deliveries_break_again_and_again_is_not_late() -> None:
    history = [*WELL[:4], delivered(3600, 2, replica="b"), acked(3601, 2, replica="b")]
    assert check(history).violations == ()


def test_an_execution_that_a_dying_kestra_lost_may_cost_its_job_an_attempt() -> None:
    history = changed(changed(RETRIED, 1, attempts=1), 0, kestra_dies=True)
    assert check(history).violations == ()


def test_every_kind_of_violation_is_planted() -> None:
    assert {kind for kind, _ in PLANTED.values()} == set(Kind)


def test_a_history_without_limits_is_no_history() -> None:
    with pytest.raises(ValueError, match="limits"):
        check([])


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = [
        *TWICE_SENT,
        *DEAD,
        *RETRIED,
        InFlight(replica="a", deliveries=0),
        Left(queue="q", messages=0),
    ]
    write(history, tmp_path / "history.jsonl")
    assert list(read(tmp_path / "history.jsonl")) == history
