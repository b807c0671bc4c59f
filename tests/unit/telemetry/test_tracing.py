"""A delivery stays in its publisher's trace, which no message's header can break, and is recorded
on request alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bridge.errors import SettingsError
from bridge.job.message import Delivery, Message
from bridge.telemetry.otlp import ExportingTracer, resource
from bridge.telemetry.tracing import Span, Step, Tracer, outgoing, tracer
from deploy.local.paths import REPOSITORY

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BROKER = "rabbitmq:5672/"
OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


async def ack() -> None:
    pass


def delivery(headers: dict[str, Any] | None = None, **properties: Any) -> Delivery:
    message = Message(body=b"{}", headers=headers or {}, message_id="job-1", **properties)
    return Delivery(message=message, lane="kestra.jobs", redelivered=False, ack=ack, reject=ack)


def handed_on(headers: dict[str, Any]) -> dict[str, Any]:
    """The trace headers of a request that is made while a delivery is worked on."""
    with Tracer().delivery(delivery(headers)):
        return dict(outgoing())


# What a message's headers say.


def test_a_trace_context_is_handed_on_as_it_came() -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=opaque,other@system=1"}
    assert handed_on(headers) == headers


@pytest.mark.parametrize(
    "value",
    [
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}",
        f"01-{TRACE}-{PARENT}-01more",
        f" {TRACEPARENT}",
        f"{TRACEPARENT}\n",
        f"{TRACEPARENT}\r\nX-Evil: 1",
        TRACEPARENT.replace("a", "\u0430"),
        "",
        None,
        7,
        TRACEPARENT.encode(),
        [TRACEPARENT],
    ],
)
def test_a_malformed_traceparent_is_none(value: Any) -> None:
    assert handed_on({"traceparent": value, "tracestate": "a=1"}) == {}


@pytest.mark.parametrize("more", ["", "-more", "-"])
def test_a_version_to_come_is_read_as_far_as_this_one_goes(more: str) -> None:
    headers = {"traceparent": f"cc-{TRACE}-{PARENT}-ff{more}"}
    assert handed_on(headers) == {"traceparent": TRACEPARENT}


@pytest.mark.parametrize(
    "state",
    [
        "no-equals",
        "UPPER=1",
        "a=1,a=2",
        "a=1\r\nX-Evil: 1",
        "a=ü",
        "a=" + "x" * 257,
        ",".join(f"k{number}=1" for number in range(33)),
        f"{'k' * 250}={'v' * 250},{'l' * 250}=1",
        b"a=1",
        {"a": "1"},
    ],
)
def test_a_tracestate_that_is_malformed_or_too_long_is_left_out_and_the_trace_goes_on(
    state: Any,
) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": state}
    assert handed_on(headers) == {"traceparent": TRACEPARENT}


# Without the SDK.


def test_what_is_asked_meanwhile_belongs_to_the_publishers_trace() -> None:
    with Tracer().delivery(delivery({"traceparent": TRACEPARENT})) as span, span.step("create"):
        assert outgoing() == {"traceparent": TRACEPARENT}


def test_what_is_asked_afterwards_does_not() -> None:
    with Tracer().delivery(delivery({"traceparent": TRACEPARENT})):
        pass
    assert outgoing() == {}


def test_what_is_asked_in_a_delivery_that_a_trace_started_does_not_belong_to_that_one() -> None:
    with (
        Tracer().delivery(delivery({"traceparent": TRACEPARENT})),
        Tracer().delivery(delivery()),
    ):
        assert outgoing() == {}


def test_log_lines_name_the_trace_and_the_publishers_span() -> None:
    with Tracer().delivery(delivery({"traceparent": TRACEPARENT})):
        assert structlog.contextvars.get_contextvars() == {"trace_id": TRACE, "span_id": PARENT}


def test_a_message_outside_any_trace_stays_so() -> None:
    with Tracer().delivery(delivery({"traceparent": "00-1"})):
        assert (outgoing(), structlog.contextvars.get_contextvars()) == ({}, {})


def test_what_became_of_a_delivery_can_be_told_to_a_span_that_records_nothing() -> None:
    with Tracer().delivery(delivery()) as span:
        span.conclude("dead_letter", FACTS, error="it failed", error_type="failed")
    Span().conclude("left", FACTS)


def test_the_sdk_is_not_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, bridge.cli; from bridge.telemetry.tracing import tracer; "
        "tracer({}, broker='h:1/'); print([name for name in sys.modules if "
        "name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "bridge"},
        OTLP | {"OTEL_SDK_DISABLED": "true"},
        OTLP | {"OTEL_TRACES_EXPORTER": "none"},
        OTLP | {"OTEL_TRACES_EXPORTER": "console"},
        OTLP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        OTLP
        | {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        },
    ],
)
def test_nothing_is_recorded_without_being_asked_for_or_in_a_way_that_is_not_there(
    environment: dict[str, str],
) -> None:
    assert type(tracer(environment, broker=BROKER)) is Tracer


@pytest.mark.parametrize(
    "environment",
    [
        OTLP,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        OTLP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_an_endpoint_or_an_exporter_that_is_named_asks_for_spans(
    environment: dict[str, str],
) -> None:
    asked = tracer(environment, broker=BROKER)
    asked.close()
    assert isinstance(asked, ExportingTracer)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (OTLP | {"OTEL_TRACES_EXPORTER": "otlp,console"}, "console"),
        (OTLP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_what_is_asked_for_and_not_there_is_warned_of(
    environment: dict[str, str], why: str
) -> None:
    with structlog.testing.capture_logs() as lines:
        tracer(environment, broker=BROKER)
    assert [(line["log_level"], why in line["why"]) for line in lines] == [("warning", True)]


def test_a_missing_extra_is_warned_of_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.delitem(sys.modules, "bridge.telemetry.otlp")
    with structlog.testing.capture_logs() as lines:
        assert type(tracer(OTLP, broker=BROKER)) is Tracer
    assert "pip install 'kestra-bridge[tracing]'" in lines[0]["why"]


def test_a_variable_that_opentelemetry_cannot_use_is_an_error_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match="OTEL_"):
        tracer(OTLP, broker=BROKER)


# With the SDK.


class Recorded:
    """A tracer that keeps its spans, and those that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = ExportingTracer(self.provider, broker=BROKER)

    def span(self, name: str) -> ReadableSpan:
        (found,) = (span for span in self._exporter.get_finished_spans() if span.name == name)
        return found

    @property
    def process(self) -> ReadableSpan:
        return self.span("process kestra.jobs")


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.tracer.close()


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


