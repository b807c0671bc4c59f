"""The benchmarks run, and what they write can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.paths import REPOSITORY
from tests.benchmarks.__main__ import main
from tests.benchmarks.bridges import asked_for, requests_in
from tests.benchmarks.engine import TOLD, costs, notifier_source
from tests.benchmarks.measure import DEDUPLICATES, Asked, Case, Run


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks."""
    command = [sys.executable, "-m", "tests.benchmarks", *arguments, "--output", str(output)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.timeout(90)
def test_a_small_run_measures_every_case_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    done = run(output, "--only", "own", "--jobs", "30", "--rounds", "1")

    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    cases = [(one["case"]["prefetch"], one["case"]["deduplicate"]) for one in result["comparisons"]]
    assert cases == [(prefetch, how) for how in DEDUPLICATES for prefetch in (8, 64)]
    for one in result["comparisons"]:
        assert [(run["who"], run["jobs"]) for run in one["runs"]] == [
            ("bridge", 27),
            ("bare loop", 27),
        ]
        assert one["ratio"]["min"] <= one["ratio"]["median"] <= one["ratio"]["max"]
        assert one["ratio"]["min"] > 0
        assert one["runs"][0]["asked"]["create"]["requests"] == 1


@pytest.mark.timeout(90)
def test_jobs_in_flight_are_measured_and_adopted_by_the_next_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    done = run(output, "--only", "flight", "--jobs", "60", "--sweeps", "0")

    assert done.returncode == 0, done.stderr
    units = [figure["unit"] for figure in json.loads(output.read_text())["figures"]]
    assert units == ["s", "MB", "% of a core", "a second", "s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kestra-url", "http://k"], "--kestra-url and --amqp-url go together"),
        (["--amqp-url", "amqp://r"], "--kestra-url and --amqp-url go together"),
        (
            ["--kestra-url", "http://k", "--amqp-url", "amqp://r", "--only", "peers"],
            "--only peers uses servers of its own",
        ),
        (["--jobs", "0"], "0 is not a whole number above 0"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code, words in capsys.readouterr().err) == (2, True)


METRICS = """\
# HELP bridge_kestra_request_seconds Requests to Kestra.
# TYPE bridge_kestra_request_seconds histogram
bridge_kestra_request_seconds_count{operation="create",code="200"} 9
bridge_kestra_request_seconds_sum{operation="create",code="200"} 0.2
bridge_kestra_request_seconds_count{operation="create",code="none"} 1
bridge_kestra_request_seconds_sum{operation="create",code="none"} 0.3
"""


def test_requests_are_counted_by_operation_whatever_became_of_them() -> None:
    assert asked_for(requests_in(METRICS), 10) == {"create": Asked(1.0, 50.0)}


def test_a_jobs_requests_are_those_that_come_with_each_job() -> None:
    asked = {
        "create": Asked(1.0, 20.0),
        "find": Asked(0.5, 10.0),
        "ended": Asked(0.2, 4.0),
        "probe": Asked(0.1, 1.0),
    }
    run = Run(
        who="bridge",
        round=1,
        jobs=10,
        seconds=1.0,
        jobs_per_second=10.0,
        cpu_ms_per_job={"consumer": 2.0},
        peak_mb=60.0,
        load=0.0,
        executions_before=0,
        asked=asked,
    )
    figures = costs(Case(16, DEDUPLICATES[0]), [run])
    assert [(figure.value, figure.met) for figure in figures] == [(1.5, False), (2.0, True)]


@pytest.mark.parametrize("version", ["1.3.25", "2.0.0"])
def test_the_notifier_that_is_measured_tells_of_no_execution_of_the_bridge(version: str) -> None:
    source = notifier_source(version)
    assert ("amqp'" in source, "bridge: amqp" in source, TOLD in source) == (False, False, True)
