"""How the end of a run is reported."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.machines.run.report import EXIT_CODES, Report, ScriptOutcome, redacted, report_of
from bridge.machines.run.result_list import Missing, RunResults


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        ({"phase": "script", "exit_code": 0}, ScriptOutcome.EXITED, 0),
        ({"phase": "script", "exit_code": 255}, ScriptOutcome.EXITED, 255),
        ({"phase": "script", "signal": 9}, ScriptOutcome.SIGNALLED, 137),
        ({"phase": "script", "stopped": "time"}, ScriptOutcome.TIMED_OUT, 124),
        ({"phase": "prepare", "stopped": "time"}, ScriptOutcome.TIMED_OUT, 124),
        ({"phase": "script", "stopped": "asked"}, ScriptOutcome.STOPPED, 143),
        ({"phase": "prepare", "error": "fatal: no"}, ScriptOutcome.PREPARE_FAILED, 66),
        (
            {"phase": "script", "error": "OSError: No space left on device"},
            ScriptOutcome.FAILED,
            70,
        ),
    ],
)
def test_every_end_has_its_own_outcome_and_exit_code(
    status: dict[str, Any], outcome: ScriptOutcome, code: int
) -> None:
    report = report_of({**status, "seconds": 1.25}, time_limit=None, attached=False)

    assert (report.outcome, report.code, report.seconds) == (outcome, code, 1.25)


def test_no_two_outcomes_share_an_exit_code() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


@pytest.mark.parametrize("credentials", ["u:p", "u:s3/cr3t", "u:wr@ng", "u:p?a#b"])
def test_credentials_of_a_repository_are_not_shown(credentials: str) -> None:
    assert redacted(f"fatal: no 'https://{credentials}@h/x'\n") == "fatal: no 'https://…@h/x'"


def ended(**status: Any) -> Report:
    """The report of a script that ended like that after a second."""
    whole = {"phase": "script", "seconds": 1, **status}
    return report_of(whole, time_limit=None, attached=False)


@pytest.mark.parametrize(
    ("exit_code", "code", "message"),
    [
        (0, 73, "the script exited with 0 after 1.0 s, but a result is missing: 'b': denied"),
        (5, 5, "the script exited with 5 after 1.0 s; a result is missing: 'b': denied"),
    ],
)
def test_a_result_that_is_missing_makes_a_failure_of_a_success_alone(
    exit_code: int, code: int, message: str
) -> None:
    results = RunResults((b"a",), (Missing(b"b", "denied"),))
    report = ended(exit_code=exit_code).with_results(results, wanted=("*",))
    assert (report.code, report.message) == (code, message)
    assert (report.data["results"], report.data["missingResults"]) == (["a"], ["'b': denied"])


def test_many_missing_results_are_counted() -> None:
    missing = tuple(Missing(b"%d" % number, "denied") for number in range(50))
    report = ended(exit_code=0).with_results(RunResults((), missing), wanted=("*",))
    assert "50 results are missing: '0': denied; '1': denied; '2': denied; and 47 more" in (
        report.message
    )


def test_a_list_of_results_that_is_cut_says_so() -> None:
    names = tuple(b"%d" % number for number in range(10_000))
    report = ended(exit_code=0).with_results(RunResults(names, ()), wanted=("*",))
    assert (report.code, len(report.data["results"]), report.data["resultCount"]) == (
        0,
        1000,
        10_000,
    )
    assert report.message.endswith("; the report names 1000 of 10000 results")


@pytest.mark.parametrize(
    ("exit_code", "lost", "code", "outcome"),
    [
        (5, True, 5, ScriptOutcome.EXITED),
        (5, False, 5, ScriptOutcome.EXITED),
        (0, True, 74, ScriptOutcome.LOST),
        (0, False, 73, ScriptOutcome.RESULTS_MISSING),
    ],
)
def test_results_that_could_not_be_asked_for_hide_no_failure_of_the_script(
    exit_code: int, lost: bool, code: int, outcome: ScriptOutcome
) -> None:
    report = ended(exit_code=exit_code).without_results("m was lost", lost=lost)
    assert (report.code, report.outcome, "m was lost" in report.message) == (code, outcome, True)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"signal": 9, "out_of_memory": 1}, True),
        ({"exit_code": 137, "out_of_memory": 1}, True),
        ({"exit_code": 0, "out_of_memory": 1}, False),
        ({"signal": 9}, False),
    ],
)
def test_a_script_that_the_machines_memory_did_not_suffice_for_is_told_as_that(
    status: dict[str, Any], told: bool
) -> None:
    assert ("the machine ran out of memory" in ended(**status).message) is told


def test_a_full_disk_is_told() -> None:
    message = ended(exit_code=1, disk_full=True).message
    assert message == "the script exited with 1 after 1.0 s; the machine's disk is full"
