"""Which files are results, where they may go, and what becomes of the others when one can't."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.machines.run.remote_results import matches, may_hold
from bridge.machines.run.result_list import Missing, RunResults
from bridge.machines.run.results import ResultsFailed, ResultsFolder, local_path


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


NAMES = st.lists(st.sampled_from(["a", "b", ".h"]), min_size=1, max_size=4)
PATTERNS = st.lists(st.sampled_from(["a", "*", "**", ".h", "?", ".*"]), min_size=1, max_size=4)


@given(NAMES, PATTERNS)
def test_whoever_looks_for_a_result_goes_into_every_folder_above_it(
    path: list[str], pattern: list[str]
) -> None:
    if matches(path, pattern):
        assert all(may_hold(path[:end], pattern) for end in range(1, len(path)))


class FakeSftp:
    """The files of a machine: their contents, or the errors that reading them raises."""

    def __init__(self, files: dict[bytes, bytes | Exception]) -> None:
        self._files = files

    async def get(self, source: bytes, target: bytes, *, follow_symlinks: bool) -> None:
        assert follow_symlinks
        content = self._files[source.removeprefix(b"work/")]
        if isinstance(content, Exception):
            raise content
        with open(target, "wb") as file:  # noqa: ASYNC230, PTH123  (a few bytes)
            file.write(content)


async def fetched(
    directory: Path, files: dict[bytes, bytes | Exception], *, for_kestra: bool = False
) -> RunResults:
    sftp = cast("Any", FakeSftp(files))
    folder = ResultsFolder(directory, for_kestra=for_kestra)
    return await folder.fetch(sftp, b"work", RunResults(tuple(files), ()))


async def test_a_result_that_can_not_be_read_keeps_no_other_from_being_fetched(
    tmp_path: Path,
) -> None:
    denied = asyncssh.SFTPPermissionDenied("Permission denied")
    found = await fetched(tmp_path, {b"a": b"1", b"b": denied, b"c": b"3"})
    reason = "it can't be read on the machine (Permission denied)"
    assert found == RunResults((b"a", b"c"), (Missing(b"b", reason),))


async def test_a_result_that_can_not_be_written_keeps_no_other_from_being_fetched(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    found = await fetched(tmp_path, {b"a": b"1", b"n" * 300: b"2", b"c": b"3"})
    assert (found.names, [one.reason for one in found.missing]) == (
        (b"c",),
        [
            "it can't be written here (Is a directory)",
            "it can't be written here (File name too long)",
        ],
    )


async def test_nothing_more_is_fetched_once_the_disk_is_full_here(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    found = await fetched(tmp_path, {b"a": b"1", b"b": full, b"c": b"3"})
    assert (found.names, [one.name for one in found.missing]) == ((b"a",), [b"b", b"c"])


@pytest.mark.parametrize(
    "lost", [asyncssh.SFTPConnectionLost(""), asyncssh.SFTPNoConnection(""), ConnectionResetError()]
)
async def test_a_lost_connection_is_no_trouble_of_a_result(tmp_path: Path, lost: Exception) -> None:
    with pytest.raises(type(lost)):
        await fetched(tmp_path, {b"a": lost})


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b'{a} "\xe2\x98\x83"', True),
        (b"a\nb", False),
        (b"a\rb", False),
        ("a\u2028b".encode(), False),
        (b"\xff", False),
    ],
)
async def test_a_result_whose_name_kestra_can_not_keep_is_missing(
    tmp_path: Path, name: bytes, kept: bool
) -> None:
    found = await fetched(tmp_path, {name: b"1"}, for_kestra=True)
    assert ((name in found.names), len(found.missing)) == (kept, 1 - kept)


def test_a_list_of_results_that_is_cut_is_no_list() -> None:
    with pytest.raises(ValueError, match="incomplete"):
        RunResults.parse(b"+a\0+b")
