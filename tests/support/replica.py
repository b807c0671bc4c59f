"""A service in this process, on a broker and a Kestra in memory: a test takes milliseconds.

    async with World() as world, world.replica(prefetch=1):
        await world.submit("one")
        (line,) = await world.settled(job="one")

Waits that last seconds in production last milliseconds here; a replica's `policies` say which.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Self

from structlog.testing import capture_logs

from bridge.consume.deadline import KillPolicy
from bridge.consume.service import Policies, Service
from bridge.consume.sessions import Preflight
from bridge.job.execution import Execution
from bridge.job.message import Message
from bridge.rabbitmq.topology import dead_queue
from bridge.retrying import BackOff
from bridge.settings import Lane, Settings
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracer
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_kestra import MemoryKestra
from tests.support.standin import Ends

QUEUE = "test.jobs"
DEAD = dead_queue(QUEUE)
RETRY_DELAYS = (30, 300)
LOOKS = 1000
AT_ONCE = BackOff(first=0.001, longest=0.002)
AMQP_PASSWORD = "s3cr3t-of-the-broker"
KESTRA_PASSWORD = "s3cr3t-of-kestra"

Line = Mapping[str, Any]
Change = Callable[[Policies], Policies]


def quick(policies: Policies) -> Policies:
    """The same rules with waits of milliseconds. The sweep and the reporter never come."""
    rules = policies.rules
    return replace(
        policies,
        rules=replace(
            rules,
            after_a_fault=0.001,
            after_faults_at_most=0.002,
        ),
        sessions=replace(policies.sessions, settled_within=0.2, stable_after=0.0, back_off=AT_ONCE),
        lookup=replace(policies.lookup, every=0.001),
        start=replace(policies.start, adopt_grace=0.005, ambiguous_wait=0.005, denied_pause=0.001),
        wait=replace(
            policies.wait,
            confirm_after=0.001,
            successor_within=0.01,
            kill=KillPolicy(again_after=0.002, again_at_most=0.004, look_again_after=0.002),
        ),
        sweep=replace(policies.sweep, interval=3600.0),
        report=replace(policies.report, interval=0.0),
        denials=replace(policies.denials, hold=0.0),
        ledger=policies.ledger
        and replace(policies.ledger, grace=0.005, patience=0.01, answer=1.0, settling=0.0),
        publishing=AT_ONCE,
        back_off=AT_ONCE,
    )


def _message(job: str | None, body: object, properties: Mapping[str, Any]) -> Message:
    payload = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return Message(body=payload, message_id=job, **properties)


@cache
def _settings() -> Settings:
    """The settings that a test changes parts of. Reading them takes longer than a test."""
    return Settings.model_validate(
        {
            "amqp_url": f"amqp://bridge:{AMQP_PASSWORD}@rabbit/",
            "kestra_url": "http://kestra",
            "kestra_username": "bridge@example.org",
            "kestra_password": KESTRA_PASSWORD,
            "queue": QUEUE,
            "flow": "test/job",
            "allowed_flows": ["test/*"],
            "retry_delays": RETRY_DELAYS,
            "drain_timeout": 0.0,
        }
    )


def settings_for_a_test(**changed: Any) -> Settings:
    """Settings with these changes, which are not validated."""
    return _settings().model_copy(update=changed)


def unchanged(policies: Policies) -> Policies:
    return policies


@dataclass
class Replica:
    """A service, and how it is stopped."""

    service: Service
    metrics: Metrics
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's sample; 0 where there is none."""
        return self.metrics.registry.get_sample_value(f"bridge_{name}", labels) or 0.0


