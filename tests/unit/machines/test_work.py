"""What may be asked of a run on a machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import SettingsError
from bridge.machines.run.work import (
    Work,
    environment_from,
    environment_of,
    file_of,
    is_branch,
    is_inside,
)


def work(**fields: Any) -> Work:
    return Work(**{"run_id": "r", "script": b"true", **fields})


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
def test_work_that_can_not_be_carried_out_safely_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        work(**fields)


@pytest.mark.parametrize(
    "url", ["https://h/x.git", "ssh://git@h:22/x", "git@github.com:a/b.git", "git://h/x"]
)
def test_the_usual_repositories_are_accepted(url: str) -> None:
    assert work(git_repository=url).git_repository == url


@given(st.text(alphabet="ab-/.@{~^: *[\\\n?_\x7f☃lock", max_size=12))
def test_a_branch_name_is_accepted_if_git_accepts_it(name: str) -> None:
    git = subprocess.run(
        ["git", "check-ref-format", "--branch", name], capture_output=True, check=False, cwd="/"
    )

    # `@` and `@{-1}` are git's shorthands, and are no names.
    assert is_branch(name) == (git.returncode == 0 and "@{" not in name and name != "@")


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a/../b", "/a", "a\0"])
def test_a_path_that_may_lead_elsewhere_is_not_inside(path: str) -> None:
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


def test_a_variable_without_a_value_is_taken_from_our_environment() -> None:
    assert environment_of(["A"], {b"A": b"\xff"}) == {b"A": b"\xff"}


def test_a_variable_missing_from_our_environment_is_refused() -> None:
    with pytest.raises(SettingsError, match="no such variable"):
        environment_of(["A"], {})


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"a":1}', b'{"a":null}', b'{"a":"\\ud800"}', b"\xff", b"[" * 100_000]
)
def test_variables_of_a_file_must_be_an_object_of_strings(text: bytes) -> None:
    with pytest.raises(SettingsError, match="--env-file must be"):
        environment_from(text, option="--env-file")


def test_a_variable_that_is_no_string_is_named() -> None:
    with pytest.raises(SettingsError, match="'B' is no string"):
        environment_from(b'{"A": "a", "B": 5}', option="--env-file")


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
def test_any_change_makes_different_work(change: dict[str, Any]) -> None:
    base = {"environment": {b"A": b"1"}}

    assert work(**base).digest() == work(**base).digest() != work(**{**base, **change}).digest()


def test_another_content_of_a_file_makes_different_work(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1")
    given = work(files=(file_of(str(tmp_path / "f")),))
    before = given.digest()
    (tmp_path / "f").write_text("2")

    assert given.digest() != before
