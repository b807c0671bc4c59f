"""Kestra's API: the only user of httpx, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlencode

import httpx
import structlog

from bridge import __version__, exact_json, http_dates
from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
    SettingsError,
)
from bridge.job.attempt import ATTEMPT_LABEL, CORRELATION_LABEL, JOB_LABEL, MARK, MARK_LABEL
from bridge.job.execution import TERMINAL, Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra.answers import Meaning, Words, judge
from bridge.kestra.clock import ServerClock
from bridge.kestra.limits import DEFAULT_LIMITS, RequestLimits
from bridge.kestra.logs import LogLine, failed_task, last_errors, last_lines
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import outgoing

ACCEPT = "application/json, text/json"
"""A kill is answered as `text/json`, and refused with 406 to whoever accepts `application/json`
only (1.3, 2.0)."""

HEADERS = {
    "User-Agent": f"kestra-bridge/{__version__}",
    "Accept": ACCEPT,
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
}
REWORKED_LABELS = ("system.restarted", "system.replay")
"""What an execution carries that an operator restarted, or that came of one by a replay (1.3 and
2.0, tried)."""

log = structlog.get_logger(__name__)

Params = Mapping[str, str] | list[tuple[str, str]]

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_VERSIONS = (
    "does the bridge support this version of Kestra, and does nothing between them change requests?"
)
_HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server's version wants to be spoken to (2.0 moved an execution's actions and its
    outputs).
    """

    version: str

    @property
    def major(self) -> int:
        """The version's first number; 2 where it has none, which is how development builds
        behave.
        """
        return self.series[0]

    @property
    def series(self) -> tuple[int, int]:
        """The version's first two numbers; 2.0 where it has none."""
        numbers = re.match(r"(\d+)(?:\.(\d+))?", self.version)
        return (int(numbers[1]), int(numbers[2] or 0)) if numbers else (2, 0)

    def action(self, execution_id: str, name: str) -> str:
        """The path of an action on one execution."""
        return (
            f"/executions/{execution_id}/actions/{name}"
            if self.major >= 2
            else f"/executions/{execution_id}/{name}"
        )

    def error_logs(self) -> dict[str, str]:
        """The query that asks for error messages alone."""
        if self.major >= 2:
            return {"filters[level][GREATER_THAN_OR_EQUAL_TO]": "ERROR"}
        return {"minLevel": "ERROR"}


class KestraAuth(httpx.Auth):
    """Shows each request's credentials, as the settings, or the files that they name, have them at
    that moment.
    """

    def __init__(self, settings: KestraSettings) -> None:
        self._settings = settings

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Raises SettingsError where a file can't be used."""
        settings = self._settings = self._settings.refreshed(KestraSettings)
        if settings.kestra_username and settings.kestra_password:
            basic = httpx.BasicAuth(
                settings.kestra_username, settings.kestra_password.get_secret_value()
            )
            yield from basic.auth_flow(request)
            return
        if settings.kestra_token:
            request.headers["Authorization"] = f"Bearer {settings.kestra_token.get_secret_value()}"
        yield request


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlow:
    """A flow as the server has it.

    `limit` is how many of its executions may run at once, None for any number; `beyond` is what
    becomes of one more: QUEUE, CANCEL or FAIL.
    """

    source: str
    disabled: bool = False
    limit: int | None = None
    beyond: str = "QUEUE"


@dataclass(frozen=True, slots=True)
class FailureReport:
    """What became of an execution: the task that did not end well, and the last lines that it
    logged.
    """

    execution: Execution
    task: str | None
    log: tuple[LogLine, ...]


