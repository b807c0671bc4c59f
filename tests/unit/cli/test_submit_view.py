"""What `submit` prints."""

from __future__ import annotations

import pytest

from bridge.cli.submit_view import Output
from bridge.operate.submission.batch import JobResult


def test_a_terminal_gets_no_escape_code_of_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"state": "FAILED", "reason": "failed", "error": "a\x1b]0;b\x07", "execution": "\x9b1"}
    Output(as_json=False, queue="q").result(JobResult(job="j\x1b[2J", data=data))
    said = capsys.readouterr().out
    assert said.rstrip("\n").replace("\t", " ").isprintable()
    assert r"a\x1b]0;b\x07" in said
