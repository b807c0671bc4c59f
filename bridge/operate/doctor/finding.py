"""What the doctor finds: how bad it is, what is wrong, why that matters, and how to fix it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad a finding is, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    UNKNOWN = "unknown"
    """Can't be determined from here."""
    OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of one check; each part is a line of text. A finding that all is OK has only
    `what`, the thing that was checked.
    """

    level: Level
    check: str = ""
    what: str
    why: str = ""
    fix: str = ""

    def as_data(self) -> dict[str, Any]:
        """The finding as JSON can hold it. `mend` is the former name of `fix` and stays for the
        programs that read it.
        """
        return {**asdict(self), "mend": self.fix}


def fault(what: str, *, why: str, fix: str) -> Finding:
    """Something that breaks a promise of the bridge."""
    return Finding(level=Level.FAULT, what=what, why=why, fix=fix)


def warning(what: str, *, why: str, fix: str) -> Finding:
    """Something that costs time or safety, or may do so one day."""
    return Finding(level=Level.WARNING, what=what, why=why, fix=fix)


def unknown(what: str, *, why: str, fix: str) -> Finding:
    """Something that an operator has to look up elsewhere."""
    return Finding(level=Level.UNKNOWN, what=what, why=why, fix=fix)
