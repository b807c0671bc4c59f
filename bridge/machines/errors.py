"""libcloud's errors as ours: one line, without a credential in it, and a kind that says who can
mend it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.google import GoogleAuthError, ResourceNotFoundError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from bridge.errors import MachineDenied, MachineError, MachineRejected, MachineUnavailable

_REASON_LENGTH = 300
_SHORTEST_SECRET = 4
_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
# A region that libcloud itself doesn't know, or a refusal that its driver found in an answer.
_REFUSED = re.compile(r"invalid|failed to create", re.IGNORECASE)
# Providers say so with statuses of all kinds.
_FULL = re.compile(r"quota|limit|capacity|insufficient|exceed|try again|unavailable", re.IGNORECASE)


def translated(
    error: Exception, *, provider: str, what: str, secrets: Iterable[str]
) -> MachineError:
    """The error of a call to a provider, as ours. libcloud's own have no common base, and many are
    bare exceptions.
    """
    kind, text = _kind(error), _text(error)
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = text[:_REASON_LENGTH]
    if kind is MachineDenied:
        return kind(f"{provider} refuses the credentials or the rights to {what}: {text}")
    if kind is MachineRejected:
        return kind(f"{provider} refuses to {what}: {text}")
    if isinstance(error, OSError):
        return kind(f"can't reach {provider} to {what}: {text}")
    return kind(f"{provider} failed to {what}: {text}")


def _kind(error: Exception) -> type[MachineError]:
    if isinstance(error, InvalidCredsError | GoogleAuthError):
        return MachineDenied
    if isinstance(error, BaseHTTPError):
        if _FULL.search(_text(error)) or error.code >= 500 or error.code in (408, 429):
            return MachineUnavailable
        return MachineDenied if error.code in (401, 403) else MachineRejected
    if isinstance(error, ResourceNotFoundError):
        return MachineRejected
    if (
        isinstance(error, ValueError)
        and not isinstance(error, OSError)
        and _REFUSED.search(_text(error))
    ):
        return MachineRejected
    return MachineUnavailable


def _text(error: Exception) -> str:
    if isinstance(error, MalformedResponseError):
        return "its answer can't be read"
    value = error.value if isinstance(error, InvalidCredsError) else error
    text = " ".join(str(value).split())
    if isinstance(error, OSError) and (reason := _REASON.search(text)):
        # What requests says around it is about its own insides.
        return reason[1].strip()
    if isinstance(error, BaseHTTPError):
        return (
            text
            if text and text != type(error).__name__
            else f"HTTP {error.code}, without a reason"
        )
    return text or type(error).__name__
