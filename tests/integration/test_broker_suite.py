"""Real brokers, held to the same tests as the one in memory that the unit tests use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from bridge.job.message import Message
from bridge.rabbitmq.broker import Broker
from bridge.rabbitmq.topology import REPLIES
from bridge.settings import BrokerSettings
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import Kind, Node
from tests.support.broker_suite import DELAY, PREFETCH, BrokerSuite, BrokerUnderTest
from tests.support.harness import Client, Proxy, eventually

QUIET = 0.7
"""Seconds within which a broker has done what it has to do."""


@dataclass
class RabbitUnderTest:
    """A queue of its own on a node, to which the bridge's connections go through a proxy."""

    rabbit: RabbitMQ
    client: Client
    proxy: Proxy
    broker: Broker
    queue: str

    async def submit(self, message: Message) -> None:
        await self.client.channel.default_exchange.publish(_outgoing(message), self.queue)

    async def depth(self, queue: str) -> int:
        return await self.client.depth(queue)

    async def take(self, queue: str) -> Message:
        (taken,) = await self.client.take(queue)
        return _incoming(taken)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def quiesce(self) -> None:
        await asyncio.sleep(QUIET)

    async def cut(self) -> None:
        self.proxy.cut()

    async def limit(self, queue: str, most: int) -> None:
        body: dict[str, Any] = {
            "pattern": f"^{queue}$".replace(".", r"\."),
            "definition": {"max-length": most, "overflow": "reject-publish"},
            "apply-to": "queues",
        }
        path = f"policies/%2F/{self.queue}"
        await asyncio.to_thread(self.rabbit.api, path, method="PUT", body=body)

        async def holds() -> bool:
            found = await asyncio.to_thread(self.rabbit.api, f"queues/%2F/{queue}")
            return bool(found.get("effective_policy_definition"))

        await eventually(holds, "the policy holds", every=0.2)

    async def delete(self, queue: str) -> None:
        await self.client.channel.queue_delete(queue)

    async def reply(self, body: bytes) -> None:
        exchange = await self.client.channel.get_exchange(REPLIES, ensure=False)
        await exchange.publish(aio_pika.Message(body), "SUCCESS.test.job", mandatory=False)


def _outgoing(message: Message) -> aio_pika.Message:
    return aio_pika.Message(
        message.body,
        message_id=message.message_id,
        headers=dict(message.headers),
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        content_type=message.content_type,
        delivery_mode=2,
    )


def _incoming(message: AbstractIncomingMessage) -> Message:
    return Message(
        body=message.body,
        message_id=message.message_id,
        headers=dict(message.headers),
        priority=message.priority,
    )


NODES: list[tuple[str, Kind]] = [("3.10", "classic"), ("4.3", "quorum"), ("4.3", "classic")]


@pytest.fixture(params=NODES, ids=lambda it: f"{it[0]}-{it[1]}")
async def under(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[BrokerUnderTest]:
    series, kind = request.param
    rabbit = node(series)
    queue = f"t{uuid.uuid4().hex[:10]}.jobs"
    async with (
        Client.connect(rabbit.amqp_url) as client,
        Proxy(rabbit.host, rabbit.port) as proxy,
    ):
        url = rabbit.amqp_url.replace(f":{rabbit.port}/", f":{proxy.port}/")
        settings = BrokerSettings.model_validate(
            {
                "amqp_url": url,
                "queue": queue,
                "prefetch": PREFETCH,
                "queue_type": kind,
                "retry_delays": [DELAY],
            }
        )
        broker = Broker(settings)
        async with broker.commands() as session:
            await session.declare()
        yield RabbitUnderTest(rabbit, client, proxy, broker, queue)


class TestRabbitMQ(BrokerSuite):
    """Each version and queue type that is supported."""
