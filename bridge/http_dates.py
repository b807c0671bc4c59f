"""Times in HTTP headers: the clock of another machine, and a wait that it asks for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is asked again after these all the same."""

RESOLUTION = timedelta(seconds=2)
"""A `Date` header counts whole seconds, so a smaller difference may be none at all."""


def skew(date: str | None) -> timedelta | None:
    """How far the clock that wrote an answer's `Date` header is ahead of ours.

    Zero for a difference within the header's resolution; None for a header that can't be read.
    """
    moment = _parse(date or "")
    if moment is None:
        return None
    ahead = moment - datetime.now(UTC)
    if abs(ahead) <= RESOLUTION:
        return timedelta()
    return ahead


def seconds_until(retry_after: str | None) -> float:
    """How long a `Retry-After` header asks to wait, in seconds: 0 to `LONGEST_WAIT`.

    It holds seconds or a date (RFC 9110, 10.2.3). 0 where it holds neither.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    moment = _parse(text)
    if moment is None:
        return 0.0
    wait = (moment - datetime.now(UTC)).total_seconds()
    return min(max(wait, 0.0), LONGEST_WAIT)


def _parse(date: str) -> datetime | None:
    """The moment that a date names; None for one without a time zone too, which says nothing."""
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        return None
    return moment
