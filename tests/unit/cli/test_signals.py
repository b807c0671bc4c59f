"""Commands that are ended by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from bridge.cli.signals import Signalled, carry_out


@pytest.fixture
def ignored_hang_up() -> Iterator[None]:
    """What nohup does before it starts a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_cancels_the_work_which_cleans_up(number: signal.Signals) -> None:
    cleaned_up: list[bool] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            cleaned_up.append(True)

    with pytest.raises(Signalled) as caught:
        carry_out(work())
    assert (caught.value.code, cleaned_up) == (128 + number, [True])


@pytest.mark.usefixtures("ignored_hang_up")
def test_what_nohup_started_outlives_its_terminal() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        return "done"

    assert carry_out(work()) == "done"
