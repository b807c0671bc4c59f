"""A message that is published again is the same message, but for what would do harm on the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.job.message import (
    ATTEMPT,
    DEAD_LETTER_HEADERS,
    FIRST_ATTEMPT,
    MACHINES_LOST,
    PLAUSIBLE_WAIT,
    Delivery,
    Message,
)

WHOLE = Message(
    body=b"{}",
    headers={"traceparent": "00-1", "x-priority-of-theirs": [{"count": 1}]},
    content_type="application/json",
    content_encoding="utf-8",
    delivery_mode=1,
    priority=7,
    correlation_id="c-1",
    reply_to="results",
    expiration="60000",
    message_id="job-1",
    timestamp=datetime(2026, 1, 2, tzinfo=UTC),
    message_type="job",
    user_id="guest",
    app_id="shop",
)


def again(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message with these, once it is published again with nothing new."""
    return dict(Message(body=b"", headers=headers).to_republish({}).headers)


def test_keeps_every_property_but_three() -> None:
    changed = WHOLE.to_republish({})
    assert replace(changed, headers={}) == replace(
        WHOLE, headers={}, delivery_mode=2, user_id=None, expiration=None
    )


def test_keeps_the_publishers_headers() -> None:
    assert WHOLE.headers.items() <= WHOLE.to_republish({}).headers.items()


@pytest.mark.parametrize(
    ("name", "value"), [("x-bridge-user-id", "guest"), ("x-bridge-expiration", "60000")]
)
def test_keeps_a_property_that_would_do_harm_as_a_header(name: str, value: str) -> None:
    assert WHOLE.to_republish({}).headers[name] == value


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_routes_no_copies_anew(name: str) -> None:
    assert again({name: ["elsewhere"]}) == {f"x-bridge-{name.lower()}": ["elsewhere"]}


@pytest.mark.parametrize("name", [*DEAD_LETTER_HEADERS, ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST])
def test_drops_what_the_bridge_said_of_it_before(name: str) -> None:
    assert again({name: "old", "other": 1}) == {"other": 1}


BROKERS = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
]


@pytest.mark.parametrize("name", BROKERS)
def test_leaves_behind_what_rabbitmq_noted_on_the_way(name: str) -> None:
    """On 3.10 a retry with an old x-death seems to go in circles, and an odd one ends the broker's
    own worker."""
    assert again({name: ["a", 1], f"my-{name}": 1}) == {f"my-{name}": 1}


def test_asks_for_no_replies_of_a_consumer_that_the_bridge_does_not_have() -> None:
    """RabbitMQ closes the channel over a message that wants them."""
    message = Message(body=b"", reply_to="amq.rabbitmq.reply-to").to_republish({})
    assert (message.reply_to, message.headers) == (
        None,
        {"x-bridge-reply-to": "amq.rabbitmq.reply-to"},
    )


def test_keeps_the_address_of_somebody_elses_direct_replies() -> None:
    assert Message(body=b"", reply_to="amq.rabbitmq.reply-to.abc").to_republish({}).reply_to == (
        "amq.rabbitmq.reply-to.abc"
    )


DEATH = {
    "count": 1,
    "reason": "expired",
    "queue": "q",
    "exchange": "",
    "routing-keys": ["q"],
    "time": None,
}


@pytest.mark.parametrize("headers", [{}, {"x-death": []}, {"x-death": [DEATH, DEATH]}])
def test_rabbitmq_may_make_it_a_dead_letter_itself(headers: dict[str, Any]) -> None:
    assert Message(body=b"", headers=headers).may_be_rejected


@pytest.mark.parametrize(
    "deaths", [["a", 1], "x", 5, {"a": 1}, [{}], [DEATH | {"queue": 1}], [DEATH, "x"]]
)
def test_rabbitmq_may_not_where_that_would_end_its_queue(deaths: Any) -> None:
    """Tried on 3.10: a classic queue from which such a message expires is gone."""
    assert not Message(body=b"", headers={"x-death": deaths}).may_be_rejected


def test_bare_it_has_nothing_that_could_do_harm() -> None:
    left = {
        field: getattr(WHOLE, field)
        for field in ("body", "content_type", "priority", "message_id", "timestamp")
    }
    assert WHOLE.bare() == Message(**left)


def test_says_what_is_new() -> None:
    message = Message(body=b"", headers={ATTEMPT: 1, "other": 1})
    assert message.to_republish({ATTEMPT: 2}).headers == {ATTEMPT: 2, "other": 1}


def test_is_durable_whatever_it_was() -> None:
    assert Message(body=b"", delivery_mode=None).to_republish({}).delivery_mode == 2


def test_gets_the_id_that_it_is_stamped_with() -> None:
    assert Message(body=b"").to_republish({}, message_id="fresh").message_id == "fresh"


def test_keeps_its_id_where_it_is_stamped_with_none() -> None:
    assert WHOLE.to_republish({}).message_id == "job-1"


def test_twice_is_as_good_as_once() -> None:
    once = WHOLE.to_republish({ATTEMPT: 2})
    assert once.to_republish({ATTEMPT: 2}) == once


def test_leaves_the_message_itself_as_it_was() -> None:
    headers = {"CC": ["elsewhere"], ATTEMPT: 1}
    Message(body=b"", headers=headers).to_republish({ATTEMPT: 2})
    assert headers == {"CC": ["elsewhere"], ATTEMPT: 1}


# How long a message waited in the queue.

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WAITING = Message(body=b"{}", message_id="j", timestamp=NOW - MINUTE)


async def settle() -> None:
    pass


def waited(message: Message, *, redelivered: bool = False) -> float | None:
    delivery = Delivery(
        message=message, lane="kestra.jobs", redelivered=redelivered, ack=settle, reject=settle
    )
    return delivery.waited(NOW)


def test_it_waited_since_its_time_stamp() -> None:
    assert waited(WAITING) == 60


def test_a_redelivery_tells_nothing_of_the_wait() -> None:
    assert waited(WAITING, redelivered=True) is None


@pytest.mark.parametrize("attempt", [1, 2])
def test_what_was_put_off_or_replayed_tells_nothing_of_the_wait(attempt: int) -> None:
    assert waited(replace(WAITING, headers={ATTEMPT: attempt})) is None


@pytest.mark.parametrize(
    "message", [replace(WAITING, message_id=None), replace(WAITING, timestamp=None)]
)
def test_without_an_id_or_a_time_stamp_the_wait_is_not_known(message: Message) -> None:
    assert waited(message) is None


@pytest.mark.parametrize(
    "stamp",
    [NOW + timedelta(seconds=1), NOW - PLAUSIBLE_WAIT - MINUTE, datetime(1970, 1, 2, tzinfo=UTC)],
)
def test_an_implausible_time_stamp_is_left_out(stamp: datetime) -> None:
    assert waited(replace(WAITING, timestamp=stamp)) is None


@pytest.mark.parametrize("wait", [timedelta(), PLAUSIBLE_WAIT])
def test_a_time_stamp_may_be_of_now_or_of_long_ago(wait: timedelta) -> None:
    assert waited(replace(WAITING, timestamp=NOW - wait)) == wait.total_seconds()
