"""Broker, engine and bridge of the demo, and what each says of the jobs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aio_pika
import aio_pika.exceptions
import httpx

from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL, MARK, MARK_LABEL
from bridge.job.execution import Execution
from bridge.kestra import parse_execution
from deploy.local.demo.host import Host
from deploy.local.demo.jobs import FLOW, MACHINE_FLOW, MACHINE_QUEUE, QUEUE, Case
from deploy.local.demo.telling import Listener
from deploy.local.kestra_engine import Engine
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child
from deploy.local.rabbitmq import RabbitMQ

RETRY_DELAY = 2
# Few at once, so that the order shows.
LANE: Mapping[str, Any] = {"queue": QUEUE, "prefetch": 3, "flow": FLOW}
# As many as the flow lets run at once.
MACHINE_LANE: Mapping[str, Any] = {"queue": MACHINE_QUEUE, "prefetch": 4, "flow": MACHINE_FLOW}
SETTINGS = {
    "BRIDGE_MAX_ATTEMPTS": "2",
    "BRIDGE_RETRY_DELAYS": f"[{RETRY_DELAY}]",
    "BRIDGE_DRAIN_TIMEOUT": "5",
    "BRIDGE_HTTP_PORT": "0",
    "BRIDGE_LOG_FORMAT": "json",
}
RUN_TASK = "run"
"""The task of the machines' flow that runs the script."""
NO_SCRIPTS_WORDS = (
    "kestra-bridge: ",
    "io.kestra.",
    "Command failed with exit code ",
    "Stream closed",
)
"""How lines begin that the bridge's command and Kestra's runner add to a script's output."""

Settled = Mapping[str, list[dict[str, Any]]]
Executions = Mapping[str, list[Execution]]


class RefusedError(RuntimeError):
    """RabbitMQ doesn't do what the demo asks of it."""


