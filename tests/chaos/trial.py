"""One trial: jobs are published, everything around the bridge fails, and what happened is written
down."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bridge.rabbitmq.topology import dead_queue, ledger_queue
from tests.chaos import jobs, schedule
from tests.chaos.history import Acked, DeadLetter, Event, Left, Limits, Trouble
from tests.chaos.kestra import EngineProcess, Kestra, StandinProcess, address, settings
from tests.chaos.nemesis import Nemesis
from tests.chaos.nodes import Choice, Nodes
from tests.chaos.publisher import Publisher
from tests.chaos.replica import Replica
from tests.chaos.tap import Tap
from tests.support.harness import Client

QUEUE = "chaos.jobs"
PREFETCH = 24
SETTLED_WITHIN = 60.0
ENGINE_STARTS_WITHIN = 120.0
"""On a busy machine, with its database to recover."""
DRAIN_SECONDS = 180.0
"""How long a trial may take to come to its end once nothing goes wrong any more."""
SURE_AFTER = 3
"""So often in a row must the statistics say so, which know nothing for a while after a node has
started."""
COMPANIONS_EVERY = 6.0
ALMOST_DONE = 30
"""So many jobs are left when the faults cease."""

BRIDGE_SETTINGS = {
    "BRIDGE_QUEUE": QUEUE,
    "BRIDGE_FLOW": jobs.FLOW,
    "BRIDGE_ALLOWED_FLOWS": f'["{jobs.NAMESPACE}/*"]',
    "BRIDGE_PREFETCH": str(PREFETCH),
    "BRIDGE_MAX_ATTEMPTS": str(jobs.MAX_ATTEMPTS),
    "BRIDGE_RETRY_DELAYS": "[1, 2]",
    "BRIDGE_RECONCILE_INTERVAL": "2",
    # Above the longest time that a create stays invisible: a stall, a slow answer and a paused
    # replica together.
    "BRIDGE_ADOPT_GRACE": "8",
    "BRIDGE_AMBIGUOUS_WAIT": "10",
    "BRIDGE_DRAIN_TIMEOUT": "3",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is tried. `jobs` are published at `rate` a second, or for `minutes`."""

    directory: Path
    seed: int
    broker: Choice = "4.3"
    kestra: jobs.KestraKind = "standin"
    replicas: int = 3
    jobs: int | None = None
    minutes: float | None = None
    rate: float = 20.0
    faults: tuple[str, ...] = ()
    calm: bool = False

    @property
    def seconds(self) -> float:
        """How long jobs are published."""
        return (
            60 * self.minutes
            if self.jobs is None and self.minutes
            else (self.jobs or 0) / self.rate
        )

    @property
    def streams(self) -> dict[str, schedule.Stream]:
        """The faults; raises `ValueError` for one that there isn't."""
        if self.calm:
            return {}
        cluster, engine = self.broker == "cluster", self.kestra == "engine"
        available = schedule.streams(cluster=cluster, engine=engine, seconds=self.seconds)
        return schedule.chosen(available, self.faults)


