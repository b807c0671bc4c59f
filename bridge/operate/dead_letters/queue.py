"""A lane's dead letters at the broker: read, put back, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bridge.errors import BridgeError, QueueInUse, TopologyMismatch
from bridge.job.message import Message
from bridge.operate.dead_letters.letter import DeadLetter, parse
from bridge.operate.dead_letters.replay import HeldLetter, Plan, Replay, ReplayCopies, Tally
from bridge.rabbitmq.command_session import CommandSession
from bridge.rabbitmq.management import Management
from bridge.rabbitmq.reader import QueueReader
from bridge.rabbitmq.topology import dead_queue, lift_limit, plan_dead, replay_queue
from bridge.settings import BrokerSettings, Lane

LOOKS_COUNT = ((4, 0), (4, 3))
"""From the first of these versions to before the second a quorum queue counts each look as a
return, and drops a message after 20 of them unless its `x-delivery-limit` or a policy says
otherwise (tried on 3.10, 4.0 and 4.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How long to wait, in seconds."""

    turn: float = 15.0
    """For another command that is at work with the letters."""
    others: float = 3.0
    """For somebody else's connection to end."""
    on_disk: float = 2.0
    """RabbitMQ writes a new quorum queue to disk only a second after confirming it, and loses it if
    killed sooner."""


class DeadLetterQueue:
    """One lane's dead letters, while no other command works with them.

    Every method raises `BrokerUnavailable`, `BrokerDenied` or `QueueMissing`, and those that read
    the replay queue `QueueInUse`, where somebody else reads it.
    """

    def __init__(
        self,
        session: CommandSession,
        lane: Lane,
        dead: QueueReader,
        replays: QueueReader,
        waiting: Waiting,
    ) -> None:
        self._session = session
        self._lane = lane
        self._dead = dead
        self._replays = replays
        self._copies = ReplayCopies(replays, lane.queue)
        self._collected = False
        self._waiting = waiting
        self.others = 0
        """The number of others that hold letters by other means; their letters can't be seen."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        session: CommandSession,
        lane: Lane,
        settings: BrokerSettings,
        *,
        only_look: bool,
        waiting: Waiting | None = None,
    ) -> AsyncIterator[DeadLetterQueue]:
        """Wait for one's turn and open the queue; unsettled letters go back in their order.

        Raises:
            QueueInUse: another command works with them for too long.
            TopologyMismatch: RabbitMQ would drop letters that are looked at often.
        """
        waiting = waiting or Waiting()
        await _require_unlimited(session, lane, settings)
        dead = dead_queue(lane.queue)
        async with (
            session.lock(f"{dead}.lock", patience=waiting.turn, required=not only_look),
            session.reader(replay_queue(lane.queue)) as replays,
            session.reader(dead) as reader,
        ):
            letters = cls(session, lane, reader, replays, waiting)
            letters.others = await reader.others(waiting.others)
            yield letters

    async def unfinished(self) -> int:
        """The number of jobs that an interrupted replay has left half-way."""
        if not self._collected and await self._session.ready(self._replays.queue) is not None:
            if await self._replays.others(self._waiting.others):
                raise QueueInUse(
                    f"somebody else reads {self._replays.queue}, which is only for replays"
                )
            await self._copies.collect()
        self._collected = True
        return len(self._copies)

    async def read(self) -> AsyncIterator[tuple[DeadLetter, Message]]:
        """Every letter that nobody else holds, in the queue's order."""
        async for page in self._pages():
            for each in page:
                yield each.letter, each.held.message

    async def discard(
        self, keys: AbstractSet[bytes], tally: Tally, progress: Callable[[], None]
    ) -> None:
        """Remove letters for good, and their copies of an interrupted replay."""
        await self.unfinished()
        replay = Replay(self._dead, self._copies, Plan(drop=keys), tally, progress)
        async for page in self._pages():
            await replay.work(page)

    async def replay(self, plan: Plan, tally: Tally, progress: Callable[[], None]) -> None:
        """Carry out a plan, and complete what an interrupted replay has begun.

        Raises:
            PublishFailed: the replay queue does not take a copy.
        """
        if await self._session.ready(self._replays.queue) is None:
            await self._session.declare_replay(self._lane.queue)
            await asyncio.sleep(self._waiting.on_disk)
        await self.unfinished()
        publisher = self._session.publisher
        replay = Replay(self._dead, self._copies, plan, tally, progress, publisher)
        async for page in self._pages():
            await replay.work(page)
        # Our own consumers must not count as others.
        await self._dead.give_back()
        others = self.others > 0 or await self._dead.others(self._waiting.others) > 0
        await replay.finish(others=others)

    async def _pages(self) -> AsyncIterator[list[HeldLetter]]:
        queue, flow = self._lane.queue, self._lane.flow_name
        async for page in self._dead.pages():
            yield [
                HeldLetter(parse(held.message, queue=queue, default_flow=flow), held)
                for held in page
            ]


async def _require_unlimited(session: CommandSession, lane: Lane, settings: BrokerSettings) -> None:
    """Check that looking costs no letter. Where the user may neither configure the queue nor ask
    the management API, that can't be known.

    Raises:
        TopologyMismatch: the queue was made on RabbitMQ 3, and no policy is known to lift its
        limit.
    """
    if not LOOKS_COUNT[0] <= session.version < LOOKS_COUNT[1]:
        return
    dead = plan_dead(lane.queue, version=session.version)
    async with session.inspector() as inspector:
        declared = await inspector.check(dead)
    if not declared.of_before:
        return
    unseen = ""
    state = None
    try:
        async with Management(settings) as management:
            state = await management.queue(dead.name)
    except BridgeError as error:
        unseen = f"; whether that was done can't be seen: {error}"
    if state is None or state.delivery_limit != -1:
        raise TopologyMismatch(
            f"{dead.name} was made without x-delivery-limit -1, so that this RabbitMQ drops what "
            "is looked at 20 times, and nothing was looked at; this lifts the limit: "
            f"{lift_limit(dead.name)}{unseen}"
        )
