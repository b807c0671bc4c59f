"""Ends a command on SIGTERM, Ctrl-C or the end of its terminal: it is cancelled once, and ends when
it has cleaned up.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Result = TypeVar("Result")


class Signalled(Exception):
    """The work was cancelled by a signal and has cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.number).name

    @property
    def code(self) -> int:
        """The exit code that a shell gives to such an end."""
        return 128 + self.number


def cancelling_signals() -> tuple[signal.Signals, ...]:
    """The signals that cancel a command. The end of its terminal does, unless nohup started it."""
    ignores_hang_up = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return STOP_SIGNALS if ignores_hang_up else (*STOP_SIGNALS, signal.SIGHUP)


def carry_out(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, which runs in an event loop of its own.

    Raises:
        Signalled: a signal cancelled it.
    """
    return asyncio.run(until_signalled(work))


async def until_signalled(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work. The first signal cancels it; further signals don't interrupt its
    cleaning up.

    Raises:
        Signalled: a signal cancelled it.
    """
    received: list[int] = []
    task = asyncio.create_task(work, name="command")

    def stop(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    for number in cancelling_signals():
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise Signalled(received[0]) from None


@contextmanager
def handled(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `on_signal` in the running loop for each SIGTERM and Ctrl-C within the block."""
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
