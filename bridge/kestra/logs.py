"""What an execution's tasks and log say about a bad end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.job.execution import Execution
from bridge.kestra.parse import objects_in, read_execution
from bridge.kestra.server import KestraServer
from bridge.kestra.transport import Transport

_MESSAGE_LENGTH = 400
_ERRORS_SHOWN = 3
_CLASS = re.compile(r"^(?:[a-z_][\w$]*\.)+[A-Z][\w$]*:\s*")
"""The name of a Java class in front of an exception's message, such as
`io.kestra.….RunnableTaskException: `."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One entry of an execution's log."""

    at: str
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class FailureReport:
    """An execution, the task in it that did not end well, and the last lines that were logged."""

    execution: Execution
    task: str | None
    log: tuple[LogLine, ...]


class LogApi:
    """The logs of one tenant's executions."""

    def __init__(self, transport: Transport, server: KestraServer) -> None:
        self._transport = transport
        self._server = server

    async def explain(self, execution: Execution) -> str:
        """Why an execution did not end well, on one line: the failed task and its last errors."""
        answer = await self._transport.read("explain", "GET", f"/executions/{execution.id}")
        task = failed_task(answer.object())
        dialect = await self._server.dialect()
        answer = await self._transport.read(
            "explain", "GET", f"/logs/{execution.id}", params=dialect.error_logs()
        )
        errors = last_errors(answer.json(), task)
        where = f"task {task}" if task else f"execution {execution.id}"
        ended = f"{where} ended {execution.state}"
        if not errors:
            return ended
        return f"{ended}: {errors}"

    async def failure_report(self, execution_id: str, *, lines: int = 10) -> FailureReport | None:
        """What became of an execution, with as many `lines` from the end of its log.

        None where Kestra doesn't know the execution (any more).
        """
        found = await self._transport.send("story", "GET", f"/executions/{execution_id}")
        if found is None:
            return None
        task = failed_task(found.object())
        logs = await self._transport.read("story", "GET", f"/logs/{execution_id}")
        return FailureReport(read_execution(found), task, last_lines(logs.json(), task)[-lines:])


def failed_task(details: Mapping[str, Any]) -> str | None:
    """The id of the first task that did not end well, from an execution's JSON; None without."""
    for run in objects_in(details.get("taskRunList")):
        state = run.get("state")
        if not isinstance(state, dict):
            continue
        if state.get("current") in ("FAILED", "KILLED"):
            return str(run.get("taskId"))
    return None


def last_errors(logs: Any, task: str | None) -> str:
    """The last error messages as one text, oldest first.

    They are several, as a task often says what is wrong and after that only that it failed.
    """
    # A dict as an ordered set: Kestra often logs an exception twice, once with the names of its
    # classes in front. A repeated line counts where it was said last, however often it came before.
    lines: dict[str, None] = {}
    for row in _rows(logs, task):
        line = _without_classes(row["message"])
        lines.pop(line, None)
        if line:
            lines[line] = None
    return "; ".join(list(lines)[-_ERRORS_SHOWN:])


def last_lines(logs: Any, task: str | None) -> tuple[LogLine, ...]:
    """The entries for people. Levels below INFO hold stack traces and the like."""
    lines = []
    for row in _rows(logs, task):
        level = row.get("level", "")
        if level not in ("DEBUG", "TRACE"):
            lines.append(LogLine(str(row.get("timestamp", "")), str(level), row["message"]))
    return tuple(lines)


def _without_classes(message: str) -> str:
    """A message on one line, without the names of exceptions' classes in front of it."""
    line = " ".join(message.split())
    while found := _CLASS.match(line):
        line = line[found.end() :]
    return line[:_MESSAGE_LENGTH]


def _rows(logs: Any, task: str | None) -> list[dict[str, Any]]:
    """The entries of a log that have a message: the task's, or all where the task has none."""
    rows = logs
    if isinstance(logs, dict):
        rows = logs.get("results")
    all_tasks = []
    own = []
    for row in objects_in(rows):
        if not isinstance(row.get("message"), str):
            continue
        all_tasks.append(row)
        if row.get("taskId") == task:
            own.append(row)
    return own or all_tasks
