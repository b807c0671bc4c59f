"""Results: what a message's `reply_to` gets to know of how its job ended."""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import Any

import structlog

from bridge.consume.handling import Ended, Received
from bridge.consume.ports import KestraPort, ResultPort
from bridge.consume.record import Recorder, facts_of
from bridge.errors import BrokerError, KestraError
from bridge.job.message import Message
from bridge.job.settlement import Ack, ToDeadLetter
from bridge.retrying import Retrying, failing_for
from bridge.telemetry.tracing import outgoing

log = structlog.get_logger(__name__)


class Results:
    """Composes results and sends them.

    A result goes without outputs where Kestra has failed to give them for `patience` seconds.
    """

    def __init__(
        self,
        *,
        kestra: KestraPort,
        publisher: ResultPort,
        recorder: Recorder,
        patience: float = 30.0,
    ) -> None:
        self._kestra = kestra
        self._publisher = publisher
        self._recorder = recorder
        self._patience = patience
        # A stop does not end the wait for outputs; their patience does.
        self._retrying = Retrying()

    async def send(self, progress: Received, settlement: Ack | ToDeadLetter) -> None:
        """Send the result to where the message wants it, if anywhere.

        A recipient that does not listen any more is no reason to keep the job.
        """
        message = progress.delivery.message
        if not message.reply_to:
            return
        body = json.dumps(await self._compose(progress, settlement)).encode()
        result = Message(
            body=body,
            headers=outgoing(),
            content_type="application/json",
            message_id=uuid.uuid4().hex,
            correlation_id=message.correlation_id,
            message_type="kestra.job.result",
        )
        try:
            await self._publisher.publish(result, routing_key=message.reply_to)
        except BrokerError as error:
            self._recorder.result(progress.delivery, "undeliverable")
            log.warning("nobody takes a job's result", **facts_of(progress), error=str(error))
        else:
            self._recorder.result(progress.delivery, "sent")

    async def _compose(self, progress: Received, settlement: Ack | ToDeadLetter) -> dict[str, Any]:
        result: dict[str, Any] = {
            "job": progress.delivery.message.message_id,
            "state": None,
            "execution": None,
            "url": None,
            "outputs": {},
            "attempts": 0,
        }
        if isinstance(progress, Ended):
            execution = progress.execution
            result |= {
                "state": execution.state.value,
                "execution": execution.id,
                "url": self._kestra.link(execution),
                # A job that failed has outputs, too: they may say which part of it failed.
                "outputs": await self._outputs(progress),
                "attempts": progress.attempt - progress.first_attempt + 1,
                **progress.machine_use.data,
            }
        if isinstance(settlement, ToDeadLetter):
            result |= {"reason": settlement.reason.value, "error": settlement.error}
        return result

    async def _outputs(self, ended: Ended) -> dict[str, Any] | None:
        """The flow's outputs; None where Kestra does not give them. The job is done anyway."""
        if not ended.execution.state.terminal:
            return {}
        question = partial(self._kestra.outputs, ended.execution)
        try:
            return await self._retrying.ask(question, stop=failing_for(self._patience))
        except KestraError as error:
            log.warning("a result goes without its outputs", **facts_of(ended), error=str(error))
            return None
