"""Publishing over connections whose end costs nobody else anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from bridge.errors import BrokerDenied, BrokerUnavailable, MessageRefused, PublishFailed, QueueFull
from bridge.job.message import Message
from bridge.rabbitmq.isolation import TRIES, IsolatedPublisher, ReopeningPublisher, ResultPublisher


@dataclass
class Broker:
    """Closes a connection over a poisoned message, and with it all that is being published
    there."""

    opened: int = 0
    got: list[str] = field(default_factory=list)
    most_at_once: int = 0

    async def connect(self) -> Line:
        self.opened += 1
        return Line(self)


@dataclass
class Line:
    broker: Broker
    under_way: int = 0
    closed: bool = False
    failed: bool = False

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:  # noqa: ARG002
        self.under_way += 1
        self.broker.most_at_once = max(self.broker.most_at_once, self.under_way)
        await asyncio.sleep(0)
        self.failed = self.failed or message.body == b"poison"
        await asyncio.sleep(0)
        self.under_way -= 1
        if message.body == b"full":
            raise QueueFull("full")
        if message.body == b"never":
            await asyncio.Event().wait()
        if message.body == b"unheard":
            raise BrokerUnavailable("no confirm")
        if self.failed:
            raise BrokerUnavailable("541", blames_message=True)
        self.broker.got.append(message.message_id or "")

    async def close(self) -> None:
        self.closed = True


def message(name: str, body: bytes = b"good") -> Message:
    return Message(body=body, message_id=name)


def alone(broker: Broker) -> IsolatedPublisher:
    return IsolatedPublisher(ReopeningPublisher(broker.connect), pause=0)


def results(broker: Broker) -> ResultPublisher:
    return ResultPublisher(ReopeningPublisher(broker.connect), alone(broker))


async def test_connects_when_there_is_something_to_publish_and_once() -> None:
    broker = Broker()
    line = ReopeningPublisher(broker.connect)
    before = broker.opened
    await asyncio.gather(*(line.publish(message(name)) for name in "abc"))
    assert (before, broker.opened) == (0, 1)


async def test_connects_anew_once_a_connection_failed() -> None:
    broker = Broker()
    line = ReopeningPublisher(broker.connect)
    with pytest.raises(BrokerUnavailable):
        await line.publish(message("a", b"poison"))
    await line.publish(message("b"))
    assert (broker.opened, broker.got) == (2, ["b"])


async def test_keeps_a_connection_on_which_a_queue_was_full() -> None:
    broker = Broker()
    line = ReopeningPublisher(broker.connect)
    with pytest.raises(QueueFull):
        await line.publish(message("a", b"full"))
    await line.publish(message("b"))
    assert broker.opened == 1


async def test_leaves_no_connection_behind() -> None:
    broker = Broker()
    opened: list[Line] = []

    async def connect() -> Line:
        opened.append(await broker.connect())
        return opened[-1]

    line = ReopeningPublisher(connect)
    with pytest.raises(BrokerUnavailable):
        await line.publish(message("a", b"poison"))
    await line.publish(message("b"))
    await line.close()
    assert [each.closed for each in opened] == [True, True]


async def test_alone_one_message_is_published_at_a_time() -> None:
    broker = Broker()
    publisher = alone(broker)
    await asyncio.gather(*(publisher.publish(message(name)) for name in "abcde"))
    assert (broker.most_at_once, len(broker.got)) == (1, 5)


async def test_alone_what_ends_each_connection_is_refused() -> None:
    with pytest.raises(MessageRefused, match="541"):
        await alone(Broker()).publish(message("a", b"poison"))


async def test_alone_a_message_is_tried_more_than_once() -> None:
    broker = Broker()
    with pytest.raises(MessageRefused):
        await alone(broker).publish(message("a", b"poison"))
    assert broker.opened == TRIES > 1


async def test_alone_what_is_not_confirmed_is_not_refused() -> None:
    with pytest.raises(PublishFailed) as failed:
        await alone(Broker()).publish(message("a", b"unheard"))
    assert not isinstance(failed.value, MessageRefused)


async def test_alone_a_connection_that_is_refused_is_a_failed_publish() -> None:
    async def connect() -> Line:
        raise BrokerDenied("too many connections")

    with pytest.raises(PublishFailed, match="too many connections"):
        await IsolatedPublisher(ReopeningPublisher(connect), pause=0).publish(message("a"))


async def test_alone_a_full_queue_is_told_as_that() -> None:
    with pytest.raises(QueueFull):
        await alone(Broker()).publish(message("a", b"full"))


async def test_results_that_fail_by_a_neighbours_fault_are_sent_again() -> None:
    broker = Broker()
    sender = results(broker)
    bodies = {"a": b"good", "b": b"poison", "c": b"good", "d": b"good"}
    told = await asyncio.gather(
        *(sender.publish(message(name, body), routing_key="r") for name, body in bodies.items()),
        return_exceptions=True,
    )
    assert ([type(each) for each in told].count(MessageRefused), sorted(broker.got)) == (
        1,
        ["a", "c", "d"],
    )


async def test_a_result_that_is_never_confirmed_is_given_up() -> None:
    broker = Broker()
    sender = ResultPublisher(ReopeningPublisher(broker.connect), alone(broker), patience=0.05)
    with pytest.raises(PublishFailed, match="not confirmed within"):
        await asyncio.wait_for(sender.publish(message("a", b"never"), routing_key="r"), 10)


async def test_a_result_that_is_never_confirmed_leaves_the_turn_to_be_sent_alone_to_the_next() -> (
    None
):
    broker = Broker()
    turn = alone(broker)
    broken = ReopeningPublisher(broker.connect)
    broken.publish = unheard  # type: ignore[method-assign]
    sender = ResultPublisher(broken, turn, patience=0.05)
    with pytest.raises(PublishFailed):
        await asyncio.wait_for(sender.publish(message("a", b"never"), routing_key="r"), 10)
    await asyncio.wait_for(turn.publish(message("b")), 10)
    assert broker.got == ["b"]


async def unheard(*_: object, **__: object) -> None:
    raise BrokerUnavailable("no confirm")
