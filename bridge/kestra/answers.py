"""What Kestra's answers mean, for each operation: the one place that judges a status and its words.
No I/O.

Statuses and words were recorded from real servers of 1.3 and 2.0. Kestra's web server is
Micronaut's, so a refusal is a JSON object with a `message` and `_links`, whether Kestra or the
framework refuses. A gateway's words never look so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

REASON_LENGTH = 400
"""Characters of an answer's message that are passed on."""


class Meaning(StrEnum):
    """What an answer means for whoever asked."""

    DONE = "done"
    """The answer is what was asked for."""
    ABSENT = "absent"
    """Kestra has no such execution or flow, or what was to be ended has ended: nothing is left to
    do."""
    REJECTED = "rejected"
    """Kestra refuses the request for its content; the same content is refused again."""
    DENIED = "denied"
    """Kestra refuses the credentials, the rights or the tenant."""
    INCOMPATIBLE = "incompatible"
    """The request is refused for its form, which no repetition changes."""
    UNAVAILABLE = "unavailable"
    """Nothing was done, and asking again later can help."""
    AMBIGUOUS = "ambiguous"
    """An execution may have been created, now or in a moment."""


@dataclass(frozen=True, slots=True)
class Words:
    """What the body of an answer says. `by_kestra`: Kestra wrote it, and nothing that stands before
    Kestra did.
    """

    message: str = ""
    by_kestra: bool = False

    @classmethod
    def read(cls, body: bytes) -> Words:
        """The words of a body; none where it isn't a JSON object with a message."""
        try:
            data: Any = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        message = data.get("message") if isinstance(data, dict) else None
        if not isinstance(message, str):
            return cls()
        return cls(" ".join(message.split())[:REASON_LENGTH], "_links" in data)

    @property
    def refuse_the_tenant(self) -> bool:
        """Whether open-source Kestra refuses a tenant other than `main`."""
        return "Tenant must be" in self.message

    @property
    def call_it_too_big(self) -> bool:
        """Whether Kestra 2.0 refuses a create because it exceeds the limit of its own queue, which
        it does with 500.
        """
        return "exceeded the configured limit" in self.message

    @property
    def execution_out_of_sight(self) -> str | None:
        """The id of an execution that was created and that Kestra 2.0 then lost sight of
        (kestra#17863).
        """
        found = re.search(r"Execution disappeared after create: (\w+)", self.message)
        return found.group(1) if found else None


_ABSENT: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        "get": frozenset({404}),
        "story": frozenset({404}),
        "flow": frozenset({404}),
        "delete": frozenset({404}),
        # 404 also comes from a 2.0 that is older than these outputs.
        "outputs": frozenset({404}),
        # 409: the execution has ended.
        "kill": frozenset({404, 409}),
    }
)
_DENIED = frozenset({401, 403})
_PASSING = frozenset({404, 408, 409, 425, 429})
_FOR_CONTENT = frozenset({400, 404, 409, 413, 414, 415, 422})
_TOO_LONG_OR_ODD = frozenset({413, 414, 415})
"""A gateway may say these of a request just as well as Kestra: the content is the cause whoever
says so."""


def judge(operation: str, status: int, words: Words) -> Meaning:
    """What an answer to that operation (as the metrics name it) means."""
    if 200 <= status < 300:
        return Meaning.DONE
    if status in _DENIED or (status == 400 and words.refuse_the_tenant):
        return Meaning.DENIED
    if operation == "create" and status >= 400:
        return _judge_create(status, words)
    return _judge_any(operation, status, words)


def _judge_create(status: int, words: Words) -> Meaning:
    if words.execution_out_of_sight or status == 408:
        return Meaning.AMBIGUOUS
    if status in _TOO_LONG_OR_ODD or (status == 500 and words.call_it_too_big):
        return Meaning.REJECTED
    if status >= 500:
        return Meaning.AMBIGUOUS
    if status in _FOR_CONTENT and words.by_kestra:
        return Meaning.REJECTED
    return Meaning.UNAVAILABLE if status in _PASSING | _FOR_CONTENT else Meaning.INCOMPATIBLE


def _judge_any(operation: str, status: int, words: Words) -> Meaning:
    if status in _ABSENT.get(operation, ()) and words.by_kestra:
        return Meaning.ABSENT
    if operation == "deploy" and status in _FOR_CONTENT:
        return Meaning.REJECTED
    passes = status < 400 or status in _PASSING or status >= 500
    return Meaning.UNAVAILABLE if passes else Meaning.INCOMPATIBLE