class Stack:
    """All that runs; `host` is None where there are no machines."""

    def __init__(
        self, rabbit: RabbitMQ, engine: Engine, directory: Path, host: Host | None
    ) -> None:
        self.rabbit = rabbit
        self.engine = engine
        self.directory = directory
        self.host = host
        self.bridge: Child | None = None
        self.listener = Listener(rabbit)
        self._http = httpx.Client(
            base_url=f"{engine.url}/api/v1/main",
            auth=httpx.BasicAuth(engine.username, engine.password),
            timeout=30,
        )

    @property
    def settings(self) -> dict[str, str]:
        """What a bridge and its commands need to work with this stack."""
        lanes = [dict(LANE), dict(MACHINE_LANE)] if self.host else [dict(LANE)]
        return {
            # Without the last slash: Java's client would take it for a virtual host without a name.
            "BRIDGE_AMQP_URL": self.rabbit.amqp_url.rstrip("/"),
            "BRIDGE_MANAGEMENT_URL": self.rabbit.management_url,
            **kestra_settings(self.engine),
            "BRIDGE_LANES": json.dumps(lanes),
            **SETTINGS,
        }

    @property
    def queues(self) -> tuple[str, ...]:
        return (QUEUE, MACHINE_QUEUE) if self.host else (QUEUE,)

    def start(self, name: str, *arguments: str, log: str | None = None) -> Child:
        """A `kestra-bridge` command as a child process, out of reach of anybody's `.env` file."""
        return Child(
            f"kestra-bridge {name}",
            [sys.executable, "-m", "bridge", name, *arguments],
            log=self.directory / f"{log or name}.log",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **self.settings},
            cwd=self.directory,
        )

    def lines(self, log: str) -> list[dict[str, Any]]:
        """The JSON lines that a command has printed so far."""
        file = self.directory / f"{log}.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        return [
            json.loads(line)
            for line in text.splitlines(keepends=True)
            if line[:1] == "{" and line[-2:] == "}\n"
        ]

    def settled(self, cases: Iterable[Case]) -> Settled:
        """What the bridge logged of each job's settlements, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {case.id: [] for case in cases}
        for line in self.lines("run"):
            if line.get("event") == "settled" and line.get("job") in found:
                found[line["job"]].append(line)
        return found

    def executions(self, cases: Iterable[Case]) -> Executions:
        """Kestra's executions of each job, by attempt."""
        params = {
            f"filters[labels][EQUALS][{MARK_LABEL}]": MARK,
            "size": "500",
            "sort": "state.startDate:asc",
        }
        found: dict[str, list[Execution]] = {case.id: [] for case in cases}
        for execution in map(
            parse_execution, self._get("/executions/search", params).json()["results"]
        ):
            found.setdefault(execution.labels[JOB_LABEL], []).append(execution)
        return {job: sorted(runs, key=attempt) for job, runs in found.items()}

    def said(self, execution: str) -> list[str]:
        """What the script of an execution on a machine has printed, as Kestra's log has it."""
        return script_lines(self._get(f"/logs/{execution}", {}).json())

    def file(self, execution: str, uri: str) -> str:
        """What a file in Kestra's storage holds."""
        return self._get(f"/executions/{execution}/file", {"path": uri}).text

    def kill(self, execution: Execution) -> None:
        """Kill an execution in Kestra, as an operator would."""
        answer = self._http.delete(f"/executions/{execution.id}/actions/kill")
        if answer.status_code != httpx.codes.CONFLICT:  # it has ended, or is being killed
            answer.raise_for_status()

    def close(self) -> None:
        """End the conversation with Kestra."""
        self._http.close()

    def publish(self, case: Case) -> None:
        """Put a message on its queue that `submit` would refuse.

        Raises:
            RefusedError: RabbitMQ has no such queue.
        """
        properties = {"message_id": case.id, "priority": case.priority, "delivery_mode": 2}
        message = {
            "routing_key": case.queue,
            "payload": case.raw,
            "payload_encoding": "string",
            "properties": properties,
        }
        if not self.rabbit.api(f"exchanges/%2F/{case.queue}/publish", method="POST", body=message)[
            "routed"
        ]:
            raise RefusedError(f"RabbitMQ routes {case.id} to no queue")

    def ready(self) -> int:
        """The jobs that wait in the first queue at this moment; 0 if there's no such queue."""
        return asyncio.run(_ready(self.rabbit.amqp_url, QUEUE))

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """The messages of queues, those that a consumer holds included; RabbitMQ counts them once a
        second.
        """
        found = {
            each["name"]: int(each.get("messages", 0)) for each in self.rabbit.api("queues/%2F")
        }
        return {queue: found.get(queue, 0) for queue in queues}

    def dead_letters(self) -> list[dict[str, Any]]:
        """The properties of the dead letters of all queues; they stay where they are."""
        how = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
        paths = [f"queues/%2F/{queue}.dead/get" for queue in self.queues]
        return [
            letter["properties"]
            for path in paths
            for letter in self.rabbit.api(path, method="POST", body=how)
        ]

    def _get(self, path: str, params: Mapping[str, str]) -> httpx.Response:
        answer = self._http.get(path, params=params)
        answer.raise_for_status()
        return answer


def kestra_settings(engine: Engine) -> dict[str, str]:
    """The settings by which the bridge's commands reach that Kestra."""
    return {
        "BRIDGE_KESTRA_URL": engine.url,
        "BRIDGE_KESTRA_USERNAME": engine.username,
        "BRIDGE_KESTRA_PASSWORD": engine.password,
    }


def script_lines(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a script on a machine has printed, of an execution's log."""
    return [
        line
        for row in log
        # Of an output stream Kestra makes one of these two levels.
        if row.get("taskId") == RUN_TASK and row.get("level") in ("INFO", "ERROR")
        for line in str(row.get("message")).splitlines()
        if not line.startswith(NO_SCRIPTS_WORDS)
    ]


def attempt(execution: Execution) -> int:
    """The number of the attempt that an execution is, from 1; 0 without a label."""
    return int(execution.labels.get(ATTEMPT_LABEL, "0"))


async def _ready(url: str, queue: str) -> int:
    connection = await aio_pika.connect(url, timeout=10)
    async with connection:
        channel = await connection.channel()
        try:
            declared = await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return 0
        return declared.declaration_result.message_count or 0
