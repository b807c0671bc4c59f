"""Small pieces of asyncio: a lock for each key, and one call shared by many callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


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

    An error of the call is raised to all of its callers.
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
