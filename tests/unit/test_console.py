"""What commands say to people, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.console import Console

NOWHERE = "amqp://u:p@127.0.0.1:1"
KESTRA = "http://127.0.0.1:1"


class TestSecrets:
    @pytest.mark.parametrize("command", ["run", "status", "doctor"])
    @pytest.mark.parametrize("name", ["BRIDGE_AMQP_URL", "BRIDGE_KESTRA_URL", "BRIDGE_MANAGEMENT_URL"])
    @pytest.mark.parametrize("sign", ["/", "#", "?"])
    def test_in_an_address_that_is_misread_are_not_shown(
        self, console: Console, command: str, name: str, sign: str
    ) -> None:
        scheme = "amqp" if name == "BRIDGE_AMQP_URL" else "http"
        settings = {"BRIDGE_AMQP_URL": NOWHERE, "BRIDGE_KESTRA_URL": KESTRA, "BRIDGE_FLOW": "n/f"}
        done = console(command, **{**settings, name: f"{scheme}://bridge:12345{sign}topsecret@127.0.0.1/"})
        assert ("topsecret" in done.out + done.err, name in done.out + done.err) == (False, True), done


class TestTheEnvironment:
    @pytest.mark.parametrize("command", ["run", "status", "doctor", "flows validate", "dead-letters list"])
    @pytest.mark.parametrize(
        ("name", "value"), [("ALL_PROXY", "socks5://a"), ("NO_PROXY", "[::1]"), ("SSL_CERT_FILE", "/nope.pem")]
    )
    def test_that_a_library_can_not_use_is_named(self, console: Console, command: str, name: str, value: str) -> None:
        settings = {"BRIDGE_AMQP_URL": NOWHERE, "BRIDGE_KESTRA_URL": KESTRA, "BRIDGE_FLOW": "n/f"}
        done = console(*command.split(), **settings, **{name: value})
        assert (done.status, done.err.count("\n"), f"kestra-bridge: {name}" in done.err) == (2, 1, True), done

    def test_file_that_is_no_text_is_named(self, console: Console) -> None:
        Path(".env").write_bytes(b"BRIDGE_QUEUE=\xff")
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.status, done.err) == (2, "kestra-bridge: the file .env is not UTF-8: save it as that\n")

    def test_file_gets_a_hint_for_a_name_that_is_no_setting(self, console: Console) -> None:
        Path(".env").write_text("BRIDGE_PREFECH=1\n")
        assert "did you mean BRIDGE_PREFETCH?" in console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE).err


class TestAnErrorThatNobodyExpected:
    def test_is_one_line(self, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a\nb")

        monkeypatch.setattr("bridge.submission.judge", fail)
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert (done.status, done.err.count("\n"), "ZeroDivisionError: a b" in done.err) == (1, 1, True), done

    def test_of_the_system_names_its_file(self, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", "/nope")

        monkeypatch.setattr("bridge.submission.judge", fail)
        done = console("submit", "--flow", "n/f", BRIDGE_AMQP_URL=NOWHERE)
        assert done.err == "kestra-bridge: /nope: No such file or directory\n"
