"""Asks every source at once what `status` shows; one that is away or slow costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Self, TypeVar

from bridge.broker import Broker
from bridge.errors import BridgeError, BrokerUnavailable
from bridge.inspection import DeadLetters, Depth, Inspection
from bridge.kestra import Kestra
from bridge.management import Management, scrape
from bridge.settings import BrokerSettings, KestraSettings
from bridge.status import BrokerFacts, Facts, KestraFacts, ManagementFacts, Unseen, names
from bridge.topology import dead_queue

PATIENCE = 15.0
"""Seconds that a source may take."""

DEAD_LETTERS_READ = 100
"""Of each lane: reading them takes them from their queue for a moment."""

Told = TypeVar("Told")


class Survey:
    """What it takes to ask, kept from one time to the next. Use it as an async context manager.

    `kestra` is the reason where its settings can't be used.
    """

    def __init__(self, broker: BrokerSettings, kestra: KestraSettings | BridgeError, metrics: Sequence[str]) -> None:
        self._settings = broker
        self._metrics = metrics
        self._queues = names(broker.all_lanes, broker.retry_delays)
        self._broker = Broker(broker)
        self._management = Management(broker)
        self._kestra = Kestra(kestra) if isinstance(kestra, KestraSettings) else kestra
        self._kestra_url = kestra.kestra_url if isinstance(kestra, KestraSettings) else None
        self._stack = AsyncExitStack()
        self._read: dict[str, tuple[Depth, DeadLetters]] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._management)
        if isinstance(self._kestra, Kestra):
            await self._stack.enter_async_context(self._kestra)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def facts(self) -> Facts:
        """What all sources tell now. Raises nothing of theirs."""
        broker, management, kestra, metrics = await asyncio.gather(
            told(self._by_amqp(), f"RabbitMQ at {self._settings.broker_address}"),
            told(self._by_management(), f"RabbitMQ's management API at {self._management.url}"),
            told(self._by_kestra(), "Kestra"),
            asyncio.gather(*(told(scrape(url), f"the metrics at {url}") for url in self._metrics)),
        )
        return Facts(
            at=datetime.now(UTC),
            rabbitmq=self._settings.broker_address,
            kestra_url=self._kestra_url,
            lanes=self._settings.all_lanes,
            retry_delays=self._settings.retry_delays,
            broker=broker,
            management=management,
            kestra=kestra,
            metrics=dict(zip(self._metrics, metrics, strict=True)),
        )

    async def _by_amqp(self) -> BrokerFacts:
        async with self._broker.connection() as connection:
            inspection = Inspection(connection)
            depths = {queue: await inspection.depth(queue) for queue in self._queues}
            dead_queues = [dead_queue(lane.queue) for lane in self._settings.all_lanes]
            dead = {queue: await self._dead_letters(inspection, queue, depths[queue]) for queue in dead_queues}
            return BrokerFacts(version=inspection.version, depths=depths, dead_letters=dead)

    async def _dead_letters(self, inspection: Inspection, queue: str, depth: Depth | None) -> DeadLetters:
        """The reasons, read anew only where the queue's depth has changed."""
        if not depth or not depth.ready:
            return DeadLetters()
        known = self._read.get(queue)
        if known is None or known[0] != depth:
            self._read[queue] = known = depth, await inspection.dead_letters(queue, limit=DEAD_LETTERS_READ)
        return known[1]

    async def _by_management(self) -> ManagementFacts:
        api = self._management
        alarms = await api.alarms()
        states = await asyncio.gather(*(api.queue(queue) for queue in self._queues))
        queues = {state.name: state for state in states if state}
        connections = {consumer.connection for state in queues.values() for consumer in state.consumers}
        return ManagementFacts(alarms=alarms, queues=queues, since=await self._since(connections))

    async def _since(self, connections: set[str]) -> Mapping[str, datetime]:
        known = await asyncio.gather(*(self._management.connected_since(name) for name in connections))
        return {name: since for name, since in zip(connections, known, strict=True) if since}

    async def _by_kestra(self) -> KestraFacts:
        if isinstance(self._kestra, BridgeError):
            raise self._kestra
        version = await self._kestra.probe()
        unfinished = await self._kestra.unfinished()
        return KestraFacts(version=version, now=self._kestra.now(), unfinished=unfinished, link=self._kestra.link)


async def told(work: Awaitable[Told], whom: str, *, patience: float = PATIENCE) -> Told | Unseen:
    """What a source tells, or why it told nothing in good time."""
    try:
        async with asyncio.timeout(patience):
            return await work
    except BridgeError as error:
        return Unseen(error)
    except TimeoutError:
        return Unseen(BrokerUnavailable(f"{whom} said nothing for {patience:g} s"))
