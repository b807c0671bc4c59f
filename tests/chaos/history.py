"""What happened in a trial, as several witnesses saw it who know nothing of each other.

The publisher notes what it sent and what the broker confirmed. A tap on each replica's connection
to the broker reads deliveries, acks and confirmed publishes off the wire. Kestra tells of its
executions, the broker of its queues. The bridge's own word counts only against it. All times are
seconds since the epoch by one machine's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the trial was held to. `settled_within`: from the last thing that a job waited for to
    its settlement.

    With `kestra_dies` an execution may be lost by Kestra itself, and the job's time-out then costs
    it an attempt.
    """

    kind: Literal["limits"] = "limits"
    prefetch: int
    settled_within: float
    kestra_dies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A job, how it has to end, and how often it was sent; without a confirm nobody knows whether
    it was kept.

    One that `parks` may be put off without an attempt of its own. A `companion` is none of the
    trial's own jobs: it is sent at the end, so that others find company.
    """

    kind: Literal["published"] = "published"
    at: float
    job: str
    end: str
    attempts: int
    runs: bool
    confirmed: int
    in_doubt: int
    timeout: float
    parks: bool = False
    companion: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The broker handed a message of the jobs queue to a replica. `channel` is unique in the
    trial."""

    kind: Literal["delivered"] = "delivered"
    at: float
    replica: str
    channel: str
    tag: int
    job: str
    attempt: int
    redelivered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """A replica settled a delivery."""

    kind: Literal["acked"] = "acked"
    at: float
    channel: str
    tag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The broker confirmed that a message which a replica published stands in a queue."""

    kind: Literal["moved"] = "moved"
    at: float
    replica: str
    to: str
    job: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An execution by Kestra's own record; `chain` is shared with those that a flow's retry made of
    it.

    `kills` are the moments at which Kestra was asked to kill it, whether it did so or not.
    """

    kind: Literal["execution"] = "execution"
    id: str
    chain: str
    job: str
    attempt: int
    states: tuple[tuple[str, float], ...]
    kills: tuple[float, ...] = ()

    @property
    def created(self) -> float:
        return self.states[0][1]

    @property
    def state(self) -> str:
        return self.states[-1][0]

    @property
    def ended(self) -> float | None:
        return self.states[-1][1] if self.state in TERMINAL else None

    @property
    def brought_back(self) -> bool:
        """Whether an operator restarted it after it had ended, or gave it another state."""
        return self.state != "RETRIED" and any(state in TERMINAL for state, _ in self.states[:-1])

    def running_since(self, moment: float) -> float | None:
        """Since when it had been running at that moment; None where it was not."""
        since = None
        for state, at in self.states:
            if at > moment:
                break
            if state in NOT_STARTED:
                since = None
            elif state == "RUNNING":
                since = at
        return since


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message in the dead-letter queue at the end."""

    kind: Literal["dead_letter"] = "dead_letter"
    job: str
    attempt: int
    reason: str
    error: str
    execution: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Messages that a queue still had at the end, those that a consumer holds included."""

    kind: Literal["left"] = "left"
    queue: str
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What a replica itself says that it held at the end."""

    kind: Literal["in_flight"] = "in_flight"
    replica: str
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A replica's log says that it killed a second execution."""

    kind: Literal["killed"] = "killed"
    replica: str
    job: str
    execution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A replica did what it never should, such as end by itself or meet a fault of its own."""

    kind: Literal["trouble"] = "trouble"
    replica: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something was made to go wrong, from `at` to `until`."""

    kind: Literal["fault"] = "fault"
    at: float
    until: float
    name: str
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A replica's resident memory in bytes; a process that was started anew has another `pid`."""

    kind: Literal["memory"] = "memory"
    at: float
    replica: str
    pid: int
    resident: int


Event = (
    Limits
    | Published
    | Delivered
    | Acked
    | Moved
    | Execution
    | DeadLetter
    | Left
    | InFlight
    | Killed
    | Trouble
    | Fault
    | Memory
)
TERMINAL = frozenset({"SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED", "SKIPPED"})
GOOD = frozenset({"SUCCESS", "WARNING"})
NOT_STARTED = frozenset({"CREATED", "RESTARTED"})

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def write(events: Iterable[Event], file: Path) -> None:
    """One line of JSON an event."""
    with file.open("wb") as out:
        for event in events:
            out.write(_EVENT.dump_json(event) + b"\n")


def read(file: Path) -> Iterator[Event]:
    """The events that `write` wrote."""
    with file.open("rb") as lines:
        yield from map(_EVENT.validate_json, lines)
