"""Looking again until something is so."""

from __future__ import annotations

import time

import pytest

from bridge.machines.polling import until


async def test_no_pause_outlasts_the_timeout() -> None:
    async def look() -> None:
        return None

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await until(look, timeout=0.05, pause=60, longest_pause=60)
    assert time.monotonic() - began < 30


async def test_it_looks_once_more_when_the_time_is_up() -> None:
    looks: list[float] = []
    began = time.monotonic()

    async def look() -> bool | None:
        looks.append(time.monotonic() - began)
        return True if looks[-1] >= 0.05 else None

    assert await until(look, timeout=0.05, pause=60, longest_pause=60)
