"""Gathers the doctor's facts. Each source is asked once; a source that is away leaves a gap that
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
from bridge.operate.flows import NOTIFIER
from bridge.operate.sources import (
    ANSWER_WITHIN,
    KESTRA,
    Unavailable,
    ask,
    broker_name,
    management_name,
    queue_states,
)
from bridge.rabbitmq import topology
from bridge.rabbitmq.broker import Broker, parse_version
from bridge.rabbitmq.inspector import DeclareResult, Inspector
from bridge.rabbitmq.management import Management
from bridge.settings import Lane, Settings

BROKER_ANSWERS_WITHIN = 4 * ANSWER_WITHIN
"""Seconds for RabbitMQ, which is asked much. They include the management API, which has a limit of
its own."""


async def gather(settings: Settings, *, probe_patience: float | None) -> Facts:
    """All facts. With `probe_patience` the probes run too; it is how many seconds each may take.

    Raises:
        BrokerError: RabbitMQ can't be reached, or refuses us.
    """
    async with AsyncExitStack() as stack:
        management = await stack.enter_async_context(Management(settings))
        kestra = await stack.enter_async_context(Kestra(settings))
        inspector = await stack.enter_async_context(_inspector(settings))
        async with inspector.replies(probe.ROUTING_KEY) as replies:
            from_kestra, from_broker, found_certificates = await asyncio.gather(
                ask(kestra_facts(kestra, settings), KESTRA),
                ask(
                    _broker(inspector, management, settings),
                    broker_name(settings),
                    within=BROKER_ANSWERS_WITHIN,
                ),
                certificates(settings),
            )
            if isinstance(from_broker, Unavailable):
                raise from_broker.error
            facts = Facts(
                at=datetime.now(UTC),
                broker=from_broker,
                kestra=from_kestra,
                certificates=found_certificates,
            )
            if probe_patience is None or isinstance(from_kestra, Unavailable):
                return facts
            # Without a notifier that runs there is no round trip to try.
            notifier = from_kestra.notifier
            if replies is not None and notifier is not None and not notifier.disabled:
                round_trip = await probe.round_trip(kestra, replies, patience=probe_patience)
                facts = replace(facts, round_trip=round_trip)
            return replace(facts, kill=await probe.kill(kestra, patience=probe_patience))


@asynccontextmanager
async def _inspector(settings: Settings) -> AsyncIterator[Inspector]:
    """An inspector of RabbitMQ. If either side refuses the other, the error names the certificates
    that have ended.
    """
    async with AsyncExitStack() as stack:
        try:
            session = await stack.enter_async_context(Broker(settings).commands())
        except BrokerDenied as error:
            now = datetime.now(UTC)
            ended = [
                found.state(now)
                for found in await certificates(settings)
                if isinstance(found, Certificate) and found.until <= now
            ]
            raise BrokerDenied("; ".join([str(error), *ended])) from error
        yield await stack.enter_async_context(session.inspector())


def known_at_start(
    settings: Settings, from_kestra: KestraFacts, version: str, kinds: Mapping[str, topology.Kind]
) -> Facts:
    """What the consumer knows once it has declared its queues, which are then as they should be."""
    exists = DeclareResult(exists=True)
    lanes = [
        LaneFacts(
            lane=lane,
            kind=kinds[lane.queue],
            jobs=QueueFacts(name=lane.queue, declared=exists),
            dead=QueueFacts(name=topology.dead_queue(lane.queue), declared=exists),
        )
        for lane in settings.all_lanes
    ]
    from_broker = BrokerFacts(
        version=parse_version(version), version_text=version, lanes=lanes, replies=exists
    )
    return Facts(at=datetime.now(UTC), broker=from_broker, kestra=from_kestra)


async def kestra_facts(kestra: Kestra, settings: Settings) -> KestraFacts:
    """What Kestra says.

    Raises:
        KestraError: it doesn't answer.
    """
    version = kestra.server.version or await kestra.probe()
    named = _named_flows(settings)
    notifier, *found = await asyncio.gather(
        *(kestra.flows.get(flow) for flow in (NOTIFIER, *named))
    )
    return KestraFacts(
        version=version,
        skew=kestra.clock.skew,
        notifier=notifier,
        flows=dict(zip(named, found, strict=True)),
    )


def _named_flows(settings: Settings) -> list[FlowName]:
    """The flows that the settings name. Flows that only match a pattern are left out."""
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
    answer = await ask(_with_management(facts, management), management_name(management))
    if isinstance(answer, Unavailable):
        return replace(facts, management=answer)
    return answer


async def _lane(
    inspector: Inspector, lane: Lane, version: topology.Version, settings: Settings
) -> LaneFacts:
    for kind, planned in topology.plans(lane, settings, version).items():
        jobs = await inspector.check(planned.jobs)
        found = kind if jobs.exists and not jobs.differs else None
        if not jobs.differs:
            break
    if jobs.exists:
        await inspector.try_rights(lane.queue)
    return LaneFacts(
        lane=lane,
        kind=found,
        jobs=QueueFacts(name=lane.queue, declared=jobs, depth=await inspector.depth(lane.queue)),
        dead=QueueFacts(name=planned.dead.name, declared=await inspector.check(planned.dead)),
        ledger=await inspector.check(
            topology.plan_ledger(lane.queue, window=settings.deduplicate_window)
        ),
        retries=[
            QueueFacts(name=queue.name, declared=await inspector.check(queue))
            for queue in planned.retries
        ],
        exchanges={
            exchange.name: await inspector.check(exchange) for exchange in planned.exchanges
        },
    )


async def _with_management(facts: BrokerFacts, management: Management) -> BrokerFacts:
    """The facts with what the management API adds."""
    alarms = await management.alarms()
    bindings = await management.bindings_from(topology.REPLIES)
    # The doctor's own binding proves nothing.
    others = [binding for binding in bindings if binding.routing_key != probe.ROUTING_KEY]
    return replace(
        facts,
        alarms=alarms,
        replies_bound=len(others),
        lanes=[await _lane_with_management(lane, management) for lane in facts.lanes],
        skew=management.skew,
    )


async def _lane_with_management(lane: LaneFacts, management: Management) -> LaneFacts:
    states = await queue_states(management, [queue.name for queue in lane.queues])
    bindings = dict(
        zip(states, await asyncio.gather(*map(management.bindings, states)), strict=True)
    )

    def complete(queue: QueueFacts) -> QueueFacts:
        return replace(queue, state=states.get(queue.name), bindings=bindings.get(queue.name))

    exchanges = {
        name: await _with_policy(name, declared, management)
        for name, declared in lane.exchanges.items()
    }
    return replace(
        lane,
        jobs=complete(lane.jobs),
        dead=complete(lane.dead),
        retries=[complete(queue) for queue in lane.retries],
        exchanges=exchanges,
    )


async def _with_policy(
    exchange: str, declared: DeclareResult, management: Management
) -> DeclareResult:
    """How an exchange differs. A policy can give an exchange of an earlier bridge the alternate
    exchange that it lacks; then it is as it should be.
    """
    if not declared.of_before:
        return declared
    policy = await management.policy_of_exchange(exchange)
    alternate = policy.get(topology.ALTERNATE)
    return replace(declared, of_before=alternate != topology.dead_exchange(exchange))
