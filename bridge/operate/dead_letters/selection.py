"""Which dead letters a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from bridge.job.flow_name import allowed
from bridge.operate.dead_letters.letter import DeadLetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Filters that a letter must pass, all of them. An empty selection means every letter."""

    names: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    flows: Sequence[str] = ()
    jobs: Sequence[str] = ()
    error: str = ""
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __contains__(self, letter: DeadLetter) -> bool:
        if self.names and self.names.isdisjoint((letter.name, letter.job)):
            return False
        if self.reasons and letter.reason not in self.reasons:
            return False
        if self.error.casefold() not in letter.error.casefold():
            return False
        return self._has_flow(letter) and self._has_id(letter) and self._has_age(letter)

    @property
    def means_all(self) -> bool:
        """Whether there is no filter."""
        return self == Selection(now=self.now)

    def _has_flow(self, letter: DeadLetter) -> bool:
        if not self.flows:
            return True
        return letter.flow is not None and allowed(letter.flow, self.flows)

    def _has_id(self, letter: DeadLetter) -> bool:
        if not self.jobs:
            return True
        return any(fnmatchcase(letter.name, pattern) for pattern in self.jobs)

    def _has_age(self, letter: DeadLetter) -> bool:
        if self.older_than is None and self.newer_than is None:
            return True
        age = letter.age(self.now)
        if age is None:
            return False
        return (self.older_than or timedelta()) <= age <= (self.newer_than or timedelta.max)
