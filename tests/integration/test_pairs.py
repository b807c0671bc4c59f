"""Two copies of each message, side by side in the queue, for replicas that are killed meanwhile.

`KESTRA_BRIDGE_PAIRS` is the number of pairs; with 2,000 a run takes minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from deploy.local.rabbitmq import RabbitMQ, Series
from deploy.local.rabbitmq_cluster import RabbitMQCluster
from tests.support.broker_stage import BrokerStage, Kind, Node, open_stage
from tests.support.harness import Bridge, eventually
from tests.support.standin import Standin
from tests.support.standin.model import Call

PAIRS = int(os.environ.get("KESTRA_BRIDGE_PAIRS", "40"))
REPLICAS = 4
SLOWEST = 3.0
PATIENCE = 120 + PAIRS / 4
"""Seconds."""


def slow_creates(kestra: Standin, dice: random.Random) -> None:
    """Have each create take up to `SLOWEST` seconds, before or after its work."""

    def slowly(_: Call) -> bool:
        fault.delay, fault.worked = dice.uniform(0, SLOWEST), dice.random() < 0.5
        return True

    fault = kestra.faults.add("create", times=None, when=slowly)


async def submit_pairs(stage: BrokerStage) -> None:
    for number in range(PAIRS):
        await stage.submit(f"job-{number}")
        await stage.submit(f"job-{number}")


async def trouble(
    stage: BrokerStage,
    replicas: list[Bridge],
    dice: random.Random,
    cluster: RabbitMQCluster | None = None,
) -> None:
    """Kill replicas one after the other, delete the ledger, and start one more in the middle.

    In a cluster the ledger gets another leader.
    """
    ledger = f"{stage.queue}.ledger"

    async def created(share: float) -> None:
        wanted = int(PAIRS * share)
        what = f"{wanted} executions"
        await eventually(lambda: len(stage.kestra.created) >= wanted, what, timeout=PATIENCE)

    for tenth in range(1, 9):
        await created(tenth / 10)
        if tenth == 3:
            await stage.client.channel.queue_delete(ledger)
        if tenth == 5:
            replicas.append(await replica(stage).start())
        if tenth == 7 and cluster:
            await asyncio.to_thread(move_leader, cluster, ledger)
        victim = dice.choice(replicas)
        victim.kill()
        await victim.start()


def replica(stage: BrokerStage) -> Bridge:
    return stage.bridge(prefetch=16, adopt_grace=10, ambiguous_wait=20)


def move_leader(cluster: RabbitMQCluster, stream: str) -> None:
    """Have another node lead the stream."""
    before = cluster.leader(stream)
    after = next(node for node in cluster.nodes if node is not before)
    preferred = ("--preferred-leader-node", after.node)
    after.ctl("restart_stream", stream, *preferred, program="rabbitmq-streams")


async def run_pairs(
    directory: Path, rabbit: RabbitMQ, kind: Kind, cluster: RabbitMQCluster | None = None
) -> tuple[dict[int, int], list[str], int]:
    """How many attempts have how many executions, which executions were killed, and how many
    messages are left."""
    dice = random.Random(PAIRS)  # noqa: S311
    async with open_stage(directory, rabbit, kind) as stage:
        slow_creates(stage.kestra, dice)
        replicas = [replica(stage) for _ in range(REPLICAS)]
        await asyncio.gather(*(each.start() for each in replicas))
        async with asyncio.TaskGroup() as group:
            group.create_task(submit_pairs(stage))
            group.create_task(trouble(stage, replicas, dice, cluster))

        async def settled() -> bool:
            if await stage.client.depth(stage.queue):
                return False
            return not sum([await each.metric("bridge_in_flight") for each in replicas])

        await eventually(settled, "every message settled", timeout=PATIENCE, every=0.5)
        await asyncio.gather(*(each.stop() for each in replicas))
        executions = Counter(stage.kestra.per_attempt().values())
        left = await stage.client.depth(stage.queue)
        return dict(executions), list(stage.kestra.kills), left


@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize(("series", "kind"), [("3.10", "classic"), ("4.3", "quorum")])
async def test_pairs_have_one_execution_each_and_none_is_killed(
    series: Series, kind: Kind, node: Node, tmp_path: Path
) -> None:
    assert await run_pairs(tmp_path, node(series), kind) == ({1: PAIRS}, [], 0)


@pytest.mark.timeout(4 * PATIENCE)
async def test_pairs_have_one_execution_each_while_the_ledger_gets_another_leader(
    tmp_path: Path,
) -> None:
    cluster = RabbitMQCluster(tmp_path / "cluster")
    try:
        await asyncio.to_thread(cluster.start)
        found = await run_pairs(tmp_path, cluster.nodes[0], "quorum", cluster)
    finally:
        cluster.kill()
    assert found == ({1: PAIRS}, [], 0)
