"""Which messages may be what RabbitMQ closed a session's connection over: they are published alone
from then on.

A session that ends over a publish brings every delivery back, and the same message would end the
next one, for ever. Which of those that were under way it was, RabbitMQ doesn't say. So all of them
are suspected: when they come again they are published one by one over a connection of their own
(`bridge.rabbitmq.isolation`), which shows who it is and costs nobody else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from bridge.errors import PublishFailed
from bridge.job.message import Delivery
from bridge.job.settlement import Reason, Settlement, ToDeadLetter

REMEMBERED = 4096


class Suspects:
    """What was being published when sessions ended; kept beyond them, and bounded."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._under_way: Counter[Hashable] = Counter()
        self._suspected: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, delivery: Delivery) -> bool:
        return bool(self._suspected) and _key(delivery) in self._suspected

    @contextmanager
    def publishing(self, delivery: Delivery) -> Iterator[None]:
        """Note that a delivery's message is published within the block. One whose publish is cut
        off stays noted.
        """
        key, under_way = _key(delivery), self._under_way
        under_way[key] += 1
        try:
            yield
        except PublishFailed:
            _less(under_way, key)
            raise
        _less(under_way, key)
        self._suspected.pop(key, None)

    def session_ended(self, *, over_a_publish: bool) -> None:
        """Suspect what was under way, if that may have been the reason; nothing of the session is
        under way now.
        """
        under_way, self._under_way = self._under_way, Counter()
        if over_a_publish:
            self._suspected.update(dict.fromkeys(under_way))
        while len(self._suspected) > self._most:
            self._suspected.popitem(last=False)


def refused(settlement: Settlement, why: str) -> ToDeadLetter:
    """The dead letter that a message becomes which RabbitMQ doesn't take as it is."""
    wanted = (
        settlement.error if isinstance(settlement, ToDeadLetter) else f"a {settlement.name} was due"
    )
    return ToDeadLetter(
        reason=Reason.INVALID_MESSAGE,
        error="RabbitMQ does not take this message's headers and properties, which were left "
        f"out: {why} ({wanted})",
    )


def _less(under_way: Counter[Hashable], key: Hashable) -> None:
    under_way[key] -= 1
    if not under_way[key]:
        del under_way[key]


def _key(delivery: Delivery) -> Hashable:
    message = delivery.message
    return delivery.lane, message.message_id, message.timestamp, hash(message.body)
