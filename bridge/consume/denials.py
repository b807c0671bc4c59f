"""Creates that Kestra denies: a trouble of every job, or of one flow.

A user of Kestra's may have no right to start flows of one namespace. Jobs for it must not hold
every slot. They must not become dead letters either while an operator may just be changing rights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from bridge.consume.ports import KestraPort
from bridge.errors import KestraDenied, KestraError, KestraRejected
from bridge.job.flow_name import FlowName
from bridge.job.job import Job

log = structlog.get_logger(__name__)


class Parked(Exception):
    """A job's turn is put off without costing it an attempt; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenialPolicy:
    """How long denials count. Times in seconds.

    `hold` is how long jobs of a flow keep their slots once its creates are denied: rights may just
    be changing. `forget_after` is how long after a flow's last denial the earlier ones say nothing
    any more about one that comes then.
    """

    hold: float = 10.0
    forget_after: float = 3600.0


@dataclass(slots=True)
class Spell:
    """Denials of one flow with no create of it between them: when the first and the latest came."""

    first: float
    latest: float


class Denials:
    """Which flows' creates are denied, and since when. Times are monotonic seconds."""

    def __init__(self, kestra: KestraPort, policy: DenialPolicy = DenialPolicy()) -> None:
        self._kestra = kestra
        self._policy = policy
        self._spells: dict[FlowName, Spell] = {}
        self._last_create = 0.0

    def note_create(self, flow: FlowName, *, asked: float) -> None:
        """Take note of a create that Kestra was asked for at that moment, and did."""
        self._last_create = max(self._last_create, asked)
        self._spells.pop(flow, None)

    async def judge(self, job: Job, error: KestraDenied) -> None:
        """Return where the create should be tried again soon.

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
        if await self._denied_everything():
            return
        since = self._since(job.flow)
        if self._last_create > since:
            raise KestraRejected(f"{error}, and lets us create those of other flows") from error
        if time.monotonic() - since >= self._policy.hold:
            raise Parked(f"flow {job.flow}: {error}") from error

    def _since(self, flow: FlowName) -> float:
        """When this flow's creates were first denied while Kestra let us in; one is denied now."""
        now = time.monotonic()
        for each, spell in list(self._spells.items()):
            if now - spell.latest >= self._policy.forget_after:
                del self._spells[each]
        spell = self._spells.setdefault(flow, Spell(now, now))
        spell.latest = now
        return spell.first

    async def _denied_everything(self) -> bool:
        """Whether Kestra denies more than creates. Where that can't be found out now, it counts as
        a trouble of every job.
        """
        try:
            await self._kestra.probe()
        except KestraError:
            return True
        return False
