"""Small pieces of asyncio: locks by key, shared calls, waits for the first of several, and work in
the background.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

CANCEL_AGAIN = 2.0
"""Seconds after which a task that goes on is cancelled again; what it tidies up takes less."""


class KeyedLock:
    """Serialises work on the same key; work on different keys runs concurrently."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the key within the block; other callers wait for it."""
        lock, holders = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, holders + 1)
        try:
            async with lock:
                yield
        finally:
            lock, holders = self._locks.pop(key)
            if holders > 1:
                self._locks[key] = (lock, holders - 1)


class SingleFlight(Generic[Answer]):
    """Runs one call at a time; callers that arrive meanwhile share the next one.

    What the call raises is raised to all that share it.
    """

    def __init__(self, question: Callable[[], Awaitable[Answer]]) -> None:
        self._question = question
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Answer] | None = None

    async def __call__(self) -> Answer:
        """The answer of a call that began after this one was made."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask(), name="shared question")
            self._next.add_done_callback(_retrieve_error)
        # A caller that is cancelled must not cancel the call of the others.
        return await asyncio.shield(self._next)

    async def _ask(self) -> Answer:
        async with self._turn:
            self._next = None
            return await self._question()


def _retrieve_error(task: asyncio.Task[Answer]) -> None:
    """Retrieve the error of a task: asyncio logs one that nothing has asked for."""
    if not task.cancelled():
        task.exception()


async def first_of(*waits: Awaitable[object], timeout: float | None = None) -> None:
    """Return when the first of them is done, or after `timeout` seconds.

    A coroutine that is not done is cancelled then; a task or a future goes on.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:
                task.cancel()


async def cancelled(*tasks: asyncio.Task[Any], again: float = CANCEL_AGAIN) -> None:
    """Cancel tasks and return when all are done.

    A cancellation can be lost: before Python 3.12, `asyncio.wait_for` returns the result of a call
    that is done in the same moment (python/cpython#86296), and aiormq waits for each answer with
    it. So what goes on is cancelled again, after `again` seconds.
    """
    going_on = set(tasks)
    while going_on:
        for task in going_on:
            task.cancel()
        _, going_on = await asyncio.wait(going_on, timeout=again)


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Do all of it at once. The first failure ends it all, and is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancelled(*tasks)


async def unless_set(stop: asyncio.Event, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """What the work returns, or None where `stop` is set before; the work is cancelled then."""
    task = asyncio.create_task(work)
    try:
        await first_of(task, stop.wait())
        if task.done():
            return task.result()
    finally:
        await cancelled(task)
    return None


class Background:
    """Work beside blocks. The first failure is kept in `failure`, and sets `stop`."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.failure: BaseException | None = None
        self._stop = stop

    @asynccontextmanager
    async def running(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Do the work beside the block; it is cancelled at the block's end."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._note_failure)
        try:
            yield
        finally:
            await cancelled(task)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.failure = self.failure or error
            self._stop.set()
