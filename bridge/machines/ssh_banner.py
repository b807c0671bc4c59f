"""Whether a machine speaks SSH yet. That something accepts connections says little: QEMU does so
before the machine.
"""

from __future__ import annotations

import asyncio

FIRST_WAIT = 1.0
"""Seconds. Short, as a machine that was not on its network yet when it was asked may never answer
that connection."""


class NoBannerError(Exception):
    """Nothing spoke SSH there; the text says why, without a name or an address."""


def patience(first: float, waited: float, left: float) -> float:
    """How many seconds to wait for one answer, having waited so many in all, with so many left.

    It grows with what was waited already: where a host is so busy that every answer takes longer
    than the first wait, no number of such waits would ever see one.
    """
    return min(max(first, waited / 4), left)


class BannerWait:
    """The wait for a machine's SSH banner, of so many seconds in all, over as many connections as
    it takes.
    """

    def __init__(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._seconds = seconds

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until it is over; below zero after that."""
        return self._seconds - self.waited

    async def once(self, host: str, port: int) -> None:
        """Return once an SSH banner comes by one connection.

        Raises:
            NoBannerError: none came by this one.
        """
        try:
            async with asyncio.timeout(patience(FIRST_WAIT, self.waited, self.left)):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    first = await reader.readexactly(4)
                finally:
                    writer.transport.abort()
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            raise NoBannerError("nothing speaks SSH there") from error
        except OSError as error:
            raise NoBannerError(error.strerror or str(error)) from error
        if first != b"SSH-":
            raise NoBannerError("nothing speaks SSH there")
