"""Destroys machines that are no longer needed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bridge.errors import KestraError, MachineError
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.order import Tags

Ended = Callable[[str], Awaitable[bool | None]]
"""Whether the execution of that id has ended. None if Kestra doesn't know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapPolicy:
    """When a machine is destroyed whose execution Kestra doesn't know. Times are in seconds."""

    unknown_after: float = 600.0
    """The age from which it counts as unknown. An earlier answer may be wrong."""
    confirmed_after: float = 60.0
    """The time since a round marked it. Two rounds that run side by side are one look."""
    most_unknown: float = 0.5
    """The share of the running machines that may be unknown. Where more are, the mistake is in what
    we ask: another Kestra, or one whose database was lost."""


REAP_POLICY = ReapPolicy()


class Judgement(StrEnum):
    """What a round decides about a machine."""

    KEEP = "keep"
    DEADLINE = "deadline"
    ENDED = "ended"
    UNKNOWN = "unknown"
    MARK = "mark"
    UNMARK = "unmark"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """A machine that is no longer needed, and why. `error` says why it could not be destroyed."""

    machine: Machine
    verdict: Judgement
    reason: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The result of a reap.

    `marked` are machines that the next round may destroy, `foreign` those of another Kestra.
    `troubles` has a line for each machine that could not be judged or destroyed, and one if the
    round refuses to destroy machines of unknown executions. `seen` are all machines, as they were
    before it.
    """

    reaped: Sequence[Reaped]
    kept: int
    troubles: Sequence[str]
    marked: Sequence[Machine] = ()
    foreign: int = 0
    refused: bool = False
    seen: Sequence[Machine] = ()


def judge(
    tags: Tags,
    *,
    ended: bool | None,
    now: float,
    server: str = "",
    policy: ReapPolicy = REAP_POLICY,
) -> Judgement:
    """What to do with a machine.

    `ended` is None if Kestra doesn't know the execution. `server` is the id of the Kestra that was
    asked. `now` is in seconds since 1970.
    """
    if tags.deadline <= now:
        return Judgement.DEADLINE
    if is_foreign(tags, server):
        return Judgement.FOREIGN
    if ended:
        return Judgement.ENDED
    if ended is None:
        return _judge_unknown(tags, now, policy)
    if tags.unknown:
        return Judgement.UNMARK
    return Judgement.KEEP


def _judge_unknown(tags: Tags, now: float, policy: ReapPolicy) -> Judgement:
    """What to do with a machine whose execution Kestra doesn't know."""
    if now - tags.created <= policy.unknown_after:
        return Judgement.KEEP
    if not tags.unknown:
        return Judgement.MARK
    if now - tags.unknown < policy.confirmed_after:
        return Judgement.KEEP
    return Judgement.UNKNOWN


def is_foreign(tags: Tags, server: str) -> bool:
    """Whether the machine belongs to another Kestra than that one, as far as both are known."""
    return bool(tags.server and server and tags.server != server)


def why(tags: Tags, verdict: Judgement, *, now: float) -> str:
    """The reason to destroy a machine, for a person."""
    if verdict is Judgement.DEADLINE:
        return f"its deadline passed {now - tags.deadline:.0f} s ago"
    if verdict is Judgement.ENDED:
        return f"execution {tags.execution} has ended"
    return f"Kestra doesn't know execution {tags.execution}"


async def reap(
    machines: Machines,
    ended: Ended,
    *,
    server: str = "",
    dry_run: bool = False,
    policy: ReapPolicy = REAP_POLICY,
) -> Sweep:
    """Destroy every machine of ours whose execution has ended or whose deadline has passed.

    A machine whose execution Kestra doesn't know is marked by one round and destroyed by a later
    one that doesn't find the execution either. The mark is a tag at the provider. With `dry_run`,
    only report what a round would do.

    Raises:
        MachineError: the provider can't be asked for the machines.
    """
    return await _Round(machines, ended, server=server, dry_run=dry_run, policy=policy).run()


