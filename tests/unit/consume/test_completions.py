"""News of executions' ends reach whoever waits for them, however early, often or garbled they
come."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.consume import completions
from bridge.consume.completions import Completion, CompletionRouter, parse_reply
from bridge.job.execution import State
from bridge.telemetry.metrics import Metrics


def reply(execution_id: str = "e1", state: str = "SUCCESS", **more: Any) -> bytes:
    return json.dumps(
        {"executionId": execution_id, "state": state, "namespace": "n", "flowId": "f", **more}
    ).encode()


def ended(execution_id: str = "e1", state: State | None = State.SUCCESS) -> Completion:
    return Completion(execution_id=execution_id, state=state)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def watch(metrics: Metrics) -> CompletionRouter:
    return CompletionRouter(metrics)


def counted(metrics: Metrics) -> dict[str, float]:
    """How many replies of which kind there were."""
    (family,) = [family for family in metrics.registry.collect() if family.name == "bridge_replies"]
    totals = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {sample.labels["match"]: sample.value for sample in totals if sample.value}


class TestParsing:
    def test_reads_id_state_and_end(self) -> None:
        assert parse_reply(reply(state="FAILED", endedAt="2026-01-02T03:04:05.678Z")) == Completion(
            execution_id="e1", state=State.FAILED, ended=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
        )

    @pytest.mark.parametrize("moment", [None, 5, "", "yesterday", "2026-01-02T03:04:05", ["x"]])
    def test_passes_over_an_end_that_is_no_moment(self, moment: Any) -> None:
        assert parse_reply(reply(endedAt=moment)).ended is None

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"executionId": "e1"}']
    )
    def test_refuses_what_is_no_reply(self, body: bytes) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 (pydantic's and ours)
            parse_reply(body)

    @pytest.mark.parametrize("part", ["executionId", "state"])
    def test_refuses_a_part_of_another_type(self, part: str) -> None:
        body = {"executionId": "e1", "state": "SUCCESS", part: 5}
        with pytest.raises(ValueError, match="no executionId or no state"):
            parse_reply(json.dumps(body).encode())


class TestWatch:
    async def test_brings_a_reply_to_whoever_follows_its_execution(
        self, watch: CompletionRouter
    ) -> None:
        with watch.follow("e1") as follower:
            watch.receive(reply())
            assert await follower.completion(timeout=1) == ended()

    async def test_brings_nothing_of_other_executions(self, watch: CompletionRouter) -> None:
        with watch.follow("e1") as follower:
            watch.receive(reply("e2"))
            with pytest.raises(TimeoutError):
                await follower.completion(timeout=0)

    async def test_keeps_a_reply_that_comes_before_anybody_follows(
        self, watch: CompletionRouter
    ) -> None:
        watch.receive(reply())
        with watch.follow("e1") as follower:
            assert await follower.completion(timeout=1) == ended()

    async def test_keeps_the_last_of_several_early_replies(self, watch: CompletionRouter) -> None:
        watch.receive(reply(state="FAILED"))
        watch.receive(reply(state="RETRIED"))
        with watch.follow("e1") as follower:
            assert await follower.completion(timeout=1) == ended(state=State.RETRIED)

    async def test_gives_an_early_reply_once(self, watch: CompletionRouter) -> None:
        watch.receive(reply())
        with watch.follow("e1"):
            pass
        with watch.follow("e1") as follower, pytest.raises(TimeoutError):
            await follower.completion(timeout=0)

    async def test_brings_every_reply_in_the_order_of_arrival(
        self, watch: CompletionRouter
    ) -> None:
        with watch.follow("e1") as follower:
            watch.receive(reply(state="FAILED"))
            watch.receive(reply(state="RETRIED"))
            assert [(await follower.completion(timeout=1)).state for _ in range(2)] == [
                State.FAILED,
                State.RETRIED,
            ]

    async def test_brings_a_doubled_reply_twice(self, watch: CompletionRouter) -> None:
        with watch.follow("e1") as follower:
            watch.receive(reply())
            watch.receive(reply())
            assert [await follower.completion(timeout=1), await follower.completion(timeout=1)] == [
                ended(),
                ended(),
            ]

    async def test_tells_two_followers_of_one_execution(self, watch: CompletionRouter) -> None:
        with watch.follow("e1") as one, watch.follow("e1") as other:
            watch.receive(reply())
            assert [await one.completion(timeout=1), await other.completion(timeout=1)] == [
                ended(),
                ended(),
            ]

    async def test_goes_on_telling_the_second_when_the_first_has_left(
        self, watch: CompletionRouter
    ) -> None:
        with watch.follow("e1") as stays:
            with watch.follow("e1"):
                pass
            assert watch.tell(ended())
            assert await stays.completion(timeout=1) == ended()

    def test_forgets_an_execution_that_nobody_follows_any_more(
        self, watch: CompletionRouter
    ) -> None:
        with watch.follow("e1"), watch.follow("e2"):
            assert watch.awaited() == {"e1", "e2"}
        assert watch.awaited() == set()

    def test_forgets_a_follower_that_ends_in_an_error(self, watch: CompletionRouter) -> None:
        with pytest.raises(KeyError), watch.follow("e1"):
            raise KeyError
        assert watch.awaited() == set()

    def test_says_whether_anybody_waited(self, watch: CompletionRouter) -> None:
        with watch.follow("e1"):
            assert watch.tell(ended("e1", None))
            assert not watch.tell(ended("e2", None))

    def test_asking_leaves_no_trace_of_an_execution(self, watch: CompletionRouter) -> None:
        watch.tell(ended("e2"))
        assert watch.awaited() == set()

    def test_keeps_no_more_early_replies_than_it_may(
        self, watch: CompletionRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(completions, "EARLY_KEPT", 3)
        for n in range(5):
            watch.receive(reply(f"e{n}"))
        assert list(watch._early) == ["e2", "e3", "e4"]

    def test_keeps_early_replies_no_longer_than_it_may(
        self, watch: CompletionRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch.receive(reply("e1"))
        monkeypatch.setattr(completions, "EARLY_SECONDS", -1.0)
        watch.receive(reply("e2"))
        assert list(watch._early) == []

    async def test_times_out_where_no_time_is_left(self, watch: CompletionRouter) -> None:
        with watch.follow("e1") as follower, pytest.raises(TimeoutError):
            await follower.completion(timeout=-5)


class TestCounting:
    @pytest.mark.parametrize(
        ("body", "match"),
        [
            (reply("e1"), "awaited"),
            (reply("e2"), "unknown"),
            (reply("e1", "RUNNING"), "not_terminal"),
            (reply("e1", "DREAMING"), "not_terminal"),
            (b"{", "malformed"),
            (b"[" * 100_000, "malformed"),
            (b"\xff\xfe", "malformed"),
        ],
    )
    def test_tells_replies_apart(
        self, watch: CompletionRouter, metrics: Metrics, body: bytes, match: str
    ) -> None:
        with watch.follow("e1"):
            watch.receive(body)
        assert counted(metrics) == {match: 1}

    async def test_brings_no_state_that_is_not_an_end(self, watch: CompletionRouter) -> None:
        with watch.follow("e1") as follower:
            watch.receive(reply(state="RUNNING"))
            with pytest.raises(TimeoutError):
                await follower.completion(timeout=0)

    @given(
        st.binary(max_size=60)
        | st.from_regex(rb'\{"executionId": "e1", "state": "?[A-Z]{0,7}"?\}', fullmatch=True)
    )
    def test_survives_any_body(self, body: bytes) -> None:
        CompletionRouter(SHARED_METRICS).receive(body)


SHARED_METRICS = Metrics()
