"""What an execution's tasks and log say about a bad end. No I/O; the shapes are those of Kestra's
API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LENGTH = 400
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


def failed_task(details: Mapping[str, Any]) -> str | None:
    """The id of the first task that did not end well, from an execution's JSON; None where there is
    none.
    """
    runs = details.get("taskRunList")
    for run in runs if isinstance(runs, list) else []:
        state = run.get("state") if isinstance(run, dict) else None
        if isinstance(state, dict) and state.get("current") in ("FAILED", "KILLED"):
            return str(run.get("taskId"))
    return None


def last_errors(logs: Any, task: str | None) -> str:
    """The last things that went wrong, oldest first: a task often says what is wrong, and then only
    that it failed.
    """
    lines = [_without_classes(row["message"]) for row in _logged(logs, task)]
    # An exception is often logged twice, once with its classes' names in front.
    return "; ".join(list(dict.fromkeys(line for line in lines if line))[-_ERRORS_SHOWN:])


def last_lines(logs: Any, task: str | None) -> tuple[LogLine, ...]:
    """What was logged for people to read; stack traces and the like are logged at the lower
    levels.
    """
    return tuple(
        LogLine(str(row.get("timestamp", "")), str(row.get("level", "")), row["message"])
        for row in _logged(logs, task)
        if row.get("level") not in ("DEBUG", "TRACE")
    )


def _without_classes(message: str) -> str:
    """A message on one line, without the exceptions' class names that Kestra repeats in front of
    it.
    """
    line = " ".join(message.split())
    while found := _CLASS.match(line):
        line = line[found.end() :]
    return line[:_LENGTH]


def _logged(logs: Any, task: str | None) -> list[dict[str, Any]]:
    """The entries of a log that can be read: a task's, or where it has none the execution's."""
    rows = logs.get("results") if isinstance(logs, dict) else logs
    messages = [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("message"), str)
    ]
    return [row for row in messages if row.get("taskId") == task] or messages
