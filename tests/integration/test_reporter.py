"""The reporter on a real RabbitMQ: replicas learn of ends without a notifier, whoever dies."""

from __future__ import annotations

import asyncio

from tests.support.broker_stage import BrokerStage
from tests.support.harness import Bridge, eventually
from tests.support.standin import Ends

JOBS = 6


async def reporter_among(bridges: list[Bridge]) -> Bridge:
    """The replica that reports, once there is one."""

    async def found() -> list[Bridge]:
        return [bridge for bridge in bridges if await bridge.metric("bridge_reporter")]

    (reporter,) = await eventually(found, "one replica is the reporter")
    return reporter


async def test_ends_are_told_after_the_reporter_was_killed(stage: BrokerStage) -> None:
    kestra = stage.kestra
    kestra.replies.on_end = None
    kestra.flow("test", "job", Ends(after=None))
    bridges = [stage.bridge(prefetch=JOBS, reconcile_interval=600) for _ in range(2)]
    await asyncio.gather(*(bridge.start() for bridge in bridges))
    reporter = await reporter_among(bridges)
    (other,) = {*bridges} - {reporter}
    for number in range(JOBS):
        await stage.submit(f"job-{number}")
    await kestra.until(lambda: len(kestra.created) == JOBS, "all jobs run")
    reporter.kill()
    for run in list(kestra.executions.values()):
        await kestra.end(run.id)
    await eventually(
        lambda: sum(bridge.count("settled", settlement="ack") for bridge in bridges) == JOBS,
        "all jobs are settled",
    )
    assert await other.metric("bridge_reporter") == 1
    assert kestra.per_attempt() == {(f"job-{number}", "1"): 1 for number in range(JOBS)}
