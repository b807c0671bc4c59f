"""Writes a script's output to a file descriptor, in whole lines, without blocking."""

from __future__ import annotations

import asyncio
import os
import select

ATOMIC = 4096
"""Bytes that a pipe with any room accepts at once."""
LONGEST_HELD = 65_536


class OutputClosed(Exception):
    """The reader of our output has gone."""


class LineWriter:
    """Writes whole lines to a file descriptor, unchanged. It holds back only incomplete lines."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._held = bytearray()
        self._last = b"\n"

    async def write(self, data: bytes) -> None:
        """Write the lines that are complete, and very long ones in pieces."""
        self._held += data
        end = self._held.rfind(b"\n", len(self._held) - len(data)) + 1
        if not end and len(self._held) > LONGEST_HELD:
            end = len(self._held)
        if end:
            await self._put(bytes(self._held[:end]))
            del self._held[:end]

    async def flush(self) -> None:
        """Write what is held back."""
        await self._put(bytes(self._held))
        self._held.clear()

    async def line(self, text: str) -> None:
        """Write a line of our own. It starts on a new line whatever came before it."""
        if self._last != b"\n":
            await self._put(b"\n")
        await self._put(text.encode("utf-8", "backslashreplace") + b"\n")

    async def _put(self, data: bytes) -> None:
        for start in range(0, len(data), ATOMIC):
            piece = memoryview(data)[start : start + ATOMIC]
            while piece:
                await self._wait_for_room()
                try:
                    piece = piece[os.write(self._descriptor, piece) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    raise OutputClosed from error
        self._last = data[-1:] or self._last

    async def _wait_for_room(self) -> None:
        """Wait with the loop free, so that it answers the machine and notices signals."""
        if self._poll.poll(0):
            return
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._descriptor)
