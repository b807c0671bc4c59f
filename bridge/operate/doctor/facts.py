"""What the doctor knows of an installation. Facts that a source didn't give are None or
`Unavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bridge.durations import in_words
from bridge.job.flow_name import FlowName
from bridge.kestra import StoredFlow
from bridge.operate.sources import Unavailable
from bridge.rabbitmq.inspector import DeclareResult, Depth, Refusal
from bridge.rabbitmq.management import Binding, QueueState
from bridge.rabbitmq.topology import Kind, Version
from bridge.settings import Lane

ABSENT = DeclareResult(exists=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """A queue that the bridge needs. `state` and `bindings` come from the management API."""

    name: str
    declared: DeclareResult = ABSENT
    depth: Depth | None = None
    state: QueueState | None = None
    bindings: Sequence[Binding] | None = None

    @property
    def consumers(self) -> int:
        """How many consumers the queue has."""
        return self.depth.consumers if self.depth else 0

    @property
    def policies(self) -> str:
        """The policies that apply to the queue, as ` (a, b)` to append to a text; empty for
        none.
        """
        if self.state is None or not self.state.policy_names:
            return ""
        return f" ({', '.join(self.state.policy_names)})"

    def argument(self, name: str) -> Any:
        """The value of a queue argument; None if it isn't set or known."""
        return self.state.arguments.get(name) if self.state else None

    def policy_value(self, name: str) -> Any:
        """What the queue's policies set for a key; None if they don't, or aren't known."""
        if self.state is None or self.state.policy is None:
            return None
        return self.state.policy.get(name)

    def is_bound_to(self, exchange: str, *, routing_key: str | None = None) -> bool:
        """Whether an exchange feeds the queue, with that routing key unless it is None."""
        for binding in self.bindings or ():
            if binding.source == exchange and routing_key in (None, binding.routing_key):
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFacts:
    """A lane: its queues and exchanges. `kind` is None if the queue doesn't exist or isn't as it
    should be.
    """

    lane: Lane
    kind: Kind | None
    jobs: QueueFacts
    dead: QueueFacts
    retries: Sequence[QueueFacts] = ()
    ledger: DeclareResult = ABSENT
    exchanges: Mapping[str, DeclareResult] = field(default_factory=dict)

    @property
    def queues(self) -> list[QueueFacts]:
        """All queues of the lane."""
        return [self.jobs, self.dead, *self.retries]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """RabbitMQ. `replies_bound` counts the queues that are bound to the reply exchange; `skew` is
    how far the broker's clock is ahead.
    """

    version: Version
    version_text: str
    lanes: Sequence[LaneFacts]
    replies: DeclareResult = ABSENT
    replies_bound: int | None = None
    refused: Sequence[Refusal] = ()
    alarms: Sequence[str] | None = None
    skew: timedelta | None = None
    management: Unavailable | None = None
    """Why the management API gave no answer, if so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KestraFacts:
    """Kestra. `flows` has the flows that the settings name; a flow that doesn't exist is None."""

    version: str
    skew: timedelta
    notifier: StoredFlow | None
    flows: Mapping[FlowName, StoredFlow | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A server's certificate or the bridge's own, and until when it is valid."""

    what: str
    until: datetime

    def state(self, at: datetime) -> str:
        """Whether the certificate is valid at a time, and when it ends, in words."""
        left = (self.until - at).total_seconds()
        state = f"ends in {in_words(left)}" if left > 0 else "has ended"
        return f"{self.what} {state} ({self.until:%Y-%m-%d %H:%M} UTC)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of a probe: how many seconds it took, or why it failed.

    `tried` is false if the probe could not be started; then it proves nothing.
    """

    seconds: float | None = None
    problem: str = ""
    tried: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. A probe that was not run is None."""

    at: datetime
    broker: BrokerFacts
    kestra: KestraFacts | Unavailable
    certificates: Sequence[Certificate | Unavailable] = ()
    round_trip: ProbeResult | None = None
    kill: ProbeResult | None = None
