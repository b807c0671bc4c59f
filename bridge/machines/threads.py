"""Calls that block, in threads that no end of the process waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """What the function returns or raises, called in a thread of its own.

    `asyncio.to_thread` would hold up the end of the process until the function returns, which for a
    provider that hangs takes a minute.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()

    def give(result: Result) -> None:
        if not answer.cancelled():
            answer.set_result(result)

    def fail(error: Exception) -> None:
        if not answer.cancelled():
            answer.set_exception(error)

    def work() -> None:
        # The loop is closed if nobody waits any more.
        with suppress(RuntimeError):
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 (handed over, not swallowed)
                loop.call_soon_threadsafe(fail, error)
            else:
                loop.call_soon_threadsafe(give, result)

    threading.Thread(target=work, daemon=True, name="provider").start()
    return await answer
