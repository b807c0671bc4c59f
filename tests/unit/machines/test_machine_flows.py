"""The flows for machines as they ship: the rules for each of their tasks, and what their shells do
with any text."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperGroup

from bridge.cli.machine import app as machine_app
from bridge.operate import flows

FLOWS = Path(__file__).resolve().parents[3] / "flows"
VM_JOB = FLOWS / "common/bridge.jobs/vm-job.yaml"
WEBHOOK_JOB = FLOWS / "common/bridge.jobs/webhook-job.yaml"
BATCHES = [FLOWS / f"kestra-{series}/bridge.jobs/vm-batch.yaml" for series in (1, 2)]
CLEANUPS = [FLOWS / f"kestra-{series}/bridge.system/vm-cleanup.yaml" for series in (1, 2)]
SHELL = "io.kestra.plugin.scripts.shell.Commands"
NAMES = {
    "bridge.jobs/vm-job",
    "bridge.jobs/webhook-job",
    "bridge.jobs/vm-batch",
    "bridge.system/vm-cleanup",
}
OUTSIDE = re.compile(r"\b(inputs|labels|trigger)\.(\w+)")
NUMBERS = {"time_limit", "reconnect", "git_submodules", "git_lfs"}
"""The inputs whose value can be no expression, though some are no numbers."""
CHECKS = {"check", "refuse", "judge"}


def read(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(path.read_text())
    return parsed


def shell_tasks(path: Path) -> list[dict[str, Any]]:
    flow = read(path)
    return [task for task in flow["tasks"] + flow.get("finally", []) if task["type"] == SHELL]


TASKS = [
    pytest.param(task, id=f"{path.parts[-3]}-{task['id']}")
    for path in (VM_JOB, *CLEANUPS)
    for task in shell_tasks(path)
]
every_task = pytest.mark.parametrize("task", TASKS)


def subflow(path: Path) -> dict[str, Any]:
    tasks = [inner for task in read(path)["tasks"] for inner in task.get("tasks", [task])]
    (found,) = [task for task in tasks if task["type"] == "io.kestra.plugin.core.flow.Subflow"]
    return dict(found)


HOSTILE = (
    'it\'s "quoted"',
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "{{ secret('X') }}{% raw %}",
    "--help",
    "-rf",
    " padded ",
    "größer ☃ \u202e",
    "\\ %s \\n *?[!]",
    "x" * 4096,
)
BREAKING = ("first\nsecond", "ends\n", "\n", "a\0b", "bell\a", "delete\x7f")
"""What a shell would silently change."""
OPTIONS = {
    "git_branch": ("run", "git_branch"),
    "repository_script": ("run", "repository_script"),
    "results": ("run", "result"),
    "size": ("create", "size"),
    "bridgeJob": ("create", "job"),
}
"""The inputs, and the label, that become options, each with its command and its option."""


@dataclass(frozen=True)
class Called:
    """The options with which a task's shell called `kestra-bridge`, and the files that it left."""

    options: dict[str, Any]
    folder: Path

    def file(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def call(name: str, given: dict[str, Any], folder: Path) -> Called:
    """Run the shell of that task of vm-job as Kestra would, with a `kestra-bridge` that only
    records its arguments."""
    (task,) = [task for task in shell_tasks(VM_JOB) if task["id"] == name]
    command = folder / "bin/kestra-bridge"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" >arguments\n")
    command.chmod(0o755)
    for file, expression in re.findall(r"'([\w.]+)': ([^,}]+)", task.get("inputFiles", "")):
        (folder / file).write_text(rendered(expression, given) if "base64" in expression else "")
    environment = {key: rendered(value, given) for key, value in task["env"].items()}
    path = f"{command.parent}:{os.environ['PATH']}"
    script = "set -e\n" + "\n".join(task["commands"])
    subprocess.run(
        ["sh", "-c", script], cwd=folder, env=environment | {"PATH": path}, check=True, timeout=30
    )
    machine, *words = (folder / "arguments").read_bytes().decode().split("\0")[:-1]
    assert machine == "machine"
    commands = cast("TyperGroup", typer.main.get_command(machine_app)).commands
    return Called(commands[words[0]].make_context(words[0], words[1:]).params, folder)


