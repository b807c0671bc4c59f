"""A replay's three steps, broken off at every operation, on queues in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from pydantic import SecretStr

from bridge.errors import BrokerUnavailable, QueueInUse
from bridge.job.message import ATTEMPT, Message
from bridge.operate.dead_letters.queue import DeadLetterQueue, Waiting
from bridge.operate.dead_letters.replay import Plan, Tally
from bridge.settings import BrokerSettings
from tests.support.memory_queues import MemoryBroker, MemoryQueue, MemorySession

SETTINGS = BrokerSettings(amqp_url=SecretStr("amqp://u:p@h"), queue="q")
(LANE,) = SETTINGS.all_lanes
NOW = Waiting(turn=0, others=0, on_disk=0)
IDS = [f"job-{number}" for number in range(6)]
HEADERS = {"x-bridge-reason": "failed", "x-bridge-queue": "q", ATTEMPT: 3}


def letters(*names: str) -> list[Message]:
    return [Message(body=b"{}", message_id=name, headers=HEADERS) for name in names]


def broker(*names: str) -> MemoryBroker:
    lane, dead = MemoryQueue(), MemoryQueue()
    dead.put(*letters(*names))
    queues = {"q": lane, "q.dead": dead, "q.replay": MemoryQueue(rejected_to=lane)}
    return MemoryBroker(queues)


async def replay(
    there: MemoryBroker, *names: str, progress: Callable[[], None] = lambda: None
) -> Tally:
    """Put the letters of these jobs back. `progress` is called after each."""
    tally, session = Tally(), MemorySession(there)
    try:
        async with DeadLetterQueue.open(
            session.typed, LANE, SETTINGS, only_look=False, waiting=NOW
        ) as dead:
            keys = {letter.key async for letter, _ in dead.read() if letter.job in names}
        async with DeadLetterQueue.open(
            session.typed, LANE, SETTINGS, only_look=False, waiting=NOW
        ) as dead:
            await dead.replay(Plan(back=keys), tally, progress)
    finally:
        session.connection.lose()
    return tally


def in_lane(there: MemoryBroker) -> Counter[tuple[str, int]]:
    """How often each job's attempt is in the lane."""
    return Counter(
        (str(message.message_id), message.headers[ATTEMPT])
        for message in there.queues["q"].messages
    )


def once(names: Sequence[str]) -> Counter[tuple[str, int]]:
    return Counter((name, 4) for name in names)


async def test_a_job_goes_by_a_confirmed_copy_then_an_ack_then_the_brokers_own_move() -> None:
    there = broker("a")
    await replay(there, "a")
    steps = [line for line in there.log if line.split()[0] in ("publish", "ack", "reject")]
    assert steps == ["publish q.replay", "ack q.dead", "reject q.replay"]


async def test_all_that_is_meant_goes_back_and_the_rest_keeps_its_order() -> None:
    there = broker(*IDS)
    await replay(there, *IDS[::2])
    assert (in_lane(there), there.queues["q.dead"].ids) == (once(IDS[::2]), IDS[1::2])


async def _operations() -> int:
    there = broker(*IDS)
    await replay(there, *IDS)
    return len(there.log)


@pytest.mark.parametrize("done", [True, False], ids=["just-after", "just-before"])
async def test_broken_off_at_any_operation_and_run_again_each_job_is_back_once(done: bool) -> None:
    for operations in range(await _operations()):
        there = broker(*IDS)
        there.operations_left, there.done_before_the_break = operations, done
        with pytest.raises(BrokerUnavailable):
            await replay(there, *IDS)
        there.operations_left = None
        await replay(there, *IDS)
        assert in_lane(there) == once(IDS), f"broken off after {operations} operations"
        assert [there.queues[name].ids for name in ("q.dead", "q.replay")] == [[], []]


async def test_a_letter_that_is_there_twice_is_one_job() -> None:
    there = broker("a", "a")
    tally = await replay(there, "a")
    assert (in_lane(there), tally.doubled) == (once(["a"]), 1)


async def test_a_copy_whose_letter_may_be_held_by_others_waits() -> None:
    there = broker()
    await MemorySession(there).publish(copy("a"), routing_key="q.replay")
    there.queues["q.dead"].consumers = 1
    tally = await replay(there)
    assert (tally.waiting, there.queues["q.replay"].ids, in_lane(there)) == (1, ["a"], Counter())


async def test_a_copy_whose_letter_is_gone_goes_on_to_the_lane() -> None:
    there = broker("other")
    await MemorySession(there).publish(copy("a"), routing_key="q.replay")
    tally = await replay(there)
    assert (tally.finished, in_lane(there)) == ({"a"}, once(["a"]))


async def test_a_copy_that_comes_late_of_a_job_that_went_back_goes_away() -> None:
    there = broker("a")
    await replay(there, "a", progress=lambda: there.queues["q.replay"].put(copy("a")))
    assert (in_lane(there), there.queues["q.replay"].ids) == (once(["a"]), [])


async def test_a_copy_whose_letter_stays_goes_away() -> None:
    there = broker("a")
    await MemorySession(there).publish(copy("a"), routing_key="q.replay")
    await replay(there)
    assert [there.queues[name].ids for name in ("q.replay", "q.dead", "q")] == [[], ["a"], []]


async def test_nobody_else_may_read_the_replay_queue() -> None:
    there = broker("a")
    there.queues["q.replay"].consumers = 1
    with pytest.raises(QueueInUse, match="only for replays"):
        await replay(there, "a")


async def test_a_discard_removes_the_copy_before_the_letter() -> None:
    there = broker("a")
    session = MemorySession(there)
    await session.publish(copy("a"), routing_key="q.replay")
    async with DeadLetterQueue.open(
        session.typed, LANE, SETTINGS, only_look=False, waiting=NOW
    ) as dead:
        keys = {letter.key async for letter, _ in dead.read()}
    async with DeadLetterQueue.open(
        session.typed, LANE, SETTINGS, only_look=False, waiting=NOW
    ) as dead:
        await dead.discard(keys, Tally(), lambda: None)
    acks = [line for line in there.log if line.startswith("ack")]
    assert acks == ["ack q.replay", "ack q.dead"]


def copy(name: str) -> Message:
    """What an interrupted replay has made of a letter."""
    return Message(body=b"{}", message_id=name, headers={ATTEMPT: 4, "x-bridge-first-attempt": 4})
