"""Jobs per second on Kestra's own engine: through RabbitMQ and the bridge, against the same jobs
created by its API.

Both with the notifier deployed. The API's clients create as fast as they can, and what they created
piles up in the engine; its rate counts until the last of the executions has ended, and a second one
until the last reply has come.

The engine keeps its data in H2, which has no index on labels: there a look-up by label reads
through all executions, so that what it costs grows with each run. On PostgreSQL Kestra has such an
index (kestra-io/kestra#1841).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import aio_pika
import httpx
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge.job.execution import TERMINAL
from bridge.rabbitmq.topology import REPLIES
from deploy.local.kestra_engine import AmqpAddress, Engine
from tests.benchmarks.measure import BenchmarkError, Case, Comparison, Run, Span, figures
from tests.benchmarks.stage import FLOW, SLOWEST_RATE, START_SECONDS, BenchmarkStage, Kestra

AIM = 0.95
CASES = tuple(
    Case(prefetch, deduplicate)
    for deduplicate in ("always", "redelivered")
    for prefetch in (16, 64)
)
WARM_UP_JOBS = 300
ENDED, TOLD = "api until ended", "api until told"
NAMESPACE, FLOW_ID = FLOW.split("/")
SOURCE = f"""\
id: {FLOW_ID}
namespace: {NAMESPACE}
inputs:
  - {{id: text, type: STRING}}
tasks:
  - {{id: log, type: io.kestra.plugin.core.log.Log, message: "{{{{ inputs.text }}}}"}}
