"""Batches, webhook calls and kills with real machines, on both series of Kestra, whose flows or
engines differ."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.machines.world import (
    GIT_SECRET,
    HOSTILE,
    NAMESPACE,
    PATIENCE,
    RESULT,
    MachineStage,
    most_at_once,
    pytestmark,
)
from tests.support.harness import eventually

__all__ = ["pytestmark"]

on_both = pytest.mark.parametrize("world", ["2.0", "1.3"], indirect=True)
on_2 = pytest.mark.parametrize("world", ["2.0"], indirect=True)
on_1_3_25 = pytest.mark.parametrize("world", ["1.3.25"], indirect=True)
"""Where a file that is an empty text is refused."""
on_1 = pytest.mark.parametrize("world", ["1.3"], indirect=True)
BATCH = f"{NAMESPACE}/vm-batch"
COPIED = f"left here{HOSTILE}".encode()
NAMES = {"2.0": RESULT, "1.3": "-out $(id) 'x"}
"""A result file's name. Kestra 1.3 can't keep one with braces, double quotes or spaces in it."""


async def copying(stage: MachineStage) -> dict[str, Any]:
    """A job whose one result file, under a hostile name, is a file of Kestra's storage and then a
    hostile text."""
    return {
        "script": 'cat input_file >"$NAME"; printf %s "$TEXT" >>"$NAME"; echo started',
        "variables": {"TEXT": HOSTILE, "NAME": NAMES[stage.world.engine.series]},
        "input_file": await stage.left_file(),
        "git_secret": GIT_SECRET,
        "results": "-*",
        "time_limit": 900,
    }


async def jobs_of(stage: MachineStage) -> list[str]:
    """The executions of jobs that there ever were."""
    return [one.id for one in await stage.search(**{"filters[flowId][EQUALS]": "vm-job"})]


@on_both
async def test_a_webhook_call_runs_the_same_job(stage: MachineStage) -> None:
    execution = await stage.call(**await copying(stage))
    assert await stage.end(execution) == "SUCCESS", await stage.said(execution)
    outputs = await stage.outputs(execution)
    ((path, address),) = outputs["results"].items()
    assert path == f"results/{NAMES[stage.world.engine.series]}"
    assert await stage.stored(address) == COPIED
    assert (outputs["machine"]["size"], outputs["machine"]["seconds"] > 0) == ("small", True)
    assert await stage.nothing_is_left()


@on_both
async def test_of_an_execution_that_is_killed_in_mid_run_no_machine_is_left(
    stage: MachineStage,
) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", script="echo started; sleep 1000")
        await stage.kill((await stage.speaking()).id)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert await stage.ran_once_an_attempt()
    assert await stage.nothing_is_left()


@on_both
async def test_of_a_batch_that_is_killed_while_its_machines_boot_none_is_left(
    stage: MachineStage,
) -> None:
    async with stage.bridge(flow=BATCH) as bridge:
        await stage.submit("one", jobs=[{"script": "sleep 1000"}] * 2)
        await eventually(
            lambda: len(stage.world.host.processes) == 2, "two machines", timeout=PATIENCE
        )
        (batch,) = await stage.executions()
        await stage.kill(batch.id)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert [one.id for one in await stage.executions()] == [batch.id]
    assert await stage.nothing_is_left()


@on_both
async def test_a_batch_with_a_job_that_no_machine_could_run_is_refused_before_any_begins(
    stage: MachineStage,
) -> None:
    bad = [
        {"script": "true"},
        {"script": "true", "git_branch": "main\n", "variables": {"A": 5, "B": "b"}},
        {"script": ["true"], "variables": "A=1", "time_limit": "soon"},
        {"script": "true", "input_file": "/etc/hostname"},
        {"script": "true", "git_secret": "') ~ secret('X", "git_lfs": "yes"},
    ]
    before = await jobs_of(stage)
    async with stage.bridge(flow=BATCH, max_attempts=1) as bridge:
        await stage.submit("one", jobs=bad)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    faults = [
        "job 1: git_branch is no text of one line",
        "job 1: the variable A is no text",
        "job 2: script is no text",
        "job 2: variables is no object",
        "job 2: time_limit is no number from 1 to 2592000",
        "job 3: input_file is not the address",
        "job 4: git_secret is no name",
    ]
    assert [fault for fault in faults if fault not in line["error"]] == []
    assert line["error"].startswith("task refuse ended FAILED: nothing was begun: job 1: ")
    assert await jobs_of(stage) == before


@on_2
async def test_a_batch_in_which_only_a_lost_machine_failed_runs_again_at_no_cost(
    stage: MachineStage,
) -> None:
    known = await jobs_of(stage)

    async def speaking() -> list[str]:
        new = [one for one in await jobs_of(stage) if one not in known]
        return [one for one in new if "started" in await stage.said(one)]

    script = "echo started; until [ -e ~/go ]; do sleep 0.1; done"
    async with stage.bridge(flow=BATCH, max_attempts=1) as bridge:
        await stage.submit("one", jobs=[{"script": script}])
        (first,) = await eventually(speaking, "the job of the first attempt", timeout=PATIENCE)
        (machine,) = stage.world.host.processes
        machine.kill()
        await bridge.settled(job="one", settlement="retry", timeout=PATIENCE)
        known.append(first)
        (second,) = await eventually(speaking, "the job of the second", timeout=PATIENCE)
        await stage.let_go(second)
        await bridge.settled(job="one", settlement="ack", timeout=PATIENCE)
    of_jobs = await stage.search(**{"filters[flowId][EQUALS]": "vm-job"})
    attempts = {one.id: one.labels.get("bridgeAttempt") for one in of_jobs}
    assert (attempts[first], attempts[second]) == ("1", "2")
    assert await stage.nothing_is_left()


@on_both
async def test_a_message_can_name_no_file_but_a_task_s(stage: MachineStage) -> None:
    files = (
        "/etc/hostname",
        "file:///etc/hostname",
        "kestra:///a/b/executions/c/inputs/d/e?/tasks/f/g",
    )
    async with stage.bridge(max_attempts=1) as bridge:
        for number, file in enumerate(files):
            await stage.submit(str(number), script="true", input_file=file)
        lines = await bridge.settled(len(files), settlement="dead_letter", timeout=PATIENCE)
    refusal = re.compile(
        "input_file has to be the address of a file that a task left|/etc/hostname "
        "is not authorized"
    )
    assert [line["error"] for line in lines if not refusal.search(line["error"])] == []


@on_both
async def test_a_variable_that_is_no_text_is_named_before_a_machine_is_made(
    stage: MachineStage,
) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", script="true", variables={"A": 5, "B": "b"})
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert line["error"].startswith("task refuse_variables ended FAILED: the variable A is no text")


HANDS_ON_AN_EMPTY_TEXT = """
id: hands-on-an-empty-text
namespace: bridge.jobs
tasks:
  - id: job
    type: io.kestra.plugin.core.flow.Subflow
    namespace: bridge.jobs
    flowId: vm-job
    inputs: {script: "true", input_file: ""}
