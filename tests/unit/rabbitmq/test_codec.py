"""Whatever bytes a publisher put into properties and headers, the message arrives, and can be
published again."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiormq.connection import Connection as AmqpConnection
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode, frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bridge.rabbitmq import codec
from bridge.text import encodable, printable, short


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    """The decoders are the process's; other tests get back those that they had."""
    methods, mapping, encoder = (
        dict(decode.METHODS),
        dict(decode.TABLE_MAPPING),
        encode.encode_table_value,
    )
    codec.install()
    yield
    decode.METHODS.update(methods)
    decode.TABLE_MAPPING.update(mapping)
    encode.encode_table_value = encoder


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def entry(key: bytes, value: bytes) -> bytes:
    return bytes([len(key)]) + key + value


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


def decoded(raw: bytes) -> Any:
    """A table as it is decoded when it comes; the whole of it must be consumed."""
    consumed, value = decode.by_type(raw, "table")
    assert consumed == len(raw)
    return value


def properties(**given: Any) -> Basic.Properties:
    """Properties that have been on the wire."""
    sent = Basic.Properties(**given).marshal()
    arrived = Basic.Properties()
    (flags,) = struct.unpack(">H", sent[:2])
    arrived.unmarshal(flags, sent[2:])
    return arrived


class TestPamqp:
    """Has all that is replaced still where it was, and uses what replaces it."""

    @pytest.mark.parametrize(
        ("decoder", "own"),
        [
            ("METHODS['shortstr']", "short_str"),
            ("METHODS['timestamp']", "timestamp"),
            ("TABLE_MAPPING[b'T']", "timestamp"),
            ("METHODS['table']", "field_table"),
            ("TABLE_MAPPING[b'F']", "field_table"),
            ("METHODS['array']", "field_array"),
            ("TABLE_MAPPING[b'A']", "field_array"),
        ],
    )
    def test_decodes_by_the_functions_that_are_replaced(self, decoder: str, own: str) -> None:
        # In a process of its own, as nothing is replaced there.
        check = f"from pamqp import decode; raise SystemExit(decode.{decoder} is not decode.{own})"
        assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

    def test_reads_a_whole_frame_by_what_replaces_them(self) -> None:
        headers = table(
            entry(b"\xff", text(b"x"))
            + entry(b"t", b"T" + b"\xff" * 8)
            + entry(b"a", b"A" + table(b"T" + b"\xff" * 8))
        )
        content = (
            struct.pack(">HHQH", 60, 0, 0, 1 << 13 | 1 << 7 | 1 << 6)
            + headers
            + b"\x01\xfe"
            + b"\xff" * 8
        )
        _, _, arrived = frame.unmarshal(b"\x02\x00\x01" + table(content) + b"\xce")
        assert isinstance(arrived, ContentHeader)
        assert (
            arrived.properties.headers,
            arrived.properties.message_id,
            arrived.properties.timestamp,
        ) == (
            {"\udcff": "x", "t": None, "a": [None]},
            "\udcfe",
            None,
        )

    def test_writes_numbers_in_tables_and_in_arrays_by_what_replaces_its_own(self) -> None:
        double = b"d" + struct.pack(">d", 1e300)
        sent = Basic.Properties(headers={"a": 1e300, "b": [1e300]}).marshal()
        assert sent.count(double) == 2


class TestShortString:
    @given(st.binary(max_size=255))
    def test_of_any_bytes_is_a_text_that_tells_them(self, raw: bytes) -> None:
        consumed, value = decode.by_type(bytes([len(raw)]) + raw + b"rest", "shortstr")
        assert (consumed, str(value).encode("utf-8", "surrogateescape")) == (len(raw) + 1, raw)

    @given(st.binary(max_size=255))
    def test_of_any_bytes_can_be_published_again(self, raw: bytes) -> None:
        _, value = decode.by_type(bytes([len(raw)]) + raw, "shortstr")
        assert len(encode.short_string(short(str(value)))) <= 256

    def test_shows_bytes_that_are_no_text(self) -> None:
        assert printable(b"a\xffb".decode("utf-8", "surrogateescape")) == r"a\xffb"

    def test_is_cut_between_characters(self) -> None:
        assert short("ü" * 200) == "ü" * 127


class TestTimestamp:
    def test_is_a_moment(self) -> None:
        assert decode.by_type(struct.pack(">Q", 1_700_000_000), "timestamp") == (
            8,
            datetime.fromtimestamp(1_700_000_000, UTC),
        )

    @pytest.mark.parametrize("seconds", [2**64 - 1, 2**63, 10**18])
    def test_past_the_year_9999_is_none(self, seconds: int) -> None:
        assert decode.by_type(struct.pack(">Q", seconds), "timestamp") == (8, None)

    @given(st.integers(0, 2**64 - 1))
    def test_of_any_number_can_be_published_again(self, seconds: int) -> None:
        value = decoded(table(entry(b"t", b"T" + struct.pack(">Q", seconds))))
        encode.field_table(encodable(value))


