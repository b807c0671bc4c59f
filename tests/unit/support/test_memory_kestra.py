"""The Kestra in memory does what the client makes of the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from bridge.consume.ports import KestraPort
from bridge.kestra import Kestra
from tests.support.harness import settings_of
from tests.support.kestra_suite import KestraSuite, KestraUnderTest, Server
from tests.support.memory_kestra import MemoryKestra
from tests.support.standin import Ends, Standin


@dataclass
class Under:
    kestra: KestraPort
    server: Server


class TestMemoryKestra(KestraSuite):
    """The one in memory."""

    @pytest.fixture
    def under(self) -> KestraUnderTest:
        kestra = MemoryKestra()
        kestra.flow("test", "job", Ends(after=None))
        return Under(kestra, kestra)


class TestClient(KestraSuite):
    """The client, with the stand-in."""

    @pytest.fixture
    async def under(self) -> AsyncIterator[KestraUnderTest]:
        async with Standin() as server, Kestra(settings_of(server)) as kestra:
            server.flow("test", "job", Ends(after=None))
            yield Under(kestra, server)
