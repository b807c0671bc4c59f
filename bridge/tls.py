"""TLS to RabbitMQ and to Kestra: the context of a connection, and the reason why there is none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import certifi

_UNKNOWN_CA = frozenset({18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_… for a self-signed certificate and for an issuer that is not known."""

_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
)
"""OpenSSL's reasons for an answer that is not TLS."""

_PASSING_ALERTS = ("INTERNAL_ERROR", "USER_CANCELLED", "CLOSE_NOTIFY")
"""Alerts that may not come again; any other one stays until an operator changes something."""

_PROBE_SECONDS = 3.0
"""How long a connection may take that is made only to find out why another one was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """The files with which the two sides of a connection identify themselves.

    `prefix` begins the names of their settings: `BRIDGE_AMQP` of `BRIDGE_AMQP_CA`.
    """

    prefix: str
    ca: Path | None
    certificate: Path | None
    key: Path | None

    def context(self) -> ssl.SSLContext:
        """The context for a new connection, made from the files as they are now.

        Raises:
            ValueError: a file can't be used; the text names its setting.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.ca is None:
                # A small image may have no store of its own.
                context.load_verify_locations(certifi.where())
        except (OSError, ssl.SSLError) as error:
            raise self._no_ca(error) from error
        self._load_certificate(context)
        return context

    def renew(self, context: ssl.SSLContext) -> None:
        """Load the files as they are now, for connections that are made from now on.

        Raises:
            ValueError: a file can't be used; the text names its setting.
        """
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise self._no_ca(error) from error
        self._load_certificate(context)

    def _no_ca(self, error: OSError) -> ValueError:
        return ValueError(f"{self.prefix}_CA: {self.ca} holds no CA certificates ({_why(error)})")

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        if self.certificate is None:
            return
        names, files = f"{self.prefix}_CERTIFICATE", str(self.certificate)
        if self.key:
            names += f" and {self.prefix}_KEY"
            files += f" and {self.key}"
        try:
            # An empty pass phrase: OpenSSL would ask for one on the terminal and wait for it.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"{names}: no PEM certificate and its own key without a pass phrase in {files} "
                f"({_why(error)})"
            ) from error

    def trouble(self, error: BaseException) -> str | None:
        """The fault of TLS behind an error, if only an operator can fix it; else None."""
        found = _tls_error(error)
        if found is None:
            return None
        if isinstance(found, ssl.SSLCertVerificationError):
            text = f"its certificate can't be trusted: {found.verify_message.rstrip('.')}"
            if found.verify_code in _UNKNOWN_CA:
                text += f"; {self.prefix}_CA names whom to trust"
            return text
        reason = found.reason or ""
        if reason in _NO_TLS:
            return "it does not speak TLS there: is it the port without?"
        if "ALERT" in reason and not reason.endswith(_PASSING_ALERTS):
            return (
                f"it refuses us in the TLS handshake ({_alert_in_words(reason)}); "
                f"{self.prefix}_CERTIFICATE is what we show"
            )
        return None

    async def why_cut_off(
        self, host: str, port: int, context: ssl.SSLContext | None, *, scheme: str
    ) -> str | None:
        """The reason why a server cut a connection without a word, if only an operator can fix it;
        else None.

        The connection was made with `context`, or without TLS if that is None. A connection of its
        own finds out. `scheme` begins an address with TLS.
        """
        if context is None:
            if await _speaks_tls(host, port):
                return f"it speaks TLS there, so the address must begin with {scheme}://"
            return None
        refusal = await _refusal(host, port, context)
        if refusal is None:
            return None
        return self.trouble(refusal)

    async def why_cut_off_at(self, url: str, context: ssl.SSLContext | None) -> str | None:
        """The same for an HTTP server, by its URL."""
        parts = urlsplit(url)
        default_port = 443 if context else 80
        return await self.why_cut_off(
            parts.hostname or "", parts.port or default_port, context, scheme="https"
        )


async def _refusal(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """The error with which a server refuses a TLS connection; None if it gives no reason.

    With TLS 1.3 a client learns only after the handshake that its certificate is refused, and the
    alert can get lost if the client has written something by then. So this connection writes
    nothing and reads.
    """
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            try:
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
                try:
                    await reader.read(1)
                finally:
                    writer.transport.abort()
            except ssl.SSLError as error:
                return error
    return None


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether a server speaks TLS on a port, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            try:
                _, writer = await asyncio.open_connection(host, port, ssl=context)
            except ssl.SSLError as error:
                # Only a server with TLS sends an alert, such as that it wants our certificate.
                return "ALERT" in (error.reason or "")
            writer.transport.abort()
            return True
    return False


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The first error of TLS among an error and its causes."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return cause
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it. Libraries make chains that are circles."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _alert_in_words(reason: str) -> str:
    """OpenSSL's name of an alert in words: `certificate required` for
    TLSV13_ALERT_CERTIFICATE_REQUIRED.
    """
    return reason.rpartition("ALERT_")[2].replace("_", " ").lower()


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
