"""The checks: each judges the facts by the settings, asks nobody, and finds nothing where all is
well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bridge.operate.doctor import broker_checks, kestra_checks, network_checks
from bridge.operate.doctor.facts import Facts
from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.sources import Unavailable
from bridge.settings import Settings

Judge = Callable[[Settings, Facts], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. `means` is what is ok when it finds nothing.

    `by_management` is what it can't tell without that API. `of_lanes`: it has nothing to judge
    where a lane's queue isn't there. `at_start`: the consumer does it too when it starts, by what
    it knows then. `tried` says whether there is anything to judge.
    """

    name: str
    means: str
    judge: Judge
    by_management: str = ""
    by_kestra: bool = False
    of_lanes: bool = False
    at_start: bool = False
    tried: Callable[[Facts], bool] = lambda _: True


CHECKS: tuple[Check, ...] = (
    Check(
        name="rabbitmq",
        means="RabbitMQ is of a version that was tried",
        judge=broker_checks.version,
    ),
    Check(
        name="management",
        means="RabbitMQ's management API answers",
        judge=broker_checks.management,
    ),
    Check(
        name="alarms",
        means="RabbitMQ takes messages",
        judge=broker_checks.alarms,
        by_management="alarms",
    ),
    Check(
        name="rights",
        means="the user of BRIDGE_AMQP_URL has the rights that it needs",
        judge=broker_checks.rights,
    ),
    Check(
        name="queues",
        means="queues and exchanges are as the settings ask for",
        judge=broker_checks.queues,
    ),
    Check(
        name="priorities",
        means="every priority is honoured",
        judge=broker_checks.priorities,
        of_lanes=True,
        at_start=True,
    ),
    Check(
        name="acknowledgement-timeout",
        means="deliveries may stay unacknowledged for as long as jobs may take",
        judge=broker_checks.acknowledgement_timeout,
        of_lanes=True,
        by_management="the acknowledgement time-out",
    ),
    Check(
        name="delivery-limit",
        means="no message is given up because replicas die or somebody looks at dead letters",
        judge=broker_checks.delivery_limit,
        of_lanes=True,
        by_management="delivery limits",
    ),
    Check(
        name="dead-letters",
        means="dead letters have a queue",
        judge=broker_checks.dead_letters,
        of_lanes=True,
        by_management="whether dead-letter queues are bound",
    ),
    Check(
        name="retries",
        means="retry queues lead back",
        judge=broker_checks.retries,
        of_lanes=True,
        by_management="whether retry queues lead back",
    ),
    Check(
        name="policies",
        means="no policy lets messages vanish",
        judge=broker_checks.policies,
        of_lanes=True,
        by_management="policies",
    ),
    Check(
        name="replies",
        means="the exchange for replies is there and heard",
        judge=broker_checks.replies,
        by_management="whether replies are heard",
    ),
    Check(
        name="consumers",
        means="every lane has a consumer",
        judge=broker_checks.consumers,
        of_lanes=True,
    ),
    Check(name="kestra", means="Kestra answers", judge=kestra_checks.reachable),
    Check(
        name="kestra-version",
        means="Kestra is of a version that was tried",
        judge=kestra_checks.version,
        by_kestra=True,
    ),
    Check(
        name="notifier",
        means="the notifier is deployed, enabled and the one for this Kestra",
        judge=kestra_checks.notifier,
        by_kestra=True,
        at_start=True,
    ),
    Check(
        name="flows",
        means="the flows that the settings name are there and enabled",
        judge=kestra_checks.flows_there,
        by_kestra=True,
        at_start=True,
    ),
    Check(
        name="concurrency",
        means="no flow's concurrency limit is below what the bridge will run",
        judge=kestra_checks.concurrency,
        by_kestra=True,
        at_start=True,
    ),
    Check(
        name="round-trip",
        means="the end of a probe was told by the notifier",
        judge=kestra_checks.round_trip,
        by_kestra=True,
        tried=lambda facts: facts.round_trip is not None,
    ),
    Check(
        name="kill",
        means="Kestra ends an execution that is killed",
        judge=kestra_checks.kill,
        by_kestra=True,
        tried=lambda facts: facts.kill is not None,
    ),
    Check(name="clocks", means="the clocks agree", judge=network_checks.clocks, at_start=True),
    Check(
        name="encryption",
        means="no password crosses a network in the clear",
        judge=network_checks.encryption,
        at_start=True,
    ),
    Check(
        name="certificates",
        means="no certificate is about to end",
        judge=network_checks.certificates,
    ),
)


def examine(settings: Settings, facts: Facts) -> list[Finding]:
    """What the checks find, the worst first, and a finding that all is ok of each that finds
    nothing.
    """
    found = [finding for check in CHECKS for finding in _verdicts(check, settings, facts)]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def at_start(settings: Settings, facts: Facts) -> list[Finding]:
    """What those checks find that the consumer does when it starts."""
    checks = [check for check in CHECKS if check.at_start and not _impossible(check, facts)]
    return [
        replace(finding, check=check.name)
        for check in checks
        for finding in check.judge(settings, facts)
    ]


def _verdicts(check: Check, settings: Settings, facts: Facts) -> list[Finding]:
    if _impossible(check, facts) or not check.tried(facts):
        return []
    found = [replace(finding, check=check.name) for finding in check.judge(settings, facts)]
    if check.name == "management":
        found = [replace(finding, why=_unchecked()) for finding in found]
    partly = bool(check.by_management) and facts.broker.management is not None
    nothing = check.of_lanes and not all(lane.jobs.declared.exists for lane in facts.broker.lanes)
    if found or partly or nothing:
        return found
    return [Finding(level=Level.OK, check=check.name, what=check.means)]


def _impossible(check: Check, facts: Facts) -> bool:
    return check.by_kestra and isinstance(facts.kestra, Unavailable)


def _unchecked() -> str:
    return (
        "unchecked without it: "
        f"{', '.join(check.by_management for check in CHECKS if check.by_management)}"
    )
