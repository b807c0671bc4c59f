"""The consumer as a whole: what it is made of, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog
from tenacity import RetryCallState

from bridge.aio import Background, unless_set
from bridge.consume.claiming import Ledger
from bridge.consume.completions import CompletionRouter, EarlyReplies
from bridge.consume.denials import DenialPolicy, Denials
from bridge.consume.handler import Handler, HandlerRules
from bridge.consume.hearing import Hearing
from bridge.consume.inflight import InFlight
from bridge.consume.ledger import LedgerPolicy
from bridge.consume.lookup import Lookup, LookupPolicy
from bridge.consume.machine_time import MachineTime, MachineTimePolicy
from bridge.consume.ports import BrokerPort, KestraPort, SessionPort
from bridge.consume.publishing import Publishing
from bridge.consume.record import Recorder
from bridge.consume.reporter import Reporter
from bridge.consume.reporting import ReportPolicy
from bridge.consume.results import Results
from bridge.consume.sessions import Preflight, SessionPolicy, Sessions
from bridge.consume.settler import Settler
from bridge.consume.starter import Starter, StartPolicy
from bridge.consume.suspects import Suspects
from bridge.consume.sweep import Reconciler, SweepPolicy
from bridge.consume.waiter import OutcomeWaiter, WaitPolicy
from bridge.errors import KestraError, KestraUnavailable
from bridge.retrying import BackOff, Retrying, error_of, retry
from bridge.settings import Settings
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The rules that a service goes by, a group for each of its parts.

    `ledger` is None where there are to be no ledgers. `back_off` is for questions that Kestra does
    not answer, and `publishing` for publishes that fail. The event loop beats every `beat` seconds,
    and counts as stuck `stuck_after` seconds after the last beat.
    """

    rules: HandlerRules
    sessions: SessionPolicy
    lookup: LookupPolicy
    start: StartPolicy
    wait: WaitPolicy
    sweep: SweepPolicy
    report: ReportPolicy
    ledger: LedgerPolicy | None = None
    machine_time: MachineTimePolicy = field(default_factory=MachineTimePolicy)
    denials: DenialPolicy = field(default_factory=DenialPolicy)
    early: EarlyReplies = field(default_factory=EarlyReplies)
    publishing: BackOff = field(default_factory=lambda: BackOff(longest=30.0))
    back_off: BackOff = field(default_factory=lambda: BackOff(shortest=0.2))
    beat: float = 1.0
    stuck_after: float = 30.0

    @classmethod
    def of(cls, settings: Settings) -> Policies:
        """The rules that the settings ask for."""
        ledger = None
        if settings.deduplicate != "redelivered":
            ledger = LedgerPolicy(window=settings.deduplicate_window, grace=settings.adopt_grace)
        return cls(
            rules=HandlerRules(
                policy=settings.policy,
                flows=settings.flow_patterns,
                max_priority=settings.max_priority,
            ),
            sessions=SessionPolicy(hold=settings.hold, drain=settings.drain_timeout),
            lookup=LookupPolicy(window=settings.deduplicate_window),
            start=StartPolicy(
                always_look=settings.deduplicate == "always",
                without_ledger=settings.deduplicate != "redelivered",
                adopt_grace=settings.adopt_grace,
                ambiguous_wait=settings.ambiguous_wait,
            ),
            wait=WaitPolicy(job_timeout=settings.job_timeout),
            sweep=SweepPolicy(
                interval=settings.reconcile_interval, reporting=settings.report_interval > 0
            ),
            report=ReportPolicy(
                interval=settings.report_interval, list_every=settings.reconcile_interval
            ),
            ledger=ledger,
            machine_time=MachineTimePolicy(
                flows=settings.flows_with_machines, prices=settings.prices_per_hour
            ),
        )


