"""The least code that does the bridge's input and output for each job, to measure the bridge
against.

For each message it asks Kestra by label (unless BRIDGE_DEDUPLICATE is `redelivered`), creates the
execution, waits for its reply and acks, by the same libraries and with as many messages at once. It
checks nothing, tries nothing again, counts nothing and logs nothing, so it is no way to run jobs.
It reads the bridge's settings from the environment; its arguments are how many jobs there are, and
where to write when each was delivered and acked.
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

FLOW = os.environ.get("BRIDGE_FLOW", "")
PREFETCH = int(os.environ.get("BRIDGE_PREFETCH", "8"))
LOOKS = os.environ.get("BRIDGE_DEDUPLICATE", "always") == "always"
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
    def __init__(self, http: httpx.AsyncClient, replies: Replies, jobs: int) -> None:
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
            await self._replies.wait(await self._create(job, json.loads(message.body)["inputs"]))
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


async def main(jobs: int, output: Path) -> None:
    auth = (os.environ["BRIDGE_KESTRA_USERNAME"], os.environ["BRIDGE_KESTRA_PASSWORD"])
    limits = httpx.Limits(max_keepalive_connections=REQUESTS_AT_ONCE)
    async with (
        await aio_pika.connect(os.environ["BRIDGE_AMQP_URL"]) as connection,
        httpx.AsyncClient(
            base_url=f"{os.environ['BRIDGE_KESTRA_URL']}/api/v1/main",
            auth=auth,
            limits=limits,
            timeout=60,
        ) as http,
    ):
        loop = Loop(http, await _follow_replies(connection), jobs)
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(os.environ["BRIDGE_QUEUE"], ensure=False)
        await queue.consume(loop.handle)
        await loop.done.wait()
        partial = output.with_suffix(".partial")
        partial.write_text(json.dumps(loop.times))
        partial.rename(output)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
