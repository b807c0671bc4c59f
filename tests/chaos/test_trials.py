"""Short trials, everything failing at once: no job is lost, acked early, run twice, stuck or a dead
letter for nothing.

`tests/chaos/run --jobs 10000` is the same at length.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.paths import REPOSITORY


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("broker", "jobs", "replicas"), [("cluster", 200, 3), ("3.10", 60, 1)], ids=str
)
def test_every_promise_holds_while_everything_fails(
    broker: str, jobs: int, replicas: int, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.chaos",
        "--broker",
        broker,
        "--jobs",
        str(jobs),
        "--replicas",
        str(replicas),
    ]
    done = subprocess.run(
        [*command, "--seed", "4", "--directory", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    *_, verdict = done.stdout.splitlines() or [""]
    assert verdict.startswith(f"PASS {jobs} jobs"), f"{done.stdout}\n{done.stderr}"
