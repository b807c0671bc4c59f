"""One Kestra server as the bridge uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import httpx

from bridge.job.execution import Execution
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra.executions import ExecutionApi
from bridge.kestra.flow_api import FlowApi
from bridge.kestra.limits import DEFAULT_LIMITS, RequestLimits
from bridge.kestra.logs import LogApi
from bridge.kestra.server import KestraServer
from bridge.kestra.transport import Transport, always
from bridge.settings import KestraSettings
from bridge.telemetry.metrics import Metrics


class Listings:
    """What is asked about the executions of all jobs at once."""

    executions: ExecutionApi

    async def unfinished(self) -> list[Execution]:
        """All executions that carry the bridge's mark and have not ended, of every replica."""
        return await self.executions.unfinished()

    async def oldest_unfinished(self) -> Execution | None:
        """The one of the bridge's executions that started first and has not ended, if any."""
        return await self.executions.oldest_unfinished()

    async def ended_since(
        self,
        since: datetime,
        page: int = 1,
        *,
        started: datetime | None = None,
        size: int | None = None,
    ) -> tuple[list[Execution], bool]:
        """A page of the bridge's executions that ended since then, and whether it is the last."""
        return await self.executions.ended_since(since, page, started=started, size=size)


class Kestra(Listings, AbstractAsyncContextManager["Kestra"]):
    """A client for one tenant of one Kestra server, 1.x or 2.x. Use it as an async context manager.

    What a consumer asks for stands here; the rest is in `executions`, `flows` and `logs`. `clock`
    follows the server's clock, and `server` knows its version.

    Every method raises `KestraDenied` when Kestra refuses the credentials, `KestraIncompatible`
    when it refuses the form of a request, and `KestraUnavailable` when it can't answer; a method
    that raises more says so. No httpx error leaves this class.
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
        self._transport = Transport(settings, metrics, limits, transport)
        self.limits = limits
        self.clock = self._transport.clock
        self.server = KestraServer(self._transport, settings.kestra_url)
        self.executions = ExecutionApi(self._transport, self.server, limits.page_size)
        self.flows = FlowApi(self._transport)
        self.logs = LogApi(self._transport, self.server)

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    @property
    def up(self) -> bool:
        """Whether the last request was answered, and without refusing the credentials."""
        return self._transport.up

    def now(self) -> datetime:
        """The time by Kestra's clock, to about a second."""
        return self.clock.now()

    def link(self, execution: Execution) -> str:
        """The address at which a person sees the execution."""
        return execution_url(self._settings, execution.flow, execution.id)

    async def probe(self) -> str:
        """The server's version, once it is certain that the tenant lets us in.

        From here on the version decides how the server is spoken to, and new connections use the
        certificates as their files hold them now.
        """
        return await self.server.probe()

    async def create(self, job: Job, *, permitted: Callable[[], None] = always) -> Execution:
        """The execution of this (job, attempt), which this starts.

        `permitted` is called right before the request is sent, when its turn has come.

        Raises:
            Exception: what `permitted` raises; nothing was sent.
            KestraRejected: Kestra will never start it; nothing was created.
            KestraAmbiguous: no usable answer; the execution may exist, now or in a moment.
        """
        return await self.executions.create(job, permitted=permitted)

    async def find(self, job: Job, *, since: datetime | None = None) -> list[Execution]:
        """All executions of this attempt that started since then."""
        return await self.executions.find(job, since=since)

    async def find_attempts(self, job: Job) -> list[Execution]:
        """All executions of this job, of any attempt."""
        return await self.executions.find_attempts(job)

    async def has_run(self, queue: str, *, since: datetime) -> bool:
        """Whether an execution of a job of that queue started since then."""
        return await self.executions.has_run(queue, since=since)

    async def get(self, execution_id: str) -> Execution | None:
        """The execution of that id, or None where Kestra doesn't know it (any more)."""
        return await self.executions.get(execution_id)

    async def kill(self, execution_id: str) -> None:
        """Ask Kestra to kill an execution and what it started; no error where it has ended."""
        await self.executions.kill(execution_id)

    async def outputs(self, execution: Execution) -> dict[str, Any]:
        """The flow's outputs; empty where it has none, or where Kestra doesn't have them."""
        return await self.executions.outputs(execution)

    async def explain(self, execution: Execution) -> str:
        """Why an execution did not end well, on one line: the failed task and its last errors."""
        return await self.logs.explain(execution)


def execution_url(settings: KestraSettings, flow: FlowName, execution_id: str) -> str:
    """The address at which a person sees an execution."""
    tenant = f"{settings.kestra_url}/ui/{settings.kestra_tenant}"
    return f"{tenant}/executions/{flow.namespace}/{flow.id}/{execution_id}"
