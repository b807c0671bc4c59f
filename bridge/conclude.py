"""Wait for an execution's end, and make sure that it is one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from bridge.errors import KestraError
from bridge.execution import Execution, Outcome, State
from bridge.job import Job
from bridge.kestra import Kestra
from bridge.replies import Follower, News, Watch
from bridge.start import Patience, Starter

CONFIRM_AFTER = 1.0
"""A failure counts once it has stood so many seconds: Kestra 2.0 tells FAILED and, 20 ms later, RETRIED of the same."""

SUCCESSOR_WITHIN = 60.0
KILL_ROUNDS = 4
KILL_ROUND_SECONDS = 15.0
EXPLAIN_SECONDS = 10.0

log = structlog.get_logger(__name__)


class KillStuck(Exception):
    """Kestra was told to kill an execution, several times, and it still hasn't ended."""


class Vanished(Exception):
    """Kestra has no trace of an execution that it had: somebody deleted it, or it lost its database."""


class Concluder:
    """Waits for executions' outcomes. Times in seconds."""

    def __init__(
        self,
        *,
        kestra: Kestra,
        watch: Watch,
        starter: Starter,
        job_timeout: float,
        kill_round: float = KILL_ROUND_SECONDS,
    ) -> None:
        self._kestra = kestra
        self._watch = watch
        self._starter = starter
        self._job_timeout = job_timeout
        self._kill_round = kill_round
        self.patience = Patience()

    async def outcome(self, job: Job, execution: Execution) -> Outcome:
        """How the attempt ended, however long that takes; it is killed at the job's deadline.

        Raises:
            Vanished: the execution is gone from Kestra.
        """
        limit = job.timeout or self._job_timeout
        began = execution.started or self._kestra.now()
        while True:
            if not execution.state.terminal:
                try:
                    execution = await self._until_end(execution, began + timedelta(seconds=limit))
                except KillStuck:
                    error = f"its time of {limit:g} s was up, and the kill of execution {execution.id} is stuck"
                    return Outcome(execution=execution, timed_out=True, error=error)
            if execution.state.ended_well:
                return Outcome(execution=execution)
            confirmed = await self._confirm(job, execution)
            if confirmed.state.terminal and confirmed.state is not State.RETRIED:
                return await self._bad_end(confirmed, began, limit)
            execution = confirmed

    async def _until_end(self, execution: Execution, deadline: datetime) -> Execution:
        with self._watch.follow(execution.id) as follower:
            try:
                return _ended(execution, await follower.news(timeout=self._remaining(deadline)))
            except TimeoutError:
                return await self._kill(execution, follower)

    def _remaining(self, deadline: datetime) -> float:
        return (deadline - self._kestra.now()).total_seconds()

    async def _kill(self, execution: Execution, follower: Follower) -> Execution:
        """Kill, and make sure; a kill can stick in KILLING (kestra#19683), so it is repeated."""
        log.warning("the job's time is up, killing its execution", execution=execution.id)
        for _ in range(KILL_ROUNDS):
            await self.patience.ask(partial(self._kestra.kill, execution.id))
            try:
                return _ended(execution, await follower.news(timeout=self._kill_round))
            except TimeoutError:
                current = await self.patience.ask(partial(self._kestra.get, execution.id))
            if current is None:
                raise Vanished(execution.id)
            if current.state.terminal:
                return current
        raise KillStuck(execution.id)

    async def _confirm(self, job: Job, execution: Execution) -> Execution:
        """What became of an execution that is said to have ended badly: the same, restarted, or followed by another."""
        if execution.ended is None or self._kestra.now() - execution.ended < timedelta(seconds=60):
            await asyncio.sleep(CONFIRM_AFTER)
        give_up = time.monotonic() + SUCCESSOR_WITHIN
        while True:
            current = await self._starter.find(job, self.patience)
            if current is None:
                raise Vanished(execution.id)
            if current.state is not State.RETRIED:
                return current
            if time.monotonic() > give_up:
                return replace(current, state=State.FAILED)
            await asyncio.sleep(CONFIRM_AFTER)

    async def _bad_end(self, execution: Execution, began: datetime, limit: float) -> Outcome:
        timed_out = execution.state is State.KILLED and _reached(began, limit, execution.ended)
        if timed_out:
            return Outcome(execution=execution, timed_out=True, error=f"killed after its time of {limit:g} s was up")
        return Outcome(execution=execution, error=await self._explain(execution))

    async def _explain(self, execution: Execution) -> str:
        """The reason in Kestra's words where they can be had soon; a settlement doesn't wait for them."""
        try:
            async with asyncio.timeout(EXPLAIN_SECONDS):
                return await self._kestra.explain(execution)
        except (KestraError, TimeoutError) as error:
            log.warning("no reason to be had for a bad end", execution=execution.id, error=str(error))
            return f"execution {execution.id} ended {execution.state}"


def _ended(execution: Execution, news: News) -> Execution:
    if news.state is None:
        raise Vanished(execution.id)
    return replace(execution, state=news.state, ended=news.ended)


def _reached(began: datetime, limit: float, ended: datetime | None) -> bool:
    """Whether an execution that was killed had used up its time, by Kestra's clock, which we know to a second or two.

    So a replica that finds an execution killed by another one at its deadline comes to the same outcome.
    """
    slack = min(2.0, limit / 10)
    return ended is not None and (ended - began).total_seconds() >= limit - slack
