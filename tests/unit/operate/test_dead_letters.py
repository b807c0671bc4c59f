"""What a dead letter says, which ones a filter means, what a replay does with one, and the message
that goes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.job.decode import decode
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.machine_use import MachineUse
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST, Message
from bridge.operate.dead_letters.decision import (
    ReplayResult,
    decide,
    find_obstacle,
    indistinguishable,
)
from bridge.operate.dead_letters.letter import (
    DeadLetter,
    Origin,
    key_of_copy,
    parse,
    to_replay,
)
from bridge.operate.dead_letters.selection import Selection

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
DEAD = {
    "x-bridge-reason": "failed",
    "x-bridge-error": "task work ended FAILED: disk full",
    "x-bridge-execution": "4n5ruBCMlTeYTGni73rtlW",
    "x-bridge-attempt": 3,
    "x-bridge-queue": "q",
    "x-bridge-at": (NOW - timedelta(hours=2)).isoformat(),
}
EXPIRED = {"x-death": [{"queue": "q", "reason": "expired", "time": NOW - timedelta(minutes=5)}]}


def message(headers: dict[str, Any] | None = None, **more: Any) -> Message:
    given = {"body": b'{"flow": "team/report"}', "message_id": "day-1", "priority": 7, **more}
    return Message(headers=DEAD if headers is None else headers, **given)


def letter(headers: dict[str, Any] | None = None, **more: Any) -> DeadLetter:
    return parse(message(headers, **more), queue="q", default_flow=None)


def execution(state: str, execution_id: str = "e1") -> Execution:
    return Execution(id=execution_id, flow=FlowName("team", "report"), state=State(state))


# -- what one says --


def test_a_letter_of_the_bridge_says_why() -> None:
    found = letter()
    assert (found.origin, found.reason, found.error) == (
        Origin.BRIDGE,
        "failed",
        "task work ended FAILED: disk full",
    )


def test_a_letter_names_job_flow_attempt_and_execution() -> None:
    found = letter()
    told = (found.job, str(found.flow), found.attempt, found.execution)
    assert told == ("day-1", "team/report", 3, "4n5ruBCMlTeYTGni73rtlW")


def test_a_letter_that_rabbitmq_gave_up_says_so() -> None:
    found = letter(EXPIRED)
    assert (found.origin, found.reason, found.error) == (
        Origin.BROKER,
        "expired",
        "RabbitMQ gave it up in q: expired",
    )


def test_a_retry_that_rabbitmq_gave_up_is_told_from_its_way_through_the_retry_queue() -> None:
    deaths = [
        {"queue": "q", "reason": "delivery_limit"},
        {"queue": "q.retry.30", "reason": "expired"},
    ]
    assert letter({"x-death": deaths, ATTEMPT: 2}).reason == "delivery_limit"


def test_what_came_through_a_retry_queue_alone_is_unexplained() -> None:
    assert (
        letter({"x-death": [{"queue": "q.retry.30", "reason": "expired"}]}).reason == "unexplained"
    )


def test_a_message_that_somebody_put_there_is_unexplained() -> None:
    assert (letter({}).origin, letter({}).reason) == (Origin.UNKNOWN, "unexplained")


def test_what_the_lanes_own_exchange_led_to_no_queue_is_unroutable() -> None:
    found = letter({}, exchange="q", routing_key="typo\n")
    assert (found.origin, found.reason, found.error) == (
        Origin.BROKER,
        "unroutable",
        "it was published to exchange q with routing key 'typo\\n', which led to no queue",
    )


@pytest.mark.parametrize("headers", [DEAD, EXPIRED], ids=["of-the-bridge", "of-rabbitmq"])
def test_it_is_unroutable_whatever_had_become_of_it_before(headers: dict[str, Any]) -> None:
    assert letter(headers, exchange="q", routing_key="typo").reason == "unroutable"


def test_what_came_by_the_exchange_for_dead_letters_is_what_its_headers_say() -> None:
    assert letter(DEAD, exchange="q.dead", routing_key="q").reason == "failed"


def test_what_was_unroutable_can_be_put_back_unless_it_is_invalid() -> None:
    good, bad = message({}, exchange="q"), message({}, exchange="q", body=b"[")
    told = [
        find_obstacle(parse(each, queue="q", default_flow=None), each, max_priority=10)
        for each in (good, bad)
    ]
    assert (told[0], "dead letter again" in (told[1] or "")) == (None, True)


def test_the_age_counts_from_when_it_became_a_dead_letter() -> None:
    assert (letter().age(NOW), letter(EXPIRED).age(NOW)) == (
        timedelta(hours=2),
        timedelta(minutes=5),
    )


def test_a_letter_from_a_clock_ahead_of_ours_is_new() -> None:
    assert (
        letter(DEAD | {"x-bridge-at": (NOW + timedelta(hours=1)).isoformat()}).age(NOW)
        == timedelta()
    )


def test_a_letter_that_says_no_time_has_no_age() -> None:
    assert letter({}).age(NOW) is None


def test_without_a_flow_in_the_body_the_lanes_flow_counts() -> None:
    found = parse(message(body=b"{}"), queue="q", default_flow=FlowName("team", "usual"))
    assert str(found.flow) == "team/usual"


def test_a_message_without_an_id_gets_a_name_that_stays() -> None:
    again = letter({"x-delivery-count": 4, "x-acquired-count": 9}, message_id=None)
    assert letter({}, message_id=None).job == again.job
    assert again.job.startswith("unnamed-")


def test_messages_without_an_id_have_different_names_where_they_differ() -> None:
    assert letter({}, message_id=None).job != letter({}, message_id=None, priority=3).job


def test_programs_get_an_id_as_it_is() -> None:
    assert letter(message_id="a\nb").data["job"] == "a\nb"


def test_an_id_that_a_terminal_would_obey_is_shown_harmless() -> None:
    assert letter(message_id="a\x1b[31m\n").name == r"a\x1b[31m\n"


@pytest.mark.parametrize("execution_id", ["../../flows/a/b", "a b", "", 7, "x" * 100])
def test_what_can_be_no_executions_id_is_none(execution_id: object) -> None:
    assert letter(DEAD | {"x-bridge-execution": execution_id}).execution is None


@pytest.mark.parametrize("attempt", ["3", True, 0, -1, None])
def test_a_senseless_attempt_is_the_first(attempt: object) -> None:
    assert letter(DEAD | {ATTEMPT: attempt}).attempt == 1


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*DEAD, "x-death", "mine"]), _values),
    st.binary(max_size=40),
    st.none() | st.text(max_size=20),
)
def test_anything_that_somebody_puts_there_can_be_read(
    headers: dict[str, Any], body: bytes, job: str | None
) -> None:
    found = parse(Message(body=body, headers=headers, message_id=job), queue="q", default_flow=None)
    assert f"{found.name}{found.reason}{found.error}".isprintable()


# -- filters --


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(now=NOW), True),
        (Selection(now=NOW, names=frozenset({"day-1"})), True),
        (Selection(now=NOW, names=frozenset({"day-2"})), False),
        (Selection(now=NOW, reasons=frozenset({"failed", "killed"})), True),
        (Selection(now=NOW, reasons=frozenset({"killed"})), False),
        (Selection(now=NOW, flows=["team/*"]), True),
        (Selection(now=NOW, flows=["other/*"]), False),
        (Selection(now=NOW, jobs=["day-*"]), True),
        (Selection(now=NOW, jobs=["night-*"]), False),
        (Selection(now=NOW, error="Disk Full"), True),
        (Selection(now=NOW, error="memory"), False),
        (Selection(now=NOW, older_than=timedelta(hours=1)), True),
        (Selection(now=NOW, older_than=timedelta(hours=3)), False),
        (Selection(now=NOW, newer_than=timedelta(hours=3)), True),
        (Selection(now=NOW, newer_than=timedelta(hours=1)), False),
        (Selection(now=NOW, reasons=frozenset({"failed"}), flows=["other/*"]), False),
    ],
)
def test_a_filter_means_what_passes_all_of_it(selection: Selection, meant: bool) -> None:
    assert (letter() in selection) is meant


def test_a_letter_without_an_age_is_neither_old_nor_new() -> None:
    filters = (
        Selection(now=NOW, older_than=timedelta()),
        Selection(now=NOW, newer_than=timedelta(days=9)),
    )
    assert [letter({}) in one for one in filters] == [False, False]


def test_a_letter_of_an_unknown_flow_matches_no_pattern() -> None:
    assert letter(body=b"{}") not in Selection(now=NOW, flows=["*/*"])


def test_an_id_is_found_as_it_is_shown() -> None:
    assert letter(message_id="a\x1b") in Selection(names=frozenset({r"a\x1b"}))


def test_only_an_empty_selection_means_all() -> None:
    assert (Selection().means_all, Selection(error="x").means_all) == (True, False)


# -- back into the queue --


def back(headers: dict[str, Any] | None = None, **more: Any) -> Message:
    original = message(headers, **more)
    return to_replay(parse(original, queue="q", default_flow=None), original)


def test_a_job_goes_back_as_its_next_attempt_with_a_fresh_budget() -> None:
    assert (back().headers[ATTEMPT], back().headers[FIRST_ATTEMPT]) == (4, 4)


def test_a_replay_keeps_what_the_job_used_of_machines_but_not_how_many_it_lost() -> None:
    used = MachineUse({"small": 10.0}, 0.5).headers
    headers = back(DEAD | used | {MACHINES_LOST: 3}).headers
    assert headers == {**used, ATTEMPT: 4, FIRST_ATTEMPT: 4}


def test_the_bridge_reads_it_as_that_attempt() -> None:
    job = decode(back(), default_flow=None, max_priority=10, queue="q")
    assert (job.id, job.attempt, job.first_attempt) == ("day-1", 4, 4)


def test_body_and_priority_go_back_as_they_were() -> None:
    again = back(correlation_id="c", reply_to="r")
    assert (again.body, again.priority, again.correlation_id, again.reply_to) == (
        message().body,
        7,
        "c",
        "r",
    )


def test_the_publishers_headers_go_back_and_the_dead_letters_do_not() -> None:
    assert back(DEAD | {"mine": "kept"}).headers == {"mine": "kept", ATTEMPT: 4, FIRST_ATTEMPT: 4}


def test_nothing_of_rabbitmqs_own_goes_back() -> None:
    """With an old x-death a later retry would seem to go in circles, and RabbitMQ 3.10 would drop
    it."""
    brokers = EXPIRED | {
        "x-first-death-queue": "q",
        "x-last-death-reason": "expired",
        "x-delivery-count": 3,
    }
    assert back(brokers).headers == {ATTEMPT: 2, FIRST_ATTEMPT: 2}


def test_an_expiration_stays_a_header() -> None:
    again = back(DEAD | {"x-bridge-expiration": "60000"})
    assert (again.expiration, again.headers["x-bridge-expiration"]) == (None, "60000")


def test_a_job_without_an_id_goes_back_with_the_name_that_it_was_shown_by() -> None:
    assert back({}, message_id=None).message_id == letter({}, message_id=None).job


@pytest.mark.parametrize("more", [{}, {"message_id": None}, {"body": b""}])
def test_a_copy_is_known_again_as_its_letters(more: dict[str, Any]) -> None:
    assert key_of_copy(back(**more), queue="q") == letter(**more).key


@pytest.mark.parametrize(
    "other",
    [
        letter(message_id="day-2"),
        letter(body=b"{}"),
        letter(DEAD | {ATTEMPT: 4}),
        parse(message(), queue="other", default_flow=None),
    ],
    ids=["id", "body", "attempt", "queue"],
)
def test_letters_of_different_jobs_or_attempts_have_different_keys(other: DeadLetter) -> None:
    assert letter().key != other.key


def test_letters_without_an_id_that_are_alike_cannot_be_told_apart() -> None:
    same, other = letter({}, message_id=None), letter({}, message_id=None, priority=1)
    assert indistinguishable([same, other, same]) == {same.key}


def test_the_same_job_twice_is_clear() -> None:
    assert indistinguishable([letter(), letter()]) == frozenset()


def why_not(headers: dict[str, Any] | None = None, **more: Any) -> str | None:
    original = message(headers, **more)
    return find_obstacle(parse(original, queue="q", default_flow=None), original, max_priority=10)


def test_a_job_that_failed_can_go_back() -> None:
    assert why_not() is None


def test_a_job_of_another_queue_stays() -> None:
    assert why_not(DEAD | {"x-bridge-queue": "other"}) == "its queue is other, not q"


INVALID = DEAD | {"x-bridge-reason": "invalid_message"}


def test_an_invalid_message_stays_and_says_why() -> None:
    assert "it would be a dead letter again: the body is not JSON" in (
        why_not(INVALID, body=b"{") or ""
    )


def test_an_invalid_message_that_has_become_valid_can_go_back() -> None:
    assert why_not(INVALID) is None


def test_what_the_bridge_could_read_is_not_judged_by_the_settings_of_who_replays() -> None:
    assert why_not(priority=200) is None


@pytest.mark.parametrize(("body", "stays"), [(b'{"flow": "a/b"}', False), (b"[]", True)])
def test_a_message_that_somebody_put_there_goes_back_if_it_is_a_job(
    body: bytes, stays: bool
) -> None:
    assert bool(why_not({}, body=body)) is stays


# -- what has become of the execution --


@pytest.mark.parametrize(
    ("states", "result"),
    [
        ([], ReplayResult.REPLAY),
        (["FAILED"], ReplayResult.REPLAY),
        (["KILLED"], ReplayResult.REPLAY),
        (["SUCCESS"], ReplayResult.SUCCEEDED),
        (["WARNING"], ReplayResult.SUCCEEDED),
        (["FAILED", "SUCCESS"], ReplayResult.SUCCEEDED),
        (["SUCCESS", "FAILED"], ReplayResult.SUCCEEDED),
        (["FAILED", "RUNNING"], ReplayResult.RUNNING),
        (["RUNNING", "SUCCESS"], ReplayResult.SUCCEEDED),
        (["RETRIED", "FAILED"], ReplayResult.REPLAY),
        (["SOMETHING_NEW"], ReplayResult.RUNNING),
    ],
)
def test_what_a_replay_does_follows_from_the_executions(
    states: list[str], result: ReplayResult
) -> None:
    assert decide(letter(), executions=map(execution, states)).result is result


def test_a_warning_is_no_success_where_the_operator_says_so() -> None:
    assert (
        decide(letter(), executions=[execution("WARNING")], ack_warning=False).result
        is ReplayResult.REPLAY
    )


def test_an_obstacle_keeps_a_letter_where_it_is() -> None:
    assert decide(letter(), obstacle="no").result is ReplayResult.REFUSED


def test_a_decision_names_the_execution() -> None:
    decision = decide(letter(), executions=[execution("SUCCESS", "e9")])
    assert decision.why == "execution e9 is SUCCESS by now"


def test_a_letter_for_programs_is_flat_and_complete() -> None:
    assert letter().data == {
        "job": "day-1",
        "queue": "q",
        "reason": "failed",
        "error": "task work ended FAILED: disk full",
        "by": "bridge",
        "flow": "team/report",
        "attempt": 3,
        "execution": "4n5ruBCMlTeYTGni73rtlW",
        "at": "2026-05-04T10:00:00+00:00",
        "priority": 7,
        "bytes": len(message().body),
    }


@pytest.mark.parametrize(
    ("flows", "told"),
    [
        (None, None),
        (("team/*",), None),
        (("other/*",), "BRIDGE_ALLOWED_FLOWS still doesn't allow flow team/report"),
        ((), "BRIDGE_ALLOWED_FLOWS still doesn't allow flow team/report"),
    ],
    ids=["unknown", "allowed by now", "another", "none"],
)
def test_a_flow_that_was_not_allowed_is_judged_anew(
    flows: tuple[str, ...] | None, told: str | None
) -> None:
    original = Message(
        body=b'{"flow": "team/report"}', headers={"x-bridge-reason": "flow_not_allowed"}
    )
    found = parse(original, queue="q", default_flow=None)
    assert find_obstacle(found, original, max_priority=10, flows=flows) == told
