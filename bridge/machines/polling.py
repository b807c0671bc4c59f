"""Looking again until something is so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_exponential,
)

Found = TypeVar("Found")


async def until(
    look: Callable[[], Awaitable[Found | None]],
    *,
    timeout: float,
    pause: float,
    longest_pause: float,
    despite: tuple[type[Exception], ...] = (),
) -> Found:
    """Call `look` until it returns something, and return that. All times are in seconds.

    Pauses double from `pause` to `longest_pause`, and the last one ends with the timeout. Errors of
    the classes in `despite` don't end it.

    Raises:
        TimeoutError: nothing was found in time.
        Exception: the last look raised an error of a class in `despite`, or any look another one.
    """

    # tenacity awaits only what it knows to be a coroutine function.
    async def attempt() -> Found | None:
        return await look()

    pauses = wait_exponential(pause, max=longest_pause)

    def until_the_next(state: RetryCallState) -> float:
        left = timeout - (state.seconds_since_start or 0.0)
        return min(pauses(state), max(0.0, left))

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda found: found is None) | retry_if_exception_type(despite),
        stop=stop_after_delay(timeout),
        wait=until_the_next,
        reraise=True,
    )
    found: Found | None
    try:
        found = await retrying(attempt)
    except RetryError:
        found = None
    if found is None:
        raise TimeoutError
    return found
