"""Asking Kestra again: what is waited out, for how long, and what is raised at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs
from tenacity import stop_after_attempt

from bridge.errors import (
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)
from bridge.retrying import BackOff, Released, Retrying, retry

AT_ONCE = BackOff(first=0)
PATIENT = BackOff(shortest=0.2)


class Recording(Retrying):
    """Notes its pauses instead of waiting."""

    def __init__(self, back_off: BackOff = PATIENT) -> None:
        super().__init__(back_off=back_off)
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """A question that raises these errors one after the other, and then is answered."""
    left = list(errors)

    async def question() -> str:
        if left:
            raise left.pop(0)
        return "answered"

    return question


@pytest.mark.parametrize(
    "error", [KestraUnavailable("away"), KestraDenied("who?"), KestraIncompatible("what?")]
)
async def test_trouble_is_waited_out(error: KestraError) -> None:
    assert await Recording().ask(failing(*[error] * 5)) == "answered"


async def test_a_job_that_is_rejected_is_not_asked_for_again() -> None:
    with pytest.raises(KestraRejected):
        await Recording().ask(failing(KestraRejected("no such flow")))


async def test_pauses_are_bounded() -> None:
    retrying = Recording(BackOff(longest=3))
    await retrying.ask(failing(*[KestraUnavailable("away")] * 30))
    assert max(retrying.pauses) <= 3


async def test_no_pause_is_shorter_than_the_shortest() -> None:
    retrying = Recording(PATIENT)
    await retrying.ask(failing(*[KestraUnavailable("away")] * 30))
    assert min(retrying.pauses) >= 0.2


@pytest.mark.parametrize("tries", [1, 3])
async def test_no_pause_is_shorter_than_kestra_asks_for(tries: int) -> None:
    retrying = Recording()
    await retrying.ask(failing(*[KestraUnavailable("busy", retry_after=40)] * tries))
    assert retrying.pauses == [40] * tries


async def test_each_failure_is_logged_with_its_number() -> None:
    with capture_logs() as lines:
        await Recording().ask(failing(KestraUnavailable("away"), KestraDenied("who?")))
    assert [(line["log_level"], line["tries"], line["error"]) for line in lines] == [
        ("warning", 1, "away"),
        ("error", 2, "who?"),
    ]


@pytest.mark.parametrize("error", [KestraDenied("who?"), KestraIncompatible("what?")])
async def test_a_refusal_is_raised_at_once_where_nobody_waits_for_an_operator(
    error: KestraError,
) -> None:
    with pytest.raises(type(error)):
        await Retrying().unless_refused.ask(failing(error))


async def test_a_denial_is_raised_at_once_where_it_may_be_the_jobs() -> None:
    with pytest.raises(KestraDenied):
        await Retrying().unless_denied.ask(failing(KestraDenied("who?")))


async def test_a_stop_ends_the_waiting() -> None:
    retrying = Retrying()
    retrying.stopping.set()
    with pytest.raises(Released):
        await retrying.ask(failing(KestraUnavailable("away")))


async def test_the_last_error_is_raised_once_there_were_enough_tries() -> None:
    work = failing(ValueError("first"), ValueError("second"), ValueError("third"))
    with pytest.raises(ValueError, match="second"):
        await retry(work, on=(ValueError,), wait=AT_ONCE, stop=stop_after_attempt(2))


async def test_what_a_lambda_makes_is_awaited() -> None:
    question = failing(ValueError())
    assert (
        await retry(lambda: asyncio.wait_for(question(), 5), on=(ValueError,), wait=AT_ONCE)
        == "answered"
    )
