"""Find or create: one execution for an attempt, whatever became of earlier tries to start it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from bridge.aio import KeyedLock
from bridge.consume.denials import Denials
from bridge.consume.duplicates import CreateCheck
from bridge.consume.lookup import Lookup
from bridge.consume.ports import KestraPort
from bridge.errors import KestraAmbiguous, KestraDenied, KestraRejected
from bridge.job import revival
from bridge.job.execution import Execution, State
from bridge.job.job import Job
from bridge.retrying import Released, Retrying
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPolicy:
    """How executions are started. Times in seconds.

    `always_look` says whether the execution of a fresh message is looked for, too. `adopt_grace` is
    how long a redelivered message's execution is looked for before another one is created.
    `ambiguous_wait` is how long an execution is looked for after a create without an answer.
    `denied_pause` is the pause after a create that Kestra denied.

    `many_failures` answers of 500 in a row, while other jobs are created, are no coincidence. The
    job is rejected then, as it must not hold its slot for ever.
    """

    always_look: bool = True
    adopt_grace: float = 10.0
    ambiguous_wait: float = 35.0
    denied_pause: float = 2.0
    many_failures: int = 12


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt's execution, and whether it was found to exist already.

    `created_at` is when Kestra answered this process's create, by the monotonic clock; None where
    that is not known.
    """

    execution: Execution
    adopted: bool
    created_at: float | None = None


class Failures:
    """How often in a row Kestra itself failed over one job's create call."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._count = 0
        self._first = 0.0

    def note(self, error: KestraAmbiguous) -> None:
        """Count a failure, or begin anew after one that says nothing about the job."""
        if not error.blames_request:
            self._count = 0
            return
        if not self._count:
            self._first = time.monotonic()
        self._count += 1

    def speak_against_the_job(self, last_create: float) -> bool:
        """Whether the job's content must be the cause: many failures, while others were created."""
        return self._count >= self._many and last_create > self._first


class Starter:
    """Starts executions, each once."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        metrics: Metrics,
        retrying: Retrying,
        lookup: Lookup,
        check: CreateCheck,
        denials: Denials,
        policy: StartPolicy = StartPolicy(),
    ) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._retrying = retrying
        self._lookup = lookup
        self._check = check
        self._denials = denials
        self._policy = policy
        self._starting = KeyedLock()
        self._last_create = 0.0

    async def start(self, job: Job, *, redelivered: bool) -> Started:
        """Find this attempt's execution, or create it when it is certain that there is none.

        Raises:
            KestraRejected: Kestra will never run this job.
            Parked: Kestra denies the creates of its flow.
            Released: the bridge is stopping.
        """
        # A fresh message has no execution of its own yet, only perhaps that of an earlier message
        # with its id.
        fresh = not redelivered and job.attempt == job.first_attempt
        async with self._starting.hold(job.key):
            if fresh:
                started = await self._start_fresh(job)
            else:
                started = await self._look_and_create(job, suspect=redelivered)
            self._lookup.note_start(job)
            if not started.adopted and (self._policy.always_look or not fresh):
                self._check.note_create(started.execution)
        how = "adopted" if started.adopted else "created"
        self._metrics.executions.labels(job.queue, how).inc()
        return started

    async def revived(
        self, job: Job, *, accepts: Callable[[State], bool]
    ) -> tuple[Job, Started] | None:
        """An earlier attempt of the job that an operator brought back since it failed.

        It runs again, or it has succeeded. None where there is no such attempt.
        """
        executions = await self._retrying.ask(partial(self._kestra.find_attempts, job))
        found = revival.revived(job, executions, accepts=accepts)
        if found is None:
            return None
        earlier, execution = found
        return earlier, Started(execution, adopted=True)

    async def _start_fresh(self, job: Job) -> Started:
        if self._policy.always_look:
            found = await self._lookup.of_earlier_message(job)
            if found is not None:
                return Started(found, adopted=True)
        return await self._create_once(job)

    async def _look_and_create(self, job: Job, *, suspect: bool) -> Started:
        """Adopt the attempt's execution, or create it.

        `suspect`: a create of another replica may still be on its way, so that absence means
        nothing yet. The grace begins anew at each redelivery. Neither the message nor Kestra tells
        when the last replica died that could have created the execution: it may have been the
        latest, at the moment in which its own grace ended.
        """
        grace = self._policy.adopt_grace if suspect else 0.0
        found = await self._lookup.until(job, time.monotonic() + grace)
        if found is not None:
            return Started(found, adopted=True)
        return await self._create_once(job)

    async def _create_once(self, job: Job) -> Started:
        """Create the execution; after a create in doubt, look for it before creating it again."""
        failures = Failures(self._policy.many_failures)
        while True:
            if self._retrying.stopping.is_set():
                raise Released
            try:
                created = await self._create(job)
            except KestraAmbiguous as error:
                log.warning(
                    "a create is in doubt, looking for its execution", job=job.id, error=str(error)
                )
                named = await self._named(error)
                if named is not None:
                    return Started(named, adopted=False)
                failures.note(error)
                if failures.speak_against_the_job(self._last_create):
                    raise KestraRejected(
                        f"it fails over this job again and again: {error}"
                    ) from error
            else:
                self._last_create = time.monotonic()
                return Started(created, adopted=False, created_at=self._last_create)
            moment = time.monotonic() + self._policy.ambiguous_wait
            found = await self._lookup.until(job, moment)
            if found is not None:
                return Started(found, adopted=True)

    async def _create(self, job: Job) -> Execution:
        """The execution that Kestra creates, once it lets us.

        Raises:
            Parked: Kestra denies the creates of this flow, and perhaps of all.
            KestraError: what `Kestra.create` raises and another try can't change.
        """
        while True:
            asked = time.monotonic()
            try:
                created = await self._retrying.unless_denied.ask(partial(self._kestra.create, job))
            except KestraDenied as error:
                await self._denials.judge(job, error)
                await self._retrying.pause(self._policy.denied_pause)
            else:
                self._denials.note_create(job.flow, asked=asked)
                return created

    async def _named(self, error: KestraAmbiguous) -> Execution | None:
        """The execution that an error names; None where it names none.

        Kestra 2.0 names one that it lost sight of (kestra#17863). It is asked for no sooner than
        Kestra wants to be asked.
        """
        if error.retry_after:
            await self._retrying.pause(error.retry_after)
        if error.execution_id is None:
            return None
        return await self._retrying.ask(partial(self._kestra.get, error.execution_id))
