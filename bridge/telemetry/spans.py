"""Spans of deliveries, by OpenTelemetry's SDK; imported only where its environment variables ask
for it.

Attributes follow OpenTelemetry's semantic conventions for messaging (for RabbitMQ, as of version
1.45), which are still under development; what they have no name for begins with `bridge.` or
`kestra.`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from bridge import __version__
from bridge.job.message import Delivery
from bridge.telemetry.tracing import Span, Step, TraceContext, Tracer, handing_on, logged, parse
from bridge.text import printable

Attributes = Mapping[str, str | int]

CLOSE_SECONDS = 3.0
"""How long a stopping bridge waits for a collector that doesn't answer."""

_SERVICE = "kestra-bridge"
_NAMES: Mapping[str, str] = {
    "redelivered": "bridge.redelivered",
    "attempt": "bridge.attempt",
    "flow": "kestra.flow",
    "execution": "kestra.execution.id",
    "how": "kestra.execution.how",
    "state": "kestra.execution.state",
}
"""The facts of a delivery that spans carry, by their names in the log."""
_STEP_KINDS: Mapping[Step, SpanKind] = {
    "create": SpanKind.CLIENT,
    "wait": SpanKind.INTERNAL,
    "settle": SpanKind.CLIENT,
}


class RecordingTracer(Tracer):
    """Records one span for each delivery, as a child of what its message names as parent."""

    def __init__(self, provider: TracerProvider, *, broker: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("bridge", __version__)
        # From the right, as an IPv6 address has colons of its own.
        host, _, port = broker.partition("/")[0].rpartition(":")
        self._broker: Attributes = {"server.address": host, "server.port": int(port)}

    @contextmanager
    def delivery(self, delivery: Delivery) -> Iterator[Span]:
        """See to a delivery within the block, which its span lasts as long as."""
        with self._tracer.start_as_current_span(
            f"process {delivery.lane}",
            context=_parent(parse(delivery.message.headers)),
            kind=SpanKind.CONSUMER,
            attributes={**self._broker, **_attributes(delivery)},
        ) as span:
            context = _context(span)
            with handing_on(context), logged(context):
                yield _DeliverySpan(self._tracer, span, delivery.lane, self._broker)

    def close(self) -> None:
        """Hand over what is recorded, unless the collector takes too long."""
        # By a thread that nothing waits for at the end of the process, as the SDK's own would go on
        # for half a minute.
        closing = threading.Thread(
            target=self._provider.shutdown, name="closing traces", daemon=True
        )
        closing.start()
        closing.join(CLOSE_SECONDS)


class _DeliverySpan(Span):
    def __init__(
        self, tracer: trace.Tracer, span: trace.Span, lane: str, broker: Attributes
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._lane = lane
        self._broker = broker

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        settling = name == "settle"
        with (
            self._tracer.start_as_current_span(
                f"settle {self._lane}" if settling else name,
                kind=_STEP_KINDS[name],
                attributes={**self._broker, **_operation(name, self._lane)} if settling else None,
            ) as span,
            handing_on(_context(span)),
        ):
            yield

    def conclude(
        self, settlement: str, facts: Mapping[str, object], *, error: str = "", error_type: str = ""
    ) -> None:
        known: dict[str, Any] = {
            _NAMES[name]: value for name, value in facts.items() if name in _NAMES
        }
        self._span.set_attributes({"bridge.settlement": settlement, **known})
        if error_type:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR, printable(error))


def exporting(broker: str) -> RecordingTracer:
    """A tracer whose spans go to an OTLP collector; the SDK reads OpenTelemetry's environment
    variables.

    Raises:
        ValueError: one of them has a value that can't be used.
    """
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return RecordingTracer(provider, broker=broker)


def _resource() -> Resource:
    """What the environment says of this process, with our own name where it has none."""
    ours = Resource({"service.name": _SERVICE, "service.version": __version__})
    theirs = Resource.create()
    unnamed = str(theirs.attributes["service.name"]).startswith("unknown_service")
    return theirs.merge(ours) if unnamed else ours.merge(theirs)


def _attributes(delivery: Delivery) -> Attributes:
    message = delivery.message
    optional = {
        "messaging.message.id": message.message_id,
        "messaging.message.conversation_id": message.correlation_id,
    }
    return {
        **_operation("process", delivery.lane),
        "messaging.message.body.size": len(message.body),
        # What UTF-8 can't carry can't be exported, and in a status it takes all that is exported
        # with it.
        **{name: printable(value) for name, value in optional.items() if value},
    }


def _operation(name: str, lane: str) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": lane,
    }


def _parent(parent: TraceContext | None) -> otel_context.Context:
    """The context to start in: never that of whoever started the task."""
    root = otel_context.Context()
    if parent is None:
        return root
    remote = trace.SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(parent.flags, 16)),
        trace_state=trace.TraceState.from_header([parent.state]),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), root)


def _context(span: trace.Span) -> TraceContext:
    own = span.get_span_context()
    return TraceContext(
        trace_id=f"{own.trace_id:032x}",
        span_id=f"{own.span_id:016x}",
        flags=f"{own.trace_flags:02x}",
        state=own.trace_state.to_header(),
    )
