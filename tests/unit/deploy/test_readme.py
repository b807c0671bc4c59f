"""The READMEs say what the code does, as far as a program can check that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.job.settlement import Reason
from bridge.machines.settings import MachineSettings
from bridge.settings import Settings
from bridge.telemetry.metrics import Metrics
from deploy.local.paths import REPOSITORY
from tests.support.commands import in_examples, in_markdown, unknown_in
from tests.support.documents import documents, name_of

ALL_SETTINGS = set(Settings.model_fields) | set(MachineSettings.model_fields)
NOT_SETTINGS = {
    "amqp_host",
    "amqp_port",
    "amqp_vhost",
    "amqp_api_url",
    "webhook_key",
    "git_analysis",
}
"""Secrets in Kestra that the flows which ship read, and an example of those."""

DOCUMENTS = documents()
NAMED = {
    (name_of(path), command) for path in DOCUMENTS for command in in_markdown(path.read_text())
}
EXAMPLES = {
    command
    for path in (REPOSITORY / "bridge" / "cli").rglob("*.py")
    for command in in_examples(path)
}


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_setting_is_named_that_does_not_exist(document: Path) -> None:
    named = {
        name.removeprefix("BRIDGE_").lower()
        for name in re.findall(r"(?<![A-Z_])BRIDGE_[A-Z_]+[A-Z]\b", document.read_text())
    }
    unknown = named - ALL_SETTINGS - NOT_SETTINGS
    assert {name for name in unknown if name.removesuffix("_file") not in ALL_SETTINGS} == set()


def test_every_metric_is_in_the_table() -> None:
    ours = {
        metric.name for metric in Metrics().registry.collect() if metric.name.startswith("bridge_")
    }
    rows = [line for line in text_of("deploy/README.md").splitlines() if line.startswith("| `")]
    assert [name for name in ours if name not in "\n".join(rows)] == []


def test_every_reason_of_a_dead_letter_is_named() -> None:
    text = text_of("bridge/operate/README.md")
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


@pytest.mark.parametrize(("document", "command"), sorted(NAMED))
def test_a_command_that_is_named_exists_with_its_options(document: str, command: str) -> None:
    assert unknown_in(command) is None, document


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_an_example_in_a_commands_help_exists_with_its_options(command: str) -> None:
    assert unknown_in(command) is None


@pytest.mark.parametrize("command", ["./deploy/demo", "./tests/run"])
def test_the_first_page_names_the_two_commands_that_need_no_container_engine(command: str) -> None:
    assert re.search(rf"^{re.escape(command)} ", text_of("README.md"), re.MULTILINE)
    assert (REPOSITORY / command).stat().st_mode & 0o111


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
def test_a_command_that_does_not_exist_would_be_found(command: str, unknown: str) -> None:
    assert unknown_in(command) == unknown


def test_commands_are_found_wherever_a_text_names_them() -> None:
    shell = "echo | docker compose run --rm bridge submit \\\n  --wait | cat  # and wait"
    text = f"Call `dead-letters\nlist` or\n```sh\n{shell}\n```\n"
    assert in_markdown(text) == ["submit --wait", "dead-letters list"]