class _Round:
    """One round of the reaper."""

    def __init__(
        self,
        machines: Machines,
        ended: Ended,
        *,
        server: str,
        dry_run: bool,
        policy: ReapPolicy,
    ) -> None:
        self._machines = machines
        self._ended = ended
        self._server = server
        self._dry_run = dry_run
        self._policy = policy
        self._reaped: list[Reaped] = []
        self._marked: list[Machine] = []
        self._troubles: list[str] = []

    async def run(self) -> Sweep:
        seen = await self._machines.all()
        answers = await self._answers(seen)
        refused = self._refuses(seen, answers)
        foreign = 0
        for machine in seen:
            if machine.id not in answers:
                continue
            verdict = judge(
                machine.tags,
                ended=answers[machine.id],
                now=time.time(),
                server=self._server,
                policy=self._policy,
            )
            if verdict is Judgement.FOREIGN:
                foreign += 1
            if refused and verdict in (Judgement.UNKNOWN, Judgement.MARK):
                continue
            await self._act(machine, verdict)
        return Sweep(
            reaped=self._reaped,
            kept=len(seen) - len(self._reaped),
            troubles=self._troubles,
            marked=self._marked,
            foreign=foreign,
            refused=refused,
            seen=seen,
        )

    async def _answers(self, seen: Sequence[Machine]) -> dict[str, bool | None]:
        """Kestra's answer for each machine, by the machine's id. It lacks those that can't be
        judged.

        A deadline that has passed needs no answer, as Kestra may be away just now.
        """
        answers: dict[str, bool | None] = {}
        for machine in seen:
            tags = machine.tags
            if tags.deadline <= time.time() or is_foreign(tags, self._server):
                answers[machine.id] = False
                continue
            try:
                answers[machine.id] = await self._ended(tags.execution)
            except KestraError as error:
                self._troubles.append(f"{machine.name}: can't ask for its execution: {error}")
        return answers

    def _refuses(self, seen: Sequence[Machine], answers: dict[str, bool | None]) -> bool:
        """Whether so many machines are unknown that the mistake must be in what we ask."""
        now = time.time()
        running = [machine for machine in seen if self._counts(machine, now)]
        asked = [machine for machine in running if machine.id in answers]
        unknown = [machine for machine in asked if answers[machine.id] is None]
        youngest = now - self._policy.unknown_after
        if not any(machine.tags.created < youngest for machine in unknown):
            return False
        if len(unknown) <= self._policy.most_unknown * len(asked):
            return False
        self._troubles.append(
            f"Kestra doesn't know the executions of {len(unknown)} of {len(asked)} running "
            "machines, which are left until their deadlines: is BRIDGE_KESTRA_URL that of another "
            "Kestra? `machine list` shows them, `machine destroy` destroys one"
        )
        return True

    def _counts(self, machine: Machine, now: float) -> bool:
        """Whether the machine runs, and is for this Kestra to judge."""
        if machine.dead or machine.tags.deadline <= now:
            return False
        return not is_foreign(machine.tags, self._server)

    async def _act(self, machine: Machine, verdict: Judgement) -> None:
        if verdict in (Judgement.DEADLINE, Judgement.ENDED, Judgement.UNKNOWN):
            await self._destroy(machine, verdict)
        if verdict is Judgement.MARK:
            self._marked.append(machine)
            await self._mark(machine, time.time())
        if verdict is Judgement.UNMARK:
            await self._mark(machine, 0.0)

    async def _mark(self, machine: Machine, since: float) -> None:
        if self._dry_run:
            return
        try:
            await self._machines.inventory.mark_unknown(machine, since)
        except MachineError as error:
            self._troubles.append(
                f"{machine.name}: can't be marked for the next round, so it stays until its "
                f"deadline: {error}"
            )

    async def _destroy(self, machine: Machine, verdict: Judgement) -> None:
        reason = why(machine.tags, verdict, now=time.time())
        reaped = Reaped(machine=machine, verdict=verdict, reason=reason)
        if not self._dry_run:
            try:
                await self._machines.destroy_all([machine])
            except MachineError as error:
                self._troubles.append(str(error))
                reaped = replace(reaped, error=str(error))
        self._reaped.append(reaped)
