"""Completions, which are the ends of executions, and their ways to those who wait for them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bridge.consume.reports import Completion
from bridge.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyReplies:
    """How many replies are kept for which nobody waits yet, and for how many seconds."""

    most: int = 10_000
    seconds: float = 120.0


class CompletionWaiter:
    """Waits for one execution's end. Not an asyncio.Queue: there are thousands, at 3 KB each."""

    __slots__ = ("_arrived", "_waiter", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self._arrived: list[Completion] = []
        self._waiter: asyncio.Future[None] | None = None

    async def next(self, *, timeout: float | None = None) -> Completion:
        """The next completion of the execution.

        Raises:
            TimeoutError: none came within `timeout` seconds.
        """
        limit = None if timeout is None else max(timeout, 0)
        async with asyncio.timeout(limit):
            while not self._arrived:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        return self._arrived.pop(0)

    def put(self, completion: Completion) -> None:
        """Hand over a completion; it is kept until it is asked for."""
        self._arrived.append(completion)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class CompletionRouter:
    """Brings completions to those who wait for the execution.

    A reply can come before anybody knows its execution's id, since Kestra may be quicker than its
    own answer to the create call. A reply that nobody waits for is therefore kept for a while.
    """

    def __init__(self, metrics: Metrics, *, early: EarlyReplies = EarlyReplies()) -> None:
        self._metrics = metrics
        self._limit = early
        self._waiters: dict[str, list[CompletionWaiter]] = defaultdict(list)
        self._early: OrderedDict[str, tuple[float, Completion]] = OrderedDict()

    @contextmanager
    def waiting_for(self, execution_id: str) -> Iterator[CompletionWaiter]:
        """Have the execution's completions brought to a waiter until the end of the block."""
        waiter = CompletionWaiter()
        if early := self._early.pop(execution_id, None):
            waiter.put(early[1])
        self._waiters[execution_id].append(waiter)
        try:
            yield waiter
        finally:
            self._waiters[execution_id].remove(waiter)
            if not self._waiters[execution_id]:
                del self._waiters[execution_id]

    def route(self, completion: Completion) -> bool:
        """Bring a completion to its waiters; returns whether there were any."""
        waiters = self._waiters.get(completion.execution_id, ())
        for waiter in waiters:
            waiter.put(completion)
        return bool(waiters)

    def route_reply(self, completion: Completion) -> None:
        """Bring what a reply tells to its waiters; keep it for a while where nobody waits yet."""
        if completion.state is None or not completion.state.terminal:
            self._metrics.replies.labels("not_terminal").inc()
        elif self.route(completion):
            self._metrics.replies.labels("awaited").inc()
        else:
            self._metrics.replies.labels("unknown").inc()
            self._keep(completion)

    def awaited(self) -> set[str]:
        """The executions that somebody waits for."""
        return set(self._waiters)

    def awaited_since(self, moment: float) -> set[str]:
        """The executions that somebody has waited for since that moment (monotonic) or longer."""
        return {
            execution_id
            for execution_id, waiters in self._waiters.items()
            if waiters[0].since <= moment
        }

    def _keep(self, completion: Completion) -> None:
        now = time.monotonic()
        self._early[completion.execution_id] = (now, completion)
        self._early.move_to_end(completion.execution_id)
        while self._early:
            oldest, (kept_at, _) = next(iter(self._early.items()))
            if len(self._early) <= self._limit.most and now - kept_at <= self._limit.seconds:
                break
            del self._early[oldest]
