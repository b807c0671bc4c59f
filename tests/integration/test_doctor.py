"""The doctor finds what has been planted in real brokers, names it, and is silent where all is
well."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError
from pydantic import SecretStr

from bridge.errors import BrokerDenied
from bridge.kestra import Kestra
from bridge.operate import flows
from bridge.operate.doctor.checks import examine
from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.doctor.gather import gather
from bridge.operate.doctor.probe import KILL, ROUND_TRIP
from bridge.rabbitmq import declaration
from bridge.rabbitmq.connection import connected
from bridge.rabbitmq.topology import lift_limit
from bridge.settings import Lane, Settings
from deploy.local.paths import free_port
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.broker_stage import BrokerStage, Kind, Node, open_stage
from tests.support.certificates import Authority
from tests.support.harness import eventually
from tests.support.in_process import command
from tests.support.standin import Ends

FAULT, WARNING, UNKNOWN = Level.FAULT, Level.WARNING, Level.UNKNOWN
HOLD = 46_800_000
"""Milliseconds: what the bridge asks for by default."""

SILENCE = {(UNKNOWN, "acknowledgement-timeout")}
"""3.10 tells nobody what its acknowledgement time-out is."""

VHOST = "doctor"
PASSWORD = "some-Passw0rd"


@dataclass(frozen=True, slots=True)
class Ground:
    """One lane as the bridge declares it, in which a fault is planted. Names are what follows the
    queue's own."""

    rabbit: RabbitMQ
    queue: str
    channel: AbstractChannel

    async def delete_queue(self, name: str) -> None:
        await self.channel.queue_delete(self.queue + name)

    async def delete_exchange(self, name: str) -> None:
        await self.channel.exchange_delete(self.queue + name)

    async def unbind(self, name: str, *, key: str) -> None:
        queue = await self.channel.get_queue(self.queue + name, ensure=False)
        await queue.unbind(self.queue + name, routing_key=key)

    async def declare(self, name: str, arguments: Mapping[str, Any]) -> None:
        await self.channel.declare_queue(self.queue + name, durable=True, arguments=dict(arguments))

    async def policy(self, name: str, definition: Mapping[str, Any], *, to: str = "queues") -> None:
        pattern = f"^{self.queue}{name}$".replace(".", r"\.")
        body = {"pattern": pattern, "definition": dict(definition), "apply-to": to}
        await asyncio.to_thread(
            self.rabbit.api, f"policies/{VHOST}/{self.queue}{name}", method="PUT", body=body
        )


async def nothing(_: Ground) -> None:
    """A lane with which all is well."""


async def no_queue(ground: Ground) -> None:
    await ground.delete_queue("")


async def no_exchange(ground: Ground) -> None:
    await ground.delete_exchange("")


async def no_dead_exchange(ground: Ground) -> None:
    await ground.delete_exchange(".dead")


async def no_dead_queue(ground: Ground) -> None:
    await ground.delete_queue(".dead")


async def unbound_dead_queue(ground: Ground) -> None:
    await ground.unbind(".dead", key="")


async def no_retry_queue(ground: Ground) -> None:
    await ground.delete_queue(".retry.30")


async def retries_lead_nowhere(ground: Ground) -> None:
    await ground.delete_queue(".retry.30")
    await ground.declare(".retry.30", {"x-queue-type": "quorum", "x-message-ttl": 30_000})


async def unbound_jobs(ground: Ground) -> None:
    await ground.unbind("", key=ground.queue)


async def exchange_of_before(ground: Ground) -> None:
    """As a bridge made it that knew of no alternate exchange."""
    await ground.delete_exchange("")
    exchange = await ground.channel.declare_exchange(ground.queue, "direct", durable=True)
    queue = await ground.channel.get_queue(ground.queue, ensure=False)
    await queue.bind(exchange, routing_key=ground.queue)


async def exchange_led_by_policy(ground: Ground) -> None:
    await exchange_of_before(ground)
    await ground.policy("", {"alternate-exchange": f"{ground.queue}.dead"}, to="exchanges")


