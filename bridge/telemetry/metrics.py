"""The metrics, under the names that dashboards and alerts rely on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from bridge import __version__
from bridge.job.settlement import Reason

_JOB_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_CLAIM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SETTLE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAIT_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 10800, 21600, 43200, 86400, 259200, 604800)

PRIORITIES_FROM_THE_START = 32
"""Priorities of a lane that exist before their first job. Each takes a histogram, and a queue may
have 256."""

OPERATIONS = (
    *("create", "find", "history", "get", "kill", "outputs", "attempts", "explain"),
    *("flow", "probe", "ended", "oldest", "sweep"),
)
"""What the consumer asks of Kestra: for jobs, and at its start or at intervals."""

_HELP: Mapping[str, str] = MappingProxyType(
    {
        "build_info": "The version of the bridge.",
        "broker_connected": "Whether a session with the broker is consuming.",
        "kestra_up": "Whether the last request to Kestra was answered.",
        "lane_info": "The virtual host of a lane's queue.",
        "prefetch": "How many deliveries may be in flight.",
        "deliveries": "Deliveries taken from the broker.",
        "in_flight": "Deliveries taken and not settled.",
        "oldest_in_flight_seconds": "Age of the oldest delivery that is not settled.",
        "overdue_seconds": "How far a delivery is beyond its job's time-out, at most.",
        "stuck_executions": "Deliveries beyond their time-out whose execution Kestra has not "
        "ended.",
        "executions": "Executions created, and found to exist already.",
        "duplicate_executions_killed": "Second executions of one attempt that were killed.",
        "outcomes": "How attempts ended.",
        "machine_seconds": "For how long ended attempts had their machines.",
        "settlements": "What became of deliveries, and why.",
        "results": "Results sent to a message's reply_to.",
        "replies": "Replies from Kestra: waited for, not ours, or not readable.",
        "reconciled": "Ends of executions that no reply told, and a list of what has not ended "
        "showed.",
        "ends_heard": "Replies by who told them.",
        "ends_told": "Ends that this replica told to all replicas, as the reporter.",
        "reporter": "Whether this replica is the reporter.",
        "report_seconds": "The reporter's questions for what has ended, all pages of each.",
        "consumer_restarts": "Sessions with the broker that ended.",
        "kestra_refused": "Answers of Kestra by which it refused the credentials, the rights or "
        "the form of a request.",
        "queue_wait_seconds": "From a message's time stamp to its first delivery, of first "
        "attempts.",
        "job_seconds": "From a delivery to its settlement.",
        "settle_seconds": "From the end of an execution (by Kestra's clock) to its settlement.",
        "ledger_ready": "Whether a lane's ledger is read to its end.",
        "ledger_reach_seconds": "How far back a lane's ledger reaches.",
        "ledger_unanswered": "Starts that a lane's ledger did not answer.",
        "claim_seconds": "From a claim in a lane's ledger until it was read back.",
        "kestra_request_seconds": "Requests to Kestra by operation and status code.",
    }
)
"""Each metric's help text, by its name without `bridge_`."""

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ends_heard": ("notifier", "reporter"),
        "replies": ("awaited", "unknown", "not_terminal", "malformed"),
        "kestra_refused": OPERATIONS,
        "consumer_restarts": ("connection_closed", "channel_closed", "consumer_cancelled"),
        "stuck_executions": (
            "never_started",
            "kill_refused",
            "kill_unanswered",
            "kill_without_effect",
        ),
    }
)
"""The values of a metric's only label. Each exists from the start: to Prometheus a series that
appears with a 1 has never risen, so the first dead letter would be no increase."""

_NOT_ACKED = ("warning", "failed", "cancelled", "skipped", "timed_out", "machine_lost")
_ENDS = ("success", "killed", *_NOT_ACKED)
_SETTLEMENTS = (
    *((name, "") for name in ("ack", "stamp", "park", "left")),
    *(("retry", outcome) for outcome in _NOT_ACKED),
    *(("dead_letter", reason.value) for reason in Reason),
)
"""What becomes of deliveries, and why: for a dead letter its reason, for a retry how the attempt
before it ended."""


