"""Dead letters of jobs that Kestra's real engine ran: looked at, put back, and left where a restart
has succeeded."""

from __future__ import annotations

from tests.support.engine_stage import EngineStage
from tests.support.harness import Bridge, Ended, eventually
from tests.support.in_process import command

FLOW = """
id: fails-at-first
namespace: {namespace}
tasks:
  - {{id: prepare, type: io.kestra.plugin.core.log.Log, message: preparing}}
  - id: work
    type: io.kestra.plugin.core.execution.Fail
    condition: >-
      {{{{ labels.bridgeAttempt == '1' and (labels.system.restarted ?? 'false') == 'false' }}}}
    errorMessage: the disk is full
"""

LINGERING = f"""{FLOW}
  - id: once-more
    type: io.kestra.plugin.core.flow.If
    condition: "{{{{{{{{ (labels.system.restarted ?? 'false') == 'true' }}}}}}}}"
    then:
      - {{{{id: linger, type: io.kestra.plugin.core.flow.Sleep, duration: PT10M}}}}
"""


async def dead_letters(bridge: Bridge, *words: str) -> Ended:
    """What the command says to the bridge's own settings."""
    ours = {name: value for name, value in bridge.environment.items() if name.startswith("BRIDGE_")}
    return await command("dead-letters", *words, **ours)


async def dead_jobs(stage: EngineStage, *jobs: str, flow: str = FLOW) -> Bridge:
    """A bridge that gives each job one attempt, and these jobs, which failed at it."""
    await stage.deploy(flow.format(namespace=stage.name))
    bridge = await stage.bridge(flow=f"{stage.name}/fails-at-first", max_attempts=1).start()
    for job in jobs:
        await stage.submit(job, priority=7)
    await bridge.settled(len(jobs), settlement="dead_letter")
    return bridge


async def test_a_job_that_failed_is_listed_shown_replayed_and_succeeds(stage: EngineStage) -> None:
    bridge = await dead_jobs(stage, "day-1")
    (execution,) = await stage.executions()
    (row,) = (await dead_letters(bridge, "list", "--json")).rows
    assert (row["job"], row["reason"], row["execution"]) == ("day-1", "failed", execution.id)

    shown = (await dead_letters(bridge, "show", "day-1")).out
    print(shown)
    link = f"{stage.engine.url}/ui/main/executions/{stage.name}/fails-at-first/{execution.id}"
    wanted = (
        "Failed task work",
        "ERROR the disk is full",
        f"{execution.id} is FAILED now",
        link,
        "priority: 7",
    )
    assert [told for told in wanted if told not in shown] == []

    done = await dead_letters(bridge, "replay", "day-1")
    assert (done.code, done.out) == (0, f"1 job is back in {stage.queue}\n"), done.err
    (line,) = await bridge.settled(settlement="ack")
    assert (line["job"], line["attempt"], line["state"]) == ("day-1", 2, "SUCCESS")
    assert (await dead_letters(bridge, "list", "--json")).out == ""


async def test_jobs_that_an_operator_restarted_in_kestra_with_success_are_not_run_again(
    stage: EngineStage,
) -> None:
    bridge = await dead_jobs(stage, "restarted", "revised", "left")
    execution = {each.labels["bridgeJob"]: each.id for each in await stage.executions()}
    fixed = FLOW.format(namespace=stage.name).replace("labels.bridgeAttempt == '1'", "false")
    await stage.replace("fails-at-first", fixed)
    await stage.restart(execution["restarted"])
    await stage.restart(execution["revised"], revision="2")

    async def succeeded() -> bool:
        found = await stage.executions()
        return {each.labels["bridgeJob"] for each in found if each.state == "SUCCESS"} == {
            "restarted",
            "revised",
        }

    await eventually(succeeded, "what was restarted has succeeded")
    done = await dead_letters(bridge, "replay", "--all", "--json")
    results = {row["job"]: row["result"] for row in done.rows}
    assert results == {"restarted": "succeeded", "revised": "succeeded", "left": "replayed"}
    await bridge.settled(settlement="ack", job="left")

    await dead_letters(bridge, "replay", "--all", "--discard-succeeded")
    assert (await dead_letters(bridge, "list", "--json")).out == ""
    attempts = sorted(
        (each.labels["bridgeJob"], each.labels["bridgeAttempt"])
        for each in await stage.executions()
    )
    assert attempts == [
        ("left", "1"),
        ("left", "2"),
        ("restarted", "1"),
        ("revised", "1"),
        ("revised", "1"),
    ]


async def test_a_job_that_an_operator_restarted_and_that_runs_is_left_alone_until_it_has_ended(
    stage: EngineStage,
) -> None:
    bridge = await dead_jobs(stage, "again", flow=LINGERING)
    (execution,) = await stage.executions()
    await stage.restart(execution.id)
    (running,) = await stage.running()
    done = await dead_letters(bridge, "replay", "--all", "--json")
    (row,) = done.rows
    assert (running.id, done.code, row["result"], row["why"]) == (
        execution.id,
        0,
        "running",
        f"execution {execution.id} is RUNNING again",
    )
    await stage.kill(running)

    async def replayed() -> bool:
        return [
            row["result"] for row in (await dead_letters(bridge, "replay", "--all", "--json")).rows
        ] == ["replayed"]

    await eventually(replayed, "what was killed is put back", every=0.3)
