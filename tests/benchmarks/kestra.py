"""A Kestra that is measured, or what stands for it: how it is reached, and what it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import httpx

from tests.benchmarks.measure import BenchmarkError

PAGE = 500


@dataclass(frozen=True, slots=True)
class Kestra:
    """Where it is, and as whom it is asked: by name and password, or by a token."""

    url: str
    username: str = ""
    password: str = ""
    token: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> Self:
        """The Kestra that a bridge with these settings uses."""
        names = ("URL", "USERNAME", "PASSWORD", "TOKEN")
        return cls(*(settings.get(f"BRIDGE_KESTRA_{name}", "") for name in names))

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which a bridge uses it."""
        if self.token:
            return {"BRIDGE_KESTRA_URL": self.url, "BRIDGE_KESTRA_TOKEN": self.token}
        return {
            "BRIDGE_KESTRA_URL": self.url,
            "BRIDGE_KESTRA_USERNAME": self.username,
            "BRIDGE_KESTRA_PASSWORD": self.password,
        }

    @property
    def client(self) -> dict[str, Any]:
        """The arguments of an httpx client for it."""
        options = {"base_url": f"{self.url}/api/v1/main", "timeout": 60}
        if self.token:
            return {**options, "headers": {"Authorization": f"Bearer {self.token}"}}
        return {**options, "auth": (self.username, self.password)}

    def ask(self, path: str, **parameters: str) -> Any:
        """The answer to a question."""
        with httpx.Client(**self.client) as http:
            return http.get(path, params=parameters).raise_for_status().json()

    def version(self) -> str:
        """Which Kestra it is."""
        with httpx.Client(**{**self.client, "base_url": f"{self.url}/api/v1"}) as http:
            return str(http.get("/configs").raise_for_status().json()["version"])

    def count(self, **filters: str) -> int:
        """How many executions it has, with those filters."""
        return int(self.ask("/executions/search", size="1", **filtered(**filters))["total"])

    def last_end(self, **filters: str) -> float:
        """When the execution that ended last did so, in seconds since the epoch by its clock."""
        found = self.ask(
            "/executions/search", size="1", sort="state.endDate:desc", **filtered(**filters)
        )
        return datetime.fromisoformat(found["results"][0]["state"]["endDate"]).timestamp()

    def ends(self, wanted: set[str]) -> dict[str, datetime]:
        """When these executions, the latest that it has, ended by its clock.

        Raises:
            BenchmarkError: it shows no end of one.
        """
        ends: dict[str, datetime] = {}
        for page in range(1, 2 + 2 * len(wanted) // PAGE):
            found = self.ask(
                "/executions/search", sort="state.startDate:desc", size=str(PAGE), page=str(page)
            )
            for row in found["results"]:
                if row["id"] in wanted:
                    ends[row["id"]] = datetime.fromisoformat(row["state"]["endDate"])
        if missing := wanted - set(ends):
            raise BenchmarkError(
                f"Kestra shows no end of {len(missing)} executions, such as {min(missing)}"
            )
        return ends

    def has_flow(self, name: str) -> bool:
        """Whether it has a flow of that name that is enabled."""
        with httpx.Client(**self.client) as http:
            answer = http.get(f"/flows/{name}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                return False
            return not answer.raise_for_status().json().get("disabled", False)

    def save(self, name: str, source: str) -> None:
        """Create a flow, or replace it."""
        headers = {"Content-Type": "application/x-yaml"}
        with httpx.Client(**self.client) as http:
            answer = http.put(f"/flows/{name}", content=source.encode(), headers=headers)
            if answer.status_code == httpx.codes.NOT_FOUND:
                answer = http.post("/flows", content=source.encode(), headers=headers)
            answer.raise_for_status()

    def remove(self, name: str) -> None:
        """Delete a flow, if it is there. Its executions stay."""
        with httpx.Client(**self.client) as http:
            http.delete(f"/flows/{name}")


def filtered(**filters: str) -> dict[str, str]:
    """The parameters of a search for what equals all of these."""
    return {f"filters[{key}][EQUALS]": value for key, value in filters.items()}
