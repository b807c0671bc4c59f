"""Real RabbitMQ nodes of several versions, each started once, and a stage on them for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.broker_stage import FRESH, BrokerStage, Node, open_stage
from tests.support.certificates import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The private CA of the shared nodes' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Node]:
    """The shared node of a series, started when it is first asked for. It listens with TLS too."""
    nodes: dict[Series, RabbitMQ] = {}

    def shared(series: Series) -> RabbitMQ:
        if series not in nodes:
            directory = tmp_path_factory.mktemp(f"rabbitmq-{series}")
            nodes[series] = RabbitMQ(directory, series=series, tls=authority.broker(), **FRESH)
            nodes[series].start()
        return nodes[series]

    yield shared
    for started in nodes.values():
        started.kill()


@pytest.fixture(
    params=[("3.10", "classic"), ("4.3", "quorum"), ("4.3", "classic")],
    ids=lambda it: f"{it[0]}-{it[1]}",
)
async def stage(
    request: pytest.FixtureRequest, node: Node, tmp_path: Path
) -> AsyncIterator[BrokerStage]:
    """On each version and queue type that is supported."""
    series, kind = request.param
    async with open_stage(tmp_path, node(series), kind) as opened:
        yield opened


@pytest.fixture
async def one_stage(node: Node, tmp_path: Path) -> AsyncIterator[BrokerStage]:
    """On 4.3 with a quorum queue alone, for what doesn't depend on either."""
    async with open_stage(tmp_path, node("4.3"), "quorum") as opened:
        yield opened