class World:
    """A broker with one lane, a Kestra with the flow `test/job` that succeeds at once, and what
    replicas log."""

    def __init__(self, *, prefetch: int = 8, kestra: MemoryKestra | None = None) -> None:
        lane = Lane(queue=QUEUE, prefetch=prefetch, flow="test/job")
        self.broker = MemoryBroker(lane, retry_delays=RETRY_DELAYS)
        self.kestra = kestra or MemoryKestra()
        self.kestra.flow("test", "job")
        self.kestra.on_end = self.reply
        self.lines: list[MutableMapping[str, Any]] = []
        self.prefetch = prefetch
        self._capturing = capture_logs()

    def reply(self, run: Execution) -> None:
        """Tell every replica of an end, as the notifier does."""
        assert run.ended is not None
        body = {"executionId": run.id, "state": run.state.value, "endedAt": run.ended.isoformat()}
        self.broker.reply(json.dumps(body).encode())

    async def submit(self, job: str | None, body: object = None, **properties: Any) -> None:
        """Publish a job message; `body` is JSON, or bytes as they are."""
        await self.broker.submit(QUEUE, _message(job, body, properties))

    def submit_without_waiting(
        self, job: str | None, body: object = None, **properties: Any
    ) -> None:
        """Publish a job message whose confirm may not come yet."""
        self.broker.put(QUEUE, _message(job, body, properties))

    def replica_of(
        self,
        change: Change = unchanged,
        *,
        preflight: Preflight | None = None,
        **settings: Any,
    ) -> Replica:
        """A replica that does not run yet."""
        chosen = settings_for_a_test(prefetch=self.prefetch, **settings)
        metrics = Metrics({QUEUE: self.prefetch})
        service = Service(
            chosen,
            broker=self.broker,
            kestra=self.kestra,
            metrics=metrics,
            tracer=Tracer(),
            preflight=preflight,
            policies=change(quick(Policies.of(chosen))),
        )
        return Replica(service, metrics)

    @asynccontextmanager
    async def replica(self, change: Change = unchanged, **more: Any) -> AsyncIterator[Replica]:
        """A replica that consumes; it is stopped at the block's end, which it may be before."""
        replica = self.replica_of(change, **more)
        running = asyncio.create_task(replica.service.run(replica.stop))
        try:
            consumes = replica.service.ready
            await self.until(lambda: consumes()["broker"] or running.done(), "a session")
            yield replica
        finally:
            replica.stop.set()
            await asyncio.wait_for(running, 10)

    def events(self, event: str, **fields: object) -> list[Line]:
        """The log lines with that event and those fields, oldest first."""
        return [
            line for line in self.lines if line["event"] == event and fields.items() <= line.items()
        ]

    async def settled(self, count: int = 1, **fields: object) -> list[Line]:
        """The lines of settled deliveries with those fields, once there are that many."""
        what = f"{count} settled {fields}"
        await self.until(lambda: len(self.events("settled", **fields)) >= count, what)
        return self.events("settled", **fields)

    async def until(self, probe: Callable[[], object], what: str) -> None:
        """Wait for something to come true.

        The wait is bounded by a number of looks, about a second of them. A machine that is too busy
        to look often gives the bridge no time to work either.
        """
        for _ in range(LOOKS):
            if probe():
                return
            await asyncio.sleep(0.0005)
        events = [line["event"] for line in self.lines]
        raise AssertionError(f"not after {LOOKS} looks: {what}; logged so far: {events[-10:]}")

    async def running(self, count: int = 1) -> list[Execution]:
        """The executions that were created, once there are that many."""
        await self.until(lambda: len(self.kestra.created) >= count, f"{count} executions")
        return self.kestra.created

    def run_until_ended(self) -> None:
        """Let executions run until a test ends them."""
        self.kestra.flow("test", "job", Ends(after=None))

    def fail_first_attempts(self) -> None:
        """Let executions of first attempts fail, and later ones succeed."""

        def behave(run: Execution) -> Ends:
            return Ends("FAILED" if run.labels["bridgeAttempt"] == "1" else "SUCCESS")

        self.kestra.flow("test", "job", behave)

    async def __aenter__(self) -> Self:
        self.lines = self._capturing.__enter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._capturing.__exit__(None, None, None)
        self.kestra.close()
        assert self.broker.violations == []
