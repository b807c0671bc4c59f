"""What a broker's alarm is heard by."""

from __future__ import annotations

from aiormq.connection import Connection

from bridge.rabbitmq import alarms


def test_the_handlers_that_are_replaced_are_still_where_they_were() -> None:
    assert [
        name for name in (alarms._BLOCKED, alarms._UNBLOCKED) if not hasattr(Connection, name)
    ] == []
