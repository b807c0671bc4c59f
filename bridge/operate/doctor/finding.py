"""What the doctor finds: how bad it is, what is wrong, why that matters, and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad a finding is, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    UNKNOWN = "unknown"
    """It can't be told from here, whether all is well."""
    OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of one check, each part a line of text. Of what is ok there is only `what`: what
    has been checked.
    """

    level: Level
    check: str = ""
    what: str
    why: str = ""
    mend: str = ""

    def as_data(self) -> dict[str, Any]:
        """The finding as what JSON can hold."""
        return asdict(self)


def fault(what: str, *, why: str, mend: str) -> Finding:
    """Something that breaks a promise of the bridge's."""
    return Finding(level=Level.FAULT, what=what, why=why, mend=mend)


def warning(what: str, *, why: str, mend: str) -> Finding:
    """Something that costs time or safety, or may do so one day."""
    return Finding(level=Level.WARNING, what=what, why=why, mend=mend)


def unknown(what: str, *, why: str, mend: str) -> Finding:
    """Something that must be looked at elsewhere."""
    return Finding(level=Level.UNKNOWN, what=what, why=why, mend=mend)
