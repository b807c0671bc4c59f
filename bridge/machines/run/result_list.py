"""Which results a run left, and which could not be had. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass

_END = b"."


@dataclass(frozen=True, slots=True)
class Missing:
    """A result that could not be fetched, and why."""

    name: bytes
    reason: str

    def __str__(self) -> str:
        return f"{os.fsdecode(self.name)!a}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RunResults:
    """The results on a machine, or those that were fetched."""

    names: tuple[bytes, ...]
    missing: tuple[Missing, ...]

    @classmethod
    def parse(cls, listing: bytes) -> RunResults:
        """The results that `remote_results` lists.

        Raises:
            ValueError: the list isn't complete.
        """
        names, missing = [], []
        records = iter(listing.split(b"\0"))
        for record in records:
            kind, name = record[:1], record[1:]
            if kind == b"+":
                names.append(name)
            elif kind == b"-":
                reason = next(records, b"").decode("utf-8", "backslashreplace")
                missing.append(Missing(name, reason))
            elif record == _END:
                return cls(tuple(names), tuple(missing))
        raise ValueError("the list of the results is incomplete")
