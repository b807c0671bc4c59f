"""Reads a trial's history and says what in it breaks a promise: a pure function, which knows
nothing of how it ran."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

from tests.chaos.history import (
    GOOD,
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
)
from tests.chaos.jobs import SUCCESS

KILL_SLACK = 1.0
"""Seconds by which two clocks that tell an execution's age may differ."""
RETRY = ".retry."


class Kind(StrEnum):
    """The ways in which a promise can be broken."""

    LOST = "lost"
    EARLY_ACK = "early ack"
    SECOND_EXECUTION = "second execution"
    KILLED_DUPLICATE = "second execution killed"
    WRONG_KILL = "wrong execution killed"
    KILLED_TOO_SOON = "killed too soon"
    PARKED = "parked without a reason"
    WRONG_ATTEMPTS = "wrong attempts"
    STUCK = "stuck"
    ABOVE_PREFETCH = "above prefetch"
    WRONG_DEAD_LETTER = "wrong dead letter"
    UNKNOWN_JOB = "unknown job"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    kind: Kind
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.who}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that was broken, and what was counted on the way."""

    violations: tuple[Violation, ...]
    counts: Counter[str]

    @property
    def broken(self) -> Counter[Kind]:
        return Counter(violation.kind for violation in self.violations)


@dataclass(slots=True)
class _Job:
    """All that the history has of one job."""

    published: Published | None = None
    executions: list[Execution] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    acked: list[tuple[Delivered, float]] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)

    def chains(self, attempt: int) -> list[list[Execution]]:
        """The attempt's executions, those of a flow's retry together, the earliest chain first."""
        found: defaultdict[str, list[Execution]] = defaultdict(list)
        for execution in sorted(self.executions, key=lambda one: one.created):
            if execution.attempt == attempt:
                found[execution.chain].append(execution)
        return list(found.values())

    @property
    def attempts(self) -> list[int]:
        return sorted({execution.attempt for execution in self.executions})

    def extras(self) -> Iterator[tuple[int, list[Execution]]]:
        """Every chain of executions that is not its attempt's first."""
        for attempt in self.attempts:
            yield from ((attempt, chain) for chain in self.chains(attempt)[1:])


def check(events: Iterable[Event]) -> Verdict:
    """Whether the promises held.

    Raises:
        ValueError: the history does not say what the trial was held to.
    """
    everything = list(events)
    limits = next((event for event in everything if isinstance(event, Limits)), None)
    if limits is None:
        raise ValueError("the history has no limits")
    jobs = _by_job(everything)
    violations: list[Violation] = []
    for name, job in jobs.items():
        if job.published is None:
            violations.append(Violation(Kind.UNKNOWN_JOB, name, "nobody published it"))
        else:
            violations += _of_job(name, job, _expected(job, job.published), limits)
    violations += _killed(everything, jobs)
    violations += _above_prefetch(everything, limits)
    violations += _at_the_end(everything)
    return Verdict(tuple(violations), _counts(everything, jobs))


def _by_job(events: Sequence[Event]) -> dict[str, _Job]:
    jobs: defaultdict[str, _Job] = defaultdict(_Job)
    for event in events:
        match event:
            case Published():
                jobs[event.job].published = event
            case Execution():
                jobs[event.job].executions.append(event)
            case DeadLetter():
                jobs[event.job].dead.append(event)
            case Moved():
                jobs[event.job].moved.append(event)
            case Delivered():
                jobs[event.job].delivered.append(event)
    _pair_acks(events, jobs)
    return dict(jobs)


def _pair_acks(events: Sequence[Event], jobs: Mapping[str, _Job]) -> None:
    deliveries = {(one.channel, one.tag): one for one in events if isinstance(one, Delivered)}
    for event in events:
        if isinstance(event, Acked) and (delivery := deliveries.get((event.channel, event.tag))):
            jobs[delivery.job].acked.append((delivery, event.at))