class Service:
    """One replica of the bridge, in this process."""

    def __init__(
        self,
        settings: Settings,
        *,
        broker: BrokerPort,
        kestra: KestraPort,
        metrics: Metrics,
        tracer: Tracer,
        preflight: Preflight | None = None,
        policies: Policies | None = None,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._kestra = kestra
        self._metrics = metrics
        self._tracer = tracer
        self._policies = policies or Policies.of(settings)
        self._stop = asyncio.Event()
        self._beat = time.monotonic()
        self._suspects = Suspects()
        self._completions = CompletionRouter(metrics, early=self._policies.early)
        first_lane = settings.all_lanes[0].queue
        self._hearing = Hearing(
            reporter=first_lane,
            completions=self._completions,
            metrics=metrics,
            shown_within=self._policies.sweep.shown_within,
        )
        reporter = Reporter(
            queue=first_lane,
            kestra=kestra,
            hearing=self._hearing,
            metrics=metrics,
            policy=self._policies.report,
        )
        self._in_flight = InFlight(metrics, job_timeout=self._policies.wait.job_timeout)
        self._sessions = Sessions(
            broker=broker,
            address=settings.broker_address,
            on_reply=self._hearing.on_message,
            beside=reporter.run,
            preflight=preflight,
            in_flight=self._in_flight,
            suspects=self._suspects,
            metrics=metrics,
            policy=self._policies.sessions,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then drain. A part that fails sets it, too.

        Raises:
            BridgeError: what only an operator can fix, found before the first delivery.
        """
        self._stop = stop
        background = Background(stop)
        async with background.running(self._keep_beat()):
            if await self._kestra_answers():
                await self._consume(background)
        if background.failure:
            raise background.failure
        log.info("stopped")

    @property
    def in_flight(self) -> int:
        """How many deliveries are taken and not settled."""
        return len(self._in_flight)

    def live(self) -> dict[str, bool]:
        """The conditions under which the process works; read from another thread."""
        stuck = time.monotonic() - self._beat >= self._policies.stuck_after
        return {"event_loop": not stuck}

    def ready(self) -> dict[str, bool]:
        """The conditions under which jobs are taken; read from another thread."""
        return {
            "broker": self._sessions.connected,
            "kestra": self._kestra.up,
            "accepting": not self._stop.is_set(),
        }

    async def _kestra_answers(self) -> bool:
        """Wait for Kestra before anything is taken from the broker; False where the stop comes
        before.
        """
        probing = retry(
            self._kestra.probe,
            on=(KestraUnavailable,),
            wait=self._policies.back_off,
            before_sleep=_log_waiting,
        )
        version = await unless_set(self._stop, probing)
        if version is None:
            return False
        log.info("kestra answers", url=self._settings.kestra_url, version=version)
        return True

    async def _consume(self, background: Background) -> None:
        """Put the parts together and hold sessions until the stop."""
        kestra, metrics, policies = self._kestra, self._metrics, self._policies
        retrying = Retrying(self._stop, back_off=policies.back_off)
        lookup = Lookup(kestra=kestra, metrics=metrics, retrying=retrying, policy=policies.lookup)
        ledgers = self._ledgers()
        starter = Starter(
            kestra=kestra,
            metrics=metrics,
            retrying=retrying,
            lookup=lookup,
            ledgers=ledgers,
            denials=Denials(kestra, policies.denials),
            policy=policies.start,
        )
        waiter = OutcomeWaiter(
            kestra=kestra,
            completions=self._completions,
            lookup=lookup,
            metrics=metrics,
            policy=policies.wait,
        )
        reconciler = Reconciler(
            kestra=kestra,
            completions=self._completions,
            hearing=self._hearing,
            metrics=metrics,
            policy=policies.sweep,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(background.running(reconciler.run()))
            for ledger in ledgers.values():
                await stack.enter_async_context(background.running(ledger.run()))
            await self._sessions.run(
                self._stop, background, lambda session: self._handler(session, starter, waiter)
            )

    def _ledgers(self) -> dict[str, Ledger]:
        """The ledger of each lane by its queue; none where there are to be none."""
        policy = self._policies.ledger
        if policy is None:
            return {}
        return {
            lane.queue: Ledger(
                lane.queue,
                broker=self._broker,
                nothing_before=partial(self._nothing_before, lane.queue, policy.window),
                metrics=self._metrics,
                policy=policy,
                back_off=self._policies.sessions.back_off,
            )
            for lane in self._settings.all_lanes
        }

    async def _nothing_before(self, queue: str, window: float) -> bool:
        """Whether it is certain that no job of a queue has had an execution in that many
        seconds.
        """
        since = self._kestra.now() - timedelta(seconds=window)
        try:
            return not await self._kestra.has_run(queue, since=since)
        except KestraError as error:
            log.info("kestra does not say what ran before", queue=queue, error=str(error))
            return False

    def _handler(self, session: SessionPort, starter: Starter, waiter: OutcomeWaiter) -> Handler:
        rules = self._policies.rules
        recorder = Recorder(self._metrics, now=self._kestra.now, max_priority=rules.max_priority)
        settler = Settler(
            publishing=Publishing(
                publisher=session.publisher,
                isolated=session.isolated,
                suspects=self._suspects,
                back_off=self._policies.publishing,
            ),
            results=Results(kestra=self._kestra, publisher=session.results, recorder=recorder),
            recorder=recorder,
            policy=rules.policy,
        )
        return Handler(
            rules=rules,
            starter=starter,
            waiter=waiter,
            machine_time=MachineTime(
                kestra=self._kestra, metrics=self._metrics, policy=self._policies.machine_time
            ),
            settler=settler,
            recorder=recorder,
            tracer=self._tracer,
        )

    async def _keep_beat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(self._policies.beat)


def _log_waiting(state: RetryCallState) -> None:
    log.warning("waiting for Kestra", error=str(error_of(state)), tries=state.attempt_number)
