"""libcloud's errors, translated to ours: one line without a credential, of a class that says who
can fix it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable

from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.google import GoogleAuthError, ResourceNotFoundError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from bridge.errors import (
    MachineAnswerLost,
    MachineDenied,
    MachineError,
    MachineProviderBusy,
    MachineRejected,
)

_REASON_LENGTH = 300
_SHORTEST_SECRET = 4
_SYSTEM_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
# A region that libcloud itself doesn't know, or a refusal that its driver found in an answer.
_REFUSED = re.compile(r"invalid|failed to create", re.IGNORECASE)
_STATUS = re.compile(r"Status code: (\d{3})\b")
# Providers report a lack of room with statuses of all kinds.
_TOO_FAST = re.compile(r"rate.?limit|requestlimit|throttl|too many requests", re.IGNORECASE)
_NO_QUOTA = re.compile(
    r"quota|limit.?exceed|limit reached|exceed.{0,30}limit|exceeded", re.IGNORECASE
)
_NO_ROOM = re.compile(r"capacity|insufficient|no valid host", re.IGNORECASE)
# Such a request never left this host, so nothing can have come of it.
_NEVER_SENT = re.compile(
    r"refused|name resolution|name or service|no address associated|unreachable|no route"
    r"|newconnectionerror|nameresolutionerror|certificate",
    re.IGNORECASE,
)


def provider_error(
    error: Exception, *, provider: str, what: str, secrets: Iterable[str]
) -> MachineError:
    """The error of a call to a provider, as one of ours.

    libcloud's errors have no base class in common, and many are plain exceptions.
    """
    kind = _kind(error)
    text = _text(error)
    shortage = _shortage(text)
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
    if kind is MachineProviderBusy and shortage:
        return kind(f"{provider} {shortage}, and did not {what}: {text}")
    return kind(f"{provider} failed to {what}: {text}")


def _kind(error: Exception) -> type[MachineError]:
    if isinstance(error, InvalidCredsError | GoogleAuthError):
        return MachineDenied
    if isinstance(error, ResourceNotFoundError):
        return MachineRejected
    status = _status(error)
    if status is not None:
        return _kind_of_status(status, _text(error))
    # Before ValueError: some errors of requests are both.
    if isinstance(error, OSError):
        return _kind_of_no_answer(error)
    if isinstance(error, ValueError) and _REFUSED.search(_text(error)):
        return MachineRejected
    # Also an answer that libcloud could not read, after which there may be a machine.
    return MachineAnswerLost


def _status(error: Exception) -> int | None:
    """The HTTP status that the provider answered with. None if the error doesn't say it."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return code
    # libcloud's driver for Linode puts it into the text.
    found = _STATUS.search(str(error))
    if found:
        return int(found[1])
    return None


def _kind_of_status(status: int, text: str) -> type[MachineError]:
    if status == 429 or _shortage(text):
        return MachineProviderBusy
    if status >= 500 or status == 408:
        return MachineAnswerLost
    if status in (401, 403):
        return MachineDenied
    return MachineRejected


def _kind_of_no_answer(error: OSError) -> type[MachineError]:
    # requests' class of that name: the connection was never made.
    unconnected = "ConnectTimeout" in type(error).__name__
    if unconnected or isinstance(error, ssl.SSLCertVerificationError):
        return MachineProviderBusy
    if _NEVER_SENT.search(str(error)):
        return MachineProviderBusy
    return MachineAnswerLost


def _shortage(text: str) -> str:
    """What the provider lacks, as the middle of a sentence. Empty if it says nothing like it."""
    if _TOO_FAST.search(text):
        return "asks for fewer requests"
    if _NO_ROOM.search(text):
        return "has no room at the moment"
    if _NO_QUOTA.search(text):
        return "has no quota left for this account"
    return ""


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
