"""Traces: a delivery stays in its publisher's trace, which goes on to Kestra and into the log.

A message names its place in a trace in the headers `traceparent` and `tracestate` (W3C's "Trace
Context" recommendation). That works with OpenTelemetry's API only. If OpenTelemetry's environment
variables ask for it, `bridge.telemetry.otlp` also exports a span of each delivery; otherwise the
SDK is not imported.

Attributes follow OpenTelemetry's semantic conventions for messaging (for RabbitMQ, as of version
1.45), which are still under development. What they have no name for begins with `bridge.` or
`kestra.`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge import __version__
from bridge.errors import SettingsError
from bridge.job.message import Delivery, Headers
from bridge.text import printable

Step = Literal["create", "wait", "settle"]
"""A part of the work on a delivery."""

Attributes = Mapping[str, str | int]

MAX_HEADER = 512
"""Characters of a `tracestate` that every implementation has to pass on; a longer one is left
out."""

_LIBRARIES = ("opentelemetry", "google", "requests")
_PROTOCOL = "http/protobuf"
_PROPAGATOR = TraceContextTextMapPropagator()
_STEP_KINDS: Mapping[Step, SpanKind] = {
    "create": SpanKind.CLIENT,
    "wait": SpanKind.INTERNAL,
    "settle": SpanKind.CLIENT,
}
_FACTS: Mapping[str, str] = {
    "redelivered": "bridge.redelivered",
    "attempt": "bridge.attempt",
    "flow": "kestra.flow",
    "execution": "kestra.execution.id",
    "how": "kestra.execution.how",
    "state": "kestra.execution.state",
}
"""The attributes of the facts about a delivery, by the facts' names in the log."""

log = structlog.get_logger(__name__)


class _MessageHeaders(Getter[Headers]):
    """Reads headers of a message, which can be of any type and length."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key)
        if not isinstance(value, str) or len(value) > MAX_HEADER or value != value.strip():
            return None
        return [value]

    def keys(self, carrier: Headers) -> list[str]:
        return list(carrier)


def outgoing() -> Headers:
    """The headers that put a request into the trace of the current work; empty outside a trace."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


class Span:
    """The record of one delivery; without arguments it records nothing."""

    def __init__(
        self,
        tracer: trace.Tracer | None = None,
        span: trace.Span = trace.INVALID_SPAN,
        *,
        lane: str = "",
        server: Attributes | None = None,
    ) -> None:
        self._tracer = tracer or trace.NoOpTracer()
        self._span = span
        self._lane = lane
        self._server = server or {}

    def step(self, name: Step) -> AbstractContextManager[object]:
        """Do a part of the work within the block."""
        if not self._span.is_recording():
            return nullcontext()
        title, attributes = str(name), None
        if name == "settle":
            title = f"settle {self._lane}"
            attributes = {**self._server, **_operation("settle", self._lane)}
        return self._tracer.start_as_current_span(
            title, kind=_STEP_KINDS[name], attributes=attributes
        )

    def conclude(
        self, settlement: str, facts: Mapping[str, object], *, error: str = "", error_type: str = ""
    ) -> None:
        """Record what became of the delivery; an error is one line for a person, and its type one
        word.
        """
        self._span.set_attribute("bridge.settlement", settlement)
        for name, value in facts.items():
            if name in _FACTS and isinstance(value, str | int):
                self._span.set_attribute(_FACTS[name], value)
        if error_type:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR, printable(error))


class Tracer:
    """Keeps each delivery in the trace of its message; without a provider it records nothing.

    `broker` is RabbitMQ's `host:port/vhost`.
    """

    def __init__(self, provider: trace.TracerProvider | None = None, *, broker: str = "") -> None:
        provider = provider or trace.NoOpTracerProvider()
        self._tracer = provider.get_tracer("bridge", __version__)
        self._server: Attributes = {}
        if broker:
            # From the right: an IPv6 address has colons of its own.
            host, _, port = broker.partition("/")[0].rpartition(":")
            self._server = {"server.address": host, "server.port": int(port)}

    @contextmanager
    def delivery(self, delivery: Delivery) -> Iterator[Span]:
        """Work on a delivery within the block, which its span lasts as long as."""
        lane = delivery.lane
        attributes = {**self._server, **_attributes(delivery)}
        token = otel_context.attach(_publisher(delivery.message.headers))
        try:
            with (
                self._tracer.start_as_current_span(
                    f"process {lane}", kind=SpanKind.CONSUMER, attributes=attributes
                ) as span,
                structlog.contextvars.bound_contextvars(**_ids(trace.get_current_span())),
            ):
                yield Span(self._tracer, span, lane=lane, server=self._server)
        finally:
            otel_context.detach(token)

    def close(self) -> None:
        """Hand over what is recorded; it takes a few seconds at most."""


