"""What the consume path relies on of Kestra: tests that the client and the one in memory both
pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import pytest

from bridge.consume.ports import KestraPort
from bridge.errors import KestraRejected
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from tests.support.standin import Ends


class Server(Protocol):
    """A test's hand in a Kestra, whose flows are `test/job` and what a test adds."""

    kills: list[str]

    @property
    def flow(self) -> Callable[..., Any]:
        """Have a flow, or change how its executions end."""

    async def end(self, execution_id: str, state: str = "SUCCESS") -> None:
        """End an execution."""

    def forget(self, execution_id: str) -> None:
        """Lose an execution."""


class KestraUnderTest(Protocol):
    """A Kestra as the bridge sees it, and a test's hand in it."""

    @property
    def kestra(self) -> KestraPort: ...

    @property
    def server(self) -> Server: ...


def job(name: str = "one", attempt: int = 1, queue: str = "q") -> Job:
    return Job(id=name, flow=FlowName("test", "job"), attempt=attempt, queue=queue)


def ids(executions: list[Execution]) -> list[str]:
    return [execution.id for execution in executions]


class KestraSuite:
    """Subclasses give the fixture `under`, whose executions run until they are ended."""

    async def test_what_is_created_runs_with_the_labels_of_its_attempt(
        self, under: KestraUnderTest
    ) -> None:
        created = await under.kestra.create(job())
        assert created.attempt_key == job().key

    async def test_what_is_created_can_be_asked_for(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        found = await under.kestra.get(created.id)
        assert found is not None
        assert (found.state, found.flow) == (State.RUNNING, FlowName("test", "job"))

    async def test_an_unknown_flow_is_rejected(self, under: KestraUnderTest) -> None:
        with pytest.raises(KestraRejected):
            await under.kestra.create(Job(id="one", flow=FlowName("test", "nowhere")))

    async def test_an_unknown_execution_is_none(self, under: KestraUnderTest) -> None:
        assert await under.kestra.get("nowhere") is None

    async def test_a_forgotten_execution_is_none(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        under.server.forget(created.id)
        assert await under.kestra.get(created.id) is None

    @pytest.mark.parametrize("state", ["SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED"])
    async def test_an_end_is_seen_with_its_time(self, under: KestraUnderTest, state: str) -> None:
        created = await under.kestra.create(job())
        await under.server.end(created.id, state)
        found = await under.kestra.get(created.id)
        assert found is not None
        assert (found.state.value, found.ended is not None) == (state, True)

    async def test_only_the_attempts_own_executions_are_found(self, under: KestraUnderTest) -> None:
        own = await under.kestra.create(job())
        for other in (job("two"), job(attempt=2), job(queue="other")):
            await under.kestra.create(other)
        assert ids(await under.kestra.find(job())) == [own.id]

    async def test_every_execution_of_the_attempt_is_found(self, under: KestraUnderTest) -> None:
        created = [await under.kestra.create(job()) for _ in range(2)]
        assert sorted(ids(await under.kestra.find(job()))) == sorted(ids(created))

    async def test_what_started_before_the_window_is_not_found(
        self, under: KestraUnderTest
    ) -> None:
        await under.kestra.create(job())
        later = under.kestra.now() + timedelta(hours=1)
        assert await under.kestra.find(job(), since=later) == []

    async def test_all_attempts_of_a_job_are_found(self, under: KestraUnderTest) -> None:
        created = [await under.kestra.create(job(attempt=number)) for number in (1, 2)]
        await under.kestra.create(job("two"))
        assert sorted(ids(await under.kestra.find_attempts(job()))) == sorted(ids(created))

    async def test_the_unfinished_are_those_that_have_not_ended(
        self, under: KestraUnderTest
    ) -> None:
        runs, ended = await under.kestra.create(job()), await under.kestra.create(job("two"))
        await under.server.end(ended.id)
        assert ids(await under.kestra.unfinished()) == [runs.id]

    async def test_what_ended_since_is_listed_with_the_latest_end_first(
        self, under: KestraUnderTest
    ) -> None:
        since = under.kestra.now() - timedelta(minutes=1)
        one, two, _runs = [await under.kestra.create(job(name)) for name in ("a", "b", "c")]
        for ended in (two, one):
            await under.server.end(ended.id)
        rows, last = await under.kestra.ended_since(since)
        assert (ids(rows), last) == ([one.id, two.id], True)

    async def test_what_ended_before_is_not_listed_as_ended(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        await under.server.end(created.id)
        later = under.kestra.now() + timedelta(hours=1)
        assert await under.kestra.ended_since(later) == ([], True)

    async def test_what_started_before_is_not_listed_as_ended(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        await under.server.end(created.id)
        since, later = (under.kestra.now() + timedelta(hours=hours) for hours in (-1, 1))
        assert await under.kestra.ended_since(since, started=later) == ([], True)

    async def test_the_oldest_unfinished_is_the_one_that_started_first(
        self, under: KestraUnderTest
    ) -> None:
        ended, oldest, _ = [await under.kestra.create(job(name)) for name in ("a", "b", "c")]
        await under.server.end(ended.id)
        found = await under.kestra.oldest_unfinished()
        assert found is not None
        assert found.id == oldest.id

    async def test_where_all_has_ended_there_is_no_oldest(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        await under.server.end(created.id)
        assert await under.kestra.oldest_unfinished() is None

    async def test_a_queue_has_run_once_a_job_of_it_has_an_execution(
        self, under: KestraUnderTest
    ) -> None:
        since = under.kestra.now() - timedelta(minutes=1)
        await under.kestra.create(job(queue="other"))
        before = await under.kestra.has_run("own", since=since)
        await under.kestra.create(job(queue="own"))
        assert (before, await under.kestra.has_run("own", since=since)) == (False, True)

    async def test_a_kill_ends_an_execution(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        await under.kestra.kill(created.id)
        found = await under.kestra.get(created.id)
        assert found is not None
        assert (found.state, under.server.kills) == (State.KILLED, [created.id])

    async def test_a_kill_that_sticks_ends_nothing(self, under: KestraUnderTest) -> None:
        under.server.flow("test", "job", Ends(after=None, kill_sticks=True))
        created = await under.kestra.create(job())
        await under.kestra.kill(created.id)
        found = await under.kestra.get(created.id)
        assert found is not None
        assert found.state is State.KILLING

    async def test_a_kill_of_what_has_ended_changes_nothing(self, under: KestraUnderTest) -> None:
        created = await under.kestra.create(job())
        await under.server.end(created.id)
        await under.kestra.kill(created.id)
        found = await under.kestra.get(created.id)
        assert found is not None
        assert found.state is State.SUCCESS

    async def test_a_kill_of_what_is_unknown_is_no_error(self, under: KestraUnderTest) -> None:
        await under.kestra.kill("nowhere")

    async def test_outputs_are_told(self, under: KestraUnderTest) -> None:
        under.server.flow("test", "job", Ends(after=None, outputs={"answer": 42}))
        created = await under.kestra.create(job())
        await under.server.end(created.id)
        found = await under.kestra.get(created.id)
        assert found is not None
        assert await under.kestra.outputs(found) == {"answer": 42}

    async def test_a_failure_is_explained_by_its_task_and_error(
        self, under: KestraUnderTest
    ) -> None:
        under.server.flow("test", "job", Ends(after=None, error="disk full"))
        created = await under.kestra.create(job())
        await under.server.end(created.id, "FAILED")
        found = await under.kestra.get(created.id)
        assert found is not None
        assert await under.kestra.explain(found) == "task work ended FAILED: disk full"

    async def test_an_execution_that_kestra_does_not_start_is_created(
        self, under: KestraUnderTest
    ) -> None:
        under.server.flow("test", "job", Ends(after=None, starts=False))
        created = await under.kestra.create(job())
        found = await under.kestra.get(created.id)
        assert found is not None
        assert found.state is State.CREATED

    async def test_a_probe_gives_the_version(self, under: KestraUnderTest) -> None:
        assert await under.kestra.probe() == "2.0.0"