def test_a_delivery_is_a_child_of_what_its_message_names(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery({"traceparent": TRACEPARENT, "tracestate": "a=1"})):
        pass
    assert (ids(recorded.process)[0], parent(recorded.process)) == (TRACE, PARENT)


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-1"}])
def test_a_delivery_outside_any_trace_begins_one(
    recorded: Recorded, headers: dict[str, Any]
) -> None:
    with recorded.tracer.delivery(delivery(headers)):
        pass
    assert recorded.process.parent is None


def test_deliveries_are_not_recorded_whose_publisher_was_not_sampled(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery({"traceparent": f"00-{TRACE}-{PARENT}-00"})):
        assert outgoing()["traceparent"].endswith("-00")
    assert recorded._exporter.get_finished_spans() == ()


def test_a_deliverys_span_tells_what_a_message_is_by_the_conventions_for_messaging(
    recorded: Recorded,
) -> None:
    with recorded.tracer.delivery(delivery(correlation_id="c-1")):
        pass
    assert recorded.process.kind is SpanKind.CONSUMER
    assert recorded.process.attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "kestra.jobs",
        "messaging.message.id": "job-1",
        "messaging.message.conversation_id": "c-1",
        "messaging.message.body.size": 2,
        "server.address": "rabbitmq",
        "server.port": 5672,
    }


