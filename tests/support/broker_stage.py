"""What a test with a real RabbitMQ works with: a queue and bridges of its own, and a stand-in for
Kestra that fails on command."""

from __future__ import annotations

import asyncio
import json
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aio_pika

from deploy.local.processes import ProcessError
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.harness import Bridge, Client, another_bridge, eventually
from tests.support.standin import Standin

# The management API's figures are five seconds old by default, which is long for a test.
FRESH: dict[str, Any] = {
    "settings": {"collect_statistics_interval": "500"},
    "advanced": "[{rabbit, [{quorum_tick_interval, 500}]}].",
}

Kind = Literal["classic", "quorum"]
Node = Callable[[Series], RabbitMQ]


@dataclass
class BrokerStage:
    """One test's own queue and its own Kestra."""

    directory: Path
    rabbit: RabbitMQ
    kind: Kind
    client: Client
    kestra: Standin
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}")
    bridges: list[Bridge] = field(default_factory=list)

    @property
    def queue(self) -> str:
        return f"{self.name}.jobs"

    def bridge(self, **settings: object) -> Bridge:
        """A replica that isn't started yet; `settings` are names of settings in lower case."""
        environment = {
            "BRIDGE_AMQP_URL": self.rabbit.amqp_url,
            "BRIDGE_KESTRA_URL": self.kestra.url,
            "BRIDGE_KESTRA_USERNAME": self.kestra.username,
            "BRIDGE_KESTRA_PASSWORD": self.kestra.password,
            "BRIDGE_QUEUE": self.queue,
            "BRIDGE_QUEUE_TYPE": self.kind,
            "BRIDGE_FLOW": "test/job",
        }
        return another_bridge(self.bridges, self.directory, environment, settings)

    async def declare(self, **settings: object) -> None:
        """Have the queues made by a bridge that stops again, so that jobs can be there before any
        runs."""
        bridge = await self.bridge(**settings).start()
        await bridge.stop()

    async def submit(self, job: str | None, body: object = None, **properties: Any) -> None:
        await self.client.submit(self.queue, body, job=job, **properties)

    async def dead_letter(self) -> Any:
        """The next message of the dead-letter queue."""
        (message,) = await self.client.take(f"{self.queue}.dead")
        return message

    async def send_replies(self, sender: Client | None = None) -> None:
        """Have the stand-in's replies published as the notifier flow would, which asks for no
        confirm.

        A `sender` of one's own finds the exchange declared.
        """
        channel = await (sender or self.client).connection.channel(publisher_confirms=False)
        if sender:
            exchange = await channel.get_exchange("kestra.replies", ensure=False)
        else:
            exchange = await channel.declare_exchange("kestra.replies", "topic", durable=True)

        async def publish(reply: dict[str, Any]) -> None:
            key = f"{reply['state']}.{reply['namespace']}.{reply['flowId']}"
            await exchange.publish(
                aio_pika.Message(json.dumps(reply).encode()), key, mandatory=False
            )

        self.kestra.replies.on_end = publish


@asynccontextmanager
async def open_stage(
    directory: Path, rabbit: RabbitMQ, kind: Kind, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[BrokerStage]:
    """A stage on that node, with the flow `test/job` that succeeds at once; no process of it is
    left afterwards.

    With `tls`, Kestra speaks that.
    """
    async with Standin(tls=tls) as kestra, Client.connect(rabbit.amqp_url) as client:
        stage = BrokerStage(directory, rabbit, kind, client, kestra)
        kestra.flow("test", "job")
        await stage.send_replies()
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()


@asynccontextmanager
async def memory_alarm(rabbit: RabbitMQ) -> AsyncIterator[None]:
    """In the block, the broker takes no messages, since it is low on memory."""

    async def raised() -> bool:
        # The figures of a node leave its alarms out at times, so they are no help here.
        try:
            await asyncio.to_thread(rabbit.api, "health/checks/alarms")
        except ProcessError as error:
            return ": 503 " in str(error)
        return False

    await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        await eventually(raised, "an alarm is raised")
        yield
    finally:
        await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.6")
