"""The stand-in for Kestra as a process of its own, whose replies go to RabbitMQ.

Its executions end at once; those of a flow `hold` never, and those of a flow whose name begins with
`second` after a second. It publishes what the notifier flow would, unless it is started with
`--silent`. It prints where it listens as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import aio_pika

from bridge.rabbitmq.topology import REPLIES
from tests.support.standin import Ends, Run, Standin


def _behave(run: Run) -> Ends:
    if run.flow.startswith("second"):
        return Ends(after=1.0)
    return Ends(after=None) if run.flow == "hold" else Ends()


async def _serve(amqp_url: str) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with await aio_pika.connect(amqp_url) as connection, Standin() as kestra:
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.declare_exchange(REPLIES, "topic", durable=True)

        async def publish(reply: dict[str, Any]) -> None:
            key = f"{reply['state']}.{reply['namespace']}.{reply['flowId']}"
            await exchange.publish(
                aio_pika.Message(json.dumps(reply).encode()), key, mandatory=False
            )

        kestra.any_flow = _behave
        if "--silent" not in sys.argv:
            kestra.replies.on_end = publish
        print(
            json.dumps(
                {"url": kestra.url, "username": kestra.username, "password": kestra.password}
            ),
            flush=True,
        )
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(_serve(os.environ["BRIDGE_AMQP_URL"]))
