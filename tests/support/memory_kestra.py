"""Kestra in memory: what the consume path asks of it, without HTTP.

    kestra = MemoryKestra()
    kestra.flow("test", "job", Ends("FAILED", error="disk full"))
    kestra.fail("create", KestraAmbiguous("no answer"), worked=True)
    kestra.on_end = service_hears

`tests.support.kestra_suite` holds it to what the client makes of the stand-in, which is held to
real servers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bridge.errors import KestraError, KestraRejected
from bridge.job.attempt import MARK, MARK_LABEL, QUEUE_LABEL
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import DEFAULT_LIMITS, always
from tests.support.standin import Ends

Behaviour = Ends | Callable[[Execution], Ends]


@dataclass(eq=False)
class Failure:
    """What the next requests for an operation raise; with `worked`, after their work is done."""

    operation: str
    error: KestraError
    times: int | None = 1
    worked: bool = False
    hits: int = 0
    when: Callable[[Any], bool] = field(default=lambda _: True)


class MemoryKestra:
    """A Kestra. `requests` counts what it was asked; `on_end` hears of every end.

    While `answers` is cleared, requests wait for it after their work is done.
    """

    def __init__(self) -> None:
        self.up = True
        self.requests: Counter[str] = Counter()
        self.created: list[Execution] = []
        self.executions: dict[str, Execution] = {}
        self.kills: list[str] = []
        self.on_end: Callable[[Execution], None] | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self._flows: dict[FlowName, Behaviour] = {}
        self._ends: dict[str, Ends] = {}
        self._failures: list[Failure] = []
        self._timers: list[asyncio.TimerHandle] = []

    # The test's side.

    def flow(self, namespace: str, flow_id: str, behaviour: Behaviour = Ends()) -> None:  # noqa: B008 (it is frozen)
        """Have a flow, or change how its executions end."""
        self._flows[FlowName(namespace, flow_id)] = behaviour

    def fail(self, operation: str, error: KestraError, **more: Any) -> Failure:
        """Let the next requests fail; `more`: see `Failure`."""
        failure = Failure(operation, error, **more)
        self._failures.append(failure)
        return failure

    def recover(self) -> None:
        """Let nothing fail any more."""
        self._failures.clear()

    async def end(self, execution_id: str, state: str = "SUCCESS") -> None:
        """End an execution, and tell of it."""
        self._end(execution_id, State(state))

    def forget(self, execution_id: str) -> None:
        """Lose an execution without a trace."""
        del self.executions[execution_id]

    def restart(self, execution_id: str) -> None:
        """Run an execution that has ended once more."""
        run = self.executions[execution_id]
        self.executions[execution_id] = replace(run, state=State.RUNNING, ended=None)

    def per_attempt(self) -> Counter[tuple[str, str]]:
        """How often each (job, attempt) was created."""
        labels = [run.labels for run in self.created]
        return Counter((each["bridgeJob"], each["bridgeAttempt"]) for each in labels)

    def executions_of(self, job: str, attempt: int = 1) -> list[Execution]:
        """The executions of an attempt, in the order of their creation."""
        wanted = {"bridgeJob": job, "bridgeAttempt": str(attempt)}
        return [run for run in self.executions.values() if wanted.items() <= run.labels.items()]

    def close(self) -> None:
        """End no execution any more."""
        for timer in self._timers:
            timer.cancel()

    # The bridge's side.

    def now(self) -> datetime:
        """The time by its clock."""
        return datetime.now(UTC)

    def link(self, execution: Execution) -> str:
        """Where a person sees the execution."""
        return f"http://kestra/ui/{execution.id}"

    async def probe(self) -> str:
        """The server's version."""
        await self._request("probe")
        return "2.0.0"

    async def create(self, job: Job, *, permitted: Callable[[], None] = always) -> Execution:
        """Start an execution."""
        permitted()
        failure = self._failure("create", job)
        if failure and not failure.worked:
            raise failure.error
        behaviour = self._flows.get(job.flow)
        if behaviour is None:
            raise KestraRejected(f"Flow not found: {job.flow}")
        run = self._start(job.flow, job.execution_labels, behaviour)
        self.created.append(run)
        if failure:
            raise failure.error
        await self.answers.wait()
        return run

    async def find(self, job: Job, *, since: datetime | None = None) -> list[Execution]:
        """All executions of an attempt."""
        await self._request("find", job)
        found = [run for run in self.executions.values() if job.owns(run)]
        if since is not None:
            found = [run for run in found if run.started and run.started >= since]
        return found

    async def find_attempts(self, job: Job) -> list[Execution]:
        """All executions of a job."""
        await self._request("find_attempts", job)
        return [run for run in self.executions.values() if job.names(run)]

    @property
    def _marked(self) -> list[Execution]:
        """The executions that carry the bridge's mark."""
        return [run for run in self.executions.values() if run.labels.get(MARK_LABEL) == MARK]

    async def unfinished(self) -> list[Execution]:
        """All executions with the bridge's mark that have not ended."""
        await self._request("unfinished")
        return [run for run in self._marked if not run.state.terminal]

    async def oldest_unfinished(self) -> Execution | None:
        """The execution with the bridge's mark that started first and has not ended."""
        await self._request("oldest_unfinished")
        unfinished = [run for run in self._marked if not run.state.terminal]
        return min(unfinished, key=lambda run: run.started or self.now(), default=None)

    async def ended_since(
        self,
        since: datetime,
        page: int = 1,
        *,
        started: datetime | None = None,
        size: int | None = None,
    ) -> tuple[list[Execution], bool]:
        """A page of the bridge's executions that ended since then, the latest end first."""
        await self._request("ended_since")
        found = [run for run in self._marked if run.ended and run.ended >= since]
        if started is not None:
            found = [run for run in found if run.started and run.started >= started]
        found.sort(key=lambda run: run.ended or since, reverse=True)
        size = size or DEFAULT_LIMITS.page_size
        return found[(page - 1) * size : page * size], page * size >= len(found)

    async def has_run(self, queue: str, *, since: datetime) -> bool:
        """Whether an execution of a job of that queue started since then."""
        await self._request("history")
        found = [run for run in self.executions.values() if run.started and run.started >= since]
        return any(run.labels.get(QUEUE_LABEL) == queue for run in found)

    async def get(self, execution_id: str) -> Execution | None:
        """An execution by its id."""
        await self._request("get", execution_id)
        return self.executions.get(execution_id)

    async def kill(self, execution_id: str) -> None:
        """End an execution that runs."""
        self.kills.append(execution_id)
        await self._request("kill", execution_id)
        run = self.executions.get(execution_id)
        if run is None or run.state.terminal:
            return
        if self._ends[execution_id].kill_sticks:
            self.executions[execution_id] = replace(run, state=State.KILLING)
        else:
            self._end(execution_id, State.KILLED)

    async def outputs(self, execution: Execution) -> dict[str, Any]:
        """The flow's outputs."""
        await self._request("outputs", execution.id)
        return dict(self._ends[execution.id].outputs or {})

    async def explain(self, execution: Execution) -> str:
        """Why an execution did not end well."""
        await self._request("explain", execution.id)
        return f"task work ended {execution.state}: {self._ends[execution.id].error}"

    # Inside.

    def _failure(self, operation: str, about: Any) -> Failure | None:
        self.requests[operation] += 1
        for failure in self._failures:
            spent = failure.times is not None and failure.hits >= failure.times
            if failure.operation == operation and not spent and failure.when(about):
                failure.hits += 1
                return failure
        return None

    async def _request(self, operation: str, about: Any = None) -> None:
        failure = self._failure(operation, about)
        if failure:
            raise failure.error

    def _start(self, flow: FlowName, labels: dict[str, str], behaviour: Behaviour) -> Execution:
        now = self.now()
        run = Execution(
            id=f"execution-{len(self.executions) + 1}",
            flow=flow,
            state=State.RUNNING,
            labels=labels,
            started=now,
            running_since=now,
        )
        ends = behaviour if isinstance(behaviour, Ends) else behaviour(run)
        if not ends.starts:
            run = replace(run, state=State.CREATED, running_since=None)
        self.executions[run.id] = run
        self._ends[run.id] = ends
        if ends.after is not None:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(ends.after, self._end, run.id, State(ends.state)))
        return run

    def _end(self, execution_id: str, state: State) -> None:
        run = self.executions.get(execution_id)
        if run is None or run.state.terminal:
            return
        run = self.executions[execution_id] = replace(run, state=state, ended=self.now())
        if self.on_end is not None:
            self.on_end(run)
