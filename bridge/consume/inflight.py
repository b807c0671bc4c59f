"""The deliveries in flight: a task for each, their gauges, and what becomes of them at a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from bridge.aio import cancelled, first_of
from bridge.consume.handling import Handling
from bridge.consume.ports import SessionPort
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class InFlight:
    """Knows the deliveries in flight. `job_timeout` is that of jobs which name none, in seconds."""

    def __init__(self, metrics: Metrics, *, job_timeout: float) -> None:
        self._metrics = metrics
        self._job_timeout = job_timeout
        self._handlings: dict[asyncio.Task[None], Handling] = {}
        metrics.oldest_in_flight.set_function(self._oldest)
        metrics.overdue.set_function(self._overdue)

    def __len__(self) -> int:
        return len(self._handlings)

    def begin(self, handling: Handling, work: Coroutine[Any, Any, None]) -> None:
        """Do a delivery's work in a task of its own."""
        delivery = handling.delivery
        task = asyncio.create_task(work, name=f"job {delivery.message.message_id}")
        self._handlings[task] = handling
        self._metrics.in_flight.labels(delivery.lane).inc()
        task.add_done_callback(self._end)

    async def drain(self, session: SessionPort, *, seconds: float, settled_within: float) -> None:
        """Take nothing new, and let what is in flight end for that many seconds.

        What has not ended then is left to the broker. A settlement that has begun may take a little
        longer, up to `settled_within` seconds. There is no waiting once the session has ended.
        """
        log.info("draining", in_flight=len(self), seconds=seconds)
        await session.stop_consuming()
        lost = asyncio.ensure_future(session.ended())
        try:
            await first_of(lost, self._empty(), timeout=seconds)
            for task, handling in list(self._handlings.items()):
                if not handling.settling:
                    task.cancel()
            await first_of(lost, self._empty(), timeout=settled_within)
        finally:
            lost.cancel()

    async def abandon(self) -> None:
        """Drop the deliveries of a session that is over: nothing done for them from here on could
        count.
        """
        tasks = list(self._handlings)
        await cancelled(*tasks)
        if tasks:
            log.info("left to the broker", deliveries=len(tasks))

    def _end(self, task: asyncio.Task[None]) -> None:
        handling = self._handlings.pop(task)
        self._metrics.in_flight.labels(handling.delivery.lane).dec()

    async def _empty(self) -> None:
        while self._handlings:
            await asyncio.wait(self._handlings)

    def _oldest(self) -> float:
        """Seconds; read from the metrics' thread, hence the copy."""
        ages = [handling.age for handling in list(self._handlings.values())]
        return max(ages, default=0.0)

    def _overdue(self) -> float:
        """Seconds; read from the metrics' thread, hence the copy."""
        handlings = list(self._handlings.values())
        return max((handling.overdue(self._job_timeout) for handling in handlings), default=0.0)
