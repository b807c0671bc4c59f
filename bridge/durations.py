"""Lengths of time as text: written by a person, for a sentence, and for a column."""

from __future__ import annotations

import re
from datetime import timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SPAN = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")


def parse_span(text: str) -> timedelta:
    """A length of time that a person wrote: `90s`, `30m`, `2h`, `1d12h` or `2w`.

    Raises:
        ValueError: the text is anything else.
    """
    match = _SPAN.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        raise ValueError(f"{text!a} is no span of time such as 90s, 30m, 2h, 3d or 1w")
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def format_span(span: timedelta) -> str:
    """A length of time in its largest unit, short as a column needs it; `parse_span` reads it."""
    seconds = int(span.total_seconds())
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def in_words(seconds: float) -> str:
    """A length of time in its two largest units, as a sentence says it: `2 h 5 min`."""
    whole = int(seconds)
    for size, unit, smaller_size, smaller_unit in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole < size:
            continue
        text = f"{whole // size} {unit}"
        rest = whole % size // smaller_size
        if rest:
            text += f" {rest} {smaller_unit}"
        return text
    return f"{whole} s"
