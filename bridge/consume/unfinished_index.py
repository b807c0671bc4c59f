"""The executions that have not ended, listed once for all who look for theirs at the same time.

After a restart every message that was in flight comes again at once. Looking for each job's
execution by itself would be thousands of searches, each of which a Kestra on H2 or MySQL answers by
reading every execution there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable

from bridge.aio import SingleFlight
from bridge.job.execution import Execution
from bridge.job.job import ATTEMPT_LABEL, JOB_LABEL, FlowName, Job

Index = dict[tuple[str, str], list[Execution]]


class UnfinishedIndex:
    """Lists when asked, one listing at a time. `source` asks Kestra."""

    def __init__(self, source: Callable[[], Awaitable[Iterable[Execution]]]) -> None:
        self._source = source
        self._listed = SingleFlight(self._list)

    async def of(self, job: Job) -> list[Execution]:
        """This (job, attempt)'s executions in a listing that began after this call. Raises what the
        source raises.
        """
        rows = (await self._listed()).get((job.id, str(job.attempt)), ())
        return [
            row
            for row in rows
            if job.owns(row.labels, FlowName(row.namespace, row.flow)) and not row.triggered
        ]

    async def _list(self) -> Index:
        return by_attempt(await self._source())


def by_attempt(executions: Iterable[Execution]) -> Index:
    """The executions by the job and the attempt that their labels name."""
    index: defaultdict[tuple[str, str], list[Execution]] = defaultdict(list)
    for execution in executions:
        key = (execution.labels.get(JOB_LABEL, ""), execution.labels.get(ATTEMPT_LABEL, ""))
        index[key].append(execution)
    return dict(index)
