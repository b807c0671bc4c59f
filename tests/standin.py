"""A stand-in for Kestra's web server: for faults that the real engine can't be made to show, and for volume.

    async with Standin() as kestra:
        kestra.flow("bridge.jobs", "example", Ends("FAILED", after=0.2, error="disk full"))
        kestra.faults.add("create", status=504, worked=True)
        kestra.replies.on_end = publish
        ...
        assert kestra.per_attempt() == {("job-1", "1"): 1}

It speaks the dialect of 2.0 or, with `version="1.3.25"`, of 1.x, as far as the bridge uses it;
`contract/test_kestra_contract.py` holds it to what the real engine answers. The work of a request is done in one go, so
that a fault comes either before it or after it. `python -m tests.standin --port 8080` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import re
import socket
import ssl
import struct
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import takewhile
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import yaml
from aiohttp import web
from pydantic_core import to_json

TERMINAL = frozenset({"SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED", "SKIPPED"})
STATES = TERMINAL | {
    "CREATED",
    "SUBMITTED",
    "QUEUED",
    "RUNNING",
    "RESTARTED",
    "RETRYING",
    "PAUSED",
    "BREAKPOINT",
    "KILLING",
}
LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR")
LONGEST_REQUEST_LINE = 4096
RETRIED_AFTER = 0.02
"""Kestra 2.0 tells FAILED and, so many seconds later, RETRIED of an execution whose flow is retried anew."""

KESTRA = object()
"""A fault's body in Kestra's own words."""

HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
TRUNCATED = b'{"id": "4n5ruBCMlTeYTGni73rtlW", "state": {"curr'
EMPTY = b""

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Ends:
    """How executions of a flow end. With `after=None` they wait for `Standin.end`.

    With `retries`, so many executions first end FAILED and then RETRIED, each followed by a new one (a flow's retry
    with CREATE_NEW_EXECUTION). With `kill_sticks`, a kill leads to KILLING and no further. Without `starts`, they stay
    CREATED until `Standin.begin`, as with a Kestra whose executor is down.
    """

    state: str = "SUCCESS"
    after: float | None = 0.0
    outputs: Mapping[str, Any] | None = None
    error: str = "it went wrong"
    retries: int = 0
    kill_sticks: bool = False
    starts: bool = True


@dataclass(slots=True)
class Run:
    """One execution."""

    id: str
    namespace: str
    flow: str
    labels: dict[str, str]
    inputs: dict[str, Any]
    original_id: str
    task: str
    ends: Ends = field(default_factory=Ends)
    histories: list[tuple[str, datetime]] = field(default_factory=list)
    outputs: Mapping[str, Any] | None = None
    timer: asyncio.TimerHandle | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    """The trace context that came with the create call."""

    @property
    def state(self) -> str:
        return self.histories[-1][0]

    @property
    def started(self) -> datetime:
        return self.histories[0][1]

    @property
    def ended(self) -> datetime | None:
        return self.histories[-1][1] if self.state in TERMINAL else None

    @property
    def attempt(self) -> tuple[str, str]:
        return self.labels.get("bridgeJob", ""), self.labels.get("bridgeAttempt", "")


Behaviour = Ends | Callable[[Run], Ends]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow: how its executions end, and which inputs it takes by which type (None: any, as text)."""

    namespace: str
    id: str
    behaviour: Behaviour = Ends()
    inputs: Mapping[str, str] | None = None
    required: frozenset[str] = frozenset()
    disabled: bool = False
    concurrency: Mapping[str, Any] | None = None
    source: str = ""
    task: str = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, read whole."""

    method: str
    url: str
    path: str
    query: Pairs
    headers: Mapping[str, str]
    body: bytes

    def value(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.query if key == name), default)


class Answer(Exception):
    """A status and a body; raised by a handler where the answer is an error."""

    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


def refusal(status: int, message: str, *, details: list[dict[str, str]] | None = None) -> Answer:
    """An error in Kestra's words."""
    body: dict[str, Any] = {"message": message, "_links": {"self": [{"href": "/api/v1/main", "templated": False}]}}
    return Answer(status, body | ({"_embedded": {"errors": details}} if details else {}))


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next requests for an operation; see `Faults.add`."""

    operation: str
    times: int | None
    worked: bool
    delay: float
    status: int | None
    body: Any
    hang: bool
    reset: bool
    disappeared: bool
    share: float
    when: Callable[[Call], bool]
    hits: int = 0

    @property
    def only_slow(self) -> bool:
        return self.status is None and not (self.hang or self.reset or self.disappeared)

    def fits(self, operation: str, call: Call) -> bool:
        spent = self.times is not None and self.hits >= self.times
        return not spent and self.operation in ("*", operation) and random.random() < self.share and self.when(call)  # noqa: S311

    def answer(self, created: str | None) -> Answer:
        """What the client gets to see instead."""
        if self.disappeared:
            return refusal(404, f"Not Found: Execution disappeared after create: {created}")
        assert self.status is not None
        headers = {"Location": "/ui/login"} if 300 <= self.status < 400 else {}
        if self.status == 401:
            headers = {"WWW-Authenticate": "Basic"}
        body = refusal(self.status, "Internal server error: made to fail").body if self.body is KESTRA else self.body
        return Answer(self.status, body, headers)


class Faults:
    """The faults to come, taken in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        operation: str = "*",
        *,
        times: int | None = 1,
        worked: bool = False,
        delay: float = 0.0,
        status: int | None = None,
        body: Any = KESTRA,
        hang: bool = False,
        reset: bool = False,
        disappeared: bool = False,
        share: float = 1.0,
        when: Callable[[Call], bool] = lambda _: True,
    ) -> Fault:
        """Let something go wrong.

        Args:
            operation: create, search, get, kill, outputs, logs, configs, flow, new_flow, save_flow, validate; or "*".
            times: how many requests; None for all until `clear`.
            worked: whether the work is done all the same (a 504 after creating, for instance).
            delay: seconds, after the work if `worked`, else before it. Alone: a slow server.
            status: the answer's status code, and with it `body`: KESTRA, text, bytes, or what is to be sent as JSON.
            hang: never answer.
            reset: cut the connection.
            disappeared: create, and answer 404 "Execution disappeared after create: <id>".
            share: the probability that a request is hit.
            when: which requests are meant.
        """
        fault = Fault(
            operation=operation,
            times=times,
            worked=worked or disappeared,
            delay=delay,
            status=status,
            body=body,
            hang=hang,
            reset=reset,
            disappeared=disappeared,
            share=share,
            when=when,
        )
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()

    def take(self, operation: str, call: Call) -> Fault | None:
        for fault in self._faults:
            if fault.fits(operation, call):
                fault.hits += 1
                return fault
        return None