class TestTable:
    @given(st.binary(max_size=200))
    def test_of_any_bytes_is_a_table_or_nothing(self, content: bytes) -> None:
        assert isinstance(decoded(table(content)), dict | None)

    @given(
        st.lists(
            st.tuples(
                st.binary(max_size=9),
                st.sampled_from(b"tbBsuIilLfdDSATFVx\0?"),
                st.binary(max_size=20),
            )
        )
    )
    def test_of_likely_entries_is_a_table_or_nothing_that_can_be_published_again(
        self, entries: list[tuple[bytes, int, bytes]]
    ) -> None:
        value = decoded(
            table(b"".join(entry(key, bytes([kind]) + rest) for key, kind, rest in entries))
        )
        assert isinstance(value, dict | None)
        encode.field_table(encodable(value or {}))

    def test_takes_a_key_that_is_no_text(self) -> None:
        value = decoded(table(entry(b"\xff", text(b"x"))))
        assert encodable(value) == {r"\xff": "x"}

    def test_with_an_unknown_kind_of_value_is_nothing(self) -> None:
        assert decoded(table(entry(b"a", b"?xyz"))) is None

    @pytest.mark.parametrize("depth", [33, 1000, 10_000])
    @pytest.mark.parametrize("kind", [b"F", b"A"])
    def test_nested_too_deeply_is_cut_off(self, kind: bytes, depth: int) -> None:
        content = b""
        for _ in range(depth):
            content = entry(b"k", b"F" + table(content)) if kind == b"F" else b"A" + table(content)
        value = decoded(table(content if kind == b"F" else entry(b"k", content)))
        levels = 0
        while value:
            value = value["k"] if isinstance(value, dict) else value[0]
            levels += 1
        assert levels < codec.MAX_DEPTH + 1

    def test_after_a_deep_one_is_decoded_whole(self) -> None:
        content = b""
        for _ in range(100):
            content = entry(b"k", b"F" + table(content))
        decoded(table(content))
        assert decoded(table(entry(b"a", b"F" + table(entry(b"b", b"t\x01"))))) == {
            "a": {"b": True}
        }


EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (hypothesis wants it without a zone)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.datetimes(EPOCH, EPOCH + timedelta(days=49_000)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    )
    | st.binary(max_size=10).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=15,
)


class TestRoundTrip:
    @given(st.dictionaries(st.text(max_size=20), VALUES, max_size=5))
    def test_changes_no_header(self, headers: dict[str, Any]) -> None:
        assert decoded(encode.field_table(encodable(headers))) == headers

    @given(
        st.dictionaries(st.text(max_size=20), VALUES, min_size=1, max_size=5), st.text(max_size=60)
    )
    def test_changes_no_property(self, headers: dict[str, Any], message_id: str) -> None:
        arrived = properties(headers=headers, message_id=message_id, priority=3, delivery_mode=2)
        assert (arrived.headers, arrived.message_id or "", arrived.priority) == (
            headers,
            message_id,
            3,
        )

    @pytest.mark.parametrize(
        ("raw", "again"),
        [
            (text(b"a\xff"), bytearray(b"a\xff")),
            (b"d" + struct.pack(">d", 1e300), 1e300),
            (b"d" + struct.pack(">d", 0.1), 0.1),
            (b"f" + struct.pack(">f", 0.5), 0.5),
            (b"d" + struct.pack(">d", math.inf), math.inf),
            (b"D" + struct.pack(">BI", 2, 12345), Decimal("123.45")),
            (b"D" + struct.pack(">Bi", 255, -(2**31)), Decimal(-(2**31)).scaleb(-255)),
            (b"L" + struct.pack(">q", -(2**63)), -(2**63)),
            (b"V", None),
        ],
        ids=[
            "bytes",
            "large double",
            "double",
            "float",
            "infinity",
            "decimal",
            "small decimal",
            "long",
            "void",
        ],
    )
    def test_keeps_what_pamqp_alone_could_not_publish_again(self, raw: bytes, again: Any) -> None:
        value = decoded(table(entry(b"k", raw)))
        assert decoded(encode.field_table(encodable(value))) == {"k": again}

    @given(st.binary(max_size=100), st.binary(max_size=30))
    def test_of_any_header_bytes_arrives_beside_the_other_properties(
        self, content: bytes, message_id: bytes
    ) -> None:
        """Flags of `headers` and `message_id`, and their raw bytes, as a broker passes them on."""
        arrived = Basic.Properties()
        arrived.unmarshal(1 << 13 | 1 << 7, table(content) + bytes([len(message_id)]) + message_id)
        assert str(arrived.message_id or "").encode("utf-8", "surrogateescape") == message_id


class TestInstall:
    def test_twice_is_as_good_as_once(self) -> None:
        before = dict(decode.TABLE_MAPPING)
        codec.install()
        assert before == decode.TABLE_MAPPING


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", "/"),
        ("/", "/"),
        ("/%2F", "/"),
        ("/jobs", "jobs"),
        ("/a%2Fb%20%252F", "a/b %2F"),
        ("/%252F", "%2F"),
    ],
)
async def test_a_virtual_host_is_the_one_that_the_address_names(path: str, name: str) -> None:
    codec.install()
    assert AmqpConnection(f"amqp://rabbit{path}").vhost == name
