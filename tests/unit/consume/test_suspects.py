"""Who is suspected once RabbitMQ ended a session over something that was published."""

from __future__ import annotations

import pytest

from bridge.consume.suspects import Suspects, refused
from bridge.errors import BrokerUnavailable, PublishFailed
from bridge.job.message import Delivery, Message
from bridge.job.settlement import Ack, Reason, Retry, ToDeadLetter


async def _ack() -> None:
    return


def delivery(job: str, lane: str = "q", body: bytes = b"{}") -> Delivery:
    return Delivery(
        message=Message(body=body, message_id=job),
        lane=lane,
        redelivered=False,
        ack=_ack,
        reject=_ack,
    )


def cut_off(suspects: Suspects, *jobs: str, by: BaseException | None = None) -> None:
    """Have the publishes of these jobs' messages fail."""
    error = by or BrokerUnavailable("gone", blames_message=True)
    for job in jobs:
        with pytest.raises(type(error)), suspects.publishing(delivery(job)):
            raise error


def test_everything_that_was_being_published_is_suspected() -> None:
    suspects = Suspects()
    cut_off(suspects, "a", "b")
    suspects.session_ended(over_a_publish=True)
    assert [delivery(job) in suspects for job in "abc"] == [True, True, False]


def test_nothing_is_suspected_where_the_network_ended_the_session() -> None:
    suspects = Suspects()
    cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=False)
    assert delivery("a") not in suspects


def test_what_an_earlier_session_published_is_not_suspected_of_ending_a_later_one() -> None:
    suspects = Suspects()
    cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=False)
    suspects.session_ended(over_a_publish=True)
    assert delivery("a") not in suspects


def test_what_was_published_is_not_suspected() -> None:
    suspects = Suspects()
    with suspects.publishing(delivery("a")):
        pass
    suspects.session_ended(over_a_publish=True)
    assert delivery("a") not in suspects


def test_what_the_broker_refused_is_not_suspected() -> None:
    suspects = Suspects()
    cut_off(suspects, "a", by=PublishFailed("full"))
    suspects.session_ended(over_a_publish=True)
    assert delivery("a") not in suspects


def test_the_suspicion_is_over_once_the_message_was_published() -> None:
    suspects = Suspects()
    cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=True)
    with suspects.publishing(delivery("a")):
        pass
    assert delivery("a") not in suspects


@pytest.mark.parametrize("other", [delivery("a", lane="other"), delivery("a", body=b"[]")])
def test_another_message_of_the_same_id_is_not_suspected(other: Delivery) -> None:
    suspects = Suspects()
    cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=True)
    assert other not in suspects


def test_one_of_two_messages_that_are_just_alike_can_still_be_it() -> None:
    suspects = Suspects()
    with suspects.publishing(delivery("a")):
        cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=True)
    assert delivery("a") in suspects


def test_a_publish_that_ends_after_its_session_changes_nothing_in_the_next() -> None:
    suspects = Suspects()
    with suspects.publishing(delivery("a")):
        suspects.session_ended(over_a_publish=False)
    cut_off(suspects, "a")
    suspects.session_ended(over_a_publish=True)
    assert delivery("a") in suspects


def test_only_so_many_are_remembered() -> None:
    suspects = Suspects(most=2)
    cut_off(suspects, "a", "b", "c")
    suspects.session_ended(over_a_publish=True)
    assert [delivery(job) in suspects for job in "abc"] == [False, True, True]


@pytest.mark.parametrize(
    "settlement",
    [
        Retry(attempt=2, delay=30, error="task x failed"),
        ToDeadLetter(reason=Reason.FAILED, error="task x failed"),
        Ack(),
    ],
)
def test_what_rabbitmq_refuses_is_an_invalid_message_whatever_was_due(
    settlement: Retry | ToDeadLetter | Ack,
) -> None:
    assert refused(settlement, "541").reason is Reason.INVALID_MESSAGE


def test_its_error_also_says_how_the_job_had_ended() -> None:
    letter = refused(
        ToDeadLetter(reason=Reason.FAILED, error="task x failed"), "541 INTERNAL_ERROR"
    )
    assert ("541 INTERNAL_ERROR" in letter.error, "task x failed" in letter.error) == (True, True)
