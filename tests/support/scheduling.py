"""Which tests stay together where several workers share them, and which begin first.

What a unit's tests share, such as a broker or an engine, is started once for each worker that has
one of them. So a unit is a file, in the contract all that asks the same server, and in acceptance
all files that use the engine of `conftest.py`. The tests of compatibility share nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# As measured on a busy host, with --durations=0: only the order counts.
SECONDS = {
    "tests/acceptance with the shared engine": 300,
    "tests/integration/test_dead_letters.py": 230,
    "tests/contract engine-1.3": 190,
    "tests/containers/test_containers.py": 160,
    "tests/integration/test_doctor.py": 130,
    "tests/contract engine-2.0": 115,
    "tests/integration/test_starting.py": 100,
    "tests/contract standin": 10,
}
"""How long units take, so that long ones begin first: one at the end would run alone."""

USUAL = {"compatibility": 300, "machines": 240, "acceptance": 200, "chaos": 180, "integration": 60}
"""What is assumed of a unit that isn't listed, by its folder."""

OF_ACCEPTANCE = "tests/acceptance with the shared engine"
WITH_ENGINES_OF_THEIR_OWN = frozenset(
    f"tests/acceptance/{name}.py" for name in ("test_executor_down", "test_flows", "test_kestra_1")
)

_SERVER = re.compile(r"\[(?:(engine-[\d.]+)|standin)")


def unit_of(nodeid: str) -> str:
    """The name of the unit to which a test belongs."""
    file, _, test = nodeid.partition("::")
    found = _SERVER.search(test)
    if file.startswith("tests/compatibility/"):
        return nodeid
    if file.startswith("tests/contract/") and found:
        return f"tests/contract {found[1] or 'standin'}"
    if file.startswith("tests/acceptance/") and file not in WITH_ENGINES_OF_THEIR_OWN:
        return OF_ACCEPTANCE
    return file


def seconds_of(nodeid: str) -> int:
    """How long the unit of a test takes, more or less."""
    unit = unit_of(nodeid)
    folder = re.split("[/ ]", unit)[1]
    return SECONDS.get(unit, USUAL.get(folder, 5))
