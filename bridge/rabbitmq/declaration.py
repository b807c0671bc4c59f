"""Declares queues and exchanges at the broker, as `topology` plans them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.errors import TopologyMismatch
from bridge.rabbitmq import topology
from bridge.rabbitmq.connection import version_of
from bridge.rabbitmq.topology import Exchange, Kind, Queue, Topology, Version
from bridge.settings import BrokerSettings, Lane


async def declare_lanes(
    connection: AbstractConnection, settings: BrokerSettings
) -> dict[str, Kind]:
    """Declare every lane; returns the type of each lane's queue.

    Raises:
        TopologyMismatch: a queue or an exchange exists with other arguments.
    """
    version = version_of(connection)
    return {
        lane.queue: await _declare_lane(connection, settings, lane, version)
        for lane in settings.all_lanes
    }


async def declare_missing_lanes(connection: AbstractConnection, settings: BrokerSettings) -> None:
    """Declare the lanes that don't exist. Existing ones stay as they are, whatever their arguments.

    So a user who may only write can publish, and settings other than the bridge's do no harm.

    Raises:
        TopologyMismatch: as `declare_lanes` does.
    """
    version = version_of(connection)
    for lane in settings.all_lanes:
        if not await _lane_exists(connection, lane):
            await _declare_lane(connection, settings, lane, version)


async def declare(connection: AbstractConnection, planned: Topology) -> None:
    """Declare a lane's exchanges and queues. What exists with the same arguments stays as it is.

    Raises:
        TopologyMismatch: one exists with other arguments.
    """
    for exchange in planned.exchanges:
        await declare_one(connection, exchange)
    for queue in (planned.jobs, planned.dead, *planned.retries):
        await declare_one(connection, queue)


async def declare_one(connection: AbstractConnection, thing: Queue | Exchange) -> None:
    """Declare an exchange, or a queue and its binding; raises as `declare` does.

    One that has the arguments of an earlier broker or bridge stays too: an upgrade must not keep
    the bridge from starting, and the doctor reports what is older.
    """
    try:
        await _declare(connection, thing)
    except TopologyMismatch:
        older = thing.of_before
        if older == thing or not await _matches(connection, older):
            raise


async def declare_replies(channel: AbstractChannel, name: str) -> str:
    """Declare the reply exchange and this replica's own queue on it; returns the queue's name."""
    exchange = await channel.declare_exchange(
        topology.REPLY_EXCHANGE.name, topology.REPLY_EXCHANGE.type, durable=True
    )
    queue = await channel.declare_queue(
        name, exclusive=True, auto_delete=True, arguments={"x-queue-type": "classic"}
    )
    await queue.bind(exchange, routing_key="#")
    return queue.name


async def _declare_lane(
    connection: AbstractConnection, settings: BrokerSettings, lane: Lane, version: Version
) -> Kind:
    """Declare a lane with the first queue type that fits what exists; returns that type."""
    plans = topology.plans(lane, settings, version)
    last = list(plans)[-1]
    for kind, planned in plans.items():
        try:
            await declare(connection, planned)
        except TopologyMismatch:
            if kind == last:
                raise
        else:
            break
    return kind


async def _lane_exists(connection: AbstractConnection, lane: Lane) -> bool:
    """Whether a lane's queue and exchange exist."""
    try:
        async with connection.channel() as channel:
            await channel.get_exchange(lane.queue, ensure=True)
            await channel.get_queue(lane.queue, ensure=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def _matches(connection: AbstractConnection, thing: Queue | Exchange) -> bool:
    try:
        await _declare(connection, thing)
    except TopologyMismatch:
        return False
    return True


async def _declare(connection: AbstractConnection, thing: Queue | Exchange) -> None:
    if isinstance(thing, Exchange):
        async with _channel_for(connection, f"exchange {thing.name}") as channel:
            await channel.declare_exchange(
                thing.name, thing.type, durable=True, arguments=dict(thing.arguments)
            )
        return
    async with _channel_for(connection, f"queue {thing.name}") as channel:
        declared = await channel.declare_queue(
            thing.name, durable=True, arguments=dict(thing.arguments)
        )
        if thing.exchange:
            await declared.bind(thing.exchange, routing_key=thing.routing_key)


@asynccontextmanager
async def _channel_for(connection: AbstractConnection, what: str) -> AsyncIterator[AbstractChannel]:
    """A channel for one declaration, since a refused one closes its channel."""
    try:
        async with connection.channel() as channel:
            yield channel
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(
            f"{what} exists with other arguments: {error}. Delete it once it is empty, or set "
            "BRIDGE_QUEUE_TYPE and BRIDGE_MAX_PRIORITY to what it was made with"
        ) from error
