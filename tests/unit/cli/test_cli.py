"""The command line as a whole: help, usage errors, and output that nobody reads any more."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import typer

from bridge.cli.commands import app
from deploy.local.paths import REPOSITORY


def command_paths() -> list[tuple[str, ...]]:
    """Every command that does something, as the words that a user types."""

    def below(command: object, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        nested = getattr(command, "commands", None)
        if nested is None:
            return [words]
        return [path for name, each in nested.items() for path in below(each, (*words, name))]

    return below(typer.main.get_command(app), ())


COMMANDS = command_paths()


def run(*words: str, into: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
    command = [sys.executable, "-m", "bridge", *words]
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {into}"] if into else command,
        env=environment | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"} | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert (done.returncode, done.stdout.splitlines()[0].split()[0], done.stderr) == (
        0,
        "Usage:",
        "",
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_json(command: tuple[str, ...]) -> None:
    assert "--json" in run(*command, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(command: tuple[str, ...]) -> None:
    done = run(*command, "--no-such-option")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.mark.parametrize("words", [(), ("no-such-command",)], ids=["nothing", "unknown"])
def test_no_command_is_wrong_usage(words: tuple[str, ...]) -> None:
    assert run(*words).returncode == 2


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("kestra-bridge ")


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("submit", "--flow", "n/f"),
        ("submit",),
        ("submit", "--flow", "no flow"),
        ("submit", "--flow", "n/f", "--input", "novalue"),
        ("submit", "--flow", "n/f", "--inputs-json", "[1]"),
        ("submit", "--flow", "n/f", "--priority", "11"),
        ("submit", "--flow", "n/f", "--timeout", "nan"),
        ("submit", "--flow", "n/f", "--wait-timeout", "1"),
        ("submit", "--flow", "n/f", "--input", "a=1", "--inputs-json", '{"a": 2}'),
        ("submit", "--flow", "n/f", "--queue", "no queue"),
        ("submit", "--file", "/no/such/file"),
        ("submit", "--file", "/"),
        ("submit", "--file", "-"),
        ("submit", "--file", "-", "--id", "a"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_one_line(words: tuple[str, ...]) -> None:
    settings = (
        {"BRIDGE_AMQP_URL": "amqp://u:p@127.0.0.1:1/"}
        if "--flow" in words[:2] and len(words) > 3
        else {}
    )
    done = run(*words, **settings)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "http://x"}, "BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "amqp://x", "BRIDGE_MAX_PRIORITY": "0"}, "BRIDGE_MAX_PRIORITY"),
        ({"BRIDGE_AMQP_URL": "amqp://x", "BRIDGE_LANES": "{"}, "BRIDGE_LANES"),
    ],
)
def test_a_faulty_setting_is_named(settings: dict[str, str], name: str) -> None:
    done = run("submit", "--flow", "n/f", **settings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert name in done.stderr


def test_a_failure_is_one_line_and_another_status() -> None:
    done = run("submit", "--flow", "n/f", BRIDGE_AMQP_URL="amqp://u:p@127.0.0.1:1/")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    "words", [("schema",), ("submit", "--help"), ("run", "--help")], ids=" ".join
)
def test_a_reader_who_has_gone_is_no_noise(words: tuple[str, ...]) -> None:
    done = run(*words, into="| head -n 1")
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")