async def stuck_retry(ground: Ground) -> None:
    """A retry that was due and can't go back, as the lane takes no more."""
    await ground.policy("", {"max-length": 1, "overflow": "reject-publish"})
    await ground.delete_queue(".retry.30")
    back = {"x-dead-letter-exchange": ground.queue, "x-dead-letter-routing-key": ground.queue}
    kept = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    await ground.declare(
        ".retry.30", {"x-queue-type": "quorum", "x-message-ttl": 30_000, **back, **kept}
    )
    for queue in ("", "", ".retry.30"):
        message = aio_pika.Message(b"{}", expiration=0.001 if queue else None)
        with suppress(DeliveryError):
            await ground.channel.default_exchange.publish(message, ground.queue + queue)


async def messages_expire(ground: Ground) -> None:
    await ground.policy("", {"message-ttl": 60_000})


async def dead_letters_expire(ground: Ground) -> None:
    await ground.policy(".dead", {"max-length": 10})


async def low_maximum(ground: Ground) -> None:
    await ground.delete_queue("")
    dead = {"x-dead-letter-exchange": f"{ground.queue}.dead"}
    await ground.declare("", {"x-queue-type": "classic", "x-max-priority": 3, **dead})
    await (await ground.channel.get_queue(ground.queue)).bind(
        ground.queue, routing_key=ground.queue
    )


async def a_job_waits(ground: Ground) -> None:
    await ground.channel.default_exchange.publish(aio_pika.Message(b"{}"), ground.queue)


async def delivery_limit(ground: Ground) -> None:
    await ground.policy("", {"delivery-limit": 5})


async def limited_dead_queue(ground: Ground) -> None:
    """As it is after an upgrade from RabbitMQ 3, which knew no such limit."""
    await ground.delete_queue(".dead")
    await ground.declare(".dead", {"x-queue-type": "quorum"})
    await (await ground.channel.get_queue(f"{ground.queue}.dead")).bind(f"{ground.queue}.dead")


async def lifted_dead_queue(ground: Ground) -> None:
    await limited_dead_queue(ground)
    await ground.policy(".dead", {"delivery-limit": -1})


async def short_timeout(ground: Ground) -> None:
    await ground.policy("", {"consumer-timeout": 60_000})


async def long_timeout(ground: Ground) -> None:
    await ground.policy("", {"consumer-timeout": HOLD})


@dataclass(frozen=True, slots=True)
class Fault:
    """What is planted, what is to be found of that lane, and in which words."""

    plant: Callable[[Ground], Awaitable[None]]
    expected: frozenset[tuple[Level, str]]
    words: str = ""
    consumed: bool = True


def fault(
    plant: Callable[[Ground], Awaitable[None]],
    *expected: tuple[Level, str],
    words: str = "",
    **more: bool,
) -> Fault:
    return Fault(plant, frozenset(expected), words, **more)


ANYWHERE = [
    fault(nothing),
    fault(no_exchange, (FAULT, "retries"), words="there is no exchange"),
    fault(no_dead_exchange, (FAULT, "dead-letters"), words="there is no exchange"),
    fault(no_dead_queue, (FAULT, "dead-letters"), words="there is no queue"),
    fault(unbound_dead_queue, (FAULT, "dead-letters"), words="is not bound"),
    fault(no_retry_queue, (FAULT, "retries"), words="there is no queue"),
    fault(retries_lead_nowhere, (FAULT, "retries"), (FAULT, "queues"), words="does not lead back"),
    fault(unbound_jobs, (FAULT, "retries"), words="is not bound to the exchange"),
    fault(exchange_of_before, (WARNING, "dead-letters"), words="has no alternate exchange"),
    fault(exchange_led_by_policy),
    fault(
        stuck_retry,
        (WARNING, "retries"),
        (FAULT, "policies"),
        (FAULT, "consumers"),
        words="that have not arrived: 1",
        consumed=False,
    ),
    fault(messages_expire, (FAULT, "policies"), words="gets message-ttl from a policy"),
    fault(dead_letters_expire, (FAULT, "policies"), words="gets max-length from a policy"),
    fault(a_job_waits, (FAULT, "consumers"), words="where messages wait: 1", consumed=False),
]
NO_QUEUE = fault(no_queue, (WARNING, "queues"), words="there is no queue", consumed=False)
LOW = fault(low_maximum, (FAULT, "queues"), (FAULT, "priorities"), words="has x-max-priority 3")
LIMITED = fault(
    limited_dead_queue, (FAULT, "delivery-limit"), words="drops a dead letter after 20 returns"
)
PLANTED: dict[tuple[Series, Kind], list[Fault]] = {
    ("3.10", "classic"): [*ANYWHERE, LOW, NO_QUEUE],
    ("3.10", "quorum"): [fault(nothing, (FAULT, "priorities"), words="ignores priorities")],
    ("4.0", "classic"): [
        fault(
            nothing, (FAULT, "acknowledgement-timeout"), words="is 30 min, and a job may take 6 h"
        ),
        fault(long_timeout),
    ],
    ("4.0", "quorum"): [fault(long_timeout, (WARNING, "priorities"), words="knows two priorities")],
    ("4.3", "quorum"): [
        *ANYWHERE,
        fault(
            delivery_limit, (FAULT, "delivery-limit"), words="gives a message up after 5 returns"
        ),
        LIMITED,
        fault(lifted_dead_queue),
        fault(
            short_timeout,
            (FAULT, "acknowledgement-timeout"),
            words="is 1 min, and a job may take 6 h",
        ),
    ],
}
CASES = [(*group, fault) for group, faults in PLANTED.items() for fault in faults]
Findings = dict[str, list[Finding]]
"""What is found of each lane, by its queue."""


