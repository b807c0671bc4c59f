"""The stand-in for Kestra as a process of its own, told over a socket what is to go wrong and asked
what happened.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractExchange

from bridge.rabbitmq.topology import REPLIES
from tests.chaos.history import Execution, write
from tests.chaos.jobs import DENIED_FLOW, FLOW, MAX_ATTEMPTS, behave
from tests.support.standin import EMPTY, HTML, TRUNCATED, Call, Ends, Fault, Run, Standin

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
    "questions-wrong-body": _of_questions(
        *({"status": 200, "body": body} for body in WRONG_BODIES)
    ),
    "refused": [("*", {"status": 401}), ("*", {"status": 429})],
}
"""Which operations fail in which way, by the fault's name."""

VAIN_KILLS = ({"status": 404, "share": 1 / 3}, {"status": 409, "share": 1 / 2})
"""What a kill is answered while nothing is run, beside the usual answer."""
BROUGHT_BACK_WITHIN = (0.7, 1.8)
"""Seconds from a failure to what an operator does about it. The bridge confirms a failure for one
second, and its retry comes another one later at the soonest; an operator who acts after that runs a
job beside itself."""


class Notifier:
    """Publishes replies as the notifier flow does, without confirms; what can't be published is
    lost."""

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
                await exchange.publish(
                    aio_pika.Message(json.dumps(reply).encode()), key, mandatory=False
                )
        except (OSError, RuntimeError, TimeoutError, aio_pika.exceptions.AMQPError):
            self._exchange = None

    async def _open(self) -> AbstractExchange:
        async with self._opening:
            if self._exchange is None:
                await self._stack.aclose()
                url = random.choice(self._urls)  # noqa: S311
                connection = await self._stack.enter_async_context(
                    await aio_pika.connect(url, timeout=3)
                )
                channel = await connection.channel(publisher_confirms=False)
                self._exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)
            return self._exchange


class Operator:
    """Brings back executions that failed while another attempt is to come, as long as `how` says in
    which way."""

    def __init__(self, kestra: Standin) -> None:
        self._kestra = kestra
        self._tasks: set[asyncio.Task[None]] = set()
        self.how: str | None = None

    def behave(self, run: Run) -> Ends:
        """How an execution ends, after which the operator may come."""
        ends = behave(run)
        if (
            self.how
            and ends.state == "FAILED"
            and ends.after is not None
            and _attempt(run) < MAX_ATTEMPTS
        ):
            seconds = ends.after + random.uniform(*BROUGHT_BACK_WITHIN)  # noqa: S311
            task = asyncio.create_task(self._bring_back(run, self.how, seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return ends

    async def _bring_back(self, run: Run, how: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._is_between_attempts(run):
            return
        if how == "operator-changes":
            await self._kestra.end(run.id, "SUCCESS")
        else:
            state = random.choice(("SUCCESS", "FAILED"))  # noqa: S311
            self._kestra.restart(run.id, Ends(state, run.ends.after))

    def _is_between_attempts(self, run: Run) -> bool:
        if run.state != "FAILED" or run.ended is None:
            return False
        ago = (datetime.now(UTC) - run.ended).total_seconds()
        return ago <= BROUGHT_BACK_WITHIN[1] and not self._kestra.executions_of(
            run.attempt[0], _attempt(run) + 1
        )


class Server:
    """The stand-in and what it is told."""

    def __init__(self, kestra: Standin, operator: Operator, stopping: asyncio.Event) -> None:
        self._kestra = kestra
        self._operator = operator
        self._stopping = stopping
        self._faults: list[Fault] = []
        self._vain_kills: list[Fault] = []

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
            self._faults.append(
                self._kestra.faults.add(operation, times=None, share=share, **fault)
            )

    async def do_clear(self) -> None:
        self._remove(self._faults)

    async def do_halt(self) -> None:
        """Take creates and kills, and run nothing until `go_on`."""
        self._kestra.halt()
        for fault in VAIN_KILLS:
            self._vain_kills.append(
                self._kestra.faults.add("kill", times=None, worked=True, **fault)
            )

    async def do_go_on(self) -> None:
        self._remove(self._vain_kills)
        self._kestra.go_on()

    async def do_operate(self, *, how: str | None) -> None:
        """Have an operator bring back what fails from now on, or leave it alone."""
        self._operator.how = how

    async def do_date(self, *, skew: float | None) -> None:
        """Date answers so many seconds ahead, or rightly."""
        self._kestra.date_skew = None if skew is None else timedelta(seconds=skew)

    def _remove(self, faults: list[Fault]) -> None:
        while faults:
            self._kestra.faults.remove(faults.pop())

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
    return Execution(
        id=run.id,
        chain=run.original_id,
        job=run.attempt[0],
        attempt=_attempt(run),
        states=tuple((state, moment.timestamp()) for state, moment in run.histories),
        kills=tuple(moment.timestamp() for moment in run.kills),
    )


def _attempt(run: Run) -> int:
    return int(run.attempt[1] or 1)


def _of_the_denied_flow(call: Call) -> bool:
    return call.path.endswith(DENIED_FLOW)


async def _run() -> None:
    options = json.loads(os.environ["CHAOS_STANDIN"])
    random.seed(options["seed"])
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with Standin() as kestra:
        operator = Operator(kestra)
        for name in (FLOW, DENIED_FLOW):
            namespace, _, flow = name.partition("/")
            kestra.flow(namespace, flow, operator.behave)
        kestra.faults.add("create", times=None, status=403, when=_of_the_denied_flow)
        kestra.replies.on_end = Notifier(options["amqp"]).publish
        server = await asyncio.start_unix_server(
            Server(kestra, operator, stopping).serve, options["socket"]
        )
        async with server:
            await stopping.wait()


if __name__ == "__main__":
    asyncio.run(_run())