def rendered(expression: str, given: dict[str, Any]) -> str:
    """What Kestra makes of the few expressions that vm-job has."""
    (name,) = set(re.findall(r"(?:inputs|labels|execution)\.(\w+)", expression))
    usual = {
        "id": "3xAbC",
        "time_limit": "60",
        "reconnect": "300",
        "variables": {},
        "bridgeAttempt": "1",
    }
    value = given.get(name, usual.get(name, ""))
    text = json.dumps(value) if "toJson" in expression else str(value)
    return base64.b64encode(text.encode()).decode() if "base64encode" in expression else text


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_text_reaches_its_own_option_unchanged_and_runs_nothing(
    name: str, value: str, tmp_path: Path
) -> None:
    task, option = OPTIONS[name]
    called = call(task, {name: value}, tmp_path)
    assert called.options[option] in (value, [value], (value,))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "bridgeJob"])
def test_kestra_accepts_every_text_that_would_reach_its_option(name: str, value: str) -> None:
    assert re.fullmatch(validator(name), value)


@pytest.mark.parametrize("value", [*BREAKING, "x" * 4097])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "bridgeJob"])
def test_kestra_refuses_a_text_that_would_reach_its_option_changed(name: str, value: str) -> None:
    assert not re.fullmatch(validator(name), value)


@pytest.mark.parametrize("name", ["results", "repository_script"])
@given(path=st.text(alphabet="./a*", min_size=1, max_size=8))
def test_kestra_refuses_the_paths_that_lead_out_of_the_folder(name: str, path: str) -> None:
    leads_out = path.startswith("/") or ".." in path.split("/")
    assert bool(re.fullmatch(validator(name), path)) is not leads_out


def test_jobs_and_batches_check_the_variables_alike() -> None:
    check = re.compile(r"\(\$job\.variables \| objects .*? else empty end\)", re.DOTALL)
    found = [text for path in (VM_JOB, *BATCHES) for text in check.findall(path.read_text())]
    assert (len(found), len({" ".join(text.split()) for text in found})) == (4, 1)


def test_variables_are_checked_before_a_machine_is_made() -> None:
    names = [task["id"] for task in read(VM_JOB)["tasks"]]
    assert names.index("refuse_variables") < names.index("create")


def test_a_lost_connection_is_given_up_before_the_task_is() -> None:
    (given,) = [given for given in read(VM_JOB)["inputs"] if given["id"] == "reconnect"]
    (task,) = [task for task in shell_tasks(VM_JOB) if task["id"] == "run"]
    assert task["timeout"] == "PT{{ inputs.time_limit + 1800 }}S"
    assert given["max"] < 1800


def validator(name: str) -> str:
    (given,) = [given for given in read(VM_JOB)["inputs"] if given["id"] == name]
    return str(given["validator"])


@pytest.mark.parametrize(
    "script", [*HOSTILE, *BREAKING, "kestra:///a/b", "x" * 300_000], ids=lambda text: text[:20]
)
def test_a_script_reaches_its_file_unchanged(script: str, tmp_path: Path) -> None:
    called = call("run", {"script": script}, tmp_path)
    assert (called.options["script"], called.file("script")) == ("script", script.encode())


@pytest.mark.parametrize(
    ("given", "option"),
    [("git_repository", "git_repository_file"), ("git_secret", "git_credentials")],
)
@pytest.mark.parametrize("value", [*HOSTILE, "https://u:s3cr3t@h/x"], ids=lambda text: text[:20])
def test_what_may_hold_a_password_reaches_a_file_that_nobody_else_may_read(
    given: str, option: str, value: str, tmp_path: Path
) -> None:
    called = call("run", {given: value}, tmp_path)
    name = called.options[option]
    assert (called.file(name), (tmp_path / name).stat().st_mode & 0o077) == (value.encode(), 0)
    assert value not in called.file("arguments").decode()


