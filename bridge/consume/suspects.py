"""Messages over which RabbitMQ may have closed a session's connection.

A session that ends over a publish brings every delivery back, and the same message would end the
next session, for ever. RabbitMQ doesn't say over which of the publishes under way it was. So all of
them are suspected. When these messages come again, they are published one by one over a connection
of their own (`bridge.rabbitmq.isolation`). This shows which one it is, and costs no other delivery.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from bridge.errors import PublishFailed
from bridge.job.message import Delivery
from bridge.job.settlement import Reason, Settlement, ToDeadLetter


class Suspects:
    """What was being published when sessions ended. It is kept beyond them, up to `most`."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._under_way: Counter[Hashable] = Counter()
        self._suspected: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, delivery: Delivery) -> bool:
        return bool(self._suspected) and _key(delivery) in self._suspected

    @contextmanager
    def publishing(self, delivery: Delivery) -> Iterator[None]:
        """Note that a delivery's message is published within the block.

        It stays noted where the publish is cut off.
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
        """Forget what was under way, and suspect it where that may have been the reason."""
        under_way, self._under_way = self._under_way, Counter()
        if over_a_publish:
            self._suspected.update(dict.fromkeys(under_way))
        while len(self._suspected) > self._most:
            self._suspected.popitem(last=False)


def refused(settlement: Settlement, why: str) -> ToDeadLetter:
    """The settlement of a message that RabbitMQ does not take as it is: a dead letter."""
    wanted = f"a {settlement.name} was due"
    if isinstance(settlement, ToDeadLetter):
        wanted = settlement.error
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
