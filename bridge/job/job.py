"""A job at one attempt: what a message asks for, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.job.attempt import CORRELATION_LABEL, MARK, MARK_LABEL, AttemptKey
from bridge.job.execution import Execution
from bridge.job.flow_name import FlowName
from bridge.job.machine_use import MachineUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job at one attempt. `timeout` is in seconds.

    `machines_lost` counts the attempts, from `first_attempt` on, whose machine was lost, and
    `machine_use` is what those attempts used of machines.

    An empty `id` says that the message has none yet.
    """

    id: str
    flow: FlowName
    queue: str = ""
    attempt: int = 1
    first_attempt: int = 1
    machines_lost: int = 0
    machine_use: MachineUse = field(default_factory=MachineUse)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    correlation_id: str | None = None

    @property
    def key(self) -> AttemptKey:
        """The attempt that this is."""
        return AttemptKey(self.queue, self.id, self.attempt)

    @property
    def keys(self) -> tuple[AttemptKey, AttemptKey]:
        """The keys that an execution of this attempt may have.

        Where its labels do not name a queue, somebody else set them, and the flow decides.
        """
        return self.key, AttemptKey(str(self.flow), self.id, self.attempt)

    @property
    def execution_labels(self) -> dict[str, str]:
        """The labels of this attempt's execution, the publisher's own last."""
        return {
            MARK_LABEL: MARK,
            **self.key.labels,
            CORRELATION_LABEL: self.correlation_id or self.id,
            **self.labels,
        }

    def owns(self, execution: Execution) -> bool:
        """Whether an execution is one of this attempt."""
        return execution.attempt_key in self.keys

    def names(self, execution: Execution) -> bool:
        """Whether an execution is one of any attempt of this job."""
        found = execution.attempt_key
        if found is None:
            return False
        return found.job == self.id and found.queue in (self.queue, str(self.flow))
