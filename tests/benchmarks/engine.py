"""Jobs per second on Kestra: through RabbitMQ and the bridge, against the same executions created
by its API, and against a consumer that acks before they have ended.

The API's clients create as fast as they can, and what they created piles up in Kestra. Their rate
counts until the last of the executions has ended, and where ends are told until the last reply has
come. The bridge's rate counts until the last ack.

On Kestra's own engine, in H2, a look-up by label reads through all executions, so that it costs the
more the more there are. On PostgreSQL Kestra has an index for it (kestra-io/kestra#1841).
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import aio_pika
import httpx
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge.job.execution import TERMINAL
from bridge.operate.flows import NOTIFIER, shipped
from bridge.rabbitmq.topology import REPLIES
from deploy.local.kestra_engine import AmqpAddress, Engine
from tests.benchmarks.kestra import Kestra, filtered
from tests.benchmarks.measure import (
    DEDUPLICATES,
    BenchmarkError,
    Case,
    Comparison,
    Figure,
    Run,
    Span,
    figures,
)
from tests.benchmarks.stage import FLOW, SLOWEST_RATE, START_SECONDS, BenchmarkStage, Consumer

AIM = 0.95
REQUESTS_AIM = 1.0
CPU_AIM = 3.0
PREFETCHES = (16, 64)
CASES = tuple(
    Case(prefetch, deduplicate) for deduplicate in DEDUPLICATES for prefetch in PREFETCHES
)
AT_INTERVALS = frozenset({"probe", "flow", "history", "ended", "oldest", "sweep"})
"""The operations that are asked at the start or at intervals, however many jobs there are."""

API, TOLD_API = "api", "api with the notifier"
ACCEPTING: Consumer = "accepting loop"
WARM_UP_JOBS = 300
NAMESPACE, FLOW_ID = FLOW.split("/")
OURS = {"namespace": NAMESPACE, "flowId": FLOW_ID}
TOLD = "told"
"""The mark of the executions that the benchmark's notifier tells of. The bridge's own have another,
so that the notifier costs nobody else anything."""

NOTIFIER_FLOW = f"{NAMESPACE}/notifier"
SOURCE = f"""\
id: {FLOW_ID}
namespace: {NAMESPACE}
inputs:
  - {{id: text, type: STRING}}
