"""Completions reach those who wait for them, however early, often or garbled they come."""

from __future__ import annotations

import pytest

from bridge.consume.completions import CompletionRouter, EarlyReplies
from bridge.consume.reports import Completion
from bridge.job.execution import State
from bridge.telemetry.metrics import Metrics


def reply(execution_id: str = "e1", state: str = "SUCCESS") -> Completion:
    return Completion(execution_id=execution_id, state=State(state))


def ended(execution_id: str = "e1", state: State | None = State.SUCCESS) -> Completion:
    return Completion(execution_id=execution_id, state=state)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def router(metrics: Metrics) -> CompletionRouter:
    return CompletionRouter(metrics)


def counted(metrics: Metrics) -> dict[str, float]:
    """How many replies of which kind there were."""
    (family,) = [family for family in metrics.registry.collect() if family.name == "bridge_replies"]
    totals = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {sample.labels["match"]: sample.value for sample in totals if sample.value}


class TestRouting:
    async def test_brings_a_reply_to_the_waiter_for_its_execution(
        self, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1") as waiter:
            router.route_reply(reply())
            assert await waiter.next(timeout=1) == ended()

    async def test_brings_nothing_of_other_executions(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1") as waiter:
            router.route_reply(reply("e2"))
            with pytest.raises(TimeoutError):
                await waiter.next(timeout=0)

    async def test_keeps_a_reply_that_comes_before_anybody_waits(
        self, router: CompletionRouter
    ) -> None:
        router.route_reply(reply())
        with router.waiting_for("e1") as waiter:
            assert await waiter.next(timeout=1) == ended()

    async def test_keeps_the_last_of_several_early_replies(self, router: CompletionRouter) -> None:
        router.route_reply(reply(state="FAILED"))
        router.route_reply(reply(state="RETRIED"))
        with router.waiting_for("e1") as waiter:
            assert await waiter.next(timeout=1) == ended(state=State.RETRIED)

    async def test_gives_an_early_reply_once(self, router: CompletionRouter) -> None:
        router.route_reply(reply())
        with router.waiting_for("e1"):
            pass
        with router.waiting_for("e1") as waiter, pytest.raises(TimeoutError):
            await waiter.next(timeout=0)

    async def test_brings_every_reply_in_the_order_of_arrival(
        self, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1") as waiter:
            router.route_reply(reply(state="FAILED"))
            router.route_reply(reply(state="RETRIED"))
            assert [(await waiter.next(timeout=1)).state for _ in range(2)] == [
                State.FAILED,
                State.RETRIED,
            ]

    async def test_brings_a_doubled_reply_twice(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1") as waiter:
            router.route_reply(reply())
            router.route_reply(reply())
            assert [await waiter.next(timeout=1), await waiter.next(timeout=1)] == [
                ended(),
                ended(),
            ]

    async def test_brings_a_reply_to_both_waiters_for_one_execution(
        self, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1") as one, router.waiting_for("e1") as other:
            router.route_reply(reply())
            assert [await one.next(timeout=1), await other.next(timeout=1)] == [
                ended(),
                ended(),
            ]

    async def test_goes_on_with_the_second_waiter_when_the_first_has_left(
        self, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1") as stays:
            with router.waiting_for("e1"):
                pass
            assert router.route(ended())
            assert await stays.next(timeout=1) == ended()

    def test_forgets_an_execution_that_nobody_waits_for_any_more(
        self, router: CompletionRouter
    ) -> None:
        with router.waiting_for("e1"), router.waiting_for("e2"):
            assert router.awaited() == {"e1", "e2"}
        assert router.awaited() == set()

    def test_forgets_a_waiter_whose_block_ends_in_an_error(self, router: CompletionRouter) -> None:
        with pytest.raises(KeyError), router.waiting_for("e1"):
            raise KeyError
        assert router.awaited() == set()

    def test_returns_whether_anybody_waited(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1"):
            assert router.route(ended("e1", None))
            assert not router.route(ended("e2", None))

    def test_asking_leaves_no_trace_of_an_execution(self, router: CompletionRouter) -> None:
        router.route(ended("e2"))
        assert router.awaited() == set()

    def test_keeps_no_more_early_replies_than_it_may(self, metrics: Metrics) -> None:
        router = CompletionRouter(metrics, early=EarlyReplies(most=3))
        for n in range(5):
            router.route_reply(reply(f"e{n}"))
        assert list(router._early) == ["e2", "e3", "e4"]

    def test_keeps_early_replies_no_longer_than_it_may(self, metrics: Metrics) -> None:
        router = CompletionRouter(metrics, early=EarlyReplies(seconds=-1.0))
        router.route_reply(reply("e1"))
        assert list(router._early) == []

    async def test_times_out_where_no_time_is_left(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1") as waiter, pytest.raises(TimeoutError):
            await waiter.next(timeout=-5)

    def test_knows_which_executions_are_awaited_for_longer(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1") as first, router.waiting_for("e2") as second:
            second.since = first.since + 1
            assert router.awaited_since(first.since) == {"e1"}


class TestCounting:
    @pytest.mark.parametrize(
        ("told", "match"),
        [
            (reply("e1"), "awaited"),
            (reply("e2"), "unknown"),
            (reply("e1", "RUNNING"), "not_terminal"),
            (reply("e1", "DREAMING"), "not_terminal"),
        ],
    )
    def test_tells_replies_apart(
        self, router: CompletionRouter, metrics: Metrics, told: Completion, match: str
    ) -> None:
        with router.waiting_for("e1"):
            router.route_reply(told)
        assert counted(metrics) == {match: 1}

    async def test_brings_no_state_that_is_not_an_end(self, router: CompletionRouter) -> None:
        with router.waiting_for("e1") as waiter:
            router.route_reply(reply(state="RUNNING"))
            with pytest.raises(TimeoutError):
                await waiter.next(timeout=0)
