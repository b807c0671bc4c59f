"""The dashboard that ships, and its queries as Grafana would send them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from deploy.local.paths import REPOSITORY

PATH = REPOSITORY / "deploy" / "grafana" / "kestra-bridge.json"
DASHBOARD: dict[str, Any] = json.loads(PATH.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ROWS = [panel["title"] for panel in PANELS if panel["type"] == "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


QUERIES: dict[str, str] = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel.get("targets", ())
}
"""Each query by its panel's title and its letter."""


def filled(expr: str, values: Mapping[str, str]) -> str:
    """A query with its variables replaced; raises `KeyError` for one that has no value."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
