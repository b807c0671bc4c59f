"""Passes a run's output on."""

from __future__ import annotations

import asyncio
from typing import Protocol

import asyncssh

BLOCK_SIZE = 65_536


class Sink(Protocol):
    """Where output goes. It takes any bytes, and may take its time."""

    async def write(self, data: bytes) -> None:
        """Write these bytes."""

    async def flush(self) -> None:
        """Write what is still held back."""


class ScriptOutput:
    """The two outputs of a run, and how much of each was passed on."""

    def __init__(self, out: Sink, err: Sink) -> None:
        self._sinks = (out, err)
        self.seen = [0, 0]
        """Bytes of standard output and standard error."""

    @property
    def total_seen(self) -> int:
        """Bytes of both."""
        return sum(self.seen)

    async def pass_on(self, process: asyncssh.SSHClientProcess[bytes]) -> int | None:
        """Pass the outputs on until the process has ended, and return its exit status.

        Raises:
            asyncssh.Error, ConnectionError: the connection was lost.
        """
        pumps = [
            asyncio.create_task(self._pump(process.stdout, 0)),
            asyncio.create_task(self._pump(process.stderr, 1)),
        ]
        try:
            await self._finish(pumps)
            await process.wait_closed()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            # Not waited for: a machine that is frozen would hold up the stop that may follow.
            process.channel.abort()
        for sink in self._sinks:
            await sink.flush()
        return process.exit_status

    async def _pump(self, reader: asyncssh.SSHReader[bytes], which: int) -> None:
        while data := await reader.read(BLOCK_SIZE):
            self.seen[which] += len(data)
            await self._sinks[which].write(data)

    async def _finish(self, pumps: list[asyncio.Task[None]]) -> None:
        """Wait for both pumps.

        If one notices a lost connection, it must not cut the other short in the middle of a write.
        """
        await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        errors = []
        for pump in pumps:
            error = pump.exception() if pump.done() else None
            if error is not None:
                errors.append(error)
        if not errors:
            return
        if isinstance(errors[0], (asyncssh.Error, ConnectionError)):
            await asyncio.wait(pumps)
        raise errors[0]
