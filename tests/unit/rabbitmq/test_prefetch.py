"""A consumer's prefetch is set on its channel before it consumes."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, MagicMock

import aio_pika
import pytest

from bridge.rabbitmq.broker import Broker
from bridge.settings import BrokerSettings

LANES = [{"queue": "short", "prefetch": 5}, {"queue": "long", "prefetch": 2}]


class Wire:
    """What a broker is asked for, on connections that answer everything."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    async def connect(self, *_: object, **__: object) -> Any:
        connection = AsyncMock()
        connection.close_callbacks = set()
        connection.transport.connection.server_properties = {"version": b"4.3.0"}
        connection.transport.connection.connection_tune.frame_max = 131_072
        connection.channel = MagicMock(side_effect=lambda **_: Channel(self))
        return connection


class Channel(AsyncMock):
    """A channel that notes its prefetch and what is consumed on it."""

    def __init__(self, wire: Wire | None = None, **more: Any) -> None:
        super().__init__(**more)
        if wire is None:
            return
        raw = AsyncMock()
        raw.on_consumer_cancel_callbacks = set()
        raw.basic_consume = AsyncMock(side_effect=lambda queue, *_, **__: self.note(wire, queue))
        self.close_callbacks: set[Any] = set()
        self.get_underlay_channel = AsyncMock(return_value=raw)
        self.prefetch = 0

    async def set_qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count

    def note(self, wire: Wire, queue: str) -> None:
        wire.asked.append((queue, self.prefetch))

    def __await__(self) -> Any:
        async def opened() -> Channel:
            return self

        return opened().__await__()


async def test_each_lane_consumes_with_its_own_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    monkeypatch.setattr(aio_pika, "connect", wire.connect)
    settings = BrokerSettings.model_validate({"amqp_url": "amqp://rabbit/", "lanes": LANES})
    async with Broker(settings).session(lambda *_: None, lambda _: None, hold=60):
        pass
    consumed = dict(wire.asked)
    assert {name: consumed[name] for name in ("short", "long")} == {"short": 5, "long": 2}
