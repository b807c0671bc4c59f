"""Claims that were written to a ledger and wait to be read back."""

from __future__ import annotations

import asyncio
from itertools import takewhile

from bridge.consume.ledger import Silence
from bridge.errors import BrokerUnavailable


class AwaitedClaims:
    """Who awaits which claim, by its token, in the order in which the claims were written."""

    def __init__(self) -> None:
        self._read_back: dict[int, asyncio.Future[None]] = {}
        self._answers = 0

    def __contains__(self, token: int) -> bool:
        return token in self._read_back

    def add(self, token: int) -> asyncio.Future[None]:
        """A future that ends once the claim is read back, or fails when it is lost."""
        read_back = self._read_back[token] = asyncio.get_running_loop().create_future()
        return read_back

    def forget(self, token: int) -> bool:
        """Await a claim no longer; returns whether it was still awaited."""
        return self._read_back.pop(token, None) is not None

    def answer(self, token: int) -> None:
        """Take note that an awaited claim was read back.

        A claim that was written before it, and was not read back, is lost: a stream keeps the order
        of what one writer writes to it.
        """
        self._answers += 1
        for written in list(takewhile(lambda each: each != token, self._read_back)):
            _fail(self._read_back.pop(written), "a claim was lost")
        read_back = self._read_back.pop(token)
        if not read_back.done():
            read_back.set_result(None)

    def fail(self, why: str) -> None:
        """Have all of them fail."""
        while self._read_back:
            _, read_back = self._read_back.popitem()
            _fail(read_back, why)

    async def silence(self, seconds: float) -> None:
        """Wait until none of the claims that wait was answered for that long."""
        silence, lasts = Silence(), False
        while not lasts:
            await asyncio.sleep(seconds / silence.beats)
            lasts = silence.lasts(awaited=bool(self._read_back), answers=self._answers)


def _fail(read_back: asyncio.Future[None], why: str) -> None:
    if not read_back.done():
        read_back.set_exception(BrokerUnavailable(why))
