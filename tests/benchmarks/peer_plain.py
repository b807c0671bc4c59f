"""What one would write with aio-pika: `message.process()` around a create call, and questions until
it has ended."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aio_pika
import httpx
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.kestra import Kestra

FLOW = os.environ.get("BRIDGE_FLOW", "")
PREFETCH = int(os.environ.get("BRIDGE_PREFETCH", "8"))
ASK_EVERY = 0.25
"""Seconds; as often as one would dare to ask for each job."""


def creation(job: str) -> dict[str, Any]:
    """The create call's arguments."""
    labels = {"bridge": "amqp", "bridgeJob": job, "bridgeAttempt": "1"}
    return {
        "params": [("labels", f"{key}:{value}") for key, value in labels.items()],
        "files": [("text", (None, "a benchmark's job"))],
    }


def ended(execution: dict[str, Any]) -> bool:
    """Whether it has ended in success."""
    return bool(execution["state"]["current"] == "SUCCESS")


async def main() -> None:
    async with (
        await aio_pika.connect_robust(os.environ["BRIDGE_AMQP_URL"]) as connection,
        httpx.AsyncClient(**Kestra.of(os.environ).client) as http,
    ):

        async def handle(message: AbstractIncomingMessage) -> None:
            async with message.process():
                answer = await http.post(f"/executions/{FLOW}", **creation(str(message.message_id)))
                execution = answer.raise_for_status().json()["id"]
                path = f"/executions/{execution}"
                while not ended((await http.get(path)).raise_for_status().json()):  # noqa: ASYNC110
                    await asyncio.sleep(ASK_EVERY)

        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(os.environ["BRIDGE_QUEUE"])
        await queue.consume(handle)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main())
