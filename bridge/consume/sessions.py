"""Sessions with RabbitMQ: one after the other, until the bridge stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import structlog
from tenacity import RetryCallState

from bridge.aio import Background, first_of, unless_set
from bridge.consume.handler import Handler
from bridge.consume.handling import Handling
from bridge.consume.inflight import InFlight
from bridge.consume.ports import BrokerPort, OnReply, SessionPort
from bridge.consume.suspects import Suspects
from bridge.errors import BrokerError, BrokerUnavailable
from bridge.job.message import Delivery
from bridge.retrying import BackOff, error_of, retry
from bridge.settings import Lane
from bridge.telemetry.metrics import Metrics

Arrivals = asyncio.Queue[tuple[Lane, Delivery]]
Preflight = Callable[[SessionPort], Awaitable[None]]
Beside = Callable[[SessionPort], Coroutine[Any, Any, None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPolicy:
    """How sessions are held. Times in seconds.

    `hold` is how long a delivery may stay unsettled. `drain` is how long a stop waits for what is
    in flight, and `settled_within` how much longer for settlements that have begun. After a session
    shorter than `stable_after` the next one is not tried at once.
    """

    hold: float
    drain: float
    settled_within: float = 10.0
    stable_after: float = 10.0
    back_off: BackOff = field(default_factory=BackOff)


class Sessions:
    """Holds one session after the other.

    `on_reply` takes the replies that come in. `beside` is work beside each session, its drain
    included. `preflight` is called once, during the first session.
    """

    def __init__(
        self,
        *,
        broker: BrokerPort,
        address: str,
        on_reply: OnReply,
        beside: Beside,
        preflight: Preflight | None,
        in_flight: InFlight,
        suspects: Suspects,
        metrics: Metrics,
        policy: SessionPolicy,
    ) -> None:
        self._broker = broker
        self._address = address
        self._on_reply = on_reply
        self._beside = beside
        self._preflight = preflight
        self._in_flight = in_flight
        self._suspects = suspects
        self._metrics = metrics
        self._policy = policy
        self._had_one = False
        self.connected = False

    async def run(
        self,
        stop: asyncio.Event,
        background: Background,
        handler_of: Callable[[SessionPort], Handler],
    ) -> None:
        """Hold sessions until `stop` is set, then drain the last one.

        `handler_of` makes the handler of a session's deliveries.

        Raises:
            BrokerError: what only an operator can fix, found before the first session.
        """

        async def session() -> None:
            if not stop.is_set():
                await self._session(stop, background, handler_of)

        async def pause(seconds: float) -> None:
            await first_of(stop.wait(), timeout=seconds)

        while not stop.is_set():
            await retry(
                session,
                on=self._worth_waiting,
                wait=self._policy.back_off,
                sleep=pause,
                before_sleep=_log_failure,
            )

    def _worth_waiting(self, error: BaseException) -> bool:
        """Whether another try can help. What was right once may be an operator's change under
        way.
        """
        return isinstance(error, BrokerError if self._had_one else BrokerUnavailable)

    async def _session(
        self,
        stop: asyncio.Event,
        background: Background,
        handler_of: Callable[[SessionPort], Handler],
    ) -> None:
        """Consume until the stop, or until the session breaks.

        Raises:
            BrokerError: there is no session to be had, or it broke so soon that the next should not
            be tried at once.
        """
        arrivals: Arrivals = asyncio.Queue()
        opening = self._broker.session(
            lambda lane, delivery: arrivals.put_nowait((lane, delivery)),
            self._on_reply,
            hold=self._policy.hold,
        )
        async with AsyncExitStack() as stack:
            # A broker that takes connections and says nothing must not keep us from stopping.
            session = await unless_set(stop, stack.enter_async_context(opening))
            if session is None:
                return
            await stack.enter_async_context(background.running(self._beside(session)))
            began, self._had_one = time.monotonic(), True
            self._set_connected(True)
            log.info(
                "consuming",
                broker=self._address,
                version=session.version,
                queues=dict(session.kinds),
            )
            try:
                async with (
                    background.running(self._take(arrivals, handler_of(session))),
                    background.running(self._check_once(session)),
                ):
                    await first_of(session.ended(), stop.wait())
                if stop.is_set():
                    await self._in_flight.drain(
                        session,
                        seconds=self._policy.drain,
                        settled_within=self._policy.settled_within,
                    )
                    return
            finally:
                self._set_connected(False)
                self._suspects.session_ended(over_a_publish=session.over_a_publish)
                await self._in_flight.abandon()
        cause, why = await session.ended()
        self._metrics.consumer_restarts.labels(cause).inc()
        log.warning("the session with RabbitMQ ended", cause=cause, why=why)
        if time.monotonic() - began < self._policy.stable_after:
            raise BrokerUnavailable(why)

    async def _take(self, arrivals: Arrivals, handler: Handler) -> None:
        """Have each delivery handled as it arrives."""
        while True:
            lane, delivery = await arrivals.get()
            handling = Handling(delivery)
            self._in_flight.begin(handling, handler.handle(handling, lane.flow_name))

    async def _check_once(self, session: SessionPort) -> None:
        preflight, self._preflight = self._preflight, None
        if preflight is not None:
            await preflight(session)

    def _set_connected(self, connected: bool) -> None:
        self.connected = connected
        self._metrics.broker_connected.set(int(connected))


def _log_failure(state: RetryCallState) -> None:
    log.warning("no session with RabbitMQ", error=str(error_of(state)), tries=state.attempt_number)
