"""Clients of Kestra's API for tests: against a function, or against the stand-in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx
from pydantic import SecretStr

from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics
from tests.support.standin import Standin

FLOW = FlowName("bridge.jobs", "example")
JOB = Job(id="job-1", flow=FLOW, inputs={"text": "a", "data": {"n": 1}})
EXECUTION = Execution(id="e1", flow=FLOW, state=State.FAILED)
ROW: dict[str, Any] = {
    "id": "e1",
    "namespace": FLOW.namespace,
    "flowId": FLOW.id,
    "state": {"current": "RUNNING", "startDate": "2026-01-02T03:04:05.678901234Z"},
    "labels": [{"key": "bridgeJob", "value": "job-1"}, {"key": "bridgeAttempt", "value": "1"}],
    "originalId": "e0",
}
"""An execution of the job, as Kestra's API has it."""
PASSWORD = "Very-secret-1"
TOKEN = "very-secret-token"

Call = Callable[[Kestra], Awaitable[Any]]
Handler = Callable[[httpx.Request], httpx.Response]

CALLS: dict[str, Call] = {
    "probe": lambda kestra: kestra.probe(),
    "executions.create": lambda kestra: kestra.executions.create(JOB),
    "executions.find": lambda kestra: kestra.executions.find(JOB),
    "executions.find_attempts": lambda kestra: kestra.executions.find_attempts(JOB),
    "executions.unfinished": lambda kestra: kestra.executions.unfinished(),
    "executions.oldest_unfinished": lambda kestra: kestra.executions.oldest_unfinished(),
    "executions.ended_since": lambda kestra: kestra.executions.ended_since(datetime.now(UTC)),
    "executions.has_run": lambda kestra: kestra.executions.has_run("q", since=datetime.now(UTC)),
    "executions.reworked": lambda kestra: kestra.executions.reworked(),
    "executions.correlated": lambda kestra: kestra.executions.correlated("c1"),
    "executions.get": lambda kestra: kestra.executions.get("e1"),
    "executions.kill": lambda kestra: kestra.executions.kill("e1"),
    "executions.outputs": lambda kestra: kestra.executions.outputs(EXECUTION),
    "executions.delete": lambda kestra: kestra.executions.delete("e1"),
    "logs.explain": lambda kestra: kestra.logs.explain(EXECUTION),
    "logs.failure_report": lambda kestra: kestra.logs.failure_report("e1"),
    "flows.get": lambda kestra: kestra.flows.get(FLOW),
    "flows.validate": lambda kestra: kestra.flows.validate("id: x"),
    "flows.save": lambda kestra: kestra.flows.save(FLOW, "id: x", exists=False),
    "flows.delete": lambda kestra: kestra.flows.delete(FLOW),
}
"""A call of each method that asks Kestra something."""


@cache
def plain_settings() -> KestraSettings:
    """The settings of most tests, made once: reading the environment takes milliseconds."""
    return settings()


def settings(url: str = "http://kestra.example:8080", **more: Any) -> KestraSettings:
    whole = {
        "kestra_url": url,
        "kestra_username": "admin@example.org",
        "kestra_password": SecretStr(PASSWORD),
        **more,
    }
    return KestraSettings(**whole)


def against(standin: Standin, **more: Any) -> Kestra:
    """A client of the stand-in."""
    whole = settings(
        standin.url, kestra_username=standin.username, kestra_password=SecretStr(standin.password)
    )
    return Kestra(whole, **more)


def answering(
    handler: Handler, *, version: str = "2.0.0", metrics: Metrics | None = None, **more: Any
) -> Kestra:
    """A client whose server is a function. The version is answered for it."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/configs"):
            return httpx.Response(200, json={"version": version})
        return handler(request)

    chosen = settings(**more) if more else plain_settings()
    return Kestra(chosen, metrics, transport=httpx.MockTransport(handle))


def finding(*rows: dict[str, Any]) -> Kestra:
    """A client whose searches find these rows."""
    return answering(lambda _: httpx.Response(200, json={"results": rows, "total": len(rows)}))


def words(text: str) -> bytes:
    """The body of a refusal in Kestra's words."""
    links = {"self": [{"href": "/", "templated": False}]}
    return json.dumps({"message": text, "_links": links}).encode()


async def raised(call: Call, kestra: Kestra) -> Exception | None:
    """The error of a call, whatever it is; None where it raises none."""
    try:
        await call(kestra)
    except Exception as error:  # noqa: BLE001 (the test looks at it)
        return error
    return None


def httpx_errors() -> Iterator[type[Exception]]:
    """Every kind of error that httpx has."""
    for name in dir(httpx):
        kind = getattr(httpx, name)
        if inspect.isclass(kind) and issubclass(kind, Exception):
            yield kind


def made(kind: type[Exception]) -> Exception:
    """An error of that kind, with a text of two lines where it has one."""
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://kestra.example")
        return httpx.HTTPStatusError(
            "it broke", request=request, response=httpx.Response(500, request=request)
        )
    return kind() if len(inspect.signature(kind.__init__).parameters) == 1 else kind("it\nbroke")


def failing(error: Exception) -> Kestra:
    """A client whose requests all raise that error, except for the version."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    return answering(fail)
