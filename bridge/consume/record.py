"""Record deliveries: metrics, spans, and one log line for each that is settled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from bridge.consume.handling import Decoded, Ended, Handling, Received, Running
from bridge.job.message import Delivery
from bridge.job.settlement import AssignId, Park, Retry, Settlement, ToDeadLetter
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


def facts_of(progress: Received) -> dict[str, Any]:
    """What identifies a delivery in the log and in its span, as far as it is known."""
    delivery = progress.delivery
    facts: dict[str, Any] = {
        "job": delivery.message.message_id,
        "lane": delivery.lane,
        "redelivered": delivery.redelivered,
    }
    if isinstance(progress, Decoded):
        facts |= {"flow": str(progress.job.flow), "attempt": progress.job.attempt}
    if isinstance(progress, Running):
        how = "adopted" if progress.started.adopted else "created"
        facts |= {"execution": progress.execution.id, "how": how}
    if isinstance(progress, Ended):
        facts["state"] = progress.execution.state.value
    return facts


class Recorder:
    """Records what becomes of deliveries. `now` is the time by Kestra's clock."""

    def __init__(self, metrics: Metrics, *, now: Callable[[], datetime], max_priority: int) -> None:
        self._metrics = metrics
        self._now = now
        self._max_priority = max_priority

    def arrived(self, delivery: Delivery) -> None:
        """Count a delivery, and how long its message waited."""
        redelivered = "true" if delivery.redelivered else "false"
        self._metrics.deliveries.labels(delivery.lane, redelivered).inc()
        waited = delivery.waited(datetime.now(UTC))
        if waited is not None:
            # RabbitMQ takes what is above the queue's highest priority for the highest.
            priority = min(delivery.message.priority or 0, self._max_priority)
            self._metrics.queue_wait_seconds.labels(delivery.lane, str(priority)).observe(waited)

    def ended(self, ended: Ended) -> None:
        """Count how an attempt ended."""
        self._metrics.outcomes.labels(ended.delivery.lane, ended.outcome.label).inc()

    def result(self, delivery: Delivery, result: str) -> None:
        """Count a result that was `sent`, or was `undeliverable`."""
        self._metrics.results.labels(delivery.lane, result).inc()

    def left(self, handling: Handling) -> None:
        """Count a delivery that is left to the broker, and conclude its span."""
        self._metrics.settlements.labels(handling.delivery.lane, "left", "").inc()
        handling.span.conclude("left", facts_of(handling.progress))

    def settled(self, handling: Handling, settlement: Settlement) -> None:
        """Count, log and trace a settled delivery."""
        progress, lane = handling.progress, handling.delivery.lane
        facts, reason = facts_of(progress), _reason(progress, settlement)
        self._metrics.settlements.labels(lane, settlement.name, reason).inc()
        self._metrics.job_seconds.labels(lane).observe(handling.age)
        if isinstance(progress, Ended) and progress.execution.ended is not None:
            since = (self._now() - progress.execution.ended).total_seconds()
            self._metrics.settle_seconds.labels(lane).observe(max(0.0, since))
        details = _details(settlement)
        handling.span.conclude(
            settlement.name, facts, error=details.get("error", ""), error_type=reason
        )
        log.info(
            "settled",
            settlement=settlement.name,
            **facts,
            seconds=round(handling.age, 3),
            **details,
        )


def _details(settlement: Settlement) -> dict[str, Any]:
    """What the log says about a settlement, except its name."""
    match settlement:
        case Retry():
            return {
                "next_attempt": settlement.attempt,
                "delay": settlement.delay,
                "error": settlement.error,
            }
        case Park():
            return {"delay": settlement.delay, "error": settlement.error}
        case ToDeadLetter():
            return {"reason": settlement.reason.value, "error": settlement.error}
        case AssignId():
            return {"stamped": settlement.job_id}
    return {}


def _reason(progress: Received, settlement: Settlement) -> str:
    """What went wrong, as one word; empty where nothing did."""
    if isinstance(settlement, ToDeadLetter):
        return settlement.reason.value
    if isinstance(settlement, Retry) and isinstance(progress, Ended):
        return progress.outcome.label
    return ""
