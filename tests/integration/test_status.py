"""What `kestra-bridge status` shows of real brokers, and what it says where a source is missing."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.paths import free_port
from tests.support.broker_stage import BrokerStage, Node, open_stage
from tests.support.harness import Bridge, eventually
from tests.support.in_process import command
from tests.support.standin import Ends

JOBS, PREFETCH = 5, 2


@dataclass(frozen=True, slots=True)
class Shown:
    """How a run of the command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.out)
        return data


async def status(stage: BrokerStage, *words: str, **settings: object) -> Shown:
    environment = stage.bridge(
        **{"management_url": stage.rabbit.management_url, **settings}
    ).environment
    ours = {name: value for name, value in environment.items() if name.startswith("BRIDGE_")}
    done = await command("status", *words, **ours)
    return Shown(done.code, done.out, done.err)


@pytest.fixture(params=[("3.10", "classic"), ("4.3", "quorum")], ids=lambda it: f"{it[0]}-{it[1]}")
async def stage(
    request: pytest.FixtureRequest, node: Node, tmp_path: Path
) -> AsyncIterator[BrokerStage]:
    """On those that tell the priorities."""
    series, kind = request.param
    async with open_stage(tmp_path, node(series), kind) as opened:
        yield opened


@pytest.fixture
async def busy(stage: BrokerStage) -> Bridge:
    """A replica that holds two jobs while three more are ready, one waits for its retry, and two
    are dead letters."""
    stage.kestra.flow("test", "slow", Ends(after=None))
    stage.kestra.flow("test", "failing", Ends("FAILED"))
    bridge = await stage.bridge(
        prefetch=PREFETCH, allowed_flows='["test/*"]', retry_delays="[600]"
    ).start()
    for job in ("bad-1", "bad-2"):
        await stage.submit(job, b"bad", priority=9)
    await stage.submit("again", {"flow": "test/failing"}, priority=9)
    for number in range(JOBS):
        await stage.submit(f"job-{number}", {"flow": "test/slow"}, priority=number % 2)
    await bridge.settled(2, settlement="dead_letter")
    await bridge.settled(settlement="retry")
    return bridge


async def test_queues_jobs_and_replicas_are_shown(stage: BrokerStage, busy: Bridge) -> None:
    async def settled_down() -> dict[str, Any]:
        found = (
            await status(stage, "--json", "--metrics", f"{busy.http}/metrics", retry_delays="[600]")
        ).data
        (lane,) = found["lanes"]
        numbers = lane["ready"], lane["in_flight"], sum((lane["by_priority"] or {}).values())
        return (
            found
            if numbers == (JOBS - PREFETCH, PREFETCH, JOBS - PREFETCH) and found["replicas"]
            else {}
        )

    found = await eventually(
        settled_down, "the management API tells of the queue's messages", every=0.5
    )
    (lane,), queue = found["lanes"], stage.queue
    shown = {
        "unknown": found["unknown"],
        "alarms": found["alarms"],
        "versions": (found["rabbitmq"]["version"], found["kestra"]["version"]),
        "lane": (lane["kind"], lane["consumers"]),
        "retries": [(retry["queue"], retry["messages"]) for retry in lane["retries"]],
        "dead": (lane["dead_letters"]["messages"], lane["dead_letters"]["reasons"]),
        "jobs": sorted((job["queue"], job["flow"], job["state"]) for job in found["jobs"]),
        "links": {
            job["url"].startswith(f"{stage.kestra.url}/ui/main/executions/test/slow/")
            for job in found["jobs"]
        },
        "replicas": [(each["prefetch"], each["reporter"]) for each in found["replicas"]],
        "oldest": found["oldest"]["what"],
    }
    assert shown == {
        "unknown": [],
        "alarms": [],
        "versions": (stage.rabbit.version, "2.0.0"),
        "lane": (stage.kind, 1),
        "retries": [(f"{queue}.retry.600", 1)],
        "dead": (2, {"invalid_message": 2}),
        "jobs": [(queue, "test/slow", "RUNNING")] * PREFETCH,
        "links": {True},
        "replicas": [({queue: PREFETCH}, True)],
        "oldest": "delivery",
    }


async def test_what_has_no_source_is_unknown_and_no_failure(one_stage: BrokerStage) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    shown = await status(
        one_stage, "--json", "--metrics", nowhere, management_url=nowhere, kestra_url=nowhere
    )
    parts = [text.partition(":")[0] for text in shown.data["unknown"]]
    assert (shown.code, parts) == (
        0,
        ["in flight, priorities, alarms, replicas", "jobs", "a replica's metrics"],
    )


async def test_kestra_may_be_left_out(one_stage: BrokerStage) -> None:
    shown = await status(one_stage, "--json", kestra_url="")
    assert (shown.code, shown.data["unknown"]) == (0, ["jobs: BRIDGE_KESTRA_URL is not set"])


async def test_a_broker_that_is_away_is_exit_1_and_the_rest_is_shown(
    one_stage: BrokerStage,
) -> None:
    shown = await status(one_stage, "--json", amqp_url=f"amqp://127.0.0.1:{free_port()}")
    assert (
        shown.code,
        shown.data["kestra"]["version"],
        shown.err.count("can't reach RabbitMQ"),
    ) == (1, "2.0.0", 1)


async def test_a_wrong_password_is_exit_2_and_is_not_shown(one_stage: BrokerStage) -> None:
    url = one_stage.rabbit.amqp_url.replace(one_stage.rabbit.password, "wrong-Passw0rd")
    shown = await status(one_stage, amqp_url=url)
    assert (shown.code, "wrong-Passw0rd" in shown.out + shown.err) == (2, False)


async def test_a_lane_that_was_never_declared_is_shown_as_not_there_and_stays_so(
    one_stage: BrokerStage,
) -> None:
    await status(one_stage)
    assert (await status(one_stage, "--json")).data["lanes"][0]["exists"] is False


async def test_watching_shows_it_again_and_again_until_interrupted(one_stage: BrokerStage) -> None:
    environment = one_stage.bridge(management_url=one_stage.rabbit.management_url).environment
    command = [sys.executable, "-m", "bridge", "status", "--json", "--watch", "0.5"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=-1, stderr=-1)
    assert process.stdout is not None
    lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert (
        await asyncio.wait_for(process.wait(), 30),
        [json.loads(line)["unknown"] for line in lines],
    ) == (
        0,
        [[], []],
    )


async def test_an_alarm_is_shown(node: Node, one_stage: BrokerStage) -> None:
    rabbit = node("4.3")
    await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:

        async def alarms() -> list[str]:
            found: list[str] = (await status(one_stage, "--json")).data["alarms"]
            return found

        assert await eventually(alarms, "an alarm", every=0.5) == ["memory on rabbit@localhost"]
    finally:
        await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.6")
