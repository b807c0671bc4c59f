"""Output to streams that lack characters, are closed, or are full."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

from bridge.cli import streams
from tests.support.console import Console
from tests.unit.cli.test_cli import run

ODD = "jöb→1 😀 \udcff"


def written(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes that reach a standard output of that encoding."""
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

    def test_leaves_characters_that_it_has_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert written("jöb", "utf-8", monkeypatch) == "jöb\n".encode()


@pytest.mark.parametrize(
    ("words", "closed"),
    [
        (("submit", "--file", "-"), "<&-"),
        (("schema",), ">&-"),
        (("status",), ">&-"),
        (("run",), "2>&-"),
        (("dead-letters", "discard", "--all"), "<&- >&- 2>&-"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_a_closed_stream_is_no_traceback(words: tuple[str, ...], closed: str) -> None:
    settings = {"BRIDGE_AMQP_URL": "amqp://127.0.0.1:1", "BRIDGE_KESTRA_URL": "http://127.0.0.1:1"}
    done = run(*words, into=closed, **settings)
    assert ("Traceback" in done.stderr, done.returncode in (0, 1, 2)) == (False, True), done


NO_SPACE = "kestra-bridge: can't write to standard output: No space left on device"


class TestAFullDisk:
    @pytest.mark.parametrize(
        "words", [("schema",), ("--version",), ("status", "--json"), ("--help",)], ids=" ".join
    )
    def test_is_one_line(
        self, console: Console, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
    ) -> None:
        with open_full() as full:
            monkeypatch.setattr(sys, "stdout", full)
            done = console(*words, BRIDGE_AMQP_URL="amqp://127.0.0.1:1")
        assert (done.status, done.err.splitlines()[-1:]) == (1, [NO_SPACE])

    def test_ends_the_process_with_status_1(self) -> None:
        done = run("schema", into=">/dev/full")
        assert (done.returncode, done.stderr) == (1, f"{NO_SPACE}\n")

    def test_for_errors_leaves_the_exit_code(self) -> None:
        assert run("submit", into="2>/dev/full").returncode == 2


@contextmanager
def open_full() -> Iterator[TextIO]:
    """A file on a full disk. What is left in it may be lost."""
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closing it would fail)
    yield full
    with suppress(OSError):
        full.close()
