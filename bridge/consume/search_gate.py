"""Finds out whether Kestra's searches are slow, and lets few through until that is known.

A search by label makes a Kestra on H2 or MySQL read every execution of the time that is asked for,
20 µs each on H2 (2.0, tried): the longer the history, the more each message costs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from bridge.kestra import DEFAULT_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSearches:
    """When searches count as slow. Times in seconds.

    Searches that follow one another, `in_a_row` of them, and each take `longer_by` more than a
    request by an index (the probe's), are no coincidence, and the way to Kestra is not the reason.
    `believed_for` bounds what a Kestra that was slow only for a moment costs each fresh message.
    """

    longer_by: float = 0.03
    in_a_row: int = 3
    believed_for: float = 600.0


class SearchGate:
    """Measures searches. Callers hold `turn` during one.

    Searches run one at a time until one was quick, as a slow one costs Kestra much. From then on as
    many run at once as the client lets through anyway.
    """

    def __init__(self, policy: SlowSearches = SlowSearches()) -> None:
        self.turn = asyncio.Semaphore(1)
        self._policy = policy
        self._all_at_once = False
        self._slow = 0
        self._slow_until = self._unlistable_until = self._counted = -policy.believed_for

    @property
    def slow(self) -> bool:
        """Whether searches are slow, and listing is not known to be worse."""
        return self._unlistable_until < time.monotonic() < self._slow_until

    def note_search(self, seconds: float, *, usual: float) -> None:
        """Count a search that has just been answered; `usual` is what a request by an index takes.

        Searches that waited at the same time count as one.
        """
        now = time.monotonic()
        if seconds - usual <= self._policy.longer_by:
            self._slow = 0
            self._open()
        elif now - seconds >= self._counted:
            self._slow, self._counted = self._slow + 1, now
        if self._slow >= self._policy.in_a_row:
            self._slow, self._slow_until = 0, now + self._policy.believed_for

    def prefer_searches(self) -> None:
        """Let everybody search for a while: there is too much to list."""
        self._unlistable_until = time.monotonic() + self._policy.believed_for
        self._open()

    def _open(self) -> None:
        if not self._all_at_once:
            self._all_at_once = True
            for _ in range(DEFAULT_LIMITS.concurrent_questions - 1):
                self.turn.release()