@pytest.mark.parametrize("name", ["git_submodules", "git_lfs"])
@pytest.mark.parametrize(("value", "is_set"), [("true", True), ("false", False)])
def test_an_input_that_is_true_or_false_sets_its_option(
    name: str, value: str, is_set: bool, tmp_path: Path
) -> None:
    assert call("run", {name: value}, tmp_path).options[name] is is_set


def test_the_number_of_the_attempt_reaches_its_option(tmp_path: Path) -> None:
    assert call("create", {"bridgeAttempt": "2"}, tmp_path).options["attempt"] == 2


def test_a_sender_can_name_no_secrets_but_those_for_git() -> None:
    (run,) = [task for task in shell_tasks(VM_JOB) if task["id"] == "run"]
    assert "secret('BRIDGE_GIT_' ~ inputs.git_secret)" in run["env"]["JOB_GIT_CREDENTIALS"]
    assert not re.fullmatch(validator("git_secret"), "x') ~ secret('BRIDGE_AMQP_PASSWORD")


def test_variables_reach_their_file_unchanged(tmp_path: Path) -> None:
    variables = {
        **{f"V{number}": value for number, value in enumerate(HOSTILE + BREAKING)},
        "$(id)": "x" * 300_000,
    }
    called = call("run", {"variables": variables}, tmp_path)
    assert json.loads(called.file(called.options["env_file"])) == variables


@pytest.mark.parametrize("version", ["1.3.25", "2.0.0"])
def test_every_server_gets_all_flows_for_machines(version: str) -> None:
    assert {str(found.name) for found in flows.shipped(version)} >= NAMES


@every_task
def test_a_task_runs_beside_the_worker_and_in_no_container(task: dict[str, Any]) -> None:
    assert task["taskRunner"] == {"type": "io.kestra.plugin.core.runner.Process"}


@every_task
def test_a_task_has_a_time_out(task: dict[str, Any]) -> None:
    assert task["timeout"].startswith("PT")


@every_task
def test_a_kill_reaches_the_command_itself_and_not_a_shell_around_it(task: dict[str, Any]) -> None:
    last = re.sub(r"\\\n\s*", "", task["commands"][-1].strip()).splitlines()[-1]
    assert last.startswith("exec kestra-bridge machine ")


@every_task
def test_everything_but_the_run_of_the_script_is_retried_a_few_times(task: dict[str, Any]) -> None:
    assert task.get("retry", {}).get("maxAttempts") == (None if task["id"] == "run" else 3)


@every_task
def test_no_text_from_outside_reaches_an_environment_that_kestra_renders_once_more(
    task: dict[str, Any],
) -> None:
    texts = [
        value
        for value in task.get("env", {}).values()
        if any(name not in NUMBERS for _, name in OUTSIDE.findall(value))
    ]
    assert [value for value in texts if not value.endswith("| base64encode }}")] == []


def test_the_machine_is_destroyed_however_its_job_ends() -> None:
    (task,) = read(VM_JOB)["finally"]
    assert "machine destroy" in task["commands"][0]


def test_a_job_that_is_done_does_not_fail_because_its_machine_stays() -> None:
    (task,) = read(VM_JOB)["finally"]
    assert task["allowFailure"] is True


def test_jobs_beyond_the_limit_wait() -> None:
    assert read(VM_JOB)["concurrency"] == {"limit": 4, "behavior": "QUEUE"}


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.parts[-3])
def test_a_batch_has_no_more_jobs_at_once_than_may_run(path: Path) -> None:
    (loop,) = [task for task in read(path)["tasks"] if "tasks" in task]
    assert loop["concurrencyLimit"] <= read(VM_JOB)["concurrency"]["limit"]


@pytest.mark.parametrize("path", [WEBHOOK_JOB, *BATCHES], ids=lambda path: path.parts[-3])
def test_every_input_of_a_job_can_be_passed_on_to_it(path: Path) -> None:
    assert set(subflow(path)["inputs"]) == {given["id"] for given in read(VM_JOB)["inputs"]}


