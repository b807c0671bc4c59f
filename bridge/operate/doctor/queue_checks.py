"""What the doctor checks at the lanes' queues and exchanges."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.operate.doctor.facts import Facts, LaneFacts, QueueFacts
from bridge.operate.doctor.finding import Finding, fault, warning
from bridge.rabbitmq.topology import dead_exchange, lead_misrouted, ledger_queue
from bridge.settings import Settings

STRICT_PRIORITIES = (4, 3)
"""From this version on a quorum queue has strict priorities."""

QUORUM_LEVELS = 32
LOSSY = ("expires", "max-length", "max-length-bytes", "message-ttl")
"""What a policy must not set on the bridge's queues: messages would vanish or be refused."""


def queues(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Queues and exchanges exist, and are as the settings demand."""
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            yield warning(
                f"there is no queue {lane.jobs.name}",
                why="nobody has run the bridge with these settings on this virtual host: jobs "
                "have nowhere to go",
                fix="kestra-bridge run, which declares it; or set BRIDGE_QUEUE or BRIDGE_LANES "
                "to the queue's name",
            )
            continue
        declared = {f"exchange {name}": result for name, result in lane.exchanges.items()}
        declared |= {f"queue {queue.name}": queue.declared for queue in lane.queues}
        for thing, result in declared.items():
            if result.differs:
                yield fault(
                    f"{thing} is not as the settings ask for: {result.differs}",
                    why="`kestra-bridge run` ends at once with exit code 2",
                    fix="delete it once it is empty (`kestra-bridge run` declares it anew), or "
                    "set BRIDGE_QUEUE_TYPE and BRIDGE_MAX_PRIORITY to what it was made with",
                )


def ledgers(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Every lane has the ledger that the settings ask for."""
    if settings.deduplicate == "redelivered":
        return
    for lane in facts.broker.lanes:
        name, ledger = ledger_queue(lane.jobs.name), lane.ledger
        if not ledger.exists:
            yield warning(
                f"there is no ledger {name}",
                why="no replica of this release runs, or none may declare it: each start costs "
                "Kestra a search, and copies of a job at the same instant can both start",
                fix="kestra-bridge run, which declares it; its log says why it can't",
            )
        elif ledger.differs:
            yield warning(
                f"{name} is not as the settings ask for: {ledger.differs}",
                why="duplicate publishes are recognised for another time than "
                "BRIDGE_DEDUPLICATE_WINDOW, or not at all if it is no stream",
                fix="set BRIDGE_DEDUPLICATE_WINDOW to what it was made with; or delete it, after "
                "which replicas search Kestra until the new one is as old as the window",
            )


def priorities(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """The queues honour every priority that the settings allow."""
    version, version_text = facts.broker.version, facts.broker.version_text
    highest = settings.max_priority
    for lane in facts.broker.lanes:
        name = lane.jobs.name
        if lane.kind == "quorum" and version < (4, 0):
            yield fault(
                f"{name} is a quorum queue on RabbitMQ {version_text}, which ignores priorities",
                why="urgent jobs wait behind all others",
                fix="set BRIDGE_QUEUE_TYPE=classic (or auto) and delete the queue once it is "
                "empty, or upgrade to 4.3",
            )
            continue
        if lane.kind == "quorum" and version < STRICT_PRIORITIES:
            yield warning(
                f"{name} is a quorum queue on RabbitMQ {version_text}, which knows two "
                "priorities: above 4, and the rest, served two to one",
                why="an urgent job can wait behind a less urgent one",
                fix="upgrade to 4.3, or set BRIDGE_QUEUE_TYPE=classic and delete the "
                "queue once it is empty",
            )
            continue
        if lane.kind == "quorum" and highest >= QUORUM_LEVELS:
            yield warning(
                f"BRIDGE_MAX_PRIORITY is {highest}, and {name}, a quorum queue, has 0 to 31",
                why="all priorities above 31 count as 31",
                fix="set BRIDGE_MAX_PRIORITY to 31 or less",
            )
            continue
        most = lane.jobs.argument("x-max-priority")
        if isinstance(most, int) and most < highest:
            yield fault(
                f"{name} has x-max-priority {most}, and BRIDGE_MAX_PRIORITY is {highest}",
                why=f"all priorities above {most} count as {most}",
                fix=f"set BRIDGE_MAX_PRIORITY={most}, or delete the queue once it is "
                "empty and run the bridge",
            )


def dead_letters(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Dead letters reach the queue where the bridge looks for them."""
    why = "a job that fails for good can't be put aside: the bridge holds it and keeps trying"
    fix = "kestra-bridge run, which declares and binds it"
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            continue
        name, dead = lane.jobs.name, lane.dead
        exchange = dead_exchange(name)
        if not lane.exchanges[exchange].exists:
            yield fault(f"there is no exchange {exchange} for dead letters", why=why, fix=fix)
        elif not dead.declared.exists:
            yield fault(f"there is no queue {dead.name} for dead letters", why=why, fix=fix)
        elif dead.bindings is not None and not dead.is_bound_to(exchange):
            what = f"queue {dead.name} is not bound to the exchange {exchange}"
            yield fault(what, why=why, fix=fix)
        if lane.exchanges[name].of_before:
            yield warning(
                f"exchange {name} has no alternate exchange",
                why="a message that is published there with a wrong routing key, and not as "
                "mandatory, is confirmed and lost",
                fix=lead_misrouted(name),
            )
        yield from _stuck(lane.jobs, exchange)
        if lane.jobs.state and lane.jobs.argument("x-dead-letter-exchange") != exchange:
            yield fault(
                f"{exchange} is not the dead-letter exchange of queue {name}",
                why="messages that RabbitMQ itself gives up are lost",
                fix="delete the queue once it is empty and run the bridge, which declares it anew",
            )


def retries(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Retry queues lead back to their lane."""
    why = "retries stay in their queues, and jobs published to that exchange are dropped or refused"
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            continue
        delays = sorted(set(settings.retry_delays))
        for delay, queue in zip(delays, lane.retries, strict=True):
            yield from _retry(lane, delay, queue)
        name = lane.jobs.name
        bound = lane.jobs.is_bound_to(name, routing_key=name)
        if not lane.exchanges[name].exists:
            what = f"there is no exchange {name}"
            yield fault(what, why=why, fix="kestra-bridge run, which declares it")
        elif lane.jobs.bindings is not None and not bound:
            what = f"queue {name} is not bound to the exchange {name} by that name"
            yield fault(what, why=why, fix="kestra-bridge run, which binds it")


def _retry(lane: LaneFacts, delay: int, queue: QueueFacts) -> Iterator[Finding]:
    name = lane.jobs.name
    if not queue.declared.exists:
        yield fault(
            f"there is no queue {queue.name}",
            why=f"a job to retry after {delay} s can't be set aside: it blocks a place in flight",
            fix="kestra-bridge run, which declares it; or set BRIDGE_RETRY_DELAYS to what the "
            "bridge runs with",
        )
        return
    yield from _stuck(queue, name)
    if queue.state is None:
        return
    expected = {
        "x-message-ttl": delay * 1000,
        "x-dead-letter-exchange": name,
        "x-dead-letter-routing-key": name,
    }
    wrong = [key for key, value in expected.items() if queue.argument(key) != value]
    if wrong:
        yield fault(
            f"{queue.name} does not lead back to {name} after {delay} s: it has another "
            f"{', '.join(wrong)}",
            why="jobs that should be retried end there",
            fix="move its messages away, delete it, and run the bridge, which declares it anew",
        )


def _stuck(queue: QueueFacts, exchange: str) -> Iterator[Finding]:
    """Messages that RabbitMQ took out of a queue for its dead-letter exchange, and that have not
    arrived there.
    """
    waiting = queue.state.handing_on if queue.state else None
    if waiting:
        yield warning(
            f"{queue.name} is handing on messages to the exchange {exchange} that have not "
            f"arrived: {waiting}",
            why="that is normal for a moment; messages that stay there are invisible, and their "
            "jobs don't run",
            fix="look again; then see whether the queue behind the exchange is full, and "
            "RabbitMQ's log for "
            '"Dead-letter queues cycle detected" and for crashes of rabbit_fifo_dlx_worker',
        )


def policies(_: Settings, facts: Facts) -> Iterator[Finding]:
    """No policy makes messages vanish."""
    for lane in facts.broker.lanes:
        for queue in lane.queues:
            lossy = [key for key in LOSSY if queue.policy_value(key) is not None]
            if lossy:
                yield fault(
                    f"{queue.name} gets {', '.join(lossy)} from a policy{queue.policies}",
                    why="messages expire, are dropped or are refused behind the bridge's back; "
                    "RabbitMQ 3.10 drops at a restart what a classic queue holds beyond its limit",
                    fix="rabbitmqctl list_policies -p VHOST; let the policy's pattern leave out "
                    "the bridge's queues",
                )
