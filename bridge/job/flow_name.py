"""Flows by name, and the list of those that may be started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

PATTERN = r"^[a-z0-9][a-z0-9._-]{0,149}/[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}$"
"""Kestra's own rule for namespaces and ids (its `Flow` class)."""


@dataclass(frozen=True, slots=True, order=True)
class FlowName:
    """A flow's full name; written `namespace/id`."""

    namespace: str
    id: str

    @classmethod
    def parse(cls, text: str) -> FlowName:
        """Raises `ValueError` for anything that can't be a flow's name in Kestra."""
        if not re.fullmatch(PATTERN, text):
            raise ValueError(f"{text!r} is not namespace/id")
        namespace, _, flow_id = text.partition("/")
        return cls(namespace, flow_id)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.id}"


def allowed(flow: FlowName, patterns: Sequence[str]) -> bool:
    """Whether a flow is on the allow-list, whose patterns are shell-like (`bridge.jobs/*`)."""
    return any(fnmatchcase(str(flow), pattern) for pattern in patterns)
