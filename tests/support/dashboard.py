"""The dashboard that ships, its queries as Grafana would send them, and what the bridge has for
them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bridge.machines.metrics import registry_of
from bridge.machines.reaping import Sweep
from bridge.telemetry.metrics import Metrics
from deploy.local.paths import REPOSITORY

PATH = REPOSITORY / "deploy" / "grafana" / "kestra-bridge.json"
DASHBOARD: dict[str, Any] = json.loads(PATH.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ROWS = [panel["title"] for panel in PANELS if panel["type"] == "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

QUERIES: dict[str, str] = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel.get("targets", ())
}
"""Each query by its panel's title and its letter."""

RECORD = r"\w+:\w+:\w+"
"""The name of a recording rule's series."""


def filled(expr: str, values: Mapping[str, str]) -> str:
    """A query with its variables replaced; raises `KeyError` for one that has no value."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def exported(*, label: str | None = None) -> set[str]:
    """The names of the bridge's own series, as Prometheus has them; of a histogram its name as
    well.

    With `label`, only of those that have one of that name.
    """
    found = set()
    for family in Metrics({"kestra.jobs": 8}).registry.collect():
        names = {
            sample.name for sample in family.samples if label is None or label in sample.labels
        }
        histogram = {f"{family.name}{part}" for part in ("", "_bucket", "_count", "_sum")}
        found |= names
        if family.type == "counter" and label is None:
            # One whose labels' values show only in time has no samples yet.
            found.add(f"{family.name}_total")
        if family.type == "histogram" and (names or label is None):
            found |= histogram
    return found


def exported_of_machines() -> set[str]:
    """The names of the series in the file that `machine reap` writes."""
    nothing = Sweep(reaped=[], kept=0, troubles=[])
    families = registry_of(nothing, Counter(), now=0.0).collect()
    return {sample.name for family in families for sample in family.samples}


def named(text: str) -> set[str]:
    """The names of the bridge's series in a text, but for those of recording rules."""
    return set(re.findall(r"\bbridge_[a-z_]+[a-z]", re.sub(RECORD, "", text)))
