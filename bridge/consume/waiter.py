"""Wait for an execution's end, and make sure that it is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Self

import structlog
from prometheus_client import Gauge

from bridge.consume.completions import Completion, CompletionRouter
from bridge.consume.starter import Patience, Started, Starter
from bridge.errors import REFUSALS, KestraError
from bridge.job.execution import Execution, Outcome, State
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics

CONFIRM_AFTER = 1.0
"""A failure counts once it has stood so many seconds: Kestra 2.0 tells FAILED and, 20 ms later,
RETRIED of the same."""

CONFIRMED_LONG_AGO = 60.0
GONE_AFTER = 3
"""Looks that must miss an execution before it counts as deleted: a clustered Kestra may show it
late."""

SUCCESSOR_WITHIN = 60.0
KILL_AGAIN_AFTER = (15.0, 300.0)
"""Seconds from a kill to the next one, at first and at most: a kill can stick in KILLING
(kestra#19683)."""

LOOK_AGAIN_AFTER = 15.0
"""Seconds between looks at an execution that is beyond its time and that Kestra has not begun to
run, and between looks at the clock: how far Kestra's is from ours may become known only while a
job's time runs."""

EXPLAIN_SECONDS = 10.0
NOT_BEGUN = {
    State.CREATED: "an execution is beyond its time and Kestra has not started it; "
    "does its executor run?",
    State.RESTARTED: "an execution is beyond its time and Kestra has not restarted it; "
    "does its executor run?",
    State.QUEUED: "an execution is beyond its time and waits for others; is a concurrency limit "
    "below the prefetch?",
}
"""The states in which an execution does not run yet, and what is said of one that is beyond its
time."""

log = structlog.get_logger(__name__)


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


@dataclass(slots=True)
class Attempt:
    """The time that an attempt has, and whether this replica killed it when that was up. Seconds.

    It begins with the attempt's first execution. It stands still while Kestra has created an
    execution, or restarted it, and does not run it yet, and from an execution's end to its restart
    by an operator.
    """

    limit: float
    began: datetime
    """When the first execution was created, by Kestra's clock."""
    by_kestras_clock: bool
    """Whether its age goes by Kestra's clock, of which more may become known while it runs."""
    elapsed: Callable[[], float]
    """How long ago that was."""
    killed: bool = False
    waited: float = 0.0
    """For how long executions stood still that the flow's retry has followed by others."""

    def left(self, execution: Execution) -> float:
        """How much of its time an execution has left."""
        return self.limit + self.waited + _idle(execution) - self.elapsed()

    def used_up(self, execution: Execution) -> bool:
        """Whether an execution that was killed had used up its time, by Kestra's own times, or by
        this replica's kill.

        So a replica that finds an execution killed by another one at its deadline comes to the same
        outcome.
        """
        if self.killed or execution.ended is None:
            return self.killed
        slack = min(2.0, self.limit / 10)
        age = (execution.ended - self.began).total_seconds()
        return age - self.waited - _idle(execution) >= self.limit - slack


class Stuck:
    """Counts, in a gauge by reason, an execution that is beyond its time and does not end, until
    the block is left.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._why: str | None = None

    def note(self, why: str | None) -> None:
        """Say why it does not end now; None where it still has time."""
        if self._why:
            self._gauge.labels(self._why).dec()
        if why:
            self._gauge.labels(why).inc()
        self._why = why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.note(None)


class OutcomeWaiter:
    """Waits for executions' outcomes. Times in seconds."""

    def __init__(
        self,
        *,
        kestra: Kestra,
        watch: CompletionRouter,
        starter: Starter,
        metrics: Metrics,
        job_timeout: float,
        kill_again_after: tuple[float, float] = KILL_AGAIN_AFTER,
        look_again_after: float = LOOK_AGAIN_AFTER,
    ) -> None:
        self._kestra = kestra
        self._watch = watch
        self._starter = starter
        self._metrics = metrics
        self._job_timeout = job_timeout
        self._kill_again_after = kill_again_after
        self._look_again_after = look_again_after
        self.patience = Patience()

    async def outcome(self, job: Job, started: Started) -> Outcome:
        """How the attempt ended, however long that takes; it is killed at the job's deadline.

        Raises:
            Vanished: the execution is gone from Kestra.
        """
        execution = started.execution
        began = execution.started or self._kestra.now()
        limit = job.timeout or self._job_timeout
        attempt = Attempt(
            limit, began, started.adopted, self._elapsed_since(started.created_at, began)
        )
        while True:
            if not execution.state.terminal:
                execution = await self._until_end(execution, attempt)
            if execution.state.ended_well:
                return Outcome(execution=execution)
            confirmed = await self._confirm(job, execution)
            if confirmed.state.terminal:
                return await self._bad_end(confirmed, attempt)
            if confirmed.id != execution.id:
                attempt.waited += await self._waited(execution.id)
            execution = confirmed

    async def _waited(self, execution_id: str) -> float:
        """For how long an execution that has ended stood still; 0 where Kestra doesn't tell."""
        try:
            execution = await self.patience.unless_refused.ask(
                partial(self._kestra.get, execution_id)
            )
        except REFUSALS:
            return 0.0
        return _idle(execution) if execution else 0.0

    def _elapsed_since(self, created_at: float | None, began: datetime) -> Callable[[], float]:
        """How an attempt's age is told: by our monotonic clock where we created its execution, else
        by Kestra's.
        """

        def elapsed() -> float:
            if created_at is not None:
                return time.monotonic() - created_at
            return (self._kestra.now() - began).total_seconds()

        return elapsed

    async def _until_end(self, execution: Execution, attempt: Attempt) -> Execution:
        """The execution once it has ended. It is killed when its time is up, and waited for all the
        same.
        """
        with self._watch.follow(execution.id) as follower:
            while attempt.left(execution) > 0:
                with suppress(TimeoutError):
                    return _ended(
                        execution,
                        await follower.completion(timeout=self._next_look(attempt, execution)),
                    )
            async with asyncio.TaskGroup() as group:
                enforcing = group.create_task(self._enforce_deadline(execution.id, attempt))
                news = await follower.completion()
                enforcing.cancel()
            return _ended(execution, news)

    async def _enforce_deadline(self, execution_id: str, attempt: Attempt) -> None:
        """Kill an execution whose time is up, and again with growing pauses, until it has ended.

        Its slot stays taken meanwhile: beside an execution that can still run, no other attempt may
        begin.
        """
        pause, longest = self._kill_again_after
        with Stuck(self._metrics.stuck) as stuck:
            while True:
                current = await self.patience.ask(partial(self._kestra.get, execution_id))
                if current is None:
                    # Whether it is gone for good the sweep finds out, which looks more than once.
                    await asyncio.sleep(self._look_again_after)
                elif current.state.terminal:
                    self._watch.tell(
                        Completion(
                            execution_id=execution_id, state=current.state, ended=current.ended
                        )
                    )
                    return
                elif current.state in NOT_BEGUN:
                    await self._wait_for_a_start(current, stuck)
                elif attempt.left(current) > 0:
                    stuck.note(None)
                    await asyncio.sleep(self._next_look(attempt, current))
                else:
                    await self._kill(execution_id, attempt, stuck)
                    await asyncio.sleep(pause)
                    if attempt.killed:
                        pause = min(pause * 2, longest)

    def _next_look(self, attempt: Attempt, execution: Execution) -> float:
        """Seconds until an execution's time may be up."""
        left = attempt.left(execution)
        return min(left, self._look_again_after) if attempt.by_kestras_clock else left

    async def _wait_for_a_start(self, execution: Execution, stuck: Stuck) -> None:
        stuck.note("never_started")
        log.error(
            NOT_BEGUN[execution.state], execution=execution.id, created=str(execution.started)
        )
        await asyncio.sleep(self._look_again_after)

    async def _kill(self, execution_id: str, attempt: Attempt, stuck: Stuck) -> None:
        """Ask for a kill; what goes wrong is said and not raised, since the caller asks again."""
        if attempt.killed:
            stuck.note("kill_without_effect")
            log.error("an execution goes on after a kill, killing it again", execution=execution_id)
        else:
            log.warning("the job's time is up, killing its execution", execution=execution_id)
        try:
            await self._kestra.kill(execution_id)
            attempt.killed = True
        except REFUSALS as error:
            stuck.note("kill_refused")
            log.error(
                "a kill is refused, asking again later", execution=execution_id, error=str(error)
            )
        except KestraError as error:
            stuck.note("kill_unanswered")
            log.warning(
                "a kill is not answered, asking again later",
                execution=execution_id,
                error=str(error),
            )

    async def _confirm(self, job: Job, execution: Execution) -> Execution:
        """What became of an execution that is said to have ended badly: the same, restarted, or
        followed by another.
        """
        ended = execution.ended
        if ended is None or (self._kestra.now() - ended).total_seconds() < CONFIRMED_LONG_AGO:
            await asyncio.sleep(CONFIRM_AFTER)
        give_up, misses = time.monotonic() + SUCCESSOR_WITHIN, 0
        while True:
            current = await self._current(job, execution)
            if current is None:
                misses += 1
                if misses >= GONE_AFTER:
                    raise Vanished(execution.id)
            elif current.state is not State.RETRIED:
                return current
            elif time.monotonic() > give_up:
                return replace(current, state=State.FAILED)
            await asyncio.sleep(CONFIRM_AFTER)

    async def _current(self, job: Job, execution: Execution) -> Execution | None:
        """The job's execution as it stands: by a look-up, else by its id, and as it was told where
        Kestra refuses both.

        An end that can't be confirmed settles the delivery all the same: a slot is not held beyond
        the end.
        """
        patience = self.patience.unless_refused
        try:
            if found := await self._starter.find(job, patience):
                return found
        except REFUSALS as error:
            log.error(
                "a look-up is refused, an end is confirmed without it",
                execution=execution.id,
                error=str(error),
            )
        try:
            return await patience.ask(partial(self._kestra.get, execution.id))
        except REFUSALS:
            return execution

    async def _bad_end(self, execution: Execution, attempt: Attempt) -> Outcome:
        if execution.state is State.KILLED and attempt.used_up(execution):
            error = f"killed after its time of {attempt.limit:g} s was up"
            return Outcome(execution=execution, timed_out=True, error=error)
        return Outcome(execution=execution, error=await self._explain(execution))

    async def _explain(self, execution: Execution) -> str:
        """The reason in Kestra's words where they can be had soon; a settlement doesn't wait for
        them.
        """
        try:
            async with asyncio.timeout(EXPLAIN_SECONDS):
                return await self._kestra.explain(execution)
        except (KestraError, TimeoutError) as error:
            log.warning(
                "no reason to be had for a bad end", execution=execution.id, error=str(error)
            )
            return f"execution {execution.id} ended {execution.state}"


def _idle(execution: Execution) -> float:
    """Seconds from an execution's creation to when it began to run, or to run again after a
    restart.
    """
    if execution.running_since is None or execution.started is None:
        return 0.0
    return (execution.running_since - execution.started).total_seconds()


def _ended(execution: Execution, news: Completion) -> Execution:
    if news.state is None:
        raise Vanished(execution.id)
    return replace(execution, state=news.state, ended=news.ended)
