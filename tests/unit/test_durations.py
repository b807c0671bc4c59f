"""Lengths of time are read as people write them, and shown as a column or a sentence needs them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bridge.durations import format_span, in_words, parse_span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("1d12h", timedelta(hours=36)),
        ("2W", timedelta(weeks=2)),
    ],
)
def test_a_span_is_read(text: str, span: timedelta) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-1h", "1h2d", "99999999h", "½h"])
def test_text_that_is_not_a_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no span of time such as"):
        parse_span(text)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (7300, "2h"), (200_000, "2d")]
)
def test_a_span_is_shown_by_its_largest_unit(seconds: float, shown: str) -> None:
    assert format_span(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize("text", ["0s", "59s", "1m", "2h", "200d"])
def test_a_span_that_is_shown_can_be_read_again(text: str) -> None:
    assert format_span(parse_span(text)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
