"""The stand-in for Kestra as a process of its own, told over a socket what is to go wrong and asked what happened.

Each line on the socket is a JSON object with `do` and its arguments, and is answered by one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractExchange

from bridge.topology import REPLIES
from tests.chaos.history import Execution, write
from tests.chaos.jobs import FLOW, behave
from tests.standin import EMPTY, HTML, TRUNCATED, Run, Standin

LATE_REPLY = 3.0
LOST_SHARE = 0.3
SLOW = 1.0
WRONG_BODIES = (EMPTY, TRUNCATED, HTML, ["?"], {"id": 5})
QUESTIONS = ("search", "get", "kill", "configs", "logs")


def _of_questions(*faults: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(question, fault) for question in QUESTIONS for fault in faults]


FAULTS: Mapping[str, list[tuple[str, dict[str, Any]]]] = {
    "create-500": [("create", {"status": 500})],
    "create-504": [("create", {"status": 504})],
    "create-500-worked": [("create", {"status": 500, "worked": True})],
    "create-504-worked": [("create", {"status": 504, "worked": True})],
    "create-502-late": [("create", {"status": 502, "body": HTML, "worked": True, "delay": SLOW})],
    "create-slow": [("create", {"delay": SLOW})],
    "create-hangs": [("create", {"hang": True}), ("create", {"hang": True, "worked": True})],
    "create-resets": [("create", {"reset": True}), ("create", {"reset": True, "worked": True})],
    "create-wrong-body": [
        *(("create", {"status": 200, "body": body, "worked": True}) for body in WRONG_BODIES),
        ("create", {"disappeared": True}),
    ],
    "questions-500": _of_questions({"status": 500}),
    "questions-slow": _of_questions({"delay": SLOW}),
    "questions-reset": _of_questions({"reset": True}),
    "questions-wrong-body": _of_questions(*({"status": 200, "body": body} for body in WRONG_BODIES)),
    "refused": [("*", {"status": 401}), ("*", {"status": 429})],
}
"""Which operations fail in which way, by the fault's name."""


class Notifier:
    """Publishes replies as the notifier flow does, without confirms; what can't be published is lost."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._exchange: AbstractExchange | None = None

    async def publish(self, reply: dict[str, Any]) -> None:
        key = f"{reply['state']}.{reply['namespace']}.{reply['flowId']}"
        try:
            async with asyncio.timeout(5):
                exchange = await self._open()
                await exchange.publish(aio_pika.Message(json.dumps(reply).encode()), key, mandatory=False)
        except (OSError, RuntimeError, TimeoutError, aio_pika.exceptions.AMQPError):
            self._exchange = None

    async def _open(self) -> AbstractExchange:
        async with self._opening:
            if self._exchange is None:
                await self._stack.aclose()
                url = random.choice(self._urls)  # noqa: S311
                connection = await self._stack.enter_async_context(await aio_pika.connect(url, timeout=3))
                channel = await connection.channel(publisher_confirms=False)
                self._exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)
            return self._exchange


class Server:
    """The stand-in and what it is told."""

    def __init__(self, kestra: Standin, stopping: asyncio.Event) -> None:
        self._kestra = kestra
        self._stopping = stopping

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do as the lines say, one after the other."""
        while line := await reader.readline():
            told = json.loads(line)
            act: Callable[..., Awaitable[Any]] = getattr(self, f"do_{told.pop('do')}")
            writer.write(json.dumps({"answer": await act(**told)}).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def do_where(self) -> dict[str, str]:
        kestra = self._kestra
        return {"url": kestra.url, "username": kestra.username, "password": kestra.password}

    async def do_fault(self, *, name: str, share: float) -> None:
        """Let a share of the requests go wrong in one way, until `clear`."""
        for operation, fault in FAULTS[name]:
            self._kestra.faults.add(operation, times=None, share=share, **fault)

    async def do_clear(self) -> None:
        self._kestra.faults.clear()

    async def do_down(self) -> None:
        await self._kestra.down()

    async def do_up(self) -> None:
        await self._kestra.up()

    async def do_replies(self, *, name: str) -> None:
        """Let replies go wrong in one way; `well` ends it."""
        replies = self._kestra.replies
        replies.drop = {"replies-lost": LOST_SHARE, "replies-all-lost": 1.0}.get(name, 0.0)
        replies.copies = 3 if name == "replies-doubled" else 1
        replies.delay = LATE_REPLY if name == "replies-late" else 0.0
        replies.shuffle = 8 if name == "replies-shuffled" else 0
        replies.early = name == "replies-early"
        await replies.release()

    async def do_dump(self, *, file: str) -> int:
        """Write down every execution there was."""
        runs = list(self._kestra.executions.values())
        await asyncio.to_thread(write, map(_as_event, runs), Path(file))
        return len(runs)

    async def do_stop(self) -> None:
        self._stopping.set()


def _as_event(run: Run) -> Execution:
    job, attempt = run.attempt
    states = tuple((state, moment.timestamp()) for state, moment in run.histories)
    return Execution(id=run.id, chain=run.original_id, job=job, attempt=int(attempt or 1), states=states)


async def _run() -> None:
    options = json.loads(os.environ["CHAOS_STANDIN"])
    random.seed(options["seed"])
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with Standin() as kestra:
        namespace, _, flow = FLOW.partition("/")
        kestra.flow(namespace, flow, behave)
        kestra.replies.on_end = Notifier(options["amqp"]).publish
        server = await asyncio.start_unix_server(Server(kestra, stopping).serve, options["socket"])
        async with server:
            await stopping.wait()


if __name__ == "__main__":
    asyncio.run(_run())
