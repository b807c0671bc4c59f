"""What differs between the versions of Kestra's API. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dialect:
    """The paths and parameters of a server's version.

    2.0 moved an execution's actions and outputs, and renamed the filter of a log's level.
    """

    version: str

    @property
    def series(self) -> tuple[int, int]:
        """The version's first two numbers; 2.0 where it has none, as in development builds."""
        numbers = re.match(r"(\d+)(?:\.(\d+))?", self.version)
        if numbers is None:
            return 2, 0
        return int(numbers[1]), int(numbers[2] or 0)

    @property
    def major(self) -> int:
        """The version's first number; 2 where it has none."""
        return self.series[0]

    def kill(self, execution_id: str) -> str:
        """The path that kills an execution."""
        if self.major >= 2:
            return f"/executions/{execution_id}/actions/kill"
        return f"/executions/{execution_id}/kill"

    def error_logs(self) -> dict[str, str]:
        """The parameters that limit a log to error messages."""
        if self.major >= 2:
            return {"filters[level][GREATER_THAN_OR_EQUAL_TO]": "ERROR"}
        return {"minLevel": "ERROR"}