class Replies:
    """What the notifier flow would publish at each end, brought to `on_end`, and what can go wrong with it.

    `drop` is the share that gets lost, `copies` how often each is sent, `delay` in seconds; with `shuffle`, so many are
    held back and then sent in another order. With `early`, an execution that ends at once has its reply sent before the
    create call is answered.
    """

    def __init__(self) -> None:
        self.on_end: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self.drop = 0.0
        self.copies = 1
        self.delay = 0.0
        self.shuffle = 0
        self.early = False
        self.sent: list[dict[str, Any]] = []
        self._held: list[dict[str, Any]] = []

    async def tell(self, run: Run) -> None:
        """Send what is to be sent of a run's state."""
        if self.on_end is None or random.random() < self.drop:  # noqa: S311
            return
        reply = _reply(run)
        if self.delay:
            await asyncio.sleep(self.delay)
        self._held.extend([reply] * self.copies)
        if len(self._held) > self.shuffle:
            await self.release()

    async def release(self) -> None:
        """Send what `shuffle` holds back."""
        held, self._held = self._held, []
        if self.shuffle:
            random.shuffle(held)
        for reply in held:
            self.sent.append(reply)
            assert self.on_end is not None
            await self.on_end(reply)


def _reply(run: Run) -> dict[str, Any]:
    ended = run.histories[-1][1].isoformat()
    return {"executionId": run.id, "state": run.state, "namespace": run.namespace, "flowId": run.flow, "endedAt": ended}


