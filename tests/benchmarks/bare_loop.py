"""The least code that does the bridge's input and output for each job, to measure the bridge
against.

For each message it asks Kestra by label (only if BRIDGE_DEDUPLICATE is `always`), creates the
execution, waits for its reply and acks. It uses the same libraries as the bridge, with as many
messages at once. It checks nothing, repeats nothing, counts nothing and logs nothing, so it is no
way to run jobs. With `--accepted` it acks as soon as Kestra has accepted the execution. Kestra's
own RealtimeTrigger guarantees no more than that.

It reads the bridge's settings from the environment. Its arguments are how many jobs there are, and
the file in which it writes when each was delivered and acked.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import aio_pika
import httpx
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge.rabbitmq.topology import REPLIES
from tests.benchmarks.kestra import Kestra

FLOW = os.environ.get("BRIDGE_FLOW", "")
PREFETCH = int(os.environ.get("BRIDGE_PREFETCH", "8"))
LOOKS = os.environ.get("BRIDGE_DEDUPLICATE") == "always"
REQUESTS_AT_ONCE = 8
"""With more connections than that, the pool of httpx costs more than they give."""


class Replies:
    """The ends that were told, and who waits for one."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def receive(self, message: AbstractIncomingMessage) -> None:
        execution = json.loads(message.body)["executionId"]
        if execution in self._waiting:
            self._waiting.pop(execution).set_result(None)
        else:
            self._told.add(execution)

    async def wait(self, execution: str) -> None:
        if execution in self._told:
            self._told.remove(execution)
            return
        self._waiting[execution] = asyncio.get_running_loop().create_future()
        await self._waiting[execution]


class Loop:
    """The consumer. Without `replies` it doesn't wait for ends."""

    def __init__(self, http: httpx.AsyncClient, replies: Replies | None, jobs: int) -> None:
        self._http = http
        self._replies = replies
        self._jobs = jobs
        self._requests = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.times: list[tuple[float, float]] = []
        self.done = asyncio.Event()

    async def handle(self, message: AbstractIncomingMessage) -> None:
        delivered = time.time()
        job = str(message.message_id)
        if not LOOKS or not await self._find(job):
            execution = await self._create(job, json.loads(message.body)["inputs"])
            if self._replies:
                await self._replies.wait(execution)
        await message.ack()
        self.times.append((delivered, time.time()))
        if len(self.times) == self._jobs:
            self.done.set()

    async def _find(self, job: str) -> list[Any]:
        params = {
            "filters[labels][EQUALS][bridgeJob]": job,
            "filters[labels][EQUALS][bridgeAttempt]": "1",
            "filters[childFilter][EQUALS]": "MAIN",
            "page": "1",
            "size": "500",
            "sort": "state.startDate:asc",
        }
        async with self._requests:
            answer = await self._http.get("/executions/search", params=params)
        found: list[Any] = answer.json()["results"]
        return found

    async def _create(self, job: str, inputs: dict[str, str]) -> str:
        labels = {
            "bridge": "amqp",
            "bridgeJob": job,
            "bridgeAttempt": "1",
            "system.correlationId": job,
        }
        async with self._requests:
            answer = await self._http.post(
                f"/executions/{FLOW}",
                params=[("labels", f"{key}:{value}") for key, value in labels.items()],
                files=[(name, (None, value)) for name, value in inputs.items()],
            )
        return str(answer.json()["id"])


async def _follow_replies(connection: AbstractConnection) -> Replies:
    replies = Replies()
    channel = await connection.channel(publisher_confirms=False)
    exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange, "#")
    await queue.consume(replies.receive, no_ack=True)
    return replies


async def main(jobs: int, output: Path, *, waits: bool) -> None:
    limits = httpx.Limits(max_keepalive_connections=REQUESTS_AT_ONCE)
    async with (
        await aio_pika.connect(os.environ["BRIDGE_AMQP_URL"]) as connection,
        httpx.AsyncClient(**Kestra.of(os.environ).client, limits=limits) as http,
    ):
        loop = Loop(http, await _follow_replies(connection) if waits else None, jobs)
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(os.environ["BRIDGE_QUEUE"], ensure=False)
        await queue.consume(loop.handle)
        await loop.done.wait()
        partial = output.with_suffix(".partial")
        partial.write_text(json.dumps(loop.times))
        partial.rename(output)


if __name__ == "__main__":
    arguments = [each for each in sys.argv[1:] if each != "--accepted"]
    asyncio.run(main(int(arguments[0]), Path(arguments[1]), waits="--accepted" not in sys.argv))
