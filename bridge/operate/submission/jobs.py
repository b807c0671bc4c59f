"""Judges drafts by the bridge's own rules and turns them into messages. Asks nobody."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from bridge import exact_json
from bridge.errors import InvalidMessage
from bridge.job.decode import decode
from bridge.job.flow_name import FlowName
from bridge.job.message import Message
from bridge.operate.submission.drafts import Draft, shown

MAX_ID_BYTES = 255
"""The length of the property `message_id`; an id that is cut off would be another job's."""

GENERATED_ID = 32
"""Characters of an id that is generated here."""

_FLOW_OF_THE_LANE = FlowName("the", "lane")
"""Stands for the flow of a job that names none. Only the bridge needs to know its lane's flow, not
the settings of whoever submits."""

IdSource = Callable[[Message], str]
"""Gives the job of a message an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that the bridge will understand, as the message that asks for it."""

    id: str
    message: Message

    def sent(self, at: datetime, *, reply_to: str | None = None) -> Message:
        """The message with the time of its publication, from which the bridge computes how long it
        waited in the queue.

        With `reply_to` the message asks for the job's final result, which will carry the job's id
        as its correlation id.
        """
        message = replace(self.message, timestamp=at)
        if reply_to:
            message = replace(message, reply_to=reply_to, correlation_id=self.id)
        return message


def random_id(_: Message) -> str:
    """A new id, never the same one twice."""
    return uuid.uuid4().hex


class IdsByContent:
    """Generates the same ids for the same jobs of the same file, however often it is read.

    Equal jobs are distinguished by their order, so that they stay separate jobs.
    """

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()

    def __call__(self, message: Message) -> str:
        """An id for the job of this message."""
        content = hashlib.sha256(f"{message.priority}\n".encode() + message.body).digest()
        self._seen[content] += 1
        nth = str(self._seen[content]).encode()
        return hashlib.sha256(content + nth).hexdigest()[:GENERATED_ID]


def judge(drafts: Sequence[Draft], *, max_priority: int, ids: IdSource) -> list[Submission]:
    """The drafts as messages, in the same order; `ids` gives an id to each that has none.

    Raises:
        InvalidMessage: the bridge would refuse one of them, or two have the same id; the text says
        where it stands.
    """
    seen: dict[str, str] = {}
    submissions = []
    for draft in drafts:
        prefix = f"{draft.where}: " if draft.where else ""
        try:
            submission = _judge(draft, max_priority, ids)
        except InvalidMessage as error:
            raise InvalidMessage(f"{prefix}{error}") from error
        if submission.id in seen:
            raise InvalidMessage(
                f"{prefix}id {shown(submission.id)} is there already, at {seen[submission.id]}"
            )
        seen[submission.id] = draft.where
        submissions.append(submission)
    return submissions


def _judge(draft: Draft, max_priority: int, ids: IdSource) -> Submission:
    try:
        body = exact_json.dumps(dict(draft.body), compact=True).encode()
    except ValueError as error:
        raise InvalidMessage(f"it can't be written as JSON: {error}") from error
    message = Message(
        body=body,
        content_type="application/json",
        delivery_mode=2,
        priority=_priority(draft.priority, max_priority),
    )
    job_id = ids(message) if draft.id is None else _id(draft.id)
    message = replace(message, message_id=job_id)
    job = decode(message, default_flow=_FLOW_OF_THE_LANE, max_priority=max_priority)
    return Submission(id=job.id, message=message)


def _id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidMessage(f"id {shown(value)} is not a text of at least one character")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise InvalidMessage(f"id {shown(value)} has more than {MAX_ID_BYTES} bytes")
    return value


def _priority(value: Any, highest: int) -> int | None:
    if value is None:
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= highest:
        raise InvalidMessage(f"priority {shown(value)} is not a whole number from 0 to {highest}")
    return int(value)
