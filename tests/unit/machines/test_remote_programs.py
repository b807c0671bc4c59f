"""The two programs on a machine, run in a folder of this host without SSH."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge.machines.run import (
    remote_checkout,
    remote_helper,
    remote_results,
    remote_supervisor,
)
from bridge.machines.run.remote_helper import DONE, FULL, REFUSED
from bridge.machines.run.result_list import Missing, RunResults
from bridge.machines.run.work import Work
from tests.support.small_disk import small_disk

TIMEOUT = 60.0

Finished = subprocess.CompletedProcess[bytes]
Start = Callable[..., Finished]


CHECK_OUT = """
def check_out(self):
    if os.path.isdir("../source"):
        subprocess.run(["cp", "-a", "../source/.", "work"], check=True)

Run._check_out = check_out
"""
"""Checks out the folder `source`, whatever repository is asked for."""


def stage(
    home: Path, script: bytes | None, files: Mapping[str, str] | None = None, **fields: Any
) -> None:
    """Stage a run of that script in `home`, with those files beside it."""
    work = Work(run_id="run", script=script, **fields)
    staged = home / "staged"
    (staged / "files").mkdir(parents=True)
    for name, content in (files or {}).items():
        (staged / "files" / name).parent.mkdir(exist_ok=True)
        (staged / "files" / name).write_text(content)
    shutil.copy(remote_helper.__file__, staged / "helper.py")
    supervisor = Path(remote_supervisor.__file__).read_text()
    (staged / "supervisor.py").write_text(
        supervisor.replace("\nif __name__", f"{CHECK_OUT}\nif __name__")
    )
    shutil.copy(remote_results.__file__, staged / "results.py")
    if work.credentials_file is not None:
        shutil.copy(remote_checkout.__file__, staged / "checkout.py")
        (staged / "credentials").write_bytes(work.credentials_file)
    (staged / "request.json").write_bytes(work.request)
    (staged / "environment").write_bytes(work.environment_file)
    (staged / "digest").write_text(work.digest())
    (staged / "script").write_bytes(script or b"")


def helper(home: Path, folder: str, *arguments: str) -> Finished:
    return subprocess.run(
        [sys.executable, "-I", f"{folder}/helper.py", *arguments],
        cwd=home,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


def start_in(home: Path, script: bytes | None, **fields: Any) -> Finished:
    stage(home, script, **fields)
    return helper(home, "staged", "start", "staged", "run")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Stages a run of that script, starts it, and follows it to its end."""

    return partial(start_in, tmp_path)


def status(home: Path) -> dict[str, Any]:
    """The status that the supervisor wrote, without its seconds."""
    status: dict[str, Any] = json.loads((home / "run/status.json").read_text())
    del status["seconds"]
    return status


def test_both_outputs_and_the_exit_code_are_the_scripts_own(start: Start, tmp_path: Path) -> None:
    done = start(b'echo "$A"; echo err >&2; exit 7', environment={b"A": b"x  y"})
    assert (done.returncode, done.stdout, done.stderr) == (DONE, b"x  y\n", b"err\n")
    assert status(tmp_path) == {"phase": "script", "exit_code": 7}


def test_a_signal_that_kills_the_script_is_recorded(start: Start, tmp_path: Path) -> None:
    start(b"kill -9 $$")
    assert status(tmp_path) == {"phase": "script", "signal": 9}


def test_a_script_is_stopped_at_its_time_limit(start: Start, tmp_path: Path) -> None:
    start(b"exec sleep 1000", time_limit=0.1, grace=TIMEOUT)
    assert status(tmp_path) == {"phase": "script", "stopped": "time"}


def test_the_supervisor_of_a_script_that_takes_its_time_sleeps(start: Start) -> None:
    done = start(
        b"""
        woken() { sed -n 's/^voluntary_ctxt_switches:\\s*//p' /proc/$PPID/status; }
        before=$(woken)
        sleep 1
        echo $(($(woken) - before))
        """
    )
    assert int(done.stdout) < 50


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            b"#!/no/such/program -x\n",
            "No such file or directory: its first line names the program '/no/such/program'",
        ),
        (b"#! /etc/passwd\n", "Permission denied: its first line names the program '/etc/passwd'"),
        (
            b"#!/bin/bash\r\ntrue\r\n",
            "No such file or directory: its first line ends with a carriage return, as on Windows",
        ),
        (
            b"\xef\xbb\xbf#!/usr/bin/python3\nprint()\n",
            "it begins with a byte order mark, which hides its #! line: save it without one",
        ),
    ],
    ids=["no such program", "no program", "Windows", "byte order mark"],
)
def test_a_script_that_can_not_be_started_fails_in_the_preparation_and_says_what_is_wrong(
    start: Start, tmp_path: Path, script: bytes, why: str
) -> None:
    start(script)
    assert status(tmp_path) == {"phase": "prepare", "error": f"the script can't be started: {why}"}


def test_variables_that_are_too_long_together_are_named(start: Start, tmp_path: Path) -> None:
    start(b"true", environment={b"A%d" % number: b"x" * 130_000 for number in range(100)})
    assert status(tmp_path)["error"].endswith("its variables are too long together")


