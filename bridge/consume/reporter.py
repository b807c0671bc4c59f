"""One replica of all is the reporter, and when it is gone another one is.

The reporter is whoever holds an exclusive queue. The others hear its signs of life and try for the
queue once there are none: a try that fails is an error in RabbitMQ's log.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from bridge.consume.hearing import Hearing
from bridge.consume.ports import KestraPort, PublisherPort, SessionPort
from bridge.consume.reporting import Reporting, ReportPolicy, look_back
from bridge.errors import BrokerError, KestraError
from bridge.rabbitmq.topology import reporter_lock
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Reporter:
    """A replica's readiness to be the reporter. `queue` is that of the replicas' first lane."""

    def __init__(
        self,
        *,
        queue: str,
        kestra: KestraPort,
        hearing: Hearing,
        metrics: Metrics,
        policy: ReportPolicy,
    ) -> None:
        self._queue = queue
        self._kestra = kestra
        self._hearing = hearing
        self._metrics = metrics
        self._policy = policy

    async def run(self, session: SessionPort) -> None:
        """Be the reporter whenever there is no other, for as long as the session lasts."""
        failures = 0
        while self._policy.interval:
            await self._hearing.silence(self._policy.silent_after)
            pause, began = self._policy.silent_after, time.monotonic()
            try:
                async with session.leading(reporter_lock(self._queue)) as publisher:
                    if publisher is not None:
                        await self._report(publisher)
            except (BrokerError, KestraError) as error:
                log.warning("no reports from here", error=str(error))
                if time.monotonic() - began > self._policy.rest_at_most:
                    failures = 0
                pause = self._policy.rest_after(failures)
                failures += 1
            await asyncio.sleep(pause)

    async def _report(self, publisher: PublisherPort) -> None:
        """Report until that fails; raises as `Reporting.run` does."""
        back = look_back(self._hearing.unasked_for, list_every=self._policy.list_every)
        reporting = Reporting(
            name=self._queue,
            publisher=publisher,
            kestra=self._kestra,
            told=self._hearing.told,
            metrics=self._metrics,
            back=back,
            policy=self._policy,
        )
        log.info("reports ends to all replicas", back=round(back, 1))
        self._metrics.reporter.set(1)
        try:
            await reporting.run()
        finally:
            self._metrics.reporter.set(0)
