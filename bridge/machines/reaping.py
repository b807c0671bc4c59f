"""Destroys machines that are no longer needed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bridge.errors import KestraError, MachineError
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.order import Tags

UNKNOWN_AFTER = 600.0
"""Seconds after which a machine is destroyed if Kestra doesn't know its execution. An earlier
answer may be wrong."""

Ended = Callable[[str], Awaitable[bool | None]]
"""Whether the execution of that id has ended. None if Kestra doesn't know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """A machine that is no longer needed, and why. `error` says why it could not be destroyed."""

    machine: Machine
    reason: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The result of a reap. `troubles` has a line for each machine that could not be judged or
    destroyed.
    """

    reaped: Sequence[Reaped]
    kept: int
    troubles: Sequence[str]


def why_reap(
    tags: Tags, *, ended: bool | None, now: float, unknown_after: float = UNKNOWN_AFTER
) -> str | None:
    """The reason to destroy a machine. None if it may stay.

    `ended` is None if Kestra doesn't know the execution. `now` is in seconds since 1970.
    """
    if tags.deadline <= now:
        return f"its deadline passed {now - tags.deadline:.0f} s ago"
    if ended:
        return f"execution {tags.execution} has ended"
    if ended is None and now - tags.created > unknown_after:
        return f"Kestra doesn't know execution {tags.execution}"
    return None


async def reap(
    machines: Machines,
    ended: Ended,
    *,
    dry_run: bool = False,
    unknown_after: float = UNKNOWN_AFTER,
) -> Sweep:
    """Destroy every machine of ours whose execution has ended or whose deadline has passed.

    With `dry_run`, only report which.

    Raises:
        MachineError: the provider can't be asked for the machines.
    """
    reaped: list[Reaped] = []
    troubles: list[str] = []
    all_machines = await machines.all()
    for machine in all_machines:
        # A deadline that has passed needs no answer of Kestra, which may be away just now.
        reason = why_reap(machine.tags, ended=False, now=time.time())
        if reason is None:
            try:
                has_ended = await ended(machine.tags.execution)
            except KestraError as error:
                troubles.append(f"{machine.name}: can't ask for its execution: {error}")
                continue
            reason = why_reap(
                machine.tags, ended=has_ended, now=time.time(), unknown_after=unknown_after
            )
        if reason is None:
            continue
        failure = None
        if not dry_run:
            try:
                await machines.destroy_all([machine])
            except MachineError as error:
                failure = str(error)
                troubles.append(f"{machine.name}: {failure}")
        reaped.append(Reaped(machine=machine, reason=reason, error=failure))
    return Sweep(reaped=reaped, kept=len(all_machines) - len(reaped), troubles=troubles)
