"""The demo's jobs, and the expected outcome of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUEUE = "kestra.jobs"
MACHINE_QUEUE = "kestra.machines"
FLOW = "bridge.jobs/example"
MACHINE_FLOW = "bridge.jobs/vm-job"
BRANCH = "report"
SCRIPT = "report.sh"
NEVER_RUN = ("invalid_message", "flow_not_allowed")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends for RabbitMQ: done, or a dead letter with a reason; and after how many
    executions.
    """

    reason: str | None
    attempts: int

    def __str__(self) -> str:
        end = f"dead: {self.reason}" if self.reason else "done"
        usual = 0 if self.reason in NEVER_RUN else 1
        return end if self.attempts == usual else f"{end} in {self.attempts} runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message of the demo, and its expected outcome."""

    id: str
    priority: int
    what: str
    expected: Ending
    queue: str = QUEUE
    inputs: Mapping[str, Any] = field(default_factory=dict)
    flow: str | None = None
    timeout: float | None = None
    raw: str | None = None
    killed: bool = False
    """Whether its execution is killed in Kestra: once it has said its line, or soon after its start
    if it has none."""
    says: str | None = None
    """A line that Kestra's log must hold."""
    error: str = ""
    """What the dead letter's error must hold."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The result files, which must be in Kestra's storage, by their names there, and what is in
    them."""

    @property
    def line(self) -> str:
        """The job as `kestra-bridge submit` reads it."""
        optional = {"flow": self.flow, "timeout": self.timeout}
        given = {key: value for key, value in optional.items() if value is not None}
        return json.dumps(
            {"id": self.id, "priority": self.priority, "inputs": dict(self.inputs), **given}
        )

    @property
    def on_machine(self) -> bool:
        """Whether it runs on a machine of its own."""
        return self.queue == MACHINE_QUEUE


DONE = Ending(None, 1)
# The least urgent come first, so that what starts first is RabbitMQ's choice and not ours.
CASES = (
    Case(id="low", priority=1, what="waits for all others", expected=DONE),
    Case(id="low-sleeps", priority=1, what="sleeps 2 s", expected=DONE, inputs={"seconds": 2}),
    Case(id="warns", priority=3, what="ends in WARNING", expected=DONE, inputs={"warn": True}),
    Case(
        id="fails-first",
        priority=4,
        what="fails at first",
        expected=Ending(None, 2),
        inputs={"failFirst": True},
    ),
    Case(
        id="fails",
        priority=4,
        what="fails each time",
        expected=Ending("failed", 2),
        inputs={"fail": True},
    ),
    Case(id="middle", priority=5, what="sleeps 1 s", expected=DONE, inputs={"seconds": 1}),
    Case(
        id="not-json",
        priority=6,
        what="is no JSON",
        expected=Ending("invalid_message", 0),
        raw="Please run the usual thing, thanks!",
    ),
    Case(
        id="forbidden",
        priority=6,
        what="asks for a flow that isn't allowed",
        expected=Ending("flow_not_allowed", 0),
        flow="bridge.system/notifier",
    ),
    Case(
        id="too-slow",
        priority=7,
        what="sleeps 60 s, may take 2 s",
        expected=Ending("timed_out", 2),
        inputs={"seconds": 60},
        timeout=2,
    ),
    Case(
        id="killed",
        priority=8,
        what="sleeps 60 s and is killed in Kestra",
        expected=Ending("killed", 1),
        inputs={"seconds": 60},
        killed=True,
    ),
    Case(id="high-sleeps", priority=9, what="sleeps 1 s", expected=DONE, inputs={"seconds": 1}),
    Case(id="high", priority=9, what="goes before the others", expected=DONE),
)

REPOSITORY_FILES = {
    # On another branch than the one that is checked out there would be nothing to count.
    "data.csv": "a\nb\nc\n",
    SCRIPT: """\
rows=$(wc -l <data.csv)
printf 'day,rows\\n%s,%s\\n' "$DAY" "$rows" >report.csv
echo "$rows rows counted"
""",
}
"""What the branch holds that the first machine job checks out."""
HOSTILE = "$(reboot); `id` {{ 1 + 1 }} \"'"


def machine_cases(repository: str) -> tuple[Case, ...]:
    """The jobs that run on machines of their own; the repository is where machines find it."""
    return (
        Case(
            id="vm-branch",
            priority=5,
            what="runs a branch's script for a file",
            expected=DONE,
            queue=MACHINE_QUEUE,
            inputs={
                "git_repository": repository,
                "git_branch": BRANCH,
                "repository_script": SCRIPT,
                "variables": {"DAY": "2026-01-31"},
                "results": "report.csv",
            },
            says="3 rows counted",
            files={"results/report.csv": "day,rows\n2026-01-31,3\n"},
        ),
        Case(
            id="vm-text",
            priority=5,
            what="is given $(reboot) as a variable",
            expected=DONE,
            queue=MACHINE_QUEUE,
            inputs={"script": 'printf "%s\\n" "$TEXT"', "variables": {"TEXT": HOSTILE}},
            says=HOSTILE,
        ),
        Case(
            id="vm-fails",
            priority=5,
            what="exits with 3 each time",
            expected=Ending("failed", 2),
            queue=MACHINE_QUEUE,
            inputs={"script": "echo there is no data for that day >&2\nexit 3"},
            says="there is no data for that day",
            error="the script exited with 3",
        ),
        Case(
            id="vm-killed",
            priority=5,
            what="is killed in Kestra in mid-run",
            expected=Ending("killed", 1),
            queue=MACHINE_QUEUE,
            inputs={"script": "echo at work\nsleep 600"},
            killed=True,
            says="at work",
        ),
    )
