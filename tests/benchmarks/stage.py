"""What both benchmarks need: a RabbitMQ with a full queue, and a consumer of it as a child
process."""

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
from typing import Any, Literal

import aio_pika
import httpx
from pydantic import SecretStr

from bridge.rabbitmq import declaration
from bridge.rabbitmq.connection import connected
from bridge.settings import BrokerSettings
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.benchmarks.measure import BenchmarkError, Sampler, Timeline, tree

QUEUE = "benchmark.jobs"
FLOW = "benchmark/log"
BODY = json.dumps({"inputs": {"text": "a benchmark's job"}}).encode()
CONFIRMS_AT_ONCE = 100
LOOK_EVERY = 0.1
START_SECONDS = 30.0
SLOWEST_RATE = 2.0
"""Jobs per second below which a run is given up."""

Say = Callable[[str], None]
Consumer = Literal["bridge", "bare loop"]


@dataclass(frozen=True, slots=True)
class Kestra:
    """Where Kestra, or what stands for it, is to be found."""

    url: str
    username: str
    password: str

    @property
    def settings(self) -> dict[str, str]:
        return {
            "BRIDGE_KESTRA_URL": self.url,
            "BRIDGE_KESTRA_USERNAME": self.username,
            "BRIDGE_KESTRA_PASSWORD": self.password,
        }

    @property
    def client(self) -> dict[str, Any]:
        """How an httpx client is made for it."""
        return {
            "base_url": f"{self.url}/api/v1/main",
            "auth": (self.username, self.password),
            "timeout": 60,
        }

    def count(self, **filters: str) -> int:
        """How many executions it has, with those filters."""
        params = {f"filters[{key}][EQUALS]": value for key, value in filters.items()}
        with httpx.Client(**self.client) as http:
            answer = http.get("/executions/search", params={"size": "1", **params})
            answer.raise_for_status()
            return int(answer.json()["total"])


class BenchmarkStage:
    """A broker, and a folder for all that is written."""

    def __init__(self, directory: Path, rabbit: RabbitMQ, say: Say) -> None:
        self.directory = directory
        self.rabbit = rabbit
        self.say = say
        self._runs = 0
        self._broker = BrokerSettings(amqp_url=SecretStr(rabbit.amqp_url), queue=QUEUE)

    def sampler(self, **pids: int) -> Sampler:
        """A sampler of these processes and the broker."""
        child = self.rabbit._child
        assert child is not None
        return Sampler({**{name: [pid] for name, pid in pids.items()}, "broker": tree(child.pid)})

    def child(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """A Python module as a child process that no setting of the caller's reaches, nor a `.env`
        file."""
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

    def fill(self, jobs: int) -> None:
        """Put so many jobs into the queue, by confirm."""
        self._runs += 1
        self.publish([f"{self._runs}-{number}" for number in range(jobs)])

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
        """The bridge or the bare loop, at work on the queue; it is gone at the end of the block."""
        environment = {
            "BRIDGE_QUEUE": QUEUE,
            "BRIDGE_FLOW": FLOW,
            "BRIDGE_HTTP_PORT": "0",
            "BRIDGE_LOG_FORMAT": "json",
        }
        environment |= settings
        results = self.directory / f"{self._runs}-times.json"
        command = (
            ["bridge", "run"]
            if who == "bridge"
            else ["tests.benchmarks.bare_loop", str(jobs), str(results)]
        )
        child = self.child(who, command, environment)
        try:
            yield (
                BridgeAtWork(child, jobs)
                if who == "bridge"
                else BareLoopAtWork(child, jobs, results)
            )
        finally:
            child.stop()

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

    def _done(self) -> bool:
        raise NotImplementedError

    def _timeline(self) -> Timeline:
        raise NotImplementedError


class BridgeAtWork(RunningConsumer):
    """The bridge, followed by its log."""

    def __init__(self, child: Child, jobs: int) -> None:
        super().__init__(child, jobs)
        self._log = child.log.open("rb")
        self._settled = 0

    def _done(self) -> bool:
        self._settled += self._log.read().count(b'"settled"')
        return self._settled >= self._jobs

    def _timeline(self) -> Timeline:
        self._log.close()
        settled = [
            line for line in map(json.loads, self.child.log.open()) if line["event"] == "settled"
        ]
        if wrong := [line for line in settled if line["settlement"] != "ack"]:
            raise BenchmarkError(
                f"the bridge settled {len(wrong)} jobs otherwise than by an ack, such as {wrong[0]}"
            )
        ends = [
            (datetime.fromisoformat(line["timestamp"]).timestamp(), line["seconds"])
            for line in settled
        ]
        return Timeline.of((end - seconds, end) for end, seconds in ends)


class BareLoopAtWork(RunningConsumer):
    """The bare loop, which writes down its times at the end."""

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
    """A stage on a RabbitMQ of that series; nothing of it is left at the end of the block."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="kestra-bridge-benchmark-"))
        )
        rabbit = RabbitMQ(directory / "rabbitmq", series=series, say=say)
        # What ends now is thrown away with its folder: there's no reason to end it slowly.
        stack.callback(rabbit.kill)
        say(f"starting RabbitMQ {rabbit.version}")
        rabbit.start()
        ready = BenchmarkStage(directory, rabbit, say)
        ready.fill(0)
        yield ready


@contextmanager
def standin(stage: BenchmarkStage) -> Iterator[tuple[Child, Kestra]]:
    """The stand-in for Kestra as a process of its own."""
    with stage.child("stand-in", ["tests.benchmarks.standin_server"], {}) as child:
        child.wait_until(
            lambda: child.log.read_text().endswith("}\n"), timeout=30, what="listening"
        )
        yield child, Kestra(**json.loads(child.log.read_text()))
