"""What a search asks for: filters, labels, pages and an order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.contract.flows import Series
from tests.support.standin.answers import refusal
from tests.support.standin.model import (
    GOING,
    TERMINAL,
    Call,
    Pairs,
    Run,
)

DATES = ("startDate", "endDate")


@dataclass(frozen=True, slots=True)
class Filter:
    """One `filters[field][OPERATION][key]=value`."""

    field: str
    operation: str
    key: str
    values: list[str]

    def holds(self, run: Run) -> bool:
        if self.field == "childFilter":
            return True
        if self.field in DATES:
            # Kestra compares both with the start.
            return run.started >= datetime.fromisoformat(self.values[0])
        actual = {
            "labels": run.labels.get(self.key),
            "state": run.state,
            "namespace": run.namespace,
            "flowId": run.flow,
        }
        return (actual[self.field] in self.values) is (self.operation in ("EQUALS", "IN"))


def filters(series: Series, query: Pairs) -> list[Filter]:
    """A search's filters. Flat parameters count in 1.x alone, and only without any filter; 2.0
    ignores them."""
    found = [_filter(series, name, value) for name, value in query if name.startswith("filters[")]
    if series == "2.0" or found:
        return found
    flat = [
        (name, value) for name, value in query if name in ("labels", "state", "namespace", "flowId")
    ]
    keyed = [
        (name, value.partition(":") if name == "labels" else ("", "", value))
        for name, value in flat
    ]
    return [Filter(name, "EQUALS", key, [value]) for name, (key, _, value) in keyed]


def _filter(series: Series, name: str, value: str) -> Filter:
    parsed = re.fullmatch(r"filters\[(.*?)]\[(.*?)](?:\[(.+)])?", name)
    what, operation, key = parsed.groups(default="") if parsed else ("", "", "")
    if what not in ("labels", "state", "namespace", "flowId", "childFilter", *DATES):
        raise refusal(series, "filters[nothing]", ("'nothing'", f"'{what}'"))
    if operation not in ("EQUALS", "NOT_EQUALS", "IN", "NOT_IN", "GREATER_THAN_OR_EQUAL_TO"):
        raise refusal(series, "LOOKS_LIKE", ("LOOKS_LIKE", operation))
    values = value.split(",") if operation in ("IN", "NOT_IN") else [value]
    for state in values if what == "state" else []:
        if state not in TERMINAL | GOING:
            raise refusal(series, "DREAMING", ("DREAMING", state))
    return Filter(what, operation, key, values)


def labels_from(series: Series, texts: Iterable[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, colon, value = text.partition(":")
        if not value.strip():
            raise refusal(series, "labels=empty:" if colon else "labels=nocolon")
        if key in labels:
            both = ("values 1 and 2", f"values {labels[key]} and {value}")
            raise refusal(series, "labels=twice:1", ("key twice", f"key {key}"), both)
        if key.startswith("system.") and key not in ("system.correlationId", "system.from"):
            raise refusal(series, "labels=system.other:x", ("system.other=x", f"{key}={value}"))
        labels[key] = value.strip()
    return labels


def positive(series: Series, call: Call, name: str, default: int) -> int:
    number = int(call.value(name) or default)
    if number < 1:
        raise refusal(series, "page=0", (".page:", f".{name}:"))
    return number


def sorted_by(series: Series, runs: list[Run], order: str) -> list[Run]:
    name, _, direction = order.partition(":")
    far = datetime.max.replace(tzinfo=UTC)
    keys: dict[str, Callable[[Run], Any]] = {
        "id": lambda run: run.id,
        "state.startDate": lambda run: run.started,
        "state.endDate": lambda run: run.ended or far,
    }
    if name not in keys:
        raise refusal(series, "sort=nonsense", ("nonsense", name))
    return sorted(runs, key=keys[name], reverse=direction.lower() == "desc")
