"""The README of machines says what the code does, where a program can check that."""

from __future__ import annotations

import re

import pytest

from bridge.cli.machine.create import create
from bridge.cli.machine.exit_codes import MEANINGS
from bridge.machines.providers import PROVIDERS
from bridge.machines.reaping import REAP_POLICY
from bridge.machines.run.report import EXIT_CODES, ScriptOutcome
from bridge.machines.settings import MachineSettings
from bridge.settings import Settings
from deploy.local.paths import REPOSITORY
from tests.support.commands import in_markdown, unknown_in

README = (REPOSITORY / "bridge/machines/README.md").read_text()


@pytest.mark.parametrize("command", sorted(set(in_markdown(README))))
def test_a_command_that_it_names_exists_with_its_options(command: str) -> None:
    assert unknown_in(command) is None


def test_every_setting_that_it_names_exists() -> None:
    known = {*Settings.model_fields, *MachineSettings.model_fields}
    named = re.findall(r"(?<![A-Z_])BRIDGE_[A-Z_]+[A-Z]", README)
    assert {name.removeprefix("BRIDGE_").lower() for name in named} - known == {"machine"}


@pytest.mark.parametrize("outcome", EXIT_CODES, ids=str)
def test_it_has_every_exit_code_in_the_words_of_the_help(outcome: ScriptOutcome) -> None:
    meaning = MEANINGS[outcome].replace("--time-limit", "`--time-limit`")
    assert f"| {EXIT_CODES[outcome]} | {meaning} |" in README


def test_it_names_every_provider() -> None:
    assert [name for name in PROVIDERS if f"`{name}`" not in README] == []


def test_it_and_the_help_say_when_a_machine_of_an_unknown_execution_is_reaped() -> None:
    assert REAP_POLICY.unknown_after == 600
    assert "ten minutes old" in str(create.__doc__)
    assert "ten minutes old" in README
