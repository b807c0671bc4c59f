"""A real RabbitMQ and Kestra's real engine, started once or given, and a bridge of its own for each
test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.rabbitmq import RabbitMQ
from tests.support.engine_stage import JOB_FLOW, Broker, EngineStage, deploy_flows
from tests.support.given import Server, given
from tests.support.harness import Client


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the first test time for the engine to be built, where the cache has none."""
    item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="package")
def rabbit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RabbitMQ | Broker]:
    if given(request.config):
        url = str(request.config.getoption("--amqp-url"))
        if not url:
            pytest.skip("--amqp-url tells no RabbitMQ that the given Kestra reaches")
        yield Broker(url)
        return
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), series="4.3") as node:
        yield node


@pytest.fixture(scope="package")
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    rabbit: RabbitMQ | Broker,
) -> Iterator[Engine | Server]:
    server = given(request.config)
    if server:
        deploy_flows(server)
        yield server
        return
    amqp = AmqpAddress.from_url(rabbit.amqp_url)
    with Engine(tmp_path_factory.mktemp("kestra"), amqp=amqp) as running:
        deploy_flows(running)
        yield running


@pytest.fixture
async def stage(
    tmp_path: Path, rabbit: RabbitMQ | Broker, engine: Engine | Server
) -> AsyncIterator[EngineStage]:
    auth = (
        engine.auth
        if isinstance(engine, Server)
        else httpx.BasicAuth(engine.username, engine.password)
    )
    async with (
        httpx.AsyncClient(base_url=f"{engine.url}/api/v1/main", auth=auth, timeout=30) as api,
        Client.connect(rabbit.amqp_url) as client,
    ):
        stage = EngineStage(tmp_path, rabbit, engine, client, api)
        await stage.deploy(JOB_FLOW.format(namespace=stage.name))
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()
            if isinstance(engine, Server):
                await stage.clear()
