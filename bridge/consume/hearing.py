"""Hears what is told on the reply exchange: ends, and what the reporter says of itself."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bridge.consume.completions import CompletionRouter
from bridge.consume.reports import Completion, ListPart, Sign, parse
from bridge.job.execution import State
from bridge.telemetry.metrics import Metrics


class ToldEnds:
    """Which ends were told, the latest of them. An execution that is restarted ends again."""

    def __init__(self, *, most: int = 20_000) -> None:
        self._most = most
        self._ends: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def note(self, execution_id: str, state: State, ended: datetime | None) -> None:
        """Know that this end was told."""
        self._ends[_key(execution_id, state, ended)] = None
        if len(self._ends) > self._most:
            self._ends.popitem(last=False)

    def has(self, execution_id: str, state: State, ended: datetime | None) -> bool:
        """Whether this end was told."""
        return _key(execution_id, state, ended) in self._ends


def _key(execution_id: str, state: State, ended: datetime | None) -> int:
    """A number for an end. The notifier and the API write its time with different precision."""
    milliseconds = int(ended.timestamp() * 1000) if ended else None
    return hash((execution_id, state, milliseconds))


@dataclass(slots=True)
class _Growing:
    """A list of which some parts have come."""

    absent: set[str]
    to_come: set[int]


class UnfinishedLists:
    """Puts lists together from their parts. A list that lacks a part is dropped in time."""

    def __init__(self, *, at_once: int = 4) -> None:
        self._at_once = at_once
        self._lists: OrderedDict[str, _Growing] = OrderedDict()

    def add(self, part: ListPart, awaited: Callable[[], set[str]]) -> set[str] | None:
        """Which of the executions that were awaited when a list's first part came are not in it;
        None before all its parts have come.
        """
        growing = self._lists.get(part.list_id)
        if growing is None:
            growing = _Growing(awaited(), set(range(1, part.parts + 1)))
            self._lists[part.list_id] = growing
        growing.absent -= part.unfinished
        growing.to_come.discard(part.part)
        while len(self._lists) > self._at_once:
            self._lists.popitem(last=False)
        if growing.to_come:
            return None
        self._lists.pop(part.list_id, None)
        return growing.absent


class Hearing:
    """What a replica knows from the reply exchange.

    `reporter` is the name of the reporter whose signs and lists count. What others of that virtual
    host list may be executions of another Kestra. A new execution may take `shown_within` seconds
    until every listing has it.
    """

    def __init__(
        self,
        *,
        reporter: str,
        completions: CompletionRouter,
        metrics: Metrics,
        told: ToldEnds | None = None,
        shown_within: float = 2.0,
    ) -> None:
        self.told = told or ToldEnds()
        self._reporter = reporter
        self._shown_within = shown_within
        self._completions = completions
        self._metrics = metrics
        self._lists = UnfinishedLists()
        self._heard_at = self._asked_at = float("-inf")
        self._listed_at = time.monotonic()
        self._missing: set[str] = set()
        self._listed = asyncio.Event()

    def on_message(self, body: bytes) -> None:
        """Take a message as it came, whatever it is."""
        try:
            report = parse(body)
        except (ValueError, RecursionError):
            self._metrics.replies.labels("malformed").inc()
            return
        if isinstance(report, Completion):
            self._on_end(report)
        elif report.reporter != self._reporter:
            return
        elif isinstance(report, Sign):
            self._heard_at = time.monotonic()
            self._asked_at = self._heard_at - report.asked
        else:
            self._heard_at = time.monotonic()
            self._on_list(report)

    @property
    def unlisted_for(self) -> float:
        """Seconds since the last whole list, or since the start."""
        return time.monotonic() - self._listed_at

    @property
    def unasked_for(self) -> float:
        """Seconds since the reporter had its last answer from Kestra; infinite if unknown."""
        return time.monotonic() - self._asked_at

    async def silence(self, seconds: float) -> None:
        """Wait until the reporter has given no sign of life for so many seconds."""
        while True:
            left = self._heard_at + seconds - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def missing(self) -> set[str]:
        """The executions that are awaited for longer than the next list has been made, and are not
        in it.
        """
        await self._listed.wait()
        self._listed.clear()
        return self._missing

    def _on_end(self, completion: Completion) -> None:
        self._metrics.ends_heard.labels(completion.by).inc()
        if completion.state is not None:
            self.told.note(completion.execution_id, completion.state, completion.ended)
        self._completions.route_reply(completion)

    def _on_list(self, part: ListPart) -> None:
        absent = self._lists.add(part, self._completions.awaited)
        if absent is None:
            return
        self._listed_at = time.monotonic()
        begun = self._listed_at - part.seconds
        self._missing = absent & self._completions.awaited_since(begun - self._shown_within)
        self._listed.set()
