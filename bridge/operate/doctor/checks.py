"""The checks. Each judges the facts by the settings, asks nobody, and finds nothing if all is
well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bridge.operate.doctor import (
    broker_checks,
    delivery_checks,
    kestra_checks,
    network_checks,
    queue_checks,
)
from bridge.operate.doctor.facts import Facts, ProbeResult
from bridge.operate.doctor.finding import Finding, Level, warning
from bridge.operate.sources import Unavailable
from bridge.settings import Settings

Judge = Callable[[Settings, Facts], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. `means` says what is OK if it finds nothing.

    `needs_management` names what it can't see without the management API. `needs_lanes`: it judges
    queues, so that it can't say OK if a lane's queue doesn't exist. `probe` gives the probe that it
    judges. `at_start`: the consumer runs it too when it starts, on the facts that it has then.
    """

    name: str
    means: str
    judge: Judge
    needs_management: str = ""
    needs_kestra: bool = False
    needs_lanes: bool = False
    at_start: bool = False
    probe: Callable[[Facts], ProbeResult | None] | None = None

    def applies(self, facts: Facts) -> bool:
        """Whether the facts have anything that the check can judge."""
        if self.needs_kestra and isinstance(facts.kestra, Unavailable):
            return False
        return self.probe is None or self.probe(facts) is not None

    def findings(self, settings: Settings, facts: Facts) -> list[Finding]:
        """What the check finds wrong."""
        return [replace(finding, check=self.name) for finding in self.judge(settings, facts)]

    def sees_all(self, facts: Facts) -> bool:
        """Whether the facts are complete enough that finding nothing means all is well."""
        if self.needs_management and facts.broker.management is not None:
            return False
        if self.needs_lanes:
            return all(lane.jobs.declared.exists for lane in facts.broker.lanes)
        return True


def management(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The management API answers."""
    if facts.broker.management:
        unchecked = [check.needs_management for check in CHECKS if check.needs_management]
        yield warning(
            facts.broker.management.why,
            why=f"unchecked without it: {', '.join(unchecked)}",
            fix="rabbitmq-plugins enable rabbitmq_management; rabbitmqctl "
            "set_user_tags USER management; "
            "BRIDGE_MANAGEMENT_URL, BRIDGE_MANAGEMENT_USERNAME, BRIDGE_MANAGEMENT_PASSWORD",
        )


CHECKS: tuple[Check, ...] = (
    Check(
        name="rabbitmq",
        means="RabbitMQ's version was tried with the bridge",
        judge=broker_checks.version,
    ),
    Check(
        name="management",
        means="RabbitMQ's management API answers",
        judge=management,
    ),
    Check(
        name="alarms",
        means="RabbitMQ takes messages",
        judge=broker_checks.alarms,
        needs_management="alarms",
    ),
    Check(
        name="rights",
        means="the user of BRIDGE_AMQP_URL has the rights that it needs",
        judge=broker_checks.rights,
    ),
    Check(
        name="queues",
        means="queues and exchanges are as the settings ask for",
        judge=queue_checks.queues,
    ),
    Check(
        name="ledger",
        means="every lane has a ledger of the jobs that were started",
        judge=queue_checks.ledgers,
        needs_lanes=True,
    ),
    Check(
        name="priorities",
        means="every priority is honoured",
        judge=queue_checks.priorities,
        needs_lanes=True,
        at_start=True,
    ),
    Check(
        name="acknowledgement-timeout",
        means="deliveries may stay unacknowledged for as long as jobs may take",
        judge=delivery_checks.acknowledgement_timeout,
        needs_lanes=True,
        needs_management="the acknowledgement time-out",
    ),
    Check(
        name="delivery-limit",
        means="no message is given up because replicas die or somebody looks at dead letters",
        judge=delivery_checks.delivery_limit,
        needs_lanes=True,
        needs_management="delivery limits",
    ),
    Check(
        name="dead-letters",
        means="dead letters have a queue",
        judge=queue_checks.dead_letters,
        needs_lanes=True,
        needs_management="whether dead-letter queues are bound",
    ),
    Check(
        name="retries",
        means="retry queues lead back",
        judge=queue_checks.retries,
        needs_lanes=True,
        needs_management="whether retry queues lead back",
    ),
    Check(
        name="policies",
        means="no policy lets messages vanish",
        judge=queue_checks.policies,
        needs_lanes=True,
        needs_management="policies",
    ),
    Check(
        name="replies",
        means="the exchange for replies exists and has listeners",
        judge=broker_checks.replies,
        needs_management="whether replies have listeners",
    ),
    Check(
        name="consumers",
        means="every lane has a consumer",
        judge=broker_checks.consumers,
        needs_lanes=True,
    ),
    Check(name="kestra", means="Kestra answers", judge=kestra_checks.reachable),
    Check(
        name="kestra-version",
        means="Kestra's version was tried with the bridge",
        judge=kestra_checks.version,
        needs_kestra=True,
    ),
    Check(
        name="notifier",
        means="ends are told, and a notifier that there is fits this Kestra",
        judge=kestra_checks.notifier,
        needs_kestra=True,
        at_start=True,
    ),
    Check(
        name="flows",
        means="the flows that the settings name exist and are enabled",
        judge=kestra_checks.flows_exist,
        needs_kestra=True,
        at_start=True,
    ),
    Check(
        name="concurrency",
        means="no flow's concurrency limit is below what the bridge will run",
        judge=kestra_checks.concurrency,
        needs_kestra=True,
        at_start=True,
    ),
    Check(
        name="round-trip",
        means="the notifier reported the end of a probe",
        judge=kestra_checks.round_trip,
        needs_kestra=True,
        probe=lambda facts: facts.round_trip,
    ),
    Check(
        name="kill",
        means="Kestra ends an execution that is killed",
        judge=kestra_checks.kill,
        needs_kestra=True,
        probe=lambda facts: facts.kill,
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
    """What all checks find, the worst first. A check that finds nothing wrong gives an OK, if it
    could see everything that it needs.
    """
    findings: list[Finding] = []
    for check in CHECKS:
        if not check.applies(facts):
            continue
        found = check.findings(settings, facts)
        if not found and check.sees_all(facts):
            found = [Finding(level=Level.OK, check=check.name, what=check.means)]
        findings += found
    return sorted(findings, key=lambda finding: list(Level).index(finding.level))


def at_start(settings: Settings, facts: Facts) -> list[Finding]:
    """What the checks find that the consumer runs when it starts."""
    findings: list[Finding] = []
    for check in CHECKS:
        if check.at_start and check.applies(facts):
            findings += check.findings(settings, facts)
    return findings
