"""The demo says that all is well only if it is, can be read on any screen, and leaves no machine
behind."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from deploy.local.demo import screen, verdict
from deploy.local.demo.__main__ import _how_to_reach, forget_settings
from deploy.local.demo.host import TOOLS, Host, NoMachinesError, check
from deploy.local.demo.jobs import CASES, Case, Ending, machine_cases
from deploy.local.demo.stack import Stack, script_lines
from deploy.local.demo.telling import Replies, tellers
from deploy.local.demo.verdict import Check, Look, Returned, Verdict
from tests.support.commands import unknown_in

WIDTHS = (80, 100, 140, 160)
ALL_CASES = (*CASES, *machine_cases("git://host.internal:40000/repository"))
BY_ID = {case.id: case for case in ALL_CASES}
BRANCH, FAILS, KILLED = BY_ID["vm-branch"], BY_ID["vm-fails"], BY_ID["vm-killed"]
ERROR = (
    "task run ended FAILED: no data; kestra-bridge: machine of execution 51S4knriTuDRad: the "
    "script exited with 3"
)
BEGAN = datetime(2026, 1, 31, tzinfo=UTC)


def execution(job: str, *, number: int = 1, after: float = 0.0) -> Execution:
    began = BEGAN + timedelta(seconds=after)
    labels = {JOB_LABEL: job, ATTEMPT_LABEL: str(number)}
    return Execution(
        id=f"{job}-{number}-{after}",
        flow=FlowName("bridge.jobs", "example"),
        state=State.SUCCESS,
        labels=labels,
        started=began,
        ended=began,
    )


def as_expected(case: Case) -> Verdict:
    """The verdict on a job of which everything became as it should."""
    returned = Returned(said=[case.says] if case.says else [], files=case.files)
    error = ERROR if case.expected.reason else None
    return Verdict(case, case.expected, "51S4knriTuDRaduGu5FNSu", "SUCCESS", error, returned)


# What is shown.


def shown(width: int, verdicts: list[Verdict], *checks: Check) -> list[str]:
    """The lines of a report of that width, where the output is no terminal."""
    console = Console(file=io.StringIO(), width=width)
    screen.report(console, verdicts, checks)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_is_no_wider_than_the_screen(width: int) -> None:
    assert max(map(len, shown(width, [as_expected(case) for case in ALL_CASES]))) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_each_job_has_one_line_that_says_what_was_expected_and_what_became_of_it(
    width: int,
) -> None:
    lines = shown(width, [as_expected(case) for case in ALL_CASES])
    for case in ALL_CASES:
        assert [
            line
            for line in lines
            if line.split()[:1] == [case.id] and line.count(str(case.expected)) >= 2 and "✓" in line
        ]


@pytest.mark.parametrize("width", WIDTHS)
def test_what_came_back_from_machines_is_shown(width: int) -> None:
    text = " ".join(" ".join(shown(width, [as_expected(case) for case in ALL_CASES])).split())
    assert "results/report.csv day,rows | 2026-01-31,3" in text
    for case in ALL_CASES:
        assert case.says is None or case.says in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_that_changes_is_no_wider_than_the_screen_and_a_line_for_each_job(
    width: int,
) -> None:
    looks = {
        case.id: Look("SUCCESS, again in 2 s", 1, "51S4knriTuDRaduGu5FNSu") for case in ALL_CASES
    }
    console = Console(file=io.StringIO(), width=width)
    console.print(screen.live_view(ALL_CASES, looks, "4 machines at this moment", console.width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert (len(lines), max(map(len, lines)) <= width) == (len(ALL_CASES) + 3, True)


def test_what_is_not_as_expected_is_named() -> None:
    lines = shown(
        80,
        [replace(as_expected(FAILS), error="no reason")],
        Check("No machine is left", False, "1 folders"),
    )
    assert "✗ vm-fails: its error lacks 'the script exited with 3'" in [
        line.strip() for line in lines
    ]
    assert "✗ No machine is left (1 folders)" in lines


# When all is well.


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.id)
def test_a_job_of_which_everything_became_as_expected_is_ok(case: Case) -> None:
    assert as_expected(case).ok


@pytest.mark.parametrize(
    "wrong",
    [
        replace(as_expected(FAILS), error="task run ended FAILED: the script exited with 4"),
        replace(as_expected(FAILS), error=None),
        replace(as_expected(FAILS), ended=Ending("failed", 1)),
        replace(as_expected(FAILS), ended=None),
        replace(as_expected(KILLED), ended=Ending("failed", 1)),
        replace(as_expected(KILLED), returned=Returned(said=["something else"])),
        replace(as_expected(BRANCH), returned=Returned(said=["3 rows counted"])),
        replace(
            as_expected(BRANCH),
            returned=Returned(said=["3 rows counted"], files={"results/report.csv": ""}),
        ),
    ],
    ids=lambda wrong: "; ".join(wrong.faults),
)
def test_a_job_of_which_something_became_otherwise_is_not(wrong: Verdict) -> None:
    assert not wrong.ok


def test_a_job_is_done_only_if_its_publisher_was_told_so() -> None:
    runs = [execution("vm-text")]
    assert verdict.judge(BY_ID["vm-text"], runs, None, None, Returned()).ended is None
    told = verdict.judge(
        BY_ID["vm-text"], runs, None, {"job": "vm-text", "attempts": 1}, Returned()
    )
    assert told.ended == Ending(None, 1)


def test_a_dead_letter_is_what_rabbitmq_holds_whatever_the_publisher_was_told() -> None:
    letter = {"x-bridge-reason": "failed", "x-bridge-error": ERROR}
    runs = [execution("vm-fails", number=1), execution("vm-fails", number=2)]
    found = verdict.judge(
        FAILS, runs, letter, {"job": "vm-fails", "attempts": 2}, Returned(said=[str(FAILS.says)])
    )
    assert (found.ended, found.error, found.ok) == (Ending("failed", 2), ERROR, True)


@pytest.mark.parametrize(
    ("most", "processes", "folders", "expected"),
    [
        (4, 0, 0, [True, True]),
        (2, 0, 0, [True, True]),
        (1, 0, 0, [False, True]),
        (4, 1, 0, [True, False]),
        (4, 0, 1, [True, False]),
    ],
)
def test_several_machines_must_have_run_at_once_and_none_be_left(
    most: int, processes: int, folders: int, expected: list[bool]
) -> None:
    assert [check.ok for check in verdict.machine_checks(most, processes, folders)] == expected


def test_a_lower_priority_that_began_long_before_a_higher_one_is_out_of_order() -> None:
    early = {"low": [execution("low")], "high": [execution("high", after=5)]}
    at_once = {"low": [execution("low")], "high": [execution("high", after=0.1)]}
    assert [verdict.order_check(CASES, runs, 3).ok for runs in (early, at_once)] == [False, True]


def test_two_executions_of_one_attempt_are_found() -> None:
    twice = {"low": [execution("low"), execution("low", after=1)]}
    assert [verdict.single_check(runs).ok for runs in (twice, {"low": [execution("low")]})] == [
        False,
        True,
    ]


def test_a_dead_letter_that_stands_there_twice_is_found() -> None:
    letters = [
        {"message_id": case.id, "headers": {"x-bridge-reason": case.expected.reason}}
        for case in ALL_CASES
        if case.expected.reason
    ]
    found = [
        verdict.dead_letter_check(ALL_CASES, each).ok
        for each in (letters, [*letters, letters[0]], letters[1:])
    ]
    assert found == [True, False, False]


RUNS = ["low-1", "high-1"]


@pytest.mark.parametrize(
    ("replies", "ok", "seen"),
    [
        ({"low-1": {"reporter"}, "high-1": {"reporter"}}, True, "2 of 2 ends"),
        ({"low-1": {"reporter"}}, False, "1 of 2 ends"),
        ({"low-1": {"reporter"}, "high-1": {"reporter", "notifier"}}, False, "1 of 2 ends"),
    ],
    ids=["all", "one missing", "somebody else, too"],
)
def test_the_reporter_alone_must_have_told_of_every_end(
    replies: Replies, ok: bool, seen: str
) -> None:
    check = verdict.reporter_check(RUNS, replies)
    assert (check.ok, check.seen) == (ok, seen)


@pytest.mark.parametrize(
    ("replies", "ok", "seen"),
    [
        ({"low-1": {"reporter", "notifier"}}, True, "told by notifier, reporter"),
        ({"low-1": {"reporter"}}, False, "told by reporter"),
        ({}, False, "told by nobody"),
    ],
    ids=["both", "the reporter", "nobody"],
)
def test_the_notifier_must_have_told_of_the_end_once_it_is_deployed(
    replies: Replies, ok: bool, seen: str
) -> None:
    check = verdict.notifier_check("low-1", replies)
    assert (check.ok, check.seen) == (ok, seen)


def test_what_the_reporter_says_to_replicas_tells_of_no_end() -> None:
    bodies: list[dict[str, object]] = [
        {"executionId": "a"},
        {"executionId": "b", "by": "reporter"},
        {"by": "reporter", "unfinished": ["c"]},
    ]
    assert list(tellers(bodies)) == [("a", "notifier"), ("b", "reporter")]


def test_of_a_log_only_what_the_script_printed_is_its_output() -> None:
    rows = [
        ("create", "INFO", "machine created"),
        ("run", "DEBUG", "Starting command with pid 7"),
        ("run", "INFO", "one\ntwo"),
        ("run", "ERROR", "three"),
        (
            "run",
            "ERROR",
            "kestra-bridge: machine of execution x: the script exited with 3 after 0.1 s",
        ),
        ("run", "ERROR", "Command failed with exit code 3"),
        ("run", "WARN", "Killing process 7"),
    ]
    log = [{"taskId": task, "level": level, "message": message} for task, level, message in rows]
    assert script_lines(log) == ["one", "two", "three"]


# This host.


def test_machines_are_had_where_all_tools_are() -> None:
    check(lambda tool: tool in TOOLS, "x86_64")


def test_a_tool_that_is_missing_is_named_with_its_package_and_what_to_do_without() -> None:
    with pytest.raises(
        NoMachinesError,
        match=r"need qemu-img, .*\(Debian: apt-get install qemu-utils\); --no-machines",
    ):
        check(lambda tool: tool != "qemu-img", "x86_64")


def test_another_processor_is_said_to_be_the_reason() -> None:
    with pytest.raises(NoMachinesError, match="this is aarch64"):
        check(lambda tool: tool in TOOLS, "aarch64")


def test_nobody_elses_settings_reach_what_is_started() -> None:
    environment = {"BRIDGE_MACHINE_PROVIDER": "ec2", "PATH": "/bin"}
    forget_settings(environment)
    assert environment == {"PATH": "/bin"}


Start = Callable[[Host, str], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts what looks like a machine's process, and returns its id once it runs.

    Until then, the kernel may show an empty command line for it.
    """
    started: list[subprocess.Popen[bytes]] = []

    def begin(host: Host, name: str) -> int:
        folder = host.folder / name
        folder.mkdir(parents=True)
        words = [
            "qemu-system-x86_64",
            "-c",
            "import time; print('running', flush=True); time.sleep(600)",
            f"guest={name}",
            f"{folder}/disk",
        ]
        process = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        return process.pid

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def test_machines_are_counted_by_process_and_by_folder(tmp_path: Path, start: Start) -> None:
    host = Host(tmp_path)
    started = [start(host, "kestra-one"), start(host, "kestra-two")]
    (host.folder / ".lock").touch()
    (host.folder / ".kestra-three").mkdir()
    assert sorted(one.pid for one in host.processes()) == sorted(started)
    assert (host.running(), host.folders()) == (2, [".kestra-three", "kestra-one", "kestra-two"])


