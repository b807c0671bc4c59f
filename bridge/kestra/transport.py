"""Requests to Kestra over HTTP, and the one place where httpx's errors become the bridge's."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import structlog

from bridge import __version__, http_dates
from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraUnavailable,
    SettingsError,
)
from bridge.kestra.answers import Answer, Meaning, Words, judge
from bridge.kestra.clock import ServerClock
from bridge.kestra.limits import RequestLimits
from bridge.kestra.refusals import RefusedRequest
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics

HEADERS: Mapping[str, str] = {
    "User-Agent": f"kestra-bridge/{__version__}",
    # Kestra answers a kill as `text/json`, and refuses a client that accepts only
    # `application/json` with 406 (1.3, 2.0).
    "Accept": "application/json, text/json",
}

_FOR_ALL = frozenset(("ended", "oldest", "probe", "sweep"))
"""The operations that ask for all jobs together."""

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_ALL_ERRORS = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    httpx.CookieConflict,
    ssl.SSLError,
)

log = structlog.get_logger(__name__)


def always() -> None:
    """Permit what is asked."""


class KestraAuth(httpx.Auth):
    """Adds the credentials to each request, as the settings or their files hold them then."""

    def __init__(self, settings: KestraSettings) -> None:
        self._settings = settings

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The request with its credentials.

        Raises:
            SettingsError: a file can't be used.
        """
        self._settings = self._settings.refreshed(KestraSettings)
        username, password = self._settings.kestra_username, self._settings.kestra_password
        token = self._settings.kestra_token
        if username and password:
            basic = httpx.BasicAuth(username, password.get_secret_value())
            yield from basic.auth_flow(request)
            return
        if token:
            request.headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        yield request


