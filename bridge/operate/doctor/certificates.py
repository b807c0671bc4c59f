"""Until when certificates are valid: the servers', and our own."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from bridge.errors import BridgeError
from bridge.operate.doctor.facts import Certificate
from bridge.operate.sources import Unavailable, ask
from bridge.settings import Settings
from bridge.tls import Identity

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that speaks TLS, and what we take to know it and to be known."""

    name: str
    host: str
    port: int
    identity: Identity

    async def certificate(self) -> Certificate:
        """The certificate that it shows, also one that has ended.

        Raises:
            BridgeError: it can't be reached, or shows none that we trust.
        """
        try:
            context = self.identity.context()
            try:
                der = await self._shown(context)
            except ssl.SSLCertVerificationError as error:
                if error.verify_code != _EXPIRED:
                    raise
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                der = await self._shown(context)
            return Certificate(what=f"the certificate of {self.name}", until=valid_until(der))
        except (OSError, ValueError) as error:
            why = self.identity.trouble(error) or str(error)
            raise BridgeError(f"{self.name} at {self.host}:{self.port}: {why}") from error

    async def _shown(self, context: ssl.SSLContext) -> bytes:
        _, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = shown.getpeercert(binary_form=True)
        writer.transport.abort()
        return der or b""


async def certificates(settings: Settings) -> list[Certificate | Unavailable]:
    """All that matter: ours, and those of our servers that speak TLS."""
    ours = (ask(_own(path, what), what) for path, what in _ours(settings))
    theirs = (ask(server.certificate(), server.name) for server in _servers(settings))
    return list(await asyncio.gather(*ours, *theirs))


def _ours(settings: Settings) -> Iterator[tuple[Path, str]]:
    for identity, server in ((settings.amqp_tls, "RabbitMQ"), (settings.kestra_tls, "Kestra")):
        if identity.certificate:
            where = f"{identity.certificate} ({identity.prefix}_CERTIFICATE)"
            yield identity.certificate, f"our certificate for {server}, {where},"


async def _own(path: Path, what: str) -> Certificate:
    """A certificate of ours.

    Raises:
        BridgeError: it can't be read.
    """
    try:
        return Certificate(what=what, until=valid_until(_first_in(path)))
    except (OSError, ValueError) as error:
        raise BridgeError(f"{what} can't be read: {error}") from error


def _first_in(path: Path) -> bytes:
    """The first certificate of a PEM file, which is ours; its issuers follow."""
    found = _PEM.search(path.read_bytes())
    if found is None:
        raise ValueError("it holds no PEM certificate")
    return ssl.PEM_cert_to_DER_cert(found.group().decode("ascii"))


def valid_until(der: bytes) -> datetime:
    """When a certificate ends: the ssl module tells it of those alone that it trusts.

    Raises:
        ValueError: it can't be read.
    """
    from cryptography import x509  # noqa: PLC0415 (large, and `run`, which imports the doctor too, reads no certificate)

    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError(f"it is no X.509 certificate ({error})") from error


def _servers(settings: Settings) -> Iterator[Server]:
    for name, url, port, identity in (
        ("RabbitMQ", settings.amqp_url.get_secret_value(), 5671, settings.amqp_tls),
        ("RabbitMQ's management API", settings.management_address, 443, settings.amqp_tls),
        ("Kestra", settings.kestra_url, 443, settings.kestra_tls),
    ):
        parts = urlsplit(url)
        if parts.scheme in ("amqps", "https") and parts.hostname:
            yield Server(name=name, host=parts.hostname, port=parts.port or port, identity=identity)
