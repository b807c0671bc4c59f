"""The consumer as a whole: what it is made of, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    retry_if_exception_type,
    wait_random_exponential,
)

from bridge import __version__
from bridge.consume.completions import CompletionRouter
from bridge.consume.handler import Case, Handler
from bridge.consume.starter import LONGEST_BACKOFF, Patience, Starter
from bridge.consume.suspects import Suspects
from bridge.consume.sweep import Reconciler
from bridge.consume.waiter import OutcomeWaiter
from bridge.errors import BridgeError, BrokerError, BrokerUnavailable, KestraUnavailable
from bridge.job.message import Delivery
from bridge.kestra import DEFAULT_LIMITS, Kestra, RequestLimits
from bridge.operate.doctor.checks import at_start
from bridge.operate.doctor.gather import kestra_facts, known_at_start
from bridge.rabbitmq.broker import Broker, Session
from bridge.settings import Lane, Settings, authority
from bridge.telemetry import health
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracer

SETTLED_SOON = 10.0
STABLE_AFTER = 10.0
LOOP_BEAT = 1.0
LOOP_STUCK_AFTER = 30.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)
Result = TypeVar("Result")


class Service:
    """One replica of the bridge."""

    def __init__(self, settings: Settings, tracer: Tracer) -> None:
        self._settings = settings
        self._tracer = tracer
        lanes = {lane.queue: lane.prefetch for lane in settings.all_lanes}
        self._metrics = Metrics(
            lanes, vhost=settings.virtual_host, max_priority=settings.max_priority
        )
        self._stopping = asyncio.Event()
        self._beat = time.monotonic()
        self._failure: BaseException | None = None
        self._had_session = False
        self._looked_over = False
        self._connected = False
        self._cases: dict[asyncio.Task[None], Case] = {}
        self._broker = Broker(settings)
        self._suspects = Suspects()
        self._watch = CompletionRouter(self._metrics)
        longest = DEFAULT_LIMITS.create_timeout
        grace = settings.adopt_grace or longest
        limits = RequestLimits(create_timeout=min(longest, 0.8 * grace))
        self._kestra = Kestra(settings, self._metrics, limits=limits)
        self._starter = Starter(
            kestra=self._kestra,
            metrics=self._metrics,
            patience=Patience(self._stopping),
            always_look=settings.deduplicate == "always",
            window=settings.deduplicate_window,
            adopt_grace=settings.adopt_grace,
            ambiguous_wait=settings.ambiguous_wait,
        )
        self._concluder = OutcomeWaiter(
            kestra=self._kestra,
            watch=self._watch,
            starter=self._starter,
            metrics=self._metrics,
            job_timeout=settings.job_timeout,
        )
        self._reconciler = Reconciler(
            kestra=self._kestra,
            watch=self._watch,
            metrics=self._metrics,
            interval=settings.reconcile_interval,
        )

    async def run(self) -> None:
        """Consume until SIGTERM or SIGINT, then drain. A second signal ends the process at once.

        Raises:
            BridgeError: what only an operator can mend, found before the first delivery.
        """
        self._metrics.oldest_in_flight.set_function(self._oldest)
        self._metrics.overdue.set_function(self._overdue)
        async with self._kestra, self._signals(), self._background(self._keep_beat()):
            with health.serve(
                self._metrics.registry,
                live=self._live,
                ready=self._ready,
                host=self._settings.http_host,
                port=self._settings.http_port,
            ) as port:
                http = f"http://{authority(self._settings.http_host, port)}"
                log.info("starting", version=__version__, http=http, pid=os.getpid())
                if await self._kestra_answers():
                    async with (
                        self._background(self._reconciler.run()),
                        self._background(self._starter.second_look.run()),
                    ):
                        await self._consume()
                if self._failure:
                    raise self._failure
                log.info("stopped")

    async def _kestra_answers(self) -> bool:
        """Wait for Kestra before taking anything from the broker; False when told to stop
        meanwhile.
        """
        version = await self._unless_stopping(self._first_probe())
        if version is not None:
            log.info("kestra answers", url=self._settings.kestra_url, version=version)
        return version is not None

    async def _first_probe(self) -> str:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(KestraUnavailable),
            wait=wait_random_exponential(multiplier=0.5, max=LONGEST_BACKOFF),
            before_sleep=_say("waiting for Kestra"),
            reraise=True,
        ):
            with attempt:
                return await self._kestra.probe()
        raise AssertionError("unreachable")

    async def _consume(self) -> None:
        """Hold one session after the other, until told to stop."""
        while not self._stopping.is_set():
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(self._worth_waiting),
                wait=wait_random_exponential(multiplier=0.5, max=LONGEST_BACKOFF),
                sleep=self._pause,
                before_sleep=_say("no session with RabbitMQ"),
                reraise=True,
            ):
                with attempt:
                    if not self._stopping.is_set():
                        await self._session()

    def _worth_waiting(self, error: BaseException) -> bool:
        """Whether another try can help: what was right once may only be an operator's change under
        way.
        """
        return isinstance(error, BrokerError if self._had_session else BrokerUnavailable)

    async def _session(self) -> None:
        """Consume until told to stop, or until the session breaks.

        Raises:
            BrokerError: there's no session to be had, or it broke so soon that the next is not to
            be tried at once.
        """
        arrivals: asyncio.Queue[tuple[Lane, Delivery]] = asyncio.Queue()
        opening = self._broker.session(
            lambda lane, delivery: arrivals.put_nowait((lane, delivery)),
            self._watch.receive,
            hold=self._settings.hold,
        )
        async with AsyncExitStack() as stack:
            # A broker that takes connections and says nothing must not keep us from stopping.
            session = await self._unless_stopping(stack.enter_async_context(opening))
            if session is None:
                return
            began, self._had_session = time.monotonic(), True
            self._set_connected(True)
            log.info(
                "consuming",
                broker=self._settings.broker_address,
                version=session.version,
                queues=dict(session.kinds),
            )
            try:
                async with (
                    self._background(self._take(arrivals, session)),
                    self._background(self._look_over(session)),
                ):
                    await _either(session.ended(), self._stopping.wait())
                if self._stopping.is_set():
                    await self._drain(session)
                    return
            finally:
                self._set_connected(False)
                self._suspects.session_ended(over_a_publish=session.over_a_publish)
                await self._abandon()
        cause, why = await session.ended()
        self._metrics.consumer_restarts.labels(cause).inc()
        log.warning("the session with RabbitMQ ended", cause=cause, why=why)
        if time.monotonic() - began < STABLE_AFTER:
            raise BrokerUnavailable(why)

    async def _look_over(self, session: Session) -> None:
        """Warn once of what the doctor would find too, as far as that costs next to nothing."""
        if self._looked_over:
            return
        self._looked_over = True
        try:
            of_kestra = await kestra_facts(self._kestra, self._settings)
            facts = known_at_start(self._settings, of_kestra, session.version, session.kinds)
            findings = at_start(self._settings, facts)
        except BridgeError as error:
            log.info("what the doctor checks was not checked", error=str(error))
            return
        for finding in findings:
            log.warning(
                "the doctor finds",
                check=finding.check,
                what=finding.what,
                why=finding.why,
                mend=finding.fix,
            )

    async def _unless_stopping(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """What the work gives, or None when told to stop before it is done."""
        task = asyncio.create_task(work)
        await _either(task, self._stopping.wait())
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait([task])
        return None

    def _set_connected(self, connected: bool) -> None:
        self._connected = connected
        self._metrics.broker_connected.set(int(connected))

    async def _take(self, arrivals: asyncio.Queue[tuple[Lane, Delivery]], session: Session) -> None:
        handler = Handler(
            kestra=self._kestra,
            publisher=session.publisher,
            isolated=session.isolated,
            results=session.results,
            suspects=self._suspects,
            starter=self._starter,
            waiter=self._concluder,
            metrics=self._metrics,
            tracer=self._tracer,
            policy=self._settings.policy,
            flows=self._settings.flow_patterns,
            max_priority=self._settings.max_priority,
        )
        while True:
            lane, delivery = await arrivals.get()
            case = Case(delivery)
            task = asyncio.create_task(
                handler.handle(case, lane.flow_name), name=f"job {delivery.message.message_id}"
            )
            self._cases[task] = case
            self._metrics.in_flight.labels(lane.queue).inc()
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        case = self._cases.pop(task)
        self._metrics.in_flight.labels(case.delivery.lane).dec()

    async def _drain(self, session: Session) -> None:
        """Take nothing new and let what runs end, for the drain time; a settlement may take a
        little longer.
        """
        log.info("draining", in_flight=len(self._cases), seconds=self._settings.drain_timeout)
        await session.stop_consuming()
        ended = asyncio.ensure_future(session.ended())
        try:
            await _either(ended, self._all_closed(), timeout=self._settings.drain_timeout)
            for task, case in list(self._cases.items()):
                if not case.settling:
                    task.cancel()
            await _either(ended, self._all_closed(), timeout=SETTLED_SOON)
        finally:
            ended.cancel()

    async def _all_closed(self) -> None:
        while self._cases:
            await asyncio.wait(self._cases)

    async def _abandon(self) -> None:
        """Drop the deliveries of a session that is over: nothing done for them from here on could
        count.
        """
        tasks = list(self._cases)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            log.info("left to the broker", deliveries=len(tasks))

    async def _pause(self, seconds: float) -> None:
        await _either(self._stopping.wait(), timeout=seconds)

    async def _keep_beat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(LOOP_BEAT)

    def _live(self) -> dict[str, bool]:
        return {"event_loop": time.monotonic() - self._beat < LOOP_STUCK_AFTER}

    def _ready(self) -> dict[str, bool]:
        return {
            "broker": self._connected,
            "kestra": self._kestra.up,
            "accepting": not self._stopping.is_set(),
        }

    def _oldest(self) -> float:
        """Seconds; read from the metrics' thread, hence the copy."""
        return max((case.age for case in list(self._cases.values())), default=0.0)

    def _overdue(self) -> float:
        """Seconds; read from the metrics' thread, hence the copy."""
        limit = self._settings.job_timeout
        return max((case.overdue(limit) for case in list(self._cases.values())), default=0.0)

    @asynccontextmanager
    async def _background(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Something that goes on beside the block and ends with it. If it fails, the service stops
        and says why.
        """
        task = asyncio.create_task(work)
        task.add_done_callback(self._stop_on_failure)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _stop_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._failure = error
            self._stopping.set()

    @asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            log.warning("stopping at once", signal=number.name, in_flight=len(self._cases))
            os._exit(128 + number)
        log.info("stopping", signal=number.name, in_flight=len(self._cases))
        self._stopping.set()


async def _either(*waits: Awaitable[object], timeout: float | None = None) -> None:
    """Return when the first of them is done, or after so many seconds. What was made a task here is
    cancelled.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:
                task.cancel()


def _say(event: str) -> Callable[[RetryCallState], None]:
    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(event, error=str(error), tries=state.attempt_number)

    return say
