"""The doctor's checks on planted facts: each names what is wrong, and finds nothing if all is
well."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from pydantic import SecretStr

from bridge.errors import BrokerDenied, KestraUnavailable
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.kestra import StoredFlow
from bridge.operate import flows
from bridge.operate.doctor.checks import CHECKS, at_start, examine
from bridge.operate.doctor.facts import (
    BrokerFacts,
    Certificate,
    Facts,
    KestraFacts,
    LaneFacts,
    ProbeResult,
    QueueFacts,
)
from bridge.operate.doctor.finding import Finding, Level, fault
from bridge.operate.doctor.probe import ROUND_TRIP, is_from_notifier
from bridge.operate.sources import Unavailable
from bridge.rabbitmq.inspector import DeclareResult, Depth, Refusal
from bridge.rabbitmq.management import Binding, Consumer, QueueState
from bridge.settings import Settings
from deploy.local.paths import REPOSITORY
from tests.support.commands import in_sentences, unknown_in

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
QUEUE = "kestra.jobs"
REPORT = FlowName("company.team", "report")
THERE = DeclareResult(exists=True)
AWAY = Unavailable(KestraUnavailable("can't reach Kestra at http://kestra:8080"))
FORBIDDEN = Unavailable(BrokerDenied("RabbitMQ's management API refuses the user"))
HOLD = 46_800.0


def configured(**changed: Any) -> Settings:
    given: dict[str, Any] = {
        "amqp_url": SecretStr("amqp://bridge:geheim@localhost/"),
        "kestra_url": "http://127.0.0.1:8080",
        "flow": str(REPORT),
        "retry_delays": [30],
    }
    return Settings(**{**given, **changed}, _env_file=None)


@cache
def shipped(version: str, *, tls: bool = False) -> StoredFlow:
    (found,) = [flow for flow in flows.shipped(version, tls=tls) if flow.name == flows.NOTIFIER]
    return StoredFlow(source=found.source)


def queue(
    name: str, arguments: dict[str, Any], *, key: str = "", exchange: str | None = None
) -> QueueFacts:
    bindings = [Binding(source=exchange, destination=name, routing_key=key)] if exchange else []
    state = QueueState(name=name, kind="quorum", arguments=arguments, delivery_limit=-1, policy={})
    return QueueFacts(name=name, declared=THERE, depth=Depth(0, 0), state=state, bindings=bindings)


@cache
def sound() -> Facts:
    """A replica on RabbitMQ 4.3 with a quorum queue, and Kestra 2.0."""
    ours = Consumer(
        tag="kestra-bridge.q", connection="a", host="h", prefetch=8, timeout=1800, own_timeout=HOLD
    )
    jobs = queue(QUEUE, {"x-dead-letter-exchange": f"{QUEUE}.dead"}, key=QUEUE, exchange=QUEUE)
    assert jobs.state is not None
    back = {
        "x-message-ttl": 30_000,
        "x-dead-letter-exchange": QUEUE,
        "x-dead-letter-routing-key": QUEUE,
    }
    settings = configured()
    lane = LaneFacts(
        lane=settings.all_lanes[0],
        kind="quorum",
        jobs=replace(jobs, depth=Depth(0, 1), state=replace(jobs.state, consumers=(ours,))),
        dead=queue(f"{QUEUE}.dead", {}, exchange=f"{QUEUE}.dead"),
        retries=[queue(f"{QUEUE}.retry.30", back)],
        ledger=THERE,
        exchanges={QUEUE: THERE, f"{QUEUE}.dead": THERE},
    )
    return Facts(
        at=NOW,
        broker=BrokerFacts(
            version=(4, 3),
            version_text="4.3.6",
            lanes=[lane],
            replies=THERE,
            replies_bound=1,
            alarms=[],
            skew=timedelta(),
        ),
        kestra=KestraFacts(
            version="2.0.0",
            skew=timedelta(),
            notifier=shipped("2.0.0"),
            flows={REPORT: StoredFlow(source="")},
        ),
        certificates=[
            Certificate(what="the certificate of RabbitMQ", until=NOW + timedelta(days=90))
        ],
        round_trip=ProbeResult(seconds=0.4),
        kill=ProbeResult(seconds=0.2),
    )


Change = Callable[[Facts], Facts]


def broker(**changed: Any) -> Change:
    return lambda facts: replace(facts, broker=replace(facts.broker, **changed))


def kestra(**changed: Any) -> Change:
    def change(facts: Facts) -> Facts:
        assert isinstance(facts.kestra, KestraFacts)
        return replace(facts, kestra=replace(facts.kestra, **changed))

    return change


def lane(**changed: Any) -> Change:
    return lambda facts: broker(lanes=[replace(facts.broker.lanes[0], **changed)])(facts)


def of_queue(which: str, **changed: Any) -> Change:
    def change(facts: Facts) -> Facts:
        found = getattr(facts.broker.lanes[0], which)
        many = isinstance(found, list)
        changed_queue = replace(found[0] if many else found, **changed)
        return lane(**{which: [changed_queue] if many else changed_queue})(facts)

    return change


def state(which: str, **changed: Any) -> Change:
    def change(facts: Facts) -> Facts:
        found = getattr(facts.broker.lanes[0], which)
        kept = (found[0] if isinstance(found, list) else found).state
        return of_queue(which, state=replace(kept, **changed))(facts)

    return change


def consumer(**changed: Any) -> Change:
    def change(facts: Facts) -> Facts:
        jobs = facts.broker.lanes[0].jobs
        assert jobs.state is not None
        return state("jobs", consumers=(replace(jobs.state.consumers[0], **changed),))(facts)

    return change


def certificate(what: str, *, until: datetime) -> Change:
    return lambda facts: replace(facts, certificates=[Certificate(what=what, until=until)])


def everything(*changes: Change) -> Change:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


def on(version: tuple[int, int], kind: str | None, *more: Change) -> Change:
    """Another version of RabbitMQ or type of queue, whose consumer reports no time-out."""
    text = f"{version[0]}.{version[1]}.1"
    return everything(
        broker(version=version, version_text=text),
        lane(kind=kind),
        consumer(own_timeout=None, timeout=None),
        *more,
    )


def no_round_trip(facts: Facts) -> Facts:
    return replace(facts, round_trip=None)


def troubles(change: Change, **settings: Any) -> list[Finding]:
    found = examine(configured(**settings), change(sound()))
    return [finding for finding in found if finding.level is not Level.OK]


SOUND: dict[str, tuple[Change, dict[str, Any]]] = {
    "4.3 with a quorum queue": (everything(), {}),
    "4.3 with a classic queue": (on((4, 3), "classic", state("jobs", delivery_limit=None)), {}),
    "4.0 with a classic queue and a raised time-out": (
        on((4, 0), "classic", consumer(timeout=HOLD)),
        {},
    ),
    "nobody consumes and nothing waits, with a policy for 4.0": (
        on(
            (4, 0),
            "classic",
            state("jobs", consumers=(), policy={"consumer-timeout": int(HOLD) * 1000}),
        ),
        {},
    ),
    "Kestra 1.3": (kestra(version="1.3.25", notifier=shipped("1.3.25")), {}),
    "a later release of Kestra 1.3": (kestra(version="1.3.44", notifier=shipped("1.3.44")), {}),
    "a later release of Kestra 2.0": (kestra(version="2.0.8", notifier=shipped("2.0.8")), {}),
    "the notifier for a broker that demands TLS": (kestra(notifier=shipped("2.0.0", tls=True)), {}),
    "no notifier": (everything(kestra(notifier=None), no_round_trip), {}),
    "encrypted": (
        everything(),
        {"amqp_url": SecretStr("amqps://rabbit"), "kestra_url": "https://kestra"},
    ),
    "a limit that is just met": (kestra(flows={REPORT: StoredFlow(source="", limit=8)}), {}),
    "clocks that differ by less than the grace": (kestra(skew=timedelta(seconds=9)), {}),
    "no ledger where none is wanted": (
        lane(ledger=DeclareResult(False)),
        {"deduplicate": "redelivered"},
    ),
    "no probe": (lambda facts: replace(facts, round_trip=None, kill=None), {}),
    "a shorter job time-out": (
        everything(consumer(own_timeout=1900)),
        {"job_timeout": 600, "consumer_timeout": 1800},
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_installation_is_all_ok(name: str) -> None:
    change, settings = SOUND[name]
    quiet = everything(change, of_queue("jobs", depth=Depth(0, 1)))
    assert troubles(quiet, **settings) == []


def test_a_sound_installation_has_an_ok_for_every_check() -> None:
    assert [finding.check for finding in examine(configured(), sound())] == [
        check.name for check in CHECKS
    ]


FAULT, WARNING, UNKNOWN = Level.FAULT, Level.WARNING, Level.UNKNOWN
Wrong = tuple[str, Change, dict[str, Any], Level, str, str]
"""A name, what is done to a sound installation, settings, and the finding: its level, its check,
words of it."""

WRONG: list[Wrong] = [
    ("old broker", on((3, 9), "classic"), {}, FAULT, "rabbitmq", "older than 3.10"),
    ("new broker", on((4, 4), "quorum"), {}, WARNING, "rabbitmq", "newer than 4.3"),
    (
        "no ledger",
        lane(ledger=DeclareResult(False)),
        {},
        WARNING,
        "ledger",
        "there is no ledger kestra.jobs.ledger",
    ),
    (
        "another ledger",
        lane(ledger=DeclareResult(exists=True, differs="x-max-age")),
        {},
        WARNING,
        "ledger",
        "not as the settings ask for: x-max-age",
    ),
    ("alarm", broker(alarms=["memory on rabbit@a"]), {}, FAULT, "alarms", "memory on rabbit@a"),
    (
        "right",
        broker(refused=[Refusal("write", "amq.default")]),
        {},
        FAULT,
        "rights",
        "no write right on amq.default",
    ),
    (
        "right to report",
        broker(refused=[Refusal("write", "kestra.replies")]),
        {},
        WARNING,
        "rights",
        "no write right on kestra.replies",
    ),
    (
        "no queue",
        of_queue("jobs", declared=DeclareResult(False)),
        {},
        WARNING,
        "queues",
        "there is no queue kestra.jobs",
    ),
    (
        "other arguments",
        of_queue("retries", declared=DeclareResult(True, "inequivalent arg 'x-message-ttl'")),
        {},
        FAULT,
        "queues",
        (
            "queue kestra.jobs.retry.30 is not as the settings ask for: inequivalent arg "
            "'x-message-ttl'"
        ),
    ),
    (
        "other exchange",
        lane(exchanges={QUEUE: DeclareResult(True, "type"), f"{QUEUE}.dead": THERE}),
        {},
        FAULT,
        "queues",
        "exchange kestra.jobs is not as",
    ),
    ("quorum on 3.10", on((3, 10), "quorum"), {}, FAULT, "priorities", "ignores priorities"),
    (
        "quorum on 4.0",
        on((4, 0), "quorum", consumer(timeout=HOLD)),
        {},
        WARNING,
        "priorities",
        "knows two priorities",
    ),
    ("levels", everything(), {"max_priority": 32}, WARNING, "priorities", "has 0 to 31"),
    (
        "low maximum",
        state("jobs", arguments={"x-max-priority": 5, "x-dead-letter-exchange": f"{QUEUE}.dead"}),
        {},
        FAULT,
        "priorities",
        "x-max-priority 5, and BRIDGE_MAX_PRIORITY is 10",
    ),
    (
        "4.0's default time-out",
        on((4, 0), "classic", consumer(timeout=1800)),
        {},
        FAULT,
        "acknowledgement-timeout",
        "is 30 min, and a job may take 6 h",
    ),
    (
        "a time-out that leaves no room",
        on((4, 0), "classic", consumer(timeout=25_000)),
        {},
        WARNING,
        "acknowledgement-timeout",
        "shorter than 13 h",
    ),
    (
        "a policy on 4.3",
        state("jobs", policy={"consumer-timeout": 60_000}, policy_names=("short",)),
        {},
        FAULT,
        "acknowledgement-timeout",
        "is 1 min",
    ),
    (
        "a queue argument on 4.3",
        state(
            "jobs",
            arguments={"x-consumer-timeout": 60_000, "x-dead-letter-exchange": f"{QUEUE}.dead"},
        ),
        {},
        FAULT,
        "acknowledgement-timeout",
        "is 1 min",
    ),
    (
        "the bridge's own wish on 4.3",
        consumer(own_timeout=600),
        {},
        FAULT,
        "acknowledgement-timeout",
        "is 10 min",
    ),
    (
        "the bridge's own wish before it consumes",
        everything(state("jobs", consumers=())),
        {"consumer_timeout": 600},
        FAULT,
        "acknowledgement-timeout",
        "is 10 min",
    ),
    (
        "somebody else consumes on 4.3",
        consumer(own_timeout=None),
        {},
        FAULT,
        "acknowledgement-timeout",
        "is 30 min",
    ),
    (
        "3.10",
        on((3, 10), "classic"),
        {},
        UNKNOWN,
        "acknowledgement-timeout",
        "can't be seen by this version's APIs",
    ),
    (
        "4.0 before anybody consumes",
        on((4, 0), "classic", state("jobs", consumers=())),
        {},
        UNKNOWN,
        "acknowledgement-timeout",
        "can't be seen from here now",
    ),
    (
        "4.3 before the queue tells of itself",
        state("jobs", policy=None),
        {},
        UNKNOWN,
        "acknowledgement-timeout",
        "can't be seen from here now",
    ),
    (
        "limit",
        state("jobs", delivery_limit=20),
        {},
        FAULT,
        "delivery-limit",
        "gives a message up after 20 returns",
    ),
    (
        "a limit of dead letters",
        state("dead", delivery_limit=20),
        {},
        FAULT,
        "delivery-limit",
        "kestra.jobs.dead drops a dead letter after 20 returns",
    ),
    (
        "a limit of dead letters by policy",
        state("dead", delivery_limit=5, policy_names=("five",)),
        {},
        FAULT,
        "delivery-limit",
        "after 5 returns (five)",
    ),
    (
        "a limit by policy, where the broker tells no more",
        state("jobs", delivery_limit=None, policy={"delivery-limit": 5}, policy_names=("five",)),
        {},
        FAULT,
        "delivery-limit",
        "after 5 returns (five)",
    ),
    (
        "no dead-letter exchange",
        lane(exchanges={QUEUE: THERE, f"{QUEUE}.dead": DeclareResult(False)}),
        {},
        FAULT,
        "dead-letters",
        "no exchange kestra.jobs.dead",
    ),
    (
        "no dead-letter queue",
        of_queue("dead", declared=DeclareResult(False)),
        {},
        FAULT,
        "dead-letters",
        "no queue kestra.jobs.dead",
    ),
    (
        "dead letters unbound",
        of_queue("dead", bindings=[]),
        {},
        FAULT,
        "dead-letters",
        "is not bound to the exchange",
    ),
    (
        "another dead-letter exchange",
        state("jobs", arguments={"x-dead-letter-exchange": "other"}),
        {},
        FAULT,
        "dead-letters",
        "kestra.jobs.dead is not the dead-letter exchange of queue kestra.jobs",
    ),
    (
        "no retry queue",
        of_queue("retries", declared=DeclareResult(False)),
        {},
        FAULT,
        "retries",
        "there is no queue kestra.jobs.retry.30",
    ),
    (
        "retries that end elsewhere",
        state("retries", arguments={"x-message-ttl": 30_000, "x-dead-letter-exchange": QUEUE}),
        {},
        FAULT,
        "retries",
        "does not lead back to kestra.jobs after 30 s: it has another x-dead-letter-routing-key",
    ),
    (
        "no exchange",
        lane(exchanges={QUEUE: DeclareResult(False), f"{QUEUE}.dead": THERE}),
        {},
        FAULT,
        "retries",
        "there is no exchange kestra.jobs",
    ),
    (
        "jobs unbound",
        of_queue("jobs", bindings=[]),
        {},
        FAULT,
        "retries",
        "is not bound to the exchange kestra.jobs",
    ),
    (
        "jobs bound by another key",
        of_queue("jobs", bindings=[Binding(source=QUEUE, destination=QUEUE, routing_key="other")]),
        {},
        FAULT,
        "retries",
        "is not bound to the exchange kestra.jobs by that name",
    ),
    (
        "expiry by policy",
        state("dead", policy={"message-ttl": 1, "max-length": 5}, policy_names=("tidy",)),
        {},
        FAULT,
        "policies",
        "kestra.jobs.dead gets max-length, message-ttl from a policy (tidy)",
    ),
    (
        "no replies",
        broker(replies=DeclareResult(False)),
        {},
        WARNING,
        "replies",
        "there is no exchange kestra.replies",
    ),
    (
        "other replies",
        broker(replies=DeclareResult(True, "type")),
        {},
        FAULT,
        "replies",
        "is not a durable topic exchange",
    ),
    ("unheard replies", broker(replies_bound=0), {}, FAULT, "replies", "no queue is bound"),
    (
        "nobody",
        of_queue("jobs", depth=Depth(0, 0)),
        {},
        WARNING,
        "consumers",
        "nobody consumes kestra.jobs",
    ),
    (
        "waiting",
        of_queue("jobs", depth=Depth(7, 0)),
        {},
        FAULT,
        "consumers",
        "nobody consumes kestra.jobs, where messages wait: 7",
    ),
    (
        "no Kestra",
        lambda facts: replace(facts, kestra=AWAY, round_trip=None, kill=None),
        {},
        FAULT,
        "kestra",
        "can't reach Kestra at http://kestra:8080",
    ),
    (
        "an old Kestra",
        kestra(version="0.24.1", notifier=shipped("0.24.1")),
        {},
        WARNING,
        "kestra-version",
        "neither 1.3 nor 2.0",
    ),
    (
        "a Kestra 1.2",
        kestra(version="1.2.14", notifier=shipped("1.2.14")),
        {},
        WARNING,
        "kestra-version",
        "neither 1.3 nor 2.0",
    ),
    (
        "a new Kestra",
        kestra(version="2.1.0", notifier=shipped("2.1.0")),
        {},
        WARNING,
        "kestra-version",
        "neither 1.3 nor 2.0",
    ),
    (
        "neither a notifier nor a reporter",
        everything(kestra(notifier=None), no_round_trip),
        {"report_interval": 0},
        WARNING,
        "notifier",
        "nobody tells of ends",
    ),
    (
        "a notifier for 1.x",
        kestra(notifier=shipped("1.3.25")),
        {},
        FAULT,
        "notifier",
        "is the one for another version than Kestra 2.0.0",
    ),
    (
        "a notifier for 2.x",
        kestra(version="1.3.25", notifier=shipped("2.0.0")),
        {},
        FAULT,
        "notifier",
        "is the one for another version than Kestra 1.3.25",
    ),
    (
        "a disabled notifier",
        kestra(
            notifier=StoredFlow(source=shipped("2.0.0").source + "disabled: true\n", disabled=True)
        ),
        {},
        FAULT,
        "notifier",
        "is disabled",
    ),
    (
        "a changed notifier",
        kestra(notifier=StoredFlow(source=shipped("2.0.0").source.replace("PT30S", "PT5S"))),
        {},
        WARNING,
        "notifier",
        "is not the one that ships",
    ),
    (
        "an exchange of an earlier bridge",
        lane(exchanges={QUEUE: DeclareResult(exists=True, of_before=True), f"{QUEUE}.dead": THERE}),
        {},
        WARNING,
        "dead-letters",
        f"exchange {QUEUE} has no alternate exchange",
    ),
    (
        "a retry that does not come back",
        state("retries", handing_on=1),
        {},
        WARNING,
        "retries",
        f"{QUEUE}.retry.30 is handing on messages to the exchange {QUEUE} that have not arrived: 1",
    ),
    (
        "a dead letter that does not arrive",
        state("jobs", handing_on=2),
        {},
        WARNING,
        "dead-letters",
        f"{QUEUE} is handing on messages to the exchange {QUEUE}.dead that have not arrived: 2",
    ),
    (
        "no flow",
        kestra(flows={REPORT: None}),
        {},
        FAULT,
        "flows",
        "there is no flow company.team/report in Kestra",
    ),
    (
        "a disabled flow",
        kestra(flows={REPORT: StoredFlow(source="", disabled=True)}),
        {},
        FAULT,
        "flows",
        "company.team/report is disabled",
    ),
    (
        "a limit",
        kestra(flows={REPORT: StoredFlow(source="", limit=7)}),
        {},
        WARNING,
        "concurrency",
        "may run 7 times at once, and the bridge will have it run up to 8 times",
    ),
    (
        "a limit for two replicas",
        everything(
            kestra(flows={REPORT: StoredFlow(source="", limit=15)}),
            of_queue("jobs", depth=Depth(0, 2)),
            state("jobs", consumers=()),
        ),
        {},
        WARNING,
        "concurrency",
        "up to 16 times",
    ),
    (
        "a silent round trip",
        lambda facts: replace(facts, round_trip=ProbeResult(problem="no reply within 30 s")),
        {},
        FAULT,
        "round-trip",
        "the notifier did not report the end of a probe: no reply within 30 s",
    ),
    (
        "no round trip",
        lambda facts: replace(facts, round_trip=ProbeResult(problem="refused", tried=False)),
        {},
        WARNING,
        "round-trip",
        "the probe could not be started: refused",
    ),
    (
        "a refused kill",
        lambda facts: replace(facts, kill=ProbeResult(problem="Kestra refuses kill (HTTP 406)")),
        {},
        FAULT,
        "kill",
        "an execution can't be killed: Kestra refuses kill (HTTP 406)",
    ),
    (
        "no kill",
        lambda facts: replace(facts, kill=ProbeResult(problem="refused", tried=False)),
        {},
        WARNING,
        "kill",
        "the probe to be killed could not be started: refused",
    ),
    (
        "Kestra's clock",
        kestra(skew=timedelta(seconds=11)),
        {},
        WARNING,
        "clocks",
        "Kestra's clock is 11 s ahead of this machine's",
    ),
    (
        "RabbitMQ's clock",
        broker(skew=timedelta(hours=-1)),
        {},
        WARNING,
        "clocks",
        "RabbitMQ's clock is 1 h behind this machine's",
    ),
    (
        "plain AMQP",
        everything(),
        {"amqp_url": SecretStr("amqp://u:p@rabbit")},
        WARNING,
        "encryption",
        "BRIDGE_AMQP_URL is amqp:// to rabbit",
    ),
    (
        "plain HTTP",
        everything(),
        {"kestra_url": "http://10.0.0.1"},
        WARNING,
        "encryption",
        "BRIDGE_KESTRA_URL is http:// to 10.0.0.1",
    ),
    (
        "a certificate that ends soon",
        certificate("the certificate of Kestra", until=NOW + timedelta(days=13)),
        {},
        WARNING,
        "certificates",
        "the certificate of Kestra ends in 13 d",
    ),
    (
        "a certificate that has ended",
        certificate("our certificate for RabbitMQ", until=NOW - timedelta(days=1)),
        {},
        FAULT,
        "certificates",
        "our certificate for RabbitMQ has ended (2026-11-23 12:00 UTC)",
    ),
    (
        "a certificate that can't be read",
        lambda facts: replace(facts, certificates=[AWAY]),
        {},
        WARNING,
        "certificates",
        "can't reach",
    ),
]


BY_NAME = {wrong[0]: wrong for wrong in WRONG}


@cache
def findings(name: str) -> list[Finding]:
    """What is found where that is wrong."""
    _, change, settings, *_ = BY_NAME[name]
    return troubles(change, **settings)


@pytest.mark.parametrize("name", BY_NAME)
class TestWhatIsWrong:
    def test_is_found_and_nothing_else(self, name: str) -> None:
        *_, level, check, _ = BY_NAME[name]
        # Before 4.0 no API reports that time-out, whatever else is wrong.
        silent = {(UNKNOWN, "acknowledgement-timeout")}
        found = {(finding.level, finding.check) for finding in findings(name)}
        assert found - silent == {(level, check)} - silent

    def test_is_named(self, name: str) -> None:
        *_, level, check, words = BY_NAME[name]
        found = [
            (finding.level, finding.check) for finding in findings(name) if words in finding.what
        ]
        assert found == [(level, check)]

    def test_has_why_it_matters_and_how_to_fix_it(self, name: str) -> None:
        assert all(finding.why and finding.fix for finding in findings(name))

    def test_names_only_settings_that_exist_in_its_fix(self, name: str) -> None:
        fixes = " ".join(finding.fix for finding in findings(name))
        named = re.findall(r"BRIDGE_[A-Z_]*[A-Z](?![A-Z_])", fixes)
        settings = [setting.removeprefix("BRIDGE_").lower() for setting in named]
        assert set(settings) <= set(Settings.model_fields)


def test_no_name_of_a_fault_is_there_twice() -> None:
    assert len(BY_NAME) == len(WRONG)


class TestWithoutTheManagementApi:
    CHANGE = staticmethod(
        everything(
            broker(management=FORBIDDEN, alarms=None, replies_bound=None, skew=None),
            *(of_queue(which, state=None, bindings=None) for which in ("jobs", "dead", "retries")),
        )
    )

    def test_what_is_unchecked_is_said_once(self) -> None:
        warnings = [finding for finding in troubles(self.CHANGE) if finding.level is WARNING]
        assert [(finding.check, finding.what) for finding in warnings] == [
            ("management", FORBIDDEN.why)
        ]
        assert warnings[0].why == (
            "unchecked without it: alarms, the acknowledgement time-out, delivery limits, whether "
            "dead-letter queues "
            "are bound, whether retry queues lead back, policies, whether replies have listeners"
        )

    def test_what_is_unchecked_is_not_ok(self) -> None:
        ok = {
            finding.check
            for finding in examine(configured(), self.CHANGE(sound()))
            if finding.level is Level.OK
        }
        assert ok & {check.name for check in CHECKS if check.needs_management} == set()

    def test_what_amqp_shows_is_checked(self) -> None:
        change = everything(self.CHANGE, of_queue("dead", declared=DeclareResult(False)))
        assert (FAULT, "dead-letters") in {
            (finding.level, finding.check) for finding in troubles(change)
        }


def test_without_kestra_no_check_of_it_is_ok() -> None:
    found = examine(configured(), replace(sound(), kestra=AWAY, round_trip=None, kill=None))
    of_kestra = {
        "kestra",
        "kestra-version",
        "notifier",
        "flows",
        "concurrency",
        "round-trip",
        "kill",
    }
    assert {finding.check for finding in found if finding.level is Level.OK} & of_kestra == set()


def test_without_a_lanes_queue_no_check_of_it_is_ok() -> None:
    found = examine(configured(), of_queue("jobs", declared=DeclareResult(False))(sound()))
    ok = {finding.check for finding in found if finding.level is Level.OK}
    assert ok & {"priorities", "retries", "dead-letters", "consumers"} == set()


def test_the_worst_comes_first() -> None:
    change = everything(
        broker(alarms=["disk on a"]), kestra(skew=timedelta(minutes=1)), state("jobs", policy=None)
    )
    levels = [finding.level for finding in examine(configured(), change(sound()))]
    assert levels == sorted(levels, key=list(Level).index)


def test_lanes_that_share_a_flow_count_together() -> None:
    facts = sound()
    both = [replace(facts.broker.lanes[0]), replace(facts.broker.lanes[0])]
    change = everything(broker(lanes=both), kestra(flows={REPORT: StoredFlow(source="", limit=15)}))
    assert [finding.check for finding in troubles(change)] == ["concurrency"]


def test_executions_beyond_a_limit_that_cancels_cost_attempts() -> None:
    change = kestra(flows={REPORT: StoredFlow(source="", limit=1, beyond="CANCEL")})
    assert "each costs the job an attempt" in troubles(change)[0].why


def test_the_consumer_judges_at_its_start_only_what_it_knows_then() -> None:
    disabled = StoredFlow(source="", disabled=True)
    change = everything(
        broker(alarms=["disk on a"]), kestra(notifier=disabled, flows={REPORT: None})
    )
    assert [finding.check for finding in at_start(configured(), change(sound()))] == [
        "notifier",
        "flows",
    ]


def test_a_limit_of_dead_letters_without_a_policy_is_fixed_by_a_policy() -> None:
    (found,) = troubles(state("dead", delivery_limit=20))
    assert found.fix == (
        r"rabbitmqctl set_policy -p VHOST kestra.jobs.dead '^kestra\.jobs\.dead$' "
        """'{"delivery-limit": -1}' --apply-to queues"""
    )


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ({"executionId": "e1"}, True),
        ({"executionId": "e1", "by": "notifier"}, True),
        ({"executionId": "e1", "by": "reporter"}, False),
        ({"executionId": "e2"}, False),
        (["e1"], False),
    ],
    ids=["an older notifier's", "the notifier's", "the reporter's", "of another", "no object"],
)
def test_a_round_trip_ends_with_the_notifiers_own_reply(reply: object, counts: bool) -> None:
    execution = Execution(id="e1", flow=ROUND_TRIP.flow, state=State.SUCCESS)
    assert is_from_notifier(reply, execution) is counts


def test_no_secret_is_in_a_finding() -> None:
    settings = configured(amqp_url=SecretStr("amqp://u:geheim@rabbit"))
    assert not [finding for finding in examine(settings, sound()) if "geheim" in str(finding)]


SENTENCES = {
    command
    for path in (REPOSITORY / "bridge" / "operate" / "doctor").rglob("*.py")
    for command in in_sentences(path)
}


@pytest.mark.parametrize("command", sorted(SENTENCES))
def test_a_command_of_a_fix_exists_with_its_options(command: str) -> None:
    assert unknown_in(command) is None


def test_a_fix_is_in_the_json_under_its_former_name_too() -> None:
    data = fault("what", why="why", fix="fix").as_data()
    assert data == {
        "level": "fault",
        "check": "",
        "what": "what",
        "why": "why",
        "fix": "fix",
        "mend": "fix",
    }
