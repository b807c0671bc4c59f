"""Flows from their YAML sources, as far as tests need them, and the inputs that they take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml

from tests.contract.flows import Series
from tests.support.standin.answers import refusal
from tests.support.standin.model import (
    Ends,
    Flow,
    Run,
)
from tests.support.standin.shown import instant


def flow_from(series: Series, source: str) -> Flow:
    """A flow from its YAML source, as far as tests need one: tasks that log, fail, sleep or
    pause."""
    data: Any = None
    with suppress(yaml.YAMLError):
        data = yaml.safe_load(source)
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), str) for key in ("id", "namespace")
    ):
        raise refusal(series, "id: [broken")
    tasks, inputs = data.get("tasks") or [], data.get("inputs") or []
    if not tasks:
        raise refusal(series, "422 POST /api/v1/main/flows\nid: v\n")
    wrong = [one["type"] for one in inputs if one["type"] == "BOOLEAN" and series == "2.0"]
    wrong += [
        task.get("type")
        for task in tasks
        if not str(task.get("type")).startswith("io.kestra.plugin.")
    ]
    if wrong:
        raise refusal(series, "io.no.Such", ("io.no.Such", str(wrong[0])))
    return Flow(
        namespace=data["namespace"],
        id=data["id"],
        behaviour=partial(_behave, tasks, data.get("outputs") or []),
        inputs={one["id"]: f"{one['type']} {one.get('itemType', '')}".strip() for one in inputs},
        required=frozenset(one["id"] for one in inputs if one.get("required", True)),
        disabled=bool(data.get("disabled")),
        concurrency=data.get("concurrency"),
        source=source,
        task=next((task["id"] for task in tasks if task["type"].endswith(".Fail")), tasks[0]["id"]),
        parts={key: data[key] for key in ("tasks", "inputs", "outputs", "triggers") if key in data},
    )


def flow_json(flow: Flow) -> dict[str, Any]:
    shown = {
        "id": flow.id,
        "namespace": flow.namespace,
        "revision": 1,
        "updated": instant(datetime.now(UTC)),
        "disabled": flow.disabled,
        "deleted": False,
        "tasks": [{"id": flow.task}],
        "source": flow.source,
        **flow.parts,
    }
    return shown | ({"concurrency": dict(flow.concurrency)} if flow.concurrency else {})


def typed(series: Series, parts: Mapping[str, str], flow: Flow) -> dict[str, Any]:
    if flow.inputs is None:
        return dict(parts)
    for name in flow.required - parts.keys():
        raise refusal(
            series, "/executions/contract.flows/demanding", ("input:text", f"input:{name}")
        )
    kinds = flow.inputs.items()
    return {
        name: _convert(series, name, parts[name], kind) if name in parts else None
        for name, kind in kinds
    }


def _convert(series: Series, name: str, text: str, kind: str) -> Any:
    converter, like = _CONVERTERS.get(kind, (str, ""))
    try:
        return converter(text)
    except ValueError:
        raise refusal(series, like, ("`number`", f"`{name}`"), ('"seven"', f'"{text}"')) from None


_CONVERTERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "INT": (int, 'name="number"'),
    "FLOAT": (float, 'name="number"'),
    "JSON": (json.loads, 'name="data"'),
    "ARRAY": (json.loads, 'name="data"'),
    "ARRAY INT": (lambda text: [int(one) for one in json.loads(text)], 'name="arr"'),
    "DATETIME": (datetime.fromisoformat, 'name="d"'),
}
"""How the text of an input is read by its type, and a part of the request in which a real server
couldn't."""


def _behave(tasks: list[dict[str, Any]], outputs: list[dict[str, Any]], run: Run) -> Ends:
    after = sum(_seconds(task.get("duration", "PT0S")) for task in tasks)
    failing = next((task for task in tasks if task["type"].endswith(".Fail")), None)
    if failing:
        return Ends("FAILED", after, error=failing.get("errorMessage", "Task failure"))
    if any(task["type"].endswith(".Pause") for task in tasks):
        return Ends("PAUSED", after)
    return Ends(
        "SUCCESS", after, {one["id"]: _render(one["value"], run) for one in outputs} or None
    )


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"PT([\d.]+)S", duration)
    return float(found[1]) if found else 0.0


def _render(text: str, run: Run) -> str:
    return re.sub(r"{{ *inputs\.(\w+) *}}", lambda found: str(run.inputs.get(found[1])), text)
