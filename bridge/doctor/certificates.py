"""Until when the servers' certificates are valid."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from bridge.doctor.facts import Certificate
from bridge.errors import BridgeError
from bridge.settings import Settings
from bridge.tls import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that speaks TLS, and what we take to know it and to be known."""

    name: str
    host: str
    port: int
    identity: Identity

    async def certificate(self) -> Certificate:
        """The certificate that it shows.

        Raises:
            BridgeError: it can't be reached, or shows none that we trust.
        """
        try:
            context = self.identity.context()
            _, writer = await asyncio.open_connection(self.host, self.port, ssl=context)
            shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
            shown_until = (shown.getpeercert() or {})["notAfter"]
            writer.transport.abort()
        except (OSError, ValueError, KeyError) as error:
            why = self.identity.trouble(error) or str(error)
            raise BridgeError(f"{self.name} at {self.host}:{self.port}: {why}") from error
        return Certificate(of=self.name, until=datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown_until)), UTC))


def servers(settings: Settings) -> Iterator[Server]:
    """Those of our servers that speak TLS."""
    of_broker, of_kestra = settings.amqp_tls, settings.kestra_tls
    for name, url, port, identity in (
        ("RabbitMQ", settings.amqp_url.get_secret_value(), 5671, of_broker),
        ("RabbitMQ's management API", settings.management_address, 443, of_broker),
        ("Kestra", settings.kestra_url, 443, of_kestra),
    ):
        parts = urlsplit(url)
        if parts.scheme in ("amqps", "https") and parts.hostname:
            yield Server(name=name, host=parts.hostname, port=parts.port or port, identity=identity)
