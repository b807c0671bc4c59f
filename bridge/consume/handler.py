"""One delivery from its arrival to its settlement. The one place that settles."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from bridge.consume.denials import Parked
from bridge.consume.starter import Released, Started, Starter
from bridge.consume.suspects import Suspects, refused
from bridge.consume.waiter import OutcomeWaiter, Vanished
from bridge.errors import (
    BrokerError,
    BrokerUnavailable,
    InvalidMessage,
    KestraError,
    KestraRejected,
    MessageRefused,
    PublishFailed,
    QueueFull,
)
from bridge.job.decode import decode
from bridge.job.execution import Outcome
from bridge.job.flow_name import FlowName, allowed
from bridge.job.job import Job
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, Delivery, Message
from bridge.job.settlement import (
    Ack,
    AssignId,
    Park,
    Policy,
    Reason,
    Retry,
    Settlement,
    ToDeadLetter,
    decide,
)
from bridge.kestra import Kestra
from bridge.rabbitmq.broker import Publisher
from bridge.rabbitmq.isolation import IsolatedPublisher, ResultPublisher
from bridge.rabbitmq.topology import dead_exchange, retry_queue
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Span, Tracer, outgoing

OUTPUTS_SECONDS = 30.0
AFTER_A_BUG = (5.0, 300.0)
APART = 2.0
"""Seconds by which the retry of a message that adopted its execution follows that of the message
which created it. Were both put off at the same instant, as both hear of the same end, both would
come back at the same instant, to two replicas which both find nothing and both create."""

log = structlog.get_logger(__name__)


def _may_pass_later(error: BaseException) -> bool:
    return isinstance(error, PublishFailed) and not isinstance(error, MessageRefused)


def _may_pass_without_room(error: BaseException) -> bool:
    return _may_pass_later(error) and not isinstance(error, QueueFull)


@dataclass(slots=True)
class Case:
    """A delivery under way, and what has been learned of it so far."""

    delivery: Delivery
    arrived: float = field(default_factory=time.monotonic)
    job: Job | None = None
    started: Started | None = None
    outcome: Outcome | None = None
    settling: bool = False
    again: bool = False
    """Whether it was handled once and failed, so that its execution may exist."""
    span: Span = field(default_factory=Span)

    @property
    def age(self) -> float:
        """Seconds since the delivery arrived."""
        return time.monotonic() - self.arrived

    def overdue(self, limit: float) -> float:
        """Seconds beyond the job's own time-out, or beyond `limit` where it has none; 0 before
        that.
        """
        own = self.job.timeout if self.job else None
        return max(0.0, self.age - (own or limit))


class Handler:
    """Handles the deliveries of one session: each exactly once, and none affects another."""

    def __init__(
        self,
        *,
        kestra: Kestra,
        publisher: Publisher,
        isolated: IsolatedPublisher,
        results: ResultPublisher,
        suspects: Suspects,
        starter: Starter,
        waiter: OutcomeWaiter,
        metrics: Metrics,
        tracer: Tracer,
        policy: Policy,
        flows: Sequence[str],
        max_priority: int,
        after_a_bug: tuple[float, float] = AFTER_A_BUG,
    ) -> None:
        self._kestra = kestra
        self._publisher = publisher
        self._isolated = isolated
        self._results = results
        self._suspects = suspects
        self._starter = starter
        self._concluder = waiter
        self._metrics = metrics
        self._tracer = tracer
        self._policy = policy
        self._flows = flows
        self._max_priority = max_priority
        self._after_a_bug = after_a_bug

    async def handle(self, case: Case, default_flow: FlowName | None) -> None:
        """See a delivery through, whatever happens, or leave it to the broker. Raises nothing but
        cancellation.
        """
        self._count(case.delivery)
        with self._tracer.delivery(case.delivery) as case.span:
            await self._see_through(case, default_flow)

    def _count(self, delivery: Delivery) -> None:
        """The metrics of a delivery as it arrives."""
        self._metrics.deliveries.labels(delivery.lane, str(delivery.redelivered).lower()).inc()
        waited = delivery.waited(datetime.now(UTC))
        if waited is not None:
            # RabbitMQ takes what is above the queue's highest priority for the highest.
            priority = min(delivery.message.priority or 0, self._max_priority)
            self._metrics.queue_wait_seconds.labels(delivery.lane, str(priority)).observe(waited)

    async def _see_through(self, case: Case, default_flow: FlowName | None) -> None:
        pause, longest = self._after_a_bug
        while True:
            try:
                settlement = await self._judge(case, default_flow)
                case.settling = True
                with case.span.step("settle"):
                    return await self._settle(case, settlement)
            except asyncio.CancelledError:
                self._leave(case)
                raise
            except (Released, BrokerUnavailable) as error:
                self._leave(case)
                log.info(
                    "left to the broker", **_facts(case), why=str(error) or "the bridge is stopping"
                )
                return None
            except Exception:
                # A fault of ours must not lose the message, and must not spin either: it is kept
                # and tried again.
                log.exception(
                    "a delivery could not be handled, trying again", **_facts(case), seconds=pause
                )
                case.settling, case.again = False, True
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)

    async def _judge(self, case: Case, default_flow: FlowName | None) -> Settlement:
        """What is to become of the delivery, which for a good one takes as long as its execution
        does.
        """
        try:
            job = decode(
                case.delivery.message,
                default_flow=default_flow,
                max_priority=self._max_priority,
                queue=case.delivery.lane,
            )
        except InvalidMessage as error:
            return ToDeadLetter(reason=Reason.INVALID_MESSAGE, error=str(error))
        case.job = job
        if not allowed(job.flow, self._flows):
            return ToDeadLetter(
                reason=Reason.FLOW_NOT_ALLOWED,
                error=f"flow {job.flow} is not in BRIDGE_ALLOWED_FLOWS",
            )
        if not job.id:
            return AssignId(uuid.uuid4().hex)
        return await self._judge_job(case, job)

    async def _judge_job(self, case: Case, job: Job) -> Settlement:
        try:
            case.outcome = await self._run(case, job)
        except KestraRejected as error:
            return ToDeadLetter(reason=Reason.REJECTED_BY_KESTRA, error=f"flow {job.flow}: {error}")
        except Vanished as error:
            return ToDeadLetter(reason=Reason.VANISHED, error=str(error))
        except Parked as error:
            return Park(attempt=job.attempt, delay=self._policy.retry_delays[0], error=str(error))
        self._metrics.outcomes.labels(case.delivery.lane, case.outcome.label).inc()
        settlement = decide(
            case.outcome, attempt=job.attempt, first_attempt=job.first_attempt, policy=self._policy
        )
        if isinstance(settlement, Retry) and case.started and case.started.adopted:
            await asyncio.sleep(APART)
        return settlement

    async def _run(self, case: Case, job: Job) -> Outcome:
        if job.attempt > job.first_attempt and (outcome := await self._revived(case, job)):
            return outcome
        with case.span.step("create"):
            # A second pass is like a redelivery: the first one may have created the execution.
            case.started = await self._starter.start(
                job, redelivered=case.delivery.redelivered or case.again
            )
        with case.span.step("wait"):
            return await self._concluder.outcome(job, case.started)

    async def _revived(self, case: Case, job: Job) -> Outcome | None:
        """How an earlier attempt ended that an operator brought back while this one waited for its
        turn.

        None where there is none, or where it failed once more, to which this attempt is the answer.
        """
        while revived := await self._starter.revived(job, accepts=self._policy.accepts):
            earlier, case.started = revived
            log.info(
                "an earlier attempt was brought back in Kestra",
                **_facts(case),
                earlier=earlier.attempt,
            )
            with case.span.step("wait"):
                outcome = await self._concluder.outcome(earlier, case.started)
            if not self._policy.tries_again(outcome):
                return outcome
        return None

    async def _settle(self, case: Case, settlement: Settlement) -> None:
        """Carry out a settlement: first what must stand elsewhere, by confirm, and the ack last."""
        settle = case.delivery.ack
        try:
            await self._hand_on(case, settlement)
        except MessageRefused as error:
            settlement = refused(settlement, str(error))
            settle = await self._hand_on_bare(case, settlement)
        if isinstance(settlement, (Ack, ToDeadLetter)) and (
            reply_to := case.delivery.message.reply_to
        ):
            try:
                await self._send_result(case, settlement, reply_to)
            except asyncio.CancelledError:
                # A dead letter that stands must not come again for the sake of its result.
                if isinstance(settlement, ToDeadLetter):
                    await settle()
                    self._record(case, settlement)
                raise
        await settle()
        self._record(case, settlement)

    async def _hand_on_bare(self, case: Case, dead: ToDeadLetter) -> Callable[[], Awaitable[None]]:
        """How the delivery is settled once its dead letter stands without what others gave it.

        What RabbitMQ doesn't take even so, such as a body beyond a limit that was lowered, it has
        to move by itself.

        Raises:
            MessageRefused: it must not move it either: over its `x-death` a 3.10 would lose the
            queue.
        """
        try:
            await self._hand_on(case, dead, bare=True)
        except MessageRefused as error:
            if not case.delivery.message.may_be_rejected:
                raise
            log.error(
                "RabbitMQ takes no dead letter of a message, and has to make it one",
                why=str(error),
                **_facts(case),
            )
            return case.delivery.reject
        return case.delivery.ack

    async def _hand_on(self, case: Case, settlement: Settlement, *, bare: bool = False) -> None:
        """Have the message stand where the settlement wants it, if anywhere; `bare` without what
        others gave it.

        Raises:
            MessageRefused: RabbitMQ does not take it as it is.
        """
        queue, message = case.delivery.lane, case.delivery.message
        if bare:
            message = message.bare()
        match settlement:
            case AssignId():
                await self._stamp(case, message.to_republish({}, message_id=settlement.job_id))
            case Retry() | Park():
                headers = {ATTEMPT: settlement.attempt, **_first_attempt(case)}
                again = message.to_republish(headers)
                await self._publish(case, again, routing_key=retry_queue(queue, settlement.delay))
            case ToDeadLetter():
                dead = message.to_republish(_dead_letter_headers(case, settlement))
                await self._publish(case, dead, exchange=dead_exchange(queue), routing_key=queue)

    async def _stamp(self, case: Case, stamped: Message) -> None:
        """Put a stamped message back into its queue, or where that is full on its way there.

        What is held here without an id may be all that could make room there. So it moves on to a
        retry queue, which has room and leads back; RabbitMQ keeps it there until the lane takes it.
        """
        queue = case.delivery.lane
        try:
            # However often it takes, it is the same message: one with another id would be another
            # job.
            await self._publish(case, stamped, routing_key=queue, may_pass=_may_pass_without_room)
        except QueueFull:
            await self._publish(
                case, stamped, routing_key=retry_queue(queue, min(self._policy.retry_delays))
            )

    async def _publish(
        self,
        case: Case,
        message: Message,
        *,
        exchange: str = "",
        routing_key: str,
        may_pass: Callable[[BaseException], bool] = _may_pass_later,
    ) -> None:
        """Publish however often it takes: a full queue is the operator's to mend, and nothing is
        lost meanwhile.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(may_pass),
            wait=wait_random_exponential(multiplier=0.5, max=30),
            before_sleep=lambda state: log.error(
                "a publish failed, trying again", error=str(_failure(state))
            ),
            reraise=True,
        ):
            with attempt:
                await self._publish_once(case, message, exchange=exchange, routing_key=routing_key)

    async def _publish_once(
        self, case: Case, message: Message, *, exchange: str = "", routing_key: str
    ) -> None:
        publisher = self._isolated if case.delivery in self._suspects else self._publisher
        with self._suspects.publishing(case.delivery):
            await publisher.publish(message, exchange=exchange, routing_key=routing_key)

    async def _send_result(self, case: Case, settlement: Ack | ToDeadLetter, reply_to: str) -> None:
        """Tell the publisher how the job ended. One that doesn't listen any more is no reason to
        keep the job.
        """
        body = json.dumps(await self._result(case, settlement)).encode()
        result = Message(
            body=body,
            headers=outgoing(),
            content_type="application/json",
            message_id=uuid.uuid4().hex,
            correlation_id=case.delivery.message.correlation_id,
            message_type="kestra.job.result",
        )
        try:
            await self._results.publish(result, routing_key=reply_to)
        except BrokerError as error:
            self._metrics.results.labels(case.delivery.lane, "undeliverable").inc()
            log.warning("nobody takes a job's result", **_facts(case), error=str(error))
        else:
            self._metrics.results.labels(case.delivery.lane, "sent").inc()

    async def _result(self, case: Case, settlement: Ack | ToDeadLetter) -> dict[str, Any]:
        execution = case.outcome.execution if case.outcome else None
        result: dict[str, Any] = {
            "job": case.delivery.message.message_id,
            "state": execution.state.value if execution else None,
            "execution": execution.id if execution else None,
            "url": self._kestra.link(execution) if execution else None,
            # Of a job that failed as well: which part of it did may stand there.
            "outputs": await self._outputs(case) if execution and execution.state.terminal else {},
            "attempts": case.job.attempt - case.job.first_attempt + 1
            if case.job and execution
            else 0,
        }
        if isinstance(settlement, ToDeadLetter):
            result |= {"reason": settlement.reason.value, "error": settlement.error}
        return result

    async def _outputs(self, case: Case) -> dict[str, Any] | None:
        """The flow's outputs, or None where Kestra doesn't give them in good time; the job is done
        all the same.
        """
        assert case.outcome is not None
        question = partial(self._kestra.outputs, case.outcome.execution)
        try:
            async with asyncio.timeout(OUTPUTS_SECONDS):
                return await self._concluder.patience.ask(question)
        except (KestraError, TimeoutError) as error:
            log.warning("a result goes without its outputs", **_facts(case), error=str(error))
            return None

    def _leave(self, case: Case) -> None:
        self._metrics.settlements.labels(case.delivery.lane, "left", "").inc()
        case.span.conclude("left", _facts(case))

    def _record(self, case: Case, settlement: Settlement) -> None:
        """The metrics, the span and the one line that tell of a settled delivery."""
        lane, reason = case.delivery.lane, _reason(case, settlement)
        self._metrics.settlements.labels(lane, settlement.name, reason).inc()
        self._metrics.job_seconds.labels(lane).observe(case.age)
        ended = case.outcome.execution.ended if case.outcome else None
        if ended:
            self._metrics.settle_seconds.labels(lane).observe(
                max(0.0, (self._kestra.now() - ended).total_seconds())
            )
        extra: dict[str, Any] = {"seconds": round(case.age, 3)}
        facts = _facts(case)
        match settlement:
            case Retry():
                extra |= {
                    "next_attempt": settlement.attempt,
                    "delay": settlement.delay,
                    "error": settlement.error,
                }
            case Park():
                extra |= {"delay": settlement.delay, "error": settlement.error}
            case ToDeadLetter():
                extra |= {"reason": settlement.reason.value, "error": settlement.error}
            case AssignId():
                extra |= {"stamped": settlement.job_id}
        case.span.conclude(settlement.name, facts, error=extra.get("error", ""), error_type=reason)
        log.info("settled", settlement=settlement.name, **facts, **extra)


