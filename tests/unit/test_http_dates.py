"""Times in HTTP headers are read as they are meant, or say nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.http_dates import LONGEST_WAIT, seconds_until, skew

UNREADABLE = [
    "",
    " ",
    "yesterday",
    "Tue, 24 Nov 99999999999999999999 07:51:54 GMT",
    "Tue, 24 Nov 2026 07:51:54 -0000",
]


def http_date(ahead: timedelta) -> str:
    return format_datetime(datetime.now(UTC) + ahead, usegmt=True)


class TestSkew:
    @pytest.mark.parametrize("ahead", [timedelta(hours=-3), timedelta(seconds=50)])
    def test_is_how_far_the_other_clock_is_ahead(self, ahead: timedelta) -> None:
        found = skew(http_date(ahead))
        assert found is not None
        assert abs(found - ahead) < timedelta(seconds=3)

    def test_is_zero_within_what_a_date_can_tell(self) -> None:
        assert skew(http_date(timedelta(seconds=1))) == timedelta()

    @pytest.mark.parametrize("date", [None, *UNREADABLE])
    def test_is_unknown_where_the_date_says_nothing(self, date: str | None) -> None:
        assert skew(date) is None

    @given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
    def test_survives_any_date(self, date: str) -> None:
        skew(date)


class TestSecondsUntil:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("7", 7), ("0", 0), ("99999", 300), ("soon", 0), ("-3", 0), ("", 0), ("٣", 0)],
    )
    def test_reads_a_number_of_seconds(self, text: str, seconds: float) -> None:
        assert seconds_until(text) == seconds

    def test_reads_a_date(self) -> None:
        assert 25 < seconds_until(http_date(timedelta(seconds=30))) <= 30

    def test_is_zero_for_a_date_that_has_passed(self) -> None:
        assert seconds_until(http_date(timedelta(hours=-1))) == 0

    def test_is_zero_without_a_header(self) -> None:
        assert seconds_until(None) == 0

    @given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
    def test_is_bounded_whatever_the_header_says(self, text: str) -> None:
        assert 0 <= seconds_until(text) <= LONGEST_WAIT
