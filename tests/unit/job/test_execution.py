"""Which execution is a job's own, and which should not be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.job.execution import TERMINAL, Execution, Found, Outcome, State, choose
from bridge.job.flow_name import FlowName

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def execution(execution_id: str, at: float | None = 0, **more: Any) -> Execution:
    """An execution that started `at` seconds after noon."""
    started = None if at is None else NOON + timedelta(seconds=at)
    return Execution(
        **{
            "id": execution_id,
            "flow": FlowName("n", "f"),
            "state": State.RUNNING,
            "started": started,
            **more,
        }
    )


class TestChoose:
    def test_of_none_is_none(self) -> None:
        assert choose([]) == Found(None)

    def test_of_one_is_that_one(self) -> None:
        only = execution("a")
        assert choose([only]) == Found(only)

    def test_takes_the_earliest_and_calls_the_others_duplicates(self) -> None:
        first, second, third = execution("c", 0), execution("b", 1), execution("a", 2)
        assert choose([third, first, second]) == Found(first, (second, third))

    def test_takes_the_newest_of_the_earliest_chain(self) -> None:
        first, retried = execution("a", 0, original_id="a"), execution("b", 5, original_id="a")
        assert choose([retried, first]) == Found(retried)

    def test_takes_a_duplicates_successors_for_duplicates_too(self) -> None:
        own = execution("a", 0, original_id="a")
        twin, heir = execution("b", 1, original_id="b"), execution("c", 9, original_id="b")
        assert choose([heir, own, twin]) == Found(own, (twin, heir))

    def test_knows_a_chain_whose_first_execution_is_gone(self) -> None:
        second, third = execution("b", 1, original_id="a"), execution("c", 2, original_id="a")
        assert choose([third, second]) == Found(third)

    def test_prefers_the_own_chain_even_where_a_duplicate_is_newer_than_its_end(self) -> None:
        own, duplicate = execution("a", 0, state=State.SUCCESS), execution("b", 100)
        assert choose([duplicate, own]) == Found(own, (duplicate,))

    def test_decides_by_id_where_two_started_at_once(self) -> None:
        assert choose([execution("b"), execution("a")]).current == execution("a")

    def test_compares_moments_and_not_their_spelling(self) -> None:
        late = execution("a", started=datetime(2026, 1, 2, 12, 30, tzinfo=UTC))
        early = execution(
            "b", started=datetime(2026, 1, 2, 14, 0, tzinfo=timezone(timedelta(hours=2)))
        )
        assert choose([late, early]).current == early

    def test_takes_whole_seconds_for_earlier_than_their_fractions(self) -> None:
        assert choose([execution("a", 0.5), execution("b", 0)]).current == execution("b", 0)

    def test_takes_one_without_a_start_for_the_earliest(self) -> None:
        assert choose([execution("a", 0), execution("b", None)]).current == execution("b", None)

    @given(
        st.lists(
            st.builds(
                execution,
                st.sampled_from("abcdefgh"),
                st.none() | st.integers(0, 3),
                original_id=st.none() | st.sampled_from("abc"),
            ),
            unique_by=lambda one: one.id,
        ).flatmap(lambda found: st.tuples(st.just(found), st.permutations(found)))
    )
    def test_does_not_depend_on_the_order(
        self, lists: tuple[list[Execution], list[Execution]]
    ) -> None:
        assert choose(lists[0]) == choose(lists[1])


class TestState:
    def test_that_kestra_invents_is_unknown_and_not_an_end(self) -> None:
        assert State("DREAMING") is State.UNKNOWN
        assert not State.UNKNOWN.terminal

    @pytest.mark.parametrize("state", State)
    def test_is_terminal_where_nothing_more_happens(self, state: State) -> None:
        ends = {"SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED", "SKIPPED"}
        assert state.terminal is (state.value in ends)

    @pytest.mark.parametrize("state", State)
    def test_has_ended_well_in_success_and_warning_alone(self, state: State) -> None:
        assert state.ended_well is (state in (State.SUCCESS, State.WARNING))

    def test_that_is_terminal_is_one_that_kestra_knows(self) -> None:
        assert State.UNKNOWN not in TERMINAL


class TestOutcome:
    @pytest.mark.parametrize(
        ("state", "timed_out", "label"),
        [
            (State.SUCCESS, False, "success"),
            (State.KILLED, False, "killed"),
            (State.KILLED, True, "timed_out"),
        ],
    )
    def test_is_one_word(self, state: State, timed_out: bool, label: str) -> None:
        assert Outcome(execution=execution("a", state=state), timed_out=timed_out).label == label