"""


@on_1_3_25
async def test_on_1_3_25_an_empty_text_is_no_file(stage: MachineStage) -> None:
    await stage.deploy(HANDS_ON_AN_EMPTY_TEXT)
    execution = await stage.run(f"{NAMESPACE}/hands-on-an-empty-text")
    assert await stage.end(execution) == "FAILED"

    async def says_why() -> bool:
        return "No such file" in "".join(await stage.said(execution))

    # Kestra 1.3 writes its log a moment later.
    await eventually(says_why, "the reason in the log")


@on_1_3_25
async def test_on_1_3_25_a_webhook_call_needs_no_file(stage: MachineStage) -> None:
    execution = await stage.call(script="true", time_limit=900)
    assert await stage.end(execution) == "SUCCESS", await stage.said(execution)


@on_1_3_25
async def test_on_1_3_25_jobs_of_a_batch_need_no_file(stage: MachineStage) -> None:
    jobs = [{"script": "true"}, {"script": "true", "input_file": ""}, await copying(stage)]
    async with stage.bridge(flow=BATCH, max_attempts=1) as bridge:
        await stage.submit("one", jobs=jobs)
        (line,) = await bridge.settled(job="one", timeout=2 * PATIENCE)
    assert line["settlement"] == "ack", line


@on_1
async def test_on_1_3_a_batch_tells_of_each_job_and_fails_with_the_one_that_failed(
    stage: MachineStage,
) -> None:
    async with stage.bridge(flow=BATCH, max_attempts=1) as bridge:
        await stage.submit("one", jobs=[{"script": "exit 5"}, await copying(stage)])
        (line,) = await bridge.settled(job="one", timeout=2 * PATIENCE)
    first, second = (await stage.outputs(line["execution"]))["jobs"]
    assert (first["state"], second["state"]) == ("FAILED", "SUCCESS")
    assert f"job 0 ended in FAILED (execution {first['execution']})" in line["error"]
    assert [await stage.stored(address) for address in second["results"].values()] == [COPIED]
    assert await stage.nothing_is_left()


@on_2
async def test_of_a_batch_of_six_four_at_a_time_have_machines_and_the_one_that_fails_is_named(
    stage: MachineStage,
) -> None:
    jobs: list[dict[str, Any]] = [{"script": "true", "time_limit": 900} for _ in range(6)]
    jobs[2]["script"], jobs[5] = "exit 5", await copying(stage)
    reply_queue, results = await stage.client.reply_queue()
    async with stage.bridge(flow=BATCH, max_attempts=1) as bridge:
        await stage.client.submit(
            stage.queue, {"inputs": {"jobs": jobs}}, job="one", reply_to=reply_queue
        )
        most = await stage.most_machines(lambda: bridge.count("settled") > 0)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    (batch,) = await stage.executions()
    told = (await stage.outputs(batch.id))["jobs"]
    states = [(job["number"], job["state"]) for job in told]
    error = str(letter.headers["x-bridge-error"])
    assert states == [(number, "FAILED" if number == 2 else "SUCCESS") for number in range(6)]
    assert error.endswith(
        f"not all jobs went well: job 2 ended in FAILED (execution {told[2]['execution']})"
    )
    assert most == (4, 4)
    assert most_at_once([await stage.lifetime(job["execution"]) for job in told]) == 4
    assert [await stage.stored(address) for address in told[5]["results"].values()] == [COPIED]
    assert (await asyncio.wait_for(results.get(), PATIENCE))["outputs"]["jobs"] == told
    assert await stage.nothing_is_left()
