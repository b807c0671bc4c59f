"""Try again after a failure: the one loop that retries share, and questions to Kestra by it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_never
from tenacity.wait import wait_random_exponential

from bridge.errors import REFUSALS, KestraError, KestraIncompatible, KestraUnavailable

Result = TypeVar("Result")
Errors = tuple[type[BaseException], ...]

TROUBLE: tuple[type[KestraError], ...] = (KestraUnavailable, *REFUSALS)
"""Errors that say nothing about a job: only time or an operator ends them."""

log = structlog.get_logger(__name__)


class Released(Exception):
    """The bridge is stopping, and this work is left to the next replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """Pauses between tries, in seconds: random ones, below a bound that doubles with each try.

    The bound is `first` after the first try and at most `longest`.
    """

    shortest: float = 0.0
    first: float = 0.5
    longest: float = 15.0

    def __call__(self, state: RetryCallState) -> float:
        """The pause before the next try, as tenacity asks for it."""
        wait = wait_random_exponential(multiplier=self.first, max=self.longest)
        # Its own `min` is no lower bound in every version of tenacity (8.4.1).
        return max(self.shortest, wait(state))


async def retry(
    work: Callable[[], Awaitable[Result]],
    *,
    on: Errors | Callable[[BaseException], bool],
    wait: Callable[[RetryCallState], float],
    before_sleep: Callable[[RetryCallState], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    stop: Callable[[RetryCallState], bool] = stop_never,
) -> Result:
    """Do the work, again and again while it raises what `on` names; returns what it returns.

    Raises:
        Exception: what the work raises and `on` does not name, or the last error once `stop` says
        so, or what `sleep` raises.
    """

    async def attempt() -> Result:
        # tenacity awaits only what it can see to be a coroutine function, which a lambda is not.
        return await work()

    def wanted(error: BaseException) -> bool:
        return isinstance(error, on) if isinstance(on, tuple) else on(error)

    return await AsyncRetrying(
        retry=retry_if_exception(wanted),
        wait=wait,
        stop=stop,
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )(attempt)


def failing_for(seconds: float) -> Callable[[RetryCallState], bool]:
    """A stop for one retry: its failures have lasted for so many seconds.

    They count from the first one on. Among many that ask at once, the first try may have waited for
    its turn for longer than that.
    """
    first: float | None = None

    def stop(_: RetryCallState) -> bool:
        nonlocal first
        now = time.monotonic()
        first = now if first is None else first
        return now - first >= seconds

    return stop


def error_of(state: RetryCallState) -> BaseException | None:
    """The error of the latest try; None before the first one has ended."""
    return state.outcome.exception() if state.outcome else None


class Retrying:
    """Asks Kestra again, with back-off, for as long as it is away.

    `waits_out` are the errors that count as passing. A refusal is among them: an operator can lift
    it. Once `stopping` is set, no further try is made.
    """

    def __init__(
        self,
        stopping: asyncio.Event | None = None,
        waits_out: tuple[type[KestraError], ...] = TROUBLE,
        back_off: BackOff = BackOff(shortest=0.2),
    ) -> None:
        self.stopping = stopping or asyncio.Event()
        self._waits_out = waits_out
        self._back_off = back_off

    @property
    def unless_refused(self) -> Retrying:
        """The same, but a refusal is raised at once."""
        return Retrying(self.stopping, (KestraUnavailable,), self._back_off)

    @property
    def unless_denied(self) -> Retrying:
        """The same, but it is raised at once that Kestra denies the rights."""
        return Retrying(self.stopping, (KestraUnavailable, KestraIncompatible), self._back_off)

    async def ask(
        self,
        question: Callable[[], Awaitable[Result]],
        *,
        stop: Callable[[RetryCallState], bool] = stop_never,
    ) -> Result:
        """The answer, however long it takes.

        Raises:
            Released: the bridge is stopping.
            KestraError: what the question raises and another try can't change, or whatever it
                raised when `stop` said so.
        """
        return await retry(
            question,
            on=self._waits_out,
            wait=self._pause_after,
            before_sleep=_log_failure,
            sleep=self.pause,
            stop=stop,
        )

    async def pause(self, seconds: float) -> None:
        """Wait that many seconds.

        Raises:
            Released: the bridge is stopping; it is raised as soon as that is so.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise Released

    def _pause_after(self, state: RetryCallState) -> float:
        """Seconds to the next try: at least as long as Kestra asks for."""
        error = error_of(state)
        wanted = error.retry_after if isinstance(error, KestraUnavailable) else 0.0
        return max(self._back_off(state), wanted)


def _log_failure(state: RetryCallState) -> None:
    """Log trouble that only an operator can end as an error, and any other as a warning."""
    error = error_of(state)
    level = logging.ERROR if isinstance(error, REFUSALS) else logging.WARNING
    log.log(
        level,
        "kestra does not answer, asking again",
        error=str(error),
        tries=state.attempt_number,
    )
