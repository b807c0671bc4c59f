"""Wait for an execution's end, and make sure that it is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import structlog

from bridge.consume.completions import CompletionRouter
from bridge.consume.deadline import Deadline, Enforcer, KillPolicy, idle_seconds
from bridge.consume.lookup import Lookup
from bridge.consume.ports import KestraPort
from bridge.consume.reports import Completion
from bridge.consume.starter import Started
from bridge.errors import REFUSALS, KestraError
from bridge.job.execution import Execution, Outcome, State
from bridge.job.job import Job
from bridge.job.machine_loss import says_machine_lost
from bridge.retrying import BackOff, Retrying, failing_for, retry
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitPolicy:
    """How an end is waited for and confirmed. Times in seconds.

    `job_timeout` is the time of a job that names none.

    A failure counts once it has stood for `confirm_after`: Kestra 2.0 tells FAILED and, 20 ms
    later, RETRIED of the same execution. It is not waited for where the end is `long_ago`. The
    successor of a RETRIED execution has to show within `successor_within`. `gone_after` looks must
    miss an execution before it counts as deleted: a clustered Kestra may show it late.

    An end that can't be confirmed, because Kestra refuses the look-up, counts as it was told once
    the refusals have lasted for `refused_for`. `refusals` are the pauses between the looks.
    """

    job_timeout: float = 21_600.0
    confirm_after: float = 1.0
    long_ago: float = 60.0
    successor_within: float = 60.0
    gone_after: int = 3
    refused_for: float = 30.0
    refusals: BackOff = field(default_factory=lambda: BackOff(shortest=0.5, first=2.0, longest=8.0))
    kill: KillPolicy = field(default_factory=KillPolicy)


class Vanished(Exception):
    """Kestra has no trace of an execution that it had: somebody deleted it, or it lost its
    database.

    What it had started may still run, so the job is not started again without an operator's word.
    """

    def __init__(self, execution_id: str) -> None:
        super().__init__(
            f"execution {execution_id} is gone from Kestra, and whether what it started still "
            "runs is unknown; once "
            "nothing does, a replay starts the job again"
        )


class OutcomeWaiter:
    """Waits for the outcomes of executions."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        completions: CompletionRouter,
        lookup: Lookup,
        metrics: Metrics,
        policy: WaitPolicy = WaitPolicy(),
    ) -> None:
        self._kestra = kestra
        self._completions = completions
        self._lookup = lookup
        self._policy = policy
        # A stop does not end the wait for an outcome; the drain's cancellation does.
        self._retrying = Retrying()
        self._enforcer = Enforcer(
            kestra=kestra,
            completions=completions,
            metrics=metrics,
            retrying=self._retrying,
            policy=policy.kill,
        )

    async def outcome(self, job: Job, started: Started) -> Outcome:
        """How the attempt ended, however long that takes; it is killed at the job's deadline.

        Raises:
            Vanished: the execution is gone from Kestra.
        """
        execution = started.execution
        deadline = self._deadline(job, started)
        while True:
            if not execution.state.terminal:
                execution = await self._until_end(execution, deadline)
            if execution.state.ended_well:
                return Outcome(execution=execution)
            confirmed = await self._confirm(job, execution)
            if confirmed.state.terminal:
                return await self._bad_end(confirmed, deadline)
            if confirmed.id != execution.id:
                deadline.waited += await self._waited(execution.id)
            execution = confirmed

    def _deadline(self, job: Job, started: Started) -> Deadline:
        began = started.execution.started or self._kestra.now()
        return Deadline(
            limit=job.timeout or self._policy.job_timeout,
            began=began,
            by_kestras_clock=started.adopted,
            elapsed=self._elapsed_since(started.created_at, began),
        )

    def _elapsed_since(self, created_at: float | None, began: datetime) -> Callable[[], float]:
        """A function that tells an attempt's age in seconds.

        It goes by our monotonic clock where we created the execution, else by Kestra's.
        """

        def elapsed() -> float:
            if created_at is not None:
                return time.monotonic() - created_at
            return (self._kestra.now() - began).total_seconds()

        return elapsed

    async def _waited(self, execution_id: str) -> float:
        """For how long an execution that has ended stood still; 0 where Kestra doesn't tell."""
        question = partial(self._kestra.get, execution_id)
        try:
            execution = await self._retrying.unless_refused.ask(question)
        except REFUSALS:
            return 0.0
        return idle_seconds(execution) if execution else 0.0

    async def _until_end(self, execution: Execution, deadline: Deadline) -> Execution:
        """The execution once it has ended. When its time is up it is killed, and still waited for.

        Raises:
            Vanished: it is gone from Kestra.
        """
        with self._completions.waiting_for(execution.id) as waiter:
            while deadline.left(execution) > 0:
                with suppress(TimeoutError):
                    seconds = self._enforcer.next_look(deadline, execution)
                    return _ended(execution, await waiter.next(timeout=seconds))
            async with asyncio.TaskGroup() as group:
                enforcing = group.create_task(self._enforcer.enforce(execution.id, deadline))
                completion = await waiter.next()
                enforcing.cancel()
            return _ended(execution, completion)

    async def _confirm(self, job: Job, execution: Execution) -> Execution:
        """The attempt's execution, once a bad end is confirmed.

        It is the same one, the same one restarted, or another one that followed it.

        Raises:
            Vanished: Kestra does not know it any more.
        """
        if not self._ended_long_ago(execution):
            await asyncio.sleep(self._policy.confirm_after)
        give_up, misses = time.monotonic() + self._policy.successor_within, 0
        while True:
            current = await self._current_or_told(job, execution)
            if current is None:
                misses += 1
                if misses >= self._policy.gone_after:
                    raise Vanished(execution.id)
            elif current.state is not State.RETRIED:
                return current
            elif time.monotonic() > give_up:
                return replace(current, state=State.FAILED)
            await asyncio.sleep(self._policy.confirm_after)

    def _ended_long_ago(self, execution: Execution) -> bool:
        if execution.ended is None:
            return False
        return (self._kestra.now() - execution.ended).total_seconds() >= self._policy.long_ago

    async def _current_or_told(self, job: Job, execution: Execution) -> Execution | None:
        """The attempt's execution as it is now; `execution` itself where Kestra goes on refusing.

        A slot is not held for long beyond the end. But a refusal can pass, and the flow's own retry
        can follow an end.
        """
        try:
            return await retry(
                partial(self._current, job, execution),
                on=REFUSALS,
                wait=self._policy.refusals,
                stop=failing_for(self._policy.refused_for),
            )
        except REFUSALS as error:
            log.error(
                "an end can't be confirmed, it counts as it was told",
                execution=execution.id,
                error=str(error),
            )
            return execution

    async def _current(self, job: Job, execution: Execution) -> Execution | None:
        """The attempt's execution as it is now, by a look-up, else by its id.

        Raises:
            KestraDenied, KestraIncompatible: Kestra refuses both.
        """
        retrying = self._retrying.unless_refused
        try:
            if found := await self._lookup.current(job, retrying=retrying):
                return found
        except REFUSALS as error:
            log.error(
                "a look-up is refused, an end is confirmed without it",
                execution=execution.id,
                error=str(error),
            )
        return await retrying.ask(partial(self._kestra.get, execution.id))

    async def _bad_end(self, execution: Execution, deadline: Deadline) -> Outcome:
        if execution.state is State.KILLED and deadline.used_up(execution):
            error = f"killed after its time of {deadline.limit:g} s was up"
            return Outcome(execution=execution, timed_out=True, error=error)
        error = await self._explain(execution)
        is_lost = execution.state is State.FAILED and says_machine_lost(error)
        return Outcome(execution=execution, machine_lost=is_lost, error=error)

    async def _explain(self, execution: Execution) -> str:
        """Kestra's own reason, if it gives one at the first try.

        The wait for a turn to ask has no limit. Where many executions fail at once, the last of
        them have a reason too, and it may be a lost machine.
        """
        try:
            return await self._kestra.explain(execution)
        except KestraError as error:
            log.warning(
                "no reason to be had for a bad end", execution=execution.id, error=str(error)
            )
            return f"execution {execution.id} ended {execution.state}"


def _ended(execution: Execution, completion: Completion) -> Execution:
    if completion.state is None:
        raise Vanished(execution.id)
    return replace(execution, state=completion.state, ended=completion.ended)
