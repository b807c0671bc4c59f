"""Asks the servers that `status` and `doctor` report on. A server that is away or slow leaves a
gap that says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from bridge.errors import BridgeError, BrokerUnavailable

ANSWER_WITHIN = 15.0
"""Seconds that a source may take to answer."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands for the answer of a source that gave none, and says why."""

    error: BridgeError

    @property
    def why(self) -> str:
        """The reason, on one line."""
        return " ".join(str(self.error).split())


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
