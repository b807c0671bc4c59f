"""The README says what the code does, where that can be told by a program."""

from __future__ import annotations

import re

import pytest

from bridge.job.settlement import Reason
from bridge.machines.settings import MachineSettings
from bridge.settings import Settings
from bridge.telemetry.metrics import Metrics
from deploy.local.paths import REPOSITORY
from tests.support.commands import in_examples, in_markdown, unknown_in

ALL_SETTINGS = set(Settings.model_fields) | set(MachineSettings.model_fields)
README = (REPOSITORY / "README.md").read_text()
SETTINGS = (REPOSITORY / "bridge" / "settings" / "README.md").read_text()
OTHERS = (
    "bridge/settings/README.md",
    "flows/README.md",
    "deploy/SIZING.md",
    "deploy/kubernetes/README.md",
)
EXAMPLES = {
    command
    for path in (REPOSITORY / "bridge" / "cli").rglob("*.py")
    for command in in_examples(path)
}


@pytest.mark.parametrize("text", [README, SETTINGS], ids=["README.md", "bridge/settings/README.md"])
def test_no_setting_is_named_that_is_none(text: str) -> None:
    named = {
        name.removeprefix("BRIDGE_").lower()
        for name in re.findall(r"(?<![A-Z_])BRIDGE_[A-Z_]+[A-Z]", text)
    }
    assert named - ALL_SETTINGS == set()


def test_every_metric_is_in_the_table() -> None:
    ours = {
        metric.name for metric in Metrics().registry.collect() if metric.name.startswith("bridge_")
    }
    assert [name for name in ours if name not in README] == []


def test_every_reason_of_a_dead_letter_is_named() -> None:
    assert [reason for reason in Reason if f"`{reason}`" not in README] == []


@pytest.mark.parametrize("command", sorted(set(in_markdown(README))))
def test_a_command_that_is_named_is_there_with_its_options(command: str) -> None:
    assert unknown_in(command) is None


@pytest.mark.parametrize("path", OTHERS)
def test_the_commands_that_another_text_names_are_there(path: str) -> None:
    named = in_markdown((REPOSITORY / path).read_text())
    assert {command: unknown for command in named if (unknown := unknown_in(command))} == {}


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_an_example_in_a_commands_help_is_there_with_its_options(command: str) -> None:
    assert unknown_in(command) is None


@pytest.mark.parametrize(
    ("command", "unknown"),
    [
        ("dead-letters lst", "lst"),
        ("dead-letter list", "dead-letter"),
        ("dead-letters replay --al", "--al"),
        ("--all dead-letters replay", "--all"),
        ("machine run --execution ID --scrpt -", "--scrpt"),
        ("flows deploy --only notifier, with --tlss where", "--tlss"),
    ],
)
def test_a_command_that_is_none_would_be_told(command: str, unknown: str) -> None:
    assert unknown_in(command) == unknown


def test_commands_are_found_wherever_a_text_names_them() -> None:
    shell = "echo | docker compose run --rm bridge submit \\\n  --wait | cat  # and wait"
    text = f"Call `dead-letters\nlist` or\n```sh\n{shell}\n```\n"
    assert in_markdown(text) == ["submit --wait", "dead-letters list"]
