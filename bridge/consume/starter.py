"""Find or create: one execution for an attempt, whatever became of earlier tries to start it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from bridge.aio import KeyedLock
from bridge.consume.claiming import Ledger
from bridge.consume.denials import Denials, Parked
from bridge.consume.ledger import Step
from bridge.consume.lookup import Lookup
from bridge.consume.ports import KestraPort
from bridge.consume.turn import Turn, TurnOver
from bridge.errors import KestraAmbiguous, KestraDenied, KestraRejected
from bridge.job import revival
from bridge.job.execution import Execution, State
from bridge.job.job import Job
from bridge.kestra import always
from bridge.retrying import Released, Retrying
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPolicy:
    """How executions are started. Times in seconds.

    `always_look` says whether the execution of a fresh message is looked for although the ledger
    says that there is none, and `without_ledger` whether it is looked for where there is no ledger.
    `adopt_grace` is how long a redelivered message's execution is looked for before another one is
    created. `ambiguous_wait` is how long an execution is looked for after a create without an
    answer. `denied_pause` is the pause after a create that Kestra denied.

    `many_failures` answers of 500 in a row, while other jobs are created, are no coincidence. The
    job is rejected then, as it must not hold its slot for ever.
    """

    always_look: bool = False
    without_ledger: bool = True
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
        ledgers: Mapping[str, Ledger],
        denials: Denials,
        policy: StartPolicy = StartPolicy(),
    ) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._retrying = retrying
        self._lookup = lookup
        self._ledgers = ledgers
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
        ledger = self._ledgers.get(job.queue)
        async with self._starting.hold(job.key):
            if ledger is None:
                started = await self._start_without_ledger(job, suspect=redelivered)
            else:
                started = await self._start_in_turn(job, Turn(ledger, job.key), redelivered)
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

    async def _start_in_turn(self, job: Job, turn: Turn, redelivered: bool) -> Started:
        """Create the execution if the first claim is ours, else adopt that of whoever's it is."""
        looked_in: int | None = None
        while await turn.ledger.available():
            step, standing = turn.step, turn.standing
            if step is Step.CREATE:
                until = self._look_until(turn, redelivered)
                if looked_in == turn.ledger.view.incarnation:
                    until = None
                looked_in = turn.ledger.view.incarnation
                with suppress(TurnOver):
                    return await self._create_in_turn(job, turn, until, fresh=not redelivered)
                continue
            if step is Step.LOOK_UP:
                found = await self._lookup.until(job, turn.over_from)
                if found is not None:
                    return Started(found, adopted=True)
                looked_in = turn.ledger.view.incarnation
                if turn.standing != standing:
                    continue
            if not await turn.claim(step):
                break
        turn.claim_late()
        claimed = turn.standing is not None
        return await self._start_without_ledger(job, suspect=redelivered or claimed)

    async def _create_in_turn(
        self, job: Job, turn: Turn, until: float | None, *, fresh: bool
    ) -> Started:
        """Look for the execution until that moment (None: not at all), then create it.

        Raises:
            TurnOver: another replica has claimed the attempt, or the ledger is away.
        """
        try:
            return await self._adopt_or_create(job, until, fresh=fresh, permitted=turn.check)
        except (KestraRejected, Parked):
            turn.give_back()
            raise

    def _look_until(self, turn: Turn, redelivered: bool) -> float | None:
        """Until when to look for an execution before the first create (monotonic); None: not at
        all.

        A redelivered message that nobody has claimed was with nobody, or with a replica that had no
        ledger or is of an earlier release. RabbitMQ calls a whole backlog redelivered after a
        restart of classic queues. So one look has to do, and the grace, for a create that is still
        on its way, is left to ledgers that don't tell what ran before them.
        """
        now, view = time.monotonic(), turn.ledger.view
        suspect = redelivered and turn.first
        if view.blind:
            return max(now + self._policy.adopt_grace if suspect else now, view.settled_at)
        return now if suspect or self._policy.always_look else None

    async def _start_without_ledger(self, job: Job, *, suspect: bool) -> Started:
        """Adopt the attempt's execution, or create it.

        `suspect`: a create of another replica may still be on its way, so that absence means
        nothing yet. The grace begins anew at each redelivery. Neither the message nor Kestra tells
        when the last replica died that could have created the execution: it may have been the
        latest, at the moment in which its own grace ended.
        """
        until: float | None = time.monotonic()
        if suspect:
            until = time.monotonic() + self._policy.adopt_grace
        elif job.attempt == job.first_attempt and not self._policy.without_ledger:
            until = None
        return await self._adopt_or_create(job, until, fresh=not suspect, permitted=always)

    async def _adopt_or_create(
        self, job: Job, until: float | None, *, fresh: bool, permitted: Callable[[], None]
    ) -> Started:
        """Look for the execution until that moment (None: not at all), then create it."""
        if until is not None:
            found = await self._lookup.until(job, until, fresh=fresh)
            if found is not None:
                return Started(found, adopted=True)
        return await self._create_once(job, permitted)

    async def _create_once(self, job: Job, permitted: Callable[[], None]) -> Started:
        """Create the execution; after a create in doubt, look for it before creating it again.

        `permitted` is called before each create.
        """
        failures = Failures(self._policy.many_failures)
        while True:
            if self._retrying.stopping.is_set():
                raise Released
            try:
                created = await self._create(job, permitted)
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

    async def _create(self, job: Job, permitted: Callable[[], None]) -> Execution:
        """The execution that Kestra creates, once it lets us.

        Raises:
            Parked: Kestra denies the creates of this flow, and perhaps of all.
            KestraError: what `Kestra.create` raises and another try can't change.
        """
        question = partial(self._kestra.create, job, permitted=permitted)
        while True:
            asked = time.monotonic()
            try:
                created = await self._retrying.unless_denied.ask(question)
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
