"""Find an earlier attempt that an operator brought back in Kestra while the retry waited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from bridge.job.execution import Execution, State, choose
from bridge.job.job import Job


def revived(
    job: Job, executions: Iterable[Execution], *, accepts: Callable[[State], bool]
) -> tuple[Job, Execution] | None:
    """The earlier attempt that runs again or has succeeded, with its execution, or None.

    `executions` are those of all attempts, and `accepts` says which states are a success. Attempts
    before a replay do not count, since the replay judged them. None counts once the job's own
    attempt has begun.
    """
    by_number: defaultdict[int, list[Execution]] = defaultdict(list)
    for execution in executions:
        if key := execution.attempt_key:
            by_number[key.attempt].append(execution)
    if job.attempt in by_number:
        return None
    for attempt in range(job.attempt - 1, job.first_attempt - 1, -1):
        current = choose(by_number.get(attempt, ())).current
        if current is not None and (not current.state.terminal or accepts(current.state)):
            return replace(job, attempt=attempt), current
    return None