@dataclass
class Trial:
    """A trial under way."""

    options: Options
    say: Say
    events: list[Event] = field(default_factory=list)
    acked: int = 0

    async def run(self) -> list[Event]:
        """All that happened, once it is over; nothing of it runs any more by then."""
        options = self.options
        engine = options.kestra == "engine"
        within = SETTLED_WITHIN + (ENGINE_STARTS_WITHIN if engine else 0)
        self.note(Limits(prefetch=PREFETCH, settled_within=within, kestra_dies=engine))
        asyncio.get_running_loop().set_exception_handler(self._on_exception)
        async with AsyncExitStack() as stack:
            nodes = Nodes(options.broker, options.directory, self.say)
            stack.push_async_callback(nodes.kill_all)
            self.say(
                f"starting RabbitMQ {nodes.all[0].version}"
                + (", three nodes" if nodes.cluster else "")
            )
            await nodes.start_all()
            await nodes.limit(QUEUE, None)
            kestra = self._kestra(nodes)
            stack.push_async_callback(kestra.end)
            self.say(
                "starting Kestra's engine"
                if options.kestra == "engine"
                else "starting the stand-in for Kestra"
            )
            await kestra.start()
            replicas = [
                await stack.enter_async_context(self._replica(number, nodes, kestra))
                for number in range(options.replicas)
            ]
            for replica in replicas:
                await replica.start(ready=True)
            # RabbitMQ notes a new quorum queue on disk only about a second after it confirmed the
            # declaration.
            await asyncio.sleep(2)
            proxy = await stack.enter_async_context(
                Tap("publisher", nodes.addresses, lambda _: None)
            )
            publisher = Publisher(_through(nodes.all[0].amqp_url, proxy.port), QUEUE)
            nemesis = Nemesis(
                nodes=nodes,
                queue=QUEUE,
                kestra=kestra,
                replicas=replicas,
                publisher=proxy,
                note=self.note,
            )
            async with self._minding(replicas, publisher, nodes):
                await self._work(publisher, nemesis, nodes)
                self.say("waiting for the end of what is left")
                await self._drain(publisher, nodes)
            await publisher.close()
            await self._collect(publisher, replicas, kestra, nodes)
        return self.events

    def note(self, event: Event) -> None:
        """Write down what somebody saw."""
        self.acked += isinstance(event, Acked)
        self.events.append(event)

    def _kestra(self, nodes: Nodes) -> Kestra:
        options = self.options
        urls = [node.amqp_url for node in nodes.all]
        if options.kestra == "engine":
            return EngineProcess(options.directory, amqp=urls[0])
        return StandinProcess(options.directory, seed=options.seed, amqp=urls)

    def _replica(self, number: int, nodes: Nodes, kestra: Kestra) -> Replica:
        name = f"replica-{number + 1}"
        place = {
            "BRIDGE_AMQP_URL": nodes.all[0].amqp_url,
            "BRIDGE_QUEUE_TYPE": nodes.kind,
            **settings(kestra),
        }
        return Replica(
            name,
            self.options.directory,
            settings={**BRIDGE_SETTINGS, **place},
            brokers=lambda: nodes.addresses(number),
            kestra=address(kestra),
            note=self.note,
        )

    def _jobs(self) -> Iterator[jobs.Job]:
        drawn = jobs.draw(self.options.seed, self.options.kestra, mean_seconds=0.5)
        return itertools.islice(drawn, self.options.jobs)

    async def _work(self, publisher: Publisher, nemesis: Nemesis, nodes: Nodes) -> None:
        """Publish, with faults all the while, until almost everything is done."""
        options = self.options
        until = (
            None
            if options.minutes is None
            else asyncio.get_running_loop().time() + 60 * options.minutes
        )
        self.say(
            f"publishing {options.rate:g} jobs a second; faults: "
            f"{', '.join(options.streams) or 'none'}"
        )
        async with asyncio.TaskGroup() as group:
            for name, stream in options.streams.items():
                group.create_task(nemesis.run(schedule.steps(options.seed, name, stream)))
            await publisher.send(self._jobs(), rate=options.rate, until=until)
            self.say(f"{len(publisher.records)} jobs are published")
            await self._until_left(
                nodes, ALMOST_DONE, len(publisher.records) / options.rate * 3 + DRAIN_SECONDS
            )
            nemesis.stop()

    async def _until_left(self, nodes: Nodes, most: int, seconds: float) -> bool:
        """Whether no more than so many jobs are left, within that time."""
        deadline, few = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            queues = await nodes.messages(QUEUE)
            few = few + 1 if queues is not None and sum(_open(queues).values()) <= most else 0
            if few == SURE_AFTER:
                return True
            await asyncio.sleep(1)
        return False

    async def _drain(self, publisher: Publisher, nodes: Nodes) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        accompanying = asyncio.create_task(self._accompany(publisher, nodes))
        while time.monotonic() < deadline:
            if await self._until_left(nodes, 0, DRAIN_SECONDS) and not any(
                _open(await nodes.counted(QUEUE)).values()
            ):
                break
        accompanying.cancel()
        await asyncio.wait([accompanying])

    async def _accompany(self, publisher: Publisher, nodes: Nodes) -> None:
        """Have each replica start some more jobs while any are left.

        A job whose flow is denied is parked until others go through, and these may have been the
        last ones.
        """
        for number in itertools.count():
            await asyncio.sleep(COMPANIONS_EVERY)
            left = await nodes.messages(QUEUE)
            if left is not None and any(_open(left).values()) and self.options.kestra == "standin":
                many = 2 * self.options.replicas
                companions = [jobs.companion(number * many + one) for one in range(many)]
                await publisher.send(companions, rate=self.options.rate, until=None)

    async def _collect(
        self, publisher: Publisher, replicas: list[Replica], kestra: Kestra, nodes: Nodes
    ) -> None:
        """Ask every witness."""
        for replica in replicas:
            with suppress(OSError):
                self.note(await replica.in_flight())
        await asyncio.gather(*(replica.stop() for replica in replicas))
        self.events += [record.as_event() for record in publisher.records]
        self.events += await kestra.executions()
        for queue, messages in _open(await nodes.counted(QUEUE)).items():
            self.note(Left(queue=queue, messages=messages))
        self.events += await _dead_letters(nodes)
        for replica in replicas:
            self.events += replica.confessions()

    @asynccontextmanager
    async def _minding(
        self, replicas: list[Replica], publisher: Publisher, nodes: Nodes
    ) -> AsyncIterator[None]:
        """Look after the replicas and tell of the progress, while the block lasts."""

        async def mind() -> None:
            for seconds in itertools.count(1):
                await asyncio.sleep(1)
                for replica in replicas:
                    if not replica.busy.locked():
                        await replica.mind()
                if seconds % 10 == 0:
                    left = await nodes.messages(QUEUE)
                    told = "?" if left is None else sum(_open(left).values())
                    self.say(f"{len(publisher.records)} published, {self.acked} acks, {told} left")

        task = asyncio.create_task(mind())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A witness that fails must not look like one that saw nothing."""
        error = context.get("exception")
        if isinstance(error, (OSError, aio_pika.exceptions.AMQPError)):
            return
        self.note(Trouble(replica="driver", what=f"{context['message']}: {error!r}"))
        loop.default_exception_handler(context)


def _open(queues: dict[str, int]) -> dict[str, int]:
    """The queues that must be empty in the end."""
    kept = (dead_queue(""), ledger_queue(""))
    return {name: messages for name, messages in queues.items() if not name.endswith(kept)}


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()


async def _dead_letters(nodes: Nodes) -> list[DeadLetter]:
    queue = f"{QUEUE}.dead"
    async with Client.connect(nodes.all[0].amqp_url) as client:
        letters = await client.take(queue, await client.depth(queue), timeout=60)
    return [_dead_letter(letter) for letter in letters]


def _dead_letter(letter: AbstractIncomingMessage) -> DeadLetter:
    """A letter as the history has it. One that the bridge did not write says all that it has."""
    headers = letter.headers
    execution = headers.get("x-bridge-execution")
    if "x-bridge-reason" in headers:
        reason, error = str(headers["x-bridge-reason"]), str(headers["x-bridge-error"])
    else:
        reason = "not by the bridge"
        error = f"exchange {letter.exchange!r}, key {letter.routing_key!r}, headers {headers!r}"
    return DeadLetter(
        job=str(letter.message_id),
        attempt=int(str(headers.get("x-bridge-attempt", 1))),
        reason=reason,
        error=error,
        execution=str(execution) if execution else None,
    )
