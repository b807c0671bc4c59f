"""The flows for machines as they ship: what holds for each task of theirs, read from their YAML alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge import flows

FLOWS = Path(__file__).resolve().parents[2] / "flows"
VM_JOB = FLOWS / "common/bridge.jobs/vm-job.yaml"
WEBHOOK_JOB = FLOWS / "common/bridge.jobs/webhook-job.yaml"
BATCHES = [FLOWS / f"kestra-{series}/bridge.jobs/vm-batch.yaml" for series in (1, 2)]
CLEANUPS = [FLOWS / f"kestra-{series}/bridge.system/vm-cleanup.yaml" for series in (1, 2)]
SHELL = "io.kestra.plugin.scripts.shell.Commands"
NAMES = {"bridge.jobs/vm-job", "bridge.jobs/webhook-job", "bridge.jobs/vm-batch", "bridge.system/vm-cleanup"}
OUTSIDE = re.compile(r"\b(inputs|labels|trigger)\.(\w+)")
NUMBERS = {"time_limit"}


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
    (task, *_) = read(path)["tasks"]
    found: dict[str, Any] = task["tasks"][0] if "tasks" in task else task
    return found


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
def test_all_but_the_script_s_run_is_tried_again_only_so_often(task: dict[str, Any]) -> None:
    assert task.get("retry", {}).get("maxAttempts") == (None if task["id"] == "run" else 3)


@every_task
def test_no_text_from_outside_reaches_an_environment_that_kestra_renders_once_more(task: dict[str, Any]) -> None:
    texts = [
        value
        for value in task.get("env", {}).values()
        if any(name not in NUMBERS for _, name in OUTSIDE.findall(value))
    ]
    assert [value for value in texts if not value.endswith("| base64encode }}")] == []


def test_the_machine_is_destroyed_whichever_way_its_job_ends() -> None:
    (task,) = read(VM_JOB)["finally"]
    assert "machine destroy" in task["commands"][0]


def test_a_job_that_is_done_does_not_fail_over_a_machine_that_stays() -> None:
    (task,) = read(VM_JOB)["finally"]
    assert task["allowFailure"] is True


def test_jobs_that_are_too_many_wait() -> None:
    assert read(VM_JOB)["concurrency"] == {"limit": 4, "behavior": "QUEUE"}


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.parts[-3])
def test_a_batch_has_no_more_jobs_at_once_than_may_run(path: Path) -> None:
    assert read(path)["tasks"][0]["concurrencyLimit"] <= read(VM_JOB)["concurrency"]["limit"]


@pytest.mark.parametrize("path", [WEBHOOK_JOB, *BATCHES], ids=lambda path: path.parts[-3])
def test_whatever_a_job_takes_can_be_handed_on_to_it_but_a_file(path: Path) -> None:
    taken = {given["id"] for given in read(VM_JOB)["inputs"] if given["type"] != "FILE"}
    assert set(subflow(path)["inputs"]) == taken


@pytest.mark.parametrize("path", [WEBHOOK_JOB, *BATCHES], ids=lambda path: path.parts[-3])
def test_the_defaults_that_are_handed_on_are_the_job_s_own(path: Path) -> None:
    handed = subflow(path)["inputs"]
    defaults = {given["id"]: given["defaults"] for given in read(VM_JOB)["inputs"] if "defaults" in given}
    told = {name: re.findall(r"\?\? '?([^ ')]*)'?", handed[name])[0] for name in defaults}
    assert told == {name: str(value) for name, value in defaults.items()}


def test_the_webhook_s_key_is_a_secret() -> None:
    (trigger,) = read(WEBHOOK_JOB)["triggers"]
    assert trigger["key"] == "{{ secret('BRIDGE_WEBHOOK_KEY') }}"


def test_the_batches_of_both_series_hand_on_the_same() -> None:
    first, second = (subflow(path)["inputs"] for path in BATCHES)
    assert {name: value.replace("taskrun.value", "item.value") for name, value in first.items()} == second


@pytest.mark.parametrize("path", CLEANUPS, ids=lambda path: path.parts[-3])
def test_machines_are_looked_after_at_every_bad_end(path: Path) -> None:
    trigger = next(one for one in read(path)["triggers"] if one["type"] == "io.kestra.plugin.core.trigger.Flow")
    assert set(trigger["states"]) == {"FAILED", "KILLED", "CANCELLED", "WARNING"}


@pytest.mark.parametrize("path", CLEANUPS, ids=lambda path: path.parts[-3])
def test_machines_are_looked_after_on_a_schedule_too(path: Path) -> None:
    assert "io.kestra.plugin.core.trigger.Schedule" in {trigger["type"] for trigger in read(path)["triggers"]}


def test_the_clean_ups_of_both_series_do_the_same() -> None:
    first, second = (read(path)["tasks"] for path in CLEANUPS)
    assert first == second
