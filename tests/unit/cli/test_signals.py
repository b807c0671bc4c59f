"""Commands that are ended by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from bridge.cli.signals import Signalled, carry_out


@pytest.fixture
def hang_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a program finds SIGHUP to do when it starts. nohup has it ignored."""
    before = signal.signal(signal.SIGHUP, request.param)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("hang_up", [signal.SIG_DFL], indirect=True)
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


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("hang_up", [signal.SIG_IGN], indirect=True)
def test_what_nohup_started_outlives_its_terminal() -> None:
    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        return "done"

    assert carry_out(work()) == "done"
