"""Alarms of the broker: while it takes no messages, a connection that publishes waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bridge.errors import BrokerUnavailable

_BLOCKED = "_Connection__handle_connection_blocked"
_UNBLOCKED = "_Connection__handle_connection_unblocked"
"""aiormq's handlers of these two frames; it exposes their content nowhere else."""


@dataclass(slots=True)
class Alarm:
    """Why the broker takes no messages on a connection at present; empty if it does."""

    reason: str = ""


@contextmanager
def heard(connection: Any, say: Callable[[str], None]) -> Iterator[Alarm]:
    """Report at once, through `say`, when the broker blocks a connection, why, and when that ends.

    Raises:
        BrokerUnavailable: raised inside the context; the alarm that explains it is added.
    """
    alarm = Alarm()
    raw = connection.transport.connection
    blocked, unblocked = getattr(raw, _BLOCKED), getattr(raw, _UNBLOCKED)

    async def note_blocked(frame: Any) -> None:
        alarm.reason = str(frame.reason)
        say(f"RabbitMQ takes no messages: {alarm.reason}; waiting")
        await blocked(frame)

    async def note_unblocked(frame: Any) -> None:
        alarm.reason = ""
        say("RabbitMQ takes messages again")
        await unblocked(frame)

    setattr(raw, _BLOCKED, note_blocked)
    setattr(raw, _UNBLOCKED, note_unblocked)
    try:
        yield alarm
    except BrokerUnavailable as error:
        if not alarm.reason:
            raise
        raise BrokerUnavailable(f"RabbitMQ takes no messages: {alarm.reason} ({error})") from error
