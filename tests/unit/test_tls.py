"""Whom the bridge trusts; what it says where there is no trust is tested with real servers
(test_kestra, test_tls)."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from bridge.tls import TlsIdentity
from tests.support.certificates import Authority


def context(ca: Path | None) -> ssl.SSLContext:
    return TlsIdentity(prefix="BRIDGE_AMQP", ca=ca, certificate=None, key=None).context()


def test_public_cas_are_trusted_where_the_system_knows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert len(context(None).get_ca_certs()) > 50


def test_a_private_ca_is_trusted_alone(tmp_path: Path) -> None:
    assert len(context(Authority(tmp_path).ca).get_ca_certs()) == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_server_is_always_checked(named: bool, tmp_path: Path) -> None:
    made = context(Authority(tmp_path).ca if named else None)
    assert (made.check_hostname, made.verify_mode) == (True, ssl.CERT_REQUIRED)
