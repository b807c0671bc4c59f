"""The command line as a whole: help, usage errors, and output that nobody reads any more."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from bridge.cli.commands import app
from deploy.local.paths import REPOSITORY
from tests.support.console import Console

NOWHERE = "amqp://u:p@127.0.0.1:1/"


def command_paths() -> list[tuple[str, ...]]:
    """Every command that does something, as the words that a user types."""

    def below(command: object, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        nested = getattr(command, "commands", None)
        if nested is None:
            return [words]
        return [path for name, each in nested.items() for path in below(each, (*words, name))]

    return below(typer.main.get_command(app), ())


COMMANDS = command_paths()


def run(
    *words: str, program: Sequence[str] | None = None, into: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; `into` redirects its streams as a shell does."""
    command = [*(program or (sys.executable, "-m", "bridge")), *words]
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {into}"] if into else command,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
class TestEveryCommand:
    def test_has_help(self, console: Console, command: tuple[str, ...]) -> None:
        done = console(*command, "--help")
        assert (done.status, done.out.split()[0], done.err) == (0, "Usage:", "")

    def test_has_json(self, console: Console, command: tuple[str, ...]) -> None:
        assert "--json" in console(*command, "--help").out

    def test_refuses_an_unknown_option(self, console: Console, command: tuple[str, ...]) -> None:
        done = console(*command, "--no-such-option")
        assert (done.status, "No such option" in done.err) == (2, True)


def times_of(command: tuple[str, ...]) -> list[str]:
    """How a user begins each option and argument of a command that is a time."""
    found: Any = typer.main.get_command(app)
    for word in command:
        found = found.commands[word]
    times = [each for each in found.params if each.metavar == "SECONDS"]
    return [each.opts[0] if each.param_type_name == "option" else "" for each in times]


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in COMMANDS for option in times_of(command)],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else words,
)
@pytest.mark.parametrize("time", ["nan", "inf"])
def test_a_time_is_a_number_that_ends(
    console: Console, command: tuple[str, ...], option: str, time: str
) -> None:
    done = console(*command, *filter(None, [option]), time)
    assert (done.status, done.out, (option or "SECONDS") in done.err) == (2, "", True)


@pytest.mark.parametrize("words", [(), ("no-such-command",)], ids=["nothing", "unknown"])
def test_no_command_is_wrong_usage(console: Console, words: tuple[str, ...]) -> None:
    assert console(*words).status == 2


class TestAProcess:
    """What only a process shows: how it is started, and what it ends with."""

    @pytest.mark.parametrize(
        "program",
        [
            (sys.executable, "-m", "bridge"),
            (str(Path(sys.executable).with_name("kestra-bridge")),),
        ],
        ids=["module", "script"],
    )
    def test_prints_its_version(self, program: tuple[str, ...]) -> None:
        done = run("--version", program=program)
        assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "kestra-bridge", "")

    def test_ends_with_status_2_after_wrong_usage(self) -> None:
        done = run("submit", "--no-such-option")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)

    def test_ends_with_status_1_and_one_line_after_a_failure(self) -> None:
        done = run("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)

    def test_says_nothing_when_its_reader_has_gone(self) -> None:
        done = run("run", "--help", into="| head -n 1")
        assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


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
def test_what_cannot_be_used_is_one_line(
    console: Console, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    settings = {"BRIDGE_AMQP_URL": NOWHERE} if "--flow" in words[:2] and len(words) > 3 else {}
    done = console(*words, **settings)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "http://x"}, "BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "amqp://x", "BRIDGE_MAX_PRIORITY": "0"}, "BRIDGE_MAX_PRIORITY"),
        ({"BRIDGE_AMQP_URL": "amqp://x", "BRIDGE_LANES": "{"}, "BRIDGE_LANES"),
    ],
)
def test_a_faulty_setting_is_named(console: Console, settings: dict[str, str], name: str) -> None:
    done = console("submit", "--flow", "n/f", **settings)
    assert (done.status, done.err.count("\n"), name in done.err) == (2, 1, True), done.err


@pytest.mark.parametrize("words", [("schema",), ("submit", "--help")], ids=" ".join)
def test_a_reader_who_has_gone_is_no_noise(
    console: Console, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    nobody_reads = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", nobody_reads)
    done = console(*words)
    with suppress(BrokenPipeError):
        nobody_reads.close()
    assert (done.status, done.err) == (1, "")
