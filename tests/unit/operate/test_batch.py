"""A batch of jobs on its way into the queue, and the results that come back."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from aiormq.exceptions import ChannelAccessRefused

from bridge.errors import BrokerDenied, BrokerError, BrokerUnavailable
from bridge.job.message import Message
from bridge.operate.submission.batch import Batch, JobResult, job_result
from bridge.operate.submission.jobs import Submission
from bridge.operate.submission.publish import UNCONFIRMED_AT_ONCE, collect_results, publish_all
from bridge.rabbitmq.broker import Publisher, ReplyQueue


def batch(count: int = 3, *, submitted: str = "") -> Batch:
    jobs = [Submission(id=f"{index}", message=Message(body=b"{}")) for index in range(count)]
    return Batch(jobs=jobs, submitted=set(submitted))


def result(job: str, **data: Any) -> JobResult:
    return JobResult(job=job, data={"state": "SUCCESS", **data})


class FakePublisher:
    """Keeps what it is given, and raises the errors of these jobs."""

    def __init__(self, errors: dict[str, BrokerError] | None = None) -> None:
        self.sent: list[Message] = []
        self.errors = errors or {}

    async def publish(self, message: Message, **_: str) -> None:
        error = self.errors.get(str(len(self.sent)))
        self.sent.append(message)
        await asyncio.sleep(0)
        if error:
            raise error


async def publish(jobs: Batch, publisher: FakePublisher) -> BrokerError | None:
    return await publish_all(
        cast("Publisher", publisher), jobs, queue="q", reply_to=None, confirmed=lambda: None
    )


class TestAnnouncing:
    def test_ends_at_the_first_job_that_is_not_submitted(self) -> None:
        assert list(batch(submitted="02").announce()) == ["0"]

    def test_goes_on_where_it_ended(self) -> None:
        jobs = batch(submitted="0")
        first = list(jobs.announce())
        jobs.submitted.add("1")
        assert (first, list(jobs.announce())) == (["0"], ["1"])

    def test_skips_gaps_at_the_end(self) -> None:
        assert list(batch(submitted="02").announce(skip_gaps=True)) == ["0", "2"]


class TestTheCount:
    @pytest.mark.parametrize(
        ("submitted", "in_doubt", "words"),
        [
            ("0", "", "the job was submitted"),
            ("", "0", "the job may have been submitted"),
            ("", "", "the job was not submitted"),
        ],
    )
    def test_of_one_job_is_a_sentence(self, submitted: str, in_doubt: str, words: str) -> None:
        jobs = batch(1, submitted=submitted)
        jobs.in_doubt |= set(in_doubt)
        assert jobs.count == words

    def test_of_several_jobs_names_those_in_doubt(self) -> None:
        jobs = batch(submitted="0")
        jobs.in_doubt.add("1")
        assert jobs.count == "1 of 3 jobs were submitted, 1 more may have been"


class TestResults:
    def test_are_kept_once_for_each_job(self) -> None:
        jobs = batch(submitted="0")
        assert [jobs.add(result("0")), jobs.add(result("0"))] == [True, False]

    def test_of_other_jobs_are_passed_over(self) -> None:
        assert not batch(submitted="0").add(result("1"))

    def test_that_are_missing_are_named_in_order(self) -> None:
        jobs = batch(submitted="210")
        jobs.add(result("1"))
        assert (jobs.without_result, jobs.all_have_results) == (["0", "2"], False)

    def test_with_a_reason_are_no_success(self) -> None:
        jobs = batch(1, submitted="0")
        jobs.add(result("0", reason="cancelled"))
        assert (jobs.all_have_results, jobs.all_succeeded) == (True, False)

    @pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000])
    def test_that_are_no_json_objects_are_none(self, body: bytes) -> None:
        assert job_result(Message(body=body, correlation_id="0")) is None


class TestPublishing:
    async def test_sends_every_job_once(self) -> None:
        jobs = batch(2 * UNCONFIRMED_AT_ONCE)
        publisher = FakePublisher()
        assert await publish(jobs, publisher) is None
        assert len(jobs.submitted) == len(publisher.sent) == len(jobs.jobs)

    async def test_stops_after_an_error_and_returns_it(self) -> None:
        jobs = batch(2 * UNCONFIRMED_AT_ONCE)
        error = BrokerError("full")
        assert await publish(jobs, FakePublisher({"0": error})) is error
        assert len(jobs.submitted) == UNCONFIRMED_AT_ONCE - 1

    @pytest.mark.parametrize(
        ("error", "in_doubt"), [(BrokerError("full"), set()), (BrokerUnavailable("gone"), {"0"})]
    )
    async def test_leaves_in_doubt_only_what_rabbitmq_may_have(
        self, error: BrokerError, in_doubt: set[str]
    ) -> None:
        jobs = batch(1)
        await publish(jobs, FakePublisher({"0": error}))
        assert jobs.in_doubt == in_doubt

    async def test_leaves_nothing_in_doubt_that_a_lack_of_rights_kept_from_rabbitmq(self) -> None:
        jobs, error = batch(1), BrokerUnavailable("a publish was not confirmed")
        error.__cause__ = ChannelAccessRefused("write access")
        refused = await publish(jobs, FakePublisher({"0": error}))
        assert (type(refused), jobs.in_doubt) == (BrokerDenied, set())


class FakeReplyQueue:
    """Has these messages and no more."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    async def take(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError


def reply(job: str) -> Message:
    return Message(body=json.dumps({"state": "SUCCESS"}).encode(), correlation_id=job)


async def arrivals(jobs: Batch, *messages: Message, limit: float | None) -> list[str]:
    arrived: list[str] = []
    queue = cast("ReplyQueue", FakeReplyQueue(*messages))
    await collect_results(
        queue, jobs, limit=limit, arrived=lambda result: arrived.append(result.job)
    )
    return arrived


class TestCollecting:
    async def test_ends_with_the_last_result(self) -> None:
        jobs = batch(submitted="02")
        assert await arrivals(jobs, reply("2"), reply("2"), reply("0"), limit=None) == ["2", "0"]

    async def test_ends_when_the_time_is_up(self) -> None:
        jobs = batch(submitted="02")
        assert await arrivals(jobs, Message(body=b"?"), reply("2"), limit=0.01) == ["2"]
