"""What all benchmarks need: a RabbitMQ with jobs in a queue, and consumers of it as child
processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import aio_pika
from pydantic import SecretStr

from bridge.rabbitmq import declaration, topology
from bridge.rabbitmq.connection import announced_version, connected
from bridge.settings import BrokerSettings
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.benchmarks.bridges import Bridge, asked_for
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import Asked, BenchmarkError, Sampler, Timeline, tree

QUEUE = "benchmark.jobs"
FLOW = "benchmark/log"
BODY = json.dumps({"inputs": {"text": "a benchmark's job"}}).encode()
CONFIRMS_AT_ONCE = 100
LOOK_EVERY = 0.1
START_SECONDS = 30.0
SLOWEST_RATE = 2.0
"""Jobs per second below which a run is given up."""

Say = Callable[[str], None]
Consumer = Literal["bridge", "bare loop", "accepting loop"]
OPTIONS: Mapping[Consumer, Sequence[str]] = {"bare loop": (), "accepting loop": ("--accepted",)}
CONSUMER: Mapping[str, str] = {
    "BRIDGE_QUEUE": QUEUE,
    "BRIDGE_FLOW": FLOW,
    "BRIDGE_HTTP_PORT": "0",
    "BRIDGE_LOG_FORMAT": "json",
}
"""The settings of all consumers."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the RabbitMQ is that is used, and its processes as far as they are ours."""

    amqp_url: str
    version: str
    pids: Sequence[int] = ()


class BenchmarkStage:
    """A broker, and a folder for all that is written."""

    def __init__(self, directory: Path, rabbit: Broker, say: Say) -> None:
        self.directory = directory
        self.rabbit = rabbit
        self.say = say
        self._runs = 0
        # No id of an earlier run may be known to the servers, which can be somebody's own.
        self._name = f"{time.time_ns():x}"
        self._broker = BrokerSettings(amqp_url=SecretStr(rabbit.amqp_url), queue=QUEUE)

    def sampler(self, **pids: int) -> Sampler:
        """A sampler of these processes, and of the broker if it is ours."""
        processes: dict[str, Sequence[int]] = {name: [pid] for name, pid in pids.items()}
        if self.rabbit.pids:
            processes["broker"] = self.rabbit.pids
        return Sampler(processes)

    def child(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """A Python module as a child process. Neither the caller's own settings nor a `.env` file
        reach it.
        """
        self._runs += 1
        others = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        return Child(
            name,
            [sys.executable, "-m", *arguments],
            log=self.directory / f"{self._runs}-{name.replace(' ', '-')}.log",
            env={
                **others,
                "PYTHONPATH": str(REPOSITORY),
                "BRIDGE_AMQP_URL": self.rabbit.amqp_url,
                **environment,
            },
            cwd=self.directory,
        )

    def bridge(self, **settings: str) -> Bridge:
        """A bridge that is started on the queue. The caller ends it."""
        return Bridge(self.child("bridge", ["bridge", "run"], {**CONSUMER, **settings}))

    def fill(self, jobs: int) -> None:
        """Put so many new jobs into the queue, by confirm."""
        self._runs += 1
        self.publish([f"{self._name}-{self._runs}-{number}" for number in range(jobs)])

    def publish(self, jobs: Sequence[str]) -> None:
        """Put these jobs into the queue, by confirm."""
        asyncio.run(self._fill(jobs))

    def ready(self, queue: str = QUEUE) -> int:
        """How many messages wait in a queue."""
        return asyncio.run(self._ready(queue))

    def drop(self) -> None:
        """Empty the queue."""
        asyncio.run(self._drop())

    def check(self, who: str, *, executions: int, jobs: int) -> None:
        """See that each job had one execution and was acked.

        Raises:
            BenchmarkError: not so, and what was measured is worth nothing.
        """
        if executions != jobs:
            raise BenchmarkError(f"{who}: {executions} executions for {jobs} jobs")
        if left := self.ready():
            raise BenchmarkError(f"{who}: {left} jobs were not acked")

    @contextmanager
    def consumer(
        self, who: Consumer, jobs: int, settings: Mapping[str, str]
    ) -> Iterator[RunningConsumer]:
        """A consumer at work on the queue. It is gone at the end of the block."""
        running: RunningConsumer
        if who == "bridge":
            running = BridgeAtWork(self.bridge(**settings), jobs)
        else:
            results = self.directory / f"{self._runs}-times.json"
            command = ["tests.benchmarks.bare_loop", str(jobs), str(results), *OPTIONS[who]]
            child = self.child(who, command, {**CONSUMER, **settings})
            running = LoopAtWork(child, jobs, results)
        try:
            yield running
        finally:
            running.child.stop()

    async def _fill(self, jobs: Sequence[str]) -> None:
        at_once = asyncio.Semaphore(CONFIRMS_AT_ONCE)
        async with connected(self._broker, "benchmark") as connection:
            await declaration.declare_missing_lanes(connection, self._broker)
            channel = await connection.channel(on_return_raises=True)

            async def publish(job: str) -> None:
                message = aio_pika.Message(
                    BODY,
                    message_id=job,
                    priority=5,
                    content_type="application/json",
                    delivery_mode=2,
                )
                async with at_once:
                    await channel.default_exchange.publish(message, QUEUE)

            await asyncio.gather(*map(publish, jobs))

    async def _drop(self) -> None:
        async with await aio_pika.connect(self.rabbit.amqp_url) as connection:
            channel = await connection.channel()
            await (await channel.get_queue(QUEUE)).purge()

    async def _ready(self, queue: str) -> int:
        async with await aio_pika.connect(self.rabbit.amqp_url) as connection:
            channel = await connection.channel()
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0


class RunningConsumer:
    """A consumer at work."""

    def __init__(self, child: Child, jobs: int) -> None:
        self.child = child
        self._jobs = jobs

    def timeline(self) -> Timeline:
        """When its jobs were delivered and acked, once all of them are.

        Raises:
            BenchmarkError: it took too long, or a job had another end than its ack.
            ProcessError: it ended before.
        """
        deadline = time.monotonic() + START_SECONDS + self._jobs / SLOWEST_RATE
        while not self._done():
            if not self.child.alive and not self._done():
                raise BenchmarkError(
                    f"{self.child.name} ended with {self.child.returncode}{self.child.tail()}"
                )
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{self.child.name} did not end {self._jobs} jobs in time{self.child.tail()}"
                )
            time.sleep(LOOK_EVERY)
        return self._timeline()

    def asked(self) -> Mapping[str, Asked]:
        """By operation, what it has asked of Kestra for each job, as far as it counts that."""
        return {}

    def _done(self) -> bool:
        raise NotImplementedError

    def _timeline(self) -> Timeline:
        raise NotImplementedError


