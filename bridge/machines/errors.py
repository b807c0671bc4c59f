"""libcloud's errors, translated to ours: one line without a credential, of a class that says who
can fix it.
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
_SYSTEM_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
# A region that libcloud itself doesn't know, or a refusal that its driver found in an answer.
_REFUSED = re.compile(r"invalid|failed to create", re.IGNORECASE)
# Providers report a lack of room with statuses of all kinds.
_FULL = re.compile(r"quota|limit|capacity|insufficient|exceed|try again|unavailable", re.IGNORECASE)


def provider_error(
    error: Exception, *, provider: str, what: str, secrets: Iterable[str]
) -> MachineError:
    """The error of a call to a provider, as one of ours.

    libcloud's errors have no base class in common, and many are plain exceptions.
    """
    kind = _kind(error)
    text = _text(error)
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
        return _kind_of_status(error.code, _text(error))
    if isinstance(error, ResourceNotFoundError):
        return MachineRejected
    # Before ValueError: some errors of requests are both.
    if isinstance(error, OSError):
        return MachineUnavailable
    if isinstance(error, ValueError) and _REFUSED.search(_text(error)):
        return MachineRejected
    return MachineUnavailable


def _kind_of_status(status: int, text: str) -> type[MachineError]:
    if _FULL.search(text):
        return MachineUnavailable
    if status >= 500 or status in (408, 429):
        return MachineUnavailable
    if status in (401, 403):
        return MachineDenied
    return MachineRejected


def _text(error: Exception) -> str:
    if isinstance(error, MalformedResponseError):
        return "its answer can't be read"
    value = error.value if isinstance(error, InvalidCredsError) else error
    text = " ".join(str(value).split())
    class_name = type(error).__name__
    if isinstance(error, OSError):
        # What requests adds around the reason describes its own internals.
        reason = _SYSTEM_REASON.search(text)
        if reason:
            return reason[1].strip()
    if isinstance(error, BaseHTTPError) and text in ("", class_name):
        return f"HTTP {error.code}, without a reason"
    return text or class_name
