"""A message, and one hand-over of it by the broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

ATTEMPT = "x-bridge-attempt"
FIRST_ATTEMPT = "x-bridge-first-attempt"

Headers = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An AMQP message: its body and the basic properties, as AMQP 0-9-1 names them (`type` is `message_type`)."""

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

    def to_republish(self, headers: Headers, *, message_id: str | None = None) -> Message:
        """The same message, fit to be published again by the bridge, with `headers` in place of what it had set before.

        Three properties would do harm on the way and are kept as headers instead: RabbitMQ refuses a `user_id` other
        than the connection's own, an `expiration` would let the message vanish from the queue that keeps it, and `CC`
        and `BCC` would route copies anew (RabbitMQ's "Validated User-ID", "Time-to-Live" and "Sender-selected
        Distribution" documents).
        """
        kept = {key: value for key, value in self.headers.items() if key not in _DROPPED}
        kept |= {f"x-bridge-{key.lower()}": self.headers[key] for key in _ROUTING_HEADERS if key in self.headers}
        for name in ("user_id", "expiration"):
            if (value := getattr(self, name)) is not None:
                kept[f"x-bridge-{name.replace('_', '-')}"] = value
        return replace(
            self,
            headers=kept | dict(headers),
            delivery_mode=2,
            user_id=None,
            expiration=None,
            message_id=message_id or self.message_id,
        )


_ROUTING_HEADERS = ("CC", "BCC")
DEAD_LETTER_HEADERS = ("x-bridge-reason", "x-bridge-error", "x-bridge-execution", "x-bridge-queue", "x-bridge-at")
_DROPPED = frozenset({*_ROUTING_HEADERS, *DEAD_LETTER_HEADERS, ATTEMPT, FIRST_ATTEMPT})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """One hand-over of a message. It can be acked on the channel that brought it and nowhere else.

    `ack` raises `BrokerUnavailable` when that channel is gone; the broker then delivers the message again.
    """

    message: Message
    lane: str
    redelivered: bool
    ack: Callable[[], Awaitable[None]]
