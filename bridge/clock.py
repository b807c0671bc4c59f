"""How far another machine's clock is from ours, as far as HTTP tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


def skew(date: str | None) -> timedelta | None:
    """How far the clock that wrote an answer's `Date` header is ahead of ours; None where that can't be told.

    The header counts whole seconds: what is within two of them may be no difference at all, and counts as none.
    """
    try:
        ahead = parsedate_to_datetime(date or "") - datetime.now(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return ahead if abs(ahead) > timedelta(seconds=2) else timedelta()
