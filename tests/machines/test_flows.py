"""A job on a machine of its own, from a message to an ack: RabbitMQ, the bridge, Kestra's engine
and QEMU, all real."""

from __future__ import annotations

from bridge.machines.order import name_of
from tests.machines.world import (
    BRANCH,
    HARDLY_EVER,
    HOSTILE,
    NAMESPACE,
    PATIENCE,
    REPOSITORY_NAME,
    RESULT,
    SCRIPT,
    MachineStage,
    pytestmark,
)
from tests.support.harness import eventually

__all__ = ["pytestmark"]

HURRY = {"interval: PT5S": "interval: PT1S"}
"""Less time between a task's attempts."""
UNANSWERED = "did not answer by SSH within 1 s (BRIDGE_MACHINE_BOOT_TIMEOUT)"
UNTIL_LET_GO = "until [ -e ~/go ]; do sleep 0.1; done"


async def test_a_message_s_script_runs_on_a_machine_with_whatever_its_fields_hold(
    stage: MachineStage,
) -> None:
    greeting = f"{HOSTILE}\n\t{'x' * 100_000}\n\n"
    async with stage.bridge() as bridge:
        await stage.submit(
            HOSTILE,
            labels={"note": HOSTILE},
            git_repository=f"{stage.world.git}/{REPOSITORY_NAME}",
            git_branch=BRANCH,
            repository_script=SCRIPT,
            variables={"GREETING": greeting, "NAME": f"{RESULT}.txt"},
            results=f"{RESULT}*",
            size="small",
        )
        (line,) = await bridge.settled(job=HOSTILE, timeout=PATIENCE)
    assert line["settlement"] == "ack", await stage.said(line["execution"])
    assert await stage.result(line["execution"], f"{RESULT}.txt") == f"{greeting} of job".encode()
    assert await stage.ran_once_an_attempt(word="the script speaks")
    assert await stage.nothing_is_left()


async def test_a_script_that_fails_runs_again_on_another_machine_and_then_its_exit_code_is_told(
    stage: MachineStage,
) -> None:
    async with stage.bridge(max_attempts=2) as bridge:
        await stage.submit("one", script="echo started; uname -n; exit 5")
        await bridge.settled(2, job="one", timeout=2 * PATIENCE)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    assert [line["settlement"] for line in bridge.events("settled")] == ["retry", "dead_letter"]
    assert "the script exited with 5" in str(letter.headers["x-bridge-error"])
    assert await stage.ran_once_an_attempt(2)
    first, second = await stage.executions()
    for execution in (first, second):
        assert await stage.says(execution.id, name_of(execution.id))
    assert await stage.nothing_is_left()


async def test_a_machine_that_never_answers_is_given_up_for_another_and_a_dead_letter_says_so(
    stage: MachineStage,
) -> None:
    soon = {
        "    env:\n      JOB_EXECUTION": '    env:\n      BRIDGE_MACHINE_BOOT_TIMEOUT: "1"\n    '
        "  JOB_EXECUTION"
    }
    async with (
        stage.variant(f"{NAMESPACE}/vm-job", HURRY | soon) as flow,
        stage.frozen_machines(),
        stage.bridge(flow=flow, max_attempts=1) as bridge,
    ):
        await stage.submit("one", script="echo started")
        await bridge.settled(job="one", settlement="dead_letter", timeout=PATIENCE)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    assert UNANSWERED in str(letter.headers["x-bridge-error"])
    (execution,) = await stage.executions()

    async def given_up() -> bool:
        return sum(UNANSWERED in line for line in await stage.said(execution.id)) >= 3

    # Kestra 2.0 may run an attempt twice.
    assert await eventually(given_up, "three machines given up", timeout=PATIENCE)
    assert await stage.nothing_is_left()


