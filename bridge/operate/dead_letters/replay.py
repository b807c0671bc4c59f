"""Puts dead letters back into their lane, or removes them.

Putting a letter back takes three steps, each of which RabbitMQ does whole or not at all, through
the lane's replay queue:

1. A copy, which is the job's next attempt, is published to the replay queue with a confirm.
2. The dead letter is acked, and RabbitMQ is known to have done so.
3. The copy is rejected: RabbitMQ itself moves it to the lane, at least once.

Only replays read the replay queue, so the next replay finds what an interrupted one left there. A
copy whose dead letter still exists is used or removed; a copy whose dead letter is gone goes on to
the lane. So no job is lost, and none is in its lane twice. An AMQP transaction over publish and ack
would not do: RabbitMQ (3.10 and 4.3, tried) commits the ack even where a queue refuses the message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from bridge.errors import BrokerUnavailable
from bridge.operate.dead_letters.letter import DeadLetter, key_of_copy, to_replay
from bridge.rabbitmq.error_translation import rights_error
from bridge.rabbitmq.publisher import Publisher
from bridge.rabbitmq.reader import HeldMessage, QueueReader


@dataclass(frozen=True, slots=True)
class Plan:
    """The keys of the letters to put back into their lane, and of those to remove."""

    back: AbstractSet[bytes] = frozenset()
    drop: AbstractSet[bytes] = frozenset()


@dataclass(slots=True)
class Tally:
    """What a replay or a discard has done so far, letters by their keys."""

    back: set[bytes] = field(default_factory=set)
    dropped: Counter[bytes] = field(default_factory=Counter)
    doubled: int = 0
    """Letters removed because the same (job, attempt) was there twice and has been put back."""
    finished: set[str] = field(default_factory=set)
    """Jobs put back because an interrupted replay had removed their letters already."""
    waiting: int = 0
    """Copies left in the replay queue, because somebody else holds letters, and theirs may be
    among them."""


@dataclass(frozen=True, slots=True)
class HeldLetter:
    """A dead letter whose message is held."""

    letter: DeadLetter
    held: HeldMessage


class ReplayCopies:
    """The messages of a replay queue, all of them held, by the key of the letter that each was made
    from.
    """

    def __init__(self, reader: QueueReader, queue: str) -> None:
        self._reader = reader
        self._queue = queue
        self._copies: dict[bytes, list[int]] = {}
        """The delivery tags of each letter's copies."""
        self._jobs: dict[bytes, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def jobs(self, keys: Iterable[bytes]) -> set[str]:
        """The ids of the jobs with these copies."""
        return {self._jobs[key] for key in keys}

    async def collect(self) -> None:
        """Take hold of all copies that are there."""
        async for page in self._reader.pages():
            self._note(page)

    async def publish(self, publisher: Publisher, letters: Iterable[HeldLetter]) -> None:
        """Make the missing copies of letters, and take hold of them. One that fails leaves the
        others there.
        """
        missing = [each for each in letters if each.letter.key not in self._copies]
        copies = (
            publisher.publish(
                to_replay(each.letter, each.held.message), routing_key=self._reader.queue
            )
            for each in missing
        )
        for outcome in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise rights_error(outcome) or outcome from outcome.__cause__
        while any(each.letter.key not in self._copies for each in missing):
            page = await self._reader.next_page()
            if not page:
                raise BrokerUnavailable(
                    f"RabbitMQ delivers nothing of {self._reader.queue}, though there is something"
                )
            self._note(page)

    async def release(self, keys: Iterable[bytes]) -> None:
        """Remove all but one copy of each letter, and send that one on to the lane."""
        released = [self._copies.pop(key) for key in keys]
        await self._reader.ack([copy for copies in released for copy in copies[1:]])
        await self._reader.reject([copies[0] for copies in released])

    async def drop(self, keys: Iterable[bytes]) -> None:
        """Remove all copies of letters."""
        await self._reader.ack([copy for key in keys for copy in self._copies.pop(key, ())])

    def _note(self, page: Sequence[HeldMessage]) -> None:
        for copy in page:
            key = key_of_copy(copy.message, queue=self._queue)
            self._jobs[key] = copy.message.message_id or ""
            self._copies.setdefault(key, []).append(copy.delivery_tag)


@dataclass(slots=True)
class Replay:
    """Carries out a plan, page by page. Without a publisher it can only remove letters."""

    dead: QueueReader
    copies: ReplayCopies
    plan: Plan
    tally: Tally
    progress: Callable[[], None]
    publisher: Publisher | None = None
    staying: set[bytes] = field(default_factory=set)

    async def work(self, page: Iterable[HeldLetter]) -> None:
        """Carry out the plan on a page of letters."""
        back: dict[bytes, HeldLetter] = {}
        dropped: list[HeldLetter] = []
        doubled: list[int] = []
        for each in page:
            key = each.letter.key
            if key in self.plan.drop:
                dropped.append(each)
            elif key not in self.plan.back:
                self.staying.add(key)
            elif key in back or key in self.tally.back:
                doubled.append(each.held.delivery_tag)
            else:
                back[key] = each
        if back:
            await self._put_back(back)
        if dropped:
            await self._drop(dropped)
        await self.dead.ack(doubled)
        self.tally.doubled += len(doubled)

    async def finish(self, *, others: bool) -> None:
        """See to copies that no letter of this plan belongs to. `others` may hold letters that were
        not seen here.
        """
        await self.copies.collect()
        settled = self.staying | self.tally.back
        await self.copies.drop([key for key in self.copies if key in settled])
        orphans = list(self.copies)
        if others:
            self.tally.waiting = len(orphans)
            return
        jobs = self.copies.jobs(orphans)
        await self.copies.release(orphans)
        self.tally.finished |= jobs

    async def _put_back(self, letters: dict[bytes, HeldLetter]) -> None:
        assert self.publisher is not None, "a discard puts nothing back"
        await self.copies.publish(self.publisher, letters.values())
        await self.dead.ack([each.held.delivery_tag for each in letters.values()])
        await self.copies.release(letters)
        self.tally.back.update(letters)
        for _ in letters:
            self.progress()

    async def _drop(self, letters: Sequence[HeldLetter]) -> None:
        # The copies first: one whose letter is gone would go on to the lane.
        await self.copies.drop([each.letter.key for each in letters])
        await self.dead.ack([each.held.delivery_tag for each in letters])
        self.tally.dropped.update(each.letter.key for each in letters)
        for _ in letters:
            self.progress()
