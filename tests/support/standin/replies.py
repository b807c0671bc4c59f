"""The messages that the notifier flow would publish, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.standin.model import (
    Run,
)


class Replies:
    """What the notifier flow would publish at each end, brought to `on_end`, and what can go wrong
    with it.

    `drop` is the share that gets lost, `copies` how often each is sent, `delay` in seconds; with
    `shuffle`, so many are held back and then sent in another order. With `early`, an execution that
    ends at once has its reply sent before the create call is answered.
    """

    def __init__(self) -> None:
        self.on_end: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self.drop = 0.0
        self.copies = 1
        self.delay = 0.0
        self.shuffle = 0
        self.early = False
        self.sent: list[dict[str, Any]] = []
        self._held: list[dict[str, Any]] = []

    async def tell(self, run: Run) -> None:
        """Send what is to be sent of a run's state."""
        if self.on_end is None or random.random() < self.drop:  # noqa: S311
            return
        reply = _reply(run)
        if self.delay:
            await asyncio.sleep(self.delay)
        self._held.extend([reply] * self.copies)
        if len(self._held) > self.shuffle:
            await self.release()

    async def release(self) -> None:
        """Send what `shuffle` holds back."""
        held, self._held = self._held, []
        if self.shuffle:
            random.shuffle(held)
        for reply in held:
            self.sent.append(reply)
            assert self.on_end is not None
            await self.on_end(reply)


def _reply(run: Run) -> dict[str, Any]:
    ended = run.histories[-1][1].isoformat()
    return {
        "executionId": run.id,
        "state": run.state,
        "namespace": run.namespace,
        "flowId": run.flow,
        "endedAt": ended,
    }
