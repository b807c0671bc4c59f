"""What the doctor checks about deliveries: how long one may take, and how often a message may
return.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.durations import in_words
from bridge.operate.doctor.facts import BrokerFacts, Facts, LaneFacts, QueueFacts
from bridge.operate.doctor.finding import Finding, fault, unknown, warning
from bridge.rabbitmq.management import Consumer
from bridge.rabbitmq.topology import lift_limit
from bridge.settings import Settings

CONSUMER_ASKS = (4, 3)
"""From this version on the consumer itself says how long it may hold a delivery. Classic queues
have no such time-out any more."""

API_TELLS = (4, 0)
"""From this version on the management API reports the time-out of each consumer."""

_TIMEOUT_OF_3_10 = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'"


def acknowledgement_timeout(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Deliveries may stay unacknowledged for as long as their executions run."""
    for lane in facts.broker.lanes:
        unlimited = lane.kind == "classic" and facts.broker.version >= CONSUMER_ASKS
        if lane.kind is None or unlimited:
            continue
        limit = _timeout(settings, facts.broker, lane)
        if limit is None:
            yield _unknown_timeout(settings, facts.broker, lane)
            continue
        what = f"the acknowledgement time-out of {lane.jobs.name} is {in_words(limit)}"
        job_timeout = in_words(settings.job_timeout)
        if limit <= settings.job_timeout:
            yield fault(
                f"{what}, and a job may take {job_timeout} (BRIDGE_JOB_TIMEOUT)",
                why="RabbitMQ takes a longer job's delivery back while it runs: the bridge finds "
                "its execution again, but loses its session, and everything it held is delivered "
                "again",
                fix=_raise_timeout(settings, facts.broker, lane, limit),
            )
        elif limit < settings.hold:
            yield warning(
                f"{what}: that is longer than BRIDGE_JOB_TIMEOUT ({job_timeout}), but shorter "
                f"than {in_words(settings.hold)}",
                why="RabbitMQ can take back the delivery of a job that queues in Kestra or has a "
                "longer `timeout` of its own",
                fix=_raise_timeout(settings, facts.broker, lane, limit),
            )


def _timeout(settings: Settings, broker: BrokerFacts, lane: LaneFacts) -> float | None:
    """How many seconds a delivery of a lane may stay unacknowledged; None if that isn't known.

    On 4.3 a consumer's own value takes precedence over the configuration, and a policy or the queue
    argument is an upper bound. On 4.0 to 4.2 the API reports each consumer's value. 3.10 reports
    nothing.
    """
    state = lane.jobs.state
    if state is None:
        return None
    limits = []
    for consumer in state.consumers:
        limit = _consumer_timeout(consumer, broker)
        if limit is not None:
            limits.append(limit)
    if broker.version >= CONSUMER_ASKS:
        if state.policy is None:
            return None
        limits = limits or [settings.hold]
    bound = _timeout_bound(lane.jobs)
    if bound is not None:
        limits.append(bound)
    return min(limits, default=None)


def _consumer_timeout(consumer: Consumer, broker: BrokerFacts) -> float | None:
    if broker.version >= CONSUMER_ASKS and consumer.own_timeout is not None:
        return consumer.own_timeout
    return consumer.timeout


def _timeout_bound(queue: QueueFacts) -> float | None:
    """The time-out in seconds that policies and the queue argument allow."""
    values = (queue.argument("x-consumer-timeout"), queue.policy_value("consumer-timeout"))
    return min((value / 1000 for value in values if isinstance(value, int)), default=None)


def _unknown_timeout(settings: Settings, broker: BrokerFacts, lane: LaneFacts) -> Finding:
    where = "from here now" if broker.version >= API_TELLS else "by this version's APIs"
    return unknown(
        f"the acknowledgement time-out of {lane.jobs.name} can't be seen {where}",
        why="it is 30 min unless somebody raised it, and a job may take "
        f"{in_words(settings.job_timeout)} (BRIDGE_JOB_TIMEOUT): RabbitMQ takes back a delivery "
        "that is held for longer, while its job runs",
        fix=f"look on the broker's host: {_TIMEOUT_OF_3_10} It should say "
        f"{int(settings.hold * 1000)} or more; {_configure(settings)}",
    )


def _raise_timeout(settings: Settings, broker: BrokerFacts, lane: LaneFacts, limit: float) -> str:
    if _timeout_bound(lane.jobs) == limit:
        return (
            f"raise it to {int(settings.hold * 1000)} in the policy{lane.jobs.policies} or the "
            "queue argument x-consumer-timeout that sets it"
        )
    if broker.version >= CONSUMER_ASKS:
        return (
            "unset BRIDGE_CONSUMER_TIMEOUT, or set it to more than BRIDGE_JOB_TIMEOUT, and "
            "restart the bridge"
        )
    return _configure(settings)


def _configure(settings: Settings) -> str:
    milliseconds = int(settings.hold * 1000)
    return f"set consumer_timeout = {milliseconds} in rabbitmq.conf and restart RabbitMQ"


def delivery_limit(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Messages may be returned any number of times, when replicas die as well as when somebody
    looks at dead letters.
    """
    for lane in facts.broker.lanes:
        yield from _dead_letters_limit(facts.broker, lane.dead)
        limit = _delivery_limit(lane.jobs)
        if lane.kind != "quorum" or limit < 0:
            continue
        fix = (
            "delete the queue once it is empty; `kestra-bridge run` declares it with "
            "x-delivery-limit -1"
        )
        if lane.jobs.policies:
            fix = (
                "rabbitmqctl clear_policy -p VHOST NAME for the policy that sets "
                "delivery-limit, or set it to -1"
            )
        yield fault(
            f"{lane.jobs.name} gives a message up after {limit} returns{lane.jobs.policies}",
            why="replicas that die or lose their connection return messages: jobs would become "
            "dead letters although their executions may have succeeded",
            fix=fix,
        )


def _dead_letters_limit(broker: BrokerFacts, queue: QueueFacts) -> Iterator[Finding]:
    """A dead-letter queue has a limit on 4.x if it was made on RabbitMQ 3, or if a policy sets
    one.
    """
    limit = _delivery_limit(queue)
    if limit < 0:
        return
    returns = "each look at them returns all of them"
    if broker.version >= CONSUMER_ASKS:
        returns = "a look that is killed returns them"
    fix = lift_limit(queue.name)
    if queue.policies:
        fix = f"set delivery-limit to -1 in that policy{queue.policies}"
    yield fault(
        f"{queue.name} drops a dead letter after {limit} returns{queue.policies}",
        why=f"{returns}, and so does a lost connection: after that many they are gone for good",
        fix=fix,
    )


def _delivery_limit(queue: QueueFacts) -> int:
    """After how many returns a queue gives a message up; -1 for never or unknown."""
    if queue.state is None:
        return -1
    if queue.state.delivery_limit is not None:
        return queue.state.delivery_limit
    values = (queue.argument("x-delivery-limit"), queue.policy_value("delivery-limit"))
    return min((value for value in values if isinstance(value, int)), default=-1)
