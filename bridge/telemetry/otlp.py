"""Export of spans to an OTLP collector by OpenTelemetry's SDK.

Imported only if OpenTelemetry's environment variables ask for it: the SDK is an extra.
"""

from __future__ import annotations

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bridge import __version__
from bridge.telemetry.tracing import Tracer

_SERVICE = "kestra-bridge"


class ExportingTracer(Tracer):
    """A tracer whose spans a provider of the SDK exports.

    `close_seconds` bounds how long a stopping bridge waits for a collector that doesn't answer.
    """

    def __init__(
        self, provider: TracerProvider, *, broker: str, close_seconds: float = 3.0
    ) -> None:
        super().__init__(provider, broker=broker)
        self._provider = provider
        self._close_seconds = close_seconds

    def close(self) -> None:
        """Hand over what is recorded, unless the collector takes too long."""
        # On a thread that the end of the process doesn't wait for: the SDK's own thread would go on
        # for half a minute.
        closing = threading.Thread(
            target=self._provider.shutdown, name="closing traces", daemon=True
        )
        closing.start()
        closing.join(self._close_seconds)


def exporting(broker: str) -> ExportingTracer:
    """A tracer that exports as OpenTelemetry's environment variables say.

    Raises:
        ValueError: one of them has a value that can't be used.
    """
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return ExportingTracer(provider, broker=broker)


def resource() -> Resource:
    """The environment's description of this process, with our own name if it gives none."""
    ours = Resource({"service.name": _SERVICE, "service.version": __version__})
    theirs = Resource.create()
    if str(theirs.attributes["service.name"]).startswith("unknown_service"):
        return theirs.merge(ours)
    return ours.merge(theirs)
