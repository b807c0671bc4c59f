"""What has become in Kestra of dead letters' executions: an operator may have restarted one
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from bridge.job.execution import Execution, State, by_attempt
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.operate.dead_letters.letters import ANY_FLOW, DeadLetter, Origin

Executions = dict[bytes, list[Execution]]


def has_one(letter: DeadLetter) -> bool:
    """Whether a letter's job may have had an execution. RabbitMQ gives a message up whatever it has
    started.
    """
    return bool(letter.execution) or letter.origin is not Origin.BRIDGE


async def look_up(
    kestra: Kestra, letters: Sequence[DeadLetter], progress: Callable[[], None]
) -> Executions:
    """The executions of each letter's (job, attempt) as they are now, by the letters' keys.

    Many at once, and where it can be by id: a search by label makes Kestra on H2 and MySQL read
    every execution. What a restart or a replay has made carries a label of its own, so that two
    searches find all of those.

    Raises:
        KestraUnavailable, KestraDenied: Kestra does not answer.
    """
    found: Executions = {letter.key: [] for letter in letters}
    turn = iter(letters)

    async def work() -> None:
        for letter in turn:
            found[letter.key] += await _executions(kestra, letter)
            progress()

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(kestra.limits.concurrent_questions):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    if any(letter.execution for letter in letters):
        reworked = by_attempt(await kestra.executions.reworked(since=_first_start(letters, found)))
        for letter in letters:
            for key in _job(letter).keys:
                found[letter.key] += reworked.get(key, ())
    return found


async def _executions(kestra: Kestra, letter: DeadLetter) -> list[Execution]:
    """A letter's execution, or all of its attempt's where one id doesn't say enough."""
    execution = await kestra.get(letter.execution) if letter.execution else None
    if execution is not None and execution.state is not State.RETRIED:
        return [execution]
    if execution is None and letter.execution:
        return []  # Kestra knows it no more
    return await kestra.find(_job(letter)) if letter.named else []


def _job(letter: DeadLetter) -> Job:
    return Job(
        id=letter.job, flow=letter.flow or ANY_FLOW, queue=letter.queue, attempt=letter.attempt
    )


def _first_start(letters: Iterable[DeadLetter], found: Executions) -> datetime | None:
    """When the first of the letters' executions started, or None where that isn't known of each."""
    first: datetime | None = None
    for letter in letters:
        if letter.execution:
            executions = found[letter.key]
            start = executions[0].started if executions else None
            if start is None:
                return None
            first = min(first or start, start)
    return first
