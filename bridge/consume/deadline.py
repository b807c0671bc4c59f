"""The time that an attempt has, and what is done when it is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Self

import structlog
from prometheus_client import Gauge

from bridge.consume.completions import CompletionRouter
from bridge.consume.ports import KestraPort
from bridge.consume.reports import Completion
from bridge.errors import REFUSALS, KestraError
from bridge.job.execution import Execution, State
from bridge.retrying import Retrying
from bridge.telemetry.metrics import Metrics

NOT_BEGUN = {
    State.CREATED: "an execution is beyond its time and Kestra has not started it; "
    "does its executor run?",
    State.RESTARTED: "an execution is beyond its time and Kestra has not restarted it; "
    "does its executor run?",
    State.QUEUED: "an execution is beyond its time and waits for others; is a concurrency limit "
    "below the prefetch?",
}
"""The states in which an execution does not run yet, and what is logged about one that is beyond
its time."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KillPolicy:
    """How an execution beyond its time is ended. Times in seconds.

    A kill is repeated with pauses that double from `again_after` to `again_at_most`: it can stick
    in KILLING (kestra#19683).

    `look_again_after` is the pause between two looks at an execution that is beyond its time and
    that Kestra has not begun to run. It also bounds the time between two looks at the clock: how
    far Kestra's is from ours may become known only while a job's time runs.
    """

    again_after: float = 15.0
    again_at_most: float = 300.0
    look_again_after: float = 15.0


@dataclass(slots=True)
class Deadline:
    """The time that an attempt has, in seconds, and whether this replica killed it after that.

    It begins with the attempt's first execution. It stands still while Kestra has created an
    execution, or restarted it, and does not run it yet. It also stands still from an execution's
    end to its restart by an operator.
    """

    limit: float
    began: datetime
    """When the first execution was created, by Kestra's clock."""
    by_kestras_clock: bool
    """Whether its age goes by Kestra's clock, about which more may become known while it runs."""
    elapsed: Callable[[], float]
    """How long ago that was."""
    killed: bool = False
    waited: float = 0.0
    """For how long executions stood still that the flow's retry has followed by others."""

    def left(self, execution: Execution) -> float:
        """How much of its time an execution has left."""
        return self.limit + self.waited + idle_seconds(execution) - self.elapsed()

    def used_up(self, execution: Execution) -> bool:
        """Whether an execution that was killed had used up its time.

        This replica's kill says so, or Kestra's own times. So a replica that finds an execution
        killed by another one at its deadline comes to the same outcome.
        """
        if self.killed or execution.ended is None:
            return self.killed
        slack = min(2.0, self.limit / 10)
        age = (execution.ended - self.began).total_seconds()
        return age - self.waited - idle_seconds(execution) >= self.limit - slack


def idle_seconds(execution: Execution) -> float:
    """Seconds from an execution's creation to when it began to run, or to run again after a
    restart.
    """
    if execution.running_since is None or execution.started is None:
        return 0.0
    return (execution.running_since - execution.started).total_seconds()


class StuckGauge:
    """Counts, by reason, an execution that is beyond its time and does not end.

    It stops counting at the end of the block.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._why: str | None = None

    def set(self, why: str | None) -> None:
        """Say why the execution does not end now; None where it still has time."""
        if self._why:
            self._gauge.labels(self._why).dec()
        if why:
            self._gauge.labels(why).inc()
        self._why = why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.set(None)


class Enforcer:
    """Ends executions that are beyond their time."""

    def __init__(
        self,
        *,
        kestra: KestraPort,
        completions: CompletionRouter,
        metrics: Metrics,
        retrying: Retrying,
        policy: KillPolicy = KillPolicy(),
    ) -> None:
        self._kestra = kestra
        self._completions = completions
        self._metrics = metrics
        self._retrying = retrying
        self._policy = policy

    async def enforce(self, execution_id: str, deadline: Deadline) -> None:
        """Kill an execution once its time is up, and again with growing pauses, until it has ended.

        Its slot stays taken meanwhile: no other attempt may begin while this one can still run.
        """
        pause = self._policy.again_after
        with StuckGauge(self._metrics.stuck) as stuck:
            while True:
                current = await self._retrying.ask(partial(self._kestra.get, execution_id))
                if current is None:
                    # The sweep finds out whether it is gone for good: it looks more than once.
                    await asyncio.sleep(self._policy.look_again_after)
                elif current.state.terminal:
                    self._completions.route(
                        Completion(
                            execution_id=execution_id, state=current.state, ended=current.ended
                        )
                    )
                    return
                elif current.state in NOT_BEGUN:
                    stuck.set("never_started")
                    log.error(
                        NOT_BEGUN[current.state],
                        execution=current.id,
                        created=str(current.started),
                    )
                    await asyncio.sleep(self._policy.look_again_after)
                elif deadline.left(current) > 0:
                    stuck.set(None)
                    await asyncio.sleep(self.next_look(deadline, current))
                else:
                    await self._kill(execution_id, deadline, stuck)
                    await asyncio.sleep(pause)
                    if deadline.killed:
                        pause = min(pause * 2, self._policy.again_at_most)

    def next_look(self, deadline: Deadline, execution: Execution) -> float:
        """Seconds until an execution's time may be up."""
        left = deadline.left(execution)
        if deadline.by_kestras_clock:
            return min(left, self._policy.look_again_after)
        return left

    async def _kill(self, execution_id: str, deadline: Deadline, stuck: StuckGauge) -> None:
        """Ask for a kill. A failure is logged and not raised, since the caller asks again."""
        if deadline.killed:
            stuck.set("kill_without_effect")
            log.error("an execution goes on after a kill, killing it again", execution=execution_id)
        else:
            log.warning("the job's time is up, killing its execution", execution=execution_id)
        try:
            await self._kestra.kill(execution_id)
            deadline.killed = True
        except REFUSALS as error:
            stuck.set("kill_refused")
            log.error(
                "a kill is refused, asking again later", execution=execution_id, error=str(error)
            )
        except KestraError as error:
            stuck.set("kill_unanswered")
            log.warning(
                "a kill is not answered, asking again later",
                execution=execution_id,
                error=str(error),
            )
