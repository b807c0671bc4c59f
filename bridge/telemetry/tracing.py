"""Trace context: a message's place in its publisher's trace, handed on to Kestra and shown in the
log.

A message says it in the headers `traceparent` and `tracestate` (W3C's "Trace Context"
recommendation). With OpenTelemetry installed and told where to, `bridge.telemetry.spans` records
what becomes of each delivery as well; otherwise nothing of it is imported.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

import structlog

from bridge.errors import SettingsError
from bridge.job.message import Delivery, Headers

Step = Literal["create", "wait", "settle"]
"""A part of seeing to a delivery."""

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

MAX_STATE = 512
"""So many characters of `tracestate` are passed on, as every implementation has to; a longer one is
left out."""

_MAX_STATE_MEMBERS = 32
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_STATE_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")

_LIBRARIES = ("opentelemetry", "google", "requests")
_PROTOCOL = "http/protobuf"

_outgoing: ContextVar[Headers] = ContextVar("outgoing_trace", default=MappingProxyType({}))

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A place in a trace; ids and flags in lower-case hexadecimal."""

    trace_id: str
    span_id: str
    flags: str
    state: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The same as headers, for a message or for a request."""
        traceparent = f"00-{self.trace_id}-{self.span_id}-{self.flags}"
        return {TRACEPARENT: traceparent, **({TRACESTATE: self.state} if self.state else {})}


def parse(headers: Headers) -> TraceContext | None:
    """The trace context that headers carry, or None where they have none or a malformed one.

    A version above 00 is read as far as 00 goes, and a `tracestate` counts only beside a
    `traceparent`.
    """
    value = headers.get(TRACEPARENT)
    found = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "00" and more:
        return None
    # Of a version to come only the flag is known that says whether the trace is sampled.
    known = flags if version == "00" else f"{int(flags, 16) & 1:02x}"
    return TraceContext(
        trace_id=trace_id, span_id=span_id, flags=known, state=_state(headers.get(TRACESTATE))
    )


def _state(value: object) -> str:
    """A `tracestate` as it came, or nothing where it isn't one: then the trace goes on without
    it.
    """
    if not isinstance(value, str) or len(value) > MAX_STATE:
        return ""
    members = [member.strip(" \t") for member in value.split(",")]
    keys = [member.partition("=")[0] for member in members if member]
    valid = len(keys) <= _MAX_STATE_MEMBERS and len(set(keys)) == len(keys)
    return (
        value
        if valid and all(_STATE_MEMBER.fullmatch(member) for member in members if member)
        else ""
    )


def outgoing() -> Headers:
    """The headers that put a request into the trace of what is being done; empty where there's no
    trace.
    """
    return _outgoing.get()


@contextmanager
def handing_on(context: TraceContext) -> Iterator[None]:
    """Let requests within the block go out with this context."""
    token = _outgoing.set(context.headers)
    try:
        yield
    finally:
        _outgoing.reset(token)


def logged(context: TraceContext) -> AbstractContextManager[None]:
    """Let lines that are logged within the block say to which trace they belong."""
    return structlog.contextvars.bound_contextvars(
        trace_id=context.trace_id, span_id=context.span_id
    )


class Span:
    """What is told of one delivery. This one records nothing."""

    def step(self, name: Step) -> AbstractContextManager[object]:  # noqa: ARG002 (nobody asks)
        """Do a part of the work within the block."""
        return _NOTHING

    def conclude(
        self, settlement: str, facts: Mapping[str, object], *, error: str = "", error_type: str = ""
    ) -> None:
        """Tell what became of the delivery; an error is one line for a person, and its type one
        word.
        """


_NOTHING = nullcontext()
_UNRECORDED = Span()


class Tracer:
    """Keeps each delivery in the trace that its message belongs to. This one records nothing."""

    @contextmanager
    def delivery(self, delivery: Delivery) -> Iterator[Span]:
        """See to a delivery within the block."""
        context = parse(delivery.message.headers)
        if context is None:
            yield _UNRECORDED
            return
        with handing_on(context), logged(context):
            yield _UNRECORDED

    def close(self) -> None:
        """Hand over what is recorded; it takes a few seconds at most."""


def tracer(environment: Mapping[str, str], *, broker: str) -> Tracer:
    """The tracer that OpenTelemetry's environment variables ask for. `broker` is RabbitMQ's
    `host:port/vhost`.

    Spans are recorded when an OTLP endpoint is named, or `otlp` as the exporter of traces. What
    can't be done is warned of: such variables are often set for everything that runs on a machine.

    Raises:
        SettingsError: OpenTelemetry can't make sense of one of them.
    """
    if not _wanted(environment):
        return Tracer()
    if obstacle := _obstacle(environment):
        log.warning("no traces are recorded", why=obstacle)
        return Tracer()
    try:
        spans = importlib.import_module("bridge.telemetry.spans")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _LIBRARIES:
            raise
        why = f"{error.name} isn't installed: pip install 'kestra-bridge[tracing]'"
        log.warning("no traces are recorded", why=why)
        return Tracer()
    try:
        return cast("Tracer", spans.exporting(broker))
    except ValueError as error:
        raise SettingsError(f"OpenTelemetry can't use its variables OTEL_…: {error}") from error


def _wanted(environment: Mapping[str, str]) -> bool:
    exporters = _exporters(environment)
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in exporters:
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return bool(exporters) or any(environment.get(name) for name in endpoints)


def _exporters(environment: Mapping[str, str]) -> set[str]:
    return {
        name.strip().lower() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",")
    } - {""}


def _obstacle(environment: Mapping[str, str]) -> str:
    """Why traces that are wanted can't be had; empty where nothing is in the way."""
    if others := sorted(_exporters(environment) - {"otlp"}):
        return f"OTEL_TRACES_EXPORTER is {', '.join(others)}, and only otlp is there"
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(name, "").strip():
            return (
                ""
                if protocol == _PROTOCOL
                else f"{name} is {protocol}, and only {_PROTOCOL} is there"
            )
    return ""
