"""Carry out settlements. The one place that acks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from bridge.consume.handling import Handling
from bridge.consume.publishing import Publishing, may_pass_without_room
from bridge.consume.record import Recorder, facts_of
from bridge.consume.results import Results
from bridge.consume.suspects import refused
from bridge.errors import MessageRefused, QueueFull
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST, Delivery, Message
from bridge.job.settlement import Ack, AssignId, Park, Policy, Retry, Settlement, ToDeadLetter
from bridge.rabbitmq.topology import dead_exchange, retry_queue

log = structlog.get_logger(__name__)


class Settler:
    """Settles the deliveries of one session."""

    def __init__(
        self, *, publishing: Publishing, results: Results, recorder: Recorder, policy: Policy
    ) -> None:
        self._publishing = publishing
        self._results = results
        self._recorder = recorder
        self._policy = policy

    async def settle(self, handling: Handling, settlement: Settlement) -> None:
        """Have the message stand elsewhere first, if the settlement wants that, and ack it last.

        Raises:
            BrokerUnavailable: the session is gone, and the broker delivers the message again.
        """
        settle = handling.delivery.ack
        try:
            await self._hand_on(handling, settlement, handling.delivery.message)
        except MessageRefused as error:
            settlement = refused(settlement, str(error))
            settle = await self._hand_on_bare(handling, settlement)
        if isinstance(settlement, Ack | ToDeadLetter):
            try:
                await self._results.send(handling.progress, settlement)
            except asyncio.CancelledError:
                # A dead letter that stands must not come again for the sake of its result.
                if isinstance(settlement, ToDeadLetter):
                    await settle()
                    self._recorder.settled(handling, settlement)
                raise
        await settle()
        self._recorder.settled(handling, settlement)

    async def _hand_on(self, handling: Handling, settlement: Settlement, message: Message) -> None:
        """Have the message stand where the settlement wants it, if anywhere.

        Raises:
            MessageRefused: RabbitMQ does not take it as it is.
        """
        delivery, progress = handling.delivery, handling.progress
        queue = delivery.lane
        match settlement:
            case AssignId():
                stamped = message.to_republish({}, message_id=settlement.job_id)
                await self._stamp(delivery, stamped)
            case Retry() | Park():
                headers: dict[str, Any] = {ATTEMPT: settlement.attempt}
                if progress.first_attempt > 1:
                    headers[FIRST_ATTEMPT] = progress.first_attempt
                if settlement.machines_lost:
                    headers[MACHINES_LOST] = settlement.machines_lost
                headers |= progress.machine_use.headers
                await self._publishing.publish(
                    delivery,
                    message.to_republish(headers),
                    routing_key=retry_queue(queue, settlement.delay),
                )
            case ToDeadLetter():
                execution = progress.execution
                headers_of_dead_letter = settlement.headers(
                    queue=queue,
                    attempt=progress.attempt,
                    execution_id=execution.id if execution else None,
                    at=datetime.now(UTC),
                )
                await self._publishing.publish(
                    delivery,
                    message.to_republish(headers_of_dead_letter | progress.machine_use.headers),
                    exchange=dead_exchange(queue),
                    routing_key=queue,
                )

    async def _hand_on_bare(
        self, handling: Handling, settlement: ToDeadLetter
    ) -> Callable[[], Awaitable[None]]:
        """Make it a dead letter without what others gave it; returns how to settle it then.

        RabbitMQ may not take even that, such as a body beyond a limit that was lowered. Then it has
        to move the message itself, for which the delivery is rejected.

        Raises:
            MessageRefused: it must not move it either: a 3.10 would lose the queue over its
            `x-death`.
        """
        delivery = handling.delivery
        try:
            await self._hand_on(handling, settlement, delivery.message.bare())
        except MessageRefused as error:
            if not delivery.message.may_be_rejected:
                raise
            log.error(
                "RabbitMQ takes no dead letter of a message, and has to make it one",
                why=str(error),
                **facts_of(handling.progress),
            )
            return delivery.reject
        return delivery.ack

    async def _stamp(self, delivery: Delivery, stamped: Message) -> None:
        """Put a stamped message back into its queue or, where that is full, on its way there.

        What is held here without an id may be all that could make room there. So it moves on to a
        retry queue, which has room and leads back. RabbitMQ keeps it there until the lane takes it.
        """
        queue = delivery.lane
        try:
            # Every try publishes the same id: a message with another one would be another job.
            await self._publishing.publish(
                delivery, stamped, routing_key=queue, while_=may_pass_without_room
            )
        except QueueFull:
            shortest = min(self._policy.retry_delays)
            await self._publishing.publish(
                delivery, stamped, routing_key=retry_queue(queue, shortest)
            )
