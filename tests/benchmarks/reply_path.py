"""What it costs Kestra's engine to tell of ends: by the notifier flow, by each flow itself, or not
at all.

The same jobs are created by the API in each way, in turn. "Told by nobody" is what an engine does
that has nobody to tell; with a sweep, somebody asks once a second for all that has not ended,
thirty times as often as the bridge does.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, get_args

import aio_pika
import httpx

from bridge.job.execution import TERMINAL
from tests.benchmarks import engine
from tests.benchmarks.measure import Figure
from tests.benchmarks.stage import SLOWEST_RATE, START_SECONDS, BenchmarkStage, Kestra

Way = Literal["nobody", "a sweep", "the notifier", "afterExecution"]
TELLING: tuple[Way, ...] = ("the notifier", "afterExecution")
"""What publishes a reply for each end. Without its exchange it would only measure how it tries
again."""

SWEEP_EVERY = 1.0
UNFINISHED = {"filters[state][NOT_IN]": ",".join(sorted(TERMINAL)), "size": "500"}
WARM_UP_JOBS = 300
NAMESPACE = "benchmark"
# The notifier's own task, but in the flow.
AFTER_SOURCE = """\
id: after
namespace: benchmark
inputs:
  - {id: text, type: STRING}
tasks:
  - {id: log, type: io.kestra.plugin.core.log.Log, message: "{{ inputs.text }}"}
afterExecution:
  - id: publish
    type: io.kestra.plugin.amqp.Publish
    host: "{{ secret('BRIDGE_AMQP_HOST') }}"
    port: "{{ secret('BRIDGE_AMQP_PORT') }}"
    virtualHost: "{{ secret('BRIDGE_AMQP_VHOST') }}"
    username: "{{ secret('BRIDGE_AMQP_USERNAME') }}"
    password: "{{ secret('BRIDGE_AMQP_PASSWORD') }}"
    exchange: kestra.replies
    routingKey: "{{ execution.state }}.{{ flow.namespace }}.{{ flow.id }}"
    serdeType: JSON
    from:
      contentType: application/json
      deliveryMode: 1
      data:
        executionId: "{{ execution.id }}"
        state: "{{ execution.state }}"
        namespace: "{{ flow.namespace }}"
        flowId: "{{ flow.id }}"
"""


def measure(stage: BenchmarkStage, *, jobs: int, rounds: int, clients: int) -> list[Figure]:
    """Executions per second in each way, and as a share of those that nobody is told of; medians of
    the rounds."""
    rates: dict[Way, list[float]] = {way: [] for way in get_args(Way)}
    with engine.running_engine(stage) as (_, kestra):
        engine.deploy(kestra, AFTER_SOURCE)
        _rate(stage, kestra, "the notifier", WARM_UP_JOBS, clients)
        for number in range(1, rounds + 1):
            for way, found in rates.items():
                found.append(_rate(stage, kestra, way, jobs, clients))
                stage.say(
                    f"reply path, told by {way}, round {number} of "
                    f"{rounds}: {found[-1]:.1f} executions/s"
                )
    return [figure for way in rates for figure in _figures(way, rates)]


def _figures(way: Way, rates: dict[Way, list[float]]) -> list[Figure]:
    shares = [100 * one / alone for one, alone in zip(rates[way], rates["nobody"], strict=True)]
    return [
        Figure(
            benchmark="reply path",
            what=f"told by {way}",
            value=statistics.median(rates[way]),
            unit="executions/s",
        ),
        Figure(
            benchmark="reply path",
            what=f"told by {way}, share",
            value=statistics.median(shares),
            unit="%",
        ),
    ]


def _rate(stage: BenchmarkStage, kestra: Kestra, way: Way, jobs: int, clients: int) -> float:
    """From the first create call until nothing runs any more, notifiers included, and every end was
    told."""
    began = time.monotonic()
    asyncio.run(_create(stage, kestra, way, jobs, clients))
    return jobs / (time.monotonic() - began)


async def _create(stage: BenchmarkStage, kestra: Kestra, way: Way, jobs: int, clients: int) -> None:
    flow = f"{NAMESPACE}/{'after' if way == 'afterExecution' else 'log'}"
    patience = START_SECONDS + jobs / SLOWEST_RATE
    async with (
        await aio_pika.connect(stage.rabbit.amqp_url) as connection,
        httpx.AsyncClient(**kestra.client) as http,
        _sweeping(http, wanted=way == "a sweep"),
        asyncio.timeout(patience),
    ):
        told = await engine.replies(connection, flow, jobs) if way in TELLING else None
        await engine.create(http, flow, jobs, clients, marked=way == "the notifier")
        await asyncio.to_thread(engine.until_quiet, kestra, timeout=patience)
        if told:
            await told


@asynccontextmanager
async def _sweeping(http: httpx.AsyncClient, *, wanted: bool) -> AsyncIterator[None]:
    async def sweep() -> None:
        while True:
            (await http.get("/executions/search", params=UNFINISHED)).raise_for_status()
            await asyncio.sleep(SWEEP_EVERY)

    task = asyncio.create_task(sweep()) if wanted else None
    try:
        yield
    finally:
        if task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
