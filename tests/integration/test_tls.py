"""TLS with RabbitMQ and Kestra, certificates on both sides, and passwords that stand in files and
change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.errors import BrokerDenied, BrokerError
from bridge.rabbitmq.broker import Broker
from bridge.settings import BrokerSettings
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import BrokerStage, Kind, Node, open_stage
from tests.support.certificates import Authority
from tests.support.harness import Bridge, Proxy, eventually
from tests.support.in_process import command


@dataclass
class Secure:
    """A stage on which everything is spoken with TLS, by a user of its own whose password stands in
    a file."""

    stage: BrokerStage
    authority: Authority
    proxy: Proxy
    directory: Path

    @property
    def user(self) -> str:
        return self.stage.name

    def url(self, query: str = "") -> str:
        return f"amqps://127.0.0.1:{self.proxy.port}/{query}"

    def write(self, name: str, text: str) -> Path:
        """A secret as an editor would leave it: with a line break at its end."""
        path = self.directory / name
        path.with_suffix(".new").write_text(f"{text}\n")
        return path.with_suffix(".new").replace(path)

    async def change_password(self, password: str) -> None:
        """That of the broker's user, with RabbitMQ alone."""
        user = {"password": password, "tags": ""}
        await asyncio.to_thread(
            self.stage.rabbit.api, f"users/{self.user}", method="PUT", body=user
        )

    def settings(self, **more: object) -> dict[str, object]:
        certificate, key = self.authority.issue(self.user)
        return {
            "amqp_url": self.url(),
            "amqp_username_file": self.directory / "amqp-username",
            "amqp_password_file": self.directory / "amqp-password",
            "amqp_ca": self.authority.ca,
            "amqp_certificate": certificate,
            "amqp_key": key,
            "kestra_ca": self.authority.ca,
            "kestra_password": "",
            "kestra_password_file": self.directory / "kestra-password",
            **more,
        }

    def bridge(self, **more: object) -> Bridge:
        return self.stage.bridge(**self.settings(**more))


@asynccontextmanager
async def secured(
    directory: Path, rabbit: RabbitMQ, kind: Kind, authority: Authority
) -> AsyncIterator[Secure]:
    async with (
        open_stage(directory, rabbit, kind, tls=authority.server("kestra", "127.0.0.1")) as stage,
        Proxy(rabbit.host, rabbit.tls_port) as proxy,
    ):
        secure = Secure(stage, authority, proxy, directory)
        password = "first: ü/@%20 Passw0rd"
        await secure.change_password(password)
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        await asyncio.to_thread(
            rabbit.api, f"permissions/%2F/{secure.user}", method="PUT", body=rights
        )
        secure.write("amqp-username", secure.user)
        secure.write("amqp-password", password)
        secure.write("kestra-password", stage.kestra.password)
        yield secure


@pytest.fixture(params=[("3.10", "classic"), ("4.3", "quorum")], ids=lambda it: it[0])
async def secure(
    request: pytest.FixtureRequest, node: Node, authority: Authority, tmp_path: Path
) -> AsyncIterator[Secure]:
    """With the oldest and the newest RabbitMQ."""
    series, kind = request.param
    async with secured(tmp_path, node(series), kind, authority) as opened:
        yield opened


@pytest.fixture
async def one_secure(node: Node, authority: Authority, tmp_path: Path) -> AsyncIterator[Secure]:
    async with secured(tmp_path, node("4.3"), "quorum", authority) as opened:
        yield opened


# That it works.


async def test_a_job_runs_with_tls_and_certificates_and_passwords_from_files(
    secure: Secure,
) -> None:
    async with secure.bridge() as bridge:
        await secure.stage.submit("one")
        await bridge.settled(job="one", settlement="ack")