def test_the_end_leaves_no_process_of_a_machine_and_touches_no_other(
    tmp_path: Path, start: Start
) -> None:
    host, other = Host(tmp_path / "one"), Host(tmp_path / "other")
    ours, theirs = start(host, "kestra-one"), start(other, "kestra-one")
    host.end()
    assert (psutil.pid_exists(ours), psutil.pid_exists(theirs)) == (False, True)


def test_what_to_do_next_names_commands_that_there_are() -> None:
    rabbit = SimpleNamespace(version="4.3", management_url="http://m", username="u", password="p")
    engine = SimpleNamespace(url="http://k", username="u", password="p")
    stack = SimpleNamespace(
        rabbit=rabbit,
        engine=engine,
        host=None,
        directory=Path("/d"),
        settings={},
        lines=lambda _: [{}],
    )
    text = _how_to_reach(stack)  # type: ignore[arg-type]
    words = [
        line.partition("kestra-bridge ")[2]
        for line in text.splitlines()
        if "bin/kestra-bridge " in line
    ]
    assert {word.split()[0] for word in words} == {"submit", "status", "dead-letters", "doctor"}
    assert [word for word in map(unknown_in, words) if word] == []


def test_its_settings_lead_to_the_management_api_and_to_the_default_virtual_host(
    tmp_path: Path,
) -> None:
    rabbit = SimpleNamespace(amqp_url="amqp://u:p@h:1/", management_url="http://h:2")
    engine = SimpleNamespace(url="http://k", username="u", password="p")
    settings = Stack(rabbit, engine, tmp_path, None).settings  # type: ignore[arg-type]
    assert (settings["BRIDGE_AMQP_URL"], settings["BRIDGE_MANAGEMENT_URL"]) == (
        "amqp://u:p@h:1",
        "http://h:2",
    )
