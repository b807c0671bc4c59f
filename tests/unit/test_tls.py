"""TLS trusts whom the settings name, and says why a connection was refused or cut.

What it says of real servers is tested with them (tests/integration/test_tls.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.tls import TlsIdentity
from tests.support.certificates import Authority

LOOPBACK = "127.0.0.1"


def identity(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> TlsIdentity:
    return TlsIdentity(prefix="BRIDGE_AMQP", ca=ca, certificate=certificate, key=key)


@asynccontextmanager
async def cutting_off(context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that cuts each connection without a word."""

    async def cut_off(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(cut_off, LOOPBACK, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


# Trust.


def test_public_cas_are_trusted_where_the_system_knows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert len(identity().context().get_ca_certs()) > 50


def test_only_the_private_ca_is_trusted_if_there_is_one(tmp_path: Path) -> None:
    assert len(identity(Authority(tmp_path).ca).context().get_ca_certs()) == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_server_is_always_checked(named: bool, tmp_path: Path) -> None:
    made = identity(Authority(tmp_path).ca if named else None).context()
    assert (made.check_hostname, made.verify_mode) == (True, ssl.CERT_REQUIRED)


# Files.


def test_a_file_without_ca_certificates_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ValueError, match=r"BRIDGE_AMQP_CA: .*empty\.pem holds no CA certificates"):
        identity(tmp_path / "empty.pem").context()


def test_a_certificate_with_anothers_key_is_named_with_both_settings(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.issue("ours")
    _, key = authority.issue("theirs")
    with pytest.raises(ValueError, match=r"^BRIDGE_AMQP_CERTIFICATE and BRIDGE_AMQP_KEY: no PEM"):
        identity(authority.ca, certificate, key).context()


# What an error says.


def refused(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "handshake (certificate required); BRIDGE_AMQP_CERT"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "it refuses us in the TLS handshake (bad certificate)"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS there"),
    ],
)
def test_an_error_that_only_an_operator_can_fix_is_said_in_words(reason: str, text: str) -> None:
    assert text in (identity().trouble(refused(reason)) or "")


@pytest.mark.parametrize("reason", ["TLSV1_ALERT_INTERNAL_ERROR", "UNEXPECTED_EOF_WHILE_READING"])
def test_an_error_that_may_pass_has_no_words(reason: str) -> None:
    assert identity().trouble(refused(reason)) is None


def test_an_error_of_tls_is_found_among_the_causes_even_if_they_are_a_circle() -> None:
    outer, inner = OSError("lost"), OSError("closed")
    outer.__cause__ = inner
    inner.__cause__ = refused("WRONG_VERSION_NUMBER")
    inner.__cause__.__cause__ = outer
    assert "does not speak TLS" in (identity().trouble(outer) or "")


def test_an_error_that_is_not_of_tls_has_no_words() -> None:
    error = OSError("lost")
    error.__cause__ = error
    assert identity().trouble(error) is None


# Why a connection was cut off.


async def test_a_server_with_tls_cuts_off_a_client_without(tmp_path: Path) -> None:
    async with cutting_off(Authority(tmp_path).server("rabbitmq", LOOPBACK)) as port:
        why = await identity().why_cut_off(LOOPBACK, port, None, scheme="amqps")
    assert why == "it speaks TLS there, so the address must begin with amqps://"


async def test_a_server_without_tls_that_cuts_off_a_client_without_gives_no_reason() -> None:
    async with cutting_off() as port:
        assert await identity().why_cut_off(LOOPBACK, port, None, scheme="amqps") is None


async def test_a_server_with_tls_that_takes_a_client_gives_no_reason(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    ours = identity(authority.ca)
    async with cutting_off(authority.server("rabbitmq", LOOPBACK)) as port:
        why = await ours.why_cut_off(LOOPBACK, port, ours.context(), scheme="amqps")
    assert why is None
