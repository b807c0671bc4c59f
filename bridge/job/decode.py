"""Decode a message into a job, without asking anybody else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bridge import exact_json
from bridge.errors import InvalidMessage
from bridge.job.attempt import MARK_LABEL
from bridge.job.flow_name import PATTERN as FLOW_PATTERN
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.machine_use import use_in_headers
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST, Message

MAX_BODY = 8 * 1024 * 1024
MAX_JOB_ID = 200
MAX_LABELS_LENGTH = 2000
_MAX_ATTEMPT = 1_000_000

# Kestra's own rules for names (its `Label`, `Flow` and `Input` classes): what it would refuse never
# leaves here.
_INPUT = r"^[a-zA-Z0-9][.a-zA-Z0-9_-]{0,127}$"
_LABEL = re.compile(r"[a-z][\w.-]{0,127}")
_NULS = ("\0", "\\u0000")
"""The NUL character, and JSON's text for it. Kestra's PostgreSQL refuses or changes both."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Spreadsheets and Windows put it before a text in UTF-8, where it means nothing."""

_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSIONS = frozenset(
    {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "bzip2", "lzma", "xz", "lz4", "snappy"}
)
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)
_AMQP_1_0 = (b"\x00Sw", b"\x00Sv", b"\x00Su")
"""How the sections of an AMQP 1.0 message begin: value, sequence, data."""

_RESERVED_LABELS = ("system.", MARK_LABEL)


class JobBody(BaseModel):
    """The body of a job message. A null means the same as a key that is absent."""

    model_config = ConfigDict(extra="forbid", strict=True, title="A job for kestra-bridge")

    flow: Annotated[str, Field(pattern=FLOW_PATTERN)] | None = Field(
        default=None,
        description="The flow to run, as namespace/id. Without it: the flow of the queue's lane.",
    )
    inputs: dict[Annotated[str, Field(pattern=_INPUT)], Any] | None = Field(
        default=None,
        description="The flow's inputs. A null is left out, so that the flow's default holds.",
    )
    labels: dict[str, str | None] | None = Field(
        default=None,
        description="Labels for the execution; none may begin with 'system.' or 'bridge'.",
    )
    timeout: Annotated[float, Field(gt=0, le=31_536_000)] | None = Field(
        default=None,
        description="Seconds after which the execution is killed. Without it: the "
        "bridge's job time-out.",
    )


def decode(
    message: Message, *, default_flow: FlowName | None, max_priority: int, queue: str = ""
) -> Job:
    """The job that a message of that queue asks for.

    Raises:
        InvalidMessage: the message can never become a job. The text says what is wrong, and where.
    """
    body = _parse(message)
    flow = FlowName.parse(body.flow) if body.flow else default_flow
    if flow is None:
        raise InvalidMessage("no flow: the body names none and its queue has no default flow")
    if (message.priority or 0) > max_priority:
        raise InvalidMessage(
            f"priority {message.priority} is above the queue's maximum of {max_priority}"
        )
    job = Job(
        id=_job_id(message.message_id),
        flow=flow,
        queue=queue,
        attempt=_number(message.headers, ATTEMPT),
        first_attempt=_number(message.headers, FIRST_ATTEMPT),
        machines_lost=_number(message.headers, MACHINES_LOST, least=0),
        machine_use=use_in_headers(message.headers),
        inputs=_inputs(body.inputs or {}),
        labels=_labels(
            {key: value for key, value in (body.labels or {}).items() if value is not None}
        ),
        timeout=body.timeout,
        correlation_id=_correlation_id(message.correlation_id),
    )
    _check_attempts(job)
    return job


