"""What a replica makes of what it hears on the reply exchange."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.consume.completions import CompletionRouter
from bridge.consume.hearing import Hearing, ToldEnds, UnfinishedLists
from bridge.consume.reports import ListPart, list_parts, sign
from bridge.job.execution import State
from bridge.telemetry.metrics import Metrics

REPLY = json.dumps({"executionId": "e1", "state": "SUCCESS"}).encode()
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
SHARED = Metrics()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def router(metrics: Metrics) -> CompletionRouter:
    return CompletionRouter(metrics)


@pytest.fixture
def hearing(router: CompletionRouter, metrics: Metrics) -> Hearing:
    return Hearing(reporter="q", completions=router, metrics=metrics)


@contextmanager
def awaited(router: CompletionRouter, execution_id: str, *, seconds: float) -> Iterator[None]:
    """An execution that is awaited for so long."""
    with router.waiting_for(execution_id) as waiter:
        waiter.since -= seconds
        yield


def hear_list(hearing: Hearing, *ids: str, reporter: str = "q", seconds: float = 0.0) -> None:
    for message in list_parts(reporter, ids, seconds=seconds):
        hearing.on_message(message.body)


async def missing(hearing: Hearing) -> set[str]:
    async with asyncio.timeout(1):
        return await hearing.missing()


def part(number: int, *ids: str, list_id: str = "a", parts: int = 2) -> ListPart:
    return ListPart(
        reporter="q",
        list_id=list_id,
        part=number,
        parts=parts,
        seconds=0,
        unfinished=frozenset(ids),
    )


class TestEnds:
    async def test_are_brought_to_who_waits(
        self, hearing: Hearing, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1") as waiter:
            hearing.on_message(REPLY)
            assert (await waiter.next(timeout=1)).state is State.SUCCESS

    def test_are_known_as_told(self, hearing: Hearing) -> None:
        hearing.on_message(REPLY)
        assert hearing.told.has("e1", State.SUCCESS, None)

    @pytest.mark.parametrize("by", ["notifier", "reporter"])
    def test_are_counted_by_who_told_them(
        self, hearing: Hearing, metrics: Metrics, by: str
    ) -> None:
        hearing.on_message(json.dumps({**json.loads(REPLY), "by": by}).encode())
        assert metrics.registry.get_sample_value("bridge_ends_heard_total", {"by": by}) == 1

    @pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff\xfe", b"[]"])
    def test_that_can_not_be_read_are_counted(
        self, hearing: Hearing, metrics: Metrics, body: bytes
    ) -> None:
        hearing.on_message(body)
        malformed = {"match": "malformed"}
        assert metrics.registry.get_sample_value("bridge_replies_total", malformed) == 1

    @given(
        st.binary(max_size=60)
        | st.from_regex(rb'\{"executionId": "e1", "state": "?[A-Z]{0,7}"?\}', fullmatch=True)
        | st.from_regex(rb'\{"unfinished": \[("e1")?\], "reporter": "q", "part": [0-9]\}')
        | st.from_regex(rb'\{"executionId": "", "state": "", "endedAt": "[0-9]{4}-01-01T00:00Z"\}')
    )
    def test_may_have_any_body(self, body: bytes) -> None:
        Hearing(reporter="q", completions=CompletionRouter(SHARED), metrics=SHARED).on_message(body)


class TestToldEnds:
    def test_know_an_end_whatever_the_precision_of_its_time(self) -> None:
        told = ToldEnds()
        told.note("e1", State.FAILED, MOMENT + timedelta(microseconds=7))
        assert told.has("e1", State.FAILED, MOMENT)

    @pytest.mark.parametrize(
        ("state", "ended"),
        [(State.RETRIED, MOMENT), (State.FAILED, MOMENT + timedelta(seconds=1))],
        ids=["in another state", "after a restart"],
    )
    def test_tell_a_later_end_from_an_earlier_one(self, state: State, ended: datetime) -> None:
        told = ToldEnds()
        told.note("e1", State.FAILED, MOMENT)
        assert not told.has("e1", state, ended)

    def test_are_no_more_than_they_may_be(self) -> None:
        told = ToldEnds(most=2)
        for number in range(3):
            told.note(f"e{number}", State.SUCCESS, MOMENT)
        assert (len(told), told.has("e0", State.SUCCESS, MOMENT)) == (2, False)


class TestSigns:
    async def test_keep_a_replica_from_trying(self, hearing: Hearing) -> None:
        hearing.on_message(sign("q", asked=0).body)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await hearing.silence(60)

    async def test_of_another_reporter_mean_nothing(self, hearing: Hearing) -> None:
        hearing.on_message(sign("other", asked=0).body)
        async with asyncio.timeout(1):
            await hearing.silence(60)

    def test_say_when_kestra_answered_last(self, hearing: Hearing) -> None:
        hearing.on_message(sign("q", asked=100).body)
        assert 100 <= hearing.unasked_for < 110

    def test_that_never_came_say_nothing(self, hearing: Hearing) -> None:
        assert hearing.unasked_for == float("inf")


class TestLists:
    async def test_show_which_awaited_executions_have_ended(
        self, hearing: Hearing, router: CompletionRouter
    ) -> None:
        with awaited(router, "runs", seconds=60), awaited(router, "ended", seconds=60):
            hear_list(hearing, "runs", "another's")
            assert await missing(hearing) == {"ended"}

    async def test_say_nothing_about_what_is_younger(
        self, hearing: Hearing, router: CompletionRouter
    ) -> None:
        with awaited(router, "new", seconds=11):
            hear_list(hearing, seconds=10)
            assert await missing(hearing) == set()

    async def test_of_another_reporter_mean_nothing(
        self, hearing: Hearing, router: CompletionRouter
    ) -> None:
        with awaited(router, "ended", seconds=60):
            hear_list(hearing, reporter="other")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await hearing.missing()

    def test_end_the_time_without_one(self, hearing: Hearing) -> None:
        hearing._listed_at -= 100
        hear_list(hearing)
        assert hearing.unlisted_for < 50

    def test_are_whole_once_all_parts_have_come_in_any_order(self) -> None:
        lists, waited_for = UnfinishedLists(), {"e1", "e2", "e3"}
        found = [lists.add(each, waited_for.copy) for each in (part(2, "e2"), part(1, "e1"))]
        assert found == [None, {"e3"}]

    def test_are_not_whole_with_one_part_twice(self) -> None:
        lists = UnfinishedLists()
        assert [lists.add(part(1), set) for _ in range(2)] == [None, None]

    def test_of_two_reporters_are_kept_apart(self) -> None:
        lists, waited_for = UnfinishedLists(), {"e1", "e2"}
        lists.add(part(1, "e1"), waited_for.copy)
        assert lists.add(part(1, "e2", list_id="b", parts=1), waited_for.copy) == {"e1"}

    def test_that_lack_a_part_are_forgotten(self) -> None:
        lists = UnfinishedLists(at_once=1)
        lists.add(part(1), set)
        lists.add(part(1, list_id="b"), set)
        assert lists.add(part(2), set) is None
