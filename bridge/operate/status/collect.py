"""Asks every source at once what `status` shows; one that is away or slow costs the others
nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self, TypeVar

from bridge.errors import BridgeError, BrokerUnavailable
from bridge.kestra import Kestra
from bridge.operate.dead_letters.queue import DeadLetterQueue, Waiting
from bridge.operate.status.report import (
    BrokerFacts,
    Facts,
    KestraFacts,
    ManagementFacts,
    Unseen,
    names,
)
from bridge.rabbitmq.broker import Broker
from bridge.rabbitmq.inspector import Depth
from bridge.rabbitmq.management import Management, scrape
from bridge.rabbitmq.topology import dead_queue
from bridge.settings import BrokerSettings, KestraSettings, Lane
from bridge.telemetry.log import masked

PATIENCE = 15.0
"""Seconds that a source may take."""

READ_AT_MOST = 5000
"""Dead letters of a lane whose reasons are looked at: all, since reading a part would change the
order of the whole."""

TURN = 2.0
"""Seconds to wait for another command that is at work with dead letters."""

Told = TypeVar("Told")


class Survey:
    """What it takes to ask, kept from one time to the next. Use it as an async context manager.

    `kestra` is the reason where its settings can't be used.
    """

    def __init__(
        self, broker: BrokerSettings, kestra: KestraSettings | BridgeError, metrics: Sequence[str]
    ) -> None:
        self._settings = broker
        self._metrics = metrics
        self._queues = names(broker.all_lanes, broker.retry_delays)
        self._broker = Broker(broker)
        self._management = Management(broker)
        self._kestra = Kestra(kestra) if isinstance(kestra, KestraSettings) else kestra
        self._kestra_url = kestra.kestra_url if isinstance(kestra, KestraSettings) else None
        self._stack = AsyncExitStack()
        self._read: dict[str, tuple[Depth, Mapping[str, int]]] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._management)
        if isinstance(self._kestra, Kestra):
            await self._stack.enter_async_context(self._kestra)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def facts(self) -> Facts:
        """What all sources tell now. Raises nothing of theirs."""
        where = f"RabbitMQ's management API at {self._management.url}"
        # Not by gather, which would not wait until what is interrupted has given back the dead
        # letters.
        async with asyncio.TaskGroup() as asking:
            broker = asking.create_task(self._of_broker())
            management = asking.create_task(told(self._by_management(), where))
            kestra = asking.create_task(told(self._by_kestra(), "Kestra"))
            metrics = {
                masked(url): asking.create_task(told(scrape(url), f"the metrics at {masked(url)}"))
                for url in dict.fromkeys(self._metrics)
            }
        return Facts(
            at=datetime.now(UTC),
            rabbitmq=self._settings.broker_address,
            kestra_url=self._kestra_url,
            lanes=self._settings.all_lanes,
            retry_delays=self._settings.retry_delays,
            broker=broker.result(),
            management=management.result(),
            kestra=kestra.result(),
            metrics={url: asked.result() for url, asked in metrics.items()},
        )

    async def _of_broker(self) -> BrokerFacts | Unseen:
        found = await told(self._by_amqp(), f"RabbitMQ at {self._settings.broker_address}")
        if isinstance(found, Unseen):
            return found
        reasons: dict[str, Mapping[str, int] | Unseen] = {}
        for lane in self._settings.all_lanes:
            queue = dead_queue(lane.queue)
            reasons[queue] = await told(self._reasons(lane, found.depths[queue]), queue)
        return replace(found, reasons=reasons)

    async def _by_amqp(self) -> BrokerFacts:
        async with self._broker.commands() as session, session.inspector() as inspector:
            depths = {queue: await inspector.depth(queue) for queue in self._queues}
            return BrokerFacts(version=inspector.version, depths=depths)

    async def _reasons(self, lane: Lane, depth: Depth | None) -> Mapping[str, int]:
        """Why a lane's dead letters are there, read anew only where the queue's depth has
        changed.
        """
        if not depth or not depth.ready:
            return {}
        if depth.ready > READ_AT_MOST:
            raise BridgeError(
                f"more than {READ_AT_MOST} letters are for `kestra-bridge dead-letters "
                "list` to read"
            )
        known = self._read.get(lane.queue)
        if known is None or known[0] != depth:
            self._read[lane.queue] = known = depth, await self._count(lane)
        return known[1]

    async def _count(self, lane: Lane) -> Mapping[str, int]:
        async with (
            self._broker.commands() as session,
            DeadLetterQueue.open(
                session, lane, self._settings, only_look=True, waiting=Waiting(turn=TURN)
            ) as dead,
        ):
            return dict(Counter([letter.reason async for letter, _ in dead.read()]).most_common())

    async def _by_management(self) -> ManagementFacts:
        api = self._management
        alarms = await api.alarms()
        states = await asyncio.gather(*(api.queue(queue) for queue in self._queues))
        queues = {state.name: state for state in states if state}
        connections = {
            consumer.connection for state in queues.values() for consumer in state.consumers
        }
        return ManagementFacts(alarms=alarms, queues=queues, since=await self._since(connections))

    async def _since(self, connections: set[str]) -> Mapping[str, datetime]:
        known = await asyncio.gather(
            *(self._management.connected_since(name) for name in connections)
        )
        return {name: since for name, since in zip(connections, known, strict=True) if since}

    async def _by_kestra(self) -> KestraFacts:
        if isinstance(self._kestra, BridgeError):
            raise self._kestra
        version = await self._kestra.probe()
        unfinished = await self._kestra.unfinished()
        return KestraFacts(
            version=version, now=self._kestra.now(), unfinished=unfinished, link=self._kestra.link
        )


async def told(work: Awaitable[Told], whom: str, *, patience: float = PATIENCE) -> Told | Unseen:
    """What a source tells, or why it told nothing in good time."""
    try:
        async with asyncio.timeout(patience):
            return await work
    except BridgeError as error:
        return Unseen(error)
    except TimeoutError:
        return Unseen(BrokerUnavailable(f"{whom} said nothing for {patience:g} s"))
