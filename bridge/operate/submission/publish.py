"""Publishes a batch and collects its results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from bridge.errors import BrokerError, BrokerUnavailable
from bridge.operate.submission.batch import Batch, JobResult, job_result
from bridge.rabbitmq.broker import Publisher, ReplyQueue
from bridge.rabbitmq.error_translation import rights_error

UNCONFIRMED_AT_ONCE = 256
"""Messages under way to RabbitMQ at the same time."""


async def publish_all(
    publisher: Publisher,
    batch: Batch,
    *,
    queue: str,
    reply_to: str | None,
    confirmed: Callable[[], None],
) -> BrokerError | None:
    """Publish the batch in order, and call `confirmed` for each message that RabbitMQ confirms.

    Returns the first error. After it nothing more is published, but the messages that are under way
    are waited for.
    """
    errors: list[BrokerError] = []
    jobs = iter(batch.jobs)

    async def publish_one_by_one() -> None:
        for job in jobs:
            message = job.sent(datetime.now(UTC), reply_to=reply_to)
            batch.in_doubt.add(job.id)
            try:
                await publisher.publish(message, exchange=queue, routing_key=queue)
            except BrokerUnavailable as error:
                denied = rights_error(error)
                if denied is not None:
                    batch.in_doubt.discard(job.id)
                # Else RabbitMQ may have got the message before the connection broke.
                errors.append(denied or error)
            except BrokerError as error:
                batch.in_doubt.discard(job.id)
                errors.append(error)
            else:
                batch.in_doubt.discard(job.id)
                batch.submitted.add(job.id)
                confirmed()
            if errors:
                return

    await asyncio.gather(*(publish_one_by_one() for _ in range(UNCONFIRMED_AT_ONCE)))
    return errors[0] if errors else None


async def collect_results(
    reply_queue: ReplyQueue,
    batch: Batch,
    *,
    limit: float | None,
    arrived: Callable[[JobResult], None],
) -> None:
    """Take results until every job has one or that many seconds have passed, and call `arrived`
    for each.

    Raises:
        BrokerUnavailable: the connection was lost.
    """
    try:
        async with asyncio.timeout(limit):
            while not batch.all_have_results:
                result = job_result(await reply_queue.take())
                if result is not None and batch.add(result):
                    arrived(result)
    except TimeoutError:
        return