def _check_attempts(job: Job) -> None:
    if job.first_attempt > job.attempt:
        raise InvalidMessage(
            f"header {FIRST_ATTEMPT} {job.first_attempt} is above {ATTEMPT} {job.attempt}"
        )
    if job.machines_lost > job.attempt - job.first_attempt:
        raise InvalidMessage(
            f"header {MACHINES_LOST} {job.machines_lost} is more than the attempts before this one"
        )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job message's body."""
    schema = JobBody.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _parse(message: Message) -> JobBody:
    body = message.body
    if len(body) > MAX_BODY:
        raise InvalidMessage(f"the body has {len(body)} bytes, more than {MAX_BODY}")
    try:
        data = exact_json.loads(body.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        raise InvalidMessage(
            _unreadable(message) or f"the body is not JSON: {_one_line(error)}"
        ) from error
    if not isinstance(data, dict):
        raise InvalidMessage(f"the body is a JSON {_json_type(data)}, not an object")
    if any(map(_holds_nul, exact_json.texts(data))):
        raise InvalidMessage("the body holds a NUL character (\\u0000), which Kestra can't store")
    try:
        return JobBody.model_validate(data)
    except ValidationError as error:
        raise InvalidMessage(f"the body has the wrong shape: {_describe(error)}") from error


def _unreadable(message: Message) -> str | None:
    """What a body that is not JSON seems to be, and what to do; None where nothing is known."""
    body = message.body
    if not body.strip():
        return "the body is empty: a job's body is a JSON object, at least {}"
    if name := _compression(message):
        return f"the body is compressed ({name}): publish it as plain JSON"
    if message.message_type == "amqp-1.0" or body.startswith(_AMQP_1_0):
        return (
            "the body is an AMQP 1.0 value and not binary data: publish the JSON text "
            "as a data section"
        )
    if body.startswith(_UTF_16_MARKS) or (len(body) > 1 and 0 in body[:2]):
        return "the body is in UTF-16 or UTF-32: publish it in UTF-8"
    return None


def _compression(message: Message) -> str | None:
    """The compression that a message names, or that its first bytes show."""
    encoding = (message.content_encoding or "").lower()
    if encoding in _COMPRESSIONS:
        return encoding
    return next((name for magic, name in _MAGIC if message.body.startswith(magic)), None)


def _describe(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_input=False)
    shown = []
    for fault in faults[:3]:
        what = _what(fault["loc"], fault["type"], fault["msg"])
        shown.append(f"{_where(fault['loc'])}: {what}")
    if len(faults) > 3:
        shown.append(f"and {len(faults) - 3} more")
    return "; ".join(shown)


def _where(place: Sequence[object]) -> str:
    return ".".join(_show(part) for part in place if part != "[key]") or "body"


def _what(place: Sequence[object], kind: str, message: str) -> str:
    """A fault in words, where pydantic would show a regular expression."""
    if kind != "string_pattern_mismatch":
        return message
    if place[0] == "flow":
        return "must be namespace/id, such as company.team/report"
    return "an input's name is a letter or digit and then letters, digits, '.', '_', '-'"


def _show(part: object) -> str:
    return str(part).encode("unicode_escape").decode()[:60]


def _json_type(value: object) -> str:
    names = {
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return next((name for kind, name in names.items() if isinstance(value, kind)), "value")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _job_id(message_id: str | None) -> str:
    if not message_id:
        return ""
    if len(message_id) > MAX_JOB_ID:
        raise InvalidMessage(f"message_id has {len(message_id)} characters, more than {MAX_JOB_ID}")
    if not message_id.isprintable():
        raise InvalidMessage("message_id has characters that can't be printed")
    if _holds_nul(message_id):
        raise InvalidMessage("message_id holds the text \\u0000, which Kestra can't store")
    if message_id != message_id.strip():
        # Kestra trims a label's value, and two jobs would become one.
        raise InvalidMessage("message_id begins or ends with a space")
    return message_id


def _number(headers: Mapping[str, Any], name: str, *, least: int = 1) -> int:
    """The number in a header, from `least` on, which is also the number of a missing header."""
    value = headers.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_ATTEMPT:
        raise InvalidMessage(f"header {name} is not a number from {least} to {_MAX_ATTEMPT}")
    return value


def _correlation_id(value: str | None) -> str | None:
    """The publisher's correlation id where it can be a label. A result carries it in any case."""
    if value and _can_be_label(value):
        return value
    return None


def _can_be_label(value: str) -> bool:
    return value.isprintable() and value == value.strip() and not _holds_nul(value)


def _holds_nul(text: str) -> bool:
    return any(each in text for each in _NULS)


def _inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in inputs.items():
        if not _finite(value):
            raise InvalidMessage(f"input {name} has a number that is too large for JSON's readers")
    return {name: value for name, value in inputs.items() if value is not None}


def _finite(value: Any) -> bool:
    """Whether a JSON value holds no number like 1e999, which is read as an infinity."""
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_finite, value.values()))
        case list():
            return all(map(_finite, value))
        case _:
            return True


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL.fullmatch(key):
            raise InvalidMessage(
                f"label {_show(key)!r} is not a lower-case letter and then letters, "
                "digits, '.', '_', '-'"
            )
        if key.startswith(_RESERVED_LABELS):
            raise InvalidMessage(
                f"label {_show(key)!r} is reserved: 'system.' and 'bridge' belong to "
                "Kestra and the bridge"
            )
        if not value or not _can_be_label(value):
            raise InvalidMessage(
                f"label {_show(key)!r} has a value that is empty, padded or not printable"
            )
    # Labels travel in the create's request line, of which Kestra's web server takes 4,096 bytes.
    length = sum(len(quote(f"labels={key}:{value}&", safe="")) for key, value in labels.items())
    if length > MAX_LABELS_LENGTH:
        raise InvalidMessage(
            f"the labels have {length} characters in a URL, more than {MAX_LABELS_LENGTH}"
        )
    return dict(labels)