class Metrics:
    """One set of metrics, on a registry of its own.

    `lanes` maps the queues that are consumed to their prefetch, in the virtual host `vhost`;
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

        self._gauge("build_info", "version").labels(__version__).set(1)
        self.broker_connected = self._gauge("broker_connected")
        self.kestra_up = self._gauge("kestra_up")
        # RabbitMQ names a queue by both, and alerts have to tell two queues of the same name apart.
        lane_info = self._gauge("lane_info", "lane", "vhost")
        self.prefetch = self._gauge("prefetch", "lane")

        self.deliveries = self._counter("deliveries", "lane", "redelivered")
        self.in_flight = self._gauge("in_flight", "lane")
        self.oldest_in_flight = self._gauge("oldest_in_flight_seconds")
        self.overdue = self._gauge("overdue_seconds")
        self.stuck = self._gauge("stuck_executions", "why")

        self.executions = self._counter("executions", "lane", "how")
        self.duplicates = self._counter("duplicate_executions_killed")
        self.outcomes = self._counter("outcomes", "lane", "state")
        self.settlements = self._counter("settlements", "lane", "settlement", "reason")
        self.machine_seconds = self._counter("machine_seconds", "lane", "size")
        self.results = self._counter("results", "lane", "result")

        self._declare_ends()
        self.consumer_restarts = self._counter("consumer_restarts", "cause")
        self.kestra_refused = self._counter("kestra_refused", "operation")

        self.queue_wait_seconds = self._histogram(
            "queue_wait_seconds", _WAIT_BUCKETS, "lane", "priority"
        )
        self.job_seconds = self._histogram("job_seconds", _JOB_BUCKETS, "lane")
        self.settle_seconds = self._histogram("settle_seconds", _SETTLE_BUCKETS, "lane")
        self.kestra_request_seconds = self._requests()
        self._declare_ledger()

        for lane, prefetch in lanes.items():
            lane_info.labels(lane, vhost).set(1)
            self.prefetch.labels(lane).set(prefetch)
            self._begin(lane, min(max_priority + 1, PRIORITIES_FROM_THE_START))

    def _declare_ends(self) -> None:
        """How ends of executions become known."""
        self.replies = self._counter("replies", "match")
        self.reconciled = self._counter("reconciled")
        self.ends_heard = self._counter("ends_heard", "by")
        self.ends_told = self._counter("ends_told")
        self.reporter = self._gauge("reporter")
        self.report_seconds = self._histogram("report_seconds", _SETTLE_BUCKETS)

    def _declare_ledger(self) -> None:
        """What the ledgers know, and how long a claim takes."""
        self.ledger_ready = self._gauge("ledger_ready", "lane")
        self.ledger_reach = self._gauge("ledger_reach_seconds", "lane")
        self.ledger_unanswered = self._counter("ledger_unanswered", "lane")
        self.claim_seconds = self._histogram("claim_seconds", _CLAIM_BUCKETS, "lane")

    def _begin(self, lane: str, priorities: int) -> None:
        """Create the lane's series before their first event, for the reason given at `_VALUES`."""
        self.in_flight.labels(lane)
        self.job_seconds.labels(lane)
        self.settle_seconds.labels(lane)
        self.ledger_ready.labels(lane)
        self.ledger_reach.labels(lane)
        self.ledger_unanswered.labels(lane)
        self.claim_seconds.labels(lane)
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

    def _requests(self) -> Histogram:
        """Requests to Kestra. Each operation has a series before its first request."""
        name, labels = "kestra_request_seconds", ("operation", "code")
        histogram = self._histogram(name, _SETTLE_BUCKETS, *labels)
        for operation in OPERATIONS:
            histogram.labels(operation, "200")
        return histogram

    def _counter(self, name: str, *labels: str) -> Counter:
        counter = Counter(f"bridge_{name}", _HELP[name], labels, registry=self.registry)
        for value in _VALUES.get(name, ()):
            counter.labels(value)
        return counter

    def _gauge(self, name: str, *labels: str) -> Gauge:
        gauge = Gauge(f"bridge_{name}", _HELP[name], labels, registry=self.registry)
        for value in _VALUES.get(name, ()):
            gauge.labels(value)
        return gauge

    def _histogram(self, name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(
            f"bridge_{name}", _HELP[name], labels, buckets=buckets, registry=self.registry
        )
