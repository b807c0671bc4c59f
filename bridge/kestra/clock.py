"""How far another machine's clock is from ours, as far as HTTP and what it dates tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

PLAUSIBLE = timedelta(seconds=60)
"""A server whose clock seems further off than that is more likely behind a gateway whose clock
is."""

LONGEST_WAIT = 300.0


def skew(date: str | None) -> timedelta | None:
    """How far the clock that wrote an answer's `Date` header is ahead of ours; None where that
    can't be told.

    The header counts whole seconds: what is within two of them may be no difference at all, and
    counts as none.
    """
    try:
        ahead = parsedate_to_datetime(date or "") - datetime.now(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
    return ahead if abs(ahead) > timedelta(seconds=2) else timedelta()


def seconds_until(retry_after: str | None) -> float:
    """How long a `Retry-After` header asks to wait, in seconds, at most five minutes; 0 where it
    can't be read.

    It holds seconds or a date (RFC 9110, 10.2.3).
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    try:
        wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_WAIT)


class ServerClock:
    """A server's clock, by what the server itself dates and, until it has dated something, by its
    answers' headers.

    A `Date` header may be a gateway's. Where it is implausibly far from our clock, it moves a
    deadline back and never forward: to kill a job too late is the smaller harm.
    """

    def __init__(self) -> None:
        self._by_header = timedelta()
        self._own: timedelta | None = None

    @property
    def skew(self) -> timedelta:
        """How far the server's clock is ahead of ours, to about a second."""
        return self._by_header if self._own is None else self._own

    @property
    def doubtful(self) -> bool:
        """Whether the headers tell a time that is far from ours and that the server itself has not
        confirmed.
        """
        known = timedelta() if self._own is None else self._own
        return abs(self._by_header - known) > PLAUSIBLE

    def now(self) -> datetime:
        """The time by the server's clock."""
        ahead = self.skew
        if self._own is None and ahead > PLAUSIBLE:
            ahead = timedelta()
        return datetime.now(UTC) + ahead

    def note_header(self, date: str | None) -> None:
        """Take note of an answer's `Date` header."""
        if (ahead := skew(date)) is not None:
            self._by_header = ahead

    def note_dated(self, moment: datetime | None, *, between: tuple[datetime, datetime]) -> None:
        """Take note of a moment that the server dated itself, and that lay between those two of
        ours.
        """
        if moment is None:
            return
        earliest, latest = between
        late, early = moment - latest, moment - earliest
        self._own = max(late, timedelta()) + min(early, timedelta())