class Standin:
    """A Kestra of its own on loopback; starts and stops with its `async with` block."""

    def __init__(
        self,
        *,
        version: str = "2.0.0",
        port: int = 0,
        username: str = "admin@example.org",
        password: str = "Standin0",  # noqa: S107 (it guards nothing)
        token: str | None = None,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.version = version
        self.major = int(version.partition(".")[0])
        self.username = username
        self.password = password
        self.token = token
        self.skew = timedelta()
        self.date_skew: timedelta | None = None
        """Of the `Date` of its answers, which a gateway may write; None for the server's own."""
        self.faults = Faults()
        self.replies = Replies()
        self.requests: Counter[str] = Counter()
        self.kills: list[str] = []
        self.created: list[Run] = []
        self.executions: dict[str, Run] = {}
        self.any_flow: Behaviour | None = None
        self._flows: dict[tuple[str, str], Flow] = {}
        self._by_label: defaultdict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
        self._open: dict[str, Run] = {}
        self._host, self._port, self._tls = host, port, tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

    # What a test says and asks.

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def flow(self, namespace: str, flow_id: str, behaviour: Behaviour = Ends(), **more: Any) -> Flow:
        """Have a flow, or change one. `more`: see `Flow`."""
        flow = Flow(namespace=namespace, id=flow_id, behaviour=behaviour, **more)
        self._flows[namespace, flow_id] = flow
        return flow

    def executions_of(self, job: str, attempt: int = 1) -> list[Run]:
        """The executions of that (job, attempt), those of a flow's retry included, in the order of their creation."""
        found = self._by_label.get(("bridgeJob", job), {}).values()
        return [run for run in found if run.labels.get("bridgeAttempt") == str(attempt)]

    def per_attempt(self) -> Counter[tuple[str, str]]:
        """How often each (job, attempt) was created by a create call."""
        return Counter(run.attempt for run in self.created)

    async def end(self, execution_id: str, state: str = "SUCCESS") -> None:
        """End an execution now and wait until its replies are out."""
        await self._end(self.executions[execution_id], state)

    def begin(self, execution_id: str) -> None:
        """Run an execution that was created and not started."""
        run = self.executions[execution_id]
        run.histories.append(("RUNNING", self._now()))
        self._let_run(run)
        self._changed.set()

    def past(self, labels: Mapping[str, str], *states: str, original: Run | None = None) -> Run:
        """An execution of `test/job` that has been through these states, or a later one of that execution's chain."""
        flow = self._flows.get(("test", "job"), Flow(namespace="test", id="job"))
        run = self._start(flow, dict(labels), {}, original_id=original.original_id if original else None)
        run.histories += [(state, self._now()) for state in states]
        if run.state in TERMINAL:
            self._open.pop(run.id)
        return run

    def forget(self, execution_id: str) -> None:
        """Lose an execution without a trace, as when somebody deletes it."""
        run = self.executions.pop(execution_id)
        self._open.pop(execution_id, None)
        for label in run.labels.items():
            self._by_label[label].pop(execution_id, None)
        if run.timer is not None:
            run.timer.cancel()

    async def until(self, condition: Callable[[], bool], what: str, *, timeout: float = 10.0) -> None:
        """Wait for something to come true of this server.

        Raises:
            AssertionError: it did not within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {timeout:g} s: {what}; requests so far: {dict(self.requests)}") from None

    async def down(self) -> None:
        """Refuse connections and cut those that are there; what runs goes on running."""
        assert self._runner is not None
        if self._site is not None:
            await self._site.stop()
            self._site = None
        server = self._runner.server
        for connection in list(server.connections) if isinstance(server, web.Server) else []:
            if connection.transport is not None:
                connection.transport.abort()

    async def up(self) -> None:
        """Listen (again), on the same port."""
        assert self._runner is not None
        self._site = web.TCPSite(
            self._runner, self._host, self._port, backlog=1024, reuse_address=True, ssl_context=self._tls
        )
        await self._site.start()
        assert self._site._server is not None
        self._port = self._site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=1.0)
        await self._runner.setup()
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        for run in self._open.values():
            if run.timer is not None:
                run.timer.cancel()
        await self.down()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._runner is not None
        await self._runner.cleanup()
        if self._errors:
            raise self._errors[0]

    # One request.

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        call = await _read(request)
        operation, handle = self._route(call)
        self.requests[operation] += 1
        fault = self.faults.take(operation, call)
        try:
            return await (
                self._respond(handle(), operation) if fault is None else self._fail(request, fault, handle, operation)
            )
        finally:
            self._changed.set()

    async def _fail(
        self, request: web.BaseRequest, fault: Fault, handle: Callable[[], Answer], operation: str
    ) -> web.StreamResponse:
        answer = handle() if fault.worked else None
        self._changed.set()
        await self._pause(fault.delay)
        if fault.only_slow:
            return await self._respond(answer or handle(), operation)
        if fault.hang:
            await self._stopping.wait()
        if fault.hang or fault.reset:
            _reset(request)
            return web.Response()
        body = answer.body if answer else None
        return await self._respond(fault.answer(body.get("id") if isinstance(body, dict) else None), operation)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _respond(self, answer: Answer, operation: str) -> web.Response:
        if operation == "create" and self.replies.early:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        ahead = self.skew if self.date_skew is None else self.date_skew
        headers = {"Date": format_datetime(datetime.now(UTC) + ahead, usegmt=True), **answer.headers}
        match answer.body:
            case None:
                return web.Response(status=answer.status, headers=headers)
            case str() as text:
                return web.Response(status=answer.status, headers=headers, text=text, content_type="text/html")
            case bytes() as data:
                body = data
            case value:
                body = to_json(value)
        return web.Response(status=answer.status, headers=headers, body=body, content_type="application/json")

    def _route(self, call: Call) -> tuple[str, Callable[[], Answer]]:
        """The operation, and what does its work."""
        try:
            if len(call.method) + len(call.url) + len(" HTTP/1.1 ") > LONGEST_REQUEST_LINE:
                raise refusal(414, "Request-URI Too Long")
            self._admit(call)
            path = _within_tenant(call.path)
            for method, pattern, operation, majors in _ROUTES:
                found = pattern.fullmatch(path) if call.method == method and self.major in majors else None
                if found:
                    return operation, partial(self._work, operation, call, *map(unquote, found.groups()))
            raise refusal(404, "Not Found")
        except Answer as answer:
            return "refused", partial(lambda refused: refused, answer)

    def _admit(self, call: Call) -> None:
        given = call.headers.get("Authorization", "")
        credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if given != f"Basic {credentials}" and not (self.token and given == f"Bearer {self.token}"):
            raise Answer(401, None, {"WWW-Authenticate": "Basic"})

    def _work(self, operation: str, call: Call, *variables: str) -> Answer:
        try:
            answer: Answer = getattr(self, f"_on_{operation}")(call, *variables)
        except Answer as refused:
            return refused
        return answer

    # The operations.

    def _on_configs(self, _: Call) -> Answer:
        return Answer(200, {"version": self.version, "edition": "OSS", "systemNamespace": "system"})

    def _on_create(self, call: Call, namespace: str, flow_id: str) -> Answer:
        flow = self._flows.get((namespace, flow_id))
        if flow is None and self.any_flow is not None:
            flow = Flow(namespace=namespace, id=flow_id, behaviour=self.any_flow)
        if flow is None:
            raise refusal(404, "Not Found: Requested Flow is not found.")
        if flow.disabled:
            raise refusal(409, "Illegal state: Requested Flow is disabled.")
        inputs = _typed(_parts(call), flow)
        labels = _parse_labels([value for key, value in call.query if key == "labels"])
        run = self._start(flow, labels, inputs)
        run.trace = {name: call.headers[name] for name in ("traceparent", "tracestate") if name in call.headers}
        self.created.append(run)
        shown = {**self._whole(run), "url": f"/ui/main/executions/{namespace}/{flow_id}/{run.id}"}
        self._let_run(run)
        return Answer(200, shown)

    def _on_search(self, call: Call) -> Answer:
        page, size = _positive(call, "page", 1), _positive(call, "size", 10)
        found = self._search(_filters(call.query, legacy=self.major < 2))
        for order in reversed(call.value("sort").split(",") if call.value("sort") else []):
            found = _sorted(found, order)
        rows = found[(page - 1) * size : page * size]
        # A page past the end has no rows and, in Kestra, no total either.
        show = _light if self.major >= 2 else self._whole
        return Answer(200, {"results": [show(run) for run in rows], "total": len(found) if rows else 0})

    def _on_get(self, _: Call, execution_id: str) -> Answer:
        return Answer(200, self._whole(self._find(execution_id)))

    def _on_delete(self, _: Call, execution_id: str) -> Answer:
        self.forget(self._find(execution_id).id)
        return Answer(204)

    def _on_kill(self, call: Call, execution_id: str) -> Answer:
        run = self._find(execution_id)
        if run.state in TERMINAL and call.value("isOnKillCascade", "true") != "true":
            raise refusal(409, "Illegal state: Execution is already finished, can't kill it")
        self.kills.append(execution_id)
        if run.state not in TERMINAL:
            self._kill(run)
        return Answer(200, self._whole(run)) if self.major >= 2 else Answer(202)

    def _on_outputs(self, _: Call, execution_id: str) -> Answer:
        if execution_id not in self.executions:
            raise refusal(404, "Not Found")
        return Answer(200, dict(self.executions[execution_id].outputs or {}))

    def _on_logs(self, call: Call, execution_id: str) -> Answer:
        name = "filters[level][GREATER_THAN_OR_EQUAL_TO]" if self.major >= 2 else "minLevel"
        least = LEVELS.index(call.value(name, "TRACE"))
        run = self.executions.get(execution_id)
        entries = _log_entries(run) if run else []
        return Answer(200, [entry for entry in entries if LEVELS.index(entry["level"]) >= least])

    def _on_flow(self, call: Call, namespace: str, flow_id: str) -> Answer:
        flow = self._flows.get((namespace, flow_id))
        if flow is None:
            raise refusal(404, "Not Found: Flow not found")
        return Answer(200, _flow_json(flow) if call.value("source") == "true" else _flow_json(flow) | {"source": None})

    def _on_new_flow(self, call: Call) -> Answer:
        flow = _flow_from(call.body.decode())
        if (flow.namespace, flow.id) in self._flows:
            raise refusal(422, f"Invalid entity: Flow '{flow.id}' already exists in namespace '{flow.namespace}'.")
        self._flows[flow.namespace, flow.id] = flow
        return Answer(200, _flow_json(flow))

    def _on_save_flow(self, call: Call, namespace: str, flow_id: str) -> Answer:
        if (namespace, flow_id) not in self._flows:
            raise refusal(404, "Not Found: Flow not found")
        flow = _flow_from(call.body.decode())
        if (flow.namespace, flow.id) != (namespace, flow_id):
            raise refusal(422, "Illegal argument: Flow id and namespace can't be changed by an update")
        self._flows[namespace, flow_id] = flow
        return Answer(200, _flow_json(flow))

    def _on_delete_flow(self, _: Call, namespace: str, flow_id: str) -> Answer:
        if self._flows.pop((namespace, flow_id), None) is None:
            raise refusal(404, "Not Found: Flow not found")
        return Answer(204)

    def _on_validate(self, call: Call) -> Answer:
        try:
            flow = _flow_from(call.body.decode())
        except Answer as answer:
            constraints = answer.body["message"].removeprefix("Invalid entity: ")
            return Answer(200, [{"index": 0, "constraints": f"Validation error: {constraints}", "outdated": False}])
        return Answer(
            200, [{"index": 0, "namespace": flow.namespace, "flow": flow.id, "outdated": False, "warnings": []}]
        )

    # Executions.

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def _start(
        self, flow: Flow, labels: dict[str, str], inputs: dict[str, Any], *, original_id: str | None = None
    ) -> Run:
        execution_id = uuid.uuid4().hex[:22]
        run = Run(
            id=execution_id,
            namespace=flow.namespace,
            flow=flow.id,
            labels={"system.correlationId": execution_id, **labels},
            inputs=inputs,
            original_id=original_id or execution_id,
            task=flow.task,
        )
        run.ends = flow.behaviour if isinstance(flow.behaviour, Ends) else flow.behaviour(run)
        now = self._now()
        run.histories.append(("CREATED", now))
        if run.ends.starts:
            run.histories.append(("RUNNING", now))
        self.executions[run.id] = self._open[run.id] = run
        for label in run.labels.items():
            self._by_label[label][run.id] = run
        return run

    def _let_run(self, run: Run) -> None:
        if run.ends.after is None or run.state == "CREATED":
            return
        if run.ends.after == 0:
            self._in_background(self._run_out(run))
        else:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(run.ends.after, lambda: self._in_background(self._run_out(run)))

    async def _run_out(self, run: Run) -> None:
        if run.state in TERMINAL or run.state == "KILLING":
            return
        await (self._retry(run) if run.ends.retries else self._end(run, run.ends.state))

    async def _end(self, run: Run, state: str) -> None:
        self._pass_to(run, state)
        await self.replies.tell(run)

    def _pass_to(self, run: Run, state: str) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if state in ("SUCCESS", "WARNING", "FAILED"):
            run.outputs = run.ends.outputs
        run.histories.append((state, self._now()))
        if state in TERMINAL:
            self._open.pop(run.id, None)
        self._changed.set()

    async def _retry(self, run: Run) -> None:
        """As 2.0 does it: FAILED, then RETRIED for the same id, then a successor; 1.x leaves FAILED out.

        Kestra waits for no reply of its own.
        """
        for state in ("FAILED", "RETRIED") if self.major >= 2 else ("RETRIED",):
            self._pass_to(run, state)
            self._in_background(self.replies.tell(run))
            await asyncio.sleep(RETRIED_AFTER)
        flow = Flow(namespace=run.namespace, id=run.flow, behaviour=_once_less(run.ends), task=run.task)
        self._let_run(self._start(flow, dict(run.labels), run.inputs, original_id=run.original_id))

    def _kill(self, run: Run) -> None:
        run.histories.append(("KILLING", self._now()))
        if not run.ends.kill_sticks:
            self._in_background(self._end(run, "KILLED"))

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._note)

    def _note(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    def _find(self, execution_id: str) -> Run:
        try:
            return self.executions[execution_id]
        except KeyError:
            raise refusal(404, f"Not Found: Unable to find execution id '{execution_id}'") from None

    def _search(self, filters: list[Filter]) -> list[Run]:
        """By the smallest set that a filter points to, then the other filters."""
        sets: list[Collection[Run]] = []
        for one in filters:
            if one.field == "labels" and one.operation == "EQUALS":
                sets.append(self._by_label.get((one.key, one.values[0]), {}).values())
            elif one.field == "state" and one.operation == "NOT_IN" and TERMINAL.issubset(one.values):
                sets.append(self._open.values())
        smallest = min(sets, key=len) if sets else self._since(filters)
        return [run for run in smallest if all(one.holds(run) for one in filters)]

    def _since(self, filters: list[Filter]) -> Collection[Run]:
        """The executions that started since a filter's date; they are kept in the order in which they started."""
        dates = [datetime.fromisoformat(one.values[0]) for one in filters if one.field == "startDate"]
        if not dates:
            return self.executions.values()
        return [*takewhile(lambda run: run.started >= max(dates), reversed(self.executions.values()))][::-1]

    def _whole(self, run: Run) -> dict[str, Any]:
        task_state = _state([(run.state, moment) for _, moment in run.histories[-1:]])
        shown = {**_light(run), "taskRunList": [{"id": f"{run.id}t", "taskId": run.task, "state": task_state}]}
        return shown if self.major >= 2 or run.outputs is None else {**shown, "outputs": run.outputs}


_2 = range(2, 100)
_1 = range(2)
_BOTH = range(100)
_ROUTES = [
    (method, re.compile(pattern), operation, majors)
    for method, pattern, operation, majors in (
        ("GET", "/executions/search", "search", _BOTH),
        ("GET", "/executions/([^/]+)", "get", _BOTH),
        ("DELETE", "/executions/([^/]+)", "delete", _BOTH),
        ("DELETE", "/executions/([^/]+)/actions/kill", "kill", _2),
        ("DELETE", "/executions/([^/]+)/kill", "kill", _1),
        ("POST", "/executions/([^/]+)/([^/]+)", "create", _BOTH),
        ("GET", "/outputs/executions/([^/]+)", "outputs", _2),
        ("GET", "/logs/([^/]+)", "logs", _BOTH),
        ("GET", "/configs", "configs", _BOTH),
        ("POST", "/flows", "new_flow", _BOTH),
        ("POST", "/flows/validate", "validate", _BOTH),
        ("GET", "/flows/([^/]+)/([^/]+)", "flow", _BOTH),
        ("PUT", "/flows/([^/]+)/([^/]+)", "save_flow", _BOTH),
        ("DELETE", "/flows/([^/]+)/([^/]+)", "delete_flow", _BOTH),
    )
]


def _once_less(ends: Ends) -> Ends:
    return Ends(ends.state, ends.after, ends.outputs, ends.error, ends.retries - 1, ends.kill_sticks)


async def _read(request: web.BaseRequest) -> Call:
    body = await request.read()
    path, _, query = request.raw_path.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    return Call(method=request.method, url=request.raw_path, path=path, query=pairs, headers=request.headers, body=body)


def _reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    # With no time to linger, closing sends a reset instead of an orderly end.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _within_tenant(path: str) -> str:
    """The path below the tenant, which may be left out."""
    found = re.fullmatch(r"/api/v1/([^/]+)(/.*)?", path)
    if not found:
        raise refusal(404, "Not Found")
    first, rest = found.groups()
    if first == "main":
        return rest or "/"
    if first in ("configs", "executions", "flows", "logs", "outputs"):
        return path.removeprefix("/api/v1")
    raise refusal(400, "Bad Request: Tenant must be 'main'")


def _parts(call: Call) -> dict[str, str]:
    """The form's parts by their names."""
    kind = call.headers.get("Content-Type", "")
    boundary = re.fullmatch(r'multipart/form-data;\s*boundary="?([^";]+)"?', kind)
    if not boundary:
        if call.body:
            raise refusal(
                415, f"Unsupported Media Type: Content Type [{kind}] not allowed. Allowed types: [multipart/form-data]"
            )
        return {}
    parts = {}
    for part in call.body.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := re.search(rb'name="([^"]*)"', head):
            parts[name[1].decode()] = value.removesuffix(b"\r\n").decode()
    return parts


_CONVERTERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "INT": (int, "Integer"),
    "FLOAT": (float, "Float"),
    "JSON": (json.loads, "JSON"),
    "ARRAY": (json.loads, "ARRAY"),
}


