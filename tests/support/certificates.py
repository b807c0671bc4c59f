"""A private CA, and certificates by it, made anew for each run of the tests."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

from deploy.local.rabbitmq import Tls


class Authority:
    """A CA that nobody has heard of; what it signs lies in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *hosts: str, days: float = 1) -> tuple[Path, Path]:
        """A certificate for these hosts with `name` as its common name, and its key. It ends in so
        many days."""
        end = datetime.now(UTC) + timedelta(days=days)
        more: dict[str, Any] = {"not_before": end - timedelta(days=1)} if days <= 0 else {}
        issued = self._authority.issue_cert(
            *(hosts or (name,)), common_name=name, not_after=end, **more
        )
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def server(
        self, name: str, *hosts: str, days: float = 1, demanding: bool = False
    ) -> ssl.SSLContext:
        """What a server needs that shows such a certificate, and with `demanding` wants one of its
        clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, *hosts, days=days))
        if demanding:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def broker(self) -> Tls:
        """What a RabbitMQ on this machine needs."""
        certificate, key = self.issue("rabbitmq", "127.0.0.1", "localhost")
        return Tls(ca=self.ca, certificate=certificate, key=key)
