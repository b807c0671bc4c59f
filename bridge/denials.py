"""Creates that Kestra denies: trouble of everybody's, or of one flow's.

A user of Kestra's may have no right to start flows of one namespace. Jobs for it must not hold every slot, and they are
not to become dead letters either while an operator may just be changing rights.
"""

from __future__ import annotations

import time

import structlog

from bridge.errors import KestraDenied, KestraError, KestraRejected
from bridge.job import FlowName, Job
from bridge.kestra import Kestra

HOLD = 10.0
"""Seconds for which a denied job keeps its slot: a change of rights may be under way."""

log = structlog.get_logger(__name__)


class Parked(Exception):
    """A job's turn is put off without costing it an attempt; the text says why."""


class Denials:
    """Which flows' creates are denied, and since when. Times are monotonic seconds."""

    def __init__(self, kestra: Kestra, *, hold: float = HOLD) -> None:
        self._kestra = kestra
        self._hold = hold
        self._since: dict[FlowName, float] = {}
        self._last_create = 0.0

    def note_create(self, flow: FlowName) -> None:
        """Take note of a create that Kestra did."""
        self._last_create = time.monotonic()
        self._since.pop(flow, None)

    def of(self, job: Job) -> Denial:
        """The denials of one job, none so far."""
        return Denial(self, job, self._hold)

    def since(self, flow: FlowName) -> float:
        """When this flow's creates were first denied while Kestra let us in."""
        return self._since.setdefault(flow, time.monotonic())

    def created_since(self, moment: float) -> bool:
        """Whether Kestra has done any create since then."""
        return self._last_create > moment

    async def of_everything(self) -> bool:
        """Whether Kestra denies more than creates; where that can't be told now, it passes for a general trouble."""
        try:
            await self._kestra.probe()
        except KestraError:
            return True
        return False


class Denial:
    """One job whose create is denied, perhaps several times."""

    def __init__(self, denials: Denials, job: Job, hold: float) -> None:
        self._denials = denials
        self._job = job
        self._hold = hold
        self._first: float | None = None

    async def judge(self, error: KestraDenied) -> None:
        """Return where the create is to be tried again soon.

        Raises:
            KestraRejected: it is this flow that is denied, as others were created meanwhile.
            Parked: only creates are denied, and the job has kept its slot for long enough.
        """
        flow = self._job.flow
        log.error("kestra denies the create of an execution", job=self._job.id, flow=str(flow), error=str(error))
        if await self._denials.of_everything():
            return
        if self._denials.created_since(self._denials.since(flow)):
            raise KestraRejected(f"{error}, and lets us create those of other flows") from error
        self._first = self._first or time.monotonic()
        if time.monotonic() - self._first >= self._hold:
            raise Parked(f"flow {flow}: {error}") from error
