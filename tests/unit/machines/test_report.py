"""How the end of a run is reported."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.machines.run.report import EXIT_CODES, ScriptOutcome, redacted, report_of


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
