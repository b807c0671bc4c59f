"""Asking Kestra again: what is waited out, for how long, and what is raised at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from bridge.consume.starter import LONGEST_BACKOFF, Patience, Released
from bridge.errors import (
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)


class Recording(Patience):
    """Notes its pauses instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def failing(*errors: KestraError) -> Callable[[], Awaitable[str]]:
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
    patience = Recording()
    await patience.ask(failing(*[KestraUnavailable("away")] * 30))
    assert max(patience.pauses) <= LONGEST_BACKOFF


@pytest.mark.parametrize("tries", [1, 3])
async def test_no_pause_is_shorter_than_kestra_asks_for(tries: int) -> None:
    patience = Recording()
    await patience.ask(failing(*[KestraUnavailable("busy", retry_after=40)] * tries))
    assert patience.pauses == [40] * tries


@pytest.mark.parametrize("error", [KestraDenied("who?"), KestraIncompatible("what?")])
async def test_a_refusal_is_raised_at_once_where_nobody_waits_for_an_operator(
    error: KestraError,
) -> None:
    with pytest.raises(type(error)):
        await Patience().unless_refused.ask(failing(error))


async def test_a_denial_is_raised_at_once_where_it_may_be_the_jobs() -> None:
    with pytest.raises(KestraDenied):
        await Patience().unless_denied.ask(failing(KestraDenied("who?")))


async def test_a_stop_ends_the_waiting() -> None:
    patience = Patience()
    patience.stopping.set()
    with pytest.raises(Released):
        await patience.ask(failing(KestraUnavailable("away")))
