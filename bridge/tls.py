"""TLS to RabbitMQ and to Kestra: what a connection needs, and in plain words why there is none."""

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
"""OpenSSL's X509_V_ERR_…: a self-signed certificate, or an issuer that isn't there."""

_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
)
_PASSING_ALERTS = ("INTERNAL_ERROR", "USER_CANCELLED", "CLOSE_NOTIFY")
_QUESTION_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """The files by which the two sides of a connection know each other, and how the settings that
    name them begin.
    """

    prefix: str
    ca: Path | None
    certificate: Path | None
    key: Path | None

    def context(self) -> ssl.SSLContext:
        """What a new connection needs, with the files as they are now.

        Raises:
            ValueError: one can't be used; the text names its setting.
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
        """Have connections that are made from now on go by the files as they are now; raises as
        `context` does.
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
        try:
            # Without a pass phrase here, one would be asked for on the terminal, where nobody may
            # be.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            names = f"{self.prefix}_CERTIFICATE" + (f" and {self.prefix}_KEY" if self.key else "")
            files = f"{self.certificate}" + (f" and {self.key}" if self.key else "")
            raise ValueError(
                f"{names}: no PEM certificate and its own key without a pass phrase in {files} "
                f"({_why(error)})"
            ) from error

    def trouble(self, error: BaseException) -> str | None:
        """What about TLS is behind an error, if only an operator can mend it."""
        found = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
        if isinstance(found, ssl.SSLCertVerificationError):
            hint = (
                f"; {self.prefix}_CA names whom to trust"
                if found.verify_code in _UNKNOWN_CA
                else ""
            )
            return f"its certificate can't be trusted: {found.verify_message.rstrip('.')}{hint}"
        reason = (found and found.reason) or ""
        if reason in _NO_TLS:
            return "it does not speak TLS there: is it the port without?"
        if "ALERT" in reason and not reason.endswith(_PASSING_ALERTS):
            return (
                f"it refuses us in the TLS handshake ({_spoken(reason)}); "
                f"{self.prefix}_CERTIFICATE is what we show"
            )
        return None

    async def why_cut_off(
        self, host: str, port: int, context: ssl.SSLContext | None, *, scheme: str
    ) -> str | None:
        """Why a server ended a connection without a word, if only an operator can mend it. `scheme`
        has TLS.
        """
        if context is None:
            speaks = await _is_spoken(host, port)
            return (
                f"it speaks TLS there, so the address must begin with {scheme}://"
                if speaks
                else None
            )
        refused = await _refusal(host, port, context)
        return self.trouble(refused) if refused else None

    async def why_cut_off_at(self, url: str, context: ssl.SSLContext | None) -> str | None:
        """The same of an HTTP server, by its URL."""
        parts = urlsplit(url)
        port = parts.port or (443 if context else 80)
        return await self.why_cut_off(parts.hostname or "", port, context, scheme="https")


async def _refusal(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """Why a server that cut a TLS connection did so, if it says.

    TLS 1.3 tells a client only after the handshake that its certificate is refused, and what the
    client has written by then can get the alert lost. So this says nothing, and listens.
    """
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_QUESTION_SECONDS):
            try:
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
                try:
                    await reader.read(1)
                finally:
                    writer.transport.abort()
            except ssl.SSLError as error:
                return error
    return None


async def _is_spoken(host: str, port: int) -> bool:
    """Whether a server speaks TLS on a port, whoever it is."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_QUESTION_SECONDS):
            try:
                _, writer = await asyncio.open_connection(host, port, ssl=anyone)
            except ssl.SSLError as error:
                return "ALERT" in (error.reason or "")
            writer.transport.abort()
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it. Chains made by libraries can be circles."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _spoken(reason: str) -> str:
    """OpenSSL's name of an alert in words: TLSV13_ALERT_CERTIFICATE_REQUIRED is `certificate
    required`.
    """
    return reason.rpartition("ALERT_")[2].replace("_", " ").lower()


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