def _expected(job: _Job, published: Published) -> Published:
    """How the job has to end: in success, where an operator brought an attempt of it back and that
    one succeeded."""
    done = [one.attempt for one in job.executions if one.brought_back and one.state in GOOD]
    return replace(published, end=SUCCESS, attempts=min(done)) if done else published


def _of_job(name: str, job: _Job, published: Published, limits: Limits) -> Iterator[Violation]:
    yield from _lost(name, job, published)
    yield from _early_acks(name, job)
    yield from _second_executions(name, job)
    yield from _attempts(name, job, published, limits)
    yield from _late(name, job, limits)
    yield from _dead_letters(name, job, published)
    yield from _killed_too_soon(name, job, published)
    if not published.parks:
        yield from _parked(name, job)


def _lost(name: str, job: _Job, published: Published) -> Iterator[Violation]:
    """What was confirmed, or reached a replica, must have come to its end; what is in doubt need
    not exist."""
    if not published.confirmed and not job.delivered:
        return
    if not job.acked:
        yield Violation(Kind.LOST, name, "it was never acked")
    if (
        published.end == SUCCESS
        and not any(one.state in GOOD for one in job.executions)
        and not job.dead
    ):
        yield Violation(Kind.LOST, name, f"no execution of it succeeded: {_states(job.executions)}")
    if published.end != SUCCESS and not job.dead:
        yield Violation(Kind.LOST, name, f"no dead letter of it, which was to be {published.end}")


def _early_acks(name: str, job: _Job) -> Iterator[Violation]:
    """Each ack needs a reason that is older: the attempt's success, or the message in another queue
    by confirm."""
    moved = sorted(job.moved, key=lambda one: one.at)
    for delivery, at in sorted(job.acked, key=lambda pair: pair[1]):
        if any(_succeeded(execution, delivery.attempt, at) for execution in job.executions):
            continue
        own = [
            one
            for one in moved
            if one.replica == delivery.replica
            and one.attempt in (delivery.attempt, delivery.attempt + 1)
            and delivery.at <= one.at <= at
        ]
        if own:
            moved.remove(own[0])
        else:
            states = _states(one for one in job.executions if one.attempt == delivery.attempt)
            yield Violation(
                Kind.EARLY_ACK,
                name,
                f"attempt {delivery.attempt} acked by {delivery.replica}: {states}",
            )


def _succeeded(execution: Execution, attempt: int, by: float) -> bool:
    """Whether the attempt had succeeded by then, or an earlier one that had failed at first.

    An operator brings such an attempt back, or the flow's own retry does, which can come after a
    failure that Kestra told and then did not let the bridge confirm.
    """
    ended = execution.ended
    again = execution.brought_back or execution.chain != execution.id
    counts = execution.attempt == attempt or (execution.attempt < attempt and again)
    return counts and execution.state in GOOD and ended is not None and ended <= by


def _second_executions(name: str, job: _Job) -> Iterator[Violation]:
    """There must be none, also not of two copies of one message."""
    for attempt, extra in job.extras():
        if extra[-1].state != "KILLED":
            yield Violation(
                Kind.SECOND_EXECUTION, name, f"attempt {attempt} ran again to {_states(extra)}"
            )
        else:
            yield Violation(Kind.KILLED_DUPLICATE, name, f"attempt {attempt}: {extra[-1].id}")


def _attempts(name: str, job: _Job, published: Published, limits: Limits) -> Iterator[Violation]:
    """As many as planned, no more and no less, and one after the other."""
    planned = list(range(1, published.attempts + 1)) if published.runs else []
    made = [attempt for attempt in job.attempts if attempt in planned or not limits.kestra_dies]
    if (job.acked or job.executions) and made != planned:
        yield Violation(Kind.WRONG_ATTEMPTS, name, f"attempts {job.attempts}, planned {planned}")
    for before, after in pairwise(job.attempts):
        first = job.chains(before)[0][-1]
        began = job.chains(after)[0][0].created
        if first.state in GOOD:
            yield Violation(
                Kind.SECOND_EXECUTION,
                name,
                f"attempt {after} after {before} had ended {first.state}",
            )
        elif first.ended is None or first.ended > began:
            yield Violation(Kind.SECOND_EXECUTION, name, f"attempt {after} while {before} ran")


