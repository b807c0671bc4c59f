"""Delivered messages as the bridge's own, and patches that let AMQP decoding never fail.

pamqp raises on a short string that isn't UTF-8, on a time stamp past year 9999 and on tables nested
too deeply. RabbitMQ accepts such messages, and the error ends aiormq's reader and with it the
connection, so that one message would stop every consumer of its queue for ever. The patched
decoders turn those values into something that can be judged (and refused) one message at a time.
Whatever was decoded can be published again, which pamqp refuses for some values that it has read. A
double stays a double, where pamqp would make it a float of half the size.

A virtual host of any name can be reached: aiormq would turn a `%2F` in it into a slash.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from aiormq.abc import DeliveredMessage
from aiormq.connection import Connection
from pamqp import decode, encode

from bridge.job.message import Message

MAX_DEPTH = 32
"""Deeper nested tables and arrays are dropped: a hundred thousand levels fit into one frame."""

Decoder = Callable[[bytes], tuple[int, Any]]
_depth: ContextVar[int] = ContextVar("amqp_table_depth", default=0)


def install() -> None:
    """Patch pamqp's decoders and encoders, and aiormq's virtual host, for the whole process.
    Repeating it changes nothing.
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


def to_message(message: DeliveredMessage) -> Message:
    """A delivered message as the bridge's own.

    Not through aio-pika's message class, which raises on properties that RabbitMQ accepts (a
    delivery mode of 7, an expiration that is no number): such a message would stay unsettled for
    ever.
    """
    properties = message.header.properties
    return Message(
        body=message.body,
        headers=properties.headers or {},
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=properties.delivery_mode,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        expiration=properties.expiration,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        message_type=properties.message_type,
        user_id=properties.user_id,
        app_id=properties.app_id,
        exchange=message.exchange,
        routing_key=message.routing_key,
    )


def _virtual_host(connection: Any) -> str:
    """The virtual host that a connection's address names, decoded once."""
    return unquote(connection.url.raw_path[1:]) or "/"


_encode_table_value = encode.encode_table_value


def _table_value(value: Any) -> bytes:
    if isinstance(value, float):
        return b"d" + encode.double(value)
    return _encode_table_value(value)


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
