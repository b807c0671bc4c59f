"""Kestra's API for executions: create, find, look at, kill."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bridge import exact_json
from bridge.errors import KestraAmbiguous, KestraUnavailable
from bridge.job.attempt import (
    ATTEMPT_LABEL,
    CORRELATION_LABEL,
    JOB_LABEL,
    MARK,
    MARK_LABEL,
    QUEUE_LABEL,
)
from bridge.job.execution import TERMINAL, Execution
from bridge.job.job import Job
from bridge.kestra.parse import parse_execution, read_execution
from bridge.kestra.search import MAIN, ExecutionSearch, labelled, started_from
from bridge.kestra.server import KestraServer
from bridge.kestra.transport import Transport, always
from bridge.telemetry.tracing import outgoing

REWORKED_LABELS = ("system.restarted", "system.replay")
"""Labels of executions that were restarted, or that a replay made (1.3 and 2.0, tried)."""

_UNFINISHED = {
    **labelled({MARK_LABEL: MARK}),
    "filters[state][NOT_IN]": ",".join(sorted(TERMINAL)),
}
"""The filters for the bridge's executions that have not ended."""


class ExecutionApi:
    """The executions of one tenant."""

    def __init__(self, transport: Transport, server: KestraServer, page_size: int) -> None:
        self._transport = transport
        self._server = server
        self._search = ExecutionSearch(transport, page_size)

    async def create(self, job: Job, *, permitted: Callable[[], None] = always) -> Execution:
        """The execution of this (job, attempt), which this starts.

        `permitted` is called right before the request is sent.

        Raises:
            Exception: what `permitted` raises; nothing was sent.
            KestraRejected: Kestra will never start it; nothing was created.
            KestraAmbiguous: no usable answer; the execution may exist, now or in a moment.
        """
        labels = [("labels", f"{key}:{value}") for key, value in job.execution_labels.items()]
        form = []
        for name, value in job.inputs.items():
            # Kestra parses the text by the input's type.
            text = value if isinstance(value, str) else exact_json.dumps(value)
            form.append((name, (None, text)))
        asked = datetime.now(UTC)
        answer = await self._transport.read(
            "create",
            "POST",
            f"/executions/{job.flow.namespace}/{job.flow.id}",
            params=labels,
            # Without inputs there is no form, not an empty one.
            files=form or None,
            # Makes Kestra's own spans of the execution part of the trace, where its OpenTelemetry
            # is on.
            headers=outgoing(),
            permitted=permitted,
        )
        try:
            execution = parse_execution(answer.json())
        except (ValueError, KestraUnavailable) as error:
            raise KestraAmbiguous(f"create: the answer can't be read ({error})") from error
        self._transport.clock.note_dated(execution.started, between=(asked, datetime.now(UTC)))
        return execution

    async def find(self, job: Job, *, since: datetime | None = None) -> list[Execution]:
        """All executions of this (job, attempt), whoever created them.

        `since` limits what the server has to read to executions that started then or later.
        """
        filters = {
            **labelled({JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)}),
            **MAIN,
            **started_from(since),
        }
        found = await self._search.all("find", filters)
        return [execution for execution in found.executions if job.owns(execution)]

    async def find_attempts(self, job: Job) -> list[Execution]:
        """All executions of this job, of any attempt."""
        filters = {
            **labelled({JOB_LABEL: job.id}),
            **MAIN,
        }
        found = await self._search.all("attempts", filters)
        return [execution for execution in found.executions if job.names(execution)]

    async def unfinished(self) -> list[Execution]:
        """All executions that carry the bridge's mark and have not ended, of every replica."""
        found = await self._search.all("sweep", _UNFINISHED)
        # Some may have ended while the server searched.
        return [execution for execution in found.executions if not execution.state.terminal]

    async def oldest_unfinished(self) -> Execution | None:
        """The one of the bridge's executions that started first and has not ended, if any."""
        found = await self._search.page("oldest", _UNFINISHED, 1, most=1)
        return next(iter(found.executions), None)

    async def ended_since(
        self,
        since: datetime,
        page: int = 1,
        *,
        started: datetime | None = None,
        size: int | None = None,
    ) -> tuple[list[Execution], bool]:
        """A page of the bridge's executions that ended then or later, and whether it is the last.

        They are those of every replica, and what inherited the mark. The latest end comes first.
        An end that comes meanwhile moves others to a later page, where they come once more.

        `started` limits what the server has to read to executions that started then or later.
        Without it Kestra counts all that have ever ended, for each page. `size` is the number of
        executions in a page.

        They are not filtered by end date: Kestra compares that filter with the start date (2.0,
        tried), so it hides whatever ran for long.
        """
        filters = {
            **labelled({MARK_LABEL: MARK}),
            "filters[state][IN]": ",".join(sorted(TERMINAL)),
            **started_from(started),
        }
        found = await self._search.page(
            "ended", filters, page, order="state.endDate:desc", most=size
        )
        ended = [
            execution
            for execution in found.executions
            if execution.state.terminal and execution.labels.get(MARK_LABEL) == MARK
        ]
        recent = [each for each in ended if each.ended and each.ended >= since]
        passed = any(each.ended and each.ended < since for each in found.executions)
        return recent, found.last or passed

    async def has_run(self, queue: str, *, since: datetime) -> bool:
        """Whether an execution of a job of that queue started then or later."""
        filters = {**labelled({QUEUE_LABEL: queue}), **MAIN, **started_from(since)}
        found = await self._search.page("history", filters, 1, most=1)
        return any(each.labels.get(QUEUE_LABEL) == queue for each in found.executions)

    async def reworked(self, *, since: datetime | None = None) -> list[Execution]:
        """All executions with the bridge's mark that were restarted, and those that replays made.

        `since` limits them to those that started then or later. A restarted execution keeps its
        start, and a replay's has that of the execution it continues.
        """
        reworked: list[Execution] = []
        for label in REWORKED_LABELS:
            filters = {
                **labelled({MARK_LABEL: MARK, label: "true"}),
                **started_from(since),
            }
            found = await self._search.all("reworked", filters)
            reworked += [execution for execution in found.executions if label in execution.labels]
        return reworked

    async def correlated(self, correlation_id: str) -> list[Execution]:
        """All executions with that `system.correlationId`.

        Executions that they made Kestra start inherit it.
        """
        labels = {CORRELATION_LABEL: correlation_id}
        found = await self._search.all("correlated", labelled(labels))
        return [
            execution
            for execution in found.executions
            if execution.labels.get(CORRELATION_LABEL) == correlation_id
        ]

    async def get(self, execution_id: str) -> Execution | None:
        """The execution of that id, or None where Kestra doesn't know it (any more)."""
        answer = await self._transport.send("get", "GET", f"/executions/{execution_id}")
        if answer is None:
            return None
        return read_execution(answer)

    async def kill(self, execution_id: str) -> None:
        """Ask Kestra to kill an execution and what it started.

        It is no error that the execution has ended or is unknown.
        """
        dialect = await self._server.dialect()
        path = dialect.kill(execution_id)
        await self._transport.send("kill", "DELETE", path, params={"isOnKillCascade": "true"})

    async def outputs(self, execution: Execution) -> dict[str, Any]:
        """The flow's outputs; empty where it has none, or where Kestra doesn't have them."""
        dialect = await self._server.dialect()
        if dialect.major >= 2:
            path = f"/outputs/executions/{execution.id}"
            answer = await self._transport.send("outputs", "GET", path)
            if answer is not None:
                # The engine answers null, not an empty object, where there are no outputs.
                return {} if answer.json() is None else answer.object()
        # Kestra 1.x shows them in the execution, and so do builds of 2.0 that lack the path.
        answer = await self._transport.send("outputs", "GET", f"/executions/{execution.id}")
        if answer is None:
            return {}
        outputs = answer.object().get("outputs")
        if not isinstance(outputs, dict):
            return {}
        return outputs

    async def delete(self, execution_id: str) -> None:
        """Delete an execution with its logs. It is no error that Kestra doesn't know it."""
        await self._transport.send("delete", "DELETE", f"/executions/{execution_id}")