class Kestra:
    """A client for one tenant of one Kestra server, 1.x or 2.x. Use it as an async context manager.

    Every method raises `KestraDenied` when Kestra refuses the credentials and `KestraUnavailable`
    when it can't answer; what else one raises is said there. No httpx error leaves this class.
    """

    def __init__(
        self,
        settings: KestraSettings,
        metrics: Metrics | None = None,
        *,
        limits: RequestLimits = DEFAULT_LIMITS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._url = settings.kestra_url
        self._tls = settings.kestra_tls
        self._tenant = settings.kestra_tenant
        self._metrics = metrics or Metrics()
        self.limits = limits
        self._create_timeout = httpx.Timeout(limits.create_timeout)
        self._timeout = httpx.Timeout(limits.read_timeout, connect=limits.connect_timeout)
        self._creating = asyncio.Semaphore(limits.concurrent_creates)
        self._asking = asyncio.Semaphore(limits.concurrent_questions)
        self._dialect: Dialect | None = None
        self._clock = ServerClock()
        self._doubted = False
        self.up = False
        self.took: dict[str, float] = {}
        """What the last request of each operation took, in seconds, without the wait for a turn."""
        try:
            self._context = self._tls.context() if self._url.startswith("https://") else None
        except ValueError as error:
            raise KestraDenied(str(error)) from error
        self._http = httpx.AsyncClient(
            auth=KestraAuth(settings),
            verify=self._context or True,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def skew(self) -> timedelta:
        """How far Kestra's clock is ahead of ours, to about a second."""
        return self._clock.skew

    def now(self) -> datetime:
        """The time by Kestra's clock, to about a second."""
        return self._clock.now()

    def link(self, execution: Execution) -> str:
        """Where a person sees the execution."""
        return execution_url(self._settings, execution.flow, execution.id)

    async def probe(self) -> str:
        """Ask for the server's version, which decides the dialect from now on, and check that the
        tenant lets us in.

        From here on connections go by the certificates that the files hold now.
        """
        try:
            if self._context:
                self._tls.renew(self._context)
        except ValueError as error:
            raise KestraDenied(str(error)) from error
        configs = _object(await self._read("probe", "GET", "/configs"), "configs")
        version = configs.get("version")
        if not isinstance(version, str):
            raise KestraUnavailable(
                f"{self._url} does not answer as Kestra does: no version in /api/v1/configs"
            )
        self._dialect = Dialect(version)
        # Any search does; one by state is answered from an index, where one by label reads every
        # execution there is.
        params = {"size": "1", "filters[state][IN]": State.RUNNING.value}
        await self._read("probe", "GET", self._path("/executions/search"), params=params)
        return version

    async def create(self, job: Job) -> Execution:
        """Start the execution of this (job, attempt).

        Raises:
            KestraRejected: Kestra will never start it; nothing was created.
            KestraAmbiguous: no usable answer; the execution may exist, now or in a moment.
        """
        asked = datetime.now(UTC)
        response = await self._read(
            "create",
            "POST",
            self._path(f"/executions/{job.flow.namespace}/{job.flow.id}"),
            params=[("labels", f"{key}:{value}") for key, value in job.execution_labels.items()],
            files=[(name, (None, _form_value(value))) for name, value in job.inputs.items()]
            or None,
            # Kestra's own spans of the execution become part of the trace, where its OpenTelemetry
            # is on.
            headers=outgoing(),
            timeout=self._create_timeout,
            lost=KestraAmbiguous,
        )
        try:
            execution = parse_execution(_json(response))
        except (ValueError, KestraUnavailable) as error:
            raise KestraAmbiguous(f"create: the answer can't be read ({error})") from error
        self._clock.note_dated(execution.started, between=(asked, datetime.now(UTC)))
        return execution

    async def find(self, job: Job, *, since: datetime | None = None) -> list[Execution]:
        """All executions of this (job, attempt), whoever created them. Never trusts the server's
        filter alone.

        `since` bounds what the server has to read, by when executions started.
        """
        labels = {JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)}
        params = {**_labelled(labels), "filters[childFilter][EQUALS]": "MAIN"}
        if since is not None:
            params["filters[startDate][GREATER_THAN_OR_EQUAL_TO]"] = since.isoformat(
                timespec="seconds"
            )
        return [
            execution async for execution in self._search("find", params) if job.owns(execution)
        ]

    async def find_attempts(self, job: Job) -> list[Execution]:
        """All executions of this job, of any attempt."""
        params = {**_labelled({JOB_LABEL: job.id}), "filters[childFilter][EQUALS]": "MAIN"}
        return [
            execution
            async for execution in self._search("attempts", params)
            if job.names(execution)
        ]

    async def unfinished(self) -> list[Execution]:
        """All executions that carry the bridge's mark and have not ended, of every replica."""
        ended = ",".join(sorted(TERMINAL))
        params = {**_labelled({MARK_LABEL: MARK}), "filters[state][NOT_IN]": ended}
        return [
            execution
            async for execution in self._search("sweep", params)
            if not execution.state.terminal
        ]

    async def started_since(self, since: datetime, page: int = 1) -> tuple[list[Execution], int]:
        """A page of the executions that started since then, anybody's, oldest first; and how many
        all pages have.

        Those that a trigger or another execution started are not among them. Without a label's
        filter this costs a database no more than what it tells, as each of Kestra's has an index by
        date.
        """
        params = {
            "filters[childFilter][EQUALS]": "MAIN",
            "filters[startDate][GREATER_THAN_OR_EQUAL_TO]": since.isoformat(
                timespec="milliseconds"
            ),
        }
        return await self._page("recent", params, page)

    async def reworked(self, *, since: datetime | None = None) -> list[Execution]:
        """All executions with the bridge's mark that an operator restarted, and those that replays
        made.

        `since` bounds by when they started, which for those that go on with an earlier one is when
        that did.
        """
        bound = (
            {"filters[startDate][GREATER_THAN_OR_EQUAL_TO]": since.isoformat(timespec="seconds")}
            if since
            else {}
        )
        return [
            execution
            for label in REWORKED_LABELS
            async for execution in self._search(
                "reworked", _labelled({MARK_LABEL: MARK, label: "true"}) | bound
            )
            if label in execution.labels
        ]

    async def get(self, execution_id: str) -> Execution | None:
        """The execution of that id, or None where Kestra doesn't know it (any more)."""
        response = await self._send("get", "GET", self._path(f"/executions/{execution_id}"))
        return _readable(response, "get") if response else None

    async def kill(self, execution_id: str) -> None:
        """Ask Kestra to kill an execution and what it started. That one has ended or is unknown is
        no error.
        """
        path = self._path((await self._speak()).action(execution_id, "kill"))
        await self._send("kill", "DELETE", path, params={"isOnKillCascade": "true"})

    async def outputs(self, execution: Execution) -> dict[str, Any]:
        """The flow's outputs; empty when it has none, or when Kestra has none to give."""
        if (await self._speak()).major >= 2:
            response = await self._send(
                "outputs", "GET", self._path(f"/outputs/executions/{execution.id}")
            )
            if response:
                # The engine itself has null, and no empty object, for an execution without outputs.
                return {} if _json(response) is None else _object(response, "outputs")
        # Kestra 1.x shows them with the execution, and so do builds of 2.0 that lack the path
        # above.
        response = await self._send("outputs", "GET", self._path(f"/executions/{execution.id}"))
        outputs = _object(response, "outputs").get("outputs") if response else None
        return outputs if isinstance(outputs, dict) else {}

    async def explain(self, execution: Execution) -> str:
        """Why an execution did not end well, on one line: the task that failed and the last error
        it logged.
        """
        details = _object(
            await self._read("explain", "GET", self._path(f"/executions/{execution.id}")), "explain"
        )
        task = failed_task(details)
        params = (await self._speak()).error_logs()
        logs = _json(
            await self._read("explain", "GET", self._path(f"/logs/{execution.id}"), params=params)
        )
        error = last_errors(logs, task)
        where = f"task {task}" if task else f"execution {execution.id}"
        return f"{where} ended {execution.state}" + (f": {error}" if error else "")

    async def failure_report(self, execution_id: str, *, lines: int = 10) -> FailureReport | None:
        """What became of an execution, and its last log lines; None where Kestra doesn't know it
        (any more).
        """
        response = await self._send("story", "GET", self._path(f"/executions/{execution_id}"))
        if response is None:
            return None
        task = failed_task(_object(response, "story"))
        logs = _json(await self._read("story", "GET", self._path(f"/logs/{execution_id}")))
        return FailureReport(_readable(response, "story"), task, last_lines(logs, task)[-lines:])

    async def flow(self, flow: FlowName) -> StoredFlow | None:
        """A flow as the server has it, or None where there's no such flow."""
        response = await self._send(
            "flow",
            "GET",
            self._path(f"/flows/{flow.namespace}/{flow.id}"),
            params={"source": "true"},
        )
        return _stored_flow(_object(response, "flow")) if response else None

    async def validate_flow(self, source: str) -> list[str]:
        """What the server finds wrong with a flow's source; nothing when it would take it."""
        response = await self._send_yaml("validate", "POST", "/flows/validate", source)
        results = _json(response)
        if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
            raise KestraUnavailable("validate: the answer is not a list of objects")
        return [str(item["constraints"]) for item in results if item.get("constraints")]

    async def save_flow(self, flow: FlowName, source: str, *, exists: bool) -> None:
        """Create a flow, or replace its source. Never touches another one.

        Raises:
            KestraRejected: the server does not take the source.
        """
        method, path = (
            ("PUT", f"/flows/{flow.namespace}/{flow.id}") if exists else ("POST", "/flows")
        )
        try:
            await self._send_yaml("deploy", method, path, source)
        except KestraRejected as error:
            raise KestraRejected(f"{flow}: {error}") from error

    async def delete_flow(self, flow: FlowName) -> None:
        """Delete a flow. That there is none of that name is no error."""
        await self._send("delete", "DELETE", self._path(f"/flows/{flow.namespace}/{flow.id}"))

    async def correlated(self, correlation_id: str) -> list[Execution]:
        """All executions with that `system.correlationId`: those created with it, and what those
        made Kestra start.
        """
        labels = {CORRELATION_LABEL: correlation_id}
        found = [execution async for execution in self._search("correlated", _labelled(labels))]
        return [
            execution
            for execution in found
            if execution.labels.get(CORRELATION_LABEL) == correlation_id
        ]

    async def delete_execution(self, execution_id: str) -> None:
        """Delete an execution with its logs. That Kestra doesn't know it is no error."""
        await self._send("delete", "DELETE", self._path(f"/executions/{execution_id}"))

    @property
    def version(self) -> str | None:
        """The server's version as the last probe told it."""
        return self._dialect.version if self._dialect else None

    async def _speak(self) -> Dialect:
        if self._dialect is None:
            await self.probe()
        assert self._dialect is not None
        return self._dialect

    def _path(self, path: str) -> str:
        return f"/{self._tenant}{path}"

    async def _search(self, operation: str, filters: Mapping[str, str]) -> AsyncIterator[Execution]:
        page, seen = 1, 0
        while True:
            executions, total = await self._page(operation, filters, page)
            for execution in executions:
                yield execution
            page, seen = page + 1, seen + len(executions)
            if not executions or seen >= total:
                return

    async def _page(
        self, operation: str, filters: Mapping[str, str], page: int
    ) -> tuple[list[Execution], int]:
        """One page of a search, by the executions' start, and how many there are on all of them."""
        params = {
            **filters,
            "page": str(page),
            "size": str(self.limits.page_size),
            "sort": "state.startDate:asc",
        }
        found = _object(
            await self._read(operation, "GET", self._path("/executions/search"), params=params),
            operation,
        )
        rows, total = found.get("results"), found.get("total")
        if not isinstance(rows, list) or not isinstance(total, int):
            raise KestraUnavailable(f"{operation}: the answer has no list of results")
        try:
            return [parse_execution(row) for row in rows], total
        except ValueError as error:
            raise KestraUnavailable(f"{operation}: a row can't be read ({error})") from error

    async def _read(self, operation: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """The answer of an operation that has no other good end than an answer."""
        response = await self._send(operation, method, path, **kwargs)
        assert response is not None, f"{operation} has no absence"
        return response

    async def _send_yaml(
        self, operation: str, method: str, path: str, source: str
    ) -> httpx.Response:
        headers = {"Content-Type": "application/x-yaml"}
        return await self._read(
            operation, method, self._path(path), content=source.encode(), headers=headers
        )

    async def _send(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        lost: type[KestraError] = KestraUnavailable,
        **kwargs: Any,
    ) -> httpx.Response | None:
        """The answer to one request; None where Kestra says that what it is about is not there (any
        more).

        Any other answer is raised as the error that `kestra_answers.judge` takes it for.
        """
        turn = self._creating if operation == "create" else self._asking
        async with turn, self._measured(operation) as codes:
            try:
                response = await self._http.send(self._request(method, path, **kwargs))
            except SettingsError as error:
                raise KestraDenied(str(error)) from error
            except (*_HTTPX_ERRORS, ssl.SSLError) as error:
                raise await self._without_answer(operation, error, lost) from error
            codes.append(response.status_code)
        self._note_clock(response)
        if response.is_success:
            return response
        words = Words.read(response.content)
        meaning = judge(operation, response.status_code, words)
        if meaning is Meaning.ABSENT:
            return None
        if meaning in (Meaning.DENIED, Meaning.INCOMPATIBLE):
            self._metrics.kestra_refused.labels(operation).inc()
        raise self._error(operation, response, words, meaning)

    def _error(
        self, operation: str, response: httpx.Response, words: Words, meaning: Meaning
    ) -> KestraError:
        """What a refusal is raised as, with a line that says what to do where an operator can do
        something.
        """
        status = response.status_code
        said = f"HTTP {status}: {words.message or 'no reason given'}"
        wait = http_dates.seconds_until(response.headers.get("Retry-After"))
        match meaning:
            case Meaning.REJECTED:
                error: KestraError = KestraRejected(said)
            case Meaning.DENIED:
                error = KestraDenied(self._denied(operation, status, words))
            case Meaning.INCOMPATIBLE if operation == "probe" and _wants_tls(response):
                error = KestraDenied(f"Kestra at {self._url} accepts only https://")
            case Meaning.INCOMPATIBLE:
                error = KestraIncompatible(
                    f"Kestra refuses the form of the request {operation}: {said}; {_VERSIONS}"
                )
            case Meaning.AMBIGUOUS:
                blamed = status == 500 and words.by_kestra
                error = KestraAmbiguous(
                    f"{operation}: {said}",
                    words.execution_out_of_sight,
                    blames_request=blamed,
                    retry_after=wait,
                )
            case _:
                error = KestraUnavailable(_unavailable(operation, status, said), retry_after=wait)
        return error

    def _denied(self, operation: str, status: int, words: Words) -> str:
        if words.refuse_the_tenant:
            return f"Kestra refuses the tenant {self._tenant!r}: {words.message}"
        if status == 403:
            return f"Kestra denies the user the right to {operation} (HTTP 403)"
        return f"Kestra refuses the credentials for {operation} (HTTP {status})"

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
        **body: Any,
    ) -> httpx.Request:
        """As httpx's client would build it, which takes an address apart and puts it together three
        times over.
        """
        query = f"?{urlencode(params)}" if params else ""
        return httpx.Request(
            method,
            f"{self._url}/api/v1{path}{query}",
            headers={**HEADERS, **(headers or {})},
            extensions={"timeout": (timeout or self._timeout).as_dict()},
            **body,
        )

    async def _without_answer(
        self, operation: str, error: Exception, lost: type[KestraError]
    ) -> KestraError:
        """What it means that a request got no answer."""
        never_sent = isinstance(error, _NEVER_SENT)
        # A create that was sent may have been done, whatever became of the connection after that.
        if never_sent or operation != "create":
            trouble = self._tls.trouble(error) or await self._cut_off(operation, error)
            if trouble:
                return KestraDenied(f"Kestra at {self._url}: {trouble}")
        if never_sent:
            return KestraUnavailable(f"can't reach Kestra at {self._url}: {_why(error)}")
        return lost(f"{operation}: no answer from Kestra at {self._url}: {_why(error)}")

    async def _cut_off(self, operation: str, error: Exception) -> str | None:
        """What about TLS made a server end a connection without a word, if only an operator can
        mend it.
        """
        if operation != "probe" or not isinstance(
            error, (httpx.ReadError, httpx.RemoteProtocolError)
        ):
            return None
        return await self._tls.why_cut_off_at(self._url, self._context)

    @asynccontextmanager
    async def _measured(self, operation: str) -> AsyncIterator[list[int]]:
        codes: list[int] = []
        began = time.perf_counter()
        try:
            yield codes
        finally:
            code = str(codes[0]) if codes else "none"
            seconds = time.perf_counter() - began
            self._metrics.kestra_request_seconds.labels(operation, code).observe(seconds)
            self.took[operation] = seconds
            self.up = bool(codes) and codes[0] < 500 and codes[0] not in (401, 403)
            self._metrics.kestra_up.set(int(self.up))

    def _note_clock(self, response: httpx.Response) -> None:
        self._clock.note_header(response.headers.get("Date"))
        if self._clock.doubtful and not self._doubted:
            log.warning(
                "the Date of Kestra's answers is far from this machine's clock; "
                "deadlines don't go by it",
                date=response.headers.get("Date"),
                url=self._url,
            )
        self._doubted = self._clock.doubtful


def execution_url(settings: KestraSettings, flow: FlowName, execution_id: str) -> str:
    """Where a person sees an execution."""
    tenant = f"{settings.kestra_url}/ui/{settings.kestra_tenant}"
    return f"{tenant}/executions/{flow.namespace}/{flow.id}/{execution_id}"


def parse_execution(data: Any) -> Execution:
    """An execution from the API's JSON.

    Raises:
        ValueError: a part that the bridge relies on is missing or of another type.
    """
    if not isinstance(data, dict):
        raise ValueError("not an object")
    state = data.get("state")
    if not isinstance(state, dict):
        raise ValueError("no state")
    return Execution(
        id=_text(data, "id"),
        flow=FlowName(_text(data, "namespace"), _text(data, "flowId")),
        state=State(_text(state, "current")),
        labels=_labels(data.get("labels")),
        started=_time(state.get("startDate")),
        ended=_time(state.get("endDate")),
        running_since=_running_since(state.get("histories")),
        original_id=data.get("originalId") if isinstance(data.get("originalId"), str) else None,
        triggered=data.get("trigger") is not None,
    )


def _stored_flow(data: Mapping[str, Any]) -> StoredFlow:
    concurrency = data.get("concurrency")
    limits = concurrency if isinstance(concurrency, dict) else {}
    source, limit = data.get("source"), limits.get("limit")
    return StoredFlow(
        source=source if isinstance(source, str) else "",
        disabled=data.get("disabled") is True,
        limit=limit if isinstance(limit, int) else None,
        beyond=str(limits.get("behavior") or "QUEUE"),
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"no {key}")
    return value


def _labels(labels: Any) -> dict[str, str]:
    """An execution's labels; raises `ValueError` where they can't be read.

    An execution that merely looks unlabelled would pass for none of ours, and be created a second
    time.
    """
    if isinstance(labels, dict):
        return {str(key): str(value) for key, value in labels.items()}
    rows = [] if labels is None else labels
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("key"), str) for row in rows
    ):
        raise ValueError("labels of an unknown shape")
    return {row["key"]: str(row.get("value", "")) for row in rows}