class Transport:
    """Requests to one tenant of one Kestra server.

    `up` is whether the last request was answered, and without refusing the credentials. `clock`
    follows the server's.
    """

    def __init__(
        self,
        settings: KestraSettings,
        metrics: Metrics | None,
        limits: RequestLimits,
        http: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.up = False
        self.clock = ServerClock()
        self._url = settings.kestra_url
        self._tenant = settings.kestra_tenant
        self._metrics = metrics
        self._creating = asyncio.Semaphore(limits.concurrent_creates)
        self._asking = asyncio.Semaphore(limits.concurrent_questions)
        self._asking_for_all = asyncio.Semaphore(limits.concurrent_for_all)
        self._create_timeout = httpx.Timeout(limits.create_timeout)
        self._timeout = httpx.Timeout(limits.read_timeout, connect=limits.connect_timeout)
        self._doubted = False
        self._tls = settings.kestra_tls
        self._context: ssl.SSLContext | None = None
        if self._url.startswith("https://"):
            try:
                self._context = self._tls.context()
            except ValueError as error:
                raise KestraDenied(str(error)) from error
        self._http = httpx.AsyncClient(
            auth=KestraAuth(settings),
            # A gateway's cookie must neither pin the bridge to one node nor open a session.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers=HEADERS,
            verify=self._context or True,
            transport=http,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def renew_certificates(self) -> None:
        """Let connections from now on use the certificates as their files hold them now.

        Raises:
            KestraDenied: a file can't be used.
        """
        if self._context is None:
            return
        try:
            self._tls.renew(self._context)
        except ValueError as error:
            raise KestraDenied(str(error)) from error

    async def read(self, operation: str, method: str, path: str, **request: Any) -> Answer:
        """The answer to a request whose subject Kestra must know; otherwise the same as `send`."""
        answer = await self.send(operation, method, path, **request)
        assert answer is not None, f"{operation} has no absence"
        return answer

    async def send(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        in_tenant: bool = True,
        permitted: Callable[[], None] = always,
        **request: Any,
    ) -> Answer | None:
        """The answer to one request; None where Kestra says that its subject does not exist.

        `operation` is the name in the metrics, by which the answer is judged. `path` is below the
        tenant, or without `in_tenant` below the API. `permitted` is called right before the request
        is sent. `request` are httpx's parameters.

        Raises:
            KestraError: any other answer, or none.
        """
        root = f"{self._url}/api/v1"
        if in_tenant:
            root = f"{root}/{self._tenant}"
        timeout, limit = self._timeout, None
        if operation == "create":
            timeout, limit = self._create_timeout, self._create_timeout.read
        async with self._turn(operation):
            permitted()
            began = time.perf_counter()
            status: int | None = None
            try:
                # httpx's limits are for each step of a request.
                async with asyncio.timeout(limit):
                    response = await self._http.request(
                        method, f"{root}{path}", timeout=timeout, **request
                    )
                status = response.status_code
            except SettingsError as error:
                raise KestraDenied(str(error)) from error
            except (*_ALL_ERRORS, TimeoutError) as error:
                raise await self._unanswered(operation, error) from error
            finally:
                seconds = time.perf_counter() - began
                self._note_request(operation, status, seconds)
        self._note_clock(response.headers.get("Date"))
        if response.is_success:
            return Answer(
                operation=operation,
                status=response.status_code,
                body=response.content,
                seconds=seconds,
            )
        refusal = self._refusal(operation, response)
        if refusal is None:
            return None
        raise refusal

    def _turn(self, operation: str) -> asyncio.Semaphore:
        """What a request of that kind waits for before it is sent."""
        if operation == "create":
            return self._creating
        return self._asking_for_all if operation in _FOR_ALL else self._asking

    def _refusal(self, operation: str, response: httpx.Response) -> KestraError | None:
        """The error for a refusal; None where it says that the subject does not exist."""
        words = Words.read(response.content)
        meaning = judge(operation, response.status_code, words)
        if meaning is Meaning.ABSENT:
            return None
        only_an_operator_can_help = meaning in (Meaning.DENIED, Meaning.INCOMPATIBLE)
        if only_an_operator_can_help and self._metrics is not None:
            self._metrics.kestra_refused.labels(operation).inc()
        refused = RefusedRequest(
            operation=operation,
            url=self._url,
            tenant=self._tenant,
            status=response.status_code,
            body=response.content,
            words=words,
            retry_after=http_dates.seconds_until(response.headers.get("Retry-After")),
        )
        return refused.error(meaning)

    async def _unanswered(self, operation: str, error: Exception) -> KestraError:
        """The error for a request that got no answer."""
        why = " ".join(str(error).split()) or type(error).__name__
        never_sent = isinstance(error, _NEVER_SENT)
        if operation == "create" and not never_sent:
            # It may have been done, whatever became of the connection after that.
            return KestraAmbiguous(f"create: no answer from Kestra at {self._url}: {why}")
        trouble = self._tls.trouble(error)
        cut_off = isinstance(error, (httpx.ReadError, httpx.RemoteProtocolError))
        if trouble is None and operation == "probe" and cut_off:
            trouble = await self._tls.why_cut_off_at(self._url, self._context)
        if trouble:
            return KestraDenied(f"Kestra at {self._url}: {trouble}")
        if never_sent:
            return KestraUnavailable(f"can't reach Kestra at {self._url}: {why}")
        return KestraUnavailable(f"{operation}: no answer from Kestra at {self._url}: {why}")

    def _note_request(self, operation: str, status: int | None, seconds: float) -> None:
        if status is None:
            self.up = False
            code = "none"
        else:
            self.up = status < 500 and status not in (401, 403)
            code = str(status)
        if self._metrics is None:
            return
        self._metrics.kestra_request_seconds.labels(operation, code).observe(seconds)
        self._metrics.kestra_up.set(int(self.up))

    def _note_clock(self, date: str | None) -> None:
        self.clock.note_header(date)
        if self.clock.doubtful and not self._doubted:
            log.warning(
                "the Date of Kestra's answers is far from this machine's clock; "
                "deadlines don't go by it",
                date=date,
                url=self._url,
            )
        self._doubted = self.clock.doubtful
