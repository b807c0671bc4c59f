"""Which files are results, and where they may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.machines.run.remote_supervisor import matches
from bridge.machines.run.results import ResultsFailed, local_path


@given(
    st.binary(max_size=12).map(lambda tail: b"../" + tail)
    | st.sampled_from([b"/etc/x", b"a/../../x", b"a//b", b"."])
)
def test_a_results_name_never_leads_out_of_its_folder(name: bytes) -> None:
    with pytest.raises(ResultsFailed):
        local_path(Path("results"), name)


def test_a_results_name_keeps_bytes_that_are_not_text(tmp_path: Path) -> None:
    assert os.fsencode(local_path(tmp_path, b"a/\xff").relative_to(tmp_path)) == b"a/\xff"


@pytest.mark.parametrize(
    ("pattern", "path", "wanted"),
    [
        ("a.csv", "a.csv", True),
        ("a[1].csv", "a[1].csv", True),
        ("*.csv", "a.csv", True),
        ("*.csv", "out/a.csv", False),
        ("**/*.csv", "a.csv", True),
        ("**/*.csv", "x/y/a.csv", True),
        ("**/*.csv", ".git/a.csv", False),
        ("out", "out/deep/a", True),
        ("out/", "out/.hidden", True),
        ("./out/*", "out/deep/a", True),
        ("out/**", "out/deep/a", True),
        ("**", ".git/config", False),
        ("*", ".git/config", False),
        (".git", ".git/config", True),
        ("out/*/b", "out/a/c", False),
        ("out", "outer", False),
    ],
)
def test_results_are_matched_as_in_a_shell(pattern: str, path: str, wanted: bool) -> None:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]

    assert matches(path.split("/"), parts) is wanted
