"""When a certificate ends, as the doctor reads it from the certificate itself."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from bridge.operate.doctor.certificates import certificates, valid_until
from bridge.operate.doctor.facts import Certificate
from bridge.settings import Settings
from tests.support.certificates import Authority

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize(
    "days", [-1, 1, 365 * 40], ids=["ended", "soon", "after 2049, which is written otherwise"]
)
def test_a_certificate_says_when_it_ends(days: int, authority: Authority) -> None:
    pem = authority.issue("someone", days=days)[0].read_text()
    expected = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    assert (
        valid_until(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END CERTIFICATE-----") + 26]))
        == expected
    )


@given(st.binary(max_size=200))
def test_what_is_no_certificate_is_told_as_that(der: bytes) -> None:
    with pytest.raises(ValueError, match=r"no X\.509 certificate"):
        valid_until(der)


def test_a_certificate_that_is_cut_off_is_told_as_that(authority: Authority) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.ca.read_text())
    with pytest.raises(ValueError, match=r"no X\.509 certificate"):
        valid_until(der[:100])


def shown_to(certificate: Path) -> Settings:
    """Settings of a bridge that shows this certificate to RabbitMQ, where none answers."""
    given = {
        "amqp_url": "amqps://127.0.0.1:1",
        "kestra_url": "http://127.0.0.1:1",
        "amqp_certificate": certificate,
    }
    return Settings.model_validate(given | {"management_url": "http://127.0.0.1:1"})


async def test_ours_is_the_first_of_its_file_wherever_that_has_the_key(
    authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("bridge", days=5)
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text() + authority.ca.read_text())
    (found,) = [
        each for each in await certificates(shown_to(both)) if isinstance(each, Certificate)
    ]
    assert found.what == f"our certificate for RabbitMQ, {both} (BRIDGE_AMQP_CERTIFICATE),"
    assert abs(found.until - datetime.now(UTC) - timedelta(days=5)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (timedelta(days=13, hours=1), "it ends in 13 d 1 h (2026-12-07 13:00 UTC)"),
        (timedelta(), "it has ended (2026-11-24 12:00 UTC)"),
    ],
)
def test_its_end_is_told_with_the_day(left: timedelta, told: str) -> None:
    assert Certificate(what="it", until=NOW + left).state(NOW) == told
