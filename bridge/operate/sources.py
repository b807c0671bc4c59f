"""Asks the servers that `status` and `doctor` report on. A server that is away or slow leaves a
gap that says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bridge.errors import BridgeError, BrokerUnavailable
from bridge.rabbitmq.management import Management, QueueState
from bridge.settings import BrokerSettings

ANSWER_WITHIN = 15.0
"""Seconds that a source may take to answer."""

KESTRA = "Kestra"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands for the answer of a source that gave none, and says why."""

    error: BridgeError

    @property
    def why(self) -> str:
        """The reason, on one line."""
        return " ".join(str(self.error).split())


def broker_name(settings: BrokerSettings) -> str:
    """What messages call the broker."""
    return f"RabbitMQ at {settings.broker_address}"


def management_name(management: Management) -> str:
    """What messages call the broker's management API."""
    return f"RabbitMQ's management API at {management.url}"


async def ask(
    question: Awaitable[Answer], source: str, *, within: float = ANSWER_WITHIN
) -> Answer | Unavailable:
    """A source's answer, or why there was none within that many seconds."""
    try:
        async with asyncio.timeout(within):
            return await question
    except BridgeError as error:
        return Unavailable(error)
    except TimeoutError:
        return Unavailable(BrokerUnavailable(f"{source} said nothing for {within:g} s"))


async def queue_states(management: Management, names: Sequence[str]) -> dict[str, QueueState]:
    """The queues of these names that exist, as the management API describes them.

    Raises:
        BrokerError: the API doesn't answer, or refuses the user.
    """
    states = await asyncio.gather(*(management.queue(name) for name in names))
    return {state.name: state for state in states if state}
