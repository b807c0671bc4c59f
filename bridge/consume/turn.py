"""A start's turn at one attempt: what its claims allow it to do."""

from __future__ import annotations

from bridge.consume.claiming import Ledger, new_token
from bridge.consume.ledger import NOBODY, Standing, Step, key_of, round_for, step
from bridge.job.attempt import AttemptKey


class TurnOver(Exception):
    """A claim does not allow a create any more, or its ledger is away."""


class Turn:
    """A start's claims on one attempt, of which the latest has the token `token`."""

    def __init__(self, ledger: Ledger, attempt: AttemptKey) -> None:
        self._key = key_of(attempt)
        self._token: int | None = None
        self.ledger = ledger

    @property
    def standing(self) -> Standing | None:
        """The claim that counts."""
        return self.ledger.view.standing(self._key)

    @property
    def step(self) -> Step:
        """What is to be done."""
        return step(self.standing, self._token)

    @property
    def first(self) -> bool:
        """Whether the claim that counts is the attempt's first."""
        return self.standing is not None and self.standing.claim.round == 1

    @property
    def over_from(self) -> float:
        """From when on another's claim that counts may be superseded, by the monotonic clock."""
        standing = self.standing
        assert standing is not None, "somebody's claim counts"
        return standing.superseded_from(self.ledger.policy.grace)

    async def claim(self, wanted: Step) -> bool:
        """Make the claim that a step asks for; False where the ledger does not answer."""
        token = new_token()
        number = round_for(wanted, self.standing)
        if not await self.ledger.claim(self._key, number, token=token):
            return False
        self._token = token
        return True

    def check(self) -> None:
        """Return where a create may be sent now.

        Raises:
            TurnOver: it may not.
        """
        if not self.ledger.ready or self.step is not Step.CREATE:
            raise TurnOver

    def give_back(self) -> None:
        """Let whoever comes next create without waiting, since no create is on its way."""
        number = round_for(Step.SUPERSEDE, self.standing)
        self.ledger.claim_later(self._key, number, token=NOBODY)

    def claim_late(self) -> None:
        """Have the attempt claimed once the ledger is back, since it is created without a claim."""
        number = round_for(Step.CONTEND, self.standing)
        self.ledger.claim_later(self._key, number, token=new_token())