def _typed(parts: Mapping[str, str], flow: Flow) -> dict[str, Any]:
    if flow.inputs is None:
        return dict(parts)
    for name in flow.required - parts.keys():
        raise _invalid(f"Missing required input:{name}")
    return {name: _convert(name, parts[name], kind) if name in parts else None for name, kind in flow.inputs.items()}


def _convert(name: str, text: str, kind: str) -> Any:
    converter, called = _CONVERTERS.get(kind, (str, kind))
    try:
        return converter(text)
    except ValueError:
        raise _invalid(f"Invalid value for input `{name}`. Cause: Cannot convert value '{text}' to {called}") from None


def _invalid(text: str) -> Answer:
    return refusal(422, f"Invalid entity: {text}", details=[{"message": text}])


def _parse_labels(texts: Iterable[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        key, colon, value = text.partition(":")
        if not colon or not value.strip():
            raise refusal(422, f"Illegal argument: Invalid queryString parameter: '{text}'")
        if key in labels:
            raise refusal(409, f"Illegal state: Duplicate key {key}")
        if key.startswith("system.") and key not in ("system.correlationId", "system.from"):
            fault = f"offending label: {key}={value}"
            raise refusal(422, f"Illegal argument: System labels can only be set by Kestra itself, {fault}")
        labels[key] = value.strip()
    return labels


@dataclass(frozen=True, slots=True)
class Filter:
    """One `filters[field][OPERATION][key]=value`."""

    field: str
    operation: str
    key: str
    values: list[str]

    def holds(self, run: Run) -> bool:
        if self.field == "childFilter":
            return True
        if self.field == "startDate":
            return run.started >= datetime.fromisoformat(self.values[0])
        actual = {
            "labels": run.labels.get(self.key),
            "state": run.state,
            "namespace": run.namespace,
            "flowId": run.flow,
        }
        return (actual[self.field] in self.values) is (self.operation in ("EQUALS", "IN"))


def _filters(query: Pairs, *, legacy: bool) -> list[Filter]:
    """The filters of a search. Flat parameters count in 1.x alone, and only without any filter; 2.0 ignores them."""
    found = [_filter(name, value) for name, value in query if name.startswith("filters[")]
    if legacy and not found:
        flat = [(name, value) for name, value in query if name in ("labels", "state", "namespace", "flowId")]
        found = [
            Filter(
                name,
                "EQUALS",
                *((value.split(":", 1)[0], [value.split(":", 1)[1]]) if name == "labels" else ("", [value])),
            )
            for name, value in flat
        ]
    return found


def _filter(name: str, value: str) -> Filter:
    parsed = re.fullmatch(r"filters\[(.*?)]\[(.*?)](?:\[(.+)])?", name)
    what, operation, key = parsed.groups(default="") if parsed else ("", "", "")
    if what == "startDate" and operation == "GREATER_THAN_OR_EQUAL_TO":
        return Filter(what, operation, key, [value])
    if what not in ("labels", "state", "namespace", "flowId", "childFilter"):
        raise refusal(400, f"Bad Request: Provided query filters are invalid: Unknown filter field: {what}")
    if operation not in ("EQUALS", "NOT_EQUALS", "IN", "NOT_IN"):
        raise refusal(400, f"Bad Request: Provided query filters are invalid: Unknown filter operation: {operation}")
    values = value.split(",") if operation in ("IN", "NOT_IN") else [value]
    for state in values if what == "state" else []:
        if state not in STATES:
            raise refusal(422, f"Illegal argument: No enum constant io.kestra.core.models.flows.State.Type.{state}")
    return Filter(what, operation, key, values)


def _positive(call: Call, name: str, default: int) -> int:
    number = int(call.value(name) or default)
    if number < 1:
        raise refusal(422, "Illegal argument: page and size must be greater than or equal to 1")
    return number


def _sorted(runs: list[Run], order: str) -> list[Run]:
    name, _, direction = order.partition(":")
    far = datetime.max.replace(tzinfo=UTC)
    keys: dict[str, Callable[[Run], Any]] = {
        "id": lambda run: run.id,
        "state.startDate": lambda run: run.started,
        "state.endDate": lambda run: run.ended or far,
    }
    if name not in keys:
        raise refusal(422, f"Illegal argument: Invalid sort parameter: {order}")
    return sorted(runs, key=keys[name], reverse=direction.lower() == "desc")


def _state(histories: list[tuple[str, datetime]]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "current": histories[-1][0],
        "histories": [{"state": state, "date": _instant(moment)} for state, moment in histories],
        "startDate": _instant(histories[0][1]),
    }
    return shown | ({"endDate": _instant(histories[-1][1])} if histories[-1][0] in TERMINAL else {})


def _instant(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _light(run: Run) -> dict[str, Any]:
    return {
        "tenantId": "main",
        "id": run.id,
        "namespace": run.namespace,
        "flowId": run.flow,
        "flowRevision": 1,
        "inputs": run.inputs,
        "labels": [{"key": key, "value": value} for key, value in run.labels.items()],
        "state": _state(run.histories),
        "originalId": run.original_id,
    }


def _log_entries(run: Run) -> list[dict[str, Any]]:
    entry = {
        "executionId": run.id,
        "namespace": run.namespace,
        "flowId": run.flow,
        "taskId": run.task,
        "taskRunId": f"{run.id}t",
    }
    entries = [entry | {"level": "INFO", "message": "working", "timestamp": _instant(run.started)}]
    if run.state == "FAILED":
        entries.append(
            entry | {"level": "ERROR", "message": run.ends.error, "timestamp": _instant(run.histories[-1][1])}
        )
    return entries


def _flow_json(flow: Flow) -> dict[str, Any]:
    tasks = [{"id": flow.task}]
    return {
        "id": flow.id,
        "namespace": flow.namespace,
        "revision": 1,
        "disabled": flow.disabled,
        "tasks": tasks,
        "source": flow.source,
        **({"concurrency": dict(flow.concurrency)} if flow.concurrency else {}),
    }


def _flow_from(source: str) -> Flow:
    """A flow from its YAML source, as far as tests need one: tasks that log, fail or sleep; outputs that are inputs."""
    try:
        data = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise refusal(422, f"Invalid entity: Illegal Flow source: YAML parsing error: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not isinstance(data.get("namespace"), str):
        raise refusal(422, "Invalid entity: Illegal Flow source: YAML parsing error: no id or no namespace")
    tasks = data.get("tasks") or []
    if not tasks:
        raise refusal(422, "Invalid entity: tasks: must not be empty\n")
    for task in tasks:
        if not str(task.get("type")).startswith("io.kestra.plugin."):
            raise refusal(422, f"Invalid entity: Invalid type: {task.get('type')}")
    inputs = data.get("inputs") or []
    return Flow(
        namespace=data["namespace"],
        id=data["id"],
        behaviour=partial(_behave, tasks, data.get("outputs") or []),
        inputs={one["id"]: one["type"] for one in inputs},
        required=frozenset(one["id"] for one in inputs if one.get("required", True)),
        disabled=bool(data.get("disabled")),
        concurrency=data.get("concurrency"),
        source=source,
        task=next((task["id"] for task in tasks if task["type"].endswith(".Fail")), tasks[0]["id"]),
    )


def _behave(tasks: list[dict[str, Any]], outputs: list[dict[str, Any]], run: Run) -> Ends:
    after = sum(_seconds(task.get("duration", "PT0S")) for task in tasks)
    failing = next((task for task in tasks if task["type"].endswith(".Fail")), None)
    if failing:
        return Ends("FAILED", after, error=failing.get("errorMessage", "Task failure"))
    return Ends("SUCCESS", after, {one["id"]: _render(one["value"], run) for one in outputs} or None)


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"PT([\d.]+)S", duration)
    return float(found[1]) if found else 0.0


def _render(text: str, run: Run) -> str:
    return re.sub(r"{{ *inputs\.(\w+) *}}", lambda found: str(run.inputs.get(found[1])), text)


async def _run_alone(options: argparse.Namespace) -> None:
    async with Standin(
        version=options.version,
        host=options.host,
        port=options.port,
        username=options.username,
        password=options.password,
    ) as kestra:
        kestra.any_flow = Ends(options.state, options.after)
        print(json.dumps({"url": kestra.url, "username": kestra.username, "password": kestra.password}), flush=True)
        await asyncio.Event().wait()


def main() -> int:
    """Run a stand-in that has every flow, until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description="A stand-in for Kestra.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one, printed as JSON")
    parser.add_argument("--version", default="2.0.0", help="whose dialect it speaks (default: 2.0.0)")
    parser.add_argument("--after", type=float, default=0.0, help="how many seconds an execution takes (default: 0)")
    parser.add_argument("--state", default="SUCCESS", choices=sorted(TERMINAL), help="how it ends (default: SUCCESS)")
    parser.add_argument("--username", default="admin@example.org")
    parser.add_argument("--password", default="Standin0")
    with suppress(KeyboardInterrupt):
        asyncio.run(_run_alone(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