def settings_for(rabbit: RabbitMQ, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "amqp_url": SecretStr(f"{rabbit.amqp_url}{VHOST}"),
        "management_url": rabbit.management_url,
        "kestra_url": f"http://127.0.0.1:{free_port()}",
        "retry_delays": [30],
    }
    return Settings(**{**given, **more}, _env_file=None)


async def diagnosed(
    settings: Settings, *, probe: bool = False, patience: float = 10.0
) -> list[Finding]:
    """What is wrong, or can't be seen."""
    found = examine(settings, await gather(settings, probe_patience=patience if probe else None))
    return [finding for finding in found if finding.level is not Level.OK]


def levels(findings: Sequence[Finding]) -> set[tuple[Level, str]]:
    return {(finding.level, finding.check) for finding in findings}


async def consume(channel: AbstractChannel, queue: str, *, asking: bool) -> None:
    async def ignore(_: object) -> None:
        """Hold it."""

    raw = await channel.get_underlay_channel()
    with suppress(ChannelNotFoundEntity):
        await raw.basic_consume(
            queue, ignore, arguments={"x-consumer-timeout": HOLD} if asking else None
        )


@asynccontextmanager
async def virtual_host(rabbit: RabbitMQ) -> AsyncIterator[None]:
    """One of our own on a shared node, since there is one reply exchange in each."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    await asyncio.to_thread(rabbit.api, f"vhosts/{VHOST}", method="PUT", body={})
    await asyncio.to_thread(
        rabbit.api, f"permissions/{VHOST}/{rabbit.username}", method="PUT", body=everything
    )
    try:
        yield
    finally:
        await asyncio.to_thread(rabbit.api, f"vhosts/{VHOST}", method="DELETE")


async def plant_and_look(rabbit: RabbitMQ, kind: Kind) -> Findings:
    """Plant every fault in a lane of its own, and look at all of them once the management API tells
    of them."""
    faults = PLANTED[rabbit.series, kind]
    lanes = tuple(Lane(queue=f"{kind}.{fault.plant.__name__}.jobs") for fault in faults)
    settings = settings_for(rabbit, queue_type=kind, lanes=lanes)
    async with virtual_host(rabbit), connected(settings, "test") as connection:
        await declaration.declare_lanes(connection, settings)
        channel = await connection.channel()
        await declaration.declare_replies(channel, "")
        for lane, fault in zip(lanes, faults, strict=True):
            await fault.plant(Ground(rabbit, lane.queue, channel))
            if fault.consumed:
                asking = (rabbit.series, kind) == ("4.3", "quorum")
                await consume(await connection.channel(), lane.queue, asking=asking)
        expected = {lane.queue: fault.expected for lane, fault in zip(lanes, faults, strict=True)}
        return await look_until(settings, expected)


async def look_until(
    settings: Settings, expected: Mapping[str, frozenset[tuple[Level, str]]]
) -> Findings:
    """What is found of each lane, once it is what is expected, or for good after a while."""
    deadline = time.monotonic() + 20
    while True:
        found = await diagnosed(settings)
        by_lane = {queue: [each for each in found if queue in each.what] for queue in expected}
        if time.monotonic() > deadline or all(
            levels(by_lane[queue]) - SILENCE == expected[queue] for queue in expected
        ):
            return by_lane
        await asyncio.sleep(0.3)


@pytest.fixture(scope="module")
def planted(node: Node) -> dict[tuple[Series, Kind], Findings]:
    return {group: asyncio.run(plant_and_look(node(group[0]), group[1])) for group in PLANTED}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2].plant.__name__}"
)
class TestWhatIsPlanted:
    def test_is_found_and_nothing_else_of_that_lane(
        self, case: tuple[Series, Kind, Fault], planted: dict[tuple[Series, Kind], Findings]
    ) -> None:
        series, kind, fault = case
        found = planted[series, kind][f"{kind}.{fault.plant.__name__}.jobs"]
        assert levels(found) - SILENCE == fault.expected

    def test_is_named(
        self, case: tuple[Series, Kind, Fault], planted: dict[tuple[Series, Kind], Findings]
    ) -> None:
        series, kind, fault = case
        found = planted[series, kind][f"{kind}.{fault.plant.__name__}.jobs"]
        assert any(fault.words in finding.what for finding in found) or not fault.expected


def test_3_10_tells_no_acknowledgement_timeout(
    planted: dict[tuple[Series, Kind], Findings],
) -> None:
    assert levels(planted["3.10", "classic"]["classic.nothing.jobs"]) == SILENCE


@pytest.fixture(params=["3.10", "4.3"])
async def own(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[RabbitMQ]:
    """A node with an empty virtual host of our own."""
    rabbit = node(request.param)
    async with virtual_host(rabbit):
        yield rabbit


async def declared(rabbit: RabbitMQ) -> None:
    settings = settings_for(rabbit)
    async with connected(settings, "test") as connection:
        await declaration.declare_lanes(connection, settings)
        async with connection.channel() as channel:
            await channel.declare_exchange("kestra.replies", "topic", durable=True)


class TestReplies:
    async def test_that_have_no_exchange_are_found(self, own: RabbitMQ) -> None:
        assert (WARNING, "replies") in levels(await diagnosed(settings_for(own)))

    async def test_that_have_an_exchange_of_another_type_are_found(self, own: RabbitMQ) -> None:
        async with (
            connected(settings_for(own), "test") as connection,
            connection.channel() as channel,
        ):
            await channel.declare_exchange("kestra.replies", "direct", durable=True)
        assert (FAULT, "replies") in levels(await diagnosed(settings_for(own)))

    async def test_that_nobody_hears_though_somebody_consumes_are_found(
        self, own: RabbitMQ
    ) -> None:
        await declared(own)
        async with connected(settings_for(own), "test") as connection:
            await consume(await connection.channel(), "kestra.jobs", asking=False)
            assert (FAULT, "replies") in levels(await diagnosed(settings_for(own)))


class TestRights:
    @pytest.mark.parametrize(
        ("missing", "named"),
        [
            ("configure", "no configure right on amq.gen-*, kestra.jobs"),
            ("write", "no write right on amq.default, amq.gen-*, kestra.jobs"),
            ("read", "no read right on kestra.jobs, kestra.replies"),
        ],
    )
    async def test_that_are_missing_are_named(
        self, own: RabbitMQ, missing: str, named: str
    ) -> None:
        await declared(own)
        rights = {
            right: "^$" if right == missing else ".*" for right in ("configure", "write", "read")
        }
        async with user(own, tags="management", **rights) as settings:
            found = [
                finding.what for finding in await diagnosed(settings) if finding.check == "rights"
            ]
        assert [what for what in found if named in what] == found != []

    async def test_that_the_readme_names_suffice(self, own: RabbitMQ) -> None:
        await declared(own)
        ours = r"^(kestra\.|amq\.gen-).*$"
        writable = rf"{ours}|^amq\.default$"
        async with user(
            own, tags="management", configure=ours, write=writable, read=ours
        ) as settings:
            found = await diagnosed(settings)
        assert {
            finding.check for finding in found if finding.check in ("rights", "management")
        } == set()

    async def test_to_ask_the_management_api_may_be_missing(self, own: RabbitMQ) -> None:
        await declared(own)
        async with user(own, tags="", configure=".*", write=".*", read=".*") as settings:
            found = [
                finding for finding in await diagnosed(settings) if finding.check == "management"
            ]
        assert [
            (each.level, "Not management user" in each.what, "delivery limits" in each.why)
            for each in found
        ] == [(WARNING, True, True)]


@asynccontextmanager
async def user(rabbit: RabbitMQ, *, tags: str, **rights: str) -> AsyncIterator[Settings]:
    """The settings of a user with these rights."""
    body = {"password": PASSWORD, "tags": tags}
    await asyncio.to_thread(rabbit.api, "users/doctor", method="PUT", body=body)
    await asyncio.to_thread(rabbit.api, f"permissions/{VHOST}/doctor", method="PUT", body=rights)
    url = f"amqp://doctor:{PASSWORD}@{rabbit.host}:{rabbit.port}/{VHOST}"
    try:
        yield settings_for(rabbit, amqp_url=SecretStr(url))
    finally:
        await asyncio.to_thread(rabbit.api, "users/doctor", method="DELETE")


async def test_nothing_is_changed_where_nothing_was_declared(own: RabbitMQ) -> None:
    async def there() -> list[str]:
        kinds = ("queues", "exchanges", "bindings")
        found = [await asyncio.to_thread(own.api, f"{kind}/{VHOST}") for kind in kinds]
        return [str(each.get("name", each)) for rows in found for each in rows]

    before = await there()
    await diagnosed(settings_for(own))

    async def as_before() -> bool:
        return await there() == before

    # The queues of a connection of its own end a moment after it.
    await eventually(as_before, "all is as it was before")


async def deploy_notifier(stage: BrokerStage) -> None:
    async with Kestra(settings_of(stage)) as kestra:
        await flows.deploy(kestra, flows.select(flows.shipped(await kestra.probe()), ["notifier"]))


def settings_of(stage: BrokerStage, **more: Any) -> Settings:
    own = {
        "amqp_url": SecretStr(stage.rabbit.amqp_url),
        "queue": stage.queue,
        "flow": "test/job",
        "kestra_url": stage.kestra.url,
        "kestra_username": stage.kestra.username,
        "kestra_password": SecretStr(stage.kestra.password),
    }
    return settings_for(stage.rabbit, **{**own, **more})


@dataclass(frozen=True, slots=True)
class Told:
    """How a run of the command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Level and check of each finding."""
        return [(each["level"], each["check"]) for each in json.loads(self.out)["findings"]]


async def doctor(stage: BrokerStage, *words: str, **settings: object) -> Told:
    environment = stage.bridge(
        **{"management_url": stage.rabbit.management_url, **settings}
    ).environment
    ours = {name: value for name, value in environment.items() if name.startswith("BRIDGE_")}
    said = await command("doctor", *words, **ours)
    return Told(said.code, said.out, said.err)


class TestTheCommand:
    @pytest.mark.parametrize(("series", "kind"), [("3.10", "classic"), ("4.3", "quorum")])
    async def test_finds_nothing_wrong_with_a_sound_installation(
        self, series: Series, kind: Kind, node: Node, tmp_path: Path
    ) -> None:
        async with open_stage(tmp_path, node(series), kind) as stage:
            await self.sound(stage)

    async def sound(self, stage: BrokerStage) -> None:
        await deploy_notifier(stage)

        async def told() -> bool:
            found = await asyncio.to_thread(stage.rabbit.api, f"queues/%2F/{stage.queue}")
            return bool(found.get("consumer_details")) and "effective_policy_definition" in found

        async with stage.bridge():
            await eventually(
                told, "the management API tells of the new queue and its consumer", every=0.2
            )
            said = await doctor(stage, "--json")
        wrong = {finding for finding in said.findings if finding[0] != "ok"}
        assert (said.code, wrong) == (0, SILENCE if stage.rabbit.series == "3.10" else set()), (
            said.out
        )

    async def test_leaves_nothing_of_its_probes(self, one_stage: BrokerStage) -> None:
        await deploy_notifier(one_stage)
        one_stage.kestra.flow(KILL.flow.namespace, KILL.flow.id, Ends(after=None))
        said = await doctor(one_stage, "--json")
        async with Kestra(settings_of(one_stage)) as kestra:
            left = [await kestra.flows.get(probe.flow) for probe in (ROUND_TRIP, KILL)]
        created = [run.flow for run in one_stage.kestra.created]
        assert (created, one_stage.kestra.executions, left) == (
            [ROUND_TRIP.flow.id, KILL.flow.id],
            {},
            [None, None],
        )
        assert {("ok", "round-trip"), ("ok", "kill")} <= set(said.findings)

    async def test_runs_no_probe_where_none_is_wanted(self, one_stage: BrokerStage) -> None:
        said = await doctor(one_stage, "--json", "--no-probe")
        probes = {check for _, check in said.findings} & {"round-trip", "kill"}
        assert (one_stage.kestra.created, probes) == ([], set())

    async def test_fails_where_there_is_a_fault_and_says_why_and_how_to_fix_it(
        self, one_stage: BrokerStage
    ) -> None:
        said = await doctor(one_stage, "--no-probe", flow="test/missing")
        first, why, fix, *_ = said.out.splitlines()
        assert (said.code, first, why.split()[0], fix.strip()) == (
            1,
            "fault   flows: there is no flow test/missing in Kestra",
            "why:",
            "fix: deploy it, or correct BRIDGE_FLOW or BRIDGE_LANES",
        )

    async def test_says_in_one_line_that_rabbitmq_is_away(self, one_stage: BrokerStage) -> None:
        said = await doctor(one_stage, amqp_url=f"amqp://127.0.0.1:{free_port()}")
        assert (said.code, said.out, said.err.count("\n"), "can't reach RabbitMQ" in said.err) == (
            1,
            "",
            1,
            True,
        )

    async def test_says_in_one_line_that_rabbitmq_refuses_the_password_and_shows_it_not(
        self, one_stage: BrokerStage
    ) -> None:
        url = one_stage.rabbit.amqp_url.replace(one_stage.rabbit.password, PASSWORD)
        said = await doctor(one_stage, amqp_url=url)
        assert (said.code, said.out, said.err.count("\n"), PASSWORD in said.err) == (
            2,
            "",
            1,
            False,
        )


def named(findings: Sequence[Finding], check: str) -> str:
    """What is found by a check that finds one thing."""
    (what,) = [finding.what for finding in findings if finding.check == check]
    return what


class TestKestra:
    async def test_that_is_away_is_a_fault(self, one_stage: BrokerStage) -> None:
        found = await diagnosed(
            settings_of(one_stage, kestra_url=f"http://127.0.0.1:{free_port()}"), probe=True
        )
        assert (FAULT, "kestra") in levels(found)

    async def test_that_refuses_the_password_is_a_fault_that_shows_no_password(
        self, one_stage: BrokerStage
    ) -> None:
        found = await diagnosed(
            settings_of(one_stage, kestra_password=SecretStr(PASSWORD)), probe=True
        )
        assert ((FAULT, "kestra") in levels(found), PASSWORD in str(found)) == (True, False)

    async def test_whose_clock_is_wrong_is_a_warning(self, one_stage: BrokerStage) -> None:
        one_stage.kestra.skew = timedelta(minutes=-5)
        assert (WARNING, "clocks") in levels(await diagnosed(settings_of(one_stage)))

    async def test_that_has_the_notifier_of_another_version_is_a_fault(
        self, one_stage: BrokerStage
    ) -> None:
        (other,) = flows.select(flows.shipped("1.3.25"), ["notifier"])
        one_stage.kestra.flow("bridge.system", "notifier", source=other.source)
        found = await diagnosed(settings_of(one_stage))
        assert "the one for another version than Kestra 2.0.0" in named(found, "notifier")

    async def test_whose_executions_do_not_end_is_a_fault_of_the_round_trip(
        self, one_stage: BrokerStage
    ) -> None:
        await deploy_notifier(one_stage)
        one_stage.kestra.flow(ROUND_TRIP.flow.namespace, ROUND_TRIP.flow.id, Ends(after=None))
        found = await diagnosed(settings_of(one_stage), probe=True, patience=1)
        assert "its execution is still RUNNING" in named(found, "round-trip")
        assert one_stage.kestra.created[0].state == "KILLED"

    async def test_that_starts_no_notifier_is_a_fault_of_the_round_trip(
        self, one_stage: BrokerStage
    ) -> None:
        await deploy_notifier(one_stage)
        one_stage.kestra.replies.on_end = None
        found = await diagnosed(settings_of(one_stage), probe=True, patience=1)
        assert "the notifier was not started" in named(found, "round-trip")

    async def test_that_lets_us_deploy_no_probe_is_a_warning(self, one_stage: BrokerStage) -> None:
        await deploy_notifier(one_stage)
        one_stage.kestra.faults.add("new_flow", status=403)
        found = await diagnosed(settings_of(one_stage), probe=True)
        assert (WARNING, "round-trip") in levels(found)

    async def test_loses_the_probes_flow_to_another_doctor_and_gets_it_again(
        self, one_stage: BrokerStage
    ) -> None:
        await deploy_notifier(one_stage)
        one_stage.kestra.faults.add("create", status=404)
        found = await diagnosed(settings_of(one_stage), probe=True)
        created = [run.flow for run in one_stage.kestra.created].count(ROUND_TRIP.flow.id)
        assert (created, "round-trip" in {check for _, check in levels(found)}) == (1, False)

    async def test_without_a_notifier_gets_no_probe_whose_end_nobody_would_tell(
        self, one_stage: BrokerStage
    ) -> None:
        await diagnosed(settings_of(one_stage), probe=True)
        assert [run.flow for run in one_stage.kestra.created] == [KILL.flow.id]

    @pytest.mark.parametrize("status", [403, 406, 500])
    async def test_that_refuses_kills_is_a_fault_that_says_how(
        self, one_stage: BrokerStage, status: int
    ) -> None:
        one_stage.kestra.faults.add("kill", status=status, times=None)
        one_stage.kestra.flow(KILL.flow.namespace, KILL.flow.id, Ends(after=None))
        found = await diagnosed(settings_of(one_stage), probe=True, patience=1)
        assert named(found, "kill").startswith("an execution can't be killed:")

    async def test_that_takes_kills_and_does_nothing_is_a_fault(
        self, one_stage: BrokerStage
    ) -> None:
        one_stage.kestra.flow(KILL.flow.namespace, KILL.flow.id, Ends(after=None, kill_sticks=True))
        found = await diagnosed(settings_of(one_stage), probe=True, patience=1)
        assert "within 1 s" in named(found, "kill")


class TestCertificates:
    """RabbitMQ's own ends tomorrow; `days` are those that Kestra's is valid for, or ours."""

    @staticmethod
    def ours(authority: Authority, rabbit: RabbitMQ, *, days: float = 90) -> dict[str, Any]:
        certificate, key = authority.issue("doctor", days=days)
        url = f"amqps://{rabbit.username}:{rabbit.password}@127.0.0.1:{rabbit.tls_port}/"
        return {
            "amqp_url": SecretStr(url),
            "amqp_ca": authority.ca,
            "amqp_certificate": certificate,
            "amqp_key": key,
        }

    @staticmethod
    async def found(stage: BrokerStage, **settings: Any) -> list[tuple[Level, str]]:
        found = await diagnosed(settings_of(stage, **settings))
        return [(each.level, each.what) for each in found if each.check == "certificates"]

    async def test_that_last_are_not_told_of_and_one_that_is_about_to_end_is(
        self, node: Node, authority: Authority, tmp_path: Path
    ) -> None:
        rabbit, lasting = node("4.3"), authority.server("kestra", "127.0.0.1", days=90)
        async with open_stage(tmp_path, rabbit, "quorum", tls=lasting) as stage:
            ((level, what),) = await self.found(
                stage, kestra_ca=authority.ca, **self.ours(authority, rabbit)
            )
        assert (level, what.startswith("the certificate of RabbitMQ ends in ")) == (WARNING, True)

    async def test_of_kestras_that_has_ended_is_a_fault_with_its_day(
        self, node: Node, authority: Authority, tmp_path: Path
    ) -> None:
        ended = authority.server("kestra", "127.0.0.1", days=-1)
        async with open_stage(tmp_path, node("4.3"), "quorum", tls=ended) as stage:
            ((level, what),) = await self.found(stage, kestra_ca=authority.ca)
        assert (level, re.sub(r"[0-9:-]{5,10}", "…", what)) == (
            FAULT,
            "the certificate of Kestra has ended (… … UTC)",
        )

    @pytest.mark.parametrize(
        "case", [(90, None, ""), (13, WARNING, "ends in 12 d 23 h"), (-1, FAULT, "has ended")]
    )
    async def test_of_ours_are_told_of_with_their_file(
        self, case: tuple[int, Level | None, str], node: Node, authority: Authority, tmp_path: Path
    ) -> None:
        days, level, state = case
        certificate, key = authority.issue("for-kestra", days=days)
        ours = {"kestra_ca": authority.ca, "kestra_certificate": certificate, "kestra_key": key}
        lasting = authority.server("kestra", "127.0.0.1", days=90)
        async with open_stage(tmp_path, node("4.3"), "quorum", tls=lasting) as stage:
            found = await self.found(stage, **ours)
        told = f"our certificate for Kestra, {certificate} (BRIDGE_KESTRA_CERTIFICATE), {state} ("
        without_day = [(each, re.sub(r"\(\d{4}-.*", "(", what)) for each, what in found]
        assert without_day == ([(level, told)] if level else [])

    async def test_of_ours_that_has_ended_is_named_where_rabbitmq_refuses_it(
        self, one_stage: BrokerStage, authority: Authority
    ) -> None:
        ours = self.ours(authority, one_stage.rabbit, days=-1)
        with pytest.raises(BrokerDenied) as caught:
            await diagnosed(settings_of(one_stage, **ours))
        file = (
            f"our certificate for RabbitMQ, {ours['amqp_certificate']} "
            "(BRIDGE_AMQP_CERTIFICATE), has ended (20"
        )
        assert (str(caught.value).count("; "), file in str(caught.value)) == (2, True), str(
            caught.value
        )


async def test_where_each_look_costs_dead_letters_a_life_none_is_taken_until_the_limit_is_lifted(
    node: Node, tmp_path: Path
) -> None:
    async with open_stage(tmp_path, node("4.0"), "classic") as stage:
        await stage.declare()
        dead = f"{stage.queue}.dead"
        await limited_dead_queue(Ground(stage.rabbit, stage.queue, stage.client.channel))
        for job in ("a", "b"):
            await stage.client.submit(dead, {}, job=job)
        ours = {
            name: value
            for name, value in stage.bridge().environment.items()
            if name.startswith("BRIDGE_")
        }
        ours["BRIDGE_MANAGEMENT_URL"] = stage.rabbit.management_url

        refused, status = (
            await command("dead-letters", "list", **ours),
            await command("status", "--json", **ours),
        )
        told = f"{dead} was made without x-delivery-limit -1"
        (unknown,) = [
            line for line in json.loads(status.out)["unknown"] if line.startswith("reasons in ")
        ]
        assert (refused.code, refused.err.count("\n"), told in refused.err) == (2, 1, True)
        assert (status.code, told in unknown) == (0, True)
        (letter,) = await stage.client.take(dead)
        assert letter.headers.get("x-delivery-count", 0) == 0

        program, *words = shlex.split(lift_limit(dead).replace("VHOST", "/"))
        await asyncio.to_thread(stage.rabbit.ctl, *words)

        async def listed() -> list[dict[str, Any]]:
            return (await command("dead-letters", "list", "--json", **ours)).rows

        assert program == "rabbitmqctl"
        assert [
            row["job"]
            for row in await eventually(listed, "the letter that is left is listed", every=0.3)
        ] == ["b"]


async def test_an_alarm_is_a_fault(one_stage: BrokerStage) -> None:
    await asyncio.to_thread(one_stage.rabbit.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:

        async def alarmed() -> bool:
            return (FAULT, "alarms") in levels(await diagnosed(settings_of(one_stage)))

        assert await eventually(alarmed, "an alarm is found", every=0.3)
    finally:
        await asyncio.to_thread(one_stage.rabbit.ctl, "set_vm_memory_high_watermark", "0.6")


class TestTheConsumer:
    async def test_warns_at_its_start_of_what_costs_nothing_to_see(
        self, one_stage: BrokerStage
    ) -> None:
        async with one_stage.bridge(flow="test/missing", max_priority=40) as bridge:
            await eventually(lambda: bridge.count("the doctor finds") == 2, "two warnings")
            checks = [line["check"] for line in bridge.events("the doctor finds", level="warning")]
        assert checks == ["priorities", "flows"]

    async def test_warns_of_nothing_where_all_is_well(self, one_stage: BrokerStage) -> None:
        asked = one_stage.kestra.requests["flow"]
        async with one_stage.bridge() as bridge:
            await eventually(
                lambda: one_stage.kestra.requests["flow"] == asked + 2, "both flows are asked for"
            )
            await one_stage.submit("one")
            await bridge.settled(job="one")
        assert bridge.count("the doctor finds") == 0

    async def test_starts_and_works_where_it_can_not_be_seen(self, one_stage: BrokerStage) -> None:
        one_stage.kestra.faults.add("flow", status=500, times=2)
        async with one_stage.bridge() as bridge:
            await one_stage.submit("one")
            await bridge.settled(job="one", settlement="ack")
            await eventually(
                lambda: bridge.count("what the doctor checks was not checked"),
                "a line that says so",
            )
