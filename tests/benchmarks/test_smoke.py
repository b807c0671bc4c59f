"""The benchmark runs, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.paths import REPOSITORY


@pytest.mark.timeout(90)
def test_a_small_run_measures_every_case_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        "--only",
        "own",
        "--jobs",
        "30",
        "--rounds",
        "1",
    ]

    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert {
        (one["case"]["prefetch"], one["case"]["deduplicate"]) for one in result["comparisons"]
    } == {
        (8, "always"),
        (64, "always"),
        (8, "redelivered"),
        (64, "redelivered"),
    }
    for one in result["comparisons"]:
        assert [(run["who"], run["jobs"]) for run in one["runs"]] == [
            ("bridge", 27),
            ("bare loop", 27),
        ]
        assert one["ratio"]["min"] <= one["ratio"]["median"] <= one["ratio"]["max"]
        assert one["ratio"]["min"] > 0


@pytest.mark.timeout(90)
def test_jobs_in_flight_are_measured_and_adopted_by_the_next_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        "--only",
        "flight",
        "--jobs",
        "60",
        "--sweeps",
        "0",
    ]

    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    units = [figure["unit"] for figure in json.loads(output.read_text())["figures"]]
    assert units == ["s", "MB", "% of a core", "per sweep", "s"]
