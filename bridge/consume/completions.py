"""Who waits for which execution, and the news of executions' ends, from replies and from the
sweep.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from bridge.job.execution import State
from bridge.telemetry.metrics import Metrics

EARLY_KEPT = 10_000
EARLY_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An execution's end, as somebody told it. `state` is None when the execution is gone from
    Kestra.
    """

    execution_id: str
    state: State | None
    ended: datetime | None = None


def parse_reply(body: bytes) -> Completion:
    """The news that a reply from the notifier flow carries.

    Raises:
        ValueError: it is not JSON, or has no `executionId` or `state`.
    """
    data: Any = from_json(body)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    execution_id, state = data.get("executionId"), data.get("state")
    if not isinstance(execution_id, str) or not isinstance(state, str):
        raise ValueError("no executionId or no state")
    return Completion(
        execution_id=execution_id, state=State(state), ended=_ended(data.get("endedAt"))
    )


def _ended(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


class CompletionWaiter:
    """One waiter for one execution's end. No queue of asyncio's: there are thousands, and each of
    those takes 3 KB.
    """

    __slots__ = ("_told", "_waiter")

    def __init__(self) -> None:
        self._told: list[Completion] = []
        self._waiter: asyncio.Future[None] | None = None

    async def completion(self, *, timeout: float | None = None) -> Completion:
        """The next thing told of the execution; raises `TimeoutError` after that many seconds, if a
        number is given.
        """
        limit = None if timeout is None else max(timeout, 0)
        async with asyncio.timeout(limit):
            while not self._told:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        return self._told.pop(0)

    def tell(self, news: Completion) -> None:
        """Hand over news; it waits until `news` is asked for."""
        self._told.append(news)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class CompletionRouter:
    """Brings news of executions to those who wait for them.

    A reply can come before anybody knows its execution's id, since Kestra may be quicker than its
    own answer to the create call. Completion that nobody waits for is therefore kept for a while.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._followers: dict[str, list[CompletionWaiter]] = defaultdict(list)
        self._early: OrderedDict[str, tuple[float, Completion]] = OrderedDict()

    @contextmanager
    def follow(self, execution_id: str) -> Iterator[CompletionWaiter]:
        """Wait for an execution from here to the end of the block."""
        follower = CompletionWaiter()
        if early := self._early.pop(execution_id, None):
            follower.tell(early[1])
        self._followers[execution_id].append(follower)
        try:
            yield follower
        finally:
            self._followers[execution_id].remove(follower)
            if not self._followers[execution_id]:
                del self._followers[execution_id]

    def tell(self, news: Completion) -> bool:
        """Bring news; says whether anybody waited for it."""
        followers = self._followers.get(news.execution_id, ())
        for follower in followers:
            follower.tell(news)
        return bool(followers)

    def receive(self, body: bytes) -> None:
        """Take a reply as it came, whatever it is."""
        try:
            news = parse_reply(body)
        except (ValueError, RecursionError):
            self._metrics.replies.labels("malformed").inc()
            return
        if news.state is None or not news.state.terminal:
            self._metrics.replies.labels("not_terminal").inc()
        elif self.tell(news):
            self._metrics.replies.labels("awaited").inc()
        else:
            self._metrics.replies.labels("unknown").inc()
            self._keep(news)

    def awaited(self) -> set[str]:
        """The executions that somebody waits for."""
        return set(self._followers)

    def _keep(self, news: Completion) -> None:
        now = time.monotonic()
        self._early[news.execution_id] = (now, news)
        self._early.move_to_end(news.execution_id)
        while self._early:
            oldest, (kept_at, _) = next(iter(self._early.items()))
            if len(self._early) <= EARLY_KEPT and now - kept_at <= EARLY_SECONDS:
                break
            del self._early[oldest]
