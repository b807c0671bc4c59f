"""What time it is on the Kestra server, by whose clock executions are dated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge import http_dates

PLAUSIBLE = timedelta(seconds=60)
"""A `Date` header further off than this more likely comes from a gateway with a wrong clock."""


class ServerClock:
    """An estimate of a server's clock.

    It follows the moments that the server itself dates and, until there is one, the `Date` headers
    of its answers. A header may be a gateway's. Where it is implausibly far ahead of our clock, it
    counts for nothing, so that it brings no deadline forward: to kill a job too late is the smaller
    harm.
    """

    def __init__(self) -> None:
        self._by_header = timedelta()
        self._by_server: timedelta | None = None

    @property
    def skew(self) -> timedelta:
        """How far the server's clock is ahead of ours, to about a second."""
        if self._by_server is None:
            return self._by_header
        return self._by_server

    @property
    def doubtful(self) -> bool:
        """Whether the headers are far from our clock, and from what the server itself dated."""
        confirmed = self._by_server or timedelta()
        return abs(self._by_header - confirmed) > PLAUSIBLE

    def now(self) -> datetime:
        """The time by the server's clock, to about a second."""
        ahead = self.skew
        if self._by_server is None and ahead > PLAUSIBLE:
            ahead = timedelta()
        return datetime.now(UTC) + ahead

    def note_header(self, date: str | None) -> None:
        """Take note of an answer's `Date` header."""
        ahead = http_dates.skew(date)
        if ahead is not None:
            self._by_header = ahead

    def note_dated(self, moment: datetime | None, *, between: tuple[datetime, datetime]) -> None:
        """Take note of a moment that the server dated, between two moments by our clock."""
        if moment is None:
            return
        earliest, latest = between
        too_late = max(moment - latest, timedelta())
        too_early = min(moment - earliest, timedelta())
        self._by_server = too_late + too_early
