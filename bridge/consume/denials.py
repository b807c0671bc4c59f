"""Creates that Kestra denies: trouble of everybody's, or of one flow's.

A user of Kestra's may have no right to start flows of one namespace. Jobs for it must not hold
every slot, and they are not to become dead letters either while an operator may just be changing
rights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from bridge.errors import KestraDenied, KestraError, KestraRejected
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra

HOLD = 10.0
"""Seconds for which jobs of a flow keep their slots once its creates are denied: rights may just be
changing."""

FORGET_AFTER = 3600.0
"""Seconds without another denial, after which a flow's earlier ones say nothing of one that comes
then."""

log = structlog.get_logger(__name__)


class Parked(Exception):
    """A job's turn is put off without costing it an attempt; the text says why."""


@dataclass(slots=True)
class Spell:
    """Denials of one flow with no create of it between them: when the first and the latest of them
    came.
    """

    first: float
    latest: float


class Denials:
    """Which flows' creates are denied, and since when. Times are monotonic seconds."""

    def __init__(
        self, kestra: Kestra, *, hold: float = HOLD, forget_after: float = FORGET_AFTER
    ) -> None:
        self._kestra = kestra
        self._hold = hold
        self._forget_after = forget_after
        self._spells: dict[FlowName, Spell] = {}
        self._last_create = 0.0

    def note_create(self, flow: FlowName, *, asked: float) -> None:
        """Take note of a create that Kestra was asked for at that moment, and did."""
        self._last_create = max(self._last_create, asked)
        self._spells.pop(flow, None)

    async def judge(self, job: Job, error: KestraDenied) -> None:
        """Return where the create is to be tried again soon.

        Raises:
            KestraRejected: it is this flow that is denied, as others were created meanwhile.
            Parked: only creates are denied, and jobs of this flow have kept slots for long enough.
        """
        log.error(
            "kestra denies the create of an execution",
            job=job.id,
            flow=str(job.flow),
            error=str(error),
        )
        if await self._of_everything():
            return
        since = self._since(job.flow)
        if self._last_create > since:
            raise KestraRejected(f"{error}, and lets us create those of other flows") from error
        if time.monotonic() - since >= self._hold:
            raise Parked(f"flow {job.flow}: {error}") from error

    def _since(self, flow: FlowName) -> float:
        """When this flow's creates were first denied while Kestra let us in; one is denied now."""
        now = time.monotonic()
        self._spells = {
            key: each
            for key, each in self._spells.items()
            if now - each.latest < self._forget_after
        }
        spell = self._spells.setdefault(flow, Spell(now, now))
        spell.latest = now
        return spell.first

    async def _of_everything(self) -> bool:
        """Whether Kestra denies more than creates; where that can't be told now, it passes for a
        general trouble.
        """
        try:
            await self._kestra.probe()
        except KestraError:
            return True
        return False
