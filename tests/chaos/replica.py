"""One replica of the bridge, between two proxies that can fail."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from deploy.local.processes import Child
from tests.chaos.history import Event, Fault, InFlight, Killed, Memory, Trouble
from tests.chaos.tap import Address, Tap
from tests.support.harness import Bridge, Proxy

WRONG_SETTINGS = 2
_FAULT_OF_OURS = "a delivery could not be handled, trying again"


class Replica:
    """A bridge that is killed, paused and cut off, and what it says of itself."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        settings: Mapping[str, str],
        brokers: Callable[[], Sequence[Address]],
        kestra: Address,
        note: Callable[[Event], None],
    ) -> None:
        self.name = name
        self.tap = Tap(name, brokers, note)
        self.kestra = Proxy(*kestra)
        self.busy = asyncio.Lock()
        self._directory = directory
        self._settings = settings
        self._note = note
        self._stack = AsyncExitStack()
        self._bridge: Bridge | None = None
        self._meant_to_run = False

    @property
    def bridge(self) -> Bridge:
        assert self._bridge is not None, "not entered"
        return self._bridge

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.tap)
        await self._stack.enter_async_context(self.kestra)
        amqp = urlsplit(self._settings["BRIDGE_AMQP_URL"])
        through = {
            "BRIDGE_AMQP_URL": amqp._replace(
                netloc=f"{amqp.username}:{amqp.password}@127.0.0.1:{self.tap.port}"
            ).geturl(),
            "BRIDGE_KESTRA_URL": f"http://127.0.0.1:{self.kestra.port}",
        }
        self._bridge = Bridge(self._directory, {**self._settings, **through}, name=self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.bridge.end()
        await self._stack.aclose()

    async def start(self, *, ready: bool = False) -> None:
        """Start it; with `ready` wait until it consumes."""
        await self.bridge.start(until="consuming" if ready else None)
        self._meant_to_run = True

    def kill(self) -> None:
        self._meant_to_run = False
        self.bridge.kill()

    async def stop(self) -> None:
        """Stop it in order; that it doesn't come to an end so is noted."""
        self._meant_to_run = False
        try:
            code = await self.bridge.stop()
        except Exception as error:  # noqa: BLE001 (whatever it is, it belongs in the history)
            self._note(Trouble(replica=self.name, what=f"it does not stop: {error}"))
            self.bridge.kill()
        else:
            if code != 0:
                self._note(Trouble(replica=self.name, what=f"it stopped with exit status {code}"))

    def pause(self) -> None:
        self.bridge.child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.bridge.child.signal(signal.SIGCONT)

    async def mind(self) -> None:
        """Note its memory, and that it ended by itself, in which case it is started again."""
        if not self._meant_to_run:
            return
        child = self.bridge.child
        if not child.alive:
            self._note(self._ended_by_itself(child))
            await self.start()
            return
        with suppress(psutil.Error):
            resident = psutil.Process(child.pid).memory_info().rss
            self._note(Memory(at=time.time(), replica=self.name, pid=child.pid, resident=resident))

    def _ended_by_itself(self, child: Child) -> Event:
        """At its start it takes a refusal for a wrong setting and ends, as it should; it is to be
        started anew."""
        if child.returncode == WRONG_SETTINGS and any(
            words in child.tail(1)
            for words in ("refuses the credentials", "denies the user the right")
        ):
            return Fault(
                at=time.time(), until=time.time(), name="refused-at-its-start", target=self.name
            )
        return Trouble(
            replica=self.name, what=f"it ended by itself with {child.returncode}{child.tail(5)}"
        )

    async def in_flight(self) -> InFlight:
        """What it says that it holds."""
        return InFlight(
            replica=self.name, deliveries=int(await self.bridge.metric("bridge_in_flight"))
        )

    def confessions(self) -> Iterator[Event]:
        """What its log says against it."""
        for line in self.bridge.log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                yield Trouble(replica=self.name, what="a traceback in its log")
            with suppress(ValueError):
                entry: dict[str, Any] = json.loads(line)
                if entry["event"] == "a second execution of one attempt was killed":
                    yield Killed(replica=self.name, job=entry["job"], execution=entry["execution"])
                elif entry["event"] == _FAULT_OF_OURS:
                    yield Trouble(replica=self.name, what=line[:1000])
