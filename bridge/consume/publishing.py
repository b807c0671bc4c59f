"""Publish what a settlement needs to stand elsewhere, however often it takes."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from tenacity import RetryCallState

from bridge.consume.ports import PublisherPort
from bridge.consume.suspects import Suspects
from bridge.errors import MessageRefused, PublishFailed, QueueFull
from bridge.job.message import Delivery, Message
from bridge.retrying import BackOff, error_of, retry

log = structlog.get_logger(__name__)


def may_pass(error: BaseException) -> bool:
    """Whether publishing again can help."""
    return isinstance(error, PublishFailed) and not isinstance(error, MessageRefused)


def may_pass_without_room(error: BaseException) -> bool:
    """Whether publishing again can help, as long as the queue has no more room than now."""
    return may_pass(error) and not isinstance(error, QueueFull)


class Publishing:
    """Publishes for deliveries. Suspected ones go over a connection of their own."""

    def __init__(
        self,
        *,
        publisher: PublisherPort,
        isolated: PublisherPort,
        suspects: Suspects,
        back_off: BackOff,
    ) -> None:
        self._publisher = publisher
        self._isolated = isolated
        self._suspects = suspects
        self._back_off = back_off

    async def publish(
        self,
        delivery: Delivery,
        message: Message,
        *,
        exchange: str = "",
        routing_key: str,
        while_: Callable[[BaseException], bool] = may_pass,
    ) -> None:
        """Return once the message stands in a queue, trying again on errors for which `while_`
        holds.

        A full queue is the operator's to fix, and nothing is lost meanwhile.

        Raises:
            MessageRefused: RabbitMQ does not take the message as it is.
            PublishFailed: for one for which `while_` does not hold.
            BrokerUnavailable: the confirm never came.
        """

        async def publish_once() -> None:
            publisher = self._isolated if delivery in self._suspects else self._publisher
            with self._suspects.publishing(delivery):
                await publisher.publish(message, exchange=exchange, routing_key=routing_key)

        await retry(publish_once, on=while_, wait=self._back_off, before_sleep=_log_failure)


def _log_failure(state: RetryCallState) -> None:
    log.error("a publish failed, trying again", error=str(error_of(state)))
