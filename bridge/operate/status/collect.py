"""Asks all sources of `status` at once, so that one that is away or slow doesn't delay the
others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from bridge.errors import BridgeError
from bridge.kestra import Kestra
from bridge.operate.dead_letters.queue import DeadLetterQueue, Waiting
from bridge.operate.sources import (
    KESTRA,
    Unavailable,
    ask,
    broker_name,
    management_name,
    queue_states,
)
from bridge.operate.status.snapshot import (
    BrokerSnapshot,
    KestraSnapshot,
    ManagementSnapshot,
    Snapshot,
    queue_names,
)
from bridge.rabbitmq.broker import Broker
from bridge.rabbitmq.inspector import Depth
from bridge.rabbitmq.management import Management, scrape
from bridge.rabbitmq.topology import dead_queue, reporter_lock
from bridge.settings import BrokerSettings, KestraSettings, Lane
from bridge.telemetry.log import masked


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingLimits:
    """How far status goes to learn the reasons of dead letters.

    At most `messages` of a lane: all are read, since reading a part would change the order of the
    whole. `turn` is the seconds to wait for another command that is at work with dead letters.
    """

    messages: int = 5000
    turn: float = 2.0


class Collector:
    """Takes snapshots; keeps its clients from one to the next. Use it as an async context manager.

    `kestra` is an error if its settings can't be used; the snapshots then give it as the reason.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        kestra: KestraSettings | BridgeError,
        metrics: Sequence[str],
        *,
        limits: ReadingLimits = ReadingLimits(),
    ) -> None:
        self._settings = broker
        self._metrics = metrics
        self._limits = limits
        self._queues = queue_names(broker.all_lanes, broker.retry_delays)
        self._broker = Broker(broker)
        self._management = Management(broker)
        self._kestra: Kestra | BridgeError
        self._kestra_url: str | None
        if isinstance(kestra, BridgeError):
            self._kestra, self._kestra_url = kestra, None
        else:
            self._kestra, self._kestra_url = Kestra(kestra), kestra.kestra_url
        self._stack = AsyncExitStack()
        self._known_reasons: dict[str, tuple[Depth, Mapping[str, int]]] = {}

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._management)
        if isinstance(self._kestra, Kestra):
            await self._stack.enter_async_context(self._kestra)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def snapshot(self) -> Snapshot:
        """What all sources say now. An error of a source is part of the snapshot."""
        # A cancelled task group waits until the dead letters are given back. asyncio.gather would
        # not wait.
        async with asyncio.TaskGroup() as tasks:
            broker = tasks.create_task(self._ask_broker())
            management = tasks.create_task(
                ask(self._from_management(), management_name(self._management))
            )
            kestra = tasks.create_task(ask(self._from_kestra(), KESTRA))
            metrics = {
                masked(url): tasks.create_task(ask(scrape(url), f"the metrics at {masked(url)}"))
                for url in dict.fromkeys(self._metrics)
            }
        return Snapshot(
            at=datetime.now(UTC),
            rabbitmq=self._settings.broker_address,
            kestra_url=self._kestra_url,
            lanes=self._settings.all_lanes,
            retry_delays=self._settings.retry_delays,
            broker=broker.result(),
            management=management.result(),
            kestra=kestra.result(),
            metrics={url: task.result() for url, task in metrics.items()},
        )

    async def _ask_broker(self) -> BrokerSnapshot | Unavailable:
        answer = await ask(self._from_broker(), broker_name(self._settings))
        if isinstance(answer, Unavailable):
            return answer
        reasons: dict[str, Mapping[str, int] | Unavailable] = {}
        for lane in self._settings.all_lanes:
            queue = dead_queue(lane.queue)
            reasons[queue] = await ask(self._reasons(lane, answer.depths[queue]), queue)
        return replace(answer, reasons=reasons)

    async def _from_broker(self) -> BrokerSnapshot:
        async with self._broker.commands() as session, session.inspector() as inspector:
            depths = {queue: await inspector.depth(queue) for queue in self._queues}
            return BrokerSnapshot(version=inspector.version, depths=depths)

    async def _reasons(self, lane: Lane, depth: Depth | None) -> Mapping[str, int]:
        """A lane's dead letters counted by reason. They are read only when the queue's depth has
        changed since the last time.
        """
        if not depth or not depth.ready:
            return {}
        if depth.ready > self._limits.messages:
            raise BridgeError(
                f"more than {self._limits.messages} letters are for "
                "`kestra-bridge dead-letters list` to read"
            )
        known = self._known_reasons.get(lane.queue)
        if known is not None:
            known_depth, reasons = known
            if known_depth == depth:
                return reasons
        reasons = await self._count_reasons(lane)
        self._known_reasons[lane.queue] = depth, reasons
        return reasons

    async def _count_reasons(self, lane: Lane) -> Mapping[str, int]:
        async with (
            self._broker.commands() as session,
            DeadLetterQueue.open(
                session,
                lane,
                self._settings,
                only_look=True,
                waiting=Waiting(turn=self._limits.turn),
            ) as dead,
        ):
            return dict(Counter([letter.reason async for letter, _ in dead.read()]).most_common())

    async def _from_management(self) -> ManagementSnapshot:
        alarms = await self._management.alarms()
        queues = await queue_states(self._management, self._queues)
        connections = {
            consumer.connection for state in queues.values() for consumer in state.consumers
        }
        since = await self._connected_since(connections)
        lock = await self._management.queue(reporter_lock(self._settings.all_lanes[0].queue))
        reporter = lock.owner if lock else None
        return ManagementSnapshot(alarms=alarms, queues=queues, since=since, reporter=reporter)

    async def _connected_since(self, connections: set[str]) -> Mapping[str, datetime]:
        times = await asyncio.gather(
            *(self._management.connected_since(connection) for connection in connections)
        )
        return {name: since for name, since in zip(connections, times, strict=True) if since}

    async def _from_kestra(self) -> KestraSnapshot:
        if isinstance(self._kestra, BridgeError):
            raise self._kestra
        version = await self._kestra.probe()
        unfinished = await self._kestra.unfinished()
        return KestraSnapshot(
            version=version, now=self._kestra.now(), unfinished=unfinished, link=self._kestra.link
        )
