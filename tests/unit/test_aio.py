"""Work on one key is serialised, work on different keys is not, and callers share a call that they
all want."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import suppress

import pytest

from bridge.aio import (
    Background,
    KeyedLock,
    SingleFlight,
    cancelled,
    first_of,
    together,
    unless_set,
)


@pytest.fixture
def lock() -> KeyedLock:
    return KeyedLock()


class Worker:
    """A task that holds a key until it is let go, and tells when it has it."""

    def __init__(self, lock: KeyedLock, key: Hashable) -> None:
        self.holds = asyncio.Event()
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._work(lock, key))

    async def _work(self, lock: KeyedLock, key: Hashable) -> None:
        async with lock.hold(key):
            self.holds.set()
            await self.go.wait()

    async def has_it(self) -> None:
        async with asyncio.timeout(5):
            await self.holds.wait()

    async def finish(self) -> None:
        self.go.set()
        async with asyncio.timeout(5):
            await self.task


async def settled() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_key_has_one_holder_at_a_time(lock: KeyedLock) -> None:
    first, second = Worker(lock, "a"), Worker(lock, "a")
    await first.has_it()
    await settled()
    assert not second.holds.is_set()
    await first.finish()
    await second.has_it()
    await second.finish()


async def test_different_keys_are_held_side_by_side(lock: KeyedLock) -> None:
    first, second = Worker(lock, ("job", 1)), Worker(lock, ("job", 2))
    await first.has_it()
    await second.has_it()
    await first.finish()
    await second.finish()


async def test_holders_come_in_the_order_of_asking(lock: KeyedLock) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with lock.hold("a"):
            order.append(number)

    await asyncio.gather(*map(work, range(20)))
    assert order == list(range(20))


async def test_a_key_that_nobody_holds_takes_no_memory(lock: KeyedLock) -> None:
    for number in range(100):
        async with lock.hold(number):
            pass
    assert lock._locks == {}


async def test_a_waiter_that_is_cancelled_leaves_the_key_to_the_next(lock: KeyedLock) -> None:
    first, second, third = Worker(lock, "a"), Worker(lock, "a"), Worker(lock, "a")
    await first.has_it()
    await settled()
    second.task.cancel()
    await first.finish()
    await third.has_it()
    assert not second.holds.is_set()
    await third.finish()
    assert lock._locks == {}


async def test_a_holder_that_fails_leaves_the_key_to_the_next(lock: KeyedLock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with lock.hold("a"):
            raise ZeroDivisionError
    async with asyncio.timeout(5), lock.hold("a"):
        pass
    assert lock._locks == {}


class Question:
    """A call that ends when it is told to, and counts how often it was made."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        await self.go.wait()
        if self.error:
            raise self.error
        return call


async def test_callers_that_come_at_once_share_one_call() -> None:
    question = Question()
    question.go.set()
    ask = SingleFlight(question)
    async with asyncio.timeout(5):
        assert list(await asyncio.gather(ask(), ask(), ask())) == [1, 1, 1]


async def test_callers_that_come_during_a_call_share_the_next_one() -> None:
    question = Question()
    ask = SingleFlight(question)
    first = asyncio.create_task(ask())
    await settled()
    later = [asyncio.create_task(ask()) for _ in range(3)]
    await settled()
    question.go.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(first, *later) == [1, 2, 2, 2]


async def test_a_caller_that_gives_up_leaves_the_call_to_the_others() -> None:
    question = Question()
    ask = SingleFlight(question)
    first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
    await settled()
    first.cancel()
    await settled()
    question.go.set()
    async with asyncio.timeout(5):
        assert await second == 1


async def test_an_error_is_raised_to_all_who_share_a_call() -> None:
    question = Question()
    question.error = ZeroDivisionError()
    question.go.set()
    ask = SingleFlight(question)
    async with asyncio.timeout(5):
        found = await asyncio.gather(ask(), ask(), return_exceptions=True)
    assert [type(each) for each in found] == [ZeroDivisionError, ZeroDivisionError]


class TestFirstOf:
    async def test_returns_with_the_first_that_is_done(self) -> None:
        done = asyncio.Event()
        done.set()
        await asyncio.wait_for(first_of(asyncio.Event().wait(), done.wait()), 5)

    async def test_returns_after_its_time(self) -> None:
        await asyncio.wait_for(first_of(asyncio.Event().wait(), timeout=0.01), 5)

    async def test_leaves_a_task_going_on(self) -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        await first_of(task, timeout=0)
        assert not task.done()
        task.cancel()


class TestCancelled:
    async def test_cancels_again_what_missed_its_cancellation(self) -> None:
        async def misses_the_first() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()

        task = asyncio.create_task(misses_the_first())
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await cancelled(task, again=0.01)
        assert task.cancelled()


class TestTogether:
    async def test_ends_all_of_it_with_the_first_failure(self) -> None:
        ended = asyncio.Event()

        async def fail() -> None:
            raise KeyError

        async def go_on() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(KeyError):
            await together(go_on(), fail())
        assert ended.is_set()


class TestUnlessSet:
    async def test_gives_what_the_work_returns(self) -> None:
        assert await unless_set(asyncio.Event(), asyncio.sleep(0, "done")) == "done"

    async def test_raises_what_the_work_raises(self) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await unless_set(asyncio.Event(), fail())

    async def test_gives_nothing_once_it_is_set(self) -> None:
        stop = asyncio.Event()
        stop.set()
        assert await unless_set(stop, asyncio.Event().wait()) is None

    async def test_cancels_the_work_once_it_is_set(self) -> None:
        stop, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            stop.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        await unless_set(stop, work())
        assert cancelled.is_set()


class TestBackground:
    async def test_work_ends_with_its_block(self) -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with Background(asyncio.Event()).running(work()):
            await asyncio.sleep(0)
        assert cancelled.is_set()

    async def test_a_failure_sets_the_stop_and_is_kept(self) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        stop = asyncio.Event()
        background = Background(stop)
        async with background.running(fail()):
            await asyncio.wait_for(stop.wait(), 5)
        assert isinstance(background.failure, ZeroDivisionError)

    async def test_work_that_is_cancelled_at_the_blocks_end_is_no_failure(self) -> None:
        background = Background(asyncio.Event())
        async with background.running(asyncio.sleep(60)):
            pass
        assert background.failure is None
