"""What leaves the client of Kestra's API is an answer or one of our own errors, and each error
means what it says."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from pydantic import SecretStr

from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraRejected,
    KestraUnavailable,
)
from bridge.job.decode import decode
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.message import Message
from bridge.kestra import (
    DEFAULT_LIMITS,
    FailureReport,
    Kestra,
    RequestLimits,
    parse_execution,
)
from bridge.kestra.logs import LogLine
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics
from tests.support.certificates import Authority
from tests.support.standin import EMPTY, HTML, TRUNCATED, Ends, Standin

FLOW = FlowName("bridge.jobs", "example")
JOB = Job(id="job-1", flow=FLOW, inputs={"text": "a", "data": {"n": 1}})
EXECUTION = Execution(id="e1", flow=FLOW, state=State.FAILED)
PASSWORD = "Very-secret-1"
TOKEN = "very-secret-token"

CALLS: dict[str, Callable[[Kestra], Awaitable[Any]]] = {
    "probe": lambda kestra: kestra.probe(),
    "create": lambda kestra: kestra.create(JOB),
    "find": lambda kestra: kestra.find(JOB),
    "find_attempts": lambda kestra: kestra.find_attempts(JOB),
    "unfinished": lambda kestra: kestra.unfinished(),
    "get": lambda kestra: kestra.get("e1"),
    "kill": lambda kestra: kestra.kill("e1"),
    "outputs": lambda kestra: kestra.outputs(EXECUTION),
    "explain": lambda kestra: kestra.explain(EXECUTION),
    "flow": lambda kestra: kestra.flows.get(FLOW),
    "delete_flow": lambda kestra: kestra.flows.delete(FLOW),
    "delete_execution": lambda kestra: kestra.executions.delete("e1"),
    "correlated": lambda kestra: kestra.executions.correlated("c1"),
    "failure_report": lambda kestra: kestra.logs.failure_report("e1"),
    "reworked": lambda kestra: kestra.executions.reworked(),
    "started_since": lambda kestra: kestra.started_since(datetime.now(UTC)),
    "validate_flow": lambda kestra: kestra.flows.validate("id: x"),
    "save_flow": lambda kestra: kestra.flows.save(FLOW, "id: x", exists=False),
}

EXECUTION_KEYS = [
    "id",
    "namespace",
    "flowId",
    "state",
    "current",
    "startDate",
    "labels",
    "key",
    "value",
    "originalId",
]
OTHER_KEYS = [
    "results",
    "total",
    "outputs",
    "taskRunList",
    "taskId",
    "message",
    "source",
    "version",
    "constraints",
]
KEYS = st.sampled_from([*EXECUTION_KEYS, *OTHER_KEYS])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["", "x", "FAILED"])
)

Handler = Callable[[httpx.Request], httpx.Response]


def settings(url: str = "http://kestra.example:8080", **more: Any) -> KestraSettings:
    whole = {
        "kestra_url": url,
        "kestra_username": "admin@example.org",
        "kestra_password": SecretStr(PASSWORD),
        **more,
    }
    return KestraSettings(**whole)


def against(standin: Standin, **more: Any) -> Kestra:
    whole = settings(
        standin.url, kestra_username=standin.username, kestra_password=SecretStr(standin.password)
    )
    return Kestra(whole, **more)


def answering(
    handler: Handler, *, version: str = "2.0.0", metrics: Metrics | None = None, **more: Any
) -> Kestra:
    """A client whose server is a function; the version is answered for it."""

    def handle(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(200, json={"version": version})
            if request.url.path.endswith("/configs")
            else handler(request)
        )

    return Kestra(settings(**more), metrics, transport=httpx.MockTransport(handle))


def words(text: str) -> bytes:
    """An error's body in Kestra's words."""
    return json.dumps(
        {"message": text, "_links": {"self": [{"href": "/", "templated": False}]}}
    ).encode()


def httpx_errors() -> Iterator[type[Exception]]:
    for name in dir(httpx):
        kind = getattr(httpx, name)
        if inspect.isclass(kind) and issubclass(kind, Exception):
            yield kind


def made(kind: type[Exception]) -> Exception:
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://kestra.example")
        return httpx.HTTPStatusError(
            "it broke", request=request, response=httpx.Response(500, request=request)
        )
    return kind() if len(inspect.signature(kind.__init__).parameters) == 1 else kind("it\nbroke")


async def raised(call: Callable[[Kestra], Awaitable[Any]], kestra: Kestra) -> Exception | None:
    try:
        await call(kestra)
    except Exception as error:  # noqa: BLE001 (whatever it is, the test looks at it)
        return error
    return None


class TestEveryMethod:
    def test_is_among_those_that_are_tested_here(self) -> None:
        public = {
            name
            for name, _ in inspect.getmembers(Kestra, inspect.iscoroutinefunction)
            if not name.startswith("_")
        }
        assert public <= CALLS.keys()

    @pytest.mark.parametrize("operation", CALLS)
    async def test_turns_every_httpx_error_into_ours(self, operation: str) -> None:
        foreign = {}
        for kind in httpx_errors():

            def fail(_: httpx.Request, kind: type[Exception] = kind) -> httpx.Response:
                raise made(kind)

            async with answering(fail) as kestra:
                error = await raised(CALLS[operation], kestra)
            if not isinstance(error, KestraError) or "\n" in str(error):
                foreign[kind.__name__] = error
        assert foreign == {}

    @pytest.mark.parametrize("operation", CALLS)
    async def test_keeps_the_httpx_error_as_the_cause(self, operation: str) -> None:
        def fail(_: httpx.Request) -> httpx.Response:
            raise httpx.ReadError("cut")

        async with answering(fail) as kestra:
            error = await raised(CALLS[operation], kestra)
        assert error is not None
        assert isinstance(error.__cause__, httpx.ReadError)

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("operation", CALLS)
    async def test_is_denied_by_401_and_403(self, operation: str, status: int) -> None:
        async with answering(lambda _: httpx.Response(status)) as kestra:
            assert isinstance(await raised(CALLS[operation], kestra), KestraDenied)

    @pytest.mark.parametrize("operation", CALLS)
    async def test_is_denied_by_a_wrong_tenant(self, operation: str) -> None:
        answer = httpx.Response(400, content=words("Bad Request: Tenant must be 'main'"))
        async with answering(lambda _: answer) as kestra:
            assert isinstance(await raised(CALLS[operation], kestra), KestraDenied)

    @pytest.mark.parametrize("operation", [name for name in CALLS if name != "create"])
    @pytest.mark.parametrize("status", [302, 429, 500, 502, 503, 504])
    async def test_except_create_is_unavailable_where_the_server_is_in_trouble(
        self, operation: str, status: int
    ) -> None:
        async with answering(lambda _: httpx.Response(status, text=HTML)) as kestra:
            assert isinstance(await raised(CALLS[operation], kestra), KestraUnavailable)

    @pytest.mark.parametrize(
        "operation", ["get", "kill", "flow", "delete_flow", "delete_execution", "create"]
    )
    async def test_takes_no_404_for_kestras_word_that_is_not_in_its_words(
        self, operation: str
    ) -> None:
        async with answering(lambda _: httpx.Response(404, text=HTML)) as kestra:
            assert isinstance(await raised(CALLS[operation], kestra), KestraUnavailable)

    @pytest.mark.parametrize("operation", CALLS)
    @pytest.mark.parametrize(
        "body",
        [
            EMPTY,
            TRUNCATED,
            HTML.encode(),
            b"null",
            b"12",
            b'"text"',
            b"[]",
            b"[1]",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"results": [], "total": "many"}',
            b'{"results": [1], "total": 1}',
            b'{"results": 1, "total": 1}',
        ],
        ids=lambda body: body[:32].decode("ascii", "replace"),
    )
    async def test_gives_a_value_or_our_error_for_an_answer_of_wrong_shape(
        self, operation: str, body: bytes
    ) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert isinstance(await raised(CALLS[operation], kestra), KestraError | None)

    @given(
        st.recursive(
            LEAVES,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
        )
    )
    async def test_gives_a_value_or_our_error_whatever_json_the_answer_is(self, body: Any) -> None:
        content = json.dumps(body).encode()
        async with answering(lambda _: httpx.Response(200, content=content)) as kestra:
            errors = [await raised(call, kestra) for call in CALLS.values()]
        assert [error for error in errors if not isinstance(error, KestraError | None)] == []

    @pytest.mark.parametrize("operation", CALLS)
    @pytest.mark.parametrize(
        "secret", [{}, {"kestra_username": None, "kestra_password": None, "kestra_token": TOKEN}]
    )
    async def test_shows_no_secret_in_its_errors(
        self, operation: str, secret: dict[str, Any]
    ) -> None:
        answers: list[Handler] = [
            lambda _: httpx.Response(401),
            lambda _: httpx.Response(500, content=words("no")),
            lambda _: httpx.Response(200, text=HTML),
        ]
        texts = []
        for handler in answers:
            async with answering(handler, **secret) as kestra:
                texts.append(repr(await raised(CALLS[operation], kestra)))
        assert not any(
            word in text for text in texts for word in (PASSWORD, TOKEN, "Basic ", "Bearer ")
        )


class TestCreate:
    NEVER_SENT = frozenset(
        {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL"}
    )

    async def test_is_in_doubt_after_every_httpx_error_but_those_of_a_request_never_sent(
        self,
    ) -> None:
        unavailable: set[str] = set()
        ambiguous: set[str] = set()
        for kind in httpx_errors():

            def fail(_: httpx.Request, kind: type[Exception] = kind) -> httpx.Response:
                raise made(kind)

            async with answering(fail) as kestra:
                error = await raised(CALLS["create"], kestra)
            (ambiguous if isinstance(error, KestraAmbiguous) else unavailable).add(kind.__name__)
        assert unavailable == self.NEVER_SENT
        assert "ReadTimeout" in ambiguous

    @pytest.mark.parametrize("status", [201, 202, 204])
    async def test_is_in_doubt_after_a_success_that_kestra_never_gives(self, status: int) -> None:
        async with answering(lambda _: httpx.Response(status)) as kestra:
            assert isinstance(await raised(CALLS["create"], kestra), KestraAmbiguous)

    @pytest.mark.parametrize(
        "body", [EMPTY, TRUNCATED, HTML.encode(), b"{}", b"null", b'{"id": "e1"}']
    )
    async def test_is_in_doubt_after_a_success_that_can_not_be_read(self, body: bytes) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert isinstance(await raised(CALLS["create"], kestra), KestraAmbiguous)

    async def test_names_the_execution_that_disappeared(self) -> None:
        body = words("Not Found: Execution disappeared after create: 4n5ruBCMlTeYTGni73rtlW")
        async with answering(lambda _: httpx.Response(404, content=body)) as kestra:
            error = await raised(CALLS["create"], kestra)
        assert isinstance(error, KestraAmbiguous)
        assert error.execution_id == "4n5ruBCMlTeYTGni73rtlW"

    async def test_is_rejected_where_the_job_is_too_big_for_kestras_queue(self) -> None:
        body = words(
            "Internal server error: Message of 2097152 bytes has exceeded the configured limit"
        )
        async with answering(lambda _: httpx.Response(500, content=body)) as kestra:
            assert isinstance(await raised(CALLS["create"], kestra), KestraRejected)

    async def test_gives_kestras_reason_on_one_line(self) -> None:
        body = words("Invalid entity:\n  tasks:\n must not be empty")
        async with answering(lambda _: httpx.Response(422, content=body)) as kestra:
            error = await raised(CALLS["create"], kestra)
        assert str(error) == "HTTP 422: Invalid entity: tasks: must not be empty"

    async def test_hands_the_trace_on(self) -> None:
        seen: list[httpx.Headers] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers)
            return httpx.Response(200, json=TestFind.ROW)

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
        assert (
            f"\r\n\r\n{number}\r\n".encode() in sent[0],
            f"\r\n\r\n[{number}]\r\n".encode() in sent[0],
        ) == (
            True,
            True,
        )


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
            assert len(await kestra.find(JOB)) == int(worked)

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

    async def test_takes_no_more_than_its_own_time_while_other_requests_have_longer(
        self, standin: Standin
    ) -> None:
        standin.faults.add("search", delay=0.5)
        async with against(standin, limits=RequestLimits(create_timeout=0.1)) as kestra:
            assert await kestra.find(JOB) == []


class TestFind:
    ROW: ClassVar[dict[str, Any]] = {
        "id": "e1",
        "namespace": FLOW.namespace,
        "flowId": FLOW.id,
        "state": {"current": "RUNNING", "startDate": "2026-01-02T03:04:05.678901234Z"},
        "labels": [{"key": "bridgeJob", "value": "job-1"}, {"key": "bridgeAttempt", "value": "1"}],
        "originalId": "e0",
    }

    async def found(self, row: dict[str, Any]) -> list[Execution]:
        async with answering(
            lambda _: httpx.Response(200, json={"results": [row], "total": 1})
        ) as kestra:
            return await kestra.find(JOB)

    async def test_reads_a_row(self) -> None:
        (execution,) = await self.found(self.ROW)
        assert execution == Execution(
            id="e1",
            flow=FLOW,
            state=State.RUNNING,
            labels={"bridgeJob": "job-1", "bridgeAttempt": "1"},
            started=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
            original_id="e0",
        )

    @pytest.mark.parametrize(
        "changed",
        [
            {
                "labels": [
                    {"key": "bridgeJob", "value": "job-2"},
                    {"key": "bridgeAttempt", "value": "1"},
                ]
            },
            {
                "labels": [
                    {"key": "bridgeJob", "value": "job-1"},
                    {"key": "bridgeAttempt", "value": "2"},
                ]
            },
            {"labels": []},
            {"namespace": "bridge.other"},
            {"flowId": "other"},
            {"trigger": {"id": "child", "type": "io.kestra.plugin.core.flow.Subflow"}},
        ],
    )
    async def test_passes_over_what_the_server_should_not_have_found(
        self, changed: dict[str, Any]
    ) -> None:
        assert await self.found({**self.ROW, **changed}) == []

    async def test_takes_labels_as_a_map_too(self) -> None:
        assert await self.found(
            {**self.ROW, "labels": {"bridgeJob": "job-1", "bridgeAttempt": "1"}}
        )

    async def test_takes_a_state_that_it_does_not_know(self) -> None:
        (execution,) = await self.found({**self.ROW, "state": {"current": "DREAMING"}})
        assert execution.state is State.UNKNOWN

    @pytest.mark.parametrize(
        "labels", [5, "bridgeJob:job-1", ["bridgeJob"], [{"value": "job-1"}], [{"key": 5}]]
    )
    async def test_takes_an_execution_whose_labels_it_cannot_read_for_no_answer(
        self, labels: object
    ) -> None:
        with pytest.raises(KestraUnavailable, match="labels"):
            await self.found({**self.ROW, "labels": labels})

    @pytest.mark.parametrize("missing", ["id", "namespace", "flowId", "state"])
    async def test_is_unavailable_where_a_row_lacks_a_part(self, missing: str) -> None:
        with pytest.raises(KestraUnavailable, match=missing):
            await self.found({key: value for key, value in self.ROW.items() if key != missing})

    async def test_reads_all_pages(self) -> None:
        limits = RequestLimits(page_size=2)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            standin.flow(FLOW.namespace, FLOW.id)
            made_here = {(await kestra.create(JOB)).id for _ in range(5)}
            assert {execution.id for execution in await kestra.find(JOB)} == made_here
            assert standin.requests["search"] == 3

    async def test_ends_where_a_page_is_empty_whatever_the_total_says(self) -> None:
        async with answering(
            lambda _: httpx.Response(200, json={"results": [], "total": 7})
        ) as kestra:
            assert await kestra.find(JOB) == []


class TestUnfinished:
    async def test_lists_what_has_not_ended(self) -> None:
        async with Standin() as standin, against(standin) as kestra:
            standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
            ended, going = await kestra.create(JOB), await kestra.create(Job(id="job-2", flow=FLOW))
            await standin.end(ended.id)
            assert [execution.id for execution in await kestra.unfinished()] == [going.id]

    async def test_leaves_out_what_ended_while_the_server_looked(self) -> None:
        row = {**TestFind.ROW, "state": {"current": "SUCCESS"}}
        async with answering(
            lambda _: httpx.Response(200, json={"results": [row], "total": 1})
        ) as kestra:
            assert await kestra.unfinished() == []


class TestDialects:
    @pytest.mark.parametrize("version", ["2.0.0", "1.3.25"])
    async def test_serve_a_job_from_create_to_outputs(self, version: str) -> None:
        async with Standin(version=version) as standin, against(standin) as kestra:
            standin.flow(FLOW.namespace, FLOW.id, Ends(after=None, outputs={"n": 1}))
            execution = await kestra.create(JOB)
            await standin.end(execution.id)
            assert await kestra.outputs(execution) == {"n": 1}
            assert kestra.server.version == version

    @pytest.mark.parametrize("version", ["2.0.0", "1.3.25"])
    async def test_kill(self, version: str) -> None:
        async with Standin(version=version) as standin, against(standin) as kestra:
            standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
            execution = await kestra.create(JOB)
            await kestra.kill(execution.id)
            await standin.until(
                lambda: standin.executions[execution.id].state == "KILLED", "the kill"
            )

    @pytest.mark.parametrize("version", ["2.0.0", "1.3.25"])
    async def test_explain_by_errors_alone(self, version: str) -> None:
        async with Standin(version=version) as standin, against(standin) as kestra:
            standin.flow(
                FLOW.namespace, FLOW.id, Ends(after=None, error="the disk\n is full"), task="boom"
            )
            execution = await kestra.create(JOB)
            await standin.end(execution.id, "FAILED")
            failed = await kestra.get(execution.id)
            assert failed is not None
            assert await kestra.explain(failed) == "task boom ended FAILED: the disk is full"

    @pytest.mark.parametrize(
        ("version", "paths"),
        [
            ("2.0.0", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
            ("2.4.1-SNAPSHOT", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
            ("develop", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
            ("1.3.25", ["/executions/e1/kill", "/executions/e1"]),
            ("0.22.0", ["/executions/e1/kill", "/executions/e1"]),
        ],
    )
    async def test_have_their_own_paths(self, version: str, paths: list[str]) -> None:
        asked = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path.removeprefix("/api/v1/main"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note, version=version) as kestra:
            await kestra.probe()
            asked.clear()
            await kestra.kill("e1")
            await kestra.outputs(EXECUTION)
        assert asked == paths

    async def test_follow_an_upgraded_server_at_the_next_probe(self) -> None:
        async with Standin(version="1.3.25") as standin, against(standin) as kestra:
            assert await kestra.probe() == "1.3.25"
            standin.version = "2.0.0"
            assert await kestra.probe() == "2.0.0"


class TestOutputs:
    @pytest.mark.parametrize(
        ("body", "outputs"), [(b"null", {}), (b"{}", {}), (b'{"a": null}', {"a": None})]
    )
    async def test_are_an_object_even_where_kestra_has_none(
        self, body: bytes, outputs: dict[str, Any]
    ) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert await kestra.outputs(EXECUTION) == outputs


class TestExplain:
    async def explained(self, run: Any, logs: Any) -> str:
        def answer(request: httpx.Request) -> httpx.Response:
            found = logs if "/logs/" in request.url.path else {"taskRunList": run}
            return httpx.Response(200, content=json.dumps(found))

        async with answering(answer) as kestra:
            return await kestra.explain(EXECUTION)

    FAILED_RUN: ClassVar[list[Any]] = [{"taskId": "boom", "state": {"current": "FAILED"}}]

    async def test_falls_back_to_the_executions_own_errors(self) -> None:
        assert (
            await self.explained([], [{"message": "over quota"}])
            == "execution e1 ended FAILED: over quota"
        )

    async def test_prefers_the_errors_of_the_task_that_failed(self) -> None:
        logs = [{"taskId": "boom", "message": "full"}, {"taskId": "other", "message": "later"}]
        assert await self.explained(self.FAILED_RUN, logs) == "task boom ended FAILED: full"

    @pytest.mark.parametrize(
        "logs", [[], {}, None, {"results": None}, {"results": 5}, "text", [None, {"message": 1}]]
    )
    async def test_says_what_it_knows_where_there_are_no_logs(self, logs: Any) -> None:
        assert await self.explained(self.FAILED_RUN, logs) == "task boom ended FAILED"

    async def test_stays_short_however_much_was_logged(self) -> None:
        logs = [{"taskId": "boom", "message": f"{n} " + "x" * 10_000} for n in range(100)]
        assert len(await self.explained(self.FAILED_RUN, logs)) < 1500


class TestStory:
    async def told(self, runs: Any, logs: Any, **more: Any) -> FailureReport:
        def answer(request: httpx.Request) -> httpx.Response:
            whole = {
                "id": "e1",
                "namespace": "a",
                "flowId": "b",
                "state": {"current": "FAILED"},
                "taskRunList": runs,
            }
            return httpx.Response(200, json=logs if "/logs/" in request.url.path else whole)

        async with answering(answer) as kestra:
            story = await kestra.logs.failure_report("e1", **more)
        assert story is not None
        return story

    async def test_tells_the_failed_task_and_its_last_lines_without_traces(self) -> None:
        logs = [
            {"taskId": "boom", "level": "INFO", "timestamp": "t1", "message": "writing"},
            {"taskId": "other", "level": "INFO", "timestamp": "t2", "message": "elsewhere"},
            {"taskId": "boom", "level": "ERROR", "timestamp": "t3", "message": "full"},
            {
                "taskId": "boom",
                "level": "DEBUG",
                "timestamp": "t3",
                "message": "java.lang.Exception: full\n\tat X",
            },
        ]
        story = await self.told(TestExplain.FAILED_RUN, logs)
        assert (story.execution.state, story.task) == (State.FAILED, "boom")
        assert story.log == (LogLine("t1", "INFO", "writing"), LogLine("t3", "ERROR", "full"))

    async def test_is_bounded(self) -> None:
        logs = [{"level": "INFO", "message": str(number)} for number in range(50)]
        assert [line.message for line in (await self.told([], logs, lines=2)).log] == ["48", "49"]

    async def test_of_an_unknown_execution_is_none(self) -> None:
        async with answering(lambda _: httpx.Response(404, content=words("Not Found"))) as kestra:
            assert await kestra.logs.failure_report("e1") is None


class TestValidateFlow:
    @pytest.mark.parametrize("body", [b"{}", b"null", b"[1]", b'{"message": "x"}'])
    async def test_takes_no_answer_of_another_shape_for_a_flow_without_faults(
        self, body: bytes
    ) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert isinstance(await raised(CALLS["validate_flow"], kestra), KestraUnavailable)


class TestProbe:
    async def test_is_unavailable_where_something_else_answers(self) -> None:
        async with Standin() as standin, against(standin) as kestra:
            standin.faults.add("configs", status=200, body={"name": "grafana"})
            with pytest.raises(KestraUnavailable, match="does not answer as Kestra does"):
                await kestra.probe()

    async def test_names_the_address_that_nothing_listens_on(self, unused_tcp_port: int) -> None:
        async with Kestra(settings(f"http://127.0.0.1:{unused_tcp_port}")) as kestra:
            with pytest.raises(
                KestraUnavailable, match=f"can't reach Kestra at http://127.0.0.1:{unused_tcp_port}"
            ):
                await kestra.probe()

    async def test_tells_whether_kestra_is_up(self) -> None:
        metrics = Metrics()
        seen = []
        async with Standin() as standin, against(standin, metrics=metrics) as kestra:
            for fault in [None, 503, None, 401, None]:
                if fault:
                    standin.faults.add("configs", status=fault)
                await raised(CALLS["probe"], kestra)
                seen.append((kestra.up, metrics.registry.get_sample_value("bridge_kestra_up")))
        assert seen == [(True, 1), (False, 0), (True, 1), (False, 0), (True, 1)]


class TestSinceWhenAnExecutionRuns:
    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            ("CREATED", None),
            ("CREATED QUEUED", None),
            ("CREATED RUNNING", 1),
            ("CREATED QUEUED RUNNING SUCCESS", 2),
            ("CREATED RUNNING PAUSED RESTARTED RUNNING", 1),
            ("CREATED RUNNING FAILED", 1),
            ("CREATED RUNNING FAILED RESTARTED RUNNING", 4),
            ("CREATED RUNNING FAILED RESTARTED RUNNING SUCCESS", 4),
            ("CREATED FAILED", 1),
        ],
    )
    def test_is_told_by_its_states(self, states: str, expected: int | None) -> None:
        began = datetime(2026, 11, 27, tzinfo=UTC)
        dates = [began + timedelta(seconds=second) for second in range(10)]
        histories = [
            {"state": state, "date": date.isoformat()}
            for state, date in zip(states.split(), dates, strict=False)
        ]
        row = {
            "id": "e1",
            "namespace": "a",
            "flowId": "b",
            "state": {"current": "X", "histories": histories},
        }
        assert parse_execution(row).running_since == (None if expected is None else dates[expected])


class TestClock:
    async def now_after(self, date: str) -> timedelta:
        async with answering(
            lambda _: httpx.Response(
                200, json={"results": [], "total": 0}, headers=[(b"Date", date.encode("latin-1"))]
            )
        ) as kestra:
            await kestra.find(JOB)
            return kestra.now() - datetime.now(UTC)

    @pytest.mark.parametrize(
        "skew", [timedelta(seconds=-50), timedelta(seconds=50), timedelta(hours=-3)]
    )
    async def test_follows_that_of_the_answers(self, skew: timedelta) -> None:
        found = await self.now_after(format_datetime(datetime.now(UTC) + skew, usegmt=True))
        assert abs(found - skew) < timedelta(seconds=3)

    async def test_brings_no_deadline_forward_by_a_date_that_is_hours_ahead(self) -> None:
        found = await self.now_after(
            format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
        )
        assert abs(found) < timedelta(seconds=3)

    @pytest.mark.parametrize("by_kestra", [timedelta(), timedelta(hours=1), timedelta(hours=-1)])
    @pytest.mark.parametrize("by_gateway", [timedelta(hours=2), timedelta(hours=-2)])
    async def test_is_that_by_which_kestra_dates_executions_whatever_a_gateway_says(
        self, by_kestra: timedelta, by_gateway: timedelta
    ) -> None:
        async with Standin() as standin:
            standin.flow(FLOW.namespace, FLOW.id)
            standin.skew, standin.date_skew = by_kestra, by_gateway
            async with against(standin) as kestra:
                await kestra.create(JOB)
                assert abs(kestra.now() - datetime.now(UTC) - by_kestra) < timedelta(seconds=3)

    async def test_is_ours_while_theirs_is_within_what_a_date_can_tell(self) -> None:
        found = await self.now_after(
            format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
        )
        assert abs(found) < timedelta(seconds=1)

    @pytest.mark.parametrize(
        "date",
        [
            "",
            "yesterday",
            "Tue, 24 Nov 99999999999999999999 07:51:54 GMT",
            "Tue, 24 Nov 2026 07:51:54 -0000",
            " ",
        ],
    )
    async def test_is_ours_where_the_date_says_nothing(self, date: str) -> None:
        assert abs(await self.now_after(date)) < timedelta(seconds=1)

    @given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
    async def test_survives_any_date(self, date: str) -> None:
        await self.now_after(date)


class TestCredentials:
    async def sent(self, **more: Any) -> str | None:
        seen: list[str | None] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("Authorization"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note, **more) as kestra:
            await kestra.find(JOB)
        return seen[0]

    async def test_go_as_basic_authentication(self) -> None:
        assert await self.sent() == "Basic YWRtaW5AZXhhbXBsZS5vcmc6VmVyeS1zZWNyZXQtMQ=="

    async def test_go_as_a_bearer_token(self) -> None:
        no_user = {"kestra_username": None, "kestra_password": None}
        assert await self.sent(**no_user, kestra_token=SecretStr(TOKEN)) == f"Bearer {TOKEN}"

    async def test_are_not_needed(self) -> None:
        assert await self.sent(kestra_username=None, kestra_password=None) is None

    async def test_open_a_server_by_token(self) -> None:
        async with Standin(token=TOKEN) as standin:
            no_user = {"kestra_username": None, "kestra_password": None}
            async with Kestra(
                settings(standin.url, **no_user, kestra_token=SecretStr(TOKEN))
            ) as kestra:
                assert await kestra.probe() == "2.0.0"


class TestFiles:
    """Credentials that stand in files."""

    async def sent_before_and_after(self, path: Path, text: str, **more: Any) -> list[str | None]:
        """The credentials of a request, and of the next one after the file has changed."""
        seen: list[str | None] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("Authorization"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note, **more) as kestra:
            await kestra.find(JOB)
            write(path, text)
            await kestra.find(JOB)
        return seen

    async def test_are_read_for_each_request(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("first\n")
        by_token = {"kestra_username": None, "kestra_password": None, "kestra_token_file": path}
        assert await self.sent_before_and_after(path, "other\n", **by_token) == [
            "Bearer first",
            "Bearer other",
        ]

    async def test_can_hold_the_password_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "password"
        path.write_text("first")
        seen = await self.sent_before_and_after(
            path, "other", kestra_password=None, kestra_password_file=path
        )
        shown = [base64.b64decode(str(text).removeprefix("Basic ")).decode() for text in seen]
        assert shown == ["admin@example.org:first", "admin@example.org:other"]

    async def test_that_can_not_be_used_are_told_before_anything_is_sent(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "password"
        path.write_text("first")
        with pytest.raises(KestraDenied, match="BRIDGE_KESTRA_PASSWORD_FILE is an empty file"):
            await self.sent_before_and_after(
                path, "\n", kestra_password=None, kestra_password_file=path
            )


class TestLink:
    def test_leads_a_person_to_the_execution(self) -> None:
        kestra = Kestra(settings("https://kestra.example/base/", kestra_tenant="blue"))
        assert (
            kestra.link(EXECUTION)
            == "https://kestra.example/base/ui/blue/executions/bridge.jobs/example/e1"
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TestTls:
    @asynccontextmanager
    async def server(self, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
        """The address of a server without a scheme."""

        async def answer(request: web.BaseRequest) -> web.Response:
            return web.json_response({"version": "2.0.0", "results": [], "total": 0})

        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def denied(
        self, tls: ssl.SSLContext | None, *, scheme: str = "https", **files: Path
    ) -> str:
        """What is said of a server that only an operator can mend."""
        async with (
            self.server(tls) as address,
            Kestra(settings(f"{scheme}://{address}", **files)) as kestra,
        ):
            with pytest.raises(KestraDenied) as caught:
                await kestra.probe()
        return str(caught.value)

    async def test_trusts_the_ca_that_the_settings_name(self, authority: Authority) -> None:
        async with (
            self.server(authority.server("kestra", "127.0.0.1")) as address,
            Kestra(settings(f"https://{address}", kestra_ca=authority.ca)) as kestra,
        ):
            assert await kestra.probe() == "2.0.0"

    async def test_trusts_no_other_private_ca(self, authority: Authority) -> None:
        said = await self.denied(authority.server("kestra", "127.0.0.1"))
        assert ("can't be trusted" in said, "BRIDGE_KESTRA_CA names whom to trust" in said) == (
            True,
            True,
        ), said

    async def test_does_not_trust_an_expired_certificate(self, authority: Authority) -> None:
        tls = authority.server("expired", "127.0.0.1", days=-1)
        assert "certificate has expired" in await self.denied(tls, kestra_ca=authority.ca)

    async def test_does_not_trust_a_certificate_for_another_host(
        self, authority: Authority
    ) -> None:
        tls = authority.server("other", "kestra.example")
        assert "not valid for '127.0.0.1'" in await self.denied(tls, kestra_ca=authority.ca)

    async def test_is_not_to_be_had_of_a_server_without(self, authority: Authority) -> None:
        assert "it does not speak TLS there" in await self.denied(None, kestra_ca=authority.ca)

    async def test_is_named_where_a_plain_request_ends_without_a_word(
        self, authority: Authority
    ) -> None:
        said = await self.denied(authority.server("kestra", "127.0.0.1"), scheme="http")
        assert "the address must begin with https://" in said

    @pytest.mark.parametrize(
        "text",
        [
            "<h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port",
            "Client sent an HTTP request to an HTTPS server.",
        ],
        ids=["nginx", "Go"],
    )
    async def test_is_named_where_a_gateway_says_so(self, text: str) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(400, text=text))
        async with Kestra(settings(), transport=transport) as kestra:
            with pytest.raises(KestraDenied, match="only https://"):
                await kestra.probe()

    async def test_shows_our_certificate_to_a_server_that_demands_one(
        self, authority: Authority
    ) -> None:
        certificate, key = authority.issue("bridge")
        files = {"kestra_ca": authority.ca, "kestra_certificate": certificate, "kestra_key": key}
        async with (
            self.server(authority.server("kestra", "127.0.0.1", demanding=True)) as address,
            Kestra(settings(f"https://{address}", **files)) as kestra,
        ):
            assert await kestra.probe() == "2.0.0"

    async def test_shows_a_renewed_certificate_without_a_restart(
        self, authority: Authority
    ) -> None:
        stranger = Authority(authority.ca.parent / "stranger").issue("bridge")
        certificate, key = authority.issue("renewed")
        right = certificate.read_bytes() + key.read_bytes()
        write(certificate, *(path.read_bytes() for path in stranger))
        files = {"kestra_ca": authority.ca, "kestra_certificate": certificate}
        server = self.server(authority.server("kestra", "127.0.0.1", demanding=True))
        async with server as address, Kestra(settings(f"https://{address}", **files)) as kestra:
            with pytest.raises(KestraError):
                await kestra.probe()
            write(certificate, right)
            assert await kestra.probe() == "2.0.0"

    @pytest.mark.parametrize("name", ["kestra_ca", "kestra_certificate"])
    def test_names_the_setting_of_a_file_that_holds_no_certificate(
        self, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file.pem").write_text("no certificate")
        with pytest.raises(KestraDenied, match=f"BRIDGE_{name.upper()}"):
            Kestra(settings("https://kestra.example", **{name: tmp_path / "file.pem"}))

    async def test_that_breaks_after_a_create_was_sent_leaves_it_ambiguous(self) -> None:
        """The execution may exist: whatever the alert says, nobody may create it again without a
        look."""

        def fail(_: httpx.Request) -> httpx.Response:
            raise httpx.ReadError("cut") from alert("TLSV1_ALERT_UNKNOWN_CA")

        async with answering(fail) as kestra:
            with pytest.raises(KestraAmbiguous):
                await kestra.create(JOB)

    async def test_that_breaks_below_httpx_is_our_error_all_the_same(self) -> None:
        def fail(_: httpx.Request) -> httpx.Response:
            raise alert("TLSV13_ALERT_CERTIFICATE_REQUIRED")

        async with answering(fail) as kestra:
            with pytest.raises(
                KestraDenied, match=r"certificate required.*BRIDGE_KESTRA_CERTIFICATE"
            ):
                await kestra.find(JOB)


def write(path: Path, *texts: bytes | str) -> None:
    path.write_bytes(b"".join(text.encode() if isinstance(text, str) else text for text in texts))


def alert(reason: str) -> ssl.SSLError:
    """What OpenSSL tells of the other side's alert."""
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason, error.library = reason, "SSL"
    return error


class TestManyAtOnce:
    async def test_creates_do_not_crowd_out_other_requests(self) -> None:
        """However many creates hang, what tells of running executions still gets through."""
        async with (
            Standin() as standin,
            against(standin, limits=RequestLimits(create_timeout=5)) as kestra,
        ):
            standin.flow(FLOW.namespace, FLOW.id)
            standin.faults.add("create", times=None, hang=True)
            creates = [
                asyncio.ensure_future(kestra.create(Job(id=f"j{n}", flow=FLOW))) for n in range(200)
            ]
            await standin.until(
                lambda: standin.requests["create"] >= DEFAULT_LIMITS.concurrent_creates,
                "the first creates",
            )
            async with asyncio.timeout(5):
                assert await kestra.unfinished() == []
            for create in creates:
                create.cancel()
            await asyncio.gather(*creates, return_exceptions=True)
