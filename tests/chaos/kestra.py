"""The Kestra of a trial: the stand-in as a process of its own, or the real engine."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child
from tests.chaos.history import Execution, read
from tests.chaos.jobs import ENGINE_FLOW, NAMESPACE
from tests.support.harness import eventually

PAGE = 200


class Kestra(Protocol):
    """What a trial needs of either."""

    @property
    def url(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...

    async def start(self) -> None: ...
    async def end(self) -> None: ...
    async def executions(self) -> list[Execution]: ...


def address(kestra: Kestra) -> tuple[str, int]:
    """Where it listens."""
    parts = urlsplit(kestra.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def settings(kestra: Kestra) -> dict[str, str]:
    """The bridge's settings for it."""
    return {
        "BRIDGE_KESTRA_URL": kestra.url,
        "BRIDGE_KESTRA_USERNAME": kestra.username,
        "BRIDGE_KESTRA_PASSWORD": kestra.password,
    }


class StandinProcess:
    """The stand-in, whose faults are told to it by `tell`."""

    url = username = password = ""

    def __init__(self, directory: Path, *, seed: int, amqp: list[str]) -> None:
        self._directory = directory
        self._socket = directory / "standin.sock"
        options = {"seed": seed, "socket": str(self._socket), "amqp": amqp}
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "CHAOS_STANDIN": json.dumps(options),
        }
        self._child: Child | None = None
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.standin_server"]
        self._child = Child(
            "stand-in", command, log=self._directory / "standin.log", env=self._environment
        )
        await eventually(self._socket.exists, "the stand-in listens")
        self._streams = await asyncio.open_unix_connection(str(self._socket))
        where = await self.tell("where")
        self.url, self.username, self.password = where["url"], where["username"], where["password"]

    async def end(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        if self._child is not None:
            self._child.kill()

    async def executions(self) -> list[Execution]:
        file = self._directory / "executions.jsonl"
        await self.tell("dump", file=str(file))
        return [event for event in read(file) if isinstance(event, Execution)]

    async def tell(self, do: str, **arguments: object) -> Any:
        """Have it do something, and its answer."""
        assert self._streams is not None, "not started"
        reader, writer = self._streams
        async with self._turn:
            writer.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = await reader.readline()
        return json.loads(line)["answer"]


class EngineProcess:
    """Kestra's engine on a database that outlasts it, with the notifier and the trial's flow."""

    def __init__(self, directory: Path, *, amqp: str) -> None:
        self._engine = Engine(
            directory / "engine", amqp=AmqpAddress.from_url(amqp), database="file"
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._directory = directory
        self._amqp = amqp
        self.username, self.password = self._engine.username, self._engine.password

    @property
    def url(self) -> str:
        return self._engine.url

    async def start(self) -> None:
        await self.start_again()
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "BRIDGE_AMQP_URL": self._amqp,
            **settings(self),
        }
        command = [sys.executable, "-m", "bridge", "flows", "deploy", "--notifier"]
        with Child(
            "flows deploy", command, log=self._directory / "deploy.log", env=environment
        ) as deploying:
            await eventually(lambda: not deploying.alive, "the flows are deployed")
            assert deploying.returncode == 0, deploying.tail()
        async with self._api() as api:
            headers = {"Content-Type": "application/x-yaml"}
            answer = await api.post("/flows", content=ENGINE_FLOW.encode(), headers=headers)
            assert answer.status_code == 200, answer.text

    async def start_again(self) -> None:
        """Start after `kill`, with all that was there."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.start)

    async def kill(self) -> None:
        """End it as a crash would."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.kill)

    async def end(self) -> None:
        await self.kill()
        self._thread.shutdown()

    async def executions(self) -> list[Execution]:
        found: dict[str, Execution] = {}
        async with self._api() as api:
            page, total = 1, 1
            while len(found) < total and page <= total // PAGE + 1:
                filters = {"filters[namespace][EQUALS]": NAMESPACE, "sort": "state.startDate:asc"}
                params = {**filters, "page": str(page), "size": str(PAGE)}
                answer = (
                    (await api.get("/executions/search", params=params)).raise_for_status().json()
                )
                found |= {row["id"]: _as_event(row) for row in answer["results"]}
                page, total = page + 1, answer["total"]
        return list(found.values())

    def _api(self) -> httpx.AsyncClient:
        auth = httpx.BasicAuth(self.username, self.password)
        return httpx.AsyncClient(base_url=f"{self.url}/api/v1/main", auth=auth, timeout=30)


def _as_event(row: dict[str, Any]) -> Execution:
    labels = {label["key"]: label["value"] for label in row["labels"]}
    states = [
        (one["state"], datetime.fromisoformat(one["date"]).timestamp())
        for one in row["state"]["histories"]
    ]
    return Execution(
        id=row["id"],
        chain=row.get("originalId") or row["id"],
        job=labels.get("bridgeJob", ""),
        attempt=int(labels.get("bridgeAttempt", "1")),
        states=tuple(states),
    )
