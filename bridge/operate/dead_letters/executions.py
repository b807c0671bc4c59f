"""The present executions of dead letters: an operator may have restarted one in Kestra."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from bridge.job.execution import Execution, State, by_attempt
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.operate.dead_letters.decision import ANY_FLOW
from bridge.operate.dead_letters.letter import DeadLetter, Origin

Executions = dict[bytes, list[Execution]]


def has_one(letter: DeadLetter) -> bool:
    """Whether a letter's job may have had an execution. RabbitMQ gives up a message whether or not
    it has started one.
    """
    return bool(letter.execution) or letter.origin is not Origin.BRIDGE


async def look_up(
    kestra: Kestra, letters: Sequence[DeadLetter], progress: Callable[[], None]
) -> Executions:
    """The executions of each letter's (job, attempt) as they are now, by the letters' keys.

    Asks for many at once, and by id where possible: a search by label makes Kestra on H2 and MySQL
    read every execution. Restarts and replays make executions with a label of their own, so two
    searches find all of those.

    Raises:
        KestraUnavailable, KestraDenied: Kestra does not answer.
    """
    found: Executions = {letter.key: [] for letter in letters}
    remaining = iter(letters)

    async def work() -> None:
        for letter in remaining:
            found[letter.key] += await _executions(kestra, letter)
            progress()

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(kestra.limits.concurrent_questions):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    if any(letter.execution for letter in letters):
        since = _first_start(letters, found)
        reworked = by_attempt(await kestra.executions.reworked(since=since))
        for letter in letters:
            for key in _job(letter).keys:
                found[letter.key] += reworked.get(key, ())
    return found


async def _executions(kestra: Kestra, letter: DeadLetter) -> list[Execution]:
    """A letter's execution, or all of its attempt's where its id does not lead to the last one."""
    if letter.execution:
        execution = await kestra.get(letter.execution)
        if execution is None:
            return []  # Kestra doesn't know it any more
        if execution.state is not State.RETRIED:
            return [execution]
    if not letter.named:
        return []
    return await kestra.executions.find(_job(letter))


def _job(letter: DeadLetter) -> Job:
    return Job(
        id=letter.job, flow=letter.flow or ANY_FLOW, queue=letter.queue, attempt=letter.attempt
    )


def _first_start(letters: Iterable[DeadLetter], found: Executions) -> datetime | None:
    """When the first of the letters' executions started; None where one's start isn't known."""
    first: datetime | None = None
    for letter in letters:
        if not letter.execution:
            continue
        executions = found[letter.key]
        start = executions[0].started if executions else None
        if start is None:
            return None
        if first is None or start < first:
            first = start
    return first