def _late(name: str, job: _Job, limits: Limits) -> Iterator[Violation]:
    if (seconds := _settle_seconds(job)) is not None and seconds > limits.settled_within:
        yield Violation(
            Kind.STUCK, name, f"settled {seconds:.1f} s after there was nothing more to wait for"
        )


def _settle_seconds(job: _Job) -> float | None:
    """From the last thing that the job's final ack had to wait for: its execution's end, and the
    delivery itself.

    Deliveries that a broken session took away before count for nothing: what breaks them is the
    trial's doing.
    """
    if not job.acked:
        return None
    last = max(delivery.attempt for delivery, _ in job.acked)
    delivery, acked = min(
        (pair for pair in job.acked if pair[0].attempt == last), key=lambda pair: pair[1]
    )
    # An earlier attempt may have been brought back, and ended later than this delivery came.
    ends = [
        one.ended
        for one in job.executions
        if one.attempt <= last and one.ended is not None and one.ended <= acked
    ]
    return acked - max([delivery.at, *ends])


_STATE_OF = {
    "failed": "FAILED",
    "killed": "KILLED",
    "cancelled": "CANCELLED",
    "timed_out": "KILLED",
}


def _dead_letters(name: str, job: _Job, published: Published) -> Iterator[Violation]:
    for letter in job.dead:
        if fault := _fault_of(letter, job, published):
            yield Violation(Kind.WRONG_DEAD_LETTER, name, fault)
    if len(job.dead) > max(1, sum(one.attempt == published.attempts for one in job.delivered)):
        yield Violation(
            Kind.WRONG_DEAD_LETTER, name, f"{len(job.dead)} dead letters of fewer deliveries"
        )


def _fault_of(letter: DeadLetter, job: _Job, published: Published) -> str | None:
    """What is wrong with a dead letter."""
    if letter.reason != published.end:
        return f"it says {letter.reason} ({letter.error}), and {published.end} was to come"
    if letter.attempt != published.attempts:
        return f"after attempt {letter.attempt} of {published.attempts}"
    if not letter.error:
        return "it gives no error"
    if not published.runs:
        return f"it names execution {letter.execution}" if letter.execution else None
    named = [
        one
        for one in job.executions
        if one.id == letter.execution and one.attempt == letter.attempt
    ]
    if [one.state for one in named] != [_STATE_OF[letter.reason]]:
        return f"it names execution {letter.execution}, which is {_states(named)}"
    return None


def _killed_too_soon(name: str, job: _Job, published: Published) -> Iterator[Violation]:
    """An attempt has its whole time, and that begins once Kestra runs its execution."""
    extras = {one.id for _, chain in job.extras() for one in chain}
    for execution in job.executions:
        for at in execution.kills if execution.id not in extras else ():
            since = execution.running_since(at)
            if since is None:
                yield Violation(Kind.KILLED_TOO_SOON, name, f"{execution.id} before Kestra ran it")
            elif at - since < published.timeout - KILL_SLACK:
                yield Violation(
                    Kind.KILLED_TOO_SOON, name, f"{execution.id} after {at - since:.1f} s"
                )


def _parked(name: str, job: _Job) -> Iterator[Violation]:
    """What goes to a retry queue is the next attempt of what the replica had; the same one is a job
    put off."""
    for one in job.moved:
        had = any(
            two.replica == one.replica and two.attempt == one.attempt - 1 and two.at <= one.at
            for two in job.delivered
        )
        if RETRY in one.to and not had:
            yield Violation(Kind.PARKED, name, f"attempt {one.attempt} by {one.replica}")


