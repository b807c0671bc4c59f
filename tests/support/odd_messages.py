"""Messages that no well-meaning publisher sends, generated, and the means to publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from pamqp import encode

from bridge.rabbitmq import codec


@contextmanager
def any_bytes_in_strings() -> Iterator[None]:
    """Let this process publish strings that are no UTF-8, written with surrogates."""

    def lax(value: str) -> bytes:
        data = value.encode("utf-8", "surrogateescape")[:255]
        return bytes([len(data)]) + data

    def lax_long(value: str) -> bytes:
        data = value.encode("utf-8", "surrogateescape")
        return len(data).to_bytes(4, "big") + data

    codec.install()
    before = encode.METHODS["shortstr"], encode.long_string
    encode.METHODS["shortstr"], encode.long_string = lax, lax_long
    try:
        yield
    finally:
        encode.METHODS["shortstr"], encode.long_string = before


def nested(depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {"end": 1}
    for _ in range(depth):
        table = {"n": table}
    return table


texts = st.text(st.characters(codec=None, exclude_categories=[]), max_size=40).map(
    lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
)
leaves = st.one_of(
    texts,
    st.binary(max_size=20).map(bytearray),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),  # RabbitMQ itself takes no others
    st.decimals(-(10**6), 10**6, places=2),
    st.none(),
)
names = st.text(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
input_names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,10}", fullmatch=True)
label_names = st.from_regex(r"[acd-z][a-z0-9_-]{0,10}", fullmatch=True)
jobs = st.fixed_dictionaries(
    {"inputs": st.dictionaries(input_names, jsons, max_size=3)},
    optional={
        "flow": st.sampled_from(["test/job", "test/other", "elsewhere/job"]),
        "labels": st.dictionaries(label_names, st.text(max_size=20), max_size=3),
        "timeout": st.integers(1, 10**6) | st.floats(1, 10**6),
    },
)
encoded = (jobs | jsons).map(lambda value: json.dumps(value).encode())
bodies = st.one_of(
    st.binary(max_size=200),
    encoded,
    jobs.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.fixed_dictionaries(
        {},
        optional={
            "flow": st.just("test/job") | st.text(),
            "inputs": jsons,
            "labels": jsons,
            "timeout": jsons,
        },
    ).map(lambda value: json.dumps(value).encode()),
    st.tuples(encoded, st.integers(0, 200), st.binary(max_size=2)).map(
        lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] + 1 :]
    ),
    st.tuples(encoded, st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"])).map(
        lambda pair: pair[0].decode().encode(pair[1])
    ),
    st.integers(1, 50_000).map(
        lambda depth: b'{"inputs": {"a": ' + b"[" * depth + b"]" * depth + b"}}"
    ),
    st.integers(1, 10_000).map(
        lambda digits: b'{"inputs": {"a": 1' + b"0" * digits + b'}, "timeout": 5}'
    ),
    st.integers(1, 2_000).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
)
own_headers = st.sampled_from(
    [
        "x-bridge-attempt",
        "x-bridge-first-attempt",
        "x-bridge-reason",
        "x-bridge-queue",
        "x-death",
        "x-delivery-count",
    ]
)
copies = st.lists(
    st.text(max_size=20), max_size=3
)  # RabbitMQ closes the channel over anything else
properties = st.fixed_dictionaries(
    {},
    optional={
        "message_id": texts,
        "correlation_id": texts,
        "reply_to": texts,
        "content_type": texts,
        "content_encoding": texts,
        "message_type": texts,
        "app_id": texts,
        "cluster_id": texts,
        "priority": st.integers(0, 255),
        "delivery_mode": st.sampled_from([1, 2]),
        "expiration": st.integers(10**8, 10**9).map(str),
        "timestamp": st.datetimes(
            datetime(1970, 1, 2),  # noqa: DTZ001
            datetime(9999, 12, 30),  # noqa: DTZ001
            timezones=st.just(UTC),
        ),
        "headers": st.fixed_dictionaries({}, optional={"CC": copies, "BCC": copies}).flatmap(
            lambda routing: st.dictionaries(own_headers | names, values, max_size=4).map(
                lambda found: found | routing
            )
        ),
    },
)


def drawn(count: int, seed: int | None = None) -> list[tuple[bytes, dict[str, Any]]]:
    """So many messages, as different from each other as Hypothesis makes them; the same ones for
    the same seed."""
    messages: list[tuple[bytes, dict[str, Any]]] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies, properties)
    def draw(body: bytes, some: dict[str, Any]) -> None:
        messages.append((body, some))

    (draw if seed is None else with_seed(seed)(draw))()
    return messages
