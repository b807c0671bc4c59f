"""What a replica has read of a lane's ledger, and how much that says."""

from __future__ import annotations

import time

from bridge.consume.ledger import NOBODY, Claim, Claims, LedgerPolicy, Mark, Standing, from_entry


class LedgerView:
    """The claims of a ledger, from as far back as it reaches.

    `incarnation` tells it from a ledger before it, which was deleted. `settled_at` is until when
    creates may be on their way whose claims stood in that one, by the monotonic clock.
    """

    def __init__(self, policy: LedgerPolicy) -> None:
        self.incarnation = NOBODY
        self.settled_at = 0.0
        self._policy = policy
        self._claims = Claims(policy)
        self._began: float | None = None
        self._blind_until = 0.0

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def blind(self) -> bool:
        """Whether the ledger is so young that it lacks executions of its window."""
        return time.time() < self._blind_until

    @property
    def reach(self) -> float:
        """How many seconds back the ledger reaches."""
        if self._began is None:
            return 0.0
        return min(max(0.0, time.time() - self._began), self._policy.window)

    def standing(self, key: int) -> Standing | None:
        """The claim that counts for an attempt."""
        return self._claims.standing(key)

    def begin(self) -> None:
        """Begin to read the ledger from its beginning. What was read before stays known."""
        self._began = None

    def take(self, offset: int, body: bytes) -> int:
        """Take note of the next entry; returns the token of its claim or its mark."""
        note = from_entry(body)
        if note is None:
            return NOBODY
        if self._began is None:
            self._began = note.at
        if isinstance(note, Claim):
            self._claims.read(note, now=time.monotonic())
        elif offset == 0 and note.token != self.incarnation:
            self._begin_anew(note)
        return note.token

    def _begin_anew(self, mark: Mark) -> None:
        """Take note of a ledger that is younger than its window, and new to us.

        What stood in the one before it is forgotten, so that all replicas know the same.
        """
        if self.incarnation != NOBODY:
            self._claims = Claims(self._policy)
        self.incarnation = mark.token
        self._blind_until = 0.0 if mark.complete else mark.at + self._policy.window
        if self.blind and time.time() - mark.at < self._policy.settling:
            self.settled_at = time.monotonic() + self._policy.grace
