"""A stand-in for Kestra's web server: for faults that the real engine can't be made to show, and
for volume.

    async with Standin() as kestra:
        kestra.flow("bridge.jobs", "example", Ends("FAILED", after=0.2, error="disk full"))
        kestra.faults.add("create", status=504, worked=True)
        kestra.replies.on_end = publish
        ...
        assert kestra.per_attempt() == {("job-1", "1"): 1}

It speaks the dialect of 2.0 or, with `version="1.3.25"`, of 1.x, as far as the bridge uses it. What
it answers has the form, and a refusal the words, of what a real server of that series answered
(`contract/recorded.py`). The work of a request is done in one go, so that a fault comes either
before it or after it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import socket
import ssl
import struct
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache, partial
from itertools import takewhile
from typing import Any, Self
from urllib.parse import unquote

import yaml
from aiohttp import web
from pydantic_core import to_json

from tests.contract.flows import Series
from tests.contract.recorded import Exchange, recorded, rows

TERMINAL = frozenset({"SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED", "SKIPPED"})
GOING = {
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
"""Kestra 2.0 tells FAILED and, so many seconds later, RETRIED of an execution whose flow is retried
anew."""

KESTRA = object()
"""A fault's body in Kestra's own words."""

HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
TRUNCATED = b'{"id": "4n5ruBCMlTeYTGni73rtlW", "state": {"curr'
EMPTY = b""
JSON = "application/json"

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Ends:
    """How executions of a flow end. With `after=None` they wait for `Standin.end`.

    With `retries`, so many executions first end FAILED and then RETRIED, each followed by a new one
    (a flow's retry with CREATE_NEW_EXECUTION). With `kill_sticks`, a kill leads to KILLING and no
    further. Without `starts`, they stay CREATED until `Standin.begin`, as with a Kestra whose
    executor is down.
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
    parent_id: str | None = None
    trigger: Mapping[str, Any] | None = None
    ends: Ends = field(default_factory=Ends)
    histories: list[tuple[str, datetime]] = field(default_factory=list)
    outputs: Mapping[str, Any] | None = None
    kills: list[datetime] = field(default_factory=list)
    """When a kill was asked for, with effect or without."""
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False
    """Whether its time came while nothing was run."""
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
    """A flow: how its executions end, and which inputs it takes by which type (None: any, as
    text)."""

    namespace: str
    id: str
    behaviour: Behaviour = Ends()
    inputs: Mapping[str, str] | None = None
    required: frozenset[str] = frozenset()
    disabled: bool = False
    concurrency: Mapping[str, Any] | None = None
    source: str = ""
    task: str = "work"
    parts: Mapping[str, Any] = field(default_factory=dict)
    """What else its source says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, read whole."""

    method: str
    url: str
    path: str
    query: Pairs
    headers: Mapping[str, str]
    body: bytes
    form: Mapping[str, str]

    def value(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.query if key == name), default)