tasks:
  - {{id: log, type: io.kestra.plugin.core.log.Log, message: "{{{{ inputs.text }}}}"}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A Kestra with the flow of the benchmark, and its processes as far as they are ours. It may
    have the secrets that the notifier needs.
    """

    kestra: Kestra
    notifier: bool
    pids: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def own_server(stage: BenchmarkStage) -> Iterator[Server]:
    """Kestra's own engine. Nothing of it is left at the end of the block."""
    engine = Engine(
        stage.directory / "engine", amqp=AmqpAddress.from_url(stage.rabbit.amqp_url), say=stage.say
    )
    try:
        stage.say(f"starting Kestra's engine {engine.series}")
        engine.start()
        kestra = Kestra(engine.url, engine.username, engine.password)
        kestra.save(FLOW, SOURCE)
        yield Server(kestra, notifier=True, pids={"kestra": engine.pid})
    finally:
        engine.kill()


@contextmanager
def given_server(kestra: Kestra, *, notifier: bool) -> Iterator[Server]:
    """Somebody's own Kestra. The flow of the benchmark is deleted at the end of the block; its
    executions stay.

    Raises:
        BenchmarkError: it has the notifier, which would tell of the bridge's executions too.
    """
    if kestra.has_flow(str(NOTIFIER)):
        raise BenchmarkError(
            f"{kestra.url} has the flow {NOTIFIER}, which costs it an execution for each job: "
            "disable it for the time being"
        )
    kestra.save(FLOW, SOURCE)
    try:
        yield Server(kestra, notifier=notifier)
    finally:
        kestra.remove(FLOW)


def compare(
    stage: BenchmarkStage, server: Server, *, jobs: int, rounds: int, clients: int
) -> tuple[list[Comparison], list[Figure]]:
    """All contestants in turn, round by round: the bridge in each case against each of the others,
    and what each case costs.
    """
    bench = _Bench(stage, server, clients, jobs)
    bench.warm_up()
    contestants = bench.contestants()
    runs: dict[str, list[Run]] = {key: [] for key in contestants}
    with bench.telling():
        for number in range(1, rounds + 1):
            order = list(contestants.items())
            if number % 2 == 0:
                # Kestra gets slower with each execution: the last of one round is the next's first.
                order.reverse()
            for key, run in order:
                runs[key].append(run(number))
                rate = runs[key][-1].jobs_per_second
                stage.say(f"engine, round {number} of {rounds}: {key}: {rate:.1f} jobs/s")
    comparisons = [found for case in CASES for found in _comparisons(case, runs)]
    return comparisons, [figure for case in CASES for figure in costs(case, runs[_bridge(case)])]


def _bridge(case: Case) -> str:
    return f"bridge, {case}"


def _accepting(prefetch: int) -> str:
    return f"{ACCEPTING}, prefetch {prefetch}"


def _comparisons(case: Case, runs: Mapping[str, Sequence[Run]]) -> Iterator[Comparison]:
    others: dict[str, tuple[str, float | None]] = {
        API: (API, AIM if case.deduplicate == DEDUPLICATES[0] else None),
        TOLD_API: (TOLD_API, None),
        ACCEPTING: (_accepting(case.prefetch), None),
    }
    for against, (key, aim) in others.items():
        if key in runs:
            both = [*runs[_bridge(case)], *runs[key]]
            yield Comparison("engine", case, "bridge", against, aim, both)


def costs(case: Case, runs: Sequence[Run]) -> Iterator[Figure]:
    """What a job costs in a case. The bridge's default has aims."""
    requests = [
        sum(asked.requests for name, asked in run.asked.items() if name not in AT_INTERVALS)
        for run in runs
    ]
    default = case.deduplicate == DEDUPLICATES[0]
    measured = {
        "requests to Kestra": (requests, "a job", REQUESTS_AIM),
        "CPU of the bridge": ([run.cpu_of_first for run in runs], "ms a job", CPU_AIM),
    }
    for what, (values, unit, aim) in measured.items():
        yield Figure(
            benchmark="engine",
            what=f"{what}, {case}",
            value=statistics.median(values),
            unit=unit,
            at_most=aim if default else None,
        )


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: BenchmarkStage
    server: Server
    clients: int
    jobs: int

    def contestants(self) -> dict[str, Callable[[int], Run]]:
        """What is run in each round, and how."""
        found: dict[str, Callable[[int], Run]] = {API: self.by_api}
        if self.server.notifier:
            found[TOLD_API] = partial(self.by_api, told=True)
        for case in CASES:
            bench = self if case.deduplicate == DEDUPLICATES[0] else self.with_fewer_jobs
            found[_bridge(case)] = partial(bench.by_consumer, "bridge", case)
        for prefetch in PREFETCHES:
            case = Case(prefetch, DEDUPLICATES[0])
            found[_accepting(prefetch)] = partial(self.by_consumer, ACCEPTING, case)
        return found

    @property
    def with_fewer_jobs(self) -> _Bench:
        """The same for cases in which Kestra, on H2, reads through its history for each job."""
        return replace(self, jobs=max(1, self.jobs // 4))

    def warm_up(self) -> None:
        jobs = min(self.jobs, WARM_UP_JOBS)
        self.stage.say(f"warming up Kestra with {jobs} jobs either way")
        bench = replace(self, jobs=jobs)
        bench.by_api(0)
        bench.by_consumer("bridge", CASES[0], 0)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """The benchmark's notifier, where Kestra can have one."""
        kestra = self.server.kestra
        if self.server.notifier:
            kestra.save(NOTIFIER_FLOW, notifier_source(kestra.version()))
        try:
            yield
        finally:
            kestra.remove(NOTIFIER_FLOW)

    def by_consumer(self, who: Consumer, case: Case, number: int) -> Run:
        """From the first delivery to the last ack, with all jobs in the queue beforehand. For the
        consumer that doesn't wait, the last end counts.
        """
        kestra, before = self.server.kestra, self._executions()
        self.stage.fill(self.jobs)
        settings = {**kestra.settings, **case.settings}
        with (
            self.stage.consumer(who, self.jobs, settings) as consumer,
            self.stage.sampler(consumer=consumer.child.pid, **self.server.pids) as sampler,
        ):
            span, asked = consumer.timeline().whole(), consumer.asked()
            until_quiet(kestra)
        if who == ACCEPTING:
            span = Span(span.jobs, span.begin, kestra.last_end(**OURS))
        self.stage.check(who, executions=self._executions() - before, jobs=self.jobs)
        return figures(span, sampler, who=who, round_=number, before=before, asked=asked)

    def by_api(self, number: int, *, told: bool = False) -> Run:
        """From the first create call until the last execution ended; if they are told of, until the
        last reply came.
        """
        before = self._executions()
        with self.stage.sampler(clients=os.getpid(), **self.server.pids) as sampler:
            span = asyncio.run(self._create(told=told))
            until_quiet(self.server.kestra)
        self.stage.check(API, executions=self._executions() - before, jobs=self.jobs)
        who = TOLD_API if told else API
        return figures(span, sampler, who=who, round_=number, before=before)

    async def _create(self, *, told: bool) -> Span:
        kestra = self.server.kestra
        async with (
            await aio_pika.connect(self.stage.rabbit.amqp_url) as connection,
            httpx.AsyncClient(**kestra.client) as http,
            asyncio.timeout(START_SECONDS + self.jobs / SLOWEST_RATE),
        ):
            last = await _replies(connection, self.jobs) if told else None
            began = time.time()
            await _create_all(http, self.jobs, self.clients, told=told)
            if last:
                return Span(self.jobs, began, await last)
            await asyncio.to_thread(until_quiet, kestra)
        return Span(self.jobs, began, kestra.last_end(**OURS))

    def _executions(self) -> int:
        return self.server.kestra.count(**OURS)


def notifier_source(version: str) -> str:
    """The notifier that ships for that version, for executions with the benchmark's mark."""
    (flow,) = [flow for flow in shipped(version) if flow.name == NOTIFIER]
    source = re.sub(r"(bridge: |== ')amqp", rf"\1{TOLD}", flow.source)
    return source.replace(f"namespace: {NOTIFIER.namespace}", f"namespace: {NAMESPACE}")


async def _create_all(http: httpx.AsyncClient, jobs: int, clients: int, *, told: bool) -> None:
    """Create so many executions as fast as so many clients can. Those that are told of have the
    mark.
    """
    names = iter([f"api-{time.time_ns()}-{number}" for number in range(jobs)])
    mark = {"bridge": TOLD} if told else {}
    await asyncio.gather(*(_client(http, names, mark) for _ in range(clients)))


async def _client(http: httpx.AsyncClient, names: Iterator[str], mark: Mapping[str, str]) -> None:
    for name in names:
        labels = {**mark, "bridgeJob": name, "bridgeAttempt": "1", "system.correlationId": name}
        answer = await http.post(
            f"/executions/{FLOW}",
            params=[("labels", f"{key}:{value}") for key, value in labels.items()],
            files=[("text", (None, "a benchmark's job"))],
        )
        answer.raise_for_status()


async def _replies(connection: AbstractConnection, jobs: int) -> asyncio.Future[float]:
    """In the future, when the last of so many executions was told to have ended."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    told: list[bytes] = []
    channel = await connection.channel(publisher_confirms=False)
    exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange, f"*.{NAMESPACE}.{FLOW_ID}")

    async def take(message: AbstractIncomingMessage) -> None:
        told.append(message.body)
        if len(told) == jobs:
            done.set_result(time.time())

    await queue.consume(take, no_ack=True)
    return done


def until_quiet(kestra: Kestra, *, timeout: float = 60.0) -> None:
    """Wait until nothing of the benchmark runs any more, its notifier included.

    Raises:
        BenchmarkError: it took longer.
    """
    deadline = time.monotonic() + timeout
    unfinished = {
        **filtered(namespace=NAMESPACE),
        "filters[state][NOT_IN]": ",".join(sorted(TERMINAL)),
    }
    while kestra.ask("/executions/search", size="1", **unfinished)["total"]:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"executions still run after {timeout:g} s")
        time.sleep(0.2)