class BridgeAtWork(RunningConsumer):
    """The bridge, followed by its log."""

    def __init__(self, bridge: Bridge, jobs: int) -> None:
        super().__init__(bridge.child, jobs)
        self._bridge = bridge
        self._log = bridge.child.log.open("rb")
        self._settled = 0

    def asked(self) -> Mapping[str, Asked]:
        return asked_for(self._bridge.requests(), self._jobs)

    def _done(self) -> bool:
        self._settled += self._log.read().count(b'"settled"')
        return self._settled >= self._jobs

    def _timeline(self) -> Timeline:
        self._log.close()
        settled = self._bridge.events("settled")
        if wrong := [line for line in settled if line["settlement"] != "ack"]:
            raise BenchmarkError(
                f"the bridge settled {len(wrong)} jobs otherwise than by an ack, such as {wrong[0]}"
            )
        ends = [
            (datetime.fromisoformat(line["timestamp"]).timestamp(), line["seconds"])
            for line in settled
        ]
        return Timeline.of((end - seconds, end) for end, seconds in ends)


class LoopAtWork(RunningConsumer):
    """A loop of bare_loop.py, which writes down its times at the end."""

    def __init__(self, child: Child, jobs: int, results: Path) -> None:
        super().__init__(child, jobs)
        self._results = results

    def _done(self) -> bool:
        return self._results.exists()

    def _timeline(self) -> Timeline:
        return Timeline.of(
            (delivered, acked) for delivered, acked in json.loads(self._results.read_text())
        )


@contextmanager
def open_stage(series: Series, say: Say) -> Iterator[BenchmarkStage]:
    """A stage on a RabbitMQ of that series. Nothing of it is left at the end of the block."""
    with ExitStack() as stack:
        directory = stack.enter_context(_directory())
        rabbit = RabbitMQ(directory / "rabbitmq", series=series, say=say)
        # What ends now is thrown away with its folder: there's no reason to end it slowly.
        stack.callback(rabbit.kill)
        say(f"starting RabbitMQ {rabbit.version}")
        rabbit.start()
        assert rabbit._child is not None
        broker = Broker(rabbit.amqp_url, rabbit.version, tree(rabbit._child.pid))
        ready = BenchmarkStage(directory, broker, say)
        ready.fill(0)
        yield ready


@contextmanager
def given_stage(amqp_url: str, say: Say) -> Iterator[BenchmarkStage]:
    """A stage on somebody's own RabbitMQ. Its queue, and what belongs to it, is deleted at the end
    of the block.

    Raises:
        BenchmarkError: there are jobs in the queue, which this run would disturb.
    """
    with _directory() as directory:
        stage = BenchmarkStage(directory, Broker(amqp_url, asyncio.run(_version(amqp_url))), say)
        stage.fill(0)
        if ready := stage.ready():
            raise BenchmarkError(f"the queue {QUEUE} holds {ready} jobs already: purge it first")
        try:
            yield stage
        finally:
            asyncio.run(_delete(amqp_url))


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kestra-bridge-benchmark-") as directory:
        yield Path(directory)


async def _version(amqp_url: str) -> str:
    async with await aio_pika.connect(amqp_url) as connection:
        return announced_version(connection)


async def _delete(amqp_url: str) -> None:
    delays = BrokerSettings.model_fields["retry_delays"].default
    retries = [topology.retry_queue(QUEUE, delay) for delay in delays]
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        dead, ledger = topology.dead_queue(QUEUE), topology.ledger_queue(QUEUE)
        for name in (QUEUE, dead, ledger, *retries):
            await channel.queue_delete(name)
        for name in (QUEUE, topology.dead_exchange(QUEUE)):
            await channel.exchange_delete(name)


@contextmanager
def standin(stage: BenchmarkStage, *, tells: bool = True) -> Iterator[tuple[Child, Kestra]]:
    """The stand-in for Kestra as a process of its own. Unless it `tells`, it publishes no
    replies.
    """
    command = ["tests.benchmarks.standin_server"]
    if not tells:
        command.append("--silent")
    with stage.child("stand-in", command, {}) as child:
        child.wait_until(
            lambda: child.log.read_text().endswith("}\n"), timeout=30, what="listening"
        )
        yield child, Kestra(**json.loads(child.log.read_text()))
