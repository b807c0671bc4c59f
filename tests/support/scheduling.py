"""Which tests stay together where several workers share them, and which begin first.

What a unit's tests share, such as a broker or an engine, is started once for each worker that has
one of them. So a unit is a file, or in the contract all that asks the same server.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# As measured on a busy host, with --durations=0: only the order counts.
SECONDS = {
    "tests/integration/test_dead_letters.py": 230,
    "tests/contract engine-1.3": 190,
    "tests/containers/test_containers.py": 160,
    "tests/integration/test_doctor.py": 130,
    "tests/contract engine-2.0": 115,
    "tests/integration/test_starting.py": 100,
    "tests/contract standin": 10,
}
"""How long units take, so that long ones begin first: one at the end would run alone."""

USUAL = {"machines": 240, "acceptance": 200, "chaos": 180, "integration": 60}
"""What is assumed of a unit that isn't listed, by its folder."""

_SERVER = re.compile(r"\[(?:(engine-[\d.]+)|standin)")


def unit_of(nodeid: str) -> str:
    """The name of the unit to which a test belongs."""
    file, _, test = nodeid.partition("::")
    found = _SERVER.search(test)
    if file.startswith("tests/contract/") and found:
        return f"tests/contract {found[1] or 'standin'}"
    return file


def seconds_of(nodeid: str) -> int:
    """How long the unit of a test takes, more or less."""
    unit = unit_of(nodeid)
    folder = re.split("[/ ]", unit)[1]
    return SECONDS.get(unit, USUAL.get(folder, 5))
