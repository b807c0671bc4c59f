"""What a test with a real RabbitMQ and Kestra's real engine works with: a queue, a namespace, a
flow and bridges of its own."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from bridge.job.execution import Execution
from bridge.kestra import parse_execution
from bridge.operate.doctor.checks import examine
from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.doctor.gather import gather
from bridge.settings import Settings
from deploy.local.kestra_engine import Engine
from deploy.local.paths import REPOSITORY
from deploy.local.rabbitmq import RabbitMQ
from tests.support.given import Server
from tests.support.harness import Bridge, Client, another_bridge, eventually

JOB_FLOW = """
id: job
namespace: {namespace}
description: Sleeps, then fails for as many attempts as it is told to.
inputs:
  - {{id: seconds, type: INT, defaults: 0}}
  - {{id: failures, type: INT, defaults: 0}}
  - {{id: text, type: STRING, defaults: none}}
  - {{id: data, type: JSON, required: false}}
tasks:
  - id: perhaps
    type: io.kestra.plugin.core.flow.If
    condition: "{{{{ inputs.seconds > 0 }}}}"
    then:
      - id: sleep
        type: io.kestra.plugin.core.flow.Sleep
        duration: "PT{{{{ inputs.seconds }}}}S"
  - id: fail
    type: io.kestra.plugin.core.execution.Fail
    condition: "{{{{ inputs.failures >= (labels.bridgeAttempt ?? '1') | number }}}}"
    errorMessage: failed on purpose
outputs:
  - {{id: text, type: STRING, value: "{{{{ inputs.text }}}}"}}
"""


@dataclass(frozen=True)
class Broker:
    """A RabbitMQ that is given: where it's reached, and nothing more."""

    amqp_url: str


