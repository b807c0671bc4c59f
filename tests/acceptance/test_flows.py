"""`kestra-bridge flows` against Kestra's own engines 2.0 and 1.3, and their notifier flows to a
real RabbitMQ."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from bridge.job.execution import Execution
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.operate.flows import home
from bridge.settings import KestraSettings
from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.paths import free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.support.given import given
from tests.support.harness import Ended
from tests.support.in_process import command_and_wait

# The engine and the broker are built on first use.
pytestmark = pytest.mark.timeout(600)

REPLY_SECONDS = 60.0
VHOST = "a b/c"
"""A virtual host whose name is not fit for a URL as it is."""

NAMESPACE = "bridge.tests"
EXAMPLE = FlowName("bridge.jobs", "example")
NOTIFIER = FlowName("bridge.system", "notifier")

# One execution at a time, and whatever comes on top of it is cancelled.
CROWDED = f"""\
id: crowded
namespace: {NAMESPACE}
concurrency:
  limit: 1
  behavior: CANCEL
tasks:
  - id: hold
    type: io.kestra.plugin.core.flow.Pause
"""

# Its first execution ends in RETRIED, and another takes its place.
STUBBORN = f"""\
id: stubborn
namespace: {NAMESPACE}
retry:
  type: constant
  interval: PT0.1S
  maxAttempts: 2
  behavior: CREATE_NEW_EXECUTION
tasks:
  - id: fail
    type: io.kestra.plugin.core.execution.Fail
"""

HARMLESS = """\
id: {name}
namespace: {namespace}
tasks:
  - id: say
    type: io.kestra.plugin.core.log.Log
    message: {message}
"""

BROKEN = f"""\
id: broken
namespace: {NAMESPACE}
tasks:
  - id: impossible
    type: io.kestra.plugin.nowhere.Nothing
"""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA that nobody has heard of, and a certificate of its for 127.0.0.1."""

    ca: x509.Certificate
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls) -> Authority:
        own, servers = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        ca = _certificate("A private CA", own, "A private CA", own)
        return cls(
            ca=ca, certificate=_certificate("rabbitmq", servers, "A private CA", own), key=servers
        )

    def write(self, folder: Path) -> None:
        """Write what RabbitMQ needs, and the trust store that Java needs."""
        pem = serialization.Encoding.PEM
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.pem").write_bytes(self.ca.public_bytes(pem))
        (folder / "certificate.pem").write_bytes(self.certificate.public_bytes(pem))
        key = self.key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "key.pem").write_bytes(key)
        protection = serialization.BestAvailableEncryption(b"changeit")
        store = pkcs12.serialize_java_truststore(
            [pkcs12.PKCS12Certificate(self.ca, b"ca")], protection
        )
        (folder / "trust.p12").write_bytes(store)


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.now(UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        .add_extension(loopback, critical=False)
        .sign(by, hashes.SHA256())
    )


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A RabbitMQ whose management API also listens with TLS, with a certificate by a private CA."""

    node: RabbitMQ
    api_url: str
    trust_store: Path

    def amqp_url(self, vhost: str = "/") -> str:
        return f"{self.node.amqp_url.rsplit('/', 1)[0]}/{quote(vhost, safe='')}"

    def secrets(self, vhost: str = "/") -> dict[str, str]:
        return {
            "BRIDGE_AMQP_API_URL": self.api_url,
            "BRIDGE_AMQP_VHOST": vhost,
            "BRIDGE_AMQP_USERNAME": self.node.username,
            "BRIDGE_AMQP_PASSWORD": self.node.password,
        }


@pytest.fixture(scope="module")
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    if given(request.config):
        pytest.skip("deploys to engines of its own, which are empty at first")
    folder, port = tmp_path_factory.mktemp("rabbitmq"), free_port()
    Authority.new().write(folder)
    # The node sees its folder as /state.
    settings = {
        "management.ssl.ip": "127.0.0.1",
        "management.ssl.port": str(port),
        "management.ssl.cacertfile": "/state/ca.pem",
        "management.ssl.certfile": "/state/certificate.pem",
        "management.ssl.keyfile": "/state/key.pem",
    }
    with RabbitMQ(folder, series="4.3", settings=settings) as node:
        vhost = quote(VHOST, safe="")
        node.api(f"vhosts/{vhost}", method="PUT", body={})
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        node.api(f"permissions/{vhost}/{node.username}", method="PUT", body=rights)
        yield Broker(
            node=node, api_url=f"https://127.0.0.1:{port}", trust_store=folder / "trust.p12"
        )


@dataclass(frozen=True, kw_only=True)
class Rig:
    """An engine, and the notifier's way to the broker."""

    engine: Engine
    deployed: Ended
    """The first deployment on this engine, which was empty before."""

    def settings(self) -> KestraSettings:
        return KestraSettings.model_validate(
            {
                "kestra_url": self.engine.url,
                "kestra_username": self.engine.username,
                "kestra_password": self.engine.password,
            }
        )