def _facts(case: Case) -> dict[str, Any]:
    """What identifies a delivery in the log."""
    facts: dict[str, Any] = {"job": case.delivery.message.message_id, "lane": case.delivery.lane}
    facts["redelivered"] = case.delivery.redelivered
    if case.job:
        facts |= {"flow": str(case.job.flow), "attempt": case.job.attempt}
    if case.started:
        facts |= {
            "execution": case.started.execution.id,
            "how": "adopted" if case.started.adopted else "created",
        }
    if case.outcome:
        facts |= {
            "execution": case.outcome.execution.id,
            "state": case.outcome.execution.state.value,
        }
    return facts


def _reason(case: Case, settlement: Settlement) -> str:
    """What went wrong, as one word; empty where nothing did."""
    match settlement:
        case ToDeadLetter():
            return settlement.reason.value
        case Retry():
            return case.outcome.label if case.outcome else ""
    return ""


def _first_attempt(case: Case) -> dict[str, int]:
    first = case.job.first_attempt if case.job else 1
    return {FIRST_ATTEMPT: first} if first > 1 else {}


def _dead_letter_headers(case: Case, settlement: ToDeadLetter) -> dict[str, Any]:
    execution = _facts(case).get("execution")
    return {
        "x-bridge-reason": settlement.reason.value,
        "x-bridge-error": settlement.error,
        ATTEMPT: case.job.attempt if case.job else 1,
        "x-bridge-queue": case.delivery.lane,
        "x-bridge-at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **({"x-bridge-execution": execution} if execution else {}),
    }


def _failure(state: Any) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
