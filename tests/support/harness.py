"""What the tests of a running bridge share: the bridge as a subprocess, a client of the broker, a
failing proxy."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import aio_pika
import httpx
from aio_pika.abc import AbstractIncomingMessage
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from bridge.consume.claiming import Ledger
from bridge.consume.denials import DenialPolicy, Denials
from bridge.consume.lookup import Lookup, LookupPolicy
from bridge.consume.ports import KestraPort
from bridge.consume.starter import Starter, StartPolicy
from bridge.retrying import Retrying
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child
from tests.support.standin import Standin

Value = TypeVar("Value")


@overload
async def eventually(
    probe: Callable[[], Awaitable[Value]], what: str, *, timeout: float = 30.0, every: float = 0.05
) -> Value: ...


@overload
async def eventually(
    probe: Callable[[], Value], what: str, *, timeout: float = 30.0, every: float = 0.05
) -> Value: ...


async def eventually(
    probe: Callable[[], Any], what: str, *, timeout: float = 30.0, every: float = 0.05
) -> Any:
    """The first true value of `probe`, asked again and again; fails with `what` after `timeout`
    seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        found = probe()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        assert asyncio.get_running_loop().time() < deadline, (
            f"not within {timeout:g} s: {what} (last seen: {value!r})"
        )
        await asyncio.sleep(every)


