"""Find or create: one execution for a (job, attempt), whatever became of earlier tries to start
it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)

from bridge.aio import KeyedLock
from bridge.consume.denials import Denials
from bridge.consume.duplicates import Duplicates, SecondLook
from bridge.consume.recent_index import Recent
from bridge.consume.unfinished_index import UnfinishedIndex
from bridge.errors import (
    REFUSALS,
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)
from bridge.job import revival
from bridge.job.execution import Execution, State, choose
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.telemetry.metrics import Metrics

LOOK_EVERY = 1.0
FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 15.0
DENIED_PAUSE = 2.0
MANY_LOOK = 16
"""When so many jobs look for their executions at once, one listing of all is cheaper than a search
for each."""

MANY_FAILURES = 12
"""So many answers of 500 in a row, while other jobs are created, are no chance; a job must not hold
a slot for ever."""

TROUBLE: tuple[type[KestraError], ...] = (KestraUnavailable, *REFUSALS)
"""Errors that say nothing of the job: only time or an operator ends them."""

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Released(Exception):
    """The bridge is stopping and this delivery has no execution yet: the next replica takes it."""


class Patience:
    """Asks Kestra again, with back-off, for as long as it is away, and gives up only once
    `stopping` is set.

    `waits_out` are the errors that are taken for passing. A refusal is among them: an operator can
    lift it.
    """

    def __init__(
        self,
        stopping: asyncio.Event | None = None,
        waits_out: tuple[type[KestraError], ...] = TROUBLE,
    ) -> None:
        self.stopping = stopping or asyncio.Event()
        self._waits_out = waits_out

    @property
    def unless_refused(self) -> Patience:
        """The same patience, except that a refusal is raised at once."""
        return Patience(self.stopping, (KestraUnavailable,))

    @property
    def unless_denied(self) -> Patience:
        """The same patience, except that it is raised at once when Kestra denies the rights."""
        return Patience(self.stopping, (KestraUnavailable, KestraIncompatible))

    async def ask(self, question: Callable[[], Awaitable[Result]]) -> Result:
        """The answer, however long it takes.

        Raises:
            Released: the bridge stops.
            KestraError: what the question raises and asking again can't change.
        """
        try:
            return await question()
        except self._waits_out as error:
            log.log(
                _level(error), "kestra does not answer, asking again", error=str(error), tries=1
            )
            first_pause = max(FIRST_BACKOFF, _asked_to_wait(error))
        # Only now, as what tenacity does around every question costs as much as parsing the answer.
        await self.pause(first_pause)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(self._waits_out),
            wait=_back_off,
            stop=stop_never,
            sleep=self.pause,
            before_sleep=_say_why,
            reraise=True,
        ):
            with attempt:
                return await question()
        raise AssertionError("unreachable")

    async def pause(self, seconds: float) -> None:
        """Wait so many seconds; raises `Released` as soon as the bridge stops."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise Released


_exponential = wait_random_exponential(multiplier=0.5, max=LONGEST_BACKOFF)


def _back_off(state: RetryCallState) -> float:
    """Seconds to the next try: longer with each, and as long as Kestra asks for."""
    return max(_exponential(state), _asked_to_wait(_error_of(state)))


def _asked_to_wait(error: BaseException | None) -> float:
    return error.retry_after if isinstance(error, KestraUnavailable) else 0.0


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _say_why(state: RetryCallState) -> None:
    error = _error_of(state)
    tries = state.attempt_number + 1
    log.log(_level(error), "kestra does not answer, asking again", error=str(error), tries=tries)


def _level(error: BaseException | None) -> int:
    """Trouble that only an operator can mend is an error, any other passes."""
    return logging.ERROR if isinstance(error, REFUSALS) else logging.WARNING


@dataclass(frozen=True, slots=True)
class Started:
    """A job's execution, and whether it was found to exist already.

    `created_at` is when Kestra answered this process's create, by the monotonic clock; None where
    that can't be told.
    """

    execution: Execution
    adopted: bool
    created_at: float | None = None


class Failures:
    """How often in a row Kestra itself failed over one job's create call."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0

    def note(self, error: KestraAmbiguous) -> None:
        """Count a failure, or begin anew after one that says nothing of the job."""
        if not error.blames_request:
            self.count = 0
            return
        self.first = self.first if self.count else time.monotonic()
        self.count += 1

    def speak_against_the_job(self, last_create: float) -> bool:
        """Whether the job's content must be the cause: many failures, while others were created."""
        return self.count >= MANY_FAILURES and last_create > self.first