async def test_a_certificate_alone_can_be_the_login(secure: Secure) -> None:
    by_certificate = {
        "amqp_url": secure.url("?auth=external"),
        "amqp_username_file": "",
        "amqp_password_file": "",
    }
    async with secure.bridge(**by_certificate) as bridge:
        await secure.stage.submit("one")
        await bridge.settled(job="one", settlement="ack")


async def test_a_job_is_submitted_with_tls_and_a_password_from_a_file(one_secure: Secure) -> None:
    settings = {
        f"BRIDGE_{name.upper()}": str(value)
        for name, value in one_secure.settings().items()
        if value
    }
    done = await command(
        "submit", "--flow", "test/job", "--queue", one_secure.stage.queue, **settings
    )
    assert done.code == 0, done.err


# Secrets that change while the bridge runs.


async def test_the_brokers_changed_password_is_taken_up_without_a_restart(
    one_secure: Secure,
) -> None:
    async with one_secure.bridge(log_level="debug") as bridge:
        await one_secure.change_password("second-Passw0rd")
        one_secure.proxy.cut()
        refused = "refuses the user or the password of BRIDGE_AMQP_PASSWORD_FILE"
        await eventually(lambda: refused in bridge.log.read_text(), "the old password is refused")
        one_secure.write("amqp-password", "second-Passw0rd")
        await one_secure.stage.submit("one")
        await bridge.settled(job="one", settlement="ack")
        assert "Passw0rd" not in bridge.log.read_text()


async def test_kestras_changed_password_is_taken_up_without_a_restart(one_secure: Secure) -> None:
    async with one_secure.bridge(log_level="debug", reconcile_interval=0.2) as bridge:
        one_secure.stage.kestra.password = "second-Passw0rd"
        await eventually(lambda: bridge.count("sweep failed"), "the old password is refused")
        one_secure.write("kestra-password", "second-Passw0rd")
        await one_secure.stage.submit("one")
        await bridge.settled(job="one", settlement="ack")
        assert "Passw0rd" not in bridge.log.read_text()


async def test_a_renewed_certificate_is_shown_to_the_broker_without_a_restart(
    one_secure: Secure,
) -> None:
    async with one_secure.bridge(
        amqp_url=one_secure.url("?auth=external"), amqp_username_file="", amqp_password_file=""
    ) as bridge:
        one_secure.authority.issue(one_secure.user, days=-1)
        one_secure.proxy.cut()
        await eventually(
            lambda: "certificate expired" in bridge.log.read_text(),
            "the old certificate is refused",
        )
        one_secure.authority.issue(one_secure.user)
        await eventually(lambda: bridge.count("consuming") > 1, "the bridge consumes again")


async def test_a_password_file_that_goes_away_is_waited_for_and_named(one_secure: Secure) -> None:
    async with one_secure.bridge() as bridge:
        (one_secure.directory / "amqp-password").rename(one_secure.directory / "away")
        one_secure.proxy.cut()
        named = "BRIDGE_AMQP_PASSWORD_FILE is no file"
        await eventually(lambda: named in bridge.log.read_text(), "the missing file is named")
        (one_secure.directory / "away").rename(one_secure.directory / "amqp-password")
        await eventually(lambda: bridge.count("consuming") > 1, "the bridge consumes again")


# Why it doesn't work: one line each.


@dataclass
class Door:
    """A RabbitMQ, and how somebody would connect to it who is not the bridge's process."""

    rabbit: RabbitMQ
    authority: Authority
    stranger: Authority

    async def error(
        self, port: int, *, scheme: str = "amqps", query: str = "", **files: Path | None
    ) -> BrokerError:
        """What connecting to that port ends in, by the right certificates except for those that are
        given."""
        certificate, key = self.authority.issue("client")
        right = {"amqp_ca": self.authority.ca, "amqp_certificate": certificate, "amqp_key": key}
        login = "" if query else f"{self.rabbit.username}:{self.rabbit.password}@"
        url = {"amqp_url": f"{scheme}://{login}127.0.0.1:{port}/{query}"}
        settings = BrokerSettings.model_validate(
            {**url, **right, **files} if scheme == "amqps" else url
        )
        with pytest.raises(BrokerError) as caught:
            async with Broker(settings).commands():
                pass
        return caught.value