def _time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _running_since(histories: Any) -> datetime | None:
    """Since when an execution runs, by its states' history: since it was no longer CREATED or
    QUEUED, or RESTARTED.
    """
    since, over = None, False
    for entry in histories if isinstance(histories, list) else []:
        state = State(str(entry.get("state"))) if isinstance(entry, dict) else State.UNKNOWN
        if state in (State.CREATED, State.QUEUED, State.RESTARTED, State.UNKNOWN):
            continue
        if since is None or (over and not state.terminal):
            since = _time(entry.get("date"))
        over = state.terminal
    return since


def _labelled(labels: Mapping[str, str]) -> dict[str, str]:
    return {f"filters[labels][EQUALS][{key}]": value for key, value in labels.items()}


def _form_value(value: Any) -> str:
    """An input as the text of a form part; Kestra parses it by the input's type."""
    return value if isinstance(value, str) else exact_json.dumps(value)


def _unavailable(operation: str, status: int, said: str) -> str:
    if 300 <= status < 400:
        return f"{operation}: redirected (HTTP {status}); is BRIDGE_KESTRA_URL right?"
    if operation == "create" and status < 500 and status != 429:
        return (
            f"create: HTTP {status}, and not in Kestra's words; is something between us and Kestra?"
        )
    return f"{operation}: {said}"


def _readable(response: httpx.Response, operation: str) -> Execution:
    try:
        return parse_execution(_json(response))
    except ValueError as error:
        raise KestraUnavailable(f"{operation}: the answer can't be read ({error})") from error


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise KestraUnavailable(f"the answer is not JSON (HTTP {response.status_code})") from error


def _object(response: httpx.Response, operation: str) -> dict[str, Any]:
    data = _json(response)
    if not isinstance(data, dict):
        raise KestraUnavailable(f"{operation}: the answer is not a JSON object")
    return data


def _wants_tls(response: httpx.Response) -> bool:
    """Whether a gateway answers a plain request on its port for TLS: nginx, and servers written in
    Go.
    """
    return any(words in response.text for words in ("sent to HTTPS port", "to an HTTPS server"))


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
