"""Texts that several commands print."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from bridge.operate.dead_letters.letter import DeadLetter
from bridge.text import encodable


def count_of(count: int, what: str) -> str:
    """A count with its noun, as `1 job` or `2 jobs`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def reasons_of(letters: Iterable[DeadLetter]) -> str:
    """The number of letters with each reason, the most frequent first."""
    by_reason = Counter(letter.reason for letter in letters)
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.most_common())


def print_result(letter: DeadLetter, result: str, *, dry_run: bool, why: str = "") -> None:
    """Print what became of a letter, for programs."""
    data: dict[str, Any] = {
        "job": letter.job,
        "queue": letter.queue,
        "result": result,
        "reason": letter.reason,
    }
    if why:
        data["why"] = why
    if dry_run:
        data["dry_run"] = True
    print(dumps(data))


def dumps(data: Any) -> str:
    """JSON on one line, whatever somebody put into headers."""
    return json.dumps(encodable(data), ensure_ascii=False, default=as_text)


def as_text(value: object) -> str:
    """A header's value that JSON has no form for, as text."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)
