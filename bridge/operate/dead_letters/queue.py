"""A lane's dead letters at the broker: read, put back, taken away.

Putting one back takes three steps, each of which RabbitMQ does whole or not at all, through the
lane's replay queue:

1. A copy, which is the job's next attempt, is published to the replay queue, by confirm.
2. The dead letter is acked, and that is known to be done.
3. The copy is rejected: RabbitMQ hands it to the lane by itself, at least once.

Nothing but replays reads the replay queue, so whoever comes after one that was ended finds what it
left there. A copy whose dead letter is still there is used or taken away, one whose dead letter is
gone goes on to the lane. So no job is lost, and none is in its lane twice. An AMQP transaction over
publish and ack would not do: RabbitMQ (3.10 and 4.3, tried) commits the ack also where a queue
refuses the message.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bridge.errors import BridgeError, QueueInUse, TopologyMismatch
from bridge.job.message import Message
from bridge.operate.dead_letters.letters import DeadLetter, key_of_copy, parse, to_replay
from bridge.rabbitmq import topology
from bridge.rabbitmq.broker import Broker, Connection, Publisher, announced_version, parse_version
from bridge.rabbitmq.inspector import Inspector
from bridge.rabbitmq.management import Management
from bridge.rabbitmq.reader import Browser, Desk, Held, Receipt, alone, peek, refused_rights
from bridge.rabbitmq.topology import dead_queue, lift_limit, replay_queue
from bridge.settings import BrokerSettings, Lane

AT_ONCE = 128
PATIENCE = 15.0
PATIENCE_WITH_OTHERS = 3.0
UNTIL_ON_DISK = 2.0
"""RabbitMQ notes a new quorum queue on disk only a second after it confirmed it; one that is killed
sooner loses it."""

LOOKS_COUNT = ((4, 0), (4, 3))
"""From the first of these versions to before the second a quorum queue counts each look as a
return, and gives a message up after 20 of them unless its `x-delivery-limit` or a policy says
otherwise (tried on 3.10, 4.0 and 4.3).
"""


@dataclass(slots=True)
class Tally:
    """What a replay or a discard has done so far, letters by their keys."""

    back: set[bytes] = field(default_factory=set)
    dropped: Counter[bytes] = field(default_factory=Counter)
    doubled: int = 0
    """Taken away because the same (job, attempt) stood there twice and has been put back."""
    finished: set[str] = field(default_factory=set)
    """Jobs put back because a replay that was ended had taken their letters away."""
    waiting: int = 0
    """Left in the replay queue, because somebody else holds letters, and theirs may be among
    them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The keys of the letters that go back into their lane, and of those that go away."""

    back: AbstractSet[bytes] = frozenset()
    drop: AbstractSet[bytes] = frozenset()


class DeadLetterQueue:
    """One lane's dead letters, while no other command works with them.

    Every method raises `BrokerUnavailable`, `BrokerDenied` or `QueueMissing`, and those that look
    into the replay queue `QueueInUse`, where somebody else does so too.
    """

    def __init__(self, lane: Lane, desk: Desk, connection: Connection) -> None:
        self._lane = lane
        self._connection = connection
        self._dead = desk.browser(dead_queue(lane.queue))
        self._replays = desk.browser(replay_queue(lane.queue))
        self._copies = _Copies(self._replays, lane.queue)
        self._collected = False
        self.others = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        lane: Lane,
        settings: BrokerSettings,
        *,
        only_look: bool,
        patience: float = PATIENCE,
    ) -> AsyncIterator[DeadLetterQueue]:
        """Wait for one's turn and open the queue; what isn't settled in the end goes back in its
        order.

        `others` says how many others hold letters all the same, by other means: theirs can't be
        seen.

        Raises:
            QueueInUse: another command works with them for longer than `patience` seconds.
            TopologyMismatch: RabbitMQ would drop letters that are looked at often.
        """
        await _require_unlimited(connection, lane, settings)
        lock = f"{dead_queue(lane.queue)}.lock"
        async with (
            alone(connection, lock, patience=patience, needed=not only_look),
            Desk.open(connection) as desk,
        ):
            letters = cls(lane, desk, connection)
            letters.others = await letters._dead.others(PATIENCE_WITH_OTHERS)
            yield letters

    async def unfinished(self) -> int:
        """How many jobs a replay that was ended has left half way."""
        if not self._collected and await peek(self._connection, self._replays.queue) is not None:
            if await self._replays.others(PATIENCE_WITH_OTHERS):
                raise QueueInUse(
                    f"somebody else reads {self._replays.queue}, which is for replays alone"
                )
            await self._copies.collect()
        self._collected = True
        return len(self._copies)

    async def read(self) -> AsyncIterator[tuple[DeadLetter, Message]]:
        """Every letter that is there and that nobody else holds, in the queue's order."""
        async for letter, held in self._read():
            yield letter, held.message

    async def discard(
        self, keys: AbstractSet[bytes], tally: Tally, progress: Callable[[], None]
    ) -> None:
        """Take letters away for good, and what a replay that was ended has made of them."""
        await self.unfinished()
        await self._work_through(_Work(self._dead, self._copies, Plan(drop=keys), tally, progress))

    async def replay(
        self,
        broker: Broker,
        publisher: Publisher,
        plan: Plan,
        tally: Tally,
        progress: Callable[[], None],
    ) -> None:
        """Carry out a plan, and see through what a replay that was ended has begun.

        Raises:
            PublishFailed: the replay queue does not take one.
        """
        if await peek(self._connection, self._replays.queue) is None:
            await broker.declare_replay(self._connection, self._lane.queue)
            await asyncio.sleep(UNTIL_ON_DISK)
        await self.unfinished()
        work = _Work(self._dead, self._copies, plan, tally, progress, publisher)
        await self._work_through(work)
        await work.finish(others=self.others > 0 or await self._dead.others() > 0)

    async def _work_through(self, work: _Work) -> None:
        async for letter, held in self._read():
            await work.take(letter, held)
        await work.flush()

    async def _read(self) -> AsyncIterator[tuple[DeadLetter, Held]]:
        async for held in self._dead.read():
            yield (
                parse(held.message, queue=self._lane.queue, default_flow=self._lane.flow_name),
                held,
            )


