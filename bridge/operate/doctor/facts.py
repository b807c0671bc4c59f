"""What the doctor knows of an installation. What a source didn't tell is None or `Unavailable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

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
    """A queue that the bridge needs. `state` and `bindings` are the management API's."""

    name: str
    declared: DeclareResult = ABSENT
    depth: Depth | None = None
    state: QueueState | None = None
    bindings: Sequence[Binding] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFacts:
    """A lane: its queues and exchanges. `kind` is None where the queue isn't there or isn't as it
    should be.
    """

    lane: Lane
    kind: Kind | None
    jobs: QueueFacts
    dead: QueueFacts
    retries: Sequence[QueueFacts] = ()
    exchanges: Mapping[str, DeclareResult] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """RabbitMQ. `replies_bound` is how many queues the reply exchange feeds, and `skew` how far its
    clock is ahead.
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
    """Why the management API told nothing, if so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KestraFacts:
    """Kestra. The flows are those that the settings name, None where there is none of that name."""

    version: str
    skew: timedelta
    notifier: StoredFlow | None
    flows: Mapping[FlowName, StoredFlow | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A server's certificate, or ours: which, and until when it is valid."""

    what: str
    until: datetime

    def state(self, at: datetime) -> str:
        """Whether it is valid at a time, and its end."""
        left = (self.until - at).total_seconds()
        state = f"ends in {in_words(left)}" if left > 0 else "has ended"
        return f"{self.what} {state} ({self.until:%Y-%m-%d %H:%M} UTC)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What came of a probe: how many seconds it took, or why it failed.

    `tried` is false where it could not be started, which says nothing of what it was to show.
    """

    seconds: float | None = None
    problem: str = ""
    tried: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it."""

    at: datetime
    broker: BrokerFacts
    kestra: KestraFacts | Unavailable
    certificates: Sequence[Certificate | Unavailable] = ()
    round_trip: ProbeResult | None = None
    """None where no probe was run."""
    kill: ProbeResult | None = None
