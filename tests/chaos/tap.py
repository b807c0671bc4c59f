"""A proxy in front of the broker that reads off the wire what a replica takes, settles and
publishes."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pamqp import frame
from pamqp.commands import Basic, Confirm
from pamqp.header import ContentHeader

from bridge.job.message import ATTEMPT
from bridge.rabbitmq import codec
from bridge.rabbitmq.topology import REPLIES, ledger_queue
from tests.chaos.history import Acked, Delivered, Event, Moved
from tests.support.harness import Proxy, Watcher

Address = tuple[str, int]
_METHOD, _HEADER = 1, 2
_BASIC, _CONFIRM = 60, 85


class Frames:
    """Cuts a stream into frames, and gives those that tell of messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, Any]]:
        """Each frame's channel and what it says."""
        self._rest += data
        if self._rest.startswith(b"AMQP"):
            self._rest = self._rest[8:]
        while len(self._rest) >= 7:
            kind, channel, size = struct.unpack(">BHI", self._rest[:7])
            if len(self._rest) < size + 8:
                return
            whole, self._rest = self._rest[: size + 8], self._rest[size + 8 :]
            about = struct.unpack(">H", whole[7:9])[0] if size >= 2 else 0
            if (kind == _METHOD and about in (_BASIC, _CONFIRM)) or kind == _HEADER:
                yield channel, frame.unmarshal(whole)[2]


@dataclass(slots=True)
class _Channel:
    """What is under way on one channel."""

    incoming: Basic.Deliver | Basic.Return | None = None
    outgoing: Basic.Publish | None = None
    unsettled: dict[int, None] = field(default_factory=dict)
    confirming: bool = False
    published: int = 0
    unconfirmed: dict[int, tuple[str, str, int]] = field(default_factory=dict)


class Conversation:
    """One connection between a replica and the broker, as it can be read from both streams."""

    def __init__(self, replica: str, number: int, note: Callable[[Event], None]) -> None:
        self._replica = replica
        self._number = number
        self._note = note
        self._up, self._down = Frames(), Frames()
        self._channels: dict[int, _Channel] = {}

    def to_broker(self, data: bytes) -> None:
        """What the replica says."""
        for number, said in self._up.feed(data):
            channel = self._channels.setdefault(number, _Channel())
            match said:
                case Confirm.Select():
                    channel.confirming = True
                case Basic.Ack():
                    self._settled(number, channel, said)
                case Basic.Publish():
                    channel.outgoing = said
                case ContentHeader() if channel.outgoing is not None:
                    self._published(channel, channel.outgoing, said.properties)

    def from_broker(self, data: bytes) -> None:
        """What the broker says."""
        for number, said in self._down.feed(data):
            channel = self._channels.setdefault(number, _Channel())
            match said:
                case Basic.Deliver() | Basic.Return():
                    channel.incoming = said
                case ContentHeader():
                    self._came(number, channel, said.properties)
                case Basic.Ack():
                    self._confirmed(channel, said)
                case Basic.Nack():
                    for tag in _tags(
                        channel.unconfirmed, said.delivery_tag, multiple=said.multiple
                    ):
                        del channel.unconfirmed[tag]

    def _name(self, channel: int) -> str:
        return f"{self._replica}/{self._number}/{channel}"

    def _came(self, number: int, channel: _Channel, properties: Any) -> None:
        match channel.incoming:
            case Basic.Deliver() as deliver:
                self._delivered(number, channel, deliver, properties)
            case Basic.Return():
                # The confirm that follows only says that nothing more is to be expected of it.
                job = str(properties.message_id)
                returned = [tag for tag, (_, told, _) in channel.unconfirmed.items() if told == job]
                for tag in returned[:1]:
                    del channel.unconfirmed[tag]
        channel.incoming = None

    def _delivered(
        self, number: int, channel: _Channel, deliver: Basic.Deliver, properties: Any
    ) -> None:
        if not _carries_a_job(deliver):
            return
        assert deliver.delivery_tag is not None
        channel.unsettled[deliver.delivery_tag] = None
        self._note(
            Delivered(
                at=time.time(),
                replica=self._replica,
                channel=self._name(number),
                tag=deliver.delivery_tag,
                job=str(properties.message_id),
                attempt=_attempt(properties.headers),
                redelivered=bool(deliver.redelivered),
            )
        )

    def _settled(self, number: int, channel: _Channel, ack: Basic.Ack) -> None:
        for tag in _tags(channel.unsettled, ack.delivery_tag, multiple=ack.multiple):
            del channel.unsettled[tag]
            self._note(Acked(at=time.time(), channel=self._name(number), tag=tag))

    def _published(self, channel: _Channel, publish: Basic.Publish, properties: Any) -> None:
        channel.outgoing = None
        channel.published += 1
        if channel.confirming and _carries_a_job(publish):
            to = publish.exchange or publish.routing_key
            told = (to, str(properties.message_id), _attempt(properties.headers))
            channel.unconfirmed[channel.published] = told

    def _confirmed(self, channel: _Channel, ack: Basic.Ack) -> None:
        for tag in _tags(channel.unconfirmed, ack.delivery_tag, multiple=ack.multiple):
            to, job, attempt = channel.unconfirmed.pop(tag)
            self._note(
                Moved(at=time.time(), replica=self._replica, to=to, job=job, attempt=attempt)
            )


def _tags(known: Mapping[int, object], tag: int, *, multiple: bool) -> list[int]:
    """Those of the known tags that an ack means; 0 with `multiple` means all of them."""
    if multiple:
        return [one for one in known if tag == 0 or one <= tag]
    return [tag] if tag in known else []


def _carries_a_job(said: Basic.Deliver | Basic.Publish) -> bool:
    """Whether it is about a job's message, and no claim on one and no news of its end."""
    is_claim = (said.routing_key or "").endswith(ledger_queue(""))
    return said.exchange != REPLIES and not is_claim


def _attempt(headers: Mapping[str, Any] | None) -> int:
    value = (headers or {}).get(ATTEMPT, 1)
    return value if isinstance(value, int) else 1


class Tap(Proxy):
    """A proxy to the first broker that can be reached, as a load balancer would be, which notes
    what it reads."""

    def __init__(
        self, replica: str, targets: Callable[[], Sequence[Address]], note: Callable[[Event], None]
    ) -> None:
        codec.install()
        super().__init__("127.0.0.1", 0)
        self._replica = replica
        self._targets = targets
        self._note = note

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for host, port in self._targets():
            try:
                return await asyncio.open_connection(host, port)
            except OSError:
                continue
        raise ConnectionRefusedError("no broker takes connections")

    def _watchers(self) -> tuple[Watcher, Watcher]:
        conversation = Conversation(self._replica, self.connections, self._note)
        return conversation.to_broker, conversation.from_broker
