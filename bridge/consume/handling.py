"""How far a delivery has come: small values that each verb of the handler hands to the next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bridge.consume.starter import Started
from bridge.job.execution import Execution, Outcome
from bridge.job.job import Job
from bridge.job.machine_use import MachineUse
from bridge.job.message import Delivery
from bridge.telemetry.tracing import Span


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery whose message has not been decoded, or can't be."""

    delivery: Delivery

    @property
    def attempt(self) -> int:
        """The number of the job's attempt, from 1."""
        return 1

    @property
    def first_attempt(self) -> int:
        """The attempt from which the job's attempts are counted: 1, or later after a replay."""
        return 1

    @property
    def machines_lost(self) -> int:
        """How many attempts before this one ended because their machine was lost."""
        return 0

    @property
    def machine_use(self) -> MachineUse:
        """What all attempts used of machines, as far as they have ended."""
        return MachineUse()

    @property
    def timeout(self) -> float | None:
        """The job's own time-out in seconds; None where it has none."""
        return None

    @property
    def execution(self) -> Execution | None:
        """The execution that the delivery has; None before it has one."""
        return None


@dataclass(frozen=True, slots=True)
class Decoded(Received):
    """A delivery whose message asks for this job."""

    job: Job

    @property
    def attempt(self) -> int:
        """The number of the attempt that the message asks for."""
        return self.job.attempt

    @property
    def first_attempt(self) -> int:
        """The first attempt as the message says it."""
        return self.job.first_attempt

    @property
    def machines_lost(self) -> int:
        """The number of lost machines as the message says it."""
        return self.job.machines_lost

    @property
    def machine_use(self) -> MachineUse:
        """What the attempts before this one used, as the message says it."""
        return self.job.machine_use

    @property
    def timeout(self) -> float | None:
        """The time-out that the message asks for."""
        return self.job.timeout


@dataclass(frozen=True, slots=True)
class Running(Decoded):
    """A delivery that has an execution.

    `awaited` is the attempt that the execution is of: the job's own, or an earlier one that an
    operator brought back.
    """

    awaited: Job
    started: Started

    @property
    def execution(self) -> Execution:
        """The execution as it started."""
        return self.started.execution


@dataclass(frozen=True, slots=True)
class Ended(Running):
    """A delivery whose execution has ended."""

    outcome: Outcome
    total_use: MachineUse

    @property
    def machine_use(self) -> MachineUse:
        """What all attempts used, this one included."""
        return self.total_use

    @property
    def execution(self) -> Execution:
        """The execution as it ended, which may be another one of the attempt."""
        return self.outcome.execution


@dataclass(slots=True)
class Handling:
    """A delivery under way. `arrived` is when it came, in monotonic seconds."""

    delivery: Delivery
    arrived: float = field(default_factory=time.monotonic)
    progress: Received = field(init=False)
    settling: bool = False
    """Whether its settlement has begun, which a stop lets finish."""
    again: bool = False
    """Whether it was handled before and failed, so that its execution may exist."""
    span: Span = field(default_factory=Span)

    def __post_init__(self) -> None:
        self.progress = Received(self.delivery)

    @property
    def age(self) -> float:
        """Seconds since the delivery arrived."""
        return time.monotonic() - self.arrived

    def overdue(self, limit: float) -> float:
        """Seconds beyond the job's own time-out, or beyond `limit` where it has none; 0 before
        that.
        """
        return max(0.0, self.age - (self.progress.timeout or limit))