class Starter:
    """Starts executions, each once. Times in seconds."""

    def __init__(
        self,
        *,
        kestra: Kestra,
        metrics: Metrics,
        patience: Patience,
        always_look: bool,
        window: float,
        adopt_grace: float,
        ambiguous_wait: float,
        denials: Denials | None = None,
    ) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._patience = patience
        self._always_look = always_look
        self._window = timedelta(seconds=window)
        self._adopt_grace = adopt_grace
        self._ambiguous_wait = ambiguous_wait
        self._duplicates = Duplicates(kestra=kestra, metrics=metrics)
        self.second_look = SecondLook(kestra=kestra, metrics=metrics)
        self._starting = KeyedLock()
        self._unfinished = UnfinishedIndex(lambda: patience.ask(kestra.unfinished))
        self._recent = Recent(kestra, window=self._window)
        self._denials = denials or Denials(kestra)
        self._looking = 0
        self._last_create = 0.0

    async def start(self, job: Job, *, redelivered: bool) -> Started:
        """Find this (job, attempt)'s execution, or create it when it is certain that there's none.

        Raises:
            KestraRejected: Kestra will never run this job.
            Parked: Kestra denies the creates of its flow.
            Released: the bridge stops.
        """
        async with self._starting.hold(job.key):
            # A fresh message has no execution of its own yet, only perhaps that of an earlier
            # message with its id.
            fresh = not redelivered and job.attempt == job.first_attempt
            if not fresh:
                started = await self._find_or_create(job, suspect=redelivered)
            elif self._always_look and (execution := await self._duplicated(job)):
                started = Started(execution, adopted=True)
            else:
                started = await self._find_or_create(job, look=False)
            self._recent.note(job)
            if not started.adopted and (self._always_look or not fresh):
                self.second_look.note(started.execution)
        self._metrics.executions.labels(
            job.queue, "adopted" if started.adopted else "created"
        ).inc()
        return started

    async def find(
        self, job: Job, patience: Patience, *, since: datetime | None = None
    ) -> Execution | None:
        """The job's own execution, if there is one that started since then. Any second one is
        killed.
        """
        search = partial(self._kestra.executions.find_timed, job, since=since)
        searched = await patience.ask(search)
        self._recent.note_search(searched.seconds, usual=searched.usual)
        return await self._own(searched.executions, patience)

    async def _own(self, executions: Iterable[Execution], patience: Patience) -> Execution | None:
        found = choose(executions)
        await patience.ask(partial(self._duplicates.end, found.duplicates))
        return found.current

    async def _find_or_create(
        self, job: Job, *, look: bool = True, suspect: bool = False
    ) -> Started:
        """`suspect`: a create of another replica may still be on its way, so that absence means
        nothing yet.

        The grace begins anew at each redelivery. Neither the message nor Kestra tells when the last
        replica that could have created the execution died: it may have been the latest, in the
        moment in which its own grace ended.
        """
        look_until = time.monotonic() + (self._adopt_grace if suspect else 0)
        failures = Failures()
        while True:
            if look and (execution := await self._look(job, look_until)):
                return Started(execution, adopted=True)
            if self._patience.stopping.is_set():
                raise Released
            try:
                created = await self._create(job)
            except KestraAmbiguous as error:
                log.warning(
                    "a create is in doubt, looking for its execution", job=job.id, error=str(error)
                )
                if execution := await self._named(error):
                    return Started(execution, adopted=False)
                failures.note(error)
                if failures.speak_against_the_job(self._last_create):
                    raise KestraRejected(
                        f"it fails over this job again and again: {error}"
                    ) from error
                look, look_until = True, time.monotonic() + self._ambiguous_wait
            else:
                self._last_create = time.monotonic()
                return Started(created, adopted=False, created_at=self._last_create)

    async def _create(self, job: Job) -> Execution:
        """The execution that Kestra creates, once it lets us.

        Raises, beside what `Kestra.create` does:
            Parked: Kestra denies the creates of this flow, and perhaps of all.
        """
        while True:
            asked = time.monotonic()
            try:
                created = await self._patience.unless_denied.ask(partial(self._kestra.create, job))
            except KestraDenied as error:
                await self._denials.judge(job, error)
                await self._patience.pause(DENIED_PAUSE)
            else:
                self._denials.note_create(job.flow, asked=asked)
                return created

    async def revived(
        self, job: Job, *, accepts: Callable[[State], bool]
    ) -> tuple[Job, Started] | None:
        """An earlier attempt of the job that runs again or that succeeded since it failed, which an
        operator can do.
        """
        found = revival.revived(
            job, await self._patience.ask(partial(self._kestra.find_attempts, job)), accepts=accepts
        )
        return (found[0], Started(found[1], adopted=True)) if found else None

    async def _duplicated(self, job: Job) -> Execution | None:
        """The execution of an earlier message of the same job, if it started within the window."""
        since = self._kestra.now() - self._window
        # The others learn from how long the first ones take.
        async with self._recent.searching:
            if not self._recent.wanted:
                return await self.find(job, self._patience, since=since)
        if await self._recent.lacks(job):
            return None
        return await self.find(job, self._patience, since=since)

    async def _named(self, error: KestraAmbiguous) -> Execution | None:
        """The execution that an error names, which Kestra 2.0 does for one that it lost sight of
        (kestra#17863).

        It is asked for no sooner than Kestra wants to be asked.
        """
        if error.retry_after:
            await self._patience.pause(error.retry_after)
        if error.execution_id is None:
            return None
        return await self._patience.ask(partial(self._kestra.get, error.execution_id))

    async def _look(self, job: Job, until: float) -> Execution | None:
        """Look once, or again and again until that moment.

        One listing serves many, but an execution that has ended is only found by a search. What is
        awaited after the first look is a create that comes true late: to end before a listing shows
        it, it has to be quick, and then the last look, which is a search, finds it.
        """
        self._looking += 1
        try:
            search = True
            while True:
                if execution := await self._look_once(
                    job, search=search, again=until > time.monotonic()
                ):
                    return execution
                left = until - time.monotonic()
                if left <= 0 and search:
                    return None
                await self._patience.pause(min(LOOK_EVERY, max(0.05, left)))
                search = until - time.monotonic() <= 0
        finally:
            self._looking -= 1

    async def _look_once(self, job: Job, *, search: bool, again: bool) -> Execution | None:
        many = self._looking >= MANY_LOOK
        if (
            many
            and again
            and (execution := await self._own(await self._unfinished.get(job), self._patience))
        ):
            return execution
        return await self.find(job, self._patience) if search or not many else None
