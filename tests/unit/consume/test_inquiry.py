"""Which ended executions the reporter asks for, and what Kestra need not read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge.consume.inquiry import (
    FIRST,
    LONGEST,
    QUIET,
    Inquiry,
    OldestStart,
    Reach,
    ask_from,
    latest_end,
    oldest_of,
    read_from,
)
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REACH = Reach(overlap=2, unseen=15, page=100)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def execution(*, started: float | None = None, ended: float | None = None) -> Execution:
    """An execution that started and ended so many seconds ago."""
    return Execution(
        id="a",
        flow=FlowName("test", "job"),
        state=State.SUCCESS,
        started=None if started is None else ago(started),
        ended=None if ended is None else ago(ended),
    )


class TestTheEndsThatAreAskedFor:
    def test_go_back_a_little_before_the_latest_end(self) -> None:
        assert ask_from(ago(1), NOW, overlap=2) == ago(3)

    def test_ignore_a_clock_that_is_ahead(self) -> None:
        assert ask_from(ago(-3600), NOW, overlap=2) == ago(2)

    def test_go_back_no_further_where_nothing_ends(self) -> None:
        assert ask_from(ago(3600), NOW, overlap=2) == ago(QUIET + 2)

    def test_follow_the_latest_end(self) -> None:
        ended = [execution(ended=seconds) for seconds in (-5, 5)]
        assert latest_end(NOW, ended) == ago(-5)

    def test_do_not_follow_ends_into_the_past(self) -> None:
        assert latest_end(NOW, [execution(ended=5)]) == NOW


class TestTheStartsThatAreRead:
    def test_go_back_a_little_before_the_oldest_unfinished_one(self) -> None:
        assert read_from(ago(100), NOW, unseen=15) == ago(115)

    def test_go_back_no_further_than_the_limit(self) -> None:
        assert read_from(ago(LONGEST - 1), NOW, unseen=15) == ago(LONGEST)

    def test_go_back_some_minutes_where_the_oldest_is_not_known(self) -> None:
        assert read_from(None, NOW, unseen=15) == ago(FIRST)


class TestTheOldest:
    def test_is_what_started_first(self) -> None:
        assert oldest_of(execution(started=60), NOW) == OldestStart(asked=NOW, start=ago(60))

    def test_is_of_that_moment_where_all_has_ended(self) -> None:
        assert oldest_of(None, NOW) == OldestStart(asked=NOW, start=NOW)

    def test_is_not_after_that_moment_though_a_clock_is_ahead(self) -> None:
        assert oldest_of(execution(started=-60), NOW) == OldestStart(asked=NOW, start=NOW)

    def test_is_not_known_where_its_start_is_not(self) -> None:
        assert oldest_of(execution(), NOW) == OldestStart(asked=NOW, start=None)


class TestAnInquiry:
    def test_reads_the_last_minutes_at_first(self) -> None:
        assert Inquiry(NOW, REACH).question(NOW).started == ago(FIRST)

    def test_reads_from_the_oldest_of_before_its_last_question(self) -> None:
        inquiry = Inquiry(ago(60), REACH)
        inquiry.answered(ago(10), OldestStart(asked=ago(10), start=ago(30)))
        assert inquiry.question(NOW).started == ago(45)

    def test_asks_from_the_latest_end_of_its_last_answer(self) -> None:
        inquiry = Inquiry(ago(60), REACH)
        inquiry.answered(ago(10), OldestStart(asked=ago(10), start=ago(30)))
        assert inquiry.question(NOW).ended == ago(12)
