"""What a message's headers become where they would not fit into a frame."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.header import ContentHeader

from bridge.job.message import ATTEMPT, DEAD_LETTER_HEADERS, LEFT_OUT, Message
from bridge.rabbitmq import codec
from bridge.rabbitmq.content_header import NAMED_AT_MOST, fitting, properties_of, room_for_headers

FRAME = 131_072
OVERHEAD = 8
"""Bytes of a frame around what it carries."""

codec.install()


def sent(headers: dict[str, Any], frame_max: int = FRAME) -> dict[str, Any]:
    """The headers that go out."""
    return dict(properties_of(Message(body=b"", headers=headers), frame_max).headers or {})


def size_of_frame(message: Message, frame_max: int = FRAME) -> int:
    return OVERHEAD + len(
        ContentHeader(0, len(message.body), properties_of(message, frame_max)).marshal()
    )


def test_headers_that_fit_are_left_as_they_are() -> None:
    headers = {"a": "x" * 1000, "b": [1, {"c": None}], ATTEMPT: 2}
    assert sent(headers) == headers


def test_the_largest_goes_and_is_named() -> None:
    assert sent({"large": "x" * 130_000, "small": 1}) == {"small": 1, LEFT_OUT: ["large"]}


def test_no_more_go_than_have_to() -> None:
    headers = {name: "x" * size for name, size in (("a", 60_000), ("b", 50_000), ("c", 40_000))}
    assert sent(headers).keys() == {"b", "c", LEFT_OUT}


def test_our_own_stay() -> None:
    ours = dict.fromkeys((*DEAD_LETTER_HEADERS, ATTEMPT), "ours")
    assert ours.items() <= sent({**ours, "large": "x" * 200_000}).items()


def test_what_had_been_left_out_before_stays_named() -> None:
    assert sent({LEFT_OUT: ["first"], "second": "x" * 200_000})[LEFT_OUT] == ["first", "second"]


@pytest.mark.parametrize("before", ["no list", {"a": 1}, [1, None], ["x" * 200_000]])
def test_what_somebody_else_put_under_that_name_does_no_harm(before: Any) -> None:
    message = Message(body=b"", headers={LEFT_OUT: before, "large": "x" * 200_000})
    assert size_of_frame(message) <= FRAME


def test_of_very_many_the_first_are_named_and_the_rest_counted() -> None:
    named = sent({f"h{number:04}": "x" * 2000 for number in range(500)}, 8192)[LEFT_OUT]
    assert (len(named), named[-1].startswith("and "), named[-1].endswith(" more")) == (
        NAMED_AT_MOST + 1,
        True,
        True,
    )


def test_very_many_small_ones_are_no_hold_up() -> None:
    """Measured all anew for each that goes, this takes many minutes."""
    message = Message(body=b"", headers={f"h{number}": True for number in range(60_000)})
    assert size_of_frame(message) <= FRAME


def test_an_error_of_ours_that_is_too_long_is_cut() -> None:
    headers = {"x-bridge-error": "é" * 200_000, "x-bridge-reason": "failed"}
    assert size_of_frame(Message(body=b"", headers=headers)) <= FRAME


def test_frames_of_any_size_take_everything() -> None:
    assert sent({"large": "x" * 1_000_000}, 0) == {"large": "x" * 1_000_000}


@pytest.mark.parametrize("frame_max", [4096, 8192, FRAME])
def test_some_room_is_left_in_every_frame(frame_max: int) -> None:
    room = room_for_headers(frame_max)
    assert room is not None
    assert frame_max / 2 <= room < frame_max


def test_none_is_left_out_without_a_limit() -> None:
    assert fitting({"a": "x" * 1000}, None) == {"a": "x" * 1000}


_values = st.recursive(
    st.text(max_size=3000)
    | st.integers(-(2**63), 2**63 - 1)
    | st.none()
    | st.binary(max_size=50).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from([*DEAD_LETTER_HEADERS, LEFT_OUT]) | st.text(max_size=200),
        _values,
        max_size=12,
    )
)
def test_whatever_the_headers_are_the_frame_is_not_exceeded(headers: dict[str, Any]) -> None:
    texts: dict[str, Any] = dict.fromkeys(
        ("correlation_id", "reply_to", "app_id", "content_type"), "ü" * 200
    )
    ours = {"x-bridge-reason": "failed", "x-bridge-queue": "q" * 200}
    message = Message(body=b"", headers=headers | ours, message_id="m" * 255, **texts)
    assert size_of_frame(message, 8192) <= 8192
