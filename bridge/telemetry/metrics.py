"""Everything that is counted and measured, under the names that dashboards and alerts rely on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from bridge import __version__
from bridge.job.settlement import Reason

_JOB_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAIT_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 10800, 21600, 43200, 86400, 259200, 604800)

PRIORITIES_FROM_THE_START = 32
"""How many priorities of a lane are there before their first job. Each takes a histogram, and a
queue may have 256."""

_ENDS = ("success", "warning", "failed", "killed", "cancelled", "skipped", "timed_out")
_NOT_ACKED = ("warning", "failed", "cancelled", "skipped", "timed_out")

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "replies": ("awaited", "unknown", "not_terminal", "malformed"),
        "kestra_refused": ("create", "find", "get", "kill", "probe", "sweep"),
        "consumer_restarts": ("connection_closed", "channel_closed", "consumer_cancelled"),
    }
)
"""What a counter's one label can be. Each is there from the start: what appears with a 1 has never
risen to Prometheus, so that the first dead letter would be no increase."""

_SETTLEMENTS = (
    *((name, "") for name in ("ack", "stamp", "park", "left")),
    *(("retry", outcome) for outcome in _NOT_ACKED),
    *(("dead_letter", reason.value) for reason in Reason),
)
"""What becomes of deliveries, and why: of a dead letter its reason, of a retry how the attempt
before it ended."""


class Metrics:
    """One set of metrics on a registry of its own.

    `lanes` are the queues that are consumed, with their prefetch, in the virtual host `vhost`;
    `max_priority` is the highest of their priorities.
    """

    def __init__(
        self,
        lanes: Mapping[str, int] = MappingProxyType({}),
        *,
        vhost: str = "/",
        max_priority: int = 10,
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.deliveries = self._counter(
            "deliveries", "Deliveries taken from the broker.", "lane", "redelivered"
        )
        self.executions = self._counter(
            "executions", "Executions created, and found to exist already.", "lane", "how"
        )
        self.duplicates = self._counter(
            "duplicate_executions_killed", "Second executions of one attempt that were killed."
        )
        self.outcomes = self._counter("outcomes", "How attempts ended.", "lane", "state")
        self.settlements = self._counter(
            "settlements", "What became of deliveries, and why.", "lane", "settlement", "reason"
        )
        self.replies = self._counter(
            "replies", "Replies from Kestra: waited for, not ours, or not readable.", "match"
        )
        self.reconciled = self._counter(
            "reconciled", "Ends of executions that the sweep found and no reply told."
        )
        self.results = self._counter(
            "results", "Results sent to a message's reply_to.", "lane", "result"
        )
        self.consumer_restarts = self._counter(
            "consumer_restarts", "Sessions with the broker that ended.", "cause"
        )
        self.in_flight = self._gauge("in_flight", "Deliveries taken and not settled.", "lane")
        self.prefetch = self._gauge("prefetch", "How many deliveries may be in flight.", "lane")
        self.oldest_in_flight = self._gauge(
            "oldest_in_flight_seconds", "Age of the oldest delivery that is not settled."
        )
        self.overdue = self._gauge(
            "overdue_seconds", "How far a delivery is beyond its job's time-out, at most."
        )
        self.broker_connected = self._gauge(
            "broker_connected", "Whether a session with the broker is consuming."
        )
        self.kestra_up = self._gauge(
            "kestra_up", "Whether the last request to Kestra was answered."
        )
        self.job_seconds = self._histogram(
            "job_seconds", "From a delivery to its settlement.", _JOB_BUCKETS, "lane"
        )
        self.queue_wait_seconds = self._histogram(
            "queue_wait_seconds",
            "From a message's time stamp to its first delivery, of first attempts.",
            _WAIT_BUCKETS,
            "lane",
            "priority",
        )
        self.kestra_refused = self._counter(
            "kestra_refused",
            "Answers of Kestra by which it refused the credentials, the rights or the form "
            "of a request.",
            "operation",
        )
        self.stuck = self._gauge(
            "stuck_executions",
            "Deliveries beyond their time-out whose execution Kestra has not ended.",
            "why",
        )
        self.settle_seconds = self._histogram(
            "settle_seconds",
            "From the end of an execution (by Kestra's clock) to its settlement.",
            _SETTLE_BUCKETS,
            "lane",
        )
        self.kestra_request_seconds = self._histogram(
            "kestra_request_seconds",
            "Requests to Kestra by operation and status code.",
            _SETTLE_BUCKETS,
            "operation",
            "code",
        )
        for why in ("never_started", "kill_refused", "kill_unanswered", "kill_without_effect"):
            self.stuck.labels(why)
        self._gauge("build_info", "The version of the bridge.", "version").labels(__version__).set(
            1
        )
        # RabbitMQ names a queue by both, and alerts have to tell two queues of the same name apart.
        lane_info = self._gauge("lane_info", "The virtual host of a lane's queue.", "lane", "vhost")
        for lane, prefetch in lanes.items():
            lane_info.labels(lane, vhost).set(1)
            self.prefetch.labels(lane).set(prefetch)
            self._begin(lane, min(max_priority + 1, PRIORITIES_FROM_THE_START))

    def _begin(self, lane: str, priorities: int) -> None:
        """Have the lane's series there before their first event, as those of `_VALUES` are."""
        self.in_flight.labels(lane)
        self.job_seconds.labels(lane)
        self.settle_seconds.labels(lane)
        for redelivered in ("false", "true"):
            self.deliveries.labels(lane, redelivered)
        for how in ("created", "adopted"):
            self.executions.labels(lane, how)
        for state in _ENDS:
            self.outcomes.labels(lane, state)
        for settlement, reason in _SETTLEMENTS:
            self.settlements.labels(lane, settlement, reason)
        for result in ("sent", "undeliverable"):
            self.results.labels(lane, result)
        for priority in range(priorities):
            self.queue_wait_seconds.labels(lane, str(priority))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"bridge_{name}", text, labels, registry=self.registry)
        for value in _VALUES.get(name, ()):
            counter.labels(value)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"bridge_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"bridge_{name}", text, labels, buckets=buckets, registry=self.registry)