def test_bash_runs_a_script_whose_own_path_has_no_bash(start: Start, tmp_path: Path) -> None:
    start(b"exit 4", environment={b"PATH": b"/opt/tool/bin"})
    assert status(tmp_path) == {"phase": "script", "exit_code": 4}


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A repository with links, some of which lead out of it."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    (source / "job.sh").write_text("exit 3")
    (elsewhere / "job.sh").write_text("exit 9")
    (source / "inside.sh").symlink_to("job.sh")
    (source / "outside.sh").symlink_to(elsewhere / "job.sh")
    (source / "folder").symlink_to(elsewhere)
    return "https://git.example.org/source"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("outside.sh", "the script 'outside.sh' is a link out of the checkout"),
        ("folder/job.sh", "the script 'folder/job.sh' is a link out of the checkout"),
        ("none.sh", "the checkout has no script 'none.sh'"),
    ],
)
def test_a_script_outside_of_its_checkout_is_neither_run_nor_changed(
    start: Start, tmp_path: Path, repository: str, script: str, said: str
) -> None:
    start(None, repository_script=script, git_repository=repository)
    assert status(tmp_path) == {"phase": "prepare", "error": said}
    assert (tmp_path / "elsewhere/job.sh").stat().st_mode & 0o111 == 0


def test_a_script_may_be_a_link_within_its_checkout(
    start: Start, tmp_path: Path, repository: str
) -> None:
    start(None, repository_script="inside.sh", git_repository=repository)
    assert status(tmp_path) == {"phase": "script", "exit_code": 3}


def test_an_input_file_is_not_placed_through_a_link_out_of_the_checkout(
    start: Start, tmp_path: Path, repository: str
) -> None:
    start(b"true", git_repository=repository, files={"folder/new": "x"})
    assert "'folder/new': its folder is a link out of the checkout" in status(tmp_path)["error"]
    assert not (tmp_path / "elsewhere/new").exists()


def results(home: Path) -> RunResults:
    """The results of the run, as the program on the machine lists them."""
    done = subprocess.run(
        [sys.executable, "-I", str(home / "run/results.py"), str(home / "run")],
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    return RunResults.parse(done.stdout)


def test_the_results_are_listed_even_after_a_failure(start: Start, tmp_path: Path) -> None:
    start(b"mkdir -p out; touch out/a.csv .b.csv; ln -s / out/c; exit 1", results=("**/*.csv",))
    assert results(tmp_path) == RunResults((b"out/a.csv",), ())


def test_a_folder_that_can_not_be_read_is_named_if_it_may_hold_results(
    start: Start, tmp_path: Path
) -> None:
    # A path that is too long can't be read by anybody, not even by root.
    name = "n" * 250
    descend = f"for i in $(seq 17); do mkdir {name}; cd {name}; done"
    start(f"mkdir a b; (cd a; {descend}); (cd b; {descend}); touch r".encode(), results=("a", "r"))
    found = results(tmp_path)
    assert found.names == (b"r",)
    assert [(one.name[:3], one.reason) for one in found.missing] == [(b"a/n", "File name too long")]


def test_a_link_to_a_folder_is_named_if_a_pattern_names_it(start: Start, tmp_path: Path) -> None:
    start(b"ln -s /usr out; mkdir b; ln -s b c; ln -s /usr d", results=("out/*.csv", "b/**", "**"))
    not_followed = "a link to a folder, and such links are not followed"
    assert results(tmp_path).missing == (Missing(b"out", not_followed),)


def test_the_results_are_those_of_the_patterns_whatever_their_names(
    start: Start, tmp_path: Path
) -> None:
    start(b"touch $'a\\nb' $'\\xff' -- -rf", results=("*",))
    assert set(results(tmp_path).names) == {b"a\nb", b"\xff", b"-rf"}


# ------------------------------------------------------------------ a full disk


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, mounted in the test's folder."""
    with small_disk(tmp_path / "disk", "size=4m,nr_inodes=200") as disk:
        yield disk


FILL = b"head -c 10M /dev/zero >big; for n in $(seq 300); do : >f$n; done 2>/dev/null; "


def test_a_script_that_fills_the_disk_keeps_its_exit_code(full_disk: Path) -> None:
    assert start_in(full_disk, FILL + b"exit 7").returncode == DONE
    assert status(full_disk) == {"phase": "script", "exit_code": 7, "disk_full": True}


def test_results_on_a_full_disk_are_listed(full_disk: Path) -> None:
    start_in(full_disk, FILL, results=("big",))
    assert results(full_disk).names == (b"big",)


def test_a_run_on_a_full_disk_can_be_stopped(full_disk: Path) -> None:
    asks = b"rm ../may-run; exec sleep 1000"
    start_in(full_disk, FILL + asks, grace=TIMEOUT)
    assert status(full_disk) == {"phase": "script", "stopped": "asked", "disk_full": True}


def test_a_run_does_not_begin_without_room_for_its_end(full_disk: Path) -> None:
    stage(full_disk, b"true")
    subprocess.run(["sh", "-c", FILL], cwd=full_disk, capture_output=True, check=False)
    assert helper(full_disk, "staged", "start", "staged", "run").returncode == FULL
    assert not (full_disk / "run").exists()


def test_the_file_of_the_variables_is_removed(start: Start, tmp_path: Path) -> None:
    start(b"true", environment={b"SECRET": b"x"})
    assert not (tmp_path / "run/environment").exists()


def test_a_second_start_follows_the_first_run(start: Start) -> None:
    script = b"echo $$"
    assert start(script).stdout == start(script).stdout


def test_a_second_start_of_other_work_is_refused(start: Start) -> None:
    start(b"true")
    assert start(b"false").returncode == REFUSED


def test_a_follower_begins_where_another_ended(start: Start, tmp_path: Path) -> None:
    start(b"printf 12345; printf 678 >&2")
    done = helper(tmp_path, "run", "follow", "run", "3", "1")
    assert (done.stdout, done.stderr) == (b"45", b"78")
