"""What commands say to people, run in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bridge.cli.dead_letters.detail import ExecutionReport, print_full
from bridge.cli.dead_letters.replay import ReplayCommand
from bridge.cli.flows import _report as report_of_flows
from bridge.errors import KestraRejected
from bridge.job.flow_name import FlowName
from bridge.job.machine_use import MachineUse
from bridge.job.message import Message
from bridge.operate.dead_letters.letter import parse
from bridge.operate.flows import Fate, Verdict
from bridge.rabbitmq.error_translation import reason as why
from tests.support.console import Console

NOWHERE = "amqp://u:p@127.0.0.1:1"
KESTRA = "http://127.0.0.1:1"


class TestSecrets:
    @pytest.mark.parametrize("command", ["run", "status", "doctor"])
    @pytest.mark.parametrize(
        "name", ["BRIDGE_AMQP_URL", "BRIDGE_KESTRA_URL", "BRIDGE_MANAGEMENT_URL"]
    )
    @pytest.mark.parametrize("sign", ["/", "#", "?"])
    def test_in_an_address_that_is_misread_are_not_shown(
        self, console: Console, command: str, name: str, sign: str
    ) -> None:
        scheme = "amqp" if name == "BRIDGE_AMQP_URL" else "http"
        settings = {"BRIDGE_AMQP_URL": NOWHERE, "BRIDGE_KESTRA_URL": KESTRA, "BRIDGE_FLOW": "n/f"}
        done = console(
            command, **{**settings, name: f"{scheme}://bridge:12345{sign}topsecret@127.0.0.1/"}
        )
        assert ("topsecret" in done.out + done.err, name in done.out + done.err) == (False, True), (
            done
        )


class TestTheEnvironment:
    @pytest.mark.parametrize(
        "command", ["run", "status", "doctor", "flows validate", "dead-letters list"]
    )
    @pytest.mark.parametrize(
        ("name", "value"),
        [("ALL_PROXY", "socks5://a"), ("NO_PROXY", "[::1]"), ("SSL_CERT_FILE", "/nope.pem")],
    )
    def test_that_a_library_can_not_use_is_named(
        self, console: Console, command: str, name: str, value: str
    ) -> None:
        settings = {"BRIDGE_AMQP_URL": NOWHERE, "BRIDGE_KESTRA_URL": KESTRA, "BRIDGE_FLOW": "n/f"}
        done = console(*command.split(), **settings, **{name: value})
        assert (done.status, done.err.count("\n"), f"kestra-bridge: {name}" in done.err) == (
            2,
            1,
            True,
        ), done

    def test_file_that_is_no_text_is_named(self, console: Console) -> None:
        Path(".env").write_bytes(b"BRIDGE_QUEUE=\xff")
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.status, done.err) == (
            2,
            "kestra-bridge: the file .env is not UTF-8: save it as that\n",
        )

    def test_file_gets_a_hint_for_a_name_that_is_no_setting(self, console: Console) -> None:
        Path(".env").write_text("BRIDGE_PREFECH=1\n")
        assert (
            "did you mean BRIDGE_PREFETCH?"
            in console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE).err
        )


class TestAnErrorThatNobodyExpected:
    def test_is_one_line(self, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a\nb")

        monkeypatch.setattr("bridge.operate.submission.jobs.judge", fail)
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.status, done.err.count("\n"), "ZeroDivisionError: a b" in done.err) == (
            1,
            1,
            True,
        ), done

    def test_of_the_system_names_its_file(
        self, console: Console, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", "/nope")

        monkeypatch.setattr("bridge.operate.submission.jobs.judge", fail)
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert done.err == "kestra-bridge: /nope: No such file or directory\n"


class TestHelp:
    @pytest.mark.parametrize(
        "words", [(), ("dead-letters",), ("flows",), ("machine",)], ids=" ".join
    )
    def test_cuts_no_summary(self, console: Console, words: tuple[str, ...]) -> None:
        assert (
            "..."
            not in console(*words, "--help").out.partition("Commands:")[2].partition("Examples:")[0]
        )


class TestRefusals:
    def test_of_a_flow_show_no_pattern(self, console: Console) -> None:
        said = console("submit", "--flow", "nope", BRIDGE_AMQP_URL=NOWHERE).err
        assert said == (
            "kestra-bridge: the body has the wrong shape: flow: must be namespace/id, such as "
            "company.team/report\n"
        )

    def test_of_several_flows_have_a_line_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        verdicts = [
            Verdict(flow=FlowName("n", name), fate=Fate.REFUSED, problems=("no", "no"))
            for name in "ab"
        ]
        with pytest.raises(KestraRejected, match="2 of 2 flows are refused"):
            report_of_flows("2.0.0", verdicts, as_json=False)
        assert capsys.readouterr().err.splitlines() == [
            "kestra-bridge: n/a is refused: no; no",
            "kestra-bridge: n/b is refused: no; no",
        ]


def test_a_header_of_several_values_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    headers = {
        "x-death": [{"queue": "q", "time": at, "count": 1}],
        "on": True,
        "since": at,
        "raw": bytearray(b"a\xff"),
    }
    message = Message(body=b"{}", headers=headers)
    print_full(
        parse(message, queue="q", default_flow=None), message, at, ExecutionReport(execution=None)
    )
    shown = capsys.readouterr().out
    lines = [
        'x-death: [{"queue": "q", "time": "2026-01-02T00:00:00+00:00", "count": 1}]',
        "on: true",
        "since: 2026-01-02T00:00:00+00:00",
        "raw: a\\xff",
    ]
    assert [line for line in lines if line not in shown] == [], shown


def test_a_dead_letter_shows_what_its_job_cost(capsys: pytest.CaptureFixture[str]) -> None:
    headers = MachineUse({"small": 3600.0}, 0.5).headers
    message = Message(body=b"{}", headers=headers)
    letter = parse(message, queue="q", default_flow=None)
    print_full(letter, message, datetime.now(UTC), ExecutionReport(execution=None))
    assert "Machines    3600 s of small, cost 0.5\n" in capsys.readouterr().out


def test_an_unreachable_broker_is_reported_without_words_of_python(console: Console) -> None:
    said = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE).err
    assert (
        said
        == "kestra-bridge: can't reach RabbitMQ at 127.0.0.1:1/: Connection refused (127.0.0.1:1)\n"
    )


def test_a_broker_with_two_addresses_is_reported_with_both() -> None:
    refused = "[Errno 111] Connect call failed"
    error = OSError(f"Multiple exceptions: {refused} ('::1', 1, 0, 0), {refused} ('127.0.0.1', 1)")
    assert (
        why(error)
        == "Multiple exceptions: Connection refused ([::1]:1), Connection refused (127.0.0.1:1)"
    )


class TestStatus:
    def test_refuses_an_interval_without_watch(self, console: Console) -> None:
        done = console("status", "5", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.status, done.err) == (
            2,
            "kestra-bridge: 5 is how often to look, which needs --watch\n",
        )


class TestCompletion:
    def test_can_be_installed(self, console: Console) -> None:
        assert "--install-completion" in console("--help").out

    def test_completes_a_command(self) -> None:
        variables = {
            "_KESTRA_BRIDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": "kestra-bridge sub",
            "COMP_CWORD": "1",
        }
        script = Path(sys.executable).with_name("kestra-bridge")
        done = subprocess.run(
            [script], env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["submit"], done.stderr


class TestReplayOfAll:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was asked on a terminal, where the answer is no; nothing is asked of RabbitMQ."""
        questions: list[str] = []

        def find(command: ReplayCommand) -> Coroutine[Any, Any, None]:
            async def found() -> None:
                message = Message(body=b"{}", message_id="a", headers={"x-bridge-reason": "failed"})
                command.letters = [parse(message, queue="q", default_flow=None)]

            return found()

        async def act(_: ReplayCommand) -> None:
            questions.append("done")

        def confirm(question: str, **_: object) -> bool:
            questions.append(question)
            return False

        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr(ReplayCommand, "find", find)
        monkeypatch.setattr(ReplayCommand, "act", act)
        monkeypatch.setattr("typer.confirm", confirm)
        return questions

    def test_asks_on_a_terminal_and_takes_no_for_an_answer(
        self, console: Console, asked: list[str]
    ) -> None:
        done = console("dead-letters", "replay", "--all", BRIDGE_AMQP_URL=NOWHERE)
        question = "Put 1 dead letter of kestra.jobs back (1 failed)?"
        assert (done.status, done.err, asked) == (1, "nothing was put back\n", [question])

    @pytest.mark.parametrize(
        "words", [("--all", "--yes"), ("--all", "--dry-run"), ("a",), ("--reason", "failed")]
    )
    def test_asks_only_about_all_letters_without_yes(
        self, console: Console, asked: list[str], words: tuple[str, ...]
    ) -> None:
        console("dead-letters", "replay", *words, BRIDGE_AMQP_URL=NOWHERE)
        assert asked == ["done"]
