"""The publisher upstream: it sends jobs by confirm over a connection that breaks, and remembers
what it was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, DeliveryError, PublishError

from tests.chaos.history import Published
from tests.chaos.jobs import HAZARDS, Job

AT_ONCE = 64
CONFIRM_SECONDS = 10.0
TROUBLES = (OSError, RuntimeError, TimeoutError, AMQPError)


@dataclass(slots=True)
class Record:
    """What the publisher knows of a job."""

    job: Job
    at: float
    confirmed: int = 0
    in_doubt: int = 0

    def as_event(self) -> Published:
        plan = self.job.plan
        return Published(
            at=self.at,
            job=self.job.id,
            end=plan.end,
            attempts=plan.attempts,
            runs=plan.runs,
            confirmed=self.confirmed,
            in_doubt=self.in_doubt,
            timeout=self.job.timeout,
            parks=plan.parks,
            companion=self.job.companion,
        )


class Publisher:
    """Sends jobs evenly; one whose confirm stays out is sent again or left in doubt, as the job
    says."""

    def __init__(self, url: str, queue: str) -> None:
        self.records: list[Record] = []
        self._url = url
        self._queue = queue
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def send(self, jobs: Iterable[Job], *, rate: float, until: float | None) -> None:
        """Send the jobs, so many a second, until there are no more or until that time of the loop's
        clock."""
        loop = asyncio.get_running_loop()
        began, turns = loop.time(), asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for number, job in enumerate(jobs):
                if until is not None and loop.time() >= until:
                    break
                await asyncio.sleep(began + number / rate - loop.time())
                await turns.acquire()
                group.create_task(self._send(job)).add_done_callback(lambda _: turns.release())

    async def close(self) -> None:
        if self._connection is not None:
            with suppress(*TROUBLES):
                await self._connection.close()

    async def _send(self, job: Job) -> None:
        record = Record(job, time.time())
        self.records.append(record)
        while not record.confirmed:
            try:
                channel = await self._open()
            except TROUBLES:
                await asyncio.sleep(0.3)
                continue
            try:
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await channel.default_exchange.publish(
                        _message(job), self._queue, mandatory=True
                    )
                record.confirmed += 1
            except (PublishError, DeliveryError):
                await asyncio.sleep(0.3)  # the broker says itself that it kept nothing
            except TROUBLES:
                if self._channel is channel:
                    self._channel = None
                record.in_doubt += 1
                if not job.again:
                    return

    async def _open(self) -> AbstractChannel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                await self.close()
                self._connection = await aio_pika.connect(self._url, timeout=5)
                self._channel = await self._connection.channel(on_return_raises=True)
            return self._channel


def _message(job: Job) -> aio_pika.Message:
    hazard = HAZARDS[job.hazard]
    return aio_pika.Message(
        job.body,
        message_id=job.id,
        priority=job.priority,
        content_type="application/json",
        delivery_mode=2,
        headers=dict(hazard.headers),
        reply_to=hazard.reply_to,
    )
