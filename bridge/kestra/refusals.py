"""The errors for refused requests, each with a line that says what an operator can do. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)
from bridge.kestra.answers import Meaning, Words

_VERSIONS = (
    "does the bridge support this version of Kestra, and does nothing between them change requests?"
)
_WANTS_TLS = (b"sent to HTTPS port", b"to an HTTPS server")
"""A plain request on a port for TLS is answered so by nginx, and by servers written in Go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRequest:
    """A request that was answered with something else than success.

    `url` and `tenant` are what the settings name; `retry_after` is how many seconds Kestra asked to
    be left alone.
    """

    operation: str
    url: str
    tenant: str
    status: int
    body: bytes
    words: Words
    retry_after: float = 0.0

    def error(self, meaning: Meaning) -> KestraError:
        """The error for a refusal of this meaning."""
        said = f"HTTP {self.status}: {self.words.message or 'no reason given'}"
        match meaning:
            case Meaning.REJECTED:
                return KestraRejected(said)
            case Meaning.DENIED:
                return KestraDenied(self._denied())
            case Meaning.INCOMPATIBLE:
                wants_tls = any(words in self.body for words in _WANTS_TLS)
                if self.operation == "probe" and wants_tls:
                    return KestraDenied(f"Kestra at {self.url} accepts only https://")
                return KestraIncompatible(
                    f"Kestra refuses the form of the request {self.operation}: {said}; {_VERSIONS}"
                )
            case Meaning.AMBIGUOUS:
                return KestraAmbiguous(
                    f"{self.operation}: {said}",
                    self.words.execution_out_of_sight,
                    blames_request=self.status == 500 and self.words.by_kestra,
                    retry_after=self.retry_after,
                )
            case _:
                return KestraUnavailable(self._unavailable(said), retry_after=self.retry_after)

    def _denied(self) -> str:
        if self.words.refuse_the_tenant:
            return f"Kestra refuses the tenant {self.tenant!r}: {self.words.message}"
        if self.status == 403:
            return f"Kestra denies the user the right to {self.operation} (HTTP 403)"
        return f"Kestra refuses the credentials for {self.operation} (HTTP {self.status})"

    def _unavailable(self, said: str) -> str:
        if 300 <= self.status < 400:
            return f"{self.operation}: redirected (HTTP {self.status}); is BRIDGE_KESTRA_URL right?"
        # 429 is what a busy Kestra says itself.
        if self.operation == "create" and self.status < 500 and self.status != 429:
            return (
                f"create: HTTP {self.status}, and not in Kestra's words; "
                "is something between us and Kestra?"
            )
        return f"{self.operation}: {said}"
