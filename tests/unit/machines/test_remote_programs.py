"""The two programs on a machine, run in a folder of this host without SSH."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.machines.run import remote_checkout, remote_helper, remote_supervisor
from bridge.machines.run.remote_helper import DONE, REFUSED
from bridge.machines.run.work import Work

TIMEOUT = 60.0

Finished = subprocess.CompletedProcess[bytes]
Start = Callable[..., Finished]


def helper(home: Path, folder: str, *arguments: str) -> Finished:
    return subprocess.run(
        [sys.executable, "-I", f"{folder}/helper.py", *arguments],
        cwd=home,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Stages a run of that script, starts it, and follows it to its end."""

    def start(script: bytes, **fields: Any) -> Finished:
        work = Work(run_id="run", script=script, **fields)
        staged = tmp_path / "staged"
        (staged / "files").mkdir(parents=True)
        shutil.copy(remote_helper.__file__, staged / "helper.py")
        shutil.copy(remote_supervisor.__file__, staged / "supervisor.py")
        if work.credentials_file is not None:
            shutil.copy(remote_checkout.__file__, staged / "checkout.py")
            (staged / "credentials").write_bytes(work.credentials_file)
        (staged / "request.json").write_bytes(work.request)
        (staged / "environment").write_bytes(work.environment_file)
        (staged / "digest").write_text(work.digest())
        (staged / "script").write_bytes(script)
        return helper(tmp_path, "staged", "start", "staged", "run")

    return start


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


def test_a_script_that_can_not_be_started_fails_in_the_preparation(
    start: Start, tmp_path: Path
) -> None:
    start(b"#!/no/such/program\n")
    assert status(tmp_path) == {
        "phase": "prepare",
        "error": "the script can't be started: No such file or directory",
    }


def test_the_results_are_listed_even_after_a_failure(start: Start, tmp_path: Path) -> None:
    start(b"mkdir -p out; touch out/a.csv .b.csv; ln -s / out/c; exit 1", results=("**/*.csv",))
    assert (tmp_path / "run/results").read_bytes() == b"out/a.csv\0"


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
