"""Waits until a machine speaks SSH.

That something accepts connections says little: QEMU does so before the machine.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from bridge.aio import cancelled

SILENT = "nothing speaks SSH there"
AT_ONCE = 4
"""Connections that wait at the same time. An sshd may hold many of them against their address
(sshd_config's PerSourcePenalties)."""
PAUSE = 0.1
"""Seconds after a connection that failed."""
BOOTED_AFTER = 16.0
"""Seconds. A machine that is older has most likely booted."""
_SHARE = 8


class NoBannerError(Exception):
    """Nothing spoke SSH there. The text says why, without a name or an address."""


def next_after(shortest: float, *, waited: float, age: float) -> float:
    """The seconds from the beginning of one connection to that of the next, on a machine of that
    age, after a wait of `waited` seconds in all.

    Each connection costs the machine the start of a process. A machine whose host is busy would
    answer none if new ones came quicker than it serves them. It boots as slowly as it answers, so
    they come at a share of its age. One that has booted needs no more than time.
    """
    return max(shortest, waited / _SHARE, min(age, BOOTED_AFTER) / _SHARE)


class BannerWait:
    """A wait for a machine's SSH banner, of `seconds` in all. Use it as an async context manager,
    which ends its connections.

    The machine is `age` seconds old when the wait begins, and `shortest` is the shortest time from
    one connection to the next. A connection that was begun before the machine was on its network
    may never be answered, so the next one is begun while earlier ones still wait.
    """

    def __init__(self, seconds: float, *, shortest: float, age: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._seconds = seconds
        self._shortest = shortest
        self._age = age
        self._connections: set[asyncio.Task[socket.socket]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hang_up()

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until it is over; negative after that."""
        return self._seconds - self.waited

    async def once(self, host: str, port: int) -> socket.socket:
        """Begin a connection, and return the one on which a banner comes, it or an earlier one.

        The banner has not been read yet. The caller has to close the connection.

        Raises:
            NoBannerError: the connection failed, or it is time to begin the next one. The caller
                can do so at once.
        """
        pause = next_after(self._shortest, waited=self.waited, age=self._age + self.waited)
        newest = asyncio.create_task(_speaking(host, port, min(AT_ONCE * pause, self.left)))
        self._connections.add(newest)
        next_at = self._clock() + pause
        while True:
            ended, self._connections = await asyncio.wait(
                self._connections,
                timeout=max(0.0, next_at - self._clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            speaking = [connection.result() for connection in ended if not connection.exception()]
            if speaking:
                first, *others = speaking
                for another in others:
                    another.close()
                with _closed_on_failure(first):
                    await self._hang_up()
                return first
            if newest in ended:
                await asyncio.sleep(PAUSE)
                raise NoBannerError(str(newest.exception()))
            if not ended:
                raise NoBannerError(SILENT)

    async def _hang_up(self) -> None:
        await cancelled(*self._connections)
        for connection in self._connections:
            if not connection.cancelled() and not connection.exception():
                connection.result().close()
        self._connections = set()


async def _speaking(host: str, port: int, seconds: float) -> socket.socket:
    """A connection on which an SSH banner has come within that many seconds.

    Raises:
        NoBannerError: none came.
    """
    try:
        async with asyncio.timeout(seconds):
            connection = await _connected(host, port)
            with _closed_on_failure(connection):
                await _hear_banner(connection)
            return connection
    except TimeoutError:
        raise NoBannerError(SILENT) from None
    except OSError as error:
        raise NoBannerError(_reason(error)) from error


async def _connected(host: str, port: int) -> socket.socket:
    """A connection to the first address of that host which accepts one.

    Raises:
        OSError: none does.
    """
    loop = asyncio.get_running_loop()
    refusal = OSError("it has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        try:
            with _closed_on_failure(connection):
                await loop.sock_connect(connection, address)
        except OSError as error:
            refusal = error
        else:
            return connection
    raise refusal


async def _hear_banner(connection: socket.socket) -> None:
    """Wait until a banner can be read.

    Raises:
        NoBannerError: something else came, or the other side has hung up.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    if connection.recv(4, socket.MSG_PEEK) != b"SSH-":
        raise NoBannerError(SILENT)


@contextmanager
def _closed_on_failure(connection: socket.socket) -> Iterator[None]:
    """Close the connection if the block fails or is cancelled."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
