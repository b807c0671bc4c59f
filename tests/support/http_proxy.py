"""An HTTP proxy in front of a real server that can answer in its place, before or after the work is
done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import httpx
from aiohttp import web

Answer = web.Response
Forward = Callable[[], Awaitable[Answer]]
Rule = Callable[[web.Request, Forward], Awaitable[Answer]]


class HttpProxy:
    """Forwards every request to `target`, unless a rule takes it; the first that fits wins, and
    serves once."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._runner: web.AppRunner | None = None
        self._client = httpx.AsyncClient(base_url=target, timeout=60)
        self.rules: list[tuple[str, str, Rule]] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def once(self, method: str, path_part: str, rule: Rule) -> None:
        """Let a rule take the next request of that method whose path contains that part."""
        self.rules.append((method, path_part, rule))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        body = await request.read()

        async def forward() -> Answer:
            headers = {
                key: value
                for key, value in request.headers.items()
                if key.lower() not in ("host", "connection")
            }
            answer = await self._client.request(
                request.method, str(request.rel_url), headers=headers, content=body
            )
            kept = {
                key: value
                for key, value in answer.headers.items()
                if key.lower() in ("content-type", "date")
            }
            return web.Response(status=answer.status_code, body=answer.content, headers=kept)

        for rule in self.rules:
            method, part, act = rule
            if method == request.method and part in request.path:
                self.rules.remove(rule)
                return await act(request, forward)
        return await forward()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        await self._client.aclose()


async def gateway_timeout_after_the_work(_: web.Request, forward: Forward) -> Answer:
    """The work is done, and the answer is 504 in Kestra's words."""
    await forward()
    return web.json_response(
        {"message": "Operation timed out waiting for state transition"}, status=504
    )


async def gateway_timeout_without_the_work(_: web.Request, __: Forward) -> Answer:
    """Nothing is done, and the answer is 504 in Kestra's words."""
    return web.json_response(
        {"message": "Operation timed out waiting for state transition"}, status=504
    )


def late(seconds: float) -> Rule:
    """The work is done at once, and the answer comes so many seconds later."""

    async def rule(_: web.Request, forward: Forward) -> Answer:
        answer = await forward()
        await asyncio.sleep(seconds)
        return answer

    return rule
