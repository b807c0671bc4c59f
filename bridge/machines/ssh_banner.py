"""Whether a machine speaks SSH yet.

That something accepts connections says little: QEMU does so before the machine.
"""

from __future__ import annotations

import asyncio


class NoBannerError(Exception):
    """Nothing spoke SSH there. The text says why, without a name or an address."""


def answer_wait(first: float, waited: float, left: float) -> float:
    """The seconds to wait for one answer, after `waited` seconds in all, with `left` to go.

    It grows with the time that was waited already. On a host so busy that every answer takes longer
    than the first wait, no number of such waits would ever see one.
    """
    return min(max(first, waited / 4), left)


class BannerWait:
    """A wait for a machine's SSH banner, of `seconds` in all, over any number of connections."""

    def __init__(self, seconds: float, *, first_wait: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._seconds = seconds
        self._first_wait = first_wait

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until it is over; negative after that."""
        return self._seconds - self.waited

    async def once(self, host: str, port: int) -> None:
        """Make one connection, and return once an SSH banner comes.

        Raises:
            NoBannerError: none came on this connection.
        """
        try:
            async with asyncio.timeout(answer_wait(self._first_wait, self.waited, self.left)):
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
