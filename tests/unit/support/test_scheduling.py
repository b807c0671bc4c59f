"""Tests that share something costly stay together, and long ones begin first."""

from __future__ import annotations

import pytest

from tests.support import scheduling
from tests.support.scheduling import order_of, unit_of


def test_the_tests_of_a_file_stay_together() -> None:
    test = "tests/integration/test_tls.py::TestA::test_b[4.3-a::b]"
    assert unit_of(test) == "tests/integration/test_tls.py"


@pytest.mark.parametrize("file", ["test_exchanges", "test_kestra_contract"])
def test_what_asks_the_same_engine_stays_together(file: str) -> None:
    test = f"tests/contract/{file}.py::test_a[engine-1.3-2]"
    assert unit_of(test) == "tests/contract engine-1.3"


def test_the_stand_ins_of_all_versions_stay_together() -> None:
    test = "tests/contract/test_exchanges.py::test_a[standin-1.3.25-2]"
    assert unit_of(test) == "tests/contract standin"


def test_a_unit_that_took_longer_begins_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "SECONDS", {"tests/unit/a.py": 9, "tests/machines/b.py": 8})
    tests = ["tests/unit/c.py::t", "tests/machines/d.py::t", "tests/machines/b.py::t"]
    in_order = sorted([*tests, "tests/unit/a.py::t"], key=order_of)
    assert [unit_of(test) for test in in_order] == [
        "tests/unit/a.py",
        "tests/machines/b.py",
        "tests/machines/d.py",
        "tests/unit/c.py",
    ]


def test_each_unit_that_was_measured_is_there() -> None:
    root = scheduling.TESTS.parent
    files = [unit for unit in scheduling.SECONDS if " " not in unit]
    assert [file for file in files if not (root / file).is_file()] == []
