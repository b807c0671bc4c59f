"""The reporter at work: what it asks of Kestra, and what it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.consume.hearing import ToldEnds
from bridge.consume.inquiry import FIRST, Reach
from bridge.consume.reporting import (
    Reporting,
    ReportPolicy,
    look_back,
    untold,
)
from bridge.consume.reports import LIST_KEY, SIGN_KEY
from bridge.errors import BrokerUnavailable, KestraDenied, KestraUnavailable
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.message import Message
from bridge.telemetry.metrics import Metrics
from tests.support.harness import eventually
from tests.support.memory_kestra import MemoryKestra
from tests.support.standin import Ends

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FLOW = FlowName("test", "job")
QUICK = ReportPolicy(interval=0.001, again_after=0.001, sign_every=0.001, list_every=0.001)
NARROW = replace(
    QUICK,
    oldest_every=0,
    quick=Reach(overlap=1, unseen=1, page=3),
    deep=Reach(overlap=15, unseen=1, page=4),
)


def ended(execution_id: str, seconds: float = 0) -> Execution:
    """An execution that ended so many seconds from now."""
    moment = NOW + timedelta(seconds=seconds)
    return Execution(id=execution_id, flow=FLOW, state=State.SUCCESS, ended=moment)


class TestAQuestion:
    def test_has_no_news_of_what_was_told(self) -> None:
        told = ToldEnds()
        told.note("a", State.SUCCESS, NOW)
        assert [each.id for each in untold([ended("a"), ended("b")], told)] == ["b"]

    def test_that_is_quick_begins_an_interval_after_the_one_before(self) -> None:
        assert ReportPolicy(interval=0.5).pause_after(0.1, told=0) == 0.4

    def test_that_takes_long_is_asked_less_often(self) -> None:
        assert ReportPolicy(interval=0.5, share=0.25).pause_after(2, told=0) == 6

    def test_that_found_ends_is_followed_by_the_next_one_sooner(self) -> None:
        policy = ReportPolicy(interval=0.5, busy_interval=0.25, busy_share=0.5)
        assert policy.pause_after(0.125, told=1) == 0.125

    @pytest.mark.parametrize(("took", "pause"), [(0.0625, 0.1875), (0.25, 0.25), (2, 2)])
    def test_that_found_ends_hurries_less_the_longer_it_takes(
        self, took: float, pause: float
    ) -> None:
        policy = ReportPolicy(interval=0.5, busy_interval=0.125, share=0.5, busy_share=0.25)
        assert policy.pause_after(took, told=1) == pause


class TestANewReporter:
    def test_looks_back_to_the_last_answer_of_the_one_before(self) -> None:
        assert look_back(7, list_every=30) == 7

    def test_looks_back_over_two_lists_where_there_was_none(self) -> None:
        assert look_back(float("inf"), list_every=30) == 60

    @pytest.mark.parametrize(("failures", "rest"), [(0, 5), (1, 10), (9, 60), (10_000, 60)])
    def test_that_fails_again_rests_for_longer(self, failures: int, rest: float) -> None:
        assert ReportPolicy(rest=5, rest_at_most=60).rest_after(failures) == rest


@dataclass
class Told:
    """A publisher that keeps what is published."""

    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    broken: bool = False

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        if self.broken:
            raise BrokerUnavailable("the connection was lost")
        assert exchange == "kestra.replies"
        self.messages.append((routing_key, json.loads(message.body)))

    def of(self, key: str) -> list[dict[str, Any]]:
        return [body for routing_key, body in self.messages if routing_key == key]

    @property
    def ends(self) -> list[str]:
        return [body["executionId"] for _, body in self.messages if "executionId" in body]


@dataclass
class Rig:
    kestra: MemoryKestra = field(default_factory=MemoryKestra)
    told: Told = field(default_factory=Told)
    known: ToldEnds = field(default_factory=ToldEnds)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.kestra.flow("test", "job", Ends(after=None))

    def reporting(self, policy: ReportPolicy = QUICK, *, back: float = 0) -> Reporting:
        return Reporting(
            name="q",
            publisher=self.told,
            kestra=self.kestra,
            told=self.known,
            metrics=self.metrics,
            back=back,
            policy=policy,
        )

    async def create(self, job: str = "one") -> str:
        return (await self.kestra.create(Job(id=job, flow=FLOW))).id

    def start(self, execution_id: str, *, ago: float) -> None:
        """Let an execution have started so many seconds ago."""
        run = self.kestra.executions[execution_id]
        moment = self.kestra.now() - timedelta(seconds=ago)
        self.kestra.executions[execution_id] = replace(run, started=moment)

    async def end(self, job: str = "one", *, ago: float = 0) -> str:
        """An execution that ended so many seconds ago."""
        execution_id = await self.create(job)
        await self.end_at(execution_id, ago=ago)
        return execution_id

    async def end_at(self, execution_id: str, *, ago: float) -> None:
        """Let an execution have ended so many seconds ago."""
        await self.kestra.end(execution_id)
        run = self.kestra.executions[execution_id]
        moment = self.kestra.now() - timedelta(seconds=ago)
        self.kestra.executions[execution_id] = replace(run, ended=moment)


class FailsOnASecondPage(MemoryKestra):
    """A Kestra that does not answer the first time that it is asked for a second page."""

    failed = False

    async def ended_since(
        self, since: datetime, page: int = 1, **reads: Any
    ) -> tuple[list[Execution], bool]:
        if page == 2 and not self.failed:
            self.failed = True
            raise KestraUnavailable("away")
        return await super().ended_since(since, page, **reads)


class EndsDuringAQuestion(MemoryKestra):
    """A Kestra whose executions all end right after its first answer."""

    async def ended_since(
        self, since: datetime, page: int = 1, **reads: Any
    ) -> tuple[list[Execution], bool]:
        answer = await super().ended_since(since, page, **reads)
        for run in await self.unfinished():
            await self.end(run.id)
        return answer


class NeverAnswersDeepQuestions(MemoryKestra):
    """A Kestra that answers quick questions alone."""

    async def ended_since(
        self, since: datetime, page: int = 1, **reads: Any
    ) -> tuple[list[Execution], bool]:
        if reads["size"] == NARROW.deep.page:
            await asyncio.Event().wait()
        return await super().ended_since(since, page, **reads)


class NotesWhatIsRead(MemoryKestra):
    """A Kestra that keeps from which start on it was asked for ends."""

    def __init__(self) -> None:
        super().__init__()
        self.read_from: list[datetime] = []

    async def ended_since(
        self, since: datetime, page: int = 1, **reads: Any
    ) -> tuple[list[Execution], bool]:
        self.read_from.append(reads["started"])
        return await super().ended_since(since, page, **reads)


@asynccontextmanager
async def running(reporting: Reporting) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(reporting.run())
    yield task
    task.cancel()
    await asyncio.wait([task])


class TestEnds:
    async def test_are_told_once(self) -> None:
        rig = Rig()
        reporting = rig.reporting()
        execution = await rig.end()
        counts = [await reporting.tell_ended() for _ in range(2)]
        assert (rig.told.ends, counts) == ([execution], [1, 0])

    async def test_that_the_notifier_told_are_left_out(self) -> None:
        rig = Rig()
        run = rig.kestra.executions[await rig.end()]
        rig.known.note(run.id, run.state, run.ended)
        await rig.reporting().tell_ended()
        assert rig.told.ends == []

    async def test_after_a_restart_are_told_again(self) -> None:
        rig = Rig()
        reporting = rig.reporting()
        execution = await rig.end()
        await reporting.tell_ended()
        rig.kestra.restart(execution)
        await asyncio.sleep(0.002)  # until the clock of milliseconds has moved
        await rig.kestra.end(execution)
        await reporting.tell_ended()
        assert rig.told.ends == [execution, execution]

    async def test_of_more_than_a_page_are_told(self) -> None:
        rig = Rig()
        executions = [await rig.end(f"job-{n}") for n in range(NARROW.quick.page + 1)]
        await rig.reporting(NARROW).tell_ended()
        assert sorted(rig.told.ends) == sorted(executions)

    async def test_of_a_page_that_failed_are_told_by_the_next_question(self) -> None:
        rig = Rig(kestra=FailsOnASecondPage())
        earlier = await rig.end("earlier", ago=20)
        for number in range(NARROW.deep.page):
            await rig.end(f"job-{number}")
        reporting = rig.reporting(NARROW, back=30)
        with pytest.raises(KestraUnavailable):
            await reporting.tell_late()
        await reporting.tell_late()
        assert earlier in rig.told.ends

    async def test_before_a_new_reporters_time_are_told_as_far_as_it_looks_back(self) -> None:
        rig = Rig()
        await rig.end("long ago", ago=60)
        recent = await rig.end("recent", ago=20)
        await rig.reporting(back=30).tell_late()
        assert rig.told.ends == [recent]

    async def test_are_told_while_the_reporter_still_looks_back(self) -> None:
        rig = Rig(kestra=NeverAnswersDeepQuestions())
        execution = await rig.end()
        async with running(rig.reporting(NARROW)):
            await eventually(lambda: execution in rig.told.ends, "the end was told")

    async def test_that_kestra_shows_late_are_told_by_a_deep_question(self) -> None:
        rig = Rig()
        reporting = rig.reporting()
        await rig.end("first")
        await reporting.tell_ended()
        late = await rig.end("late", ago=10)
        await reporting.tell_ended()
        await reporting.tell_late()
        assert late in rig.told.ends

    async def test_of_what_runs_for_long_are_told_by_a_deep_question_if_kestra_shows_them_late(
        self,
    ) -> None:
        rig = Rig()
        reporting = rig.reporting(NARROW)
        execution = await rig.create("long")
        rig.start(execution, ago=2 * FIRST)
        await reporting.tell_late()
        await rig.end_at(execution, ago=10)
        for _ in range(2):
            await reporting.tell_ended()
        await reporting.tell_late()
        assert rig.told.ends == [execution]

    async def test_of_what_runs_for_long_are_told_at_once(self) -> None:
        rig = Rig()
        reporting = rig.reporting(NARROW)
        execution = await rig.create("long")
        rig.start(execution, ago=2 * FIRST)
        await reporting.tell_ended()
        await rig.kestra.end(execution)
        await reporting.tell_ended()
        assert rig.told.ends == [execution]

    async def test_during_the_first_question_are_told_by_the_next(self) -> None:
        rig = Rig(kestra=EndsDuringAQuestion())
        reporting = rig.reporting(NARROW)
        execution = await rig.create("long")
        rig.start(execution, ago=2 * FIRST)
        await reporting.tell_ended()
        await reporting.tell_ended()
        assert rig.told.ends == [execution]

    async def test_are_looked_for_only_among_what_can_have_ended_since(self) -> None:
        kestra = NotesWhatIsRead()
        reporting = Rig(kestra=kestra).reporting(NARROW)
        for _ in range(2):
            await reporting.tell_ended()
        first, second = kestra.read_from
        assert (second - first).total_seconds() == pytest.approx(FIRST - 1, abs=30)

    async def test_are_looked_for_as_before_after_a_question_that_failed(self) -> None:
        kestra = NotesWhatIsRead()
        reporting = Rig(kestra=kestra).reporting(NARROW)
        kestra.fail("ended_since", KestraUnavailable("away"), times=1)
        with pytest.raises(KestraUnavailable):
            await reporting.tell_ended()
        await reporting.tell_ended()
        first, second = kestra.read_from
        assert (second - first).total_seconds() == pytest.approx(0, abs=30)

    async def test_are_counted(self) -> None:
        rig = Rig()
        await rig.end()
        await rig.reporting().tell_ended()
        counted = rig.metrics.registry.get_sample_value
        assert (
            counted("bridge_ends_told_total"),
            counted("bridge_report_seconds_count"),
        ) == (1, 1)

    async def test_that_could_not_be_told_are_told_the_next_time(self) -> None:
        rig = Rig()
        reporting = rig.reporting()
        execution = await rig.end()
        rig.told.broken = True
        with pytest.raises(BrokerUnavailable):
            await reporting.tell_ended()
        rig.told.broken = False
        await reporting.tell_ended()
        assert rig.told.ends == [execution]


class TestTheList:
    async def test_has_what_has_not_ended(self) -> None:
        rig = Rig()
        await rig.end("one")
        runs = await rig.create("two")
        await rig.reporting().tell_unfinished()
        (body,) = rig.told.of(LIST_KEY)
        assert body["unfinished"] == [runs]

    async def test_ends_duplicates_that_it_shows(self) -> None:
        rig = Rig()
        _, second = await rig.create("one"), await rig.create("one")
        await rig.reporting().tell_unfinished()
        assert rig.kestra.kills == [second]

    async def test_comes_after_the_first_ends(self) -> None:
        rig = Rig()
        await rig.end()
        async with running(rig.reporting()):
            await eventually(lambda: rig.told.of(LIST_KEY), "a list")
        keys = [key for key, _ in rig.told.messages if key != SIGN_KEY]
        assert keys.index("SUCCESS.test.job") < keys.index(LIST_KEY)

    async def test_is_made_again_after_a_failure(self) -> None:
        rig = Rig()
        rig.kestra.fail("unfinished", KestraUnavailable("away"), times=3)
        async with running(rig.reporting()):
            await eventually(lambda: rig.told.of(LIST_KEY), "a list")


class TestTheReporter:
    async def test_gives_signs_of_life_and_says_when_kestra_answered(self) -> None:
        rig = Rig()
        rig.kestra.fail("ended_since", KestraUnavailable("away"), times=None)
        async with running(rig.reporting(back=60)):
            await eventually(lambda: len(rig.told.of(SIGN_KEY)) >= 2, "two signs")
        assert rig.told.of(SIGN_KEY)[0]["asked"] >= 60

    @pytest.mark.parametrize("error", [KestraUnavailable("away"), KestraDenied("who?")])
    async def test_goes_on_after_a_question_that_fails(self, error: Exception) -> None:
        rig = Rig()
        rig.kestra.fail("ended_since", error, times=3)  # type: ignore[arg-type]
        execution = await rig.end()
        async with running(rig.reporting()):
            await eventually(lambda: execution in rig.told.ends, "the end was told")

    async def test_gives_way_where_kestra_does_not_answer_it(self) -> None:
        rig = Rig()
        rig.kestra.fail("ended_since", KestraUnavailable("away"), times=None)
        policy = replace(QUICK, gives_way_after=0.01)
        with pytest.raises(KestraUnavailable):
            await asyncio.wait_for(rig.reporting(policy).run(), 10)

    async def test_ends_with_its_publisher(self) -> None:
        rig = Rig()
        async with running(rig.reporting()) as task:
            await eventually(lambda: rig.told.of(SIGN_KEY), "a sign")
            rig.told.broken = True
            with pytest.raises(BrokerUnavailable):
                await asyncio.wait_for(task, 10)
