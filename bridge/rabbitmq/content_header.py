"""A message's properties as they go over the wire, kept within one frame.

AMQP sends all properties and headers of a message in one frame, which must not exceed what was
negotiated for the connection (131,072 bytes by default). RabbitMQ closes the connection over one
that does, and with it every delivery goes back. A message that arrived within the limit can exceed
it once our own headers are added, so the largest headers of others are left out then, and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pamqp import encode
from pamqp.commands import Basic

from bridge.job.message import ATTEMPT, DEAD_LETTER_HEADERS, FIRST_ATTEMPT, LEFT_OUT, Message
from bridge.text import encodable, short

RESERVED = 6 * 1024
"""Bytes of a frame that are kept free of headers: for the other properties, which take 3 KiB at
most, and for what RabbitMQ notes in the headers as it moves a message from queue to queue."""

NAMED_AT_MOST = 16
LONGEST_NAME = 100
_ERROR = "x-bridge-error"
_OWN = frozenset({*DEAD_LETTER_HEADERS, ATTEMPT, FIRST_ATTEMPT})
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
    """The message's properties, within a frame of so many bytes (0: of any size)."""
    texts = {name: getattr(message, name) for name in _TEXT_PROPERTIES}
    shortened: dict[str, Any] = {
        name: short(text) for name, text in texts.items() if text is not None
    }
    headers = encodable(dict(message.headers))
    return Basic.Properties(
        headers=fitting(headers, room_for_headers(frame_max)) or None,
        delivery_mode=message.delivery_mode or 2,
        priority=message.priority,
        timestamp=message.timestamp,
        **shortened,
    )


def room_for_headers(frame_max: int) -> int | None:
    """How many bytes all headers may take together; None where frames may be of any size."""
    return max(frame_max - RESERVED, frame_max // 2) if frame_max else None


def fitting(headers: Mapping[str, Any], room: int | None) -> dict[str, Any]:
    """The headers that fit into so many bytes, the largest of others left out and named."""
    kept = dict(headers)
    if room is None or _size(kept) <= room:
        return kept
    before = kept.pop(LEFT_OUT, [])
    left_out = (
        [name for name in before if isinstance(name, str)] if isinstance(before, list) else []
    )
    # Each is measured once: tens of thousands of small ones fit into a frame, too.
    sizes = {name: _size({name: value}) - _size({}) for name, value in kept.items()}
    total = _size({}) + sum(sizes.values())
    for name in sorted(sizes.keys() - _OWN, key=lambda name: (-sizes[name], name)):
        del kept[name]
        left_out.append(name)
        total -= sizes[name]
        if total <= room and total + _size({LEFT_OUT: _named(left_out)}) <= room:
            break
    return _with_short_error(kept | {LEFT_OUT: _named(left_out)}, room)


def _named(names: Sequence[str]) -> list[str]:
    """The names, or the first of them and how many more there are."""
    shown = [name[:LONGEST_NAME] for name in names[:NAMED_AT_MOST]]
    more = len(names) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _with_short_error(headers: dict[str, Any], room: int) -> dict[str, Any]:
    """The headers with as much of our own error's text as there is room for; nothing else of ours
    can be long.
    """
    excess, error = _size(headers) - room, headers.get(_ERROR)
    if excess <= 0 or not isinstance(error, str):
        return headers
    data = error.encode()
    return headers | {_ERROR: data[: max(0, len(data) - excess)].decode(errors="ignore")}


def _size(headers: Mapping[str, Any]) -> int:
    return len(encode.field_table(dict(headers)))
