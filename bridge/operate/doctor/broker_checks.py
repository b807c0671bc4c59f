"""What the doctor checks at RabbitMQ as a whole: version, alarms, rights, replies, consumers."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.operate.doctor.facts import Facts
from bridge.operate.doctor.finding import Finding, fault, warning
from bridge.rabbitmq.topology import REPLIES
from bridge.settings import Settings

OLDEST_TRIED, NEWEST_TRIED = (3, 10), (4, 3)

_REPLIES_LOST = "the sweep notices every end instead, up to BRIDGE_RECONCILE_INTERVAL late"


def version(_: Settings, facts: Facts) -> Iterator[Finding]:
    """RabbitMQ's version is one that the bridge was tried with."""
    broker = facts.broker
    if broker.version < OLDEST_TRIED:
        yield fault(
            f"RabbitMQ {broker.version_text} is older than 3.10, which the bridge "
            "was not tried with",
            why="only from 3.10 on do quorum queues hand dead letters over with confirms: before, "
            "a crash can lose a retry",
            fix="upgrade RabbitMQ to 4.3",
        )
    elif broker.version > NEWEST_TRIED:
        yield warning(
            f"RabbitMQ {broker.version_text} is newer than 4.3, the newest that "
            "the bridge was tried with",
            why="queues, priorities or time-outs may work differently there",
            fix="try it with jobs that may be lost first, or use RabbitMQ 4.3",
        )


def alarms(_: Settings, facts: Facts) -> Iterator[Finding]:
    """No alarm keeps the broker from taking messages."""
    if facts.broker.alarms:
        yield fault(
            f"RabbitMQ has an alarm: {', '.join(facts.broker.alarms)}",
            why="it takes no messages: nothing can be submitted, retried or "
            "dead-lettered until that is over",
            fix="free memory or disk space, or raise vm_memory_high_watermark or disk_free_limit "
            "in rabbitmq.conf",
        )


def rights(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The bridge's user has all rights that it needs."""
    by_right: dict[str, list[str]] = {}
    for refusal in sorted(facts.broker.refused, key=lambda refusal: (refusal.right, refusal.on)):
        by_right.setdefault(refusal.right, []).append(refusal.on)
    for right, names in by_right.items():
        found, why = fault, "`kestra-bridge run` ends at once with exit code 2, or can't settle"
        if (right, names) == ("write", [REPLIES]):
            found, why = warning, f"no replica can report ends to the others: {_REPLIES_LOST}"
        yield found(
            f"the user of BRIDGE_AMQP_URL has no {right} right on {', '.join(names)}",
            why=why,
            fix="rabbitmqctl set_permissions -p VHOST USER '^(kestra\\.|amq\\.gen-).*$' "
            "'^(kestra\\.|amq\\.gen-).*$|^amq\\.default$' '^(kestra\\.|amq\\.gen-).*$', with the "
            "names of your queues",
        )


def replies(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The exchange through which Kestra reports the ends of executions."""
    declared = facts.broker.replies
    consumed = any(lane.jobs.consumers for lane in facts.broker.lanes)
    if not declared.exists:
        yield warning(
            f"there is no exchange {REPLIES}",
            why=f"the notifier has nowhere to send to: {_REPLIES_LOST}",
            fix="kestra-bridge run, which declares it",
        )
    elif declared.differs:
        yield fault(
            f"the exchange {REPLIES} is not a durable topic exchange: {declared.differs}",
            why="`kestra-bridge run` ends with an error",
            fix=f"delete the exchange {REPLIES}; `kestra-bridge run` declares it anew",
        )
    elif consumed and facts.broker.replies_bound == 0:
        yield fault(
            f"no queue is bound to the exchange {REPLIES}, though somebody consumes jobs",
            why=f"replies are dropped: {_REPLIES_LOST}",
            fix="restart the bridge: each replica binds a queue of its own. Any other "
            "consumer is not a bridge",
        )


def consumers(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Every lane has a consumer."""
    for lane in facts.broker.lanes:
        if lane.jobs.depth is None or lane.jobs.consumers:
            continue
        why = "its jobs don't run"
        fix = (
            "kestra-bridge run, with this queue in BRIDGE_QUEUE or BRIDGE_LANES; if it runs "
            "already, see its log"
        )
        waiting = lane.jobs.depth.ready
        if waiting:
            what = f"nobody consumes {lane.jobs.name}, where messages wait: {waiting}"
            yield fault(what, why=why, fix=fix)
        else:
            yield warning(f"nobody consumes {lane.jobs.name}", why=why, fix=fix)
