"""A short run of generated messages and answers; `tests/chaos/fuzz` is the same at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import fuzzing


@pytest.mark.timeout(300)
def test_whatever_comes_in_each_message_ends_as_it_must(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--messages",
        "500",
        "--answers",
        "100",
        "--seed",
        "1",
        "--directory",
        str(tmp_path),
    ]
    assert (fuzzing.main(arguments), capsys.readouterr().out.splitlines()[-1][:17]) == (
        0,
        "PASS 500 messages",
    )