def run_flows(engine: Engine, *arguments: str | Path) -> Ended:
    """Run `kestra-bridge flows …` as a user would."""
    own = {
        "BRIDGE_KESTRA_URL": engine.url,
        "BRIDGE_KESTRA_USERNAME": engine.username,
        "BRIDGE_KESTRA_PASSWORD": engine.password,
    }
    return command_and_wait("flows", *map(str, arguments), **own)


def results(done: Ended) -> dict[str, str]:
    """The result of each flow, from what `--json` prints."""
    return {row["flow"]: row["result"] for row in json.loads(done.out)["flows"]}


@pytest.fixture(scope="module", params=["2.0", "1.3"])
def rig(
    request: pytest.FixtureRequest, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """An engine with the plain notifier, which knows nothing of the broker's CA."""
    amqp = AmqpAddress.from_url(broker.amqp_url())
    secrets = {"BRIDGE_AMQP_API_URL": broker.api_url}
    engine = Engine(
        tmp_path_factory.mktemp("engine"), series=request.param, amqp=amqp, secrets=secrets
    )
    engine.start()
    try:
        yield Rig(engine=engine, deployed=run_flows(engine, "deploy", "--notifier", "--json"))
    finally:
        # Its data die with it: nothing is worth the wait for an orderly end.
        engine.kill()


@pytest.fixture(scope="module", params=["2.0", "1.3"])
def tls_rig(
    request: pytest.FixtureRequest, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """An engine with the notifier for TLS, whose Java trusts the broker's CA. It has no other way
    to the broker."""
    trust = (
        f"-Djavax.net.ssl.trustStore={broker.trust_store} "
        "-Djavax.net.ssl.trustStorePassword=changeit"
    )
    engine = Engine(
        tmp_path_factory.mktemp("tls-engine"), series=request.param, secrets=broker.secrets(VHOST)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", trust)
        engine.start()
    try:
        yield Rig(engine=engine, deployed=run_flows(engine, "deploy", "--tls", "--json"))
    finally:
        engine.kill()


# What is no matter of the server's version is asked of one.
ON_2 = pytest.mark.parametrize("rig", ["2.0"], indirect=True, scope="module")
ON_1 = pytest.mark.parametrize("rig", ["1.3"], indirect=True, scope="module")
TLS_ON_2 = pytest.mark.parametrize("tls_rig", ["2.0"], indirect=True, scope="module")


class Replies:
    """What arrives in a queue that is bound to kestra.replies."""

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        self.arrived: list[AbstractIncomingMessage] = []

    async def of(self, execution_id: str, state: str | None = None) -> AbstractIncomingMessage:
        """The first reply for an execution (that tells of that state); fails the test when none
        arrives in time."""
        deadline = time.monotonic() + REPLY_SECONDS
        seen = 0
        while True:
            for message in self.arrived[seen:]:
                told = body(message)
                if told["executionId"] == execution_id and state in (None, told["state"]):
                    return message
            seen = len(self.arrived)
            if time.monotonic() > deadline:
                told_of = [
                    (body(message)["executionId"], body(message)["state"])
                    for message in self.arrived
                ]
                pytest.fail(
                    f"no reply {state or ''} for {execution_id} within {REPLY_SECONDS:g} "
                    f"s, only {told_of}"
                )
            await self._take()

    async def _take(self) -> None:
        message = await self._queue.get(no_ack=True, fail=False)
        if message is None:
            await asyncio.sleep(0.05)
        else:
            self.arrived.append(message)


async def _replies(url: str) -> AsyncIterator[Replies]:
    connection = await aio_pika.connect(url)
    async with connection, connection.channel() as channel:
        exchange = await channel.declare_exchange(
            "kestra.replies", aio_pika.ExchangeType.TOPIC, durable=True
        )
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")
        yield Replies(queue)


@pytest.fixture
async def replies(broker: Broker) -> AsyncIterator[Replies]:
    async for found in _replies(broker.amqp_url()):
        yield found


@pytest.fixture
async def tls_replies(broker: Broker) -> AsyncIterator[Replies]:
    async for found in _replies(broker.amqp_url(VHOST)):
        yield found


@pytest.fixture
async def kestra(rig: Rig) -> AsyncIterator[Kestra]:
    async with Kestra(rig.settings()) as client:
        yield client


@pytest.fixture
async def tls_kestra(tls_rig: Rig) -> AsyncIterator[Kestra]:
    async with Kestra(tls_rig.settings()) as client:
        yield client


async def start(
    kestra: Kestra, flow: FlowName = EXAMPLE, inputs: Mapping[str, Any] | None = None
) -> Execution:
    return await kestra.create(Job(id=uuid.uuid4().hex, flow=flow, inputs=inputs or {}))


async def wait_for_state(kestra: Kestra, execution_id: str, *states: str) -> Execution:
    deadline = time.monotonic() + REPLY_SECONDS
    while True:
        found = await kestra.get(execution_id)
        if found is not None and found.state in states:
            return found
        if time.monotonic() > deadline:
            pytest.fail(
                f"execution {execution_id} is {found and found.state} after "
                f"{REPLY_SECONDS:g} s, not {states}"
            )
        await asyncio.sleep(0.05)


def body(message: AbstractIncomingMessage) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(message.body)
    return data


def write_flow(
    folder: Path, name: str, *, message: str = "hello", namespace: str = NAMESPACE
) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(HARMLESS.format(name=name, namespace=namespace, message=message))
    return path


def sources_in(rig: Rig, namespace: str) -> list[str]:
    """The ids of the flows in a namespace."""
    credentials = (rig.engine.username, rig.engine.password)
    found = httpx.get(f"{rig.engine.url}/api/v1/main/flows/{namespace}", auth=credentials)
    found.raise_for_status()
    return [flow["id"] for flow in found.json()]


# Deploying


def test_on_an_empty_server_every_flow_is_created(rig: Rig) -> None:
    assert set(results(rig.deployed).values()) == {"created"}


def test_the_first_deployment_ends_with_exit_code_0(rig: Rig) -> None:
    assert (rig.deployed.code, rig.deployed.err) == (0, "")


def test_deploying_again_changes_nothing(rig: Rig) -> None:
    assert set(results(run_flows(rig.engine, "deploy", "--notifier", "--json")).values()) == {
        "unchanged"
    }


@ON_2
def test_a_changed_source_is_updated(rig: Rig, tmp_path: Path) -> None:
    run_flows(rig.engine, "deploy", write_flow(tmp_path, "changing", message="one"))
    done = run_flows(
        rig.engine, "deploy", "--json", write_flow(tmp_path, "changing", message="two")
    )
    assert results(done) == {f"{NAMESPACE}/changing": "updated"}


async def test_an_updated_source_is_what_the_server_has(
    rig: Rig, kestra: Kestra, tmp_path: Path
) -> None:
    run_flows(rig.engine, "deploy", write_flow(tmp_path, "kept", message="one"))
    path = write_flow(tmp_path, "kept", message="two")
    run_flows(rig.engine, "deploy", path)
    kept = await kestra.flows.get(FlowName(NAMESPACE, "kept"))
    assert kept is not None
    assert kept.source.strip() == path.read_text().strip()


@ON_2
def test_a_dry_run_tells_what_it_would_do(rig: Rig, tmp_path: Path) -> None:
    done = run_flows(rig.engine, "deploy", "--dry-run", "--json", write_flow(tmp_path, "imagined"))
    assert results(done) == {f"{NAMESPACE}/imagined": "created"}


@ON_2
async def test_a_dry_run_deploys_nothing(rig: Rig, kestra: Kestra, tmp_path: Path) -> None:
    run_flows(rig.engine, "deploy", "--dry-run", write_flow(tmp_path, "undone"))
    assert await kestra.flows.get(FlowName(NAMESPACE, "undone")) is None


@ON_2
def test_a_broken_flow_is_refused_with_exit_code_1(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    assert run_flows(rig.engine, "deploy", tmp_path).code == 1


def test_a_broken_flow_is_named_with_the_reason_on_one_line(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    (line,) = run_flows(rig.engine, "deploy", tmp_path).err.splitlines()
    assert re.fullmatch(
        rf"kestra-bridge: {NAMESPACE}/broken is refused: .*io\.kestra\.plugin\.nowhere.*", line
    )


@ON_2
def test_beside_a_broken_flow_no_other_is_deployed(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    write_flow(tmp_path, "a-first", namespace="bridge.tests.beside")
    run_flows(rig.engine, "deploy", tmp_path)
    assert sources_in(rig, "bridge.tests.beside") == []


@ON_2
def test_a_flow_of_somebody_elses_stays(rig: Rig, tmp_path: Path) -> None:
    run_flows(rig.engine, "deploy", write_flow(tmp_path, "theirs", namespace="bridge.system"))
    run_flows(rig.engine, "deploy")
    assert "theirs" in sources_in(rig, "bridge.system")


def test_every_flow_that_ships_is_valid(rig: Rig) -> None:
    assert set(results(run_flows(rig.engine, "validate", "--notifier", "--json")).values()) == {
        "valid"
    }


def test_every_flow_that_ships_for_tls_is_valid(rig: Rig) -> None:
    assert set(results(run_flows(rig.engine, "validate", "--tls", "--json")).values()) == {"valid"}


@ON_2
def test_wrong_credentials_are_wrong_settings(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.engine, "password", "Wrong0password")
    assert run_flows(rig.engine, "deploy").code == 2


# The example


async def test_the_example_hands_its_message_on_as_it_came(kestra: Kestra) -> None:
    message = 'it\'s "quoted" $(exit 1) `exit 1` ; exit 1 {{ 100 + 100 }}'
    execution = await start(kestra, inputs={"message": message})
    await wait_for_state(kestra, execution.id, "SUCCESS")
    assert await kestra.outputs(execution) == {"message": message, "characters": len(message)}


@ON_2
async def test_the_example_fails_on_the_first_attempt_when_asked_to(kestra: Kestra) -> None:
    execution = await start(kestra, inputs={"failFirst": True})
    assert (await wait_for_state(kestra, execution.id, "SUCCESS", "FAILED")).state == "FAILED"


async def test_the_example_succeeds_on_the_attempt_after_that(kestra: Kestra) -> None:
    job = Job(id=uuid.uuid4().hex, flow=EXAMPLE, inputs={"failFirst": True}, attempt=2)
    execution = await kestra.create(job)
    assert (await wait_for_state(kestra, execution.id, "SUCCESS", "FAILED")).state == "SUCCESS"


@ON_2
async def test_the_example_takes_as_long_as_it_is_told_to(kestra: Kestra) -> None:
    execution = await start(kestra, inputs={"seconds": 2})
    ended = await wait_for_state(kestra, execution.id, "SUCCESS")
    assert ended.started is not None
    assert ended.ended is not None
    assert ended.ended - ended.started >= timedelta(seconds=2)


# The notifier


@pytest.mark.parametrize(
    ("inputs", "state"), [({}, "SUCCESS"), ({"warn": True}, "WARNING"), ({"fail": True}, "FAILED")]
)
async def test_the_notifier_tells_how_the_example_ended(
    kestra: Kestra, replies: Replies, inputs: Mapping[str, Any], state: str
) -> None:
    execution = await start(kestra, inputs=inputs)
    assert body(await replies.of(execution.id))["state"] == state


async def test_the_notifier_tells_that_an_execution_was_killed(
    kestra: Kestra, replies: Replies
) -> None:
    execution = await start(kestra, inputs={"seconds": 300})
    await wait_for_state(kestra, execution.id, "RUNNING")
    await kestra.kill(execution.id)
    assert body(await replies.of(execution.id))["state"] == "KILLED"


async def test_the_notifier_tells_that_an_execution_was_cancelled(
    rig: Rig, kestra: Kestra, replies: Replies, tmp_path: Path
) -> None:
    (tmp_path / "crowded.yaml").write_text(CROWDED)
    run_flows(rig.engine, "deploy", tmp_path)
    first = await start(kestra, FlowName(NAMESPACE, "crowded"))
    await wait_for_state(kestra, first.id, "PAUSED", "RUNNING")
    second = await start(kestra, FlowName(NAMESPACE, "crowded"))
    assert body(await replies.of(second.id))["state"] == "CANCELLED"


async def test_the_notifier_tells_that_an_execution_was_retried_by_another(
    rig: Rig, kestra: Kestra, replies: Replies, tmp_path: Path
) -> None:
    (tmp_path / "stubborn.yaml").write_text(STUBBORN)
    run_flows(rig.engine, "deploy", tmp_path)
    first = await start(kestra, FlowName(NAMESPACE, "stubborn"))
    # FAILED may come first: Kestra 2.0 tells of both.
    assert body(await replies.of(first.id, "RETRIED"))["flowId"] == "stubborn"


async def test_a_reply_names_the_execution_and_its_flow(kestra: Kestra, replies: Replies) -> None:
    execution = await start(kestra)
    told = body(await replies.of(execution.id))
    assert (told["executionId"], told["namespace"], told["flowId"]) == (
        execution.id,
        "bridge.jobs",
        "example",
    )


@ON_2
async def test_a_reply_has_the_instant_when_the_execution_ended(
    kestra: Kestra, replies: Replies
) -> None:
    execution = await start(kestra)
    told = datetime.fromisoformat(body(await replies.of(execution.id))["endedAt"])
    assert told == (await wait_for_state(kestra, execution.id, "SUCCESS")).ended


@ON_1
async def test_a_reply_of_1_3_has_an_instant_within_seconds_of_the_end(
    kestra: Kestra, replies: Replies
) -> None:
    execution = await start(kestra)
    told = datetime.fromisoformat(body(await replies.of(execution.id))["endedAt"])
    ended = (await wait_for_state(kestra, execution.id, "SUCCESS")).ended
    assert ended is not None
    assert timedelta() <= told - ended < timedelta(seconds=10)


async def test_a_reply_s_routing_key_is_state_namespace_and_flow(
    kestra: Kestra, replies: Replies
) -> None:
    execution = await start(kestra)
    assert (await replies.of(execution.id)).routing_key == "SUCCESS.bridge.jobs.example"


async def test_a_reply_says_that_it_is_json(kestra: Kestra, replies: Replies) -> None:
    execution = await start(kestra)
    assert (await replies.of(execution.id)).content_type == "application/json"


async def test_an_execution_that_is_no_job_of_the_bridge_is_not_told_of(
    rig: Rig, kestra: Kestra, replies: Replies
) -> None:
    # The second one's reply comes after the first one's would.
    stranger = create_by_hand(rig, EXAMPLE)
    await wait_for_state(kestra, stranger, "SUCCESS")
    await replies.of((await start(kestra)).id)
    assert stranger not in {body(message)["executionId"] for message in replies.arrived}


async def test_the_notifier_tells_of_itself_to_nobody(
    rig: Rig, kestra: Kestra, replies: Replies
) -> None:
    notice = await notice_of(rig, (await start(kestra)).id)
    await wait_for_state(kestra, notice, "SUCCESS")
    # What would have followed from that has happened once a later job's reply is there.
    later = await start(kestra)
    await replies.of(later.id)
    assert notice not in told_of_by_notices(rig)


# The notifier for TLS


@pytest.mark.parametrize(
    ("inputs", "state"), [({}, "SUCCESS"), ({"warn": True}, "WARNING"), ({"fail": True}, "FAILED")]
)
async def test_the_notifier_for_tls_tells_how_the_example_ended(
    tls_kestra: Kestra, tls_replies: Replies, inputs: Mapping[str, Any], state: str
) -> None:
    execution = await start(tls_kestra, inputs=inputs)
    assert body(await tls_replies.of(execution.id))["state"] == state


async def test_a_reply_over_tls_names_the_execution_and_its_flow(
    tls_kestra: Kestra, tls_replies: Replies
) -> None:
    execution = await start(tls_kestra)
    told = body(await tls_replies.of(execution.id))
    assert (told["executionId"], told["namespace"], told["flowId"]) == (
        execution.id,
        "bridge.jobs",
        "example",
    )


@TLS_ON_2
async def test_a_reply_over_tls_has_the_instant_when_the_execution_ended(
    tls_kestra: Kestra, tls_replies: Replies
) -> None:
    execution = await start(tls_kestra)
    told = datetime.fromisoformat(body(await tls_replies.of(execution.id))["endedAt"])
    assert told == (await wait_for_state(tls_kestra, execution.id, "SUCCESS")).ended


async def test_a_reply_over_tls_has_the_same_routing_key(
    tls_kestra: Kestra, tls_replies: Replies
) -> None:
    execution = await start(tls_kestra)
    assert (await tls_replies.of(execution.id)).routing_key == "SUCCESS.bridge.jobs.example"


async def test_a_reply_over_tls_says_that_it_is_json(
    tls_kestra: Kestra, tls_replies: Replies
) -> None:
    execution = await start(tls_kestra)
    assert (await tls_replies.of(execution.id)).content_type == "application/json"


async def test_a_reply_over_tls_that_nobody_listens_to_is_no_failure(
    broker: Broker, tls_rig: Rig, tls_kestra: Kestra
) -> None:
    exchange = f"exchanges/{quote(VHOST, safe='')}/kestra.replies"
    broker.node.api(exchange, method="PUT", body={"type": "topic", "durable": True})
    execution = await start(tls_kestra)
    notice = await notice_of(tls_rig, execution.id)
    assert (
        await wait_for_state(tls_kestra, notice, "SUCCESS", "WARNING", "FAILED")
    ).state == "SUCCESS"


async def test_a_broker_whose_ca_is_not_trusted_gets_no_password(
    rig: Rig, kestra: Kestra, tmp_path: Path
) -> None:
    # The notifier for TLS under another name, for executions with another mark, on the engine that
    # doesn't know the CA.
    shipped = (
        home() / f"tls/kestra-{rig.engine.series[0]}/bridge.system/notifier.yaml"
    ).read_text()
    distrustful = re.sub(r"(bridge: |== ')amqp", r"\1distrusted", shipped).replace(
        "id: notifier", "id: distrustful"
    )
    (tmp_path / "distrustful.yaml").write_text(distrustful)
    run_flows(rig.engine, "deploy", tmp_path)
    execution = create_by_hand(rig, EXAMPLE, label="bridge:distrusted")
    notice = await notice_of(rig, execution)
    assert "PKIX path building failed" in await first_error(rig, notice)


# Asking the engine what the client of the bridge has no need to ask


def _api(rig: Rig, method: str, path: str, **kwargs: Any) -> Any:
    credentials = (rig.engine.username, rig.engine.password)
    answer = httpx.request(
        method, f"{rig.engine.url}/api/v1/main/{path}", auth=credentials, timeout=30, **kwargs
    )
    answer.raise_for_status()
    return answer.json()


def create_by_hand(rig: Rig, flow: FlowName, label: str | None = None) -> str:
    """Start an execution as somebody else than the bridge would; its id."""
    created = _api(rig, "POST", f"executions/{flow}", params={"labels": label} if label else None)
    return str(created["id"])


def _notices(rig: Rig) -> dict[str, str]:
    """The latest executions of the notifiers: the execution that each tells of, and its own id."""
    params = {
        "filters[namespace][EQUALS]": NOTIFIER.namespace,
        "size": 100,
        "sort": "state.startDate:desc",
    }
    rows = _api(rig, "GET", "executions/search", params=params)["results"]
    # Another flow of that namespace may run on a schedule, and tells of no execution then.
    told = {
        str(row["id"]): ((row.get("trigger") or {}).get("variables") or {}).get("executionId")
        for row in rows
    }
    return {str(of): own for own, of in told.items() if of}


def told_of_by_notices(rig: Rig) -> set[str]:
    """The executions for whose end a notifier ran."""
    return set(_notices(rig))


async def notice_of(rig: Rig, execution_id: str) -> str:
    """The id of the notifier's execution for that one."""
    deadline = time.monotonic() + REPLY_SECONDS
    while time.monotonic() < deadline:
        if notice := _notices(rig).get(execution_id):
            return notice
        await asyncio.sleep(0.1)
    pytest.fail(f"the notifier did not run for {execution_id} within {REPLY_SECONDS:g} s")


async def first_error(rig: Rig, execution_id: str) -> str:
    """The first error that an execution logged."""
    name = "minLevel" if rig.engine.series == "1.3" else "filters[level][GREATER_THAN_OR_EQUAL_TO]"
    params = {name: "ERROR"}
    deadline = time.monotonic() + REPLY_SECONDS
    while time.monotonic() < deadline:
        if rows := _api(rig, "GET", f"logs/{execution_id}", params=params):
            return str(rows[0]["message"])
        await asyncio.sleep(0.1)
    pytest.fail(f"execution {execution_id} logged no error within {REPLY_SECONDS:g} s")