def test_bytes_that_are_no_text_do_not_keep_a_span_from_being_exported(recorded: Recorded) -> None:
    odd = replace(
        delivery(), message=Message(body=b"", message_id="\udcff", correlation_id="\udcff")
    )
    with recorded.tracer.delivery(odd) as span:
        span.conclude("dead_letter", {}, error="\udcff", error_type="invalid_message")
    assert encode_spans([recorded.process]).SerializeToString().count(rb"\xff") == 3


def test_a_brokers_address_may_have_colons_of_its_own(recorded: Recorded) -> None:
    with ExportingTracer(recorded.provider, broker="::1:5672/jobs").delivery(delivery()):
        pass
    attributes = recorded.process.attributes or {}
    assert (attributes["server.address"], attributes["server.port"]) == ("::1", 5672)


@pytest.mark.parametrize(
    ("step", "name", "kind"),
    [
        ("create", "create", SpanKind.CLIENT),
        ("wait", "wait", SpanKind.INTERNAL),
        ("settle", "settle kestra.jobs", SpanKind.CLIENT),
    ],
)
def test_each_part_of_the_work_is_a_span_below(
    recorded: Recorded, step: Step, name: str, kind: SpanKind
) -> None:
    with recorded.tracer.delivery(delivery()) as span, span.step(step):
        pass
    child = recorded.span(name)
    assert (child.kind, parent(child)) == (kind, ids(recorded.process)[1])


def test_what_is_asked_within_a_part_is_its_child_and_keeps_the_publishers_state(
    recorded: Recorded,
) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=1"}
    with recorded.tracer.delivery(delivery(headers)) as span, span.step("create"):
        asked = outgoing()
    assert asked == {
        "traceparent": f"00-{TRACE}-{ids(recorded.span('create'))[1]}-01",
        "tracestate": "a=1",
    }


def test_log_lines_name_the_trace_and_the_deliverys_span(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery()) as span, span.step("wait"):
        logged = structlog.contextvars.get_contextvars()
    assert (logged["trace_id"], logged["span_id"]) == ids(recorded.process)


FACTS = {
    "job": "job-1",
    "flow": "a/b",
    "attempt": 2,
    "execution": "e1",
    "how": "created",
    "state": "FAILED",
}


def test_a_success_has_no_error(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery()) as span:
        span.conclude("ack", {"state": "SUCCESS"})
    assert recorded.process.status.status_code is StatusCode.UNSET


def test_a_failure_is_an_error_that_says_what_and_why(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery()) as span:
        span.conclude("dead_letter", FACTS, error="task work ended FAILED", error_type="failed")
    status, attributes = recorded.process.status, recorded.process.attributes or {}
    assert (status.status_code, status.description) == (StatusCode.ERROR, "task work ended FAILED")
    assert attributes["error.type"] == "failed"


def test_what_became_of_a_delivery_is_on_its_span(recorded: Recorded) -> None:
    with recorded.tracer.delivery(delivery()) as span:
        span.conclude("retry", FACTS, error="it failed", error_type="failed")
    assert {
        "bridge.settlement": "retry",
        "bridge.attempt": 2,
        "kestra.flow": "a/b",
        "kestra.execution.id": "e1",
        "kestra.execution.how": "created",
        "kestra.execution.state": "FAILED",
    }.items() <= (recorded.process.attributes or {}).items()


def test_the_name_that_the_environment_gives_the_service_goes_before_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resource().attributes["service.name"] == "kestra-bridge"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    assert resource().attributes["service.name"] == "nightly"


class Hanging(SpanExporter):
    """An exporter whose collector takes its time."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.done = False

    def export(self, spans: Any) -> SpanExportResult:  # noqa: ARG002 (nobody looks at them)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.answered.wait(60)
        self.done = True


def test_a_collector_that_does_not_answer_is_not_waited_for() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = Hanging()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    ExportingTracer(provider, broker=BROKER, close_seconds=0.01).close()
    done = exporter.done
    exporter.answered.set()
    assert not done