"""


def compare(stage: BenchmarkStage, *, jobs: int, rounds: int, clients: int) -> list[Comparison]:
    """All cases, round by round, the API and the bridge in turn."""
    until_ended = [Comparison("engine", case, "bridge", ENDED, AIM) for case in CASES]
    until_told = [Comparison("engine", case, "bridge", TOLD, AIM) for case in CASES]
    with running_engine(stage) as (engine, kestra):
        bench = _Bench(stage, engine, kestra, clients)
        stage.say(f"warming up Kestra's engine with {WARM_UP_JOBS} jobs either way")
        bench.by_api(WARM_UP_JOBS, 0)
        bench.by_bridge(WARM_UP_JOBS, CASES[0], 0)
        for number in range(1, rounds + 1):
            for ended, told in zip(until_ended, until_told, strict=True):
                own_rate, own_rate_told = bench.by_api(jobs, number)
                bridge = bench.by_bridge(jobs, ended.case, number)
                ended.runs += [own_rate, bridge]
                told.runs += [own_rate_told, bridge]
                stage.say(
                    f"engine, {ended.case}, round {number} of {rounds}: API "
                    f"{own_rate.jobs_per_second:.1f} "
                    f"(until told {own_rate_told.jobs_per_second:.1f}), bridge "
                    f"{bridge.jobs_per_second:.1f} jobs/s"
                )
    return [one for both in zip(until_ended, until_told, strict=True) for one in both]


@contextmanager
def running_engine(stage: BenchmarkStage) -> Iterator[tuple[Engine, Kestra]]:
    engine = Engine(
        stage.directory / "engine", amqp=AmqpAddress.from_url(stage.rabbit.amqp_url), say=stage.say
    )
    try:
        stage.say(f"starting Kestra's engine {engine.series}")
        engine.start()
        kestra = Kestra(engine.url, engine.username, engine.password)
        with stage.child(
            "flows deploy", ["bridge", "flows", "deploy"], kestra.settings
        ) as deploying:
            if deploying.wait(60) != 0:
                raise BenchmarkError(f"the flows could not be deployed{deploying.tail()}")
        deploy(kestra, SOURCE)
        yield engine, kestra
    finally:
        engine.kill()


def deploy(kestra: Kestra, source: str) -> None:
    """Create a flow."""
    with httpx.Client(**kestra.client) as http:
        headers = {"Content-Type": "application/x-yaml"}
        http.post("/flows", content=source.encode(), headers=headers).raise_for_status()


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: BenchmarkStage
    engine: Engine
    kestra: Kestra
    clients: int

    def by_bridge(self, jobs: int, case: Case, number: int) -> Run:
        """From the first delivery to the last ack, with all jobs in the queue beforehand."""
        before = self._executions()
        self.stage.fill(jobs)
        with (
            self.stage.consumer(
                "bridge", jobs, {**self.kestra.settings, **case.settings}
            ) as consumer,
            self.stage.sampler(consumer=consumer.child.pid, kestra=self.engine.pid) as sampler,
        ):
            timeline = consumer.timeline()
        self._check("bridge", before, jobs)
        return figures(timeline.whole(), sampler, who="bridge", round_=number, before=before)

    def by_api(self, jobs: int, number: int) -> tuple[Run, Run]:
        """From the first create call until the last execution ended, and until the last reply
        came."""
        before = self._executions()
        with self.stage.sampler(clients=os.getpid(), kestra=self.engine.pid) as sampler:
            spans = asyncio.run(
                _create(self.stage.rabbit.amqp_url, self.kestra, jobs, self.clients)
            )
        self._check("api", before, jobs)
        ended, told = (
            figures(span, sampler, who=who, round_=number, before=before)
            for who, span in zip((ENDED, TOLD), spans, strict=True)
        )
        return ended, told

    def _executions(self) -> int:
        return self.kestra.count(namespace=NAMESPACE)

    def _check(self, who: str, before: int, jobs: int) -> None:
        self.stage.check(who, executions=self._executions() - before, jobs=jobs)
        until_quiet(self.kestra)


async def _create(amqp_url: str, kestra: Kestra, jobs: int, clients: int) -> tuple[Span, Span]:
    """Create so many: the spans until the last execution ended and until the last reply came."""
    async with (
        await aio_pika.connect(amqp_url) as connection,
        httpx.AsyncClient(**kestra.client) as http,
    ):
        told = await replies(connection, FLOW, jobs)
        began = time.time()
        await create(http, FLOW, jobs, clients, marked=True)
        async with asyncio.timeout(START_SECONDS + jobs / SLOWEST_RATE):
            last = await told
        return Span(jobs, began, await last_end(http)), Span(jobs, began, last)


async def create(
    http: httpx.AsyncClient, flow: str, jobs: int, clients: int, *, marked: bool
) -> None:
    """Create so many executions as fast as so many clients can; those with the mark are told of by
    the notifier."""
    names = iter([f"api-{time.time_ns()}-{number}" for number in range(jobs)])
    mark = {"bridge": "amqp"} if marked else {}
    await asyncio.gather(*(_client(http, flow, names, mark) for _ in range(clients)))


async def _client(
    http: httpx.AsyncClient, flow: str, names: Iterator[str], mark: Mapping[str, str]
) -> None:
    for name in names:
        labels = {**mark, "bridgeJob": name, "bridgeAttempt": "1", "system.correlationId": name}
        answer = await http.post(
            f"/executions/{flow}",
            params=[("labels", f"{key}:{value}") for key, value in labels.items()],
            files=[("text", (None, "a benchmark's job"))],
        )
        answer.raise_for_status()


async def replies(connection: AbstractConnection, flow: str, jobs: int) -> asyncio.Future[float]:
    """When the last of so many of a flow's executions was told to have ended, in the future."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    told: list[bytes] = []
    channel = await connection.channel(publisher_confirms=False)
    exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange, f"*.{flow.replace('/', '.')}")

    async def take(message: AbstractIncomingMessage) -> None:
        told.append(message.body)
        if len(told) == jobs:
            done.set_result(time.time())

    await queue.consume(take, no_ack=True)
    return done


async def last_end(http: httpx.AsyncClient) -> float:
    """When the execution that ended last did so."""
    params = {"filters[namespace][EQUALS]": NAMESPACE, "sort": "state.endDate:desc", "size": "1"}
    answer = await http.get("/executions/search", params=params)
    answer.raise_for_status()
    return datetime.fromisoformat(answer.json()["results"][0]["state"]["endDate"]).timestamp()


def until_quiet(kestra: Kestra, *, timeout: float = 60.0) -> None:
    """Wait until nothing runs any more, notifiers included."""
    deadline = time.monotonic() + timeout
    with httpx.Client(**kestra.client) as http:
        while _open(http, sorted(TERMINAL)):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"executions still run after {timeout:g} s")
            time.sleep(0.2)


def _open(http: httpx.Client, ended: Sequence[str]) -> int:
    params = {"filters[state][NOT_IN]": ",".join(ended), "size": "1"}
    answer = http.get("/executions/search", params=params)
    answer.raise_for_status()
    return int(answer.json()["total"])
