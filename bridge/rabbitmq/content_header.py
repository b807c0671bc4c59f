"""A message's properties as AMQP sends them, kept within one frame.

AMQP sends all properties and headers of a message in one frame, which must not exceed the size that
was negotiated for the connection (131,072 bytes by default). RabbitMQ closes the connection over a
larger one, and every delivery goes back. A message that arrived within the limit can exceed it once
our own headers are added; then the largest headers of others are left out, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pamqp import encode
from pamqp.commands import Basic

from bridge.job.message import LEFT_OUT, OWN_HEADERS, Message
from bridge.text import encodable, short

RESERVED = 6 * 1024
"""Bytes of a frame without headers: for the other properties, which take 3 KiB at most, and for
RabbitMQ's own headers, which it adds when it moves a message from queue to queue."""

NAMED_AT_MOST = 16
LONGEST_NAME = 100
_ERROR = "x-bridge-error"
_TEXT_PROPERTIES = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "message_type",
    "user_id",
    "app_id",
)


def properties_of(message: Message, frame_max: int) -> Basic.Properties:
    """The message's properties, within a frame of `frame_max` bytes (0: of any size)."""
    texts: dict[str, Any] = {}
    for name in _TEXT_PROPERTIES:
        text = getattr(message, name)
        if text is not None:
            texts[name] = short(text)
    headers = encodable(dict(message.headers))
    return Basic.Properties(
        headers=fitting(headers, room_for_headers(frame_max)) or None,
        delivery_mode=message.delivery_mode or 2,
        priority=message.priority,
        timestamp=message.timestamp,
        **texts,
    )


def room_for_headers(frame_max: int) -> int | None:
    """The bytes that all headers may take together; None where frames may be of any size."""
    if not frame_max:
        return None
    return max(frame_max - RESERVED, frame_max // 2)


def fitting(headers: Mapping[str, Any], room: int | None) -> dict[str, Any]:
    """The headers that fit into `room` bytes; the largest of others are left out and named."""
    kept = dict(headers)
    if room is None or _size(kept) <= room:
        return kept
    left_out: list[str] = []
    before = kept.pop(LEFT_OUT, None)
    if isinstance(before, list):
        left_out = [name for name in before if isinstance(name, str)]
    # Each is measured only once: tens of thousands of small ones fit into a frame.
    sizes = {name: _size({name: value}) - _size({}) for name, value in kept.items()}
    total = _size({}) + sum(sizes.values())
    for name in sorted(sizes.keys() - OWN_HEADERS, key=lambda name: (-sizes[name], name)):
        del kept[name]
        left_out.append(name)
        total -= sizes[name]
        if total <= room and total + _size({LEFT_OUT: _named(left_out)}) <= room:
            break
    return _with_short_error(kept | {LEFT_OUT: _named(left_out)}, room)


def _named(names: Sequence[str]) -> list[str]:
    """The names, or the first of them and the number of the others."""
    shown = [name[:LONGEST_NAME] for name in names[:NAMED_AT_MOST]]
    more = len(names) - len(shown)
    if more:
        shown.append(f"and {more} more")
    return shown


def _with_short_error(headers: dict[str, Any], room: int) -> dict[str, Any]:
    """The headers with our own error's text cut to the room; nothing else of ours can be long."""
    excess = _size(headers) - room
    error = headers.get(_ERROR)
    if excess <= 0 or not isinstance(error, str):
        return headers
    data = error.encode()
    fits = max(0, len(data) - excess)
    return headers | {_ERROR: data[:fits].decode(errors="ignore")}


def _size(headers: Mapping[str, Any]) -> int:
    return len(encode.field_table(dict(headers)))
