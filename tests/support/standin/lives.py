"""Executions from their creation to their end, and the search for them."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

from tests.contract.flows import Series
from tests.support.standin.answers import refusal
from tests.support.standin.model import (
    AT_ONCE,
    RETRIED_AFTER,
    TERMINAL,
    Answer,
    Behaviour,
    Ends,
    Flow,
    Run,
)
from tests.support.standin.replies import Replies
from tests.support.standin.search import Filter


class Lives:
    """Executions and what becomes of them; a test steers them by these methods."""

    def __init__(self, *, version: str) -> None:
        self.version = version
        self.skew = timedelta()
        self.replies = Replies()
        self.executions: dict[str, Run] = {}
        self._halted = False
        self._flows: dict[tuple[str, str], Flow] = {}
        self._by_label: defaultdict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
        self._open: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()

    @property
    def series(self) -> Series:
        return "1.3" if self.version.startswith(("0.", "1.")) else "2.0"

    def flow(
        self, namespace: str, flow_id: str, behaviour: Behaviour = AT_ONCE, **more: Any
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

    def _refuse(self, like: str, *changes: tuple[str, str]) -> Answer:
        return refusal(self.series, like, *changes)


def _once_less(ends: Ends) -> Ends:
    return replace(ends, retries=ends.retries - 1)
