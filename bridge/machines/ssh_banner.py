"""Whether a machine speaks SSH yet.

That something accepts connections says little: QEMU does so before the machine.
"""

from __future__ import annotations

import asyncio
import os
from typing import Self

from bridge.aio import cancelled

SILENT = "nothing speaks SSH there"
AT_ONCE = 4
"""Connections that wait at the same time. An sshd may hold many of them against their address
(sshd_config's PerSourcePenalties)."""
PAUSE = 0.1
"""Seconds after a connection that failed."""


class NoBannerError(Exception):
    """Nothing spoke SSH there. The text says why, without a name or an address."""


def answer_wait(first: float, waited: float, left: float) -> float:
    """The seconds to wait for one answer, after `waited` seconds in all, with `left` to go.

    It grows with the time that was waited already. On a host so busy that every answer takes longer
    than the first wait, no number of such waits would ever see one.
    """
    return min(max(first, waited / 4), left)


class BannerWait:
    """A wait for a machine's SSH banner, of `seconds` in all. Use it as an async context manager,
    which ends its connections.

    A connection that was begun before the machine was on its network may never be answered, and one
    to a slow machine is answered late. So the next one is begun while earlier ones still wait.
    """

    def __init__(self, seconds: float, *, first_wait: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._seconds = seconds
        self._first_wait = first_wait
        self._connections: set[asyncio.Task[str]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(*self._connections)

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until it is over; negative after that."""
        return self._seconds - self.waited

    async def once(self, host: str, port: int) -> None:
        """Begin a connection, and return once a banner comes on it or on an earlier one.

        Raises:
            NoBannerError: the connection failed, or it is time to begin the next one. The caller
                can do so at once.
        """
        wait = answer_wait(self._first_wait, self.waited, self.left)
        newest = asyncio.create_task(_trouble(host, port, wait))
        self._connections.add(newest)
        next_at = self._clock() + wait / AT_ONCE
        while True:
            ended, self._connections = await asyncio.wait(
                self._connections,
                timeout=max(0.0, next_at - self._clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if any(not connection.result() for connection in ended):
                return await cancelled(*self._connections)
            if newest in ended:
                await asyncio.sleep(PAUSE)
                raise NoBannerError(newest.result())
            if not ended:
                raise NoBannerError(SILENT)


async def _trouble(host: str, port: int, wait: float) -> str:
    """Make one connection. Returns an empty text once an SSH banner comes, or why none came within
    that many seconds.
    """
    try:
        async with asyncio.timeout(wait):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                first = await reader.readexactly(4)
            finally:
                writer.transport.abort()
    except (TimeoutError, asyncio.IncompleteReadError):
        return SILENT
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return "" if first == b"SSH-" else SILENT