def _killed(events: Sequence[Event], jobs: dict[str, _Job]) -> Iterator[Violation]:
    """What a replica killed as a second execution must be one."""
    for event in events:
        if isinstance(event, Killed) and event.job in jobs:
            job = jobs[event.job]
            extras = {one.id for _, chain in job.extras() for one in chain}
            if event.execution not in extras:
                yield Violation(
                    Kind.WRONG_KILL, event.job, f"{event.replica} killed {event.execution}"
                )


def _above_prefetch(events: Sequence[Event], limits: Limits) -> Iterator[Violation]:
    held: Counter[str] = Counter()
    highest: Counter[str] = Counter()
    for event in sorted(
        (one for one in events if isinstance(one, Delivered | Acked)), key=lambda one: one.at
    ):
        held[event.channel] += 1 if isinstance(event, Delivered) else -1
        highest[event.channel] = max(highest[event.channel], held[event.channel])
    for channel, most in highest.items():
        if most > limits.prefetch:
            yield Violation(
                Kind.ABOVE_PREFETCH,
                channel,
                f"{most} deliveries in flight, prefetch {limits.prefetch}",
            )


def _at_the_end(events: Sequence[Event]) -> Iterator[Violation]:
    for event in events:
        match event:
            case Left(messages=messages) if messages:
                yield Violation(Kind.STUCK, event.queue, f"{messages} messages at the end")
            case InFlight(deliveries=deliveries) if deliveries:
                yield Violation(
                    Kind.STUCK, event.replica, f"{deliveries} deliveries in flight at the end"
                )
            case Trouble():
                yield Violation(Kind.TROUBLE, event.replica, event.what)


def _counts(events: Sequence[Event], jobs: dict[str, _Job]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for job in jobs.values():
        published = job.published
        counts["jobs"] += published is not None and not published.companion
        counts["jobs sent to keep others company"] += published is not None and published.companion
        counts["jobs confirmed"] += published is not None and published.confirmed > 0
        counts["jobs sent more than once"] += (
            published is not None and published.confirmed + published.in_doubt > 1
        )
        counts["jobs that succeeded"] += any(one.state in GOOD for one in job.executions)
        counts["jobs that are dead letters"] += bool(job.dead)
        counts["executions that were brought back"] += sum(
            one.brought_back for one in job.executions
        )
        counts["executions that began beyond their time"] += published is not None and sum(
            _waited(one) > published.timeout for one in job.executions
        )
        counts["kills"] += sum(len(one.kills) for one in job.executions)
        counts["acks by an earlier attempt's success"] += _acked_by_an_earlier_attempt(job)
        counts["jobs that were parked"] += published is not None and any(_parked("", job))
        counts["deliveries"] += len(job.delivered)
        counts["redeliveries"] += sum(one.redelivered for one in job.delivered)
        counts["acks"] += len(job.acked)
        counts["executions"] += len(job.executions)
        counts["dead letters"] += len(job.dead)
    counts.update(f"fault {event.name}" for event in events if event.kind == "fault")
    return counts


def _waited(execution: Execution) -> float:
    """Seconds from an execution's creation until Kestra ran it."""
    return next(
        (at - execution.created for state, at in execution.states if state == "RUNNING"), 0.0
    )


def _acked_by_an_earlier_attempt(job: _Job) -> int:
    done = [one.attempt for one in job.executions if one.brought_back and one.state in GOOD]
    return sum(delivery.attempt > min(done, default=delivery.attempt) for delivery, _ in job.acked)


def settle_seconds(events: Iterable[Event]) -> list[float]:
    """Of each job, how long its settlement took once there was nothing more to wait for; sorted."""
    return sorted(
        seconds
        for job in _by_job(list(events)).values()
        if (seconds := _settle_seconds(job)) is not None
    )


def _states(executions: Iterable[Execution]) -> str:
    return ", ".join(f"{one.id} {one.state}" for one in executions) or "no execution"