def test_an_unknown_sender_can_name_no_file_but_a_tasks() -> None:
    patterns = {re.findall(r'"(\^kestra:.*?)"', path.read_text())[0] for path in (VM_JOB, *BATCHES)}
    (refuse,) = [task for task in read(VM_JOB)["tasks"] if task["id"] == "refuse"]
    assert (
        len(patterns),
        "labels.bridgeJob" in refuse["runIf"],
        "'webhook-job'" in refuse["runIf"],
    ) == (1, True, True)


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.parts[-3])
def test_a_batch_checks_every_input_of_its_jobs(path: Path) -> None:
    checked = read(path)["tasks"][0]["values"]["faults"]
    assert [given["id"] for given in read(VM_JOB)["inputs"] if given["id"] not in checked] == []


@pytest.mark.parametrize("path", [WEBHOOK_JOB, *BATCHES], ids=lambda path: path.parts[-3])
def test_the_defaults_that_are_passed_on_are_the_jobs_own(path: Path) -> None:
    handed = subflow(path)["inputs"]
    defaults = {
        given["id"]: given["defaults"] for given in read(VM_JOB)["inputs"] if "defaults" in given
    }
    told = {name: re.findall(r"\?\? '?([^ ')]*)'?", handed[name])[0] for name in defaults}
    assert told == {name: str(value) for name, value in defaults.items()} | {
        name: "false" for name, value in defaults.items() if value is False
    }


def test_the_webhooks_key_is_a_secret() -> None:
    (trigger,) = read(WEBHOOK_JOB)["triggers"]
    assert trigger["key"] == "{{ secret('BRIDGE_WEBHOOK_KEY') }}"


def test_the_batches_of_both_series_pass_on_the_same() -> None:
    first, second = (subflow(path)["inputs"] for path in BATCHES)
    assert {
        name: value.replace("taskrun.value", "item.value") for name, value in first.items()
    } == second


def test_the_batches_of_both_series_check_and_judge_the_same() -> None:
    first, second = (
        [task for task in read(path)["tasks"] if task["id"] in CHECKS] for path in BATCHES
    )
    assert (first, len(first)) == (second, len(CHECKS))


@pytest.mark.parametrize("path", CLEANUPS, ids=lambda path: path.parts[-3])
def test_machines_are_looked_after_at_every_bad_end(path: Path) -> None:
    trigger = next(
        one for one in read(path)["triggers"] if one["type"] == "io.kestra.plugin.core.trigger.Flow"
    )
    assert set(trigger["states"]) == {"FAILED", "KILLED", "CANCELLED", "WARNING"}


@pytest.mark.parametrize("path", CLEANUPS, ids=lambda path: path.parts[-3])
def test_machines_are_looked_after_on_a_schedule_too(path: Path) -> None:
    assert "io.kestra.plugin.core.trigger.Schedule" in {
        trigger["type"] for trigger in read(path)["triggers"]
    }


def test_the_clean_ups_of_both_series_do_the_same() -> None:
    first, second = (read(path)["tasks"] for path in CLEANUPS)
    assert first == second


@pytest.mark.parametrize("path", CLEANUPS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize(
    ("environment", "reaps"),
    [
        ({}, False),
        ({"BRIDGE_MACHINE_SECRET": "s"}, True),
        ({"BRIDGE_MACHINE_SECRET_FILE": "/f"}, True),
    ],
)
def test_the_cleanup_reaps_wherever_machines_have_a_secret(
    path: Path, environment: dict[str, str], reaps: bool, tmp_path: Path
) -> None:
    command = tmp_path / "bin/kestra-bridge"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\ntest "$*" = "machine reap" && touch reaped\n')
    command.chmod(0o755)
    (task,) = shell_tasks(path)
    script = "set -e\n" + "\n".join(task["commands"])
    search = {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment | search, check=True, timeout=30
    )
    assert (tmp_path / "reaped").exists() is reaps