class Bridge:
    """`kestra-bridge run` as a subprocess, its log lines and its metrics."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str], *, name: str = "bridge"
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._directory = directory
        self.environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("BRIDGE_", "OTEL_"))
            },
            "BRIDGE_HTTP_PORT": "0",
            "BRIDGE_LOG_FORMAT": "json",
            "BRIDGE_RECONCILE_INTERVAL": "1",
            "BRIDGE_ADOPT_GRACE": "2",
            "BRIDGE_AMBIGUOUS_WAIT": "3",
            "BRIDGE_RETRY_DELAYS": "[1]",
            "PYTHONPATH": str(REPOSITORY),
            **environment,
        }
        self._child: Child | None = None
        self._http = ""

    async def start(self, *, until: str | None = "consuming", timeout: float = 90.0) -> Self:
        """Start it, and return once it has logged the event `until`."""
        before = self.count(until) if until else 0
        command = [sys.executable, "-m", "bridge", "run"]
        self._http = ""
        self._child = Child(
            self.name, command, log=self.log, env=self.environment, cwd=self._directory
        )
        if until:
            await eventually(
                lambda: self.count(until) > before or not self.child.alive,
                f"{self.name}: {until}",
                timeout=timeout,
            )
            assert self.count(until) > before, (
                f"{self.name} ended with {self.child.returncode}{self.child.tail()}"
            )
        return self

    @property
    def child(self) -> Child:
        assert self._child is not None, "not started"
        return self._child

    async def exit_code(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended by itself."""
        return await asyncio.to_thread(self.child.wait, timeout)

    async def stop(self, timeout: float = 45.0) -> int:
        """SIGTERM, and its exit status."""
        self.child.signal(signal.SIGTERM)
        return await self.exit_code(timeout)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.child.kill()

    def end(self) -> None:
        """Leave nothing of it behind, whether it was started or not."""
        if self._child is not None:
            self._child.kill()

    def events(self, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """The log lines with that event and those fields, oldest first."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        found = []
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                if event in (None, entry.get("event")) and fields.items() <= entry.items():
                    found.append(entry)
        return found

    def count(self, event: str | None, **fields: object) -> int:
        return len(self.events(event, **fields))

    async def settled(
        self, count: int = 1, *, timeout: float = 30.0, **fields: object
    ) -> list[dict[str, Any]]:
        """The lines of settled deliveries with those fields, once there are so many."""
        await eventually(
            lambda: self.count("settled", **fields) >= count,
            f"{count} settled {fields}",
            timeout=timeout,
        )
        return self.events("settled", **fields)

    @property
    def http(self) -> str:
        self._http = self._http or str(self.events("starting", pid=self.child.pid)[-1]["http"])
        return self._http

    async def health(self, which: str) -> tuple[int, dict[str, bool]]:
        """The status and the conditions of `/health/live` or `/health/ready`."""
        url = f"{self.http}/health/{which}"
        async with httpx.AsyncClient() as client:
            answer = await client.get(url)
        return answer.status_code, answer.json()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with those labels; 0 where there's none."""
        return metric(await asyncio.to_thread(scrape, self.http), name, **labels)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def scrape(url: str) -> str:
    """The metrics that a bridge serves."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
        return str(response.read().decode())


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples with those labels; 0 where there's none."""
    samples = (
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    )
    return sum(
        sample.value
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@dataclass
class Ended:
    """A command that has ended: its status and what it said."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@asynccontextmanager
async def commanding(*words: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`kestra-bridge` with these words and settings (such as `BRIDGE_QUEUE`) under way; killed at
    the block's end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bridge",
        *words,
        env=surroundings(settings),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process: asyncio.subprocess.Process, stdin: str = "") -> Ended:
    """How a command ended that was given this to read."""
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def on_a_terminal(*words: str, columns: int, answer: str = "", **settings: str) -> str:
    """What a person with so many columns sees of `kestra-bridge`, who types that answer where
    something is asked."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = surroundings(settings) | {"COLUMNS": str(columns), "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-m", "bridge", *words], environment)  # noqa: S606 (no shell on purpose)
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and (data := os.read(terminal, 65536)):
            shown += data
            if answer and shown.rstrip().endswith(b"]:"):
                os.write(terminal, answer.encode())
                answer = ""
    except OSError:
        pass  # how the kernel tells that the other side has closed
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode()


def surroundings(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command: ours, and these settings in the place of those in it."""
    ours = {
        key: value for key, value in os.environ.items() if not key.startswith(("BRIDGE_", "OTEL_"))
    }
    return {**ours, "PYTHONPATH": str(REPOSITORY), **settings}


def another_bridge(
    bridges: list[Bridge],
    directory: Path,
    environment: Mapping[str, str],
    settings: Mapping[str, object],
) -> Bridge:
    """One more of a test's replicas, not started yet; `settings` are names of settings in lower
    case."""
    given = {f"BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    bridge = Bridge(directory, {**environment, **given}, name=f"bridge-{len(bridges) + 1}")
    bridges.append(bridge)
    return bridge


def answers(metrics: Metrics, operation: str) -> float:
    """How many requests of that operation Kestra has answered with status 200, as a client's
    metrics count them."""
    name = "bridge_kestra_request_seconds_count"
    return metrics.registry.get_sample_value(name, {"operation": operation, "code": "200"}) or 0


LOOKUP = LookupPolicy(window=3600)
DENIALS = DenialPolicy()
START = StartPolicy()


def lookup_of(kestra: KestraPort, metrics: Metrics, policy: LookupPolicy = LOOKUP) -> Lookup:
    """What looks for executions there."""
    return Lookup(kestra=kestra, metrics=metrics, retrying=Retrying(), policy=policy)


def starter_of(
    kestra: KestraPort,
    metrics: Metrics,
    *,
    grace: float = 0.2,
    lookup: Lookup | None = None,
    ledger: Ledger | None = None,
    denials: DenialPolicy = DENIALS,
    policy: StartPolicy = START,
) -> Starter:
    """What starts executions there; it looks for one for that many seconds before it creates
    another."""
    return Starter(
        kestra=kestra,
        metrics=metrics,
        retrying=Retrying(),
        lookup=lookup or lookup_of(kestra, metrics),
        ledgers={"": ledger} if ledger else {},
        denials=Denials(kestra, denials),
        policy=replace(policy, adopt_grace=grace, ambiguous_wait=grace),
    )


def settings_of(kestra: Standin) -> KestraSettings:
    """What a client of that stand-in is made with."""
    return KestraSettings(
        kestra_url=kestra.url,
        kestra_username=kestra.username,
        kestra_password=SecretStr(kestra.password),
    )


@dataclass
class Client:
    """A publisher upstream of the bridge, and an operator who looks into queues."""

    channel: aio_pika.abc.AbstractChannel
    connection: aio_pika.abc.AbstractConnection
    kept: list[AbstractIncomingMessage] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        connection = await aio_pika.connect(url)
        try:
            yield cls(await connection.channel(on_return_raises=True), connection)
        finally:
            with suppress(ConnectionError):  # of a broker that the test took away
                await connection.close()

    async def submit(
        self, queue: str, body: object = None, *, job: str | None = None, **properties: Any
    ) -> None:
        """Publish a job message by confirm; `body` is JSON, or bytes as they are."""
        payload = (
            body
            if isinstance(body, bytes)
            else json.dumps(body if body is not None else {}).encode()
        )
        message = aio_pika.Message(
            payload, message_id=job, content_type="application/json", delivery_mode=2, **properties
        )
        await self.channel.default_exchange.publish(message, queue, mandatory=True)

    async def depth(self, queue: str) -> int:
        """How many messages are ready in a queue (not those that a consumer holds)."""
        async with self.connection.channel() as channel:
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0

    async def take(
        self, queue: str, count: int = 1, *, timeout: float = 30.0
    ) -> list[AbstractIncomingMessage]:
        """That many messages of a queue, acked, oldest first; fails if they don't come."""
        taken: list[AbstractIncomingMessage] = []
        declared = await self.channel.get_queue(queue, ensure=False)
        deadline = asyncio.get_running_loop().time() + timeout
        while len(taken) < count:
            message = await declared.get(fail=False)
            if message is not None:
                await message.ack()
                taken.append(message)
            elif asyncio.get_running_loop().time() > deadline:
                raise AssertionError(
                    f"{len(taken)} of {count} messages in {queue} within {timeout:g} s"
                )
            else:
                await asyncio.sleep(0.05)
        return taken

    async def reply_queue(self) -> tuple[str, asyncio.Queue[dict[str, Any]]]:
        """An exclusive queue for results, and what arrives in it."""
        queue = await self.channel.declare_queue(exclusive=True)
        results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def receive(message: AbstractIncomingMessage) -> None:
            results.put_nowait(
                json.loads(message.body) | {"correlation_id": message.correlation_id}
            )

        await queue.consume(receive, no_ack=True)
        return queue.name, results


Watcher = Callable[[bytes], None]


class Proxy:
    """A TCP proxy on loopback that can cut, refuse, stall and slow (`delay`, seconds) what goes
    through it.

    With `tls` it speaks that itself.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = (host, port)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.refusing = False
        self.delay = 0.0
        self.connections = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """End every connection at once, as a pulled cable and a reset would."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Let nothing through in either direction until `resume`; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.resume()
        self._server.close()
        self.cut()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            up_reader, up_writer = await self._open()
        except OSError:
            writer.transport.abort()
            return
        sent, answered = self._watchers()
        self._writers |= {writer, up_writer}
        await asyncio.gather(
            self._pump(reader, up_writer, sent), self._pump(up_reader, writer, answered)
        )
        self._writers -= {writer, up_writer}

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._target)

    def _watchers(self) -> tuple[Watcher, Watcher]:
        """Who sees, as it comes in, what a new connection's client sends, and what it is
        answered."""
        return _ignore, _ignore

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, watcher: Watcher
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                watcher(data)
                await asyncio.sleep(self.delay)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.close()


def _ignore(_: bytes) -> None:
    """See nothing."""
