"""The stand-in's HTTP server: who is let in, and what a fault makes of an answer."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Self

from aiohttp import web
from pydantic_core import to_json

from tests.support.standin.faults import Fault, Faults
from tests.support.standin.model import (
    JSON,
    LONGEST_REQUEST_LINE,
    Answer,
    Call,
)
from tests.support.standin.operations import Operations
from tests.support.standin.routes import OUTPUTS_APART, operations_at


class Standin(Operations):
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
        self._scheme = "https" if tls else "http"
        super().__init__(version=version, url=f"{self._scheme}://{host}:{port}")
        self.username = username
        self.password = password
        self.token = token
        self.date_skew: timedelta | None = None
        """Of the `Date` of its answers, which a gateway may write; None for the server's own."""
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        self._host, self._port, self._tls = host, port, tls
        self._stopping = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

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
        self.url = f"{self._scheme}://{self._host}:{self._port}"

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

    def _admit(self, call: Call) -> None:
        if len(call.method) + len(call.url) + len(" HTTP/1.1 ") > LONGEST_REQUEST_LINE:
            raise self._refuse("labels=long:")
        given = call.headers.get("Authorization", "")
        credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if given != f"Basic {credentials}" and not (self.token and given == f"Bearer {self.token}"):
            raise self._refuse("401 GET")

    def _operation(self, call: Call) -> tuple[str, ...]:
        """The operation that a request asks for, and what its path names."""
        found = operations_at(call.path, self.series)
        if self.outputs_apart:
            found.update(operations_at(call.path, "2.0", OUTPUTS_APART))
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
