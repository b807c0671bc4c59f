"""A lost machine is told from a script that failed."""

from __future__ import annotations

import pytest

from bridge.job.machine_loss import says_machine_lost
from bridge.machines.run.report import EXIT_CODES, ScriptOutcome

LOST = "kestra-bridge: kestra-a: the connection to job@a was lost after 3.0 s"
NEVER_IN = "kestra-bridge: kestra-a: job@a did not answer by SSH within 300 s after 300.0 s"
OWN_END = "kestra-bridge: kestra-a: the script exited with 74 after 3.0 s"


@pytest.mark.parametrize(
    "errors",
    [
        f"task run ended FAILED: {LOST}; Command failed with exit code 74",
        f"task run ended FAILED: Command failed with exit code 74; {LOST}",
        f"task run ended FAILED: {NEVER_IN}; Command failed with exit code 69",
        f"task run ended FAILED: {OWN_END}; {LOST}; Command failed with exit code 74",
        "task judge ended FAILED: kestra-bridge: exit code 74, as only jobs failed whose machine",
    ],
)
def test_the_code_and_the_last_word_of_machine_run_say_that_the_machine_was_lost(
    errors: str,
) -> None:
    assert says_machine_lost(errors)


@pytest.mark.parametrize(
    "errors",
    [
        f"task run ended FAILED: {OWN_END}; Command failed with exit code 74",
        f"task run ended FAILED: {LOST}; {OWN_END}; Command failed with exit code 74",
        "task work ended FAILED: can't write; Command failed with exit code 74",
        f"task run ended FAILED: {LOST}; Command failed with exit code 5",
        f"task run ended FAILED: {LOST}; Command failed with exit code 174",
        "execution e1 ended FAILED",
    ],
)
def test_a_script_s_own_end_and_a_flow_without_a_machine_say_nothing_of_the_kind(
    errors: str,
) -> None:
    assert not says_machine_lost(errors)


@pytest.mark.parametrize("outcome", [ScriptOutcome.LOST, ScriptOutcome.UNREACHABLE])
def test_the_codes_are_those_of_machine_run(outcome: ScriptOutcome) -> None:
    assert says_machine_lost(f"{LOST}; Command failed with exit code {EXIT_CODES[outcome]}")
