"""Kestra's executions: their states, which one belongs to a job, and how it ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from bridge.job.attempt import AttemptKey, attempt_key
from bridge.job.flow_name import FlowName


class State(StrEnum):
    """An execution's state, by Kestra's own names.

    `UNKNOWN` stands for any state that is not listed here, which a newer Kestra may have.
    """

    CREATED = "CREATED"
    SUBMITTED = "SUBMITTED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    RESTARTED = "RESTARTED"
    RETRYING = "RETRYING"
    PAUSED = "PAUSED"
    BREAKPOINT = "BREAKPOINT"
    KILLING = "KILLING"
    SUCCESS = "SUCCESS"
    WARNING = "WARNING"
    FAILED = "FAILED"
    KILLED = "KILLED"
    CANCELLED = "CANCELLED"
    RETRIED = "RETRIED"
    SKIPPED = "SKIPPED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def _missing_(cls, value: object) -> State:  # noqa: ARG003 (any value that is none of these)
        return cls.UNKNOWN

    @property
    def terminal(self) -> bool:
        """Whether the execution has ended. A RETRIED one has a successor."""
        return self in TERMINAL

    @property
    def ended_well(self) -> bool:
        """Whether the flow ran to its end. The operator's policy judges a WARNING."""
        return self in (State.SUCCESS, State.WARNING)


TERMINAL = frozenset(
    {
        State.SUCCESS,
        State.WARNING,
        State.FAILED,
        State.KILLED,
        State.CANCELLED,
        State.RETRIED,
        State.SKIPPED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One run of a flow. Its times are from Kestra's clock; `started` is its creation."""

    id: str
    flow: FlowName
    state: State
    labels: Mapping[str, str] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None
    running_since: datetime | None = None
    """When it last began to run, also after a restart; None before that, or where unknown."""
    original_id: str | None = None
    triggered: bool = False
    """Whether a trigger or another execution started it, and not the bridge."""

    @property
    def attempt_key(self) -> AttemptKey | None:
        """The attempt that this execution is of; None where it is of none.

        One that was triggered is of none: it may have inherited its labels.
        """
        return None if self.triggered else attempt_key(self.labels, self.flow)

    @property
    def chain(self) -> str:
        """The id of the first execution of a chain, which a flow retry or a replay continues."""
        return self.original_id or self.id


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a look-up: the attempt's own execution, and others that must not run."""

    current: Execution | None
    duplicates: tuple[Execution, ...] = ()


def choose(executions: Iterable[Execution]) -> Found:
    """The attempt's own execution and its duplicates, among executions of one attempt.

    The chain that began first is the attempt's. Its newest member is the execution to wait for,
    since a flow retry and an operator's replay make a new execution with the same labels. Every
    other chain is a duplicate.
    """
    by_age = sorted(executions, key=_age)
    if not by_age:
        return Found(None)
    chain = by_age[0].chain
    own = [execution for execution in by_age if execution.chain == chain]
    others = tuple(execution for execution in by_age if execution.chain != chain)
    return Found(own[-1], others)


def by_attempt(executions: Iterable[Execution]) -> dict[AttemptKey, list[Execution]]:
    """The executions of each attempt, without those that belong to none."""
    found: defaultdict[AttemptKey, list[Execution]] = defaultdict(list)
    for execution in executions:
        if key := execution.attempt_key:
            found[key].append(execution)
    return dict(found)


def _age(execution: Execution) -> tuple[datetime, str]:
    return execution.started or datetime.min.replace(tzinfo=UTC), execution.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    `timed_out` says that the bridge killed it at its deadline, and `machine_lost` that it failed
    because its machine was lost; `error` is one line for a person.
    """

    execution: Execution
    timed_out: bool = False
    machine_lost: bool = False
    error: str | None = None

    @property
    def label(self) -> str:
        """The outcome as one word, for the metrics and the log."""
        if self.timed_out:
            return "timed_out"
        if self.machine_lost:
            return "machine_lost"
        return self.execution.state.value.lower()
