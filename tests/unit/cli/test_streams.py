"""Output goes to whatever stream there is: one that lacks characters, is closed, is full, or that
nobody reads."""

from __future__ import annotations

import io
import json
import sys

import pytest

from bridge.cli import streams
from tests.unit.cli.test_cli import run

ODD = "jöb→1 😀 \udcff"


def written(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What gets into a standard output of that encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    streams.prepare()
    print(text)
    streams.flush()
    return raw.getvalue()


class TestAStreamThatLacksCharacters:
    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_still_carries_json(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        raw = written(json.dumps({"job": ODD}, ensure_ascii=False), encoding, monkeypatch)
        assert json.loads(raw.decode(encoding)) == {"job": ODD}

    def test_shows_them_as_json_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert written("jöb 😀", "ascii", monkeypatch) == b"j\\u00f6b \\ud83d\\ude00\n"

    def test_is_no_matter_where_there_are_none_such(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert written("jöb", "utf-8", monkeypatch) == "jöb\n".encode()


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("status",),
        ("submit", "--file", "-"),
        ("dead-letters", "discard", "--all"),
        ("schema",),
    ],
    ids=" ".join,
)
def test_a_closed_stream_is_no_traceback(words: tuple[str, ...], stream: str) -> None:
    settings = {"BRIDGE_AMQP_URL": "amqp://127.0.0.1:1", "BRIDGE_KESTRA_URL": "http://127.0.0.1:1"}
    done = run(*words, into=stream, **settings)
    assert ("Traceback" in done.stderr, done.returncode in (0, 1, 2)) == (False, True), done


@pytest.mark.parametrize(
    "words", [("schema",), ("--version",), ("status", "--json"), ("--help",)], ids=" ".join
)
def test_a_full_disk_is_one_line(words: tuple[str, ...]) -> None:
    done = run(*words, into=">/dev/full", BRIDGE_AMQP_URL="amqp://127.0.0.1:1")
    lines = done.stderr.splitlines()
    assert (done.returncode, lines[-1:]) == (
        1,
        ["kestra-bridge: can't write to standard output: No space left on device"],
    ), done


def test_a_full_disk_for_errors_leaves_the_exit_code() -> None:
    assert run("submit", into="2>/dev/full").returncode == 2
