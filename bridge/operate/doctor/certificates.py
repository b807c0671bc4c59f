"""Reads until when certificates are valid: the servers' and the bridge's own."""

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
from bridge.tls import TlsIdentity

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that speaks TLS, and the certificates with which it and the bridge identify
    themselves.
    """

    name: str
    host: str
    port: int
    identity: TlsIdentity

    async def certificate(self) -> Certificate:
        """The certificate that the server presents, even if it has ended.

        Raises:
            BridgeError: the server can't be reached, or presents no trusted certificate.
        """
        try:
            context = self.identity.context()
            try:
                der = await self._presented(context)
            except ssl.SSLCertVerificationError as error:
                if error.verify_code != _EXPIRED:
                    raise
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                der = await self._presented(context)
            return Certificate(what=f"the certificate of {self.name}", until=valid_until(der))
        except (OSError, ValueError) as error:
            why = self.identity.trouble(error) or str(error)
            raise BridgeError(f"{self.name} at {self.host}:{self.port}: {why}") from error

    async def _presented(self, context: ssl.SSLContext) -> bytes:
        _, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True)
        writer.transport.abort()
        return der or b""


async def certificates(settings: Settings) -> list[Certificate | Unavailable]:
    """The bridge's own certificates, and those of its servers that speak TLS."""
    own = (ask(_own(path, what), what) for path, what in _own_files(settings))
    theirs = (ask(server.certificate(), server.name) for server in _servers(settings))
    return list(await asyncio.gather(*own, *theirs))


def _own_files(settings: Settings) -> Iterator[tuple[Path, str]]:
    for identity, server in ((settings.amqp_tls, "RabbitMQ"), (settings.kestra_tls, "Kestra")):
        if identity.certificate:
            where = f"{identity.certificate} ({identity.prefix}_CERTIFICATE)"
            yield identity.certificate, f"our certificate for {server}, {where},"


async def _own(path: Path, what: str) -> Certificate:
    """A certificate of the bridge's own.

    Raises:
        BridgeError: it can't be read.
    """
    try:
        return Certificate(what=what, until=valid_until(_first_in(path)))
    except (OSError, ValueError) as error:
        raise BridgeError(f"{what} can't be read: {error}") from error


def _first_in(path: Path) -> bytes:
    """The first certificate of a PEM file, in DER. It is the bridge's own; its issuers follow."""
    found = _PEM.search(path.read_bytes())
    if found is None:
        raise ValueError("it holds no PEM certificate")
    return ssl.PEM_cert_to_DER_cert(found.group().decode("ascii"))


def valid_until(der: bytes) -> datetime:
    """When a certificate ends. The ssl module reports it only for trusted certificates.

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
