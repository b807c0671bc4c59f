"""The executions that have not ended, listed once for all jobs that look for theirs together.

After a restart every message that was in flight comes again at once. A search for each job would be
thousands of searches. A Kestra on H2 or MySQL answers each by reading every execution there is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from bridge.aio import SingleFlight
from bridge.job.attempt import AttemptKey
from bridge.job.execution import Execution, by_attempt
from bridge.job.job import Job


class UnfinishedIndex:
    """Lists when asked, one listing at a time. `source` asks Kestra."""

    def __init__(self, source: Callable[[], Awaitable[Iterable[Execution]]]) -> None:
        self._source = source
        self._listed = SingleFlight(self._list)

    async def get(self, job: Job) -> list[Execution]:
        """This attempt's executions in a listing that began after this call.

        Raises what the source raises.
        """
        listed = await self._listed()
        return [execution for key in job.keys for execution in listed.get(key, ())]

    async def _list(self) -> dict[AttemptKey, list[Execution]]:
        return by_attempt(await self._source())
