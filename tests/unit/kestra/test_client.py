"""One object for one Kestra server: whatever it is asked and answered, it keeps its promises."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.errors import KestraError, KestraUnavailable
from bridge.kestra import Kestra
from tests.support.kestra_client import (
    CALLS,
    EXECUTION,
    JOB,
    Call,
    against,
    answering,
    raised,
    settings,
)
from tests.support.standin import EMPTY, HTML, TRUNCATED, Standin

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
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
).map(lambda value: json.dumps(value).encode())

SINCE = datetime(2026, 11, 27, tzinfo=UTC)
HANDED_OVER: dict[str, tuple[Call, Call]] = {
    "create": (
        lambda kestra: kestra.create(JOB),
        lambda kestra: kestra.executions.create(JOB),
    ),
    "find": (
        lambda kestra: kestra.find(JOB, since=SINCE),
        lambda kestra: kestra.executions.find(JOB, since=SINCE),
    ),
    "find_attempts": (
        lambda kestra: kestra.find_attempts(JOB),
        lambda kestra: kestra.executions.find_attempts(JOB),
    ),
    "unfinished": (
        lambda kestra: kestra.unfinished(),
        lambda kestra: kestra.executions.unfinished(),
    ),
    "oldest_unfinished": (
        lambda kestra: kestra.oldest_unfinished(),
        lambda kestra: kestra.executions.oldest_unfinished(),
    ),
    "ended_since": (
        lambda kestra: kestra.ended_since(SINCE, 2, started=SINCE, size=7),
        lambda kestra: kestra.executions.ended_since(SINCE, 2, started=SINCE, size=7),
    ),
    "has_run": (
        lambda kestra: kestra.has_run("q", since=SINCE),
        lambda kestra: kestra.executions.has_run("q", since=SINCE),
    ),
    "get": (
        lambda kestra: kestra.get("e1"),
        lambda kestra: kestra.executions.get("e1"),
    ),
    "kill": (
        lambda kestra: kestra.kill("e1"),
        lambda kestra: kestra.executions.kill("e1"),
    ),
    "outputs": (
        lambda kestra: kestra.outputs(EXECUTION),
        lambda kestra: kestra.executions.outputs(EXECUTION),
    ),
    "explain": (
        lambda kestra: kestra.explain(EXECUTION),
        lambda kestra: kestra.logs.explain(EXECUTION),
    ),
}


def questions(kind: type[object]) -> set[str]:
    """The public methods of a class that ask Kestra something."""
    methods = inspect.getmembers(kind, inspect.iscoroutinefunction)
    return {name for name, _ in methods if not name.startswith("_")}


class TestEveryMethod:
    def test_is_among_those_that_are_tested(self) -> None:
        kestra = Kestra(settings())
        parts = {
            "executions": type(kestra.executions),
            "flows": type(kestra.flows),
            "logs": type(kestra.logs),
        }
        public = {f"{part}.{name}" for part, kind in parts.items() for name in questions(kind)}
        assert public | {"probe"} == CALLS.keys()

    @given(ANY_JSON)
    @example(EMPTY)
    @example(TRUNCATED)
    @example(HTML.encode())
    @example(b"\xff\xfe")
    @example(b"[" * 100_000)
    @example(b'{"results": [], "total": "many"}')
    @example(b'{"results": [1], "total": 1}')
    @example(b'{"results": 1, "total": 1}')
    async def test_gives_a_value_or_our_error_whatever_the_answer_holds(self, body: bytes) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            errors = [await raised(call, kestra) for call in CALLS.values()]
        assert [error for error in errors if not isinstance(error, KestraError | None)] == []


class TestHandingOver:
    def test_is_tested_of_every_method_but_the_probe(self) -> None:
        assert questions(Kestra) == {"probe", *HANDED_OVER}

    @pytest.mark.parametrize("method", HANDED_OVER)
    async def test_asks_the_same_as_the_object_behind_it(self, method: str) -> None:
        asked = [await self.asked(call) for call in HANDED_OVER[method]]
        assert asked[0] == asked[1] != []

    async def asked(self, call: Call) -> list[tuple[str, str]]:
        """The method and address of each request of a call."""
        requests: list[tuple[str, str]] = []

        def note(request: httpx.Request) -> httpx.Response:
            requests.append((request.method, str(request.url)))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note) as kestra:
            await raised(call, kestra)
        return requests


class TestProbe:
    async def test_is_unavailable_where_something_else_answers(self) -> None:
        async with Standin() as standin, against(standin) as kestra:
            standin.faults.add("configs", status=200, body={"name": "grafana"})
            with pytest.raises(KestraUnavailable, match="does not answer as Kestra does"):
                await kestra.probe()

    async def test_follows_an_upgraded_server(self) -> None:
        async with Standin(version="1.3.25") as standin, against(standin) as kestra:
            first = await kestra.probe()
            standin.version = "2.0.0"
            assert (first, await kestra.probe()) == ("1.3.25", "2.0.0")


class TestWithoutMetrics:
    def test_no_registry_is_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A command that asks Kestra once should not collect figures of its process."""

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a registry was built")

        monkeypatch.setattr("bridge.telemetry.metrics.CollectorRegistry", refuse)
        Kestra(settings())


class TestLink:
    def test_leads_a_person_to_the_execution(self) -> None:
        kestra = Kestra(settings("https://kestra.example/base/", kestra_tenant="blue"))
        url = "https://kestra.example/base/ui/blue/executions/bridge.jobs/example/e1"
        assert kestra.link(EXECUTION) == url
