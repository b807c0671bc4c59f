"""A message, and one hand-over of it by the broker."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

ATTEMPT = "x-bridge-attempt"
FIRST_ATTEMPT = "x-bridge-first-attempt"
LEFT_OUT = "x-bridge-left-out"
"""Names the headers that a message had to leave behind, since all of them did not fit into a
frame."""

PLAUSIBLE_WAIT = timedelta(days=30)
"""The longest time that a message is believed to have waited."""

Headers = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An AMQP message: its body and the basic properties, as AMQP 0-9-1 names them (`type` is
    `message_type`).

    `exchange` and `routing_key` say where it had been published to, if it was delivered.
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
        """The same message, fit to be published again by the bridge, with `headers` in place of
        what it had set before.

        This is the one list of what may pass from a publisher into a queue of ours. What RabbitMQ
        notes in headers itself stays behind: on 3.10 a retry with an `x-death` of earlier is
        dropped as one that goes round in circles, and one of another shape ends the broker's own
        work on dead letters. Other properties would do harm on the way and are kept as headers
        instead: RabbitMQ refuses a `user_id` other than the connection's own and a `reply_to` that
        means a consumer of the same channel, an `expiration` would let the message vanish from the
        queue that keeps it, and `CC` and `BCC` would route copies anew (RabbitMQ's "Validated
        User-ID", "Direct Reply-to", "Time-to-Live" and "Sender-selected Distribution" documents).
        """
        kept = {key: value for key, value in self.headers.items() if _may_pass(key)}
        kept |= {
            f"x-bridge-{key.lower()}": self.headers[key]
            for key in _ROUTING_HEADERS
            if key in self.headers
        }
        put_aside = {"user_id": self.user_id, "expiration": self.expiration}
        if self.reply_to == OWN_REPLIES:
            put_aside["reply_to"] = self.reply_to
        for name, value in put_aside.items():
            if value is not None:
                kept[f"x-bridge-{name.replace('_', '-')}"] = value
        return replace(
            self,
            headers=kept | dict(headers),
            delivery_mode=2,
            user_id=None,
            expiration=None,
            reply_to=None if "reply_to" in put_aside else self.reply_to,
            message_id=message_id or self.message_id,
        )

    @property
    def may_be_rejected(self) -> bool:
        """Whether RabbitMQ can make it a dead letter itself: an `x-death` of another shape than its
        own ends a 3.10.
        """
        deaths = self.headers.get("x-death", [])
        return isinstance(deaths, list) and all(map(_is_a_death, deaths))

    def bare(self) -> Message:
        """The message without whatever else its publisher gave it than a body, an id and what can
        do no harm.
        """
        return Message(
            body=self.body,
            content_type=self.content_type,
            priority=self.priority,
            message_id=self.message_id,
            timestamp=self.timestamp,
        )


OWN_REPLIES = "amq.rabbitmq.reply-to"
"""RabbitMQ's direct reply-to, as its consumer names it; what its messages carry goes on with a dot
and an address."""

_ROUTING_HEADERS = ("CC", "BCC")
DEAD_LETTER_HEADERS = (
    "x-bridge-reason",
    "x-bridge-error",
    "x-bridge-execution",
    "x-bridge-queue",
    "x-bridge-at",
)
_DROPPED = frozenset({*_ROUTING_HEADERS, *DEAD_LETTER_HEADERS, ATTEMPT, FIRST_ATTEMPT})
_BROKERS_HEADERS = re.compile(
    r"x-(?:death|(?:first|last)-death-.*|delivery-count|acquired-count)", re.DOTALL
)


def _is_a_death(entry: Any) -> bool:
    """Whether it is what RabbitMQ notes in `x-death` of each queue that a message left."""
    if not isinstance(entry, dict):
        return False
    texts = (entry.get(name) for name in ("queue", "reason", "exchange"))
    keys = entry.get("routing-keys")
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(entry.get("count"), int)
        and isinstance(keys, list)
    )


def _may_pass(header: str) -> bool:
    return header not in _DROPPED and not _BROKERS_HEADERS.fullmatch(header)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """One hand-over of a message. It can be settled on the channel that brought it and nowhere
    else.

    `reject` has the broker itself move it to the dead letters. Both raise `BrokerUnavailable` when
    that channel is gone; the broker then delivers the message again.
    """

    message: Message
    lane: str
    redelivered: bool
    ack: Callable[[], Awaitable[None]]
    reject: Callable[[], Awaitable[None]]

    def waited(self, now: datetime) -> float | None:
        """Seconds that the message waited in the queue, by its time stamp; None where that can't be
        told.

        Only the first delivery of a job can tell: a redelivery and a further attempt come later for
        other reasons, and a message without an id comes again once it has one. A time stamp in the
        future, or more than 30 days old, is that of a publisher which counts in other units or
        whose clock is wrong.
        """
        message = self.message
        if message.timestamp is None or not message.message_id:
            return None
        if self.redelivered or ATTEMPT in message.headers:
            return None
        wait = now - message.timestamp
        return wait.total_seconds() if timedelta() <= wait <= PLAUSIBLE_WAIT else None