def deploy_flows(engine: Engine | Server, *, timeout: float | None = None) -> None:
    """Deploy the flows that ship, with the notifier, as an operator would: the command finds out
    which ones this server needs.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "flows", "deploy", "--notifier"],
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), **kestra_settings(engine)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr


def kestra_settings(engine: Engine | Server) -> dict[str, str]:
    """What a bridge needs to know of a Kestra."""
    if isinstance(engine, Server) and engine.token:
        return {"BRIDGE_KESTRA_URL": engine.url, "BRIDGE_KESTRA_TOKEN": engine.token}
    return {
        "BRIDGE_KESTRA_URL": engine.url,
        "BRIDGE_KESTRA_USERNAME": engine.username,
        "BRIDGE_KESTRA_PASSWORD": engine.password,
    }


@dataclass
class EngineStage:
    """One test's own queue, namespace and flow, and what happens there."""

    directory: Path
    rabbit: RabbitMQ | Broker
    engine: Engine | Server
    client: Client
    api: httpx.AsyncClient
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")
    bridges: list[Bridge] = field(default_factory=list)
    deployed: list[str] = field(default_factory=list)

    @property
    def node(self) -> RabbitMQ:
        """The broker, where it's one of our own; a test that needs more of a given one than its
        address is skipped."""
        if isinstance(self.rabbit, Broker):
            pytest.skip("needs the management API of a RabbitMQ of our own")
        return self.rabbit

    @property
    def queue(self) -> str:
        return f"{self.name}.jobs"

    def bridge(
        self, *, amqp_url: str | None = None, kestra_url: str | None = None, **settings: object
    ) -> Bridge:
        """A replica that isn't started yet; `settings` are names of settings in lower case."""
        environment = {
            "BRIDGE_AMQP_URL": amqp_url or self.rabbit.amqp_url,
            **kestra_settings(self.engine),
            **({"BRIDGE_KESTRA_URL": kestra_url} if kestra_url else {}),
            "BRIDGE_QUEUE": self.queue,
            "BRIDGE_FLOW": f"{self.name}/job",
        }
        return another_bridge(self.bridges, self.directory, environment, settings)

    async def submit(self, job: str, *, body: object = None, **properties: Any) -> None:
        await self.client.submit(self.queue, body, job=job, **properties)

    async def deploy(self, source: str) -> None:
        answer = await self.api.post(
            "/flows", content=source.encode(), headers={"Content-Type": "application/x-yaml"}
        )
        assert answer.status_code == 200, answer.text
        self.deployed.append(f"/flows/{answer.json()['namespace']}/{answer.json()['id']}")

    async def clear(self) -> None:
        """Take away what would otherwise stay with a server that is given."""
        for execution in await self.executions():
            if not execution.state.terminal:
                await self.api.delete(self._action(execution.id, "kill"))
        for path in self.deployed:
            await self.api.delete(path)

    def _action(self, execution_id: str, action: str) -> str:
        """Where an action on an execution is asked for, which 2.0 has moved."""
        moved = "" if self.engine.series == "1.3" else "actions/"
        return f"/executions/{execution_id}/{moved}{action}"

    async def replace(self, flow_id: str, source: str) -> None:
        """Give a flow another revision."""
        kind = {"Content-Type": "application/x-yaml"}
        answer = await self.api.put(
            f"/flows/{self.name}/{flow_id}", content=source.encode(), headers=kind
        )
        assert answer.status_code == 200, answer.text

    async def restart(self, execution_id: str, **query: str) -> None:
        """As an operator does it."""
        answer = await self.api.post(self._action(execution_id, "restart"), params=query)
        assert answer.status_code == 200, answer.text

    async def resume(self, execution_id: str) -> None:
        """Let a paused execution go on."""
        answer = await self.api.post(self._action(execution_id, "resume"))
        assert answer.is_success, answer.text

    async def change_status(self, execution_id: str, state: str) -> None:
        """As an operator does it."""
        answer = await self.api.post(
            self._action(execution_id, "change-status"), params={"status": state}
        )
        assert answer.status_code == 200, answer.text

    async def executions(self, **labels: str) -> list[Execution]:
        """All executions in this test's namespace with those labels, oldest first."""
        found: list[Execution] = []
        params = {
            "filters[namespace][EQUALS]": self.name,
            "size": "100",
            "sort": "state.startDate:asc",
        }
        params |= {f"filters[labels][EQUALS][{key}]": value for key, value in labels.items()}
        while True:
            answer = await self.api.get(
                "/executions/search", params=params | {"page": str(len(found) // 100 + 1)}
            )
            assert answer.status_code == 200, answer.text
            rows = answer.json()["results"]
            found += [parse_execution(row) for row in rows]
            if len(found) >= answer.json()["total"] or not rows:
                return found

    async def running(self, count: int = 1, **labels: str) -> list[Execution]:
        """The test's executions that run, once there are so many."""

        async def enough() -> list[Execution]:
            found = [
                execution
                for execution in await self.executions(**labels)
                if execution.state == "RUNNING"
            ]
            return found if len(found) >= count else []

        return await eventually(enough, f"{count} running executions")

    async def kill(self, execution: Execution) -> None:
        answer = await self.api.delete(self._action(execution.id, "kill"))
        assert answer.is_success, answer.text

    async def diagnosed(self, *, patience: float | None = None, **settings: Any) -> list[Finding]:
        """What the doctor finds wrong, or can't see, with this test's queue; with `patience` it
        runs a probe."""
        own: dict[str, Any] = {
            "amqp_url": SecretStr(self.node.amqp_url),
            "management_url": self.node.management_url,
            "kestra_url": self.engine.url,
            "kestra_username": self.engine.username,
            "kestra_password": SecretStr(self.engine.password),
            "queue": self.queue,
            "flow": f"{self.name}/job",
            "retry_delays": [1],
        }
        chosen = Settings(**{**own, **settings}, _env_file=None)
        found = examine(chosen, await gather(chosen, probe_patience=patience))
        return [finding for finding in found if finding.level is not Level.OK]

    async def dead_letter(self) -> Any:
        """The one message of the dead-letter queue."""
        (message,) = await self.client.take(f"{self.queue}.dead")
        return message

    async def peek(self) -> list[str]:
        """The job ids that are ready in the queue."""
        connection_ids = []
        async with self.client.connection.channel() as channel:
            queue = await channel.get_queue(self.queue, ensure=False)
            while message := await queue.get(fail=False):
                connection_ids.append(str(message.message_id))
        return connection_ids  # closing the channel gives them all back