@pytest.fixture(params=["3.10", "4.3"])
def door(request: pytest.FixtureRequest, node: Node, authority: Authority, tmp_path: Path) -> Door:
    return Door(node(request.param), authority, Authority(tmp_path / "stranger"))


def is_denied(error: BrokerError, words: str) -> bool:
    """Whether it is told in one line with these words, as what only an operator can mend."""
    assert isinstance(error, BrokerDenied), repr(error)
    assert words in str(error)
    return "\n" not in str(error)


async def test_a_broker_by_an_unknown_ca_is_not_trusted(door: Door) -> None:
    error = await door.error(door.rabbit.tls_port, amqp_ca=door.stranger.ca)
    assert is_denied(
        error, "self-signed certificate in certificate chain; BRIDGE_AMQP_CA names whom to trust"
    )


@pytest.mark.parametrize(
    ("host", "days", "words"),
    [("127.0.0.1", -1, "has expired"), ("rabbit.example", 1, "not valid for '127.0.0.1'")],
    ids=["expired", "wrong host"],
)
async def test_a_brokers_certificate_that_does_not_hold_is_not_trusted(
    host: str, days: int, words: str, door: Door
) -> None:
    tls = door.authority.server("other", host, days=days)
    async with Proxy(door.rabbit.host, door.rabbit.port, tls=tls) as proxy:
        assert is_denied(await door.error(proxy.port), words)


async def test_a_broker_that_wants_a_certificate_says_so(door: Door) -> None:
    error = await door.error(door.rabbit.tls_port, amqp_certificate=None, amqp_key=None)
    assert is_denied(
        error, "it refuses us in the TLS handshake (certificate required); BRIDGE_AMQP_CERTIFICATE"
    )


async def test_a_certificate_by_another_ca_is_refused(door: Door) -> None:
    certificate, key = door.stranger.issue("client")
    error = await door.error(door.rabbit.tls_port, amqp_certificate=certificate, amqp_key=key)
    assert is_denied(error, "it refuses us in the TLS handshake (unknown ca)")


async def test_an_expired_certificate_of_ours_is_refused(door: Door) -> None:
    certificate, key = door.authority.issue("late", days=-1)
    error = await door.error(door.rabbit.tls_port, amqp_certificate=certificate, amqp_key=key)
    assert is_denied(error, "it refuses us in the TLS handshake (certificate expired)")


async def test_a_certificate_whose_name_is_no_user_is_refused(door: Door) -> None:
    error = await door.error(door.rabbit.tls_port, query="?auth=external")
    assert is_denied(error, "refuses the user of our certificate, BRIDGE_AMQP_CERTIFICATE")


async def test_a_key_of_another_certificate_is_named(door: Door) -> None:
    error = await door.error(door.rabbit.tls_port, amqp_key=door.stranger.issue("client")[1])
    assert is_denied(error, "BRIDGE_AMQP_CERTIFICATE and BRIDGE_AMQP_KEY")


async def test_tls_on_the_plain_port_is_told(door: Door) -> None:
    assert is_denied(await door.error(door.rabbit.port), "it does not speak TLS there")


async def test_plain_amqp_on_the_port_for_tls_is_told(door: Door) -> None:
    error = await door.error(door.rabbit.tls_port, scheme="amqp")
    assert is_denied(error, "it speaks TLS there, so the address must begin with amqps://")


async def test_a_bridge_that_is_not_trusted_does_not_start(
    one_secure: Secure, tmp_path: Path
) -> None:
    bridge = await one_secure.bridge(amqp_ca=Authority(tmp_path / "stranger").ca).start(until=None)
    code = await bridge.exit_code()
    assert (code, "can't be trusted" in bridge.log.read_text().splitlines()[-1]) == (2, True)