async def test_a_job_whose_machine_dies_in_mid_run_runs_on_another_at_no_cost(
    stage: MachineStage,
) -> None:
    soon = {'machine run "$@" --outputs': 'machine run "$@" --outputs --reconnect 2'}
    async with (
        stage.variant(f"{NAMESPACE}/vm-job", HURRY | soon) as flow,
        stage.bridge(flow=flow, max_attempts=1) as bridge,
    ):
        await stage.submit("one", script=f"echo started; {UNTIL_LET_GO}")
        await stage.speaking()
        (machine,) = stage.world.host.processes
        machine.kill()
        (lost,) = await bridge.settled(job="one", settlement="retry", timeout=PATIENCE)
        second = await stage.speaking(after=1)
        await stage.let_go(second.id)
        await bridge.settled(job="one", settlement="ack", timeout=PATIENCE)
    assert "was lost" in lost["error"]
    assert (await stage.outputs(lost["execution"]))["machine"]["seconds"] > 0
    assert await stage.ran_once_an_attempt(2)
    assert await stage.nothing_is_left()


async def test_a_job_whose_bridge_dies_in_mid_run_is_adopted_by_the_next(
    stage: MachineStage,
) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", script=f"echo 'started {{{{ 1 + 1 }}}}'; {UNTIL_LET_GO}")
    execution = await stage.speaking("started {{ 1 + 1 }}")
    first.kill()
    await stage.let_go(execution.id)
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one", timeout=PATIENCE)
    assert (line["how"], line["settlement"], line["execution"]) == ("adopted", "ack", execution.id)
    assert await stage.ran_once_an_attempt(word="started {{ 1 + 1 }}")
    assert await stage.nothing_is_left()


async def test_a_job_whose_worker_dies_in_mid_run_is_taken_up_without_running_it_again(
    stage: MachineStage,
) -> None:
    async with stage.bridge(job_timeout=PATIENCE) as bridge:
        script = f"echo x >>../../starts; echo started; {UNTIL_LET_GO}; wc -l <../../starts >n"
        await stage.submit("one", script=script, results="n")
        execution = await stage.speaking()
        stage.world.engine.kill()
        # Not in another thread: a child process ends with the thread that started it.
        stage.world.engine.start()
        await stage.let_go(execution.id)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["execution"]) == ("ack", execution.id)
    assert [one.id for one in await stage.executions()] == [execution.id]
    assert await stage.result(execution.id, "n") == b"1\n"
    assert await stage.nothing_is_left()


async def test_a_file_that_is_given_to_a_job_lies_beside_its_script(stage: MachineStage) -> None:
    given = b"\x00 given {{ 1 + 1 }} \xff"
    execution = await stage.run(
        f"{NAMESPACE}/vm-job",
        script=(None, b"cat input_file >copy"),
        results=(None, b"copy"),
        input_file=("data.bin", given),
    )
    assert await stage.end(execution) == "SUCCESS", await stage.said(execution)
    assert await stage.result(execution, "copy") == given
    assert await stage.nothing_is_left()


async def test_the_schedule_destroys_what_is_past_its_deadline_or_its_execution_and_nothing_else(
    stage: MachineStage,
) -> None:
    ended = await stage.run(f"{NAMESPACE}/example")
    assert await stage.end(ended) == "SUCCESS"
    late, stays = stage.queue[:8], f"{stage.queue[:8]}-stays"
    for execution, deadline in ((ended, "600"), (late, "10"), (stays, "600")):
        assert (
            stage.world.host("create", "--execution", execution, "--deadline", deadline).returncode
            == 0
        )
    often = {HARDLY_EVER: 'cron: "*/2 * * * * *"\n    withSeconds: true'}
    async with stage.variant("bridge.system/vm-cleanup", often):
        await eventually(
            lambda: stage.world.host.folders == [name_of(stays)],
            "one machine is left",
            timeout=PATIENCE,
            every=0.1,
        )
    assert stage.world.host("destroy", "--execution", stays).returncode == 0
    assert await stage.nothing_is_left()
