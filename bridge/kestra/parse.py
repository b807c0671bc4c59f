"""Kestra's JSON as the bridge's own types. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bridge.errors import KestraUnavailable
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.kestra.answers import Answer

_NOT_RUNNING = (State.CREATED, State.QUEUED, State.RESTARTED, State.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlow:
    """A flow as the server has it.

    `limit` is how many of its executions may run at once, None for any number; `beyond` is what
    Kestra does with one more: QUEUE, CANCEL or FAIL.
    """

    source: str
    disabled: bool = False
    limit: int | None = None
    beyond: str = "QUEUE"


def read_execution(answer: Answer) -> Execution:
    """The execution that an answer holds.

    Raises:
        KestraUnavailable: it holds none that can be read.
    """
    try:
        return parse_execution(answer.json())
    except ValueError as error:
        raise KestraUnavailable(
            f"{answer.operation}: the answer can't be read ({error})"
        ) from error


def parse_execution(data: Any) -> Execution:
    """An execution from the API's JSON.

    Raises:
        ValueError: a part that the bridge relies on is missing or of another type.
    """
    if not isinstance(data, dict):
        raise ValueError("not an object")
    state = data.get("state")
    if not isinstance(state, dict):
        raise ValueError("no state")
    original_id = data.get("originalId")
    if not isinstance(original_id, str):
        original_id = None
    return Execution(
        id=_text(data, "id"),
        flow=FlowName(_text(data, "namespace"), _text(data, "flowId")),
        state=State(_text(state, "current")),
        labels=_labels(data.get("labels")),
        started=_time(state.get("startDate")),
        ended=_time(state.get("endDate")),
        running_since=_running_since(state.get("histories")),
        original_id=original_id,
        triggered=data.get("trigger") is not None,
    )


def parse_flow(data: Mapping[str, Any]) -> StoredFlow:
    """A flow from the API's JSON. What can't be read counts as not set."""
    source = data.get("source")
    if not isinstance(source, str):
        source = ""
    concurrency = data.get("concurrency")
    if not isinstance(concurrency, dict):
        concurrency = {}
    limit = concurrency.get("limit")
    if not isinstance(limit, int):
        limit = None
    return StoredFlow(
        source=source,
        disabled=data.get("disabled") is True,
        limit=limit,
        beyond=str(concurrency.get("behavior") or "QUEUE"),
    )


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The JSON objects in a list; none in anything else."""
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"no {key}")
    return value


def _labels(labels: Any) -> dict[str, str]:
    """An execution's labels, which are a list of pairs or a map.

    Raises:
        ValueError: they can't be read. An execution that merely looks unlabelled would count as
            somebody else's, and the job's would be created a second time.
    """
    if labels is None:
        return {}
    if isinstance(labels, dict):
        return {str(key): str(value) for key, value in labels.items()}
    if not isinstance(labels, list):
        raise ValueError("labels of an unknown shape")
    found = {}
    for label in labels:
        if not isinstance(label, dict) or not isinstance(label.get("key"), str):
            raise ValueError("labels of an unknown shape")
        found[label["key"]] = str(label.get("value", ""))
    return found


def _time(value: Any) -> datetime | None:
    """A moment, in UTC where it names no zone; None where it can't be read."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment


def _running_since(histories: Any) -> datetime | None:
    """When an execution began to run, by the history of its states; None where it has not.

    An execution that runs again after its end, which a restart does, began then.
    """
    since = None
    ended = False
    for entry in objects_in(histories):
        state = State(str(entry.get("state")))
        if state in _NOT_RUNNING:
            continue
        runs_again = ended and not state.terminal
        if since is None or runs_again:
            since = _time(entry.get("date"))
        ended = state.terminal
    return since
