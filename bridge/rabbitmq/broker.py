"""Opens sessions and connections with one RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from bridge.rabbitmq import alarms, declaration
from bridge.rabbitmq.command_session import CommandSession
from bridge.rabbitmq.connection import (
    announced_version,
    connect,
    connected,
    parse_version,
    refreshed,
)
from bridge.rabbitmq.error_translation import reason, translated
from bridge.rabbitmq.isolation import IsolatedPublisher, ReopeningPublisher, ResultPublisher
from bridge.rabbitmq.ledger_stream import LedgerStream, OnEntry, opened
from bridge.rabbitmq.publisher import Publisher
from bridge.rabbitmq.reply_queue import ReplyQueue
from bridge.rabbitmq.session import Cause, OnDelivery, OnReply, Session
from bridge.settings import BrokerSettings

log = structlog.get_logger(__name__)

__all__ = [
    "Broker",
    "Cause",
    "Publisher",
    "ReplyQueue",
    "Session",
    "parse_version",
]


class Broker:
    """One RabbitMQ. Each connection logs in with the secrets as their files hold them then."""

    def __init__(self, settings: BrokerSettings, *, name: str = "kestra-bridge") -> None:
        self._settings = settings
        self._name = name

    @asynccontextmanager
    async def session(
        self, on_delivery: OnDelivery, on_reply: OnReply, *, hold: float
    ) -> AsyncIterator[Session]:
        """Connect, declare and consume all lanes. When the context ends, unsettled deliveries stay
        with the broker.

        The callbacks must only take note. `hold` is how many seconds a delivery may stay unsettled;
        a broker that lets consumers set this limit gets it.

        Raises:
            BrokerUnavailable, BrokerDenied, TopologyMismatch: there is no session.
        """
        settings = self._settings = refreshed(self._settings)
        async with AsyncExitStack() as stack:
            with translated(settings):
                # A broker that is short of memory stops reading from connections that publish: acks
                # must not wait there.
                consuming = await stack.enter_async_context(
                    connected(settings, f"{self._name} consumer")
                )
                publishing = await stack.enter_async_context(
                    connected(settings, f"{self._name} publisher")
                )
                results = ReopeningPublisher(partial(self._publisher_apart, "results"))
                stack.push_async_callback(results.close)
                apart = ReopeningPublisher(partial(self._publisher_apart, "apart"))
                stack.push_async_callback(apart.close)
                isolated = IsolatedPublisher(apart)
                session = Session(
                    announced_version(consuming),
                    await declaration.declare_lanes(consuming, settings),
                    consuming,
                    publishing,
                    results=ResultPublisher(results, isolated),
                    isolated=isolated,
                    publisher_apart=self._publisher_apart,
                )
                await session.publisher.open()
                consuming.close_callbacks.add(
                    lambda _, error: session.end("connection_closed", reason(error))
                )
                publishing.close_callbacks.add(lambda _, error: session.publishing_ended(error))
                await session.consume_replies(on_reply)
                for lane in settings.all_lanes:
                    tag = f"{self._name}.{lane.queue}"
                    await session.consume(lane, on_delivery, tag=tag, hold=hold)
            with alarms.heard(publishing, _log_alarm):
                yield session

    @asynccontextmanager
    async def ledger(
        self, queue: str, on_entry: OnEntry, *, window: float
    ) -> AsyncIterator[LedgerStream]:
        """The ledger of a lane, read from `window` seconds ago on, over a connection of its own.

        Raises:
            BrokerUnavailable, BrokerDenied, TopologyMismatch: there is none to be had.
        """
        settings = self._settings = refreshed(self._settings)
        async with AsyncExitStack() as stack:
            with translated(settings):
                connection = await stack.enter_async_context(
                    connected(settings, f"{self._name} ledger")
                )
                stream = await stack.enter_async_context(
                    opened(connection, queue, on_entry, window=window)
                )
            yield stream

    @asynccontextmanager
    async def commands(self) -> AsyncIterator[CommandSession]:
        """A connection for a command; raises as `session` does."""
        settings = self._settings = refreshed(self._settings)
        async with AsyncExitStack() as stack:
            with translated(settings):
                connection = await stack.enter_async_context(
                    connected(settings, f"{self._name} command")
                )
            yield CommandSession(connection, settings)

    async def _publisher_apart(self, purpose: str) -> Publisher:
        """A publisher with a connection of its own, whose end ends nothing else; raises as
        `session` does.
        """
        settings = self._settings = refreshed(self._settings)
        with translated(settings):
            connection = await connect(settings, f"{self._name} {purpose}")
        return Publisher(connection, lost=lambda _: None)


def _log_alarm(what: str) -> None:
    """Log that settlements which publish have to wait, or have to wait no longer."""
    log.warning("an alarm of RabbitMQ", what=what)