class Answer(Exception):
    """A status and a body; raised by a handler where the answer is an error."""

    def __init__(
        self,
        status: int,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.content_type = content_type


# What real servers answered.


def refusal(series: Series, like: str, *changes: tuple[str, str]) -> Answer:
    """What a real server answered to a request that was refused, with what differs in this one put
    in its place.

    `like` is a part of that exchange: its status, method, address and body, which of 1.3 and 2.0
    are the same for most.
    """
    text = json.dumps(_refused(series, like).body)
    for there, here in changes:
        text = text.replace(json.dumps(there)[1:-1], json.dumps(here)[1:-1])
    kept = {
        name: value
        for name, value in _refused(series, like).headers.items()
        if name != "content-type"
    }
    return Answer(_refused(series, like).status, json.loads(text) or None, kept)


@cache
def _refused(series: Series, like: str) -> Exchange:
    others: Series = "1.3" if series == "2.0" else "2.0"
    exchanges = (one for one in [*recorded(series), *recorded(others)] if one.status >= 400)
    return next(
        one
        for one in exchanges
        if like in f"{one.status} {one.method} {unquote(one.path)}\n{one.request_body}"
    )


def in_words(status: int, message: str) -> Answer:
    """An error of which there's no record, in the form that all have."""
    return Answer(status, {**_refused("2.0", "/executions/unknown").body, "message": message})


@dataclass(slots=True)
class Form:
    """How a real server answers to an operation that it does; without `keys`, with all there is."""

    status: int = 200
    content_type: str | None = JSON
    keys: set[str] = field(default_factory=set)

    def answer(self, value: Any) -> Answer:
        """What is to be told of `value`: an object, rows, or a page of rows."""
        if self.content_type is None:
            return Answer(self.status)
        if isinstance(value, dict) and "results" in value:
            return Answer(
                self.status, {**value, "results": [self._row(row) for row in value["results"]]}
            )
        shown = [self._row(row) for row in value] if isinstance(value, list) else self._row(value)
        return Answer(self.status, shown, content_type=self.content_type)

    def _row(self, whole: dict[str, Any]) -> dict[str, Any]:
        return (
            {key: value for key, value in whole.items() if key in self.keys} if self.keys else whole
        )


@cache
def forms(series: Series) -> Mapping[str, Form]:
    """How a real server of that series answers to each operation that was recorded."""
    found: dict[str, Form] = {}
    for one in recorded(series):
        match = _operations(one.path.partition("?")[0], series).get(one.method)
        if one.status < 300 and match:
            form = found.setdefault(match[0], Form(one.status, one.headers.get("content-type")))
            listed = (
                rows(one.body)
                if isinstance(one.body, list) or "results" in one.body
                else [one.body]
            )
            form.keys.update(*listed)
    return found


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next requests for an operation."""

    operation: str = "*"
    """create, search, get, kill, outputs, logs, configs, flow, new_flow, save_flow, validate; or
    "*"."""
    times: int | None = 1
    """How many requests; None for all until `clear`."""
    worked: bool = False
    """Whether the work is done all the same (a 504 after creating, for instance)."""
    delay: float = 0.0
    """Seconds, after the work if `worked`, else before it. Alone: a slow server."""
    status: int | None = None
    body: Any = KESTRA
    """What goes with the status: KESTRA, text, bytes, or what is to be sent as JSON."""
    hang: bool = False
    """Never answer."""
    reset: bool = False
    """Cut the connection."""
    disappeared: bool = False
    """Create, and answer 404 "Execution disappeared after create: <id>"."""
    share: float = 1.0
    """The probability that a request is hit."""
    when: Callable[[Call], bool] = lambda _: True
    """Which requests are meant."""
    hits: int = 0

    @property
    def only_slow(self) -> bool:
        return self.status is None and not (self.hang or self.reset or self.disappeared)

    def fits(self, operation: str, call: Call) -> bool:
        spent = self.times is not None and self.hits >= self.times
        return (
            not spent
            and self.operation in ("*", operation)
            and random.random() < self.share  # noqa: S311
            and self.when(call)
        )

    def answer(self, created: str | None) -> Answer:
        """What the client gets to see instead."""
        if self.disappeared:
            return in_words(404, f"Not Found: Execution disappeared after create: {created}")
        assert self.status is not None
        headers = {"Location": "/ui/login"} if 300 <= self.status < 400 else {}
        if self.status == 401:
            headers = {"WWW-Authenticate": "Basic"}
        body = (
            in_words(self.status, "Internal server error: made to fail").body
            if self.body is KESTRA
            else self.body
        )
        return Answer(self.status, body, headers)


class Faults:
    """The faults to come, taken in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, operation: str = "*", **what: Any) -> Fault:
        """Let something go wrong; `what`: see `Fault`."""
        fault = Fault(operation=operation, **what)
        fault.worked = fault.worked or fault.disappeared
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Let one of them happen no more."""
        self._faults.remove(fault)

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
    """What the notifier flow would publish at each end, brought to `on_end`, and what can go wrong
    with it.

    `drop` is the share that gets lost, `copies` how often each is sent, `delay` in seconds; with
    `shuffle`, so many are held back and then sent in another order. With `early`, an execution that
    ends at once has its reply sent before the create call is answered.
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
    return {
        "executionId": run.id,
        "state": run.state,
        "namespace": run.namespace,
        "flowId": run.flow,
        "endedAt": ended,
    }


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
        self._halted = False
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

    @property
    def series(self) -> Series:
        return "1.3" if self.version.startswith(("0.", "1.")) else "2.0"

    @property
    def outputs_apart(self) -> bool:
        """Whether outputs have a path of their own; the build of 2.0 that was recorded is older
        than that."""
        return self.series == "2.0" and "SNAPSHOT" not in self.version

    # What a test says and asks.

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def flow(
        self, namespace: str, flow_id: str, behaviour: Behaviour = Ends(), **more: Any
    ) -> Flow:
        """Have a flow, or change one. `more`: see `Flow`."""
        flow = Flow(namespace=namespace, id=flow_id, behaviour=behaviour, **more)
        self._flows[namespace, flow_id] = flow
        return flow

    def executions_of(self, job: str, attempt: int = 1) -> list[Run]:
        """The executions of that (job, attempt), those of a flow's retry included, in the order of
        their creation."""
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

    def halt(self) -> None:
        """Run nothing any more, as with an executor that is down: creates and kills are taken,
        without effect."""
        self._halted = True

    def go_on(self) -> None:
        """Run what waits since `halt`; what would have ended meanwhile ends now."""
        self._halted = False
        for run in list(self._open.values()):
            if run.state in ("CREATED", "RESTARTED"):
                self.begin(run.id)
            elif run.overdue:
                self._in_background(self._run_out(run))

    def restart(self, execution_id: str, ends: Ends | None = None) -> Run:
        """Run an execution that has ended once more, as an operator does, to its old end or to
        another one."""
        run = self._open[execution_id] = self._find(execution_id)
        run.ends = ends or run.ends
        self._pass_to(run, "RESTARTED")
        if not self._halted:
            self.begin(execution_id)
        return run

    def past(self, labels: Mapping[str, str], *states: str, original: Run | None = None) -> Run:
        """An execution of `test/job` that has been through these states, or a later one of that
        execution's chain."""
        flow = self._flows.get(("test", "job"), Flow(namespace="test", id="job"))
        run = self._start(
            flow, dict(labels), {}, original_id=original.original_id if original else None
        )
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

    async def until(
        self, condition: Callable[[], bool], what: str, *, timeout: float = 10.0
    ) -> None:
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
            raise AssertionError(
                f"not within {timeout:g} s: {what}; requests so far: {dict(self.requests)}"
            ) from None

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
            self._runner,
            self._host,
            self._port,
            backlog=1024,
            reuse_address=True,
            ssl_context=self._tls,
        )
        await self._site.start()
        assert self._site._server is not None
        self._port = self._site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(
            web.Server(self._serve, access_log=None), shutdown_timeout=1.0
        )
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
                self._respond(handle(), operation)
                if fault is None
                else self._fail(request, fault, handle, operation)
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
        return await self._respond(
            fault.answer(body.get("id") if isinstance(body, dict) else None), operation
        )

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _respond(self, answer: Answer, operation: str) -> web.Response:
        if operation == "create" and self.replies.early:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        ahead = self.skew if self.date_skew is None else self.date_skew
        headers = {
            "Date": format_datetime(datetime.now(UTC) + ahead, usegmt=True),
            **answer.headers,
        }
        match answer.body:
            case None:
                return web.Response(status=answer.status, headers=headers)
            case _ if operation == "head":
                return web.Response(status=answer.status, headers=headers)
            case str() as text:
                return web.Response(
                    status=answer.status, headers=headers, text=text, content_type="text/html"
                )
            case bytes() as data:
                body = data
            case value:
                body = to_json(value)
        return web.Response(
            status=answer.status, headers=headers, body=body, content_type=answer.content_type
        )

    def _route(self, call: Call) -> tuple[str, Callable[[], Answer]]:
        """The operation, and what does its work."""
        try:
            self._admit(call)
            operation, *variables = self._operation(call)
        except Answer as answer:
            return "refused", partial(lambda refused: refused, answer)
        return operation, partial(self._work, operation, call, *variables)

    def _refuse(self, like: str, *changes: tuple[str, str]) -> Answer:
        return refusal(self.series, like, *changes)

    def _admit(self, call: Call) -> None:
        if len(call.method) + len(call.url) + len(" HTTP/1.1 ") > LONGEST_REQUEST_LINE:
            raise self._refuse("labels=long:")
        given = call.headers.get("Authorization", "")
        credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if given != f"Basic {credentials}" and not (self.token and given == f"Bearer {self.token}"):
            raise self._refuse("401 GET")

    def _operation(self, call: Call) -> tuple[str, ...]:
        """The operation that a request asks for, and what its path names."""
        found = _operations(call.path, self.series)
        if self.outputs_apart:
            found.update(_operations(call.path, "2.0", _OUTPUTS_APART))
        if not found:
            raise self._refuse("/nothing/here")
        if call.method not in found:
            allowed = ("HEAD, DELETE, GET", ", ".join(found))
            raise self._refuse(
                "405 OPTIONS",
                ("OPTIONS", call.method),
                ("/api/v1/main/executions/search", call.path),
                allowed,
            )
        operation, *variables = found[call.method]
        produced = "text/json" if operation == "kill" else JSON
        wanted = call.headers.get("Accept", "*/*")
        if not {part.partition(";")[0].strip() for part in wanted.split(",")} & {"*/*", produced}:
            raise self._refuse(
                "406 GET", (f"[{JSON}]", f"[{produced}]"), ("application/xml", wanted)
            )
        if call.path.startswith("/api/v1/") and call.path.split("/")[3] not in ("main", "configs"):
            raise self._refuse("/api/v1/other/")
        return operation, *variables

    def _work(self, operation: str, call: Call, *variables: str) -> Answer:
        try:
            value = getattr(self, f"_on_{operation}")(call, *variables)
        except Answer as refused:
            return refused
        return forms(self.series).get(operation, Form()).answer(value)

    # The operations.

    def _on_configs(self, _: Call) -> dict[str, Any]:
        return _said_of_itself(self.series) | {"version": self.version}

    def _on_create(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        flow = self._flows.get((namespace, flow_id))
        if flow is None and self.any_flow is not None:
            flow = Flow(namespace=namespace, id=flow_id, behaviour=self.any_flow)
        if flow is None:
            raise self._refuse("/executions/contract.flows/nowhere")
        if flow.disabled:
            raise self._refuse("/executions/contract.flows/disabled")
        if call.body:
            kind = call.headers.get("Content-Type", "")
            raise self._refuse("415 POST", (f"[{JSON}]", f"[{kind}]"))
        labels = self._parse_labels([value for key, value in call.query if key == "labels"])
        run = self._start(flow, labels, self._typed(call.form, flow))
        run.trace = {
            name: call.headers[name]
            for name in ("traceparent", "tracestate")
            if name in call.headers
        }
        self.created.append(run)
        return self._begun(run, flow)

    def _begun(self, run: Run, flow: Flow) -> dict[str, Any]:
        """What is answered to who has an execution created: 1.x doesn't wait for what becomes of
        it."""
        if self._is_one_too_many(run, flow.concurrency or {}):
            run.histories[1:] = []
            self._pass_to(run, "FAILED")
        else:
            self._let_run(run)
        return self._whole(
            run if self.series == "2.0" else replace(run, histories=run.histories[:1])
        )

    def _is_one_too_many(self, run: Run, limits: Mapping[str, Any]) -> bool:
        if limits.get("behavior") != "FAIL":
            return False
        going = [
            one
            for one in self._open.values()
            if (one.namespace, one.flow) == (run.namespace, run.flow)
        ]
        return len(going) > int(limits["limit"])

    def _on_webhook(self, call: Call, namespace: str, flow_id: str, key: str) -> dict[str, Any]:
        flow = self._flows.get((namespace, flow_id))
        triggers = flow.parts.get("triggers", []) if flow else []
        if flow is None or key not in [trigger.get("key") for trigger in triggers]:
            raise self._refuse("/hook/wrong")
        run = self._start(flow, {"system.from": "trigger"}, {})
        run.trigger = {
            "type": "io.kestra.plugin.core.trigger.Webhook",
            "variables": {"body": call.body.decode()},
        }
        return self._begun(run, flow)

    def _on_search(self, call: Call) -> dict[str, Any]:
        page, size = self._positive(call, "page", 1), self._positive(call, "size", 10)
        found = self._search(self._filters(call.query))
        for order in reversed(call.value("sort").split(",") if call.value("sort") else []):
            found = self._sorted(found, order)
        shown = [self._whole(run) for run in found[(page - 1) * size : page * size]]
        # A page past the end has no rows and, in Kestra, no total either.
        return {"results": shown, "total": len(found) if shown else 0}

    _on_head = _on_search

    def _on_get(self, _: Call, execution_id: str) -> dict[str, Any]:
        return self._whole(self._find(execution_id))

    def _on_delete(self, _: Call, execution_id: str) -> None:
        self.forget(self._find(execution_id).id)

    def _on_kill(self, call: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        if run.state in TERMINAL and call.value("isOnKillCascade", "true") != "true":
            raise self._refuse("kill?isOnKillCascade=false")
        self.kills.append(execution_id)
        run.kills.append(self._now())
        if run.state not in TERMINAL and not self._halted:
            self._kill(run)
        return self._whole(run)

    def _on_resume(self, _: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        self._pass_to(run, "RESTARTED")
        self._in_background(self._end(run, "SUCCESS"))
        return self._whole(run)

    def _on_restart(self, _: Call, execution_id: str) -> dict[str, Any]:
        return self._whole(self.restart(execution_id))

    def _on_replay(self, _: Call, execution_id: str) -> dict[str, Any]:
        run = self._find(execution_id)
        flow = self._flows[run.namespace, run.flow]
        again = self._start(
            flow, run.labels | {"system.replay": "true"}, run.inputs, original_id=run.original_id
        )
        again.parent_id = run.id
        return self._begun(again, flow)

    def _on_outputs(self, _: Call, execution_id: str) -> dict[str, Any]:
        return dict(self._find(execution_id).outputs or {})

    def _on_logs(self, call: Call, execution_id: str) -> list[dict[str, Any]]:
        name = "filters[level][GREATER_THAN_OR_EQUAL_TO]" if self.series == "2.0" else "minLevel"
        least = LEVELS.index(call.value(name, "TRACE"))
        run = self.executions.get(execution_id)
        entries = _log_entries(run) if run else []
        return [entry for entry in entries if LEVELS.index(entry["level"]) >= least]

    def _on_flow(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        shown = {"triggers": [], **_flow_json(self._known(namespace, flow_id))}
        return shown if call.value("source") == "true" else shown | {"source": None}

    def _on_new_flow(self, call: Call) -> dict[str, Any]:
        flow = self._flow_from(call.body.decode())
        if (flow.namespace, flow.id) in self._flows:
            raise self._refuse("422 POST /api/v1/main/flows\n\nid: works")
        self._flows[flow.namespace, flow.id] = flow
        return _flow_json(flow)

    def _on_save_flow(self, call: Call, namespace: str, flow_id: str) -> dict[str, Any]:
        self._known(namespace, flow_id)
        flow = self._flow_from(call.body.decode())
        if (flow.namespace, flow.id) != (namespace, flow_id):
            raise self._refuse("422 PUT")
        self._flows[namespace, flow_id] = flow
        return _flow_json(flow)

    def _on_delete_flow(self, _: Call, namespace: str, flow_id: str) -> None:
        self._known(namespace, flow_id)
        del self._flows[namespace, flow_id]

    def _known(self, namespace: str, flow_id: str) -> Flow:
        try:
            return self._flows[namespace, flow_id]
        except KeyError:
            raise self._refuse("404 GET /api/v1/main/flows/") from None

    def _on_validate(self, call: Call) -> list[dict[str, Any]]:
        shown: dict[str, Any] = {
            "index": 0,
            "outdated": False,
            "deprecationPaths": [],
            "warnings": [],
            "infos": [],
        }
        try:
            flow = self._flow_from(call.body.decode())
        except Answer as answer:
            text = answer.body["message"].removeprefix("Invalid entity: ")
            return [
                {**shown, "namespace": "", "flow": "", "constraints": f"Validation error: {text}"}
            ]
        return [{**shown, "namespace": flow.namespace, "flow": flow.id}]

    # Executions.

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def _start(
        self,
        flow: Flow,
        labels: dict[str, str],
        inputs: dict[str, Any],
        *,
        original_id: str | None = None,
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
        if run.ends.starts and not self._halted:
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
            run.timer = loop.call_later(
                run.ends.after, lambda: self._in_background(self._run_out(run))
            )

    async def _run_out(self, run: Run) -> None:
        if run.state in TERMINAL or run.state == "KILLING":
            return
        run.overdue = self._halted
        if self._halted:
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
        """As 2.0 does it: FAILED, then RETRIED for the same id, then a successor; 1.x leaves FAILED
        out.

        Kestra waits for no reply of its own.
        """
        for state in ("FAILED", "RETRIED") if self.series == "2.0" else ("RETRIED",):
            self._pass_to(run, state)
            self._in_background(self.replies.tell(run))
            await asyncio.sleep(RETRIED_AFTER)
        flow = Flow(
            namespace=run.namespace, id=run.flow, behaviour=_once_less(run.ends), task=run.task
        )
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
            raise self._refuse("/executions/unknown") from None

    def _search(self, filters: list[Filter]) -> list[Run]:
        """By the smallest set that a filter points to, then the other filters."""
        sets: list[Collection[Run]] = []
        for one in filters:
            if one.field == "labels" and one.operation == "EQUALS":
                sets.append(self._by_label.get((one.key, one.values[0]), {}).values())
            elif (
                one.field == "state" and one.operation == "NOT_IN" and TERMINAL.issubset(one.values)
            ):
                sets.append(self._open.values())
        smallest = min(sets, key=len) if sets else self._since(filters)
        return [run for run in smallest if all(one.holds(run) for one in filters)]

    def _since(self, filters: list[Filter]) -> Collection[Run]:
        """The executions that started since a filter's date; they are kept in the order in which
        they started."""
        dates = [
            datetime.fromisoformat(one.values[0]) for one in filters if one.field == "startDate"
        ]
        if not dates:
            return self.executions.values()
        return [
            *takewhile(lambda run: run.started >= max(dates), reversed(self.executions.values()))
        ][::-1]

    def _whole(self, run: Run) -> dict[str, Any]:
        """All there is to tell of an execution; what of it an answer has is decided by the answer's
        form."""
        shown: dict[str, Any] = {
            "tenantId": "main",
            "id": run.id,
            "namespace": run.namespace,
            "flowId": run.flow,
            "flowRevision": 1,
            "labels": [{"key": key, "value": value} for key, value in run.labels.items()],
            "state": _state(run.histories),
            "originalId": run.original_id,
            "deleted": False,
            "metadata": {"attemptNumber": 1, "originalCreatedDate": _instant(run.started)},
            "url": f"{self.url}/ui/main/executions/{run.namespace}/{run.flow}/{run.id}",
        }
        task_state = _state([(run.state, moment) for _, moment in run.histories[-1:]])
        begun = len(run.histories) > 1 and run.histories[1][0] != "FAILED"
        tasks = [{"id": f"{run.id}t", "taskId": run.task, "state": task_state}] if begun else None
        perhaps = {
            "taskRunList": tasks if tasks or not run.parent_id else [],
            "inputs": run.inputs or None,
            "outputs": None if self.outputs_apart else run.outputs,
            "trigger": run.trigger,
            "parentId": run.parent_id,
        }
        return shown | {key: value for key, value in perhaps.items() if value is not None}

    # What a request says.

    def _typed(self, parts: Mapping[str, str], flow: Flow) -> dict[str, Any]:
        if flow.inputs is None:
            return dict(parts)
        for name in flow.required - parts.keys():
            raise self._refuse(
                "/executions/contract.flows/demanding", ("input:text", f"input:{name}")
            )
        kinds = flow.inputs.items()
        return {
            name: self._convert(name, parts[name], kind) if name in parts else None
            for name, kind in kinds
        }

    def _convert(self, name: str, text: str, kind: str) -> Any:
        converter, like = _CONVERTERS.get(kind, (str, ""))
        try:
            return converter(text)
        except ValueError:
            raise self._refuse(like, ("`number`", f"`{name}`"), ('"seven"', f'"{text}"')) from None

    def _parse_labels(self, texts: Iterable[str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for text in texts:
            key, colon, value = text.partition(":")
            if not value.strip():
                raise self._refuse("labels=empty:" if colon else "labels=nocolon")
            if key in labels:
                both = ("values 1 and 2", f"values {labels[key]} and {value}")
                raise self._refuse("labels=twice:1", ("key twice", f"key {key}"), both)
            if key.startswith("system.") and key not in ("system.correlationId", "system.from"):
                raise self._refuse("labels=system.other:x", ("system.other=x", f"{key}={value}"))
            labels[key] = value.strip()
        return labels

    def _filters(self, query: Pairs) -> list[Filter]:
        """A search's filters. Flat parameters count in 1.x alone, and only without any filter; 2.0
        ignores them."""
        found = [self._filter(name, value) for name, value in query if name.startswith("filters[")]
        if self.series == "2.0" or found:
            return found
        flat = [
            (name, value)
            for name, value in query
            if name in ("labels", "state", "namespace", "flowId")
        ]
        keyed = [
            (name, value.partition(":") if name == "labels" else ("", "", value))
            for name, value in flat
        ]
        return [Filter(name, "EQUALS", key, [value]) for name, (key, _, value) in keyed]

    def _filter(self, name: str, value: str) -> Filter:
        parsed = re.fullmatch(r"filters\[(.*?)]\[(.*?)](?:\[(.+)])?", name)
        what, operation, key = parsed.groups(default="") if parsed else ("", "", "")
        if what not in ("labels", "state", "namespace", "flowId", "childFilter", *_DATES):
            raise self._refuse("filters[nothing]", ("'nothing'", f"'{what}'"))
        if operation not in ("EQUALS", "NOT_EQUALS", "IN", "NOT_IN", "GREATER_THAN_OR_EQUAL_TO"):
            raise self._refuse("LOOKS_LIKE", ("LOOKS_LIKE", operation))
        values = value.split(",") if operation in ("IN", "NOT_IN") else [value]
        for state in values if what == "state" else []:
            if state not in TERMINAL | GOING:
                raise self._refuse("DREAMING", ("DREAMING", state))
        return Filter(what, operation, key, values)

    def _positive(self, call: Call, name: str, default: int) -> int:
        number = int(call.value(name) or default)
        if number < 1:
            raise self._refuse("page=0", (".page:", f".{name}:"))
        return number

    def _sorted(self, runs: list[Run], order: str) -> list[Run]:
        name, _, direction = order.partition(":")
        far = datetime.max.replace(tzinfo=UTC)
        keys: dict[str, Callable[[Run], Any]] = {
            "id": lambda run: run.id,
            "state.startDate": lambda run: run.started,
            "state.endDate": lambda run: run.ended or far,
        }
        if name not in keys:
            raise self._refuse("sort=nonsense", ("nonsense", name))
        return sorted(runs, key=keys[name], reverse=direction.lower() == "desc")

    def _flow_from(self, source: str) -> Flow:
        """A flow from its YAML source, as far as tests need one: tasks that log, fail, sleep or
        pause."""
        data: Any = None
        with suppress(yaml.YAMLError):
            data = yaml.safe_load(source)
        if not isinstance(data, dict) or not all(
            isinstance(data.get(key), str) for key in ("id", "namespace")
        ):
            raise self._refuse("id: [broken")
        tasks, inputs = data.get("tasks") or [], data.get("inputs") or []
        if not tasks:
            raise self._refuse("422 POST /api/v1/main/flows\nid: v\n")
        wrong = [one["type"] for one in inputs if one["type"] == "BOOLEAN" and self.series == "2.0"]
        wrong += [
            task.get("type")
            for task in tasks
            if not str(task.get("type")).startswith("io.kestra.plugin.")
        ]
        if wrong:
            raise self._refuse("io.no.Such", ("io.no.Such", str(wrong[0])))
        return Flow(
            namespace=data["namespace"],
            id=data["id"],
            behaviour=partial(_behave, tasks, data.get("outputs") or []),
            inputs={
                one["id"]: f"{one['type']} {one.get('itemType', '')}".strip() for one in inputs
            },
            required=frozenset(one["id"] for one in inputs if one.get("required", True)),
            disabled=bool(data.get("disabled")),
            concurrency=data.get("concurrency"),
            source=source,
            task=next(
                (task["id"] for task in tasks if task["type"].endswith(".Fail")), tasks[0]["id"]
            ),
            parts={
                key: data[key] for key in ("tasks", "inputs", "outputs", "triggers") if key in data
            },
        )


_DATES = ("startDate", "endDate")
_CONVERTERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "INT": (int, 'name="number"'),
    "FLOAT": (float, 'name="number"'),
    "JSON": (json.loads, 'name="data"'),
    "ARRAY": (json.loads, 'name="data"'),
    "ARRAY INT": (lambda text: [int(one) for one in json.loads(text)], 'name="arr"'),
    "DATETIME": (datetime.fromisoformat, 'name="d"'),
}
"""How the text of an input is read by its type, and a part of the request in which a real server
couldn't."""

Route = tuple[str, str, str]
_SHARED: tuple[Route, ...] = (
    ("HEAD", "/executions/search", "head"),
    ("GET", "/executions/search", "search"),
    ("GET", "/executions/([^/]+)", "get"),
    ("DELETE", "/executions/([^/]+)", "delete"),
    ("POST", "/executions/([^/]+)/([^/]+)", "create"),
    ("POST", "/executions/webhook/([^/]+)/([^/]+)/([^/]+)", "webhook"),
    ("GET", "/logs/([^/]+)", "logs"),
    ("GET", "/api/v1/configs", "configs"),
    ("POST", "/flows", "new_flow"),
    ("POST", "/flows/validate", "validate"),
    ("GET", "/flows/([^/]+)/([^/]+)", "flow"),
    ("PUT", "/flows/([^/]+)/([^/]+)", "save_flow"),
    ("DELETE", "/flows/([^/]+)/([^/]+)", "delete_flow"),
)
_ACTIONS = (("DELETE", "kill"), ("POST", "resume"), ("POST", "restart"), ("POST", "replay"))
_ROUTES: Mapping[Series, tuple[Route, ...]] = {
    "1.3": (
        *((method, f"/executions/([^/]+)/{name}", name) for method, name in _ACTIONS),
        *_SHARED,
    ),
    "2.0": (
        *((method, f"/executions/([^/]+)/actions/{name}", name) for method, name in _ACTIONS),
        *_SHARED,
    ),
}
_OUTPUTS_APART: tuple[Route, ...] = (("GET", "/outputs/executions/([^/]+)", "outputs"),)


def _operations(
    path: str, series: Series, routes: tuple[Route, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """The operations at a path by their methods, each with what the path names."""
    below = re.sub(r"^/api/v1/[^/]+(?=/)", "", path)
    found: dict[str, tuple[str, ...]] = {}
    for method, pattern, operation in routes or _ROUTES[series]:
        if match := re.fullmatch(pattern, below):
            found.setdefault(method, (operation, *map(unquote, match.groups())))
    return found


@cache
def _said_of_itself(series: Series) -> dict[str, Any]:
    return next(dict(one.body) for one in recorded(series) if one.path == "/api/v1/configs")


def _once_less(ends: Ends) -> Ends:
    return replace(ends, retries=ends.retries - 1)


async def _read(request: web.BaseRequest) -> Call:
    form = request.content_type == "multipart/form-data"
    parts = {name: str(value) for name, value in (await request.post()).items()} if form else {}
    return Call(
        method=request.method,
        url=request.raw_path,
        path=request.raw_path.partition("?")[0],
        query=list(request.query.items()),
        headers=request.headers,
        body=b"" if form else await request.read(),
        form=parts,
    )


def _reset(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    # With no time to linger, closing sends a reset instead of an orderly end.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


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
        if self.field in _DATES:
            moment = run.started if self.field == "startDate" else run.ended
            return moment is not None and moment >= datetime.fromisoformat(self.values[0])
        actual = {
            "labels": run.labels.get(self.key),
            "state": run.state,
            "namespace": run.namespace,
            "flowId": run.flow,
        }
        return (actual[self.field] in self.values) is (self.operation in ("EQUALS", "IN"))


def _state(histories: list[tuple[str, datetime]]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "current": histories[-1][0],
        "histories": [{"state": state, "date": _instant(moment)} for state, moment in histories],
        "startDate": _instant(histories[0][1]),
    }
    return shown | ({"endDate": _instant(histories[-1][1])} if histories[-1][0] in TERMINAL else {})


def _instant(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _log_entries(run: Run) -> list[dict[str, Any]]:
    entry = {
        "executionId": run.id,
        "namespace": run.namespace,
        "flowId": run.flow,
        "taskId": run.task,
        "taskRunId": f"{run.id}t",
        "attemptNumber": 0,
        "thread": "worker_1",
    }
    entries = [entry | {"level": "INFO", "message": "working", "timestamp": _instant(run.started)}]
    if run.state == "FAILED":
        entries.append(
            entry
            | {
                "level": "ERROR",
                "message": run.ends.error,
                "timestamp": _instant(run.histories[-1][1]),
            }
        )
    return entries


def _flow_json(flow: Flow) -> dict[str, Any]:
    shown = {
        "id": flow.id,
        "namespace": flow.namespace,
        "revision": 1,
        "updated": _instant(datetime.now(UTC)),
        "disabled": flow.disabled,
        "deleted": False,
        "tasks": [{"id": flow.task}],
        "source": flow.source,
        **flow.parts,
    }
    return shown | ({"concurrency": dict(flow.concurrency)} if flow.concurrency else {})


def _behave(tasks: list[dict[str, Any]], outputs: list[dict[str, Any]], run: Run) -> Ends:
    after = sum(_seconds(task.get("duration", "PT0S")) for task in tasks)
    failing = next((task for task in tasks if task["type"].endswith(".Fail")), None)
    if failing:
        return Ends("FAILED", after, error=failing.get("errorMessage", "Task failure"))
    if any(task["type"].endswith(".Pause") for task in tasks):
        return Ends("PAUSED", after)
    return Ends(
        "SUCCESS", after, {one["id"]: _render(one["value"], run) for one in outputs} or None
    )


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"PT([\d.]+)S", duration)
    return float(found[1]) if found else 0.0


def _render(text: str, run: Run) -> str:
    return re.sub(r"{{ *inputs\.(\w+) *}}", lambda found: str(run.inputs.get(found[1])), text)
