"""One delivery from its arrival to its settlement: decode, start, wait, decide, settle."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from bridge.consume.denials import Parked
from bridge.consume.handling import Decoded, Ended, Handling, Received, Running
from bridge.consume.machine_time import MachineTime
from bridge.consume.record import Recorder, facts_of
from bridge.consume.settler import Settler
from bridge.consume.starter import Starter
from bridge.consume.waiter import OutcomeWaiter, Vanished
from bridge.errors import BrokerUnavailable, InvalidMessage, KestraRejected
from bridge.job.decode import decode
from bridge.job.flow_name import FlowName, allowed
from bridge.job.settlement import (
    AssignId,
    Park,
    Policy,
    Reason,
    Settlement,
    ToDeadLetter,
    decide,
)
from bridge.retrying import Released
from bridge.telemetry.tracing import Tracer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRules:
    """What may start, what becomes of it, and what happens after a fault of ours.

    `flows` are the patterns of the flows that may be started. After a fault of ours a delivery is
    handled again, with pauses that double from `after_a_fault` to `after_faults_at_most` seconds.
    """

    policy: Policy
    flows: Sequence[str]
    max_priority: int
    after_a_fault: float = 5.0
    after_faults_at_most: float = 300.0


class FlowNotAllowed(Exception):
    """The message names a flow that is not on the allow-list."""


class NoJobId(Exception):
    """The message has no id yet."""


UNFINISHED = (InvalidMessage, FlowNotAllowed, NoJobId, KestraRejected, Vanished, Parked)
"""Reasons to settle a delivery without an outcome."""


class Handler:
    """Handles the deliveries of one session: each exactly once, and none affects another."""

    def __init__(
        self,
        *,
        rules: HandlerRules,
        starter: Starter,
        waiter: OutcomeWaiter,
        machine_time: MachineTime,
        settler: Settler,
        recorder: Recorder,
        tracer: Tracer,
    ) -> None:
        self._rules = rules
        self._starter = starter
        self._waiter = waiter
        self._machine_time = machine_time
        self._settler = settler
        self._recorder = recorder
        self._tracer = tracer

    async def handle(self, handling: Handling, default_flow: FlowName | None) -> None:
        """See a delivery through, whatever happens, or leave it to the broker.

        `default_flow` is the flow of a message that names none. It raises nothing but cancellation.
        """
        self._recorder.arrived(handling.delivery)
        with self._tracer.delivery(handling.delivery) as handling.span:
            pause = self._rules.after_a_fault
            while True:
                try:
                    if handling.again:
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, self._rules.after_faults_at_most)
                    return await self._see_through(handling, default_flow)
                except asyncio.CancelledError:
                    self._recorder.left(handling)
                    raise
                except (Released, BrokerUnavailable) as error:
                    self._recorder.left(handling)
                    why = str(error) or "the bridge is stopping"
                    log.info("left to the broker", **facts_of(handling.progress), why=why)
                    return None
                except Exception:
                    # A fault of ours must not lose the message, and must not spin either.
                    log.exception(
                        "a delivery could not be handled, trying again",
                        **facts_of(handling.progress),
                        seconds=pause,
                    )
                    handling.settling, handling.again = False, True

    async def _see_through(self, handling: Handling, default_flow: FlowName | None) -> None:
        """Take a delivery through the five steps, or settle it at the step that shows why not.

        Raises:
            Released, BrokerUnavailable: it is left to the broker.
        """
        try:
            decoded = self._decode(handling, default_flow)
            running = await self._start(handling, decoded)
            ended = await self._wait(handling, running)
            settlement = self._decide(ended)
        except UNFINISHED as error:
            settlement = self._decide_without_outcome(handling.progress, error)
        await self._settle(handling, settlement)

    def _decode(self, handling: Handling, default_flow: FlowName | None) -> Decoded:
        """The delivery with the job that its message asks for.

        Raises:
            InvalidMessage: it can never become a job.
            FlowNotAllowed: its flow may not be started.
            NoJobId: it has to get an id first.
        """
        delivery = handling.delivery
        handling.progress = Received(delivery)
        job = decode(
            delivery.message,
            default_flow=default_flow,
            max_priority=self._rules.max_priority,
            queue=delivery.lane,
        )
        handling.progress = decoded = Decoded(delivery, job)
        if not allowed(job.flow, self._rules.flows):
            raise FlowNotAllowed(f"flow {job.flow} is not in BRIDGE_ALLOWED_FLOWS")
        if not job.id:
            raise NoJobId
        return decoded

    async def _start(self, handling: Handling, decoded: Decoded) -> Running:
        """The delivery with its execution: found, or created.

        It may be that of an earlier attempt, which an operator brought back while this one waited
        for its turn.

        Raises:
            KestraRejected, Parked, Released: as `Starter.start` does.
        """
        delivery, job = decoded.delivery, decoded.job
        if job.attempt > job.first_attempt:
            revived = await self._starter.revived(job, accepts=self._rules.policy.accepts)
            if revived is not None:
                earlier, started = revived
                handling.progress = running = Running(delivery, job, earlier, started)
                log.info(
                    "an earlier attempt was brought back in Kestra",
                    **facts_of(running),
                    earlier=earlier.attempt,
                )
                return running
        with handling.span.step("create"):
            # A second pass is like a redelivery: the first one may have created the execution.
            redelivered = delivery.redelivered or handling.again
            started = await self._starter.start(job, redelivered=redelivered)
        handling.progress = running = Running(delivery, job, job, started)
        return running

    async def _wait(self, handling: Handling, running: Running) -> Ended:
        """The delivery with its outcome, however long that takes.

        An earlier attempt that was brought back may fail once more, to which this attempt is the
        answer.

        Raises:
            Vanished: the execution is gone from Kestra.
        """
        delivery, job = running.delivery, running.job
        while True:
            with handling.span.step("wait"):
                outcome = await self._waiter.outcome(running.awaited, running.started)
            use = await self._machine_time.of(job, outcome.execution)
            ended = Ended(delivery, job, running.awaited, running.started, outcome, use)
            own = running.awaited.attempt == job.attempt
            if own or not self._rules.policy.tries_again(outcome):
                handling.progress = ended
                return ended
            running = await self._start(handling, Decoded(delivery, job))

    def _decide(self, ended: Ended) -> Settlement:
        self._recorder.ended(ended)
        return decide(
            ended.outcome,
            attempt=ended.attempt,
            first_attempt=ended.first_attempt,
            machines_lost=ended.machines_lost,
            policy=self._rules.policy,
        )

    def _decide_without_outcome(self, progress: Received, error: Exception) -> Settlement:
        """What becomes of a delivery that has no outcome for the reason that is given."""
        text = str(error)
        match error:
            case InvalidMessage():
                return ToDeadLetter(reason=Reason.INVALID_MESSAGE, error=text)
            case FlowNotAllowed():
                return ToDeadLetter(reason=Reason.FLOW_NOT_ALLOWED, error=text)
            case NoJobId():
                return AssignId(uuid.uuid4().hex)
            case KestraRejected() if isinstance(progress, Decoded):
                text = f"flow {progress.job.flow}: {text}"
                return ToDeadLetter(reason=Reason.REJECTED_BY_KESTRA, error=text)
            case Vanished():
                return ToDeadLetter(reason=Reason.VANISHED, error=text)
            case Parked():
                delay = self._rules.policy.retry_delays[0]
                return Park(
                    attempt=progress.attempt,
                    delay=delay,
                    error=text,
                    machines_lost=progress.machines_lost,
                )
        raise error

    async def _settle(self, handling: Handling, settlement: Settlement) -> None:
        handling.settling = True
        with handling.span.step("settle"):
            await self._settler.settle(handling, settlement)
