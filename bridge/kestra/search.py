"""Searches of executions, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bridge.errors import KestraUnavailable
from bridge.job.execution import Execution
from bridge.kestra.parse import parse_execution
from bridge.kestra.transport import Transport

MAIN: Mapping[str, str] = {"filters[childFilter][EQUALS]": "MAIN"}
"""The filter that leaves out what a trigger or another execution started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """One page of a search, and how many executions all its pages have.

    `last` says that no page follows.
    """

    executions: list[Execution]
    total: int
    last: bool = True


def labelled(labels: Mapping[str, str]) -> dict[str, str]:
    """The filters for executions with all of these labels."""
    return {f"filters[labels][EQUALS][{key}]": value for key, value in labels.items()}


def started_from(moment: datetime | None) -> dict[str, str]:
    """The filter for executions that started then or later; none where the moment is None."""
    if moment is None:
        return {}
    text = moment.isoformat(timespec="seconds")
    return {"filters[startDate][GREATER_THAN_OR_EQUAL_TO]": text}


class ExecutionSearch:
    """Searches, oldest execution first. Never trust a server's filter: check what it found."""

    def __init__(self, transport: Transport, page_size: int) -> None:
        self._transport = transport
        self._page_size = page_size

    async def all(self, operation: str, filters: Mapping[str, str]) -> SearchPage:
        """All pages of a search as one."""
        executions: list[Execution] = []
        number = 1
        while True:
            page = await self.page(operation, filters, number)
            executions += page.executions
            number += 1
            if not page.executions or len(executions) >= page.total:
                return SearchPage(executions=executions, total=page.total)

    async def page(
        self,
        operation: str,
        filters: Mapping[str, str],
        number: int,
        *,
        order: str = "state.startDate:asc",
        most: int | None = None,
    ) -> SearchPage:
        """One page of a search, with `most` executions at most; the first has number 1."""
        size = min(self._page_size, most or self._page_size)
        params = {
            **filters,
            "page": str(number),
            "size": str(size),
            "sort": order,
        }
        answer = await self._transport.read(operation, "GET", "/executions/search", params=params)
        found = answer.object()
        rows, total = found.get("results"), found.get("total")
        if not isinstance(rows, list) or not isinstance(total, int):
            raise KestraUnavailable(f"{operation}: the answer has no list of results")
        try:
            executions = [parse_execution(row) for row in rows]
        except ValueError as error:
            raise KestraUnavailable(f"{operation}: a row can't be read ({error})") from error
        return SearchPage(
            executions=executions,
            total=total,
            last=not rows or number * size >= total,
        )