async def _require_unlimited(connection: Connection, lane: Lane, settings: BrokerSettings) -> None:
    """See that looking costs no letter; who may not configure the queue, nor ask the management
    API, can't know.

    Raises:
        TopologyMismatch: the queue was made on RabbitMQ 3, and no policy is known to lift its
        limit.
    """
    version = parse_version(announced_version(connection))
    if not LOOKS_COUNT[0] <= version < LOOKS_COUNT[1]:
        return
    dead = topology.plan_dead(lane.queue, version=version)
    declared = await Inspector(connection).check(dead)
    if not declared.of_before:
        return
    unseen = ""
    try:
        async with Management(settings) as management:
            state = await management.queue(dead.name)
    except BridgeError as error:
        state, unseen = None, f"; whether that was done can't be seen: {error}"
    if state is None or state.delivery_limit != -1:
        raise TopologyMismatch(
            f"{dead.name} was made without x-delivery-limit -1, so that this RabbitMQ drops what "
            "is looked at 20 "
            "times, and nothing was looked at; this lifts the limit: "
            f"{lift_limit(dead.name)}{unseen}"
        )


class _Copies:
    """The replay queue's messages, by the key of the letter that each was made of. All are held
    here.
    """

    def __init__(self, browser: Browser, queue: str) -> None:
        self._browser = browser
        self._queue = queue
        self._receipts: dict[bytes, list[Receipt]] = {}
        self._jobs: dict[bytes, str] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._receipts

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._receipts)

    def __len__(self) -> int:
        return len(self._receipts)

    def jobs(self, keys: Iterable[bytes]) -> set[str]:
        """The ids of the jobs that these are copies of."""
        return {self._jobs[key] for key in keys}

    async def collect(self) -> None:
        """Take hold of what is there already."""
        async for held in self._browser.read():
            self._note(held)

    async def publish(
        self, publisher: Publisher, letters: Iterable[tuple[DeadLetter, Held]]
    ) -> None:
        """Make the copies that aren't there yet, and take hold of them. One that fails leaves the
        others there.
        """
        made = [(letter, held) for letter, held in letters if letter.key not in self]
        copies = (
            publisher.publish(to_replay(letter, held.message), routing_key=self._browser.queue)
            for letter, held in made
        )
        for outcome in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise refused_rights(outcome) or outcome from outcome.__cause__
        while any(letter.key not in self for letter, _ in made):
            self._note(await self._browser.next())

    async def release(self, keys: Iterable[bytes]) -> None:
        """Take away all but one copy of each, and send that one on to the lane."""
        released = [self._receipts.pop(key) for key in keys]
        await self._browser.ack([receipt for receipts in released for receipt in receipts[1:]])
        await self._browser.reject([receipts[0] for receipts in released])

    async def drop(self, keys: Iterable[bytes]) -> None:
        """Take the copies of these away, if there are any."""
        await self._browser.ack(
            [receipt for key in keys for receipt in self._receipts.pop(key, [])]
        )

    def note_arrived(self) -> None:
        """Take hold of what has come by itself: messages that a connection held which has ended."""
        for held in self._browser.arrived():
            self._note(held)

    def _note(self, held: Held) -> None:
        key = key_of_copy(held.message, queue=self._queue)
        self._jobs[key] = held.message.message_id or ""
        self._receipts.setdefault(key, []).append(held.receipt)


