"""Which tests stay together where several workers share them, and which begin first.

What a unit's tests share, such as a broker or an engine, is started once for each worker that has
one of them. So a unit is a file, or in the contract all that asks the same server.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

SECONDS: dict[str, int] = {}
"""How long units took, so that long ones begin first: one at the end would run alone."""

FOLDERS = ("machines", "acceptance", "chaos", "containers", "contract", "integration")
"""The folders whose files take long, the longest first."""

_SERVER = re.compile(r"\[(?:(engine-[\d.]+)|standin)")


def unit_of(nodeid: str) -> str:
    """The name of the unit to which a test belongs."""
    file, _, test = nodeid.partition("::")
    found = _SERVER.search(test)
    if file.startswith("tests/contract/") and found:
        return f"tests/contract {found[1] or 'standin'}"
    return file


def order_of(nodeid: str) -> tuple[int, int]:
    """What to sort tests by: the measured units, then the others by their folder."""
    unit = unit_of(nodeid)
    folder = re.split("[/ ]", unit)[1]
    rank = FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)
    return -SECONDS.get(unit, 0), rank
