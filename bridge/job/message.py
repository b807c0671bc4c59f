"""A message, and one hand-over of it by the broker."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

ATTEMPT = "x-bridge-attempt"
FIRST_ATTEMPT = "x-bridge-first-attempt"
MACHINES_LOST = "x-bridge-machines-lost"
"""Counts the attempts that ended because their machine was lost, from the first attempt on."""
MACHINE_SECONDS = "x-bridge-machine-seconds"
"""How long all attempts used machines: a JSON object of seconds by size."""
MACHINE_COST = "x-bridge-machine-cost"
LEFT_OUT = "x-bridge-left-out"
"""Names the headers that were left out because all of them did not fit into one frame."""

PLAUSIBLE_WAIT = timedelta(days=30)
"""A longer wait is taken for a wrong time stamp."""

Headers = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An AMQP 0-9-1 message: its body and its basic properties (`type` is `message_type`).

    `exchange` and `routing_key` say where a delivered message was published.
    """

    body: bytes
    headers: Headers = field(default_factory=dict)
    content_type: str | None = None
    content_encoding: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    message_type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    exchange: str | None = None
    routing_key: str | None = None

    def to_republish(self, headers: Headers, *, message_id: str | None = None) -> Message:
        """The same message, fit to be published again, with these headers of the bridge's own.

        This is the only list of what may pass from a publisher into one of our queues.

        Headers that RabbitMQ sets stay behind. RabbitMQ 3.10 drops a retry with an earlier
        `x-death` as a cycle, and an `x-death` of another shape ends its dead-letter worker.

        Four properties and headers would do harm and are kept under other names (RabbitMQ's
        "Validated User-ID", "Direct Reply-to", "Time-to-Live" and "Sender-selected Distribution"):

        - RabbitMQ refuses a `user_id` other than the connection's;
        - it refuses a `reply_to` that means a consumer of the publishing channel;
        - an `expiration` would remove the message from the queue that keeps it;
        - `CC` and `BCC` would route copies again.
        """
        reply_to = self.reply_to
        kept_aside: dict[str, Any] = {"user-id": self.user_id, "expiration": self.expiration}
        if reply_to == OWN_REPLIES:
            kept_aside["reply-to"], reply_to = reply_to, None
        for name in _ROUTING_HEADERS:
            kept_aside[name.lower()] = self.headers.get(name)

        kept = {name: value for name, value in self.headers.items() if _may_pass(name)}
        for name, value in kept_aside.items():
            if value is not None:
                kept[f"x-bridge-{name}"] = value
        kept.update(headers)
        return replace(
            self,
            headers=kept,
            delivery_mode=2,
            user_id=None,
            expiration=None,
            reply_to=reply_to,
            message_id=message_id or self.message_id,
        )

    @property
    def may_be_rejected(self) -> bool:
        """Whether RabbitMQ may dead-letter the message itself.

        An `x-death` of another shape than RabbitMQ's own ends the dead-letter worker of 3.10.
        """
        deaths = self.headers.get("x-death", [])
        return isinstance(deaths, list) and all(map(_is_a_death, deaths))

    def bare(self) -> Message:
        """The message with nothing of its publisher's but the body, the id and harmless parts."""
        return Message(
            body=self.body,
            content_type=self.content_type,
            priority=self.priority,
            message_id=self.message_id,
            timestamp=self.timestamp,
        )


OWN_REPLIES = "amq.rabbitmq.reply-to"
"""RabbitMQ's direct reply-to, as a consumer names it. Its messages carry a longer name, which goes
on with a dot and an address."""

_ROUTING_HEADERS = ("CC", "BCC")
DEAD_LETTER_HEADERS = (
    "x-bridge-reason",
    "x-bridge-error",
    "x-bridge-execution",
    "x-bridge-queue",
    "x-bridge-at",
)
OWN_HEADERS = frozenset(
    {
        *DEAD_LETTER_HEADERS,
        ATTEMPT,
        FIRST_ATTEMPT,
        MACHINES_LOST,
        MACHINE_SECONDS,
        MACHINE_COST,
    }
)
"""The headers that the bridge alone writes."""
_DROPPED = frozenset({*_ROUTING_HEADERS, *OWN_HEADERS})
_BROKERS_HEADERS = re.compile(
    r"x-(?:death|(?:first|last)-death-.*|delivery-count|acquired-count)", re.DOTALL
)


def _is_a_death(entry: Any) -> bool:
    """Whether an entry of `x-death` has the shape that RabbitMQ gives it."""
    if not isinstance(entry, dict):
        return False
    types = {"queue": str, "reason": str, "exchange": str, "count": int, "routing-keys": list}
    return all(isinstance(entry.get(name), kind) for name, kind in types.items())


def _may_pass(header: str) -> bool:
    return header not in _DROPPED and not _BROKERS_HEADERS.fullmatch(header)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """One hand-over of a message, which only the channel that brought it can settle.

    `reject` makes the broker move the message to the dead letters. `ack` and `reject` raise
    `BrokerUnavailable` when the channel is gone; the broker then delivers the message again.
    """

    message: Message
    lane: str
    redelivered: bool
    ack: Callable[[], Awaitable[None]]
    reject: Callable[[], Awaitable[None]]

    def waited(self, now: datetime) -> float | None:
        """The seconds that the message waited in the queue, or None where that is unknown.

        Only the first delivery of a job tells: a redelivery and a later attempt waited for other
        reasons, and a message without an id comes again once it has one. A time stamp in the
        future, or of more than 30 days ago, comes from a wrong clock or is in another unit.
        """
        message = self.message
        if message.timestamp is None or not message.message_id:
            return None
        if self.redelivered or ATTEMPT in message.headers:
            return None
        wait = now - message.timestamp
        if not timedelta() <= wait <= PLAUSIBLE_WAIT:
            return None
        return wait.total_seconds()
