"""Everything that is counted and measured, under the names that dashboards and alerts rely on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_JOB_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "executions": ("created", "adopted"),
        "outcomes": ("success", "warning", "failed", "killed", "cancelled", "skipped", "timed_out"),
        "settlements": ("ack", "retry", "dead_letter", "stamp", "park", "left"),
        "replies": ("awaited", "unknown", "not_terminal", "malformed"),
        "results": ("sent", "undeliverable"),
        "kestra_refused": ("create", "find", "get", "kill", "probe", "sweep"),
        "consumer_restarts": ("connection_closed", "channel_closed", "consumer_cancelled"),
    }
)
"""What a counter's one label can be. Each is there from the start: what appears with a 1 has never risen to Prometheus,
so that the first dead letter would be no increase."""


class Metrics:
    """One set of metrics on a registry of its own. `lanes`: the queues that are consumed, with their prefetch."""

    def __init__(self, lanes: Mapping[str, int] = MappingProxyType({})) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.deliveries = self._counter("deliveries", "Deliveries taken from the broker.", "lane", "redelivered")
        self.executions = self._counter("executions", "Executions created, and found to exist already.", "how")
        self.duplicates = self._counter(
            "duplicate_executions_killed", "Second executions of one attempt that were killed."
        )
        self.outcomes = self._counter("outcomes", "How attempts ended.", "state")
        self.settlements = self._counter("settlements", "What became of deliveries.", "settlement")
        self.replies = self._counter("replies", "Replies from Kestra: waited for, not ours, or not readable.", "match")
        self.reconciled = self._counter("reconciled", "Ends of executions that the sweep found and no reply told.")
        self.results = self._counter("results", "Results sent to a message's reply_to.", "result")
        self.consumer_restarts = self._counter("consumer_restarts", "Sessions with the broker that ended.", "cause")
        self.in_flight = self._gauge("in_flight", "Deliveries taken and not settled.", "lane")
        self.prefetch = self._gauge("prefetch", "How many deliveries may be in flight.", "lane")
        self.oldest_in_flight = self._gauge(
            "oldest_in_flight_seconds", "Age of the oldest delivery that is not settled."
        )
        self.overdue = self._gauge("overdue_seconds", "How far a delivery is beyond its job's time-out, at most.")
        self.broker_connected = self._gauge("broker_connected", "Whether a session with the broker is consuming.")
        self.kestra_up = self._gauge("kestra_up", "Whether the last request to Kestra was answered.")
        self.job_seconds = self._histogram("job_seconds", "From a delivery to its settlement.", _JOB_BUCKETS)
        self.kestra_refused = self._counter(
            "kestra_refused",
            "Answers of Kestra by which it refused the credentials, the rights or the form of a request.",
            "operation",
        )
        self.stuck = self._gauge(
            "stuck_executions", "Deliveries beyond their time-out whose execution Kestra has not ended.", "why"
        )
        self.settle_seconds = self._histogram(
            "settle_seconds", "From the end of an execution (by Kestra's clock) to its settlement.", _SETTLE_BUCKETS
        )
        self.kestra_request_seconds = self._histogram(
            "kestra_request_seconds",
            "Requests to Kestra by operation and status code.",
            _SETTLE_BUCKETS,
            "operation",
            "code",
        )
        for why in ("never_started", "kill_refused", "kill_without_effect"):
            self.stuck.labels(why)
        for queue, prefetch in lanes.items():
            self.prefetch.labels(queue).set(prefetch)
            self.in_flight.labels(queue)
            for redelivered in ("false", "true"):
                self.deliveries.labels(queue, redelivered)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"bridge_{name}", text, labels, registry=self.registry)
        for value in _VALUES.get(name, ()):
            counter.labels(value)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"bridge_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"bridge_{name}", text, labels, buckets=buckets, registry=self.registry)
