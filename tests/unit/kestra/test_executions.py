"""Executions are created, found, looked at and killed, and doubt is never taken for an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from opentelemetry import trace

from bridge.errors import KestraAmbiguous, KestraRejected, KestraUnavailable
from bridge.job.decode import decode
from bridge.job.execution import State
from bridge.job.job import Job
from bridge.job.message import Message
from bridge.kestra import Kestra, RequestLimits
from tests.support.kestra_client import (
    CALLS,
    EXECUTION,
    FLOW,
    JOB,
    ROW,
    against,
    answering,
    finding,
    raised,
    words,
)
from tests.support.standin import EMPTY, HTML, TRUNCATED, Ends, Standin

OF_JOB, ATTEMPT = ROW["labels"]


class TestCreate:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (201, EMPTY),
            (204, EMPTY),
            (200, TRUNCATED),
            (200, b"{}"),
            (200, b"null"),
            (200, b'{"id": "e1"}'),
        ],
    )
    async def test_is_in_doubt_after_a_success_that_can_not_be_read(
        self, status: int, body: bytes
    ) -> None:
        async with answering(lambda _: httpx.Response(status, content=body)) as kestra:
            with pytest.raises(KestraAmbiguous):
                await kestra.create(JOB)

    async def test_names_the_execution_that_disappeared(self) -> None:
        body = words("Not Found: Execution disappeared after create: 4n5ruBCMlTeYTGni73rtlW")
        async with answering(lambda _: httpx.Response(404, content=body)) as kestra:
            error = await raised(CALLS["executions.create"], kestra)
        assert isinstance(error, KestraAmbiguous)
        assert error.execution_id == "4n5ruBCMlTeYTGni73rtlW"

    async def test_is_rejected_where_the_job_is_too_big_for_kestras_queue(self) -> None:
        body = words(
            "Internal server error: Message of 2097152 bytes has exceeded the configured limit"
        )
        async with answering(lambda _: httpx.Response(500, content=body)) as kestra:
            assert isinstance(await raised(CALLS["executions.create"], kestra), KestraRejected)

    async def test_gives_kestras_reason_on_one_line(self) -> None:
        body = words("Invalid entity:\n  tasks:\n must not be empty")
        async with answering(lambda _: httpx.Response(422, content=body)) as kestra:
            error = await raised(CALLS["executions.create"], kestra)
        assert str(error) == "HTTP 422: Invalid entity: tasks: must not be empty"

    async def test_hands_the_trace_on(self) -> None:
        seen: list[httpx.Headers] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers)
            return httpx.Response(200, json=ROW)

        context = trace.SpanContext(
            trace_id=int("1" * 32, 16),
            span_id=int("2" * 16, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(1),
            trace_state=trace.TraceState([("a", "1")]),
        )
        async with answering(note) as kestra:
            with trace.use_span(trace.NonRecordingSpan(context)):
                await kestra.create(JOB)
            await kestra.create(JOB)
        assert [(headers.get("traceparent"), headers.get("tracestate")) for headers in seen] == [
            (f"00-{'1' * 32}-{'2' * 16}-01", "a=1"),
            (None, None),
        ]

    async def test_sends_labels_in_the_url_and_inputs_as_a_form(self) -> None:
        async with Standin() as standin, against(standin) as kestra:
            standin.flow(
                FLOW.namespace, FLOW.id, inputs={"text": "STRING", "data": "JSON", "flag": "JSON"}
            )
            await kestra.create(
                Job(id="a b&c", flow=FLOW, inputs={"text": "ü\r\n--x", "data": [1], "flag": True})
            )
        (run,) = standin.created
        assert run.labels["bridgeJob"] == "a b&c"
        assert run.inputs == {"text": "ü\r\n--x", "data": [1], "flag": True}

    @pytest.mark.parametrize("number", ["1E5", "1.10", "-0", "9" * 40])
    async def test_sends_a_number_as_it_came(self, number: str) -> None:
        sent: list[bytes] = []

        def note(request: httpx.Request) -> httpx.Response:
            sent.append(request.read())
            return httpx.Response(500)

        message = Message(
            body=f'{{"inputs": {{"x": {number}, "y": [{number}]}}}}'.encode(), message_id="a"
        )
        async with answering(note) as kestra:
            with pytest.raises(KestraAmbiguous):
                await kestra.create(decode(message, default_flow=FLOW, max_priority=1))
        parts = [f"\r\n\r\n{text}\r\n".encode() for text in (number, f"[{number}]")]
        assert [part in sent[0] for part in parts] == [True, True]


class TestCreateAgainstAFailingServer:
    @pytest.fixture
    async def standin(self) -> AsyncIterator[Standin]:
        async with Standin() as standin:
            standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
            yield standin

    @pytest.mark.parametrize("worked", [False, True], ids=["before the work", "after the work"])
    @pytest.mark.parametrize(
        "fault", [{"status": 504}, {"reset": True}, {"hang": True}, {"status": 200, "body": HTML}]
    )
    async def test_is_in_doubt_and_the_look_up_tells(
        self, standin: Standin, fault: dict[str, Any], worked: bool
    ) -> None:
        standin.faults.add("create", worked=worked, **fault)
        async with against(standin, limits=RequestLimits(create_timeout=0.3)) as kestra:
            with pytest.raises(KestraAmbiguous):
                await kestra.create(JOB)
            assert len(await kestra.executions.find(JOB)) == int(worked)

    async def test_finds_the_execution_that_disappeared_by_its_id(self, standin: Standin) -> None:
        standin.faults.add("create", disappeared=True)
        async with against(standin) as kestra:
            with pytest.raises(KestraAmbiguous) as caught:
                await kestra.create(JOB)
            assert caught.value.execution_id is not None
            assert await kestra.get(caught.value.execution_id) is not None

    async def test_is_unavailable_while_the_server_is_down_and_works_once_it_is_up(
        self, standin: Standin
    ) -> None:
        await standin.down()
        async with against(standin) as kestra:
            with pytest.raises(KestraUnavailable):
                await kestra.create(JOB)
            await standin.up()
            assert (await kestra.create(JOB)).state == State.RUNNING


class TestFind:
    @pytest.mark.parametrize(
        "changed",
        [
            {"labels": [{"key": "bridgeJob", "value": "job-2"}, ATTEMPT]},
            {"labels": [OF_JOB, {"key": "bridgeAttempt", "value": "2"}]},
            {"labels": []},
            {"namespace": "bridge.other"},
            {"flowId": "other"},
            {"trigger": {"id": "child", "type": "io.kestra.plugin.core.flow.Subflow"}},
        ],
    )
    async def test_passes_over_what_the_server_should_not_have_found(
        self, changed: dict[str, Any]
    ) -> None:
        async with finding({**ROW, **changed}) as kestra:
            assert await kestra.executions.find(JOB) == []

    async def test_finds_an_execution_of_a_state_that_it_does_not_know(self) -> None:
        async with finding({**ROW, "state": {"current": "DREAMING"}}) as kestra:
            assert [found.state for found in await kestra.executions.find(JOB)] == [State.UNKNOWN]

    @pytest.mark.parametrize("changed", [{"labels": 5}, {"id": None}, {"state": None}])
    async def test_is_unavailable_where_a_row_can_not_be_read(
        self, changed: dict[str, Any]
    ) -> None:
        async with finding({**ROW, **changed}) as kestra:
            with pytest.raises(KestraUnavailable, match="a row can't be read"):
                await kestra.executions.find(JOB)

    async def test_leaves_out_what_started_before_that_moment(self) -> None:
        asked = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.params.get("filters[startDate][GREATER_THAN_OR_EQUAL_TO]"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note) as kestra:
            await kestra.executions.find(JOB, since=datetime(2026, 1, 2, tzinfo=UTC))
            await kestra.executions.find(JOB)
        assert asked == ["2026-01-02T00:00:00+00:00", None]

    async def test_reads_all_pages(self) -> None:
        limits = RequestLimits(page_size=2)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            standin.flow(FLOW.namespace, FLOW.id)
            made_here = {(await kestra.create(JOB)).id for _ in range(5)}
            assert {execution.id for execution in await kestra.executions.find(JOB)} == made_here
            assert standin.requests["search"] == 3

    async def test_ends_where_a_page_is_empty_whatever_the_total_says(self) -> None:
        answer = httpx.Response(200, json={"results": [], "total": 7})
        async with answering(lambda _: answer) as kestra:
            assert await kestra.executions.find(JOB) == []


class TestUnfinished:
    async def test_lists_what_has_not_ended(self) -> None:
        async with Standin() as standin, against(standin) as kestra:
            standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
            ended, going = await kestra.create(JOB), await kestra.create(Job(id="job-2", flow=FLOW))
            await standin.end(ended.id)
            assert [execution.id for execution in await kestra.unfinished()] == [going.id]

    async def test_leaves_out_what_ended_while_the_server_looked(self) -> None:
        row = {**ROW, "state": {"current": "SUCCESS"}}
        async with finding(row) as kestra:
            assert await kestra.unfinished() == []


async def end_jobs(standin: Standin, kestra: Kestra, count: int) -> None:
    """Have so many jobs' executions end, one after the other."""
    standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
    for number in range(count):
        created = await kestra.create(Job(id=f"job-{number}", flow=FLOW))
        await standin.end(created.id)


