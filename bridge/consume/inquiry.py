"""Which ended executions the reporter asks Kestra for, and what Kestra need not read for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bridge.job.execution import Execution

QUIET = 120.0
"""While nothing ends, questions go back so many seconds before now: more than Kestra's clock can be
misjudged by."""
LONGEST = 86400.0
"""No question reads what started more seconds ago. The end of what ran for longer shows in the
list."""
FIRST = 600.0
"""The same for the first questions, for which no oldest start is known. The first list follows
them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far questions go back, in seconds, and the number of executions in their pages.

    They ask for what ended `overlap` before the latest end that is known, or later: an end can be
    seen late. They leave out what started `unseen` before the oldest unfinished execution: an
    execution can be seen late as well.
    """

    overlap: float
    unseen: float
    page: int


QUICK = Reach(overlap=1.0, unseen=15.0, page=100)
DEEP = Reach(overlap=15.0, unseen=120.0, page=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What has ended since a moment and started since another, in pages of so many executions."""

    ended: datetime
    started: datetime
    page: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OldestStart:
    """The earliest start of what had not ended when that was asked; None where it isn't known."""

    asked: datetime
    start: datetime | None


class Inquiry:
    """Questions that follow each other, from `latest` on.

    Kestra counts all that a question reads, so each reads no more than it must. What ends after an
    answer had not ended before it, or had not started. So the oldest execution that had not ended
    before one question limits what the next one reads. Times are those of Kestra's clock.
    """

    def __init__(self, latest: datetime, reach: Reach) -> None:
        self.latest = latest
        self.oldest: OldestStart | None = None
        self._reach = reach

    def question(self, now: datetime) -> Question:
        """The next question."""
        oldest = self.oldest.start if self.oldest else None
        return Question(
            ended=ask_from(self.latest, now, overlap=self._reach.overlap),
            started=read_from(oldest, now, unseen=self._reach.unseen),
            page=self._reach.page,
        )

    def answered(self, latest: datetime, oldest: OldestStart) -> None:
        """Go on after a question whose answer was read to its end.

        `latest` is the latest end that is known now, `oldest` was asked for before the question.
        """
        self.latest, self.oldest = latest, oldest


def ask_from(latest: datetime, now: datetime, *, overlap: float) -> datetime:
    """The moment from which on to ask for ends.

    `latest` is the latest end that is known. One that is ahead of now was dated by a node whose
    clock is wrong, and must not hide what others date.
    """
    earliest = now - timedelta(seconds=QUIET)
    return max(min(latest, now), earliest) - timedelta(seconds=overlap)


def read_from(oldest: datetime | None, now: datetime, *, unseen: float) -> datetime:
    """The moment from which on executions must have started for a question to read them."""
    if oldest is None:
        return now - timedelta(seconds=FIRST)
    return max(oldest - timedelta(seconds=unseen), now - timedelta(seconds=LONGEST))


def oldest_of(execution: Execution | None, asked: datetime) -> OldestStart:
    """The earliest start, by the oldest unfinished execution, if there was one at that moment."""
    if execution is None:
        return OldestStart(asked=asked, start=asked)
    if execution.started is None:
        return OldestStart(asked=asked, start=None)
    return OldestStart(asked=asked, start=min(asked, execution.started))


def latest_end(latest: datetime, ended: Iterable[Execution]) -> datetime:
    """The latest of that moment and these ends."""
    return max([latest, *(execution.ended for execution in ended if execution.ended)])