@dataclass(slots=True)
class _Work:
    """Carries out a plan on letters as they come, many at once. Without a publisher it can only
    take away.
    """

    dead: Browser
    copies: _Copies
    plan: Plan
    tally: Tally
    progress: Callable[[], None]
    publisher: Publisher | None = None
    to_put_back: dict[bytes, tuple[DeadLetter, Held]] = field(default_factory=dict)
    to_take_away: list[tuple[DeadLetter, Held]] = field(default_factory=list)
    doubled: list[Receipt] = field(default_factory=list)
    staying: set[bytes] = field(default_factory=set)

    async def take(self, letter: DeadLetter, held: Held) -> None:
        """Note what is to become of a letter; it is done when there are many."""
        key = letter.key
        if key in self.plan.drop:
            self.to_take_away.append((letter, held))
        elif key not in self.plan.back:
            self.staying.add(key)
        elif key in self.to_put_back or key in self.tally.back:
            self.doubled.append(held.receipt)
        else:
            self.to_put_back[key] = (letter, held)
        if len(self.to_put_back) >= AT_ONCE or len(self.to_take_away) >= AT_ONCE:
            await self.flush()

    async def flush(self) -> None:
        """Do what is noted."""
        await self._put_letters_back()
        await self._take_away()
        doubled, self.doubled = self.doubled, []
        await self.dead.ack(doubled)
        self.tally.doubled += len(doubled)

    async def finish(self, *, others: bool) -> None:
        """See to copies that no letter of this plan belongs to. `others` may hold letters that we
        haven't seen.
        """
        self.copies.note_arrived()
        await self.copies.drop(
            [key for key in self.copies if key in self.staying or key in self.tally.back]
        )
        orphans = list(self.copies)
        if others:
            self.tally.waiting = len(orphans)
        else:
            names = self.copies.jobs(orphans)
            await self.copies.release(orphans)
            self.tally.finished |= names

    async def _put_letters_back(self) -> None:
        letters, self.to_put_back = self.to_put_back, {}
        if not letters:
            return
        assert self.publisher is not None, "a discard puts nothing back"
        await self.copies.publish(self.publisher, letters.values())
        await self.dead.ack([held.receipt for _, held in letters.values()])
        await self.copies.release(letters)
        self.tally.back.update(letters)
        for _ in letters:
            self.progress()

    async def _take_away(self) -> None:
        letters, self.to_take_away = self.to_take_away, []
        # The copies first: one whose letter is gone would go on to the lane.
        await self.copies.drop([letter.key for letter, _ in letters])
        await self.dead.ack([held.receipt for _, held in letters])
        self.tally.dropped.update(letter.key for letter, _ in letters)
        for _ in letters:
            self.progress()