class TestEndedSince:
    async def test_says_whether_a_page_is_the_last(self) -> None:
        limits = RequestLimits(page_size=2)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            await end_jobs(standin, kestra, 3)
            since = kestra.now() - timedelta(minutes=1)
            pages = [await kestra.ended_since(since, page) for page in (1, 2)]
        assert [(len(rows), last) for rows, last in pages] == [(2, False), (1, True)]

    async def test_a_page_with_an_earlier_end_is_the_last(self) -> None:
        limits = RequestLimits(page_size=1)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            await end_jobs(standin, kestra, 2)
            later = kestra.now() + timedelta(hours=1)
            assert await kestra.ended_since(later) == ([], True)

    @pytest.mark.parametrize(
        "row",
        [
            {**ROW, "state": {"current": "PAUSED", "endDate": "2026-11-27T12:00:00Z"}},
            {**ROW, "state": {"current": "SUCCESS"}, "labels": []},
        ],
        ids=["paused", "somebody else's"],
    )
    async def test_leaves_out_what_the_filters_should_have(self, row: dict[str, Any]) -> None:
        async with finding(row) as kestra:
            assert await kestra.ended_since(datetime(2026, 11, 27, tzinfo=UTC)) == ([], True)


class TestOutputs:
    @pytest.mark.parametrize(
        ("body", "outputs"), [(b"null", {}), (b"{}", {}), (b'{"a": null}', {"a": None})]
    )
    async def test_are_an_object_even_where_kestra_has_none(
        self, body: bytes, outputs: dict[str, Any]
    ) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert await kestra.outputs(EXECUTION) == outputs
