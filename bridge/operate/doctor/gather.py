"""Gathers the doctor's facts: each source is asked once, and one that is away leaves a gap that
says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from bridge.errors import BrokerDenied
from bridge.job.flow_name import FlowName
from bridge.kestra import Kestra
from bridge.operate.doctor import probe
from bridge.operate.doctor.certificates import certificates
from bridge.operate.doctor.facts import (
    BrokerFacts,
    Certificate,
    Facts,
    KestraFacts,
    LaneFacts,
    QueueFacts,
)
from bridge.operate.doctor.kestra_checks import NOTIFIER
from bridge.operate.status.collect import PATIENCE, told
from bridge.operate.status.report import Unseen
from bridge.rabbitmq import topology
from bridge.rabbitmq.broker import Broker, parse_version
from bridge.rabbitmq.inspector import DeclareResult, Inspector
from bridge.rabbitmq.management import Management
from bridge.settings import Lane, Settings

PATIENT = 4 * PATIENCE
"""Seconds for RabbitMQ, which is asked much, and its management API, which has its own patience
within them."""


async def gather(settings: Settings, *, probe_patience: float | None) -> Facts:
    """All facts. With `probe_patience` a probe is run, whose reply may take so many seconds.

    Raises:
        BrokerError: RabbitMQ can't be reached, or refuses us.
    """
    async with AsyncExitStack() as stack:
        management = await stack.enter_async_context(Management(settings))
        kestra = await stack.enter_async_context(Kestra(settings))
        inspector = await stack.enter_async_context(_inspector(settings))
        async with inspector.replies(probe.ROUTING_KEY) as replies:
            of_kestra, of_broker, shown = await asyncio.gather(
                told(kestra_facts(kestra, settings), "Kestra"),
                told(
                    _broker(inspector, management, settings),
                    f"RabbitMQ at {settings.broker_address}",
                    patience=PATIENT,
                ),
                certificates(settings),
            )
            if isinstance(of_broker, Unseen):
                raise of_broker.error
            facts = Facts(
                at=datetime.now(UTC), broker=of_broker, kestra=of_kestra, certificates=shown
            )
            if probe_patience is None or isinstance(of_kestra, Unseen):
                return facts
            if replies is not None and _tells(of_kestra):
                facts = replace(
                    facts,
                    round_trip=await probe.round_trip(kestra, replies, patience=probe_patience),
                )
            return replace(facts, kill=await probe.kill(kestra, patience=probe_patience))


@asynccontextmanager
async def _inspector(settings: Settings) -> AsyncIterator[Inspector]:
    """An inspector of RabbitMQ. Where it refuses us, or we it, the certificates that have ended are
    named.
    """
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(Broker(settings).commands())
        except BrokerDenied as error:
            now = datetime.now(UTC)
            shown = [
                found for found in await certificates(settings) if isinstance(found, Certificate)
            ]
            ended = [found.state(now) for found in shown if found.until <= now]
            raise BrokerDenied("; ".join([str(error), *ended])) from error
        yield await stack.enter_async_context(session.inspector())


def _tells(of_kestra: KestraFacts) -> bool:
    """Whether there is a notifier that may tell of an end; else there is nothing to try."""
    return of_kestra.notifier is not None and not of_kestra.notifier.disabled


def known_at_start(
    settings: Settings, of_kestra: KestraFacts, version: str, kinds: Mapping[str, topology.Kind]
) -> Facts:
    """What the consumer knows once it has declared its queues, which are as they should be then."""
    there = DeclareResult(exists=True)
    lanes = [
        LaneFacts(
            lane=lane,
            kind=kinds[lane.queue],
            jobs=QueueFacts(name=lane.queue, declared=there),
            dead=QueueFacts(name=topology.dead_queue(lane.queue), declared=there),
        )
        for lane in settings.all_lanes
    ]
    of_broker = BrokerFacts(
        version=parse_version(version), version_text=version, lanes=lanes, replies=there
    )
    return Facts(at=datetime.now(UTC), broker=of_broker, kestra=of_kestra)


async def kestra_facts(kestra: Kestra, settings: Settings) -> KestraFacts:
    """What Kestra tells.

    Raises:
        KestraError: it tells nothing.
    """
    version = kestra.version or await kestra.probe()
    named = _named_flows(settings)
    notifier, *found = await asyncio.gather(*(kestra.flow(flow) for flow in (NOTIFIER, *named)))
    return KestraFacts(
        version=version,
        skew=kestra.skew,
        notifier=notifier,
        flows=dict(zip(named, found, strict=True)),
    )


def _named_flows(settings: Settings) -> list[FlowName]:
    """The flows that the settings name, without those that they mean by a pattern."""
    found = {lane.flow_name for lane in settings.all_lanes if lane.flow_name}
    for pattern in settings.allowed_flows:
        try:
            found.add(FlowName.parse(pattern))
        except ValueError:
            continue
    return sorted(found)


async def _broker(inspector: Inspector, management: Management, settings: Settings) -> BrokerFacts:
    version = parse_version(inspector.version)
    lanes = [await _lane(inspector, lane, version, settings) for lane in settings.all_lanes]
    replies = await inspector.check(topology.REPLY_EXCHANGE)
    await inspector.try_publishing()
    facts = BrokerFacts(
        version=version,
        version_text=inspector.version,
        lanes=lanes,
        replies=replies,
        refused=sorted(inspector.refused),
    )
    seen = await told(
        _with_management(facts, management), f"RabbitMQ's management API at {management.url}"
    )
    return replace(facts, management=seen) if isinstance(seen, Unseen) else seen


async def _lane(
    inspector: Inspector, lane: Lane, version: topology.Version, settings: Settings
) -> LaneFacts:
    for kind in topology.candidates(settings.queue_type, version):
        planned = topology.plan(
            lane.queue,
            kind=kind,
            version=version,
            max_priority=settings.max_priority,
            retry_delays=settings.retry_delays,
        )
        jobs = await inspector.check(planned.jobs)
        if not jobs.differs:
            break
    if jobs.exists:
        await inspector.try_rights(lane.queue)
    return LaneFacts(
        lane=lane,
        kind=kind if jobs.exists and not jobs.differs else None,
        jobs=QueueFacts(name=lane.queue, declared=jobs, depth=await inspector.depth(lane.queue)),
        dead=QueueFacts(name=planned.dead.name, declared=await inspector.check(planned.dead)),
        retries=[
            QueueFacts(name=queue.name, declared=await inspector.check(queue))
            for queue in planned.retries
        ],
        exchanges={
            exchange.name: await inspector.check(exchange) for exchange in planned.exchanges
        },
    )


async def _with_management(facts: BrokerFacts, management: Management) -> BrokerFacts:
    alarms = await management.alarms()
    bound = await management.bindings_from(topology.REPLIES)
    heard = [
        binding for binding in bound if binding.routing_key != probe.ROUTING_KEY
    ]  # a doctor's own says nothing
    lanes = [await _lane_with_management(lane, management) for lane in facts.lanes]
    return replace(
        facts, alarms=alarms, replies_bound=len(heard), lanes=lanes, skew=management.skew
    )


async def _lane_with_management(lane: LaneFacts, management: Management) -> LaneFacts:
    jobs, dead, *retries = await asyncio.gather(
        _queue_with_management(lane.jobs, management),
        _queue_with_management(lane.dead, management),
        *(_queue_with_management(queue, management) for queue in lane.retries),
    )
    exchanges = {
        name: await _led_by_policy(name, found, management)
        for name, found in lane.exchanges.items()
    }
    return replace(lane, jobs=jobs, dead=dead, retries=retries, exchanges=exchanges)


async def _led_by_policy(
    exchange: str, declared: DeclareResult, management: Management
) -> DeclareResult:
    """How an exchange stands, which is as it should be where a policy gives it what an earlier
    bridge didn't.
    """
    if not declared.of_before:
        return declared
    policy = await management.policy_of_exchange(exchange)
    return replace(
        declared, of_before=policy.get(topology.ALTERNATE) != topology.dead_exchange(exchange)
    )


async def _queue_with_management(queue: QueueFacts, management: Management) -> QueueFacts:
    state = await management.queue(queue.name)
    bindings = await management.bindings(queue.name) if state else None
    return replace(queue, state=state, bindings=bindings)
