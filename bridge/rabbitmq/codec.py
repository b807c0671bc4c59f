"""Make AMQP decoding total: whatever bytes a publisher put into properties and headers, a delivery
arrives.

pamqp raises on a short string that isn't UTF-8, on a time stamp past year 9999 and on tables nested
too deeply. RabbitMQ takes such messages, and the error ends aiormq's reader and with it the
connection, so that one message would keep every consumer of its queue from working for ever. Here
those values are decoded to something that can be judged (and refused) one message at a time. What
was decoded can be published again, which pamqp refuses of some values that it has read, and a
double stays one, where pamqp would make it a float of half the size.

A virtual host is reached by any name: of a `%2F` in it aiormq would make a slash.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from aiormq.connection import Connection
from pamqp import decode, encode

MAX_DEPTH = 32
"""Tables and arrays nested deeper than this are dropped; a hundred thousand levels fit into one
frame."""

Decoder = Callable[[bytes], tuple[int, Any]]
_depth: ContextVar[int] = ContextVar("amqp_table_depth", default=0)


def install() -> None:
    """Replace some of pamqp's decoders and encoders for this process; doing it twice changes
    nothing.
    """
    if decode.METHODS["shortstr"] is _short_string:
        return
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _never_failing(
        decode.timestamp, length=lambda _: 8
    )
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _nested(_table, instead={})
    decode.METHODS["array"] = decode.TABLE_MAPPING[b"A"] = _nested(decode.field_array, instead=[])
    encode.encode_table_value = _table_value
    Connection.vhost = property(_virtual_host, lambda *_: None)  # type: ignore[assignment]


def _virtual_host(connection: Any) -> str:
    """The virtual host that a connection's address names, decoded once."""
    return unquote(connection.url.raw_path[1:]) or "/"


_encode_table_value = encode.encode_table_value


def _table_value(value: Any) -> bytes:
    return b"d" + encode.double(value) if isinstance(value, float) else _encode_table_value(value)


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", "surrogateescape")


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    end = 4 + struct.unpack(">I", value[:4])[0]
    offset, data = 4, {}
    while offset < end:
        consumed, key = _short_string(value[offset:])
        offset += consumed
        consumed, data[key] = decode.embedded_value(value[offset:end])
        offset += consumed
    return end, data


def _nested(decoder: Decoder, *, instead: Any) -> Decoder:
    def decode_at_depth(value: bytes) -> tuple[int, Any]:
        depth = _depth.get()
        if depth >= MAX_DEPTH:
            return _prefixed(value), instead
        token = _depth.set(depth + 1)
        try:
            return decoder(value)
        finally:
            _depth.reset(token)

    return _never_failing(decode_at_depth, length=_prefixed)


def _never_failing(decoder: Decoder, *, length: Callable[[bytes], int]) -> Decoder:
    def decode_or_nothing(value: bytes) -> tuple[int, Any]:
        try:
            return decoder(value)
        except (ValueError, OverflowError, OSError, IndexError, struct.error):
            return length(value), None

    return decode_or_nothing


def _prefixed(value: bytes) -> int:
    return 4 + int(struct.unpack(">I", value[:4])[0])
