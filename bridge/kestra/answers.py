"""What Kestra's answers mean, by operation: the one place that judges a status and its words.
No I/O.

Statuses and words were recorded from real servers of 1.3 and 2.0. Kestra's web server is
Micronaut's: whether Kestra or the framework refuses, the body is a JSON object with a `message` and
`_links`. A gateway's body never has both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from bridge.errors import KestraUnavailable

REASON_LENGTH = 400
"""How many characters of an answer's message are passed on."""


class Meaning(StrEnum):
    """What an answer means for the caller."""

    DONE = "done"
    """The answer is what was asked for."""
    ABSENT = "absent"
    """Kestra has no such execution or flow, or what should end has ended: nothing is left to do."""
    REJECTED = "rejected"
    """Kestra refuses the request for its content, and refuses the same content again."""
    DENIED = "denied"
    """Kestra refuses the credentials, the rights or the tenant."""
    INCOMPATIBLE = "incompatible"
    """The request is refused for its form, which no repetition changes."""
    UNAVAILABLE = "unavailable"
    """Nothing was done, and asking again later can help."""
    AMBIGUOUS = "ambiguous"
    """An execution may have been created, now or in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful answer. `seconds` is how long Kestra took for it."""

    operation: str
    status: int
    body: bytes
    seconds: float

    def json(self) -> Any:
        """The value that the body holds.

        Raises:
            KestraUnavailable: it is not JSON, so something else than Kestra answered.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise KestraUnavailable(f"the answer is not JSON (HTTP {self.status})") from error

    def object(self) -> dict[str, Any]:
        """The JSON object that the body holds.

        Raises:
            KestraUnavailable: it is something else.
        """
        data = self.json()
        if not isinstance(data, dict):
            raise KestraUnavailable(f"{self.operation}: the answer is not a JSON object")
        return data


@dataclass(frozen=True, slots=True)
class Words:
    """What the body of a refusal says. `by_kestra`: Kestra wrote it, not a gateway before it."""

    message: str = ""
    by_kestra: bool = False

    @classmethod
    def read(cls, body: bytes) -> Words:
        """The words of a body; none where it isn't a JSON object with a message."""
        try:
            data: Any = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(data, dict):
            return cls()
        message = data.get("message")
        if not isinstance(message, str):
            return cls()
        line = " ".join(message.split())
        return cls(line[:REASON_LENGTH], "_links" in data)

    @property
    def refuse_the_tenant(self) -> bool:
        """Whether open-source Kestra refuses a tenant other than `main`."""
        return "Tenant must be" in self.message

    @property
    def call_it_too_big(self) -> bool:
        """Whether a create exceeds the limit of Kestra's own queue, which 2.0 answers with 500."""
        return "exceeded the configured limit" in self.message

    @property
    def execution_out_of_sight(self) -> str | None:
        """The id of an execution that Kestra 2.0 created and then lost sight of (kestra#17863)."""
        found = re.search(r"Execution disappeared after create: (\w+)", self.message)
        if found is None:
            return None
        return found.group(1)


Meanings = Mapping[int, Meaning]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusTable:
    """The meanings of the statuses that refuse one kind of operation.

    `in_kestras_words` holds where Kestra wrote the body, and goes before `from_anyone`. A 4xx in
    neither is a fault of the request's form. `server_error` is any status from 500 on, and
    `redirect` any below 400.
    """

    in_kestras_words: Meanings
    from_anyone: Meanings
    server_error: Meaning = Meaning.UNAVAILABLE
    redirect: Meaning = Meaning.UNAVAILABLE

    def meaning(self, status: int, *, by_kestra: bool) -> Meaning:
        """The meaning of a status other than success."""
        if by_kestra and status in self.in_kestras_words:
            return self.in_kestras_words[status]
        if status in self.from_anyone:
            return self.from_anyone[status]
        if status >= 500:
            return self.server_error
        if status < 400:
            return self.redirect
        return Meaning.INCOMPATIBLE


_PASSING: Meanings = dict.fromkeys((404, 408, 409, 425, 429), Meaning.UNAVAILABLE)
_GONE: Meanings = {404: Meaning.ABSENT}
_CONTENT: Meanings = dict.fromkeys((400, 404, 409, 422), Meaning.REJECTED)
_TOO_LONG_OR_ODD: Meanings = dict.fromkeys((413, 414, 415), Meaning.REJECTED)
"""The content is the cause of these, even where a gateway says so."""

_QUESTION = StatusTable(in_kestras_words={}, from_anyone=_PASSING)
_ABOUT_ONE = StatusTable(in_kestras_words=_GONE, from_anyone=_PASSING)
_TABLES: Mapping[str, StatusTable] = MappingProxyType(
    {
        "create": StatusTable(
            in_kestras_words=_CONTENT,
            from_anyone={
                **_PASSING,
                **dict.fromkeys((400, 422), Meaning.UNAVAILABLE),
                **_TOO_LONG_OR_ODD,
                408: Meaning.AMBIGUOUS,
            },
            server_error=Meaning.AMBIGUOUS,
            # A gateway may have put it in the place of Kestra's answer.
            redirect=Meaning.AMBIGUOUS,
        ),
        "deploy": StatusTable(
            in_kestras_words={},
            from_anyone={**_PASSING, **_CONTENT, **_TOO_LONG_OR_ODD},
        ),
        # 409: the execution has ended.
        "kill": StatusTable(in_kestras_words={**_GONE, 409: Meaning.ABSENT}, from_anyone=_PASSING),
        "get": _ABOUT_ONE,
        "story": _ABOUT_ONE,
        "flow": _ABOUT_ONE,
        "delete": _ABOUT_ONE,
        # An early 2.0 that lacks the path of outputs answers 404 too.
        "outputs": _ABOUT_ONE,
    }
)


def judge(operation: str, status: int, words: Words) -> Meaning:
    """What an answer to that operation, by its name in the metrics, means."""
    if 200 <= status < 300:
        return Meaning.DONE
    if status in (401, 403):
        return Meaning.DENIED
    if status == 400 and words.refuse_the_tenant:
        return Meaning.DENIED
    if operation == "create" and status >= 400:
        # Where 2.0 says what it failed over, its words count and not the status.
        if words.execution_out_of_sight:
            return Meaning.AMBIGUOUS
        if status == 500 and words.call_it_too_big:
            return Meaning.REJECTED
    table = _TABLES.get(operation, _QUESTION)
    return table.meaning(status, by_kestra=words.by_kestra)
