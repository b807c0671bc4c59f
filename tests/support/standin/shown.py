"""Executions and their logs as Kestra shows them in JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.support.standin.model import (
    TERMINAL,
    Run,
)


def execution_json(run: Run, url: str, *, outputs_apart: bool) -> dict[str, Any]:
    """All there is to tell of an execution; what of it an answer has is decided by the answer's
    form."""
    shown: dict[str, Any] = {
        "tenantId": "main",
        "id": run.id,
        "namespace": run.namespace,
        "flowId": run.flow,
        "flowRevision": 1,
        "labels": [{"key": key, "value": value} for key, value in run.labels.items()],
        "state": _state(run.histories),
        "originalId": run.original_id,
        "deleted": False,
        "metadata": {"attemptNumber": 1, "originalCreatedDate": instant(run.started)},
        "url": f"{url}/ui/main/executions/{run.namespace}/{run.flow}/{run.id}",
    }
    task_state = _state([(run.state, moment) for _, moment in run.histories[-1:]])
    begun = len(run.histories) > 1 and run.histories[1][0] != "FAILED"
    tasks = [{"id": f"{run.id}t", "taskId": run.task, "state": task_state}] if begun else None
    perhaps = {
        "taskRunList": tasks if tasks or not run.parent_id else [],
        "inputs": run.inputs or None,
        "outputs": None if outputs_apart else run.outputs,
        "trigger": run.trigger,
        "parentId": run.parent_id,
    }
    return shown | {key: value for key, value in perhaps.items() if value is not None}


def _state(histories: list[tuple[str, datetime]]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "current": histories[-1][0],
        "histories": [{"state": state, "date": instant(moment)} for state, moment in histories],
        "startDate": instant(histories[0][1]),
    }
    return shown | ({"endDate": instant(histories[-1][1])} if histories[-1][0] in TERMINAL else {})


def instant(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def log_entries(run: Run) -> list[dict[str, Any]]:
    entry = {
        "executionId": run.id,
        "namespace": run.namespace,
        "flowId": run.flow,
        "taskId": run.task,
        "taskRunId": f"{run.id}t",
        "attemptNumber": 0,
        "thread": "worker_1",
    }
    entries = [entry | {"level": "INFO", "message": "working", "timestamp": instant(run.started)}]
    if run.state == "FAILED":
        entries.append(
            entry
            | {
                "level": "ERROR",
                "message": run.ends.error,
                "timestamp": instant(run.histories[-1][1]),
            }
        )
    return entries