def _publisher(headers: Headers) -> otel_context.Context:
    """The publisher's place in its trace; never that of whatever started the task."""
    found = _PROPAGATOR.extract(headers, otel_context.Context(), _MessageHeaders())
    span = trace.get_current_span(found).get_span_context()
    # The recommendation defines no other flag, and wants the others passed on as zero.
    known = trace.TraceFlags(span.trace_flags & trace.TraceFlags.SAMPLED)
    if known == span.trace_flags:
        return found
    masked = trace.SpanContext(span.trace_id, span.span_id, True, known, span.trace_state)
    return trace.set_span_in_context(trace.NonRecordingSpan(masked), found)


def _ids(span: trace.Span) -> dict[str, str]:
    """The ids of a span as log lines show them; empty outside a trace."""
    found = span.get_span_context()
    if not found.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(found.trace_id),
        "span_id": trace.format_span_id(found.span_id),
    }


def _attributes(delivery: Delivery) -> Attributes:
    message = delivery.message
    found: dict[str, str | int] = {
        **_operation("process", delivery.lane),
        "messaging.message.body.size": len(message.body),
    }
    # Text that UTF-8 can't carry can't be exported, nor can anything exported with it.
    if message.message_id:
        found["messaging.message.id"] = printable(message.message_id)
    if message.correlation_id:
        found["messaging.message.conversation_id"] = printable(message.correlation_id)
    return found


def _operation(name: str, lane: str) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": lane,
    }


def tracer(environment: Mapping[str, str], *, broker: str) -> Tracer:
    """The tracer that OpenTelemetry's environment variables ask for. `broker` is RabbitMQ's
    `host:port/vhost`.

    Spans are exported if an OTLP endpoint is named, or `otlp` as the exporter of traces. A request
    that can't be met is only warned of: such variables are often set for everything on a machine.

    Raises:
        SettingsError: OpenTelemetry can't use the value of one of them.
    """
    if not _wanted(environment):
        return Tracer()
    obstacle = _obstacle(environment)
    if obstacle:
        log.warning("no traces are recorded", why=obstacle)
        return Tracer()
    try:
        otlp = importlib.import_module("bridge.telemetry.otlp")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _LIBRARIES:
            raise
        why = f"{error.name} isn't installed: pip install 'kestra-bridge[tracing]'"
        log.warning("no traces are recorded", why=why)
        return Tracer()
    try:
        return cast("Tracer", otlp.exporting(broker))
    except ValueError as error:
        raise SettingsError(f"OpenTelemetry can't use its variables OTEL_…: {error}") from error


def _wanted(environment: Mapping[str, str]) -> bool:
    exporters = _exporters(environment)
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or "none" in exporters:
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(exporters) or any(environment.get(name) for name in endpoints)


def _exporters(environment: Mapping[str, str]) -> set[str]:
    names = environment.get("OTEL_TRACES_EXPORTER", "").split(",")
    return {name.strip().lower() for name in names} - {""}


def _obstacle(environment: Mapping[str, str]) -> str:
    """The reason why traces can't be exported as asked; empty if they can."""
    others = sorted(_exporters(environment) - {"otlp"})
    if others:
        return f"OTEL_TRACES_EXPORTER is {', '.join(others)}, and only otlp is there"
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environment.get(name, "").strip()
        if protocol == _PROTOCOL:
            return ""
        if protocol:
            return f"{name} is {protocol}, and only {_PROTOCOL} is there"
    return ""
