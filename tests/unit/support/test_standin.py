"""The stand-in fails as it is told to, and keeps count of what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests.support.standin import EMPTY, HTML, KESTRA, TRUNCATED, Ends, Run, Standin

FLOW = ("bridge.jobs", "example")
CONFIGS = "../configs"
LABELS = {"labels": ["bridge:amqp", "bridgeJob:job-1", "bridgeAttempt:1"]}


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as standin:
        standin.flow(*FLOW, Ends(after=None))
        yield standin


@pytest.fixture
async def api(standin: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with client(standin) as client_:
        yield client_


def client(standin: Standin) -> httpx.AsyncClient:
    auth = httpx.BasicAuth(standin.username, standin.password)
    return httpx.AsyncClient(base_url=f"{standin.url}/api/v1/main", auth=auth, timeout=10)


async def create(api: httpx.AsyncClient) -> httpx.Response:
    return await api.post(f"/executions/{FLOW[0]}/{FLOW[1]}", params=LABELS)


async def created(api: httpx.AsyncClient) -> str:
    return str((await create(api)).json()["id"])


class Told:
    """What replies told, and a wait for so many of them."""

    def __init__(self, standin: Standin) -> None:
        self.states: list[tuple[str, str]] = []
        self._more = asyncio.Event()
        standin.replies.on_end = self.take

    async def take(self, reply: dict[str, Any]) -> None:
        self.states.append((reply["executionId"], reply["state"]))
        self._more.set()

    async def wait(self, count: int) -> list[tuple[str, str]]:
        async with asyncio.timeout(10):
            while len(self.states) < count:
                self._more.clear()
                await self._more.wait()
        return self.states


@pytest.fixture
def told(standin: Standin) -> Told:
    return Told(standin)


class TestExecutions:
    async def test_end_on_command(self, standin: Standin, api: httpx.AsyncClient) -> None:
        execution_id = await created(api)
        await standin.end(execution_id, "WARNING")
        assert (await api.get(f"/executions/{execution_id}")).json()["state"][
            "current"
        ] == "WARNING"

    @pytest.mark.parametrize("after", [0, 0.05])
    async def test_end_by_themselves(
        self, standin: Standin, api: httpx.AsyncClient, after: float
    ) -> None:
        standin.flow(*FLOW, Ends("FAILED", after=after))
        execution_id = await created(api)
        await standin.until(lambda: standin.executions[execution_id].state == "FAILED", "the end")

    async def test_end_by_what_a_function_makes_of_them(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        def behave(run: Run) -> Ends:
            return Ends("FAILED" if run.labels["bridgeAttempt"] == "1" else "SUCCESS")

        standin.flow(*FLOW, behave)
        execution_id = await created(api)
        await standin.until(lambda: standin.executions[execution_id].state == "FAILED", "the end")

    async def test_that_are_killed_can_stick(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        standin.flow(*FLOW, Ends(after=None, kill_sticks=True))
        execution_id = await created(api)
        await api.delete(f"/executions/{execution_id}/actions/kill")
        assert (standin.executions[execution_id].state, standin.kills) == (
            "KILLING",
            [execution_id],
        )

    async def test_are_retried_as_2_0_does_it(
        self, standin: Standin, api: httpx.AsyncClient, told: Told
    ) -> None:
        standin.flow(*FLOW, Ends("SUCCESS", retries=1))
        first = await created(api)
        states = await told.wait(3)
        _, second = standin.executions_of("job-1")
        assert states == [(first, "FAILED"), (first, "RETRIED"), (second.id, "SUCCESS")]
        assert second.original_id == first
        assert second.labels["bridgeJob"] == "job-1"
        assert standin.per_attempt() == {("job-1", "1"): 1}

    async def test_are_retried_as_1x_does_it(self) -> None:
        async with Standin(version="1.3.25") as standin, client(standin) as api:
            told = Told(standin)
            standin.flow(*FLOW, Ends("SUCCESS", retries=1))
            await create(api)
            assert [state for _, state in await told.wait(2)] == ["RETRIED", "SUCCESS"]


class TestReplies:
    async def test_tell_each_end(
        self, standin: Standin, api: httpx.AsyncClient, told: Told
    ) -> None:
        execution_id = await created(api)
        await standin.end(execution_id)
        assert told.states == [(execution_id, "SUCCESS")]

    async def test_can_be_lost(self, standin: Standin, api: httpx.AsyncClient, told: Told) -> None:
        standin.replies.drop = 1.0
        await standin.end(await created(api))
        assert told.states == []

    async def test_can_be_doubled(
        self, standin: Standin, api: httpx.AsyncClient, told: Told
    ) -> None:
        standin.replies.copies = 2
        execution_id = await created(api)
        await standin.end(execution_id)
        assert told.states == [(execution_id, "SUCCESS")] * 2

    async def test_can_come_before_the_create_is_answered(
        self, standin: Standin, api: httpx.AsyncClient, told: Told
    ) -> None:
        standin.flow(*FLOW)
        standin.replies.early = True
        answer = await create(api)
        assert told.states == [(answer.json()["id"], "SUCCESS")]
        assert answer.json()["state"]["current"] == "RUNNING"

    async def test_can_be_held_back_and_sent_in_another_order(
        self, standin: Standin, api: httpx.AsyncClient, told: Told
    ) -> None:
        standin.replies.shuffle = 2
        ids = [await created(api) for _ in range(3)]
        for execution_id in ids[:2]:
            await standin.end(execution_id)
        assert told.states == []
        await standin.end(ids[2])
        assert sorted(told.states) == sorted((execution_id, "SUCCESS") for execution_id in ids)


class TestFaults:
    @pytest.mark.parametrize(("worked", "executions"), [(False, 0), (True, 1)])
    async def test_come_before_or_after_the_work(
        self, standin: Standin, api: httpx.AsyncClient, worked: bool, executions: int
    ) -> None:
        standin.faults.add("create", status=504, worked=worked)
        assert (await create(api)).status_code == 504
        assert len(standin.executions) == executions

    async def test_hit_so_many_requests_of_that_operation(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        fault = standin.faults.add("create", times=2, status=503)
        assert (await api.get(CONFIGS)).status_code == 200
        assert [(await create(api)).status_code for _ in range(3)] == [503, 503, 200]
        assert fault.hits == 2

    async def test_hit_until_they_are_cleared(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        standin.faults.add(times=None, status=500)
        assert [(await api.get(CONFIGS)).status_code for _ in range(3)] == [500] * 3
        standin.faults.clear()
        assert (await api.get(CONFIGS)).status_code == 200

    async def test_hit_the_requests_that_are_meant(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        standin.faults.add(
            "get", times=None, status=500, when=lambda call: call.path.endswith("/b")
        )
        assert [(await api.get(f"/executions/{name}")).status_code for name in "ab"] == [404, 500]

    @pytest.mark.parametrize("body", [KESTRA, HTML, TRUNCATED, EMPTY, {"wrong": "shape"}, None])
    async def test_answer_with_any_body(
        self, standin: Standin, api: httpx.AsyncClient, body: Any
    ) -> None:
        standin.faults.add("configs", status=500, body=body)
        answer = await api.get(CONFIGS)
        expected = {
            "str": HTML.encode(),
            "bytes": body,
            "NoneType": b"",
            "dict": b'{"wrong":"shape"}',
        }
        assert answer.content == expected.get(type(body).__name__, answer.content)
        assert body is not KESTRA or "message" in answer.json()

    async def test_redirect(self, standin: Standin, api: httpx.AsyncClient) -> None:
        standin.faults.add("configs", status=302)
        assert (await api.get(CONFIGS)).headers["Location"] == "/ui/login"

    @pytest.mark.parametrize("worked", [False, True])
    async def test_cut_the_connection(
        self, standin: Standin, api: httpx.AsyncClient, worked: bool
    ) -> None:
        standin.faults.add("create", reset=True, worked=worked)
        with pytest.raises(httpx.NetworkError):
            await create(api)
        assert len(standin.created) == int(worked)

    async def test_never_answer(self, standin: Standin, api: httpx.AsyncClient) -> None:
        standin.faults.add("create", hang=True, worked=True)
        waiting = asyncio.create_task(create(api))
        await standin.until(lambda: len(standin.created) == 1, "the execution")
        assert not waiting.done()
        waiting.cancel()

    async def test_answer_late_and_work_all_the_same(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        """A create whose client has given up long ago still takes effect."""
        standin.faults.add("create", delay=0.2)
        with pytest.raises(httpx.ReadTimeout):
            await api.post(f"/executions/{FLOW[0]}/{FLOW[1]}", params=LABELS, timeout=0.05)
        assert standin.created == []
        await standin.until(lambda: len(standin.created) == 1, "the execution")

    async def test_let_an_execution_disappear(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        standin.faults.add("create", disappeared=True)
        answer = await create(api)
        (run,) = standin.created
        assert answer.status_code == 404
        assert (
            answer.json()["message"] == f"Not Found: Execution disappeared after create: {run.id}"
        )


class TestServer:
    async def test_goes_down_and_comes_up_on_the_same_port(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        url = standin.url
        await standin.down()
        with pytest.raises(httpx.ConnectError):
            await api.get(CONFIGS)
        await standin.up()
        assert (standin.url, (await api.get(CONFIGS)).status_code) == (url, 200)

    async def test_counts_requests_by_operation(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        await create(api)
        await api.get("/executions/search")
        await api.get("/executions/search")
        assert standin.requests == {"create": 1, "search": 2}

    async def test_counts_executions_by_job_and_attempt(
        self, standin: Standin, api: httpx.AsyncClient
    ) -> None:
        await create(api)
        await create(api)
        assert standin.per_attempt() == {("job-1", "1"): 2}

    async def test_says_what_did_not_come_true(self, standin: Standin) -> None:
        with pytest.raises(AssertionError, match=r"not within 0.01 s: the moon"):
            await standin.until(lambda: False, "the moon", timeout=0.01)

    async def test_raises_what_a_callback_raised(self) -> None:
        async def fail(_: dict[str, Any]) -> None:
            raise ZeroDivisionError

        standin = Standin()
        standin.flow(*FLOW)
        standin.replies.on_end = fail
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(standin)
            async with client(standin) as api:
                await create(api)
            await standin.until(lambda: standin.created[0].state == "SUCCESS", "the end")
            with pytest.raises(ZeroDivisionError):
                await stack.pop_all().aclose()

    async def test_ignores_flat_parameters_in_2_0_and_takes_them_in_1x(self) -> None:
        totals = []
        for version in ("2.0.0", "1.3.25"):
            async with Standin(version=version) as standin, client(standin) as api:
                standin.flow(*FLOW)
                await create(api)
                answer = await api.get("/executions/search", params={"labels": "bridgeJob:other"})
                totals.append(answer.json()["total"])
        assert totals == [1, 0]
