"""Real RabbitMQ nodes of several versions, each started once, and a stand-in for Kestra that fails
on command."""

from __future__ import annotations

import json
import re
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aio_pika
import pytest

from deploy.local.paths import REPOSITORY
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.certificates import Authority
from tests.support.harness import Bridge, Client, another_bridge
from tests.support.standin import Standin

# The management API's figures are five seconds old by default, which is long for a test.
FRESH: dict[str, Any] = {
    "settings": {"collect_statistics_interval": "500"},
    "advanced": "[{rabbit, [{quorum_tick_interval, 500}]}].",
}

Kind = Literal["classic", "quorum"]
Node = Callable[[Series], RabbitMQ]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The private CA of the shared nodes' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Node]:
    """The shared node of a series, started when it is first asked for. It listens with TLS too."""
    nodes: dict[Series, RabbitMQ] = {}

    def shared(series: Series) -> RabbitMQ:
        if series not in nodes:
            directory = tmp_path_factory.mktemp(f"rabbitmq-{series}")
            nodes[series] = RabbitMQ(directory, series=series, tls=authority.broker(), **FRESH)
            nodes[series].start()
        return nodes[series]

    yield shared
    for started in nodes.values():
        started.kill()


@dataclass
class Stage:
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
) -> AsyncIterator[Stage]:
    """A stage on that node, with the flow `test/job` that succeeds at once; no process of it is
    left afterwards.

    With `tls`, Kestra speaks that.
    """
    async with Standin(tls=tls) as kestra, Client.connect(rabbit.amqp_url) as client:
        stage = Stage(directory, rabbit, kind, client, kestra)
        kestra.flow("test", "job")
        await stage.send_replies()
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()


@pytest.fixture(
    params=[("3.10", "classic"), ("4.3", "quorum"), ("4.3", "classic")],
    ids=lambda it: f"{it[0]}-{it[1]}",
)
async def stage(request: pytest.FixtureRequest, node: Node, tmp_path: Path) -> AsyncIterator[Stage]:
    """On each version and queue type that is supported."""
    series, kind = request.param
    async with open_stage(tmp_path, node(series), kind) as opened:
        yield opened


@pytest.fixture
async def one_stage(node: Node, tmp_path: Path) -> AsyncIterator[Stage]:
    """On 4.3 with a quorum queue alone, for what doesn't depend on either."""
    async with open_stage(tmp_path, node("4.3"), "quorum") as opened:
        yield opened


def rights_in_the_readme() -> dict[str, dict[str, str]]:
    """Who needs which rights at the broker: `run`, `submit` and so on, with patterns for configure,
    write and read."""
    (block,) = re.findall(
        r"^who +configure.*?```",
        (REPOSITORY / "deploy" / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    rows = [re.split(r" {2,}", line) for line in block.splitlines()[:-1]]
    return {who: dict(zip(rows[0][1:], rights, strict=True)) for who, *rights in rows[1:]}
