"""Small pieces of asyncio: a lock for each key, and one call for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class KeyedLock:
    """Serialises what is done about one key, while different keys go on side by side."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Have the key to oneself; others who ask for it wait their turn."""
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
    """Asks one at a time: who asks while a question is under way shares the next.

    What the question raises is raised to all who share it.
    """

    def __init__(self, question: Callable[[], Awaitable[Answer]]) -> None:
        self._question = question
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Answer] | None = None

    async def __call__(self) -> Answer:
        """The answer to a question that was asked after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask(), name="shared question")
            self._next.add_done_callback(_take_note)
        # One who gives up must not take the answer from the others.
        return await asyncio.shield(self._next)

    async def _ask(self) -> Answer:
        async with self._turn:
            self._next = None
            return await self._question()


def _take_note(task: asyncio.Task[Answer]) -> None:
    """An error that nobody waits for any more is no error."""
    if not task.cancelled():
        task.exception()
