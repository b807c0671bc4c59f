"""What the doctor looks for at RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.durations import in_words
from bridge.operate.doctor.facts import Facts, LaneFacts, QueueFacts
from bridge.operate.doctor.finding import Finding, fault, unknown, warning
from bridge.rabbitmq.inspector import DeclareResult
from bridge.rabbitmq.management import Consumer, QueueState
from bridge.rabbitmq.topology import REPLIES, dead_exchange, lead_misrouted, lift_limit
from bridge.settings import Settings

OLDEST_TRIED, NEWEST_TRIED = (3, 10), (4, 3)
CONSUMER_ASKS = (4, 3)
"""From here on a quorum queue has strict priorities, and its consumers say how long they may hold a
delivery."""

QUORUM_LEVELS = 32
LOOSE = frozenset({"message-ttl", "expires", "max-length", "max-length-bytes"})
"""What a policy must not set on the bridge's queues: it lets messages vanish, or be refused."""

_TIMEOUT_OF_3_10 = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'"


def version(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A broker that the bridge was tried with."""
    if facts.broker.version < OLDEST_TRIED:
        yield fault(
            f"RabbitMQ {facts.broker.version_text} is older than 3.10, which the bridge "
            "was not tried with",
            why="quorum queues hand dead letters over by confirm from 3.10 on alone: before, a "
            "crash can lose a retry",
            mend="upgrade RabbitMQ to 4.3",
        )
    elif facts.broker.version > NEWEST_TRIED:
        yield warning(
            f"RabbitMQ {facts.broker.version_text} is newer than 4.3, the newest that "
            "the bridge was tried with",
            why="queues, priorities or time-outs may work otherwise there",
            mend="try it with jobs that may be lost first, or use RabbitMQ 4.3",
        )


def alarms(_: Settings, facts: Facts) -> Iterator[Finding]:
    """No alarm that keeps the broker from taking messages."""
    if facts.broker.alarms:
        yield fault(
            f"RabbitMQ has an alarm: {', '.join(facts.broker.alarms)}",
            why="it takes no messages: nothing can be submitted, retried or "
            "dead-lettered until that is over",
            mend="free memory or disk space, or raise vm_memory_high_watermark or disk_free_limit "
            "in rabbitmq.conf",
        )


def rights(_: Settings, facts: Facts) -> Iterator[Finding]:
    """All rights that the bridge's user needs."""
    by_right: dict[str, list[str]] = {}
    for refusal in sorted(facts.broker.refused, key=lambda refusal: (refusal.right, refusal.on)):
        by_right.setdefault(refusal.right, []).append(refusal.on)
    for right, names in by_right.items():
        yield fault(
            f"the user of BRIDGE_AMQP_URL has no {right} right on {', '.join(names)}",
            why="`kestra-bridge run` ends at once with exit code 2, or can't settle",
            mend="rabbitmqctl set_permissions -p VHOST USER '^(kestra\\.|amq\\.gen-).*$' "
            "'^(kestra\\.|amq\\.gen-).*$|^amq\\.default$' '^(kestra\\.|amq\\.gen-).*$', with the "
            "names of your queues",
        )


def queues(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Queues and exchanges that are there, and as the settings ask for."""
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            yield warning(
                f"there is no queue {lane.jobs.name}",
                why="nobody has run the bridge with these settings on this virtual host: jobs "
                "have nowhere to go",
                mend="kestra-bridge run, which declares it; or set BRIDGE_QUEUE or BRIDGE_LANES "
                "to the queue's name",
            )
            continue
        for kind, name, declared in _declared(lane):
            if declared.differs:
                yield fault(
                    f"{kind} {name} is not as the settings ask for: {declared.differs}",
                    why="`kestra-bridge run` ends at once with exit code 2",
                    mend="delete it once it is empty (`kestra-bridge run` declares it anew), or "
                    "set BRIDGE_QUEUE_TYPE "
                    "and BRIDGE_MAX_PRIORITY to what it was made with",
                )


def priorities(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """A queue that honours every priority that the settings allow."""
    for lane in facts.broker.lanes:
        name = lane.jobs.name
        if lane.kind == "quorum" and facts.broker.version < (4, 0):
            yield fault(
                f"{name} is a quorum queue on RabbitMQ {facts.broker.version_text}, "
                "which ignores priorities",
                why="urgent jobs wait behind all others",
                mend="set BRIDGE_QUEUE_TYPE=classic (or auto) and delete the queue once it is "
                "empty, or upgrade to 4.3",
            )
        elif lane.kind == "quorum" and facts.broker.version < CONSUMER_ASKS:
            yield warning(
                f"{name} is a quorum queue on RabbitMQ {facts.broker.version_text}, which knows "
                "two priorities: "
                "above 4, and the rest, served two to one",
                why="an urgent job can wait behind one that is less so",
                mend="upgrade to 4.3, or set BRIDGE_QUEUE_TYPE=classic and delete the "
                "queue once it is empty",
            )
        elif lane.kind == "quorum" and settings.max_priority >= QUORUM_LEVELS:
            yield warning(
                f"BRIDGE_MAX_PRIORITY is {settings.max_priority}, and {name}, a quorum "
                "queue, has 0 to 31",
                why="all priorities above 31 count as 31",
                mend="set BRIDGE_MAX_PRIORITY to 31 or less",
            )
        elif (
            most := _argument(lane.jobs, "x-max-priority")
        ) is not None and most < settings.max_priority:
            yield fault(
                f"{name} has x-max-priority {most}, and BRIDGE_MAX_PRIORITY is "
                f"{settings.max_priority}",
                why=f"all priorities above {most} count as {most}",
                mend=f"set BRIDGE_MAX_PRIORITY={most}, or delete the queue once it is "
                "empty and run the bridge",
            )


def acknowledgement_timeout(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Deliveries that may stay unacknowledged for as long as their executions run."""
    for lane in facts.broker.lanes:
        if lane.kind is None or (lane.kind == "classic" and facts.broker.version >= CONSUMER_ASKS):
            continue  # classic queues have no such time-out from 4.3 on
        limit = _timeout(settings, facts, lane)
        if limit is None:
            yield _unknown_timeout(settings, facts, lane)
        elif limit <= settings.job_timeout:
            yield fault(
                f"the acknowledgement time-out of {lane.jobs.name} is {in_words(limit)}, "
                "and a job may take "
                f"{in_words(settings.job_timeout)} (BRIDGE_JOB_TIMEOUT)",
                why="RabbitMQ takes a longer job's delivery back in mid-run: the bridge finds its "
                "execution again, but "
                "loses its session, and all that it held is delivered anew",
                mend=_longer(settings, facts, lane),
            )
        elif limit < settings.hold:
            yield warning(
                f"the acknowledgement time-out of {lane.jobs.name} is {in_words(limit)}: "
                "that is longer than "
                f"BRIDGE_JOB_TIMEOUT ({in_words(settings.job_timeout)}), but shorter than "
                f"{in_words(settings.hold)}",
                why="a job that queues in Kestra, or whose `timeout` is longer, can be "
                "taken back in mid-run",
                mend=_longer(settings, facts, lane),
            )


def delivery_limit(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Messages that may be delivered however often replicas die, and dead letters that may be
    looked at as often.
    """
    for lane in facts.broker.lanes:
        yield from _dead_letters_limit(facts, lane)
        if lane.kind == "quorum" and (limit := _delivery_limit(lane.jobs.state)) >= 0:
            names = _policies(lane.jobs)
            yield fault(
                f"{lane.jobs.name} gives a message up after {limit} returns{names}",
                why="replicas that die or lose their connection return messages: that would make "
                "jobs dead letters "
                "whose executions may have succeeded",
                mend="rabbitmqctl clear_policy -p VHOST NAME for the policy that sets "
                "delivery-limit, or set it to -1"
                if names
                else "delete the queue once it is empty; `kestra-bridge run` declares it with "
                "x-delivery-limit -1",
            )


def _dead_letters_limit(facts: Facts, lane: LaneFacts) -> Iterator[Finding]:
    """A dead-letter queue that was made on RabbitMQ 3 has a limit on 4.x, as one can have by
    policy.
    """
    limit = _delivery_limit(lane.dead.state)
    if limit < 0:
        return
    each = (
        "each look at them returns all of them"
        if facts.broker.version < CONSUMER_ASKS
        else "a look that is killed"
    )
    names = _policies(lane.dead)
    yield fault(
        f"{lane.dead.name} drops a dead letter after {limit} returns{names}",
        why=f"{each}, as does a connection that is lost meanwhile: after that they are "
        "gone for good",
        mend=f"set delivery-limit to -1 in that policy{names}"
        if names
        else lift_limit(lane.dead.name),
    )


def dead_letters(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Dead letters that stand where they are looked for."""
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            continue
        exchange = dead_exchange(lane.jobs.name)
        why = (
            "a job that fails for good can't be put aside: the bridge holds it and "
            "tries again and again"
        )
        mend = "kestra-bridge run, which declares and binds it"
        if not lane.exchanges[exchange].exists:
            yield fault(f"there is no exchange {exchange} for dead letters", why=why, mend=mend)
        elif not lane.dead.declared.exists:
            yield fault(f"there is no queue {lane.dead.name} for dead letters", why=why, mend=mend)
        elif lane.dead.bindings is not None and not _bound(lane.dead, exchange, None):
            yield fault(
                f"queue {lane.dead.name} is not bound to the exchange {exchange}",
                why=why,
                mend=mend,
            )
        yield from _misrouted(lane)
        yield from _stuck(lane.jobs, exchange)
        if lane.jobs.state and lane.jobs.state.arguments.get("x-dead-letter-exchange") != exchange:
            yield fault(
                f"queue {lane.jobs.name} has not {exchange} as its dead-letter exchange",
                why="what RabbitMQ itself gives up on is lost",
                mend="delete the queue once it is empty and run the bridge, which declares it anew",
            )


def _misrouted(lane: LaneFacts) -> Iterator[Finding]:
    """An exchange that an earlier bridge made drops what it routes to no queue."""
    name = lane.jobs.name
    if lane.exchanges[name].of_before:
        yield warning(
            f"exchange {name} has no alternate exchange",
            why="what is published there with a wrong routing key, and not as mandatory, is "
            "confirmed and gone",
            mend=lead_misrouted(name),
        )


def _stuck(queue: QueueFacts, exchange: str) -> Iterator[Finding]:
    """Messages that RabbitMQ took out of a queue for its dead-letter exchange, and that don't
    arrive there.
    """
    waiting = queue.state.handing_on if queue.state else None
    if waiting:
        yield warning(
            f"{queue.name} is handing on messages to the exchange {exchange} that have not "
            f"arrived: {waiting}",
            why="for a moment that is as it should be; what stays so is seen by nobody, "
            "and its jobs don't run",
            mend="look again; then see whether the queue behind the exchange is full, and "
            "RabbitMQ's log for "
            '"Dead-letter queues cycle detected" and for crashes of rabbit_fifo_dlx_worker',
        )


def retries(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Retry queues that lead back."""
    for lane in facts.broker.lanes:
        if not lane.jobs.declared.exists:
            continue
        for delay, queue in zip(sorted(set(settings.retry_delays)), lane.retries, strict=True):
            yield from _retry(lane, delay, queue)
        name = lane.jobs.name
        why = (
            "retries stay in their queues, and jobs published to that exchange are "
            "dropped or refused"
        )
        if not lane.exchanges[name].exists:
            yield fault(
                f"there is no exchange {name}", why=why, mend="kestra-bridge run, which declares it"
            )
        elif lane.jobs.bindings is not None and not _bound(lane.jobs, name, name):
            yield fault(
                f"queue {name} is not bound to the exchange {name} by that name",
                why=why,
                mend="kestra-bridge run, which binds it",
            )


def _retry(lane: LaneFacts, delay: int, queue: QueueFacts) -> Iterator[Finding]:
    if not queue.declared.exists:
        yield fault(
            f"there is no queue {queue.name}",
            why=f"a job that is to be tried again after {delay} s can't be set aside: it blocks a "
            "place in flight",
            mend="kestra-bridge run, which declares it; or set BRIDGE_RETRY_DELAYS to what the "
            "bridge runs with",
        )
        return
    expected = {
        "x-message-ttl": delay * 1000,
        "x-dead-letter-exchange": lane.jobs.name,
        "x-dead-letter-routing-key": lane.jobs.name,
    }
    yield from _stuck(queue, lane.jobs.name)
    wrong = [
        name
        for name, value in expected.items()
        if queue.state and queue.state.arguments.get(name) != value
    ]
    if wrong:
        yield fault(
            f"{queue.name} does not lead back to {lane.jobs.name} after {delay} s: it has another "
            f"{', '.join(wrong)}",
            why="jobs that are to be tried again end there",
            mend="move its messages away, delete it, and run the bridge, which declares it anew",
        )


def policies(_: Settings, facts: Facts) -> Iterator[Finding]:
    """No policy by which messages vanish."""
    for lane in facts.broker.lanes:
        for queue in (lane.jobs, lane.dead, *lane.retries):
            found = sorted(LOOSE & (queue.state.policy or {}).keys()) if queue.state else []
            if found:
                yield fault(
                    f"{queue.name} gets {', '.join(found)} from a policy{_policies(queue)}",
                    why="messages expire, are dropped or are refused without the bridge's doing",
                    mend="rabbitmqctl list_policies -p VHOST; let the policy's pattern leave out "
                    "the bridge's queues",
                )


def replies(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The exchange by which Kestra tells of ends."""
    declared = facts.broker.replies
    if not declared.exists:
        yield warning(
            f"there is no exchange {REPLIES}",
            why="the notifier has nowhere to send: every end is found out by the sweep, up to "
            "BRIDGE_RECONCILE_INTERVAL late",
            mend="kestra-bridge run, which declares it",
        )
    elif declared.differs:
        yield fault(
            f"the exchange {REPLIES} is not a durable topic exchange: {declared.differs}",
            why="`kestra-bridge run` ends with an error",
            mend=f"delete the exchange {REPLIES}; `kestra-bridge run` declares it anew",
        )
    elif facts.broker.replies_bound == 0 and any(_consumers(lane) for lane in facts.broker.lanes):
        yield fault(
            f"no queue is bound to the exchange {REPLIES}, though somebody consumes jobs",
            why="replies are dropped: every end is found out by the sweep, up to "
            "BRIDGE_RECONCILE_INTERVAL late",
            mend="restart the bridge: each replica binds a queue of its own. What "
            "else consumes is no bridge",
        )


def consumers(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Lanes that somebody works on."""
    for lane in facts.broker.lanes:
        if lane.jobs.depth is None or _consumers(lane):
            continue
        waiting = lane.jobs.depth.ready
        judge = fault if waiting else warning
        yield judge(
            f"nobody consumes {lane.jobs.name}"
            + (f", where messages wait: {waiting}" if waiting else ""),
            why="its jobs don't run",
            mend="kestra-bridge run, with this queue in BRIDGE_QUEUE or BRIDGE_LANES; where one "
            "runs, see its log",
        )


def management(_: Settings, facts: Facts) -> Iterator[Finding]:
    """An answer of the management API."""
    if facts.broker.management:
        yield warning(
            facts.broker.management.why,
            why="what it alone tells is unchecked",
            mend="rabbitmq-plugins enable rabbitmq_management; rabbitmqctl "
            "set_user_tags USER management; "
            "BRIDGE_MANAGEMENT_URL, BRIDGE_MANAGEMENT_USERNAME, BRIDGE_MANAGEMENT_PASSWORD",
        )


def _declared(lane: LaneFacts) -> Iterator[tuple[str, str, DeclareResult]]:
    for name, declared in lane.exchanges.items():
        yield "exchange", name, declared
    for queue in (lane.jobs, lane.dead, *lane.retries):
        yield "queue", queue.name, queue.declared


def _timeout(settings: Settings, facts: Facts, lane: LaneFacts) -> float | None:
    """How long a delivery of a lane may stay unacknowledged, in seconds; None where that isn't
    told.

    On 4.3 a consumer's own wish goes before the configuration, and a policy or the queue's argument
    bounds it. On 4.0 to 4.2 the API says what holds for each consumer. 3.10 tells nothing.
    """
    state = lane.jobs.state
    if state is None or (state.policy is None and facts.broker.version >= CONSUMER_ASKS):
        return None
    limits = [
        limit for consumer in state.consumers if (limit := _granted(consumer, facts)) is not None
    ]
    if facts.broker.version >= CONSUMER_ASKS:
        limits = limits or [settings.hold]
    bound = _bound_timeout(state)
    return min([*limits, *([bound] if bound is not None else [])], default=None)


def _granted(consumer: Consumer, facts: Facts) -> float | None:
    asked = consumer.own_timeout if facts.broker.version >= CONSUMER_ASKS else None
    return asked if asked is not None else consumer.timeout


def _bound_timeout(state: QueueState) -> float | None:
    """What policies and the queue's argument say of it, in seconds."""
    values = (
        state.arguments.get("x-consumer-timeout"),
        (state.policy or {}).get("consumer-timeout"),
    )
    return min((value / 1000 for value in values if isinstance(value, int)), default=None)


def _unknown_timeout(settings: Settings, facts: Facts, lane: LaneFacts) -> Finding:
    where = "by this version's APIs" if facts.broker.version < (4, 0) else "from here now"
    return unknown(
        f"the acknowledgement time-out of {lane.jobs.name} can't be seen {where}",
        why="it is 30 min unless somebody raised it, and a job may take "
        f"{in_words(settings.job_timeout)} "
        "(BRIDGE_JOB_TIMEOUT): a delivery that is held for longer is taken back in mid-run",
        mend=f"look on the broker's host: {_TIMEOUT_OF_3_10} It should say "
        f"{int(settings.hold * 1000)} or more; "
        f"{_configure(settings)}",
    )


def _longer(settings: Settings, facts: Facts, lane: LaneFacts) -> str:
    state = lane.jobs.state
    if state and _bound_timeout(state) == _timeout(settings, facts, lane):
        return (
            f"raise it to {int(settings.hold * 1000)} in the policy{_policies(lane.jobs)} or the "
            "queue argument "
            "x-consumer-timeout that sets it"
        )
    if facts.broker.version >= CONSUMER_ASKS:
        return (
            "unset BRIDGE_CONSUMER_TIMEOUT, or set it to more than BRIDGE_JOB_TIMEOUT, and "
            "restart the bridge"
        )
    return _configure(settings)


def _configure(settings: Settings) -> str:
    return (
        f"set consumer_timeout = {int(settings.hold * 1000)} in rabbitmq.conf and restart RabbitMQ"
    )


def _delivery_limit(state: QueueState | None) -> int:
    """After how many returns a queue gives a message up; -1 for never, or where that isn't told."""
    if state is None:
        return -1
    if state.delivery_limit is not None:
        return state.delivery_limit
    values = (state.arguments.get("x-delivery-limit"), (state.policy or {}).get("delivery-limit"))
    return min((value for value in values if isinstance(value, int)), default=-1)


def _bound(queue: QueueFacts, exchange: str, routing_key: str | None) -> bool:
    """Whether an exchange feeds a queue, by that routing key unless it is None."""
    return any(
        binding.source == exchange and routing_key in (None, binding.routing_key)
        for binding in queue.bindings or ()
    )


def _argument(queue: QueueFacts, name: str) -> int | None:
    value = queue.state.arguments.get(name) if queue.state else None
    return value if isinstance(value, int) else None


def _consumers(lane: LaneFacts) -> int:
    return lane.jobs.depth.consumers if lane.jobs.depth else 0


def _policies(queue: QueueFacts) -> str:
    names = queue.state.policy_names if queue.state else ()
    return f" ({', '.join(names)})" if names else ""
