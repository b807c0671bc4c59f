"""The rules of the ledger: who may create the execution of an attempt. Pure: entries in, steps out.

Replicas write claims to a stream, which has one order for all that read it. Of the claims of one
round the first one counts. Whoever made it creates the execution. Everybody else has *contended*:
the claim that counts knows from then on that somebody looks for its execution, and has to be
renewed, with a claim of the next round, before another create call is sent. So once a claim was
contended and not renewed for as long as the adopt grace, which is longer than a create call lasts,
no create of that claim is on its way any more. Where none of them came true, a contender supersedes
the claim with one of the next round, of which again the first counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from hashlib import blake2b

from pydantic_core import from_json

from bridge.job.attempt import AttemptKey
from bridge.retrying import BackOff

NOBODY = 0
"""The token of a claim that gives an attempt back: whoever claims the next round need not wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPolicy:
    """How claims are kept and awaited. Times in seconds.

    At most `most` claims are remembered, and each for `window`. A claim that was contended is
    superseded after `grace`. A start waits for a ledger that is away for up to `patience` since it
    went, or since a session began. A ledger that answers none of the claims that wait is given up
    after `answer`. `back_off` is for connecting again.

    A ledger that is `settling` is so young that creates may be on their way whose claims stood in
    the ledger before it, which was deleted. Claims that are as old are written to it again.
    """

    most: int = 200_000
    window: float = 604_800.0
    grace: float = 10.0
    patience: float = 15.0
    answer: float = 10.0
    settling: float = 60.0
    back_off: BackOff = field(default_factory=lambda: BackOff(longest=2.0))


@dataclass(frozen=True, slots=True)
class Claim:
    """A replica's wish to create the execution of an attempt.

    `token` is the claim's own, and `at` when it was made, in Unix seconds by its replica's clock.
    """

    key: int
    round: int
    token: int
    at: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A replica's note that it begins to read, by which it knows later how far it has read.

    `complete`: no attempt of the lane had an execution yet that is not in the ledger. It counts
    only where the mark is the ledger's first entry.
    """

    token: int
    at: float
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """The claim that counts for an attempt.

    `contended` is when the first other claim of its round was read, in monotonic seconds.
    """

    claim: Claim
    contended: float | None = None

    def superseded_from(self, grace: float) -> float:
        """From when on a contender may supersede the claim that has looked in vain since then."""
        assert self.contended is not None, "nobody has contended"
        return self.contended + grace


class Step(Enum):
    """What a claimant is to do."""

    CLAIM = auto()
    """Nobody has claimed the attempt: claim its first round."""
    CREATE = auto()
    """Its claim counts: create the execution."""
    RENEW = auto()
    """Its claim counts and was contended: claim the next round before a create."""
    CONTEND = auto()
    """Another claim counts, uncontended: claim its round, so that its claimant knows."""
    LOOK_UP = auto()
    """Another claim counts, contended: look for its execution, and supersede it in the end."""
    SUPERSEDE = auto()
    """Nobody's claim counts: claim the next round."""


def counted(standing: Standing | None, claim: Claim, *, now: float, window: float) -> Standing:
    """The claim that counts once another one is read, at that moment (monotonic).

    A claim that is as old as `window` when the other is made is forgotten.
    """
    if standing is None:
        return Standing(claim)
    other = standing.claim
    if claim.token == other.token:
        return standing
    if claim.round > other.round or claim.at - other.at > window:
        return Standing(claim)
    if claim.round < other.round or standing.contended is not None:
        return standing
    return replace(standing, contended=now)


def step(standing: Standing | None, token: int | None) -> Step:
    """What a claimant is to do; `token` is that of its latest claim, None before the first."""
    if standing is None:
        return Step.CLAIM
    if standing.claim.token == NOBODY:
        return Step.SUPERSEDE
    contended = standing.contended is not None
    if standing.claim.token == token:
        return Step.RENEW if contended else Step.CREATE
    return Step.LOOK_UP if contended else Step.CONTEND


def round_for(wanted: Step, standing: Standing | None) -> int:
    """The round of the claim that a step makes."""
    if standing is None:
        return 1
    if wanted is Step.CONTEND:
        return standing.claim.round
    return standing.claim.round + 1


class Claims:
    """The claims that count, from the entries of a ledger in their order.

    Entries that were read before change nothing, so that a ledger can be read again. Two
    generations bound the memory: the older one is dropped when the younger one is full.
    """

    def __init__(self, policy: LedgerPolicy = LedgerPolicy()) -> None:
        self._full = max(1, policy.most // 2)
        self._window = policy.window
        self._young: dict[int, Standing] = {}
        self._old: dict[int, Standing] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def standing(self, key: int) -> Standing | None:
        """The claim that counts for an attempt; None where none is known."""
        return self._young.get(key) or self._old.get(key)

    def read(self, claim: Claim, *, now: float) -> None:
        """Take note of the ledger's next claim."""
        before = self.standing(claim.key)
        standing = counted(before, claim, now=now, window=self._window)
        if standing is not before:
            self._keep(standing)

    def _keep(self, standing: Standing) -> None:
        self._old.pop(standing.claim.key, None)
        self._young[standing.claim.key] = standing
        if len(self._young) >= self._full:
            self._old, self._young = self._young, {}


class Silence:
    """Judges beat by beat whether a ledger has stopped answering claims.

    Ten thousand claims at once take long to be read back, and each answer shows that the next ones
    come. It counts beats and not seconds, so that a process which was held up itself does not blame
    a ledger whose answers wait to be read.
    """

    beats = 10

    def __init__(self) -> None:
        self._silent = 0
        self._answers = 0

    def lasts(self, *, awaited: bool, answers: int) -> bool:
        """Whether claims were awaited for so many beats, the latest of which this is, and none was
        answered; `answers` is how many were answered so far.
        """
        heard = answers > self._answers
        self._answers = answers
        self._silent = self._silent + 1 if awaited and not heard else 0
        return self._silent > self.beats


def key_of(attempt: AttemptKey) -> int:
    """An attempt as 64 bits. Two that share them cost a needless look-up and the grace, no more."""
    text = f"{attempt.queue}\0{attempt.job}\0{attempt.attempt}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def to_entry(note: Claim | Mark) -> bytes:
    """A claim or a mark as the body of a message."""
    if isinstance(note, Mark):
        return _dump(mark=f"{note.token:x}", at=round(note.at, 3), complete=note.complete)
    return _dump(
        claim=f"{note.key:x}",
        round=note.round,
        by=f"{note.token:x}",
        at=round(note.at, 3),
    )


def from_entry(body: bytes) -> Claim | Mark | None:
    """What an entry says; None where it says nothing that this version knows."""
    try:
        entry = from_json(body)
        at = float(entry["at"])
        if "mark" in entry:
            return Mark(int(entry["mark"], 16), at, entry.get("complete") is True)
        key, token = int(entry["claim"], 16), int(entry["by"], 16)
        return Claim(key, int(entry["round"]), token, at)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _dump(**entry: object) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()
