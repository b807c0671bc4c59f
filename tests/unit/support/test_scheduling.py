"""Tests that share something costly stay together, and long ones begin first."""

from __future__ import annotations

import pytest

from tests.support import scheduling
from tests.support.scheduling import seconds_of, unit_of


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


def test_acceptance_tests_share_one_engine_whatever_their_file() -> None:
    files = ("test_crash", "test_settlement", "test_trouble")
    units = {unit_of(f"tests/acceptance/{file}.py::test_a") for file in files}
    assert units == {scheduling.OF_ACCEPTANCE}


def test_a_file_with_engines_of_its_own_stays_by_itself() -> None:
    file = "tests/acceptance/test_flows.py"
    assert unit_of(f"{file}::test_a[2.0]") == file


def test_each_test_of_compatibility_stays_by_itself() -> None:
    file = "tests/compatibility/test_compatibility.py"
    assert unit_of(f"{file}::test_a[3.13]") == f"{file}::test_a[3.13]"


def test_a_unit_counts_as_long_as_it_was_measured() -> None:
    test = "tests/contract/test_exchanges.py::test_a[engine-1.3-2]"
    assert seconds_of(test) == scheduling.SECONDS["tests/contract engine-1.3"]


def test_a_unit_that_was_not_measured_counts_by_its_folder() -> None:
    folders = ("machines", "chaos", "integration", "unit")
    seconds = [seconds_of(f"tests/{folder}/test_new.py::test_a") for folder in folders]
    assert seconds == sorted(seconds, reverse=True)


def test_each_file_that_was_measured_is_there() -> None:
    root = scheduling.TESTS.parent
    files = [
        *(unit for unit in scheduling.SECONDS if " " not in unit),
        *scheduling.WITH_ENGINES_OF_THEIR_OWN,
    ]
    assert [file for file in files if not (root / file).is_file()] == []
