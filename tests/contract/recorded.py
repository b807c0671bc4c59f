"""What real Kestra servers were asked and what they answered, as it was recorded: one exchange a
line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.contract.flows import Series

RECORDINGS = Path(__file__).with_name("recordings")
FILES: dict[Series, str] = {"1.3": "1.3.25.jsonl", "2.0": "2.0-2026-07-01.jsonl"}
VERSIONS: dict[Series, str] = {"1.3": "1.3.25", "2.0": "2.0.0-SNAPSHOT"}
"""What the servers that were recorded say of themselves."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request, and what a real server answered."""

    series: Series
    number: int
    method: str
    path: str
    authorised: bool
    request_headers: dict[str, str]
    request_body: str
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def name(self) -> str:
        accept = self.request_headers.get("accept", "*/*")
        return f"{self.number} {self.method} {unquote(self.path)[:90]} ({accept})"

    @property
    def route(self) -> list[str]:
        """The path's segments below the tenant; one that is empty where it has none."""
        return [unquote(part) for part in urlsplit(self.path).path.split("/")[4:]] or [""]

    @property
    def shown(self) -> dict[str, Any]:
        """The execution that was answered, or else the first that was listed; empty where there's
        none."""
        found = next(iter(rows(self.body)), self.body)
        return found if isinstance(found, dict) and "flowId" in found else {}

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else ""


@cache
def recorded(series: Series) -> list[Exchange]:
    """All exchanges with the server of that series, in the order in which they were made."""
    lines = (RECORDINGS / FILES[series]).read_text().splitlines()
    return [
        Exchange(series=series, number=number, **json.loads(line))
        for number, line in enumerate(lines, 1)
    ]


def rows(body: Any) -> list[dict[str, Any]]:
    """What a body lists; nothing where it's no list."""
    listed = body.get("results") if isinstance(body, dict) else body
    return listed if isinstance(listed, list) else []
