"""Lengths of time, as a person reads them."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """A length of time, by its two largest units."""
    whole = int(seconds)
    for size, unit, smaller, rest in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            more = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {more} {rest}" if more else "")
    return f"{whole} s"
