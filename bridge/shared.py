"""One answer for all who ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
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
