"""What may be asked of a run on a machine, how its end is told, and where its results may go."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.machine_run import Lines
from bridge.errors import SettingsError
from bridge.machines.remote import (
    EXIT_CODES,
    ScriptOutcome,
    Work,
    environment_from,
    environment_of,
    file_of,
    is_branch,
    is_inside,
    redacted,
    report_of,
)
from bridge.machines.remote_helper import matches
from bridge.machines.remote_run import ResultsFailed, _make_way


def work(**fields: Any) -> Work:
    return Work(**{"run_id": "r", "script": b"true", **fields})


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        ({"phase": "script", "exit_code": 0}, ScriptOutcome.EXITED, 0),
        ({"phase": "script", "exit_code": 255}, ScriptOutcome.EXITED, 255),
        ({"phase": "script", "signal": 9}, ScriptOutcome.SIGNALLED, 137),
        ({"phase": "script", "stopped": "time"}, ScriptOutcome.TIMED_OUT, 124),
        ({"phase": "prepare", "stopped": "time"}, ScriptOutcome.TIMED_OUT, 124),
        ({"phase": "script", "stopped": "asked"}, ScriptOutcome.STOPPED, 143),
        ({"phase": "prepare", "error": "fatal: no"}, ScriptOutcome.PREPARE_FAILED, 66),
        (
            {"phase": "script", "error": "OSError: No space left on device"},
            ScriptOutcome.FAILED,
            70,
        ),
    ],
)
def test_every_end_has_its_own_outcome_and_exit_code(
    status: dict[str, Any], outcome: ScriptOutcome, code: int
) -> None:
    report = report_of({**status, "seconds": 1.25}, work(), attached=False)

    assert (report.outcome, report.code, report.seconds) == (outcome, code, 1.25)


def test_no_two_outcomes_share_an_exit_code() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


@pytest.mark.parametrize(
    "fields",
    [
        {"run_id": ""},
        {"run_id": "../x"},
        {"run_id": "-x"},
        {"run_id": "a b"},
        {"script": None},
        {"repository_script": "job.sh"},
        {"git_branch": "main"},
        {"git_repository": "--upload-pack=x"},
        {"git_repository": "ext::sh -c id"},
        {"git_repository": "https://h/x\nfatal: y"},
        {"git_repository": "-oProxyCommand=id@h:x"},
        {"git_repository": "https://h/x", "git_branch": "-x"},
        {"results": ("/etc/passwd",)},
        {"results": ("../*",)},
        {"environment": {b"A=B": b""}},
        {"environment": {b"": b""}},
        {"environment": {b"BASH_FUNC_x%%": b"() { id; }"}},
        {"environment": {b"BASH_ENV": b"$(id)"}},
        {"environment": {b"LD_PRELOAD": b"x"}},
        {"environment": {b"A": b"\0"}},
        {"environment": {b"A": b"x" * 131_072}},
    ],
)
def test_what_can_not_be_carried_out_safely_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        work(**fields)


@pytest.mark.parametrize(
    "url", ["https://h/x.git", "ssh://git@h:22/x", "git@github.com:a/b.git", "git://h/x"]
)
def test_the_usual_repositories_are_taken(url: str) -> None:
    assert work(git_repository=url).git_repository == url


@given(st.text(alphabet="ab-/.@{~^: *[\\\n?_\x7f☃lock", max_size=12))
def test_a_branch_s_name_is_taken_as_git_would_take_it(name: str) -> None:
    git = subprocess.run(
        ["git", "check-ref-format", "--branch", name], capture_output=True, check=False, cwd="/"
    )

    # `@` and `@{-1}` are git's shorthands, and are no names.
    assert is_branch(name) == (git.returncode == 0 and "@{" not in name and name != "@")


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a/../b", "/a", "a\0"])
def test_a_path_that_may_lead_elsewhere_is_none(path: str) -> None:
    assert not is_inside(path)


@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Z]{1,9}\Z"),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
)
def test_variables_keep_their_values_in_the_file_for_the_machine(variables: dict[str, str]) -> None:
    environment = environment_of((f"V{name}={value}" for name, value in variables.items()), {})
    pairs = work(environment=environment).environment_file.split(b"\0")[:-1]

    assert {
        p.partition(b"=")[0].decode()[1:]: p.partition(b"=")[2].decode() for p in pairs
    } == variables


def test_a_variable_without_a_value_is_our_own() -> None:
    assert environment_of(["A"], {b"A": b"\xff"}) == {b"A": b"\xff"}


def test_a_variable_that_we_do_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="no such variable"):
        environment_of(["A"], {})


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"a":1}', b'{"a":null}', b'{"a":"\\ud800"}', b"\xff", b"[" * 100_000]
)
def test_variables_of_a_file_are_an_object_of_texts(text: bytes) -> None:
    with pytest.raises(SettingsError, match="--env-file must be"):
        environment_from(text, option="--env-file")


def test_a_file_keeps_its_name_unless_another_is_given() -> None:
    assert [(f.local, f.remote) for f in map(file_of, ("a/b", "a/b:c/d"))] == [
        (Path("a/b"), "b"),
        (Path("a/b"), "c/d"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"script": b"false"},
        {"environment": {b"A": b"2"}},
        {"git_repository": "https://h/x"},
        {"results": ("x",)},
        {"time_limit": 1.0},
    ],
)
def test_any_change_makes_other_work(change: dict[str, Any]) -> None:
    base = {"environment": {b"A": b"1"}}

    assert work(**base).digest() == work(**base).digest() != work(**{**base, **change}).digest()


def test_the_content_of_a_file_makes_other_work(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1")
    given = work(files=(file_of(str(tmp_path / "f")),))
    before = given.digest()
    (tmp_path / "f").write_text("2")

    assert given.digest() != before


def test_credentials_of_a_repository_are_not_shown() -> None:
    assert redacted("fatal: no 'https://u:p@h/x'\n") == "fatal: no 'https://…@h/x'"


@given(
    st.binary(max_size=12).map(lambda tail: b"../" + tail)
    | st.sampled_from([b"/etc/x", b"a/../../x", b"a//b", b"."])
)
def test_a_result_s_name_never_leads_out_of_its_folder(name: bytes) -> None:
    with pytest.raises(ResultsFailed):
        _make_way(Path("results"), name)


def test_a_result_s_name_keeps_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert os.fsencode(_make_way(tmp_path, b"a/\xff").relative_to(tmp_path)) == b"a/\xff"


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


def _through(lines: Callable[[Lines], Any]) -> bytes:
    """What comes out at the other end of a pipe."""
    reader, writer = os.pipe()

    async def write_and_read() -> bytes:
        async def write() -> None:
            await lines(Lines(writer))
            os.close(writer)

        task = asyncio.create_task(write())
        content = b"".join([part async for part in _parts(reader)])
        await task
        return content

    try:
        return asyncio.run(write_and_read())
    finally:
        os.close(reader)


async def _parts(reader: int) -> Any:
    while part := await asyncio.to_thread(os.read, reader, 7_000):
        yield part


@given(st.lists(st.binary(max_size=20) | st.just(b"x" * 70_000), max_size=4))
def test_output_is_passed_on_byte_for_byte(pieces: list[bytes]) -> None:
    async def write(lines: Lines) -> None:
        for piece in pieces:
            await lines.write(piece)
        await lines.flush()

    assert _through(write) == b"".join(pieces)


def test_a_line_that_is_not_complete_is_held_back() -> None:
    async def write(lines: Lines) -> None:
        await lines.write(b"one\ntw")

    assert _through(write) == b"one\n"


def test_a_line_of_ours_begins_one() -> None:
    async def write(lines: Lines) -> None:
        await lines.write(b"unfinished")
        await lines.flush()
        await lines.line("ours")

    assert _through(write) == b"unfinished\nours\n"
