"""RabbitMQ: sessions, deliveries and confirmed publishes. With `topology` the only user of
aio-pika.

A session is connect, declare, consume. Whatever ends a part of it (a channel, a connection, a
consumer that the broker cancels) ends the whole, and a new session starts from nothing: no delivery
outlives the channel that brought it, and the broker delivers again what was not settled.

Deliveries are read below aio-pika's own message class, which raises on properties that RabbitMQ
lets pass (a delivery mode of 7, an expiration that is no number) and would leave such a message
undecided for ever.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    ConnectionFrameError,
    ConnectionInternalError,
    ConnectionNotAllowed,
    ConnectionNotImplemented,
    ConnectionSyntaxError,
    ConnectionUnexpectedFrame,
    InvalidFrameError,
)

from bridge.aio import KeyedLock
from bridge.errors import (
    BrokerDenied,
    BrokerError,
    BrokerUnavailable,
    PublishFailed,
    QueueFull,
    SettingsError,
    TopologyMismatch,
)
from bridge.job.message import OWN_REPLIES, Delivery, Message
from bridge.rabbitmq import codec, topology
from bridge.rabbitmq.content_header import properties_of
from bridge.rabbitmq.isolation import IsolatedPublisher, ReopeningPublisher, ResultPublisher
from bridge.settings import BrokerSettings, Lane, authority
from bridge.text import short

CONNECT_TIMEOUT = 15.0
CONFIRM_TIMEOUT = 30.0

_CUT_OFF = (
    asyncio.IncompleteReadError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
"""How it looks when a broker is there and ends the connection without a word."""

_FAULTS = (
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    ConnectionFrameError,
    ConnectionInternalError,
    ConnectionNotImplemented,
    ConnectionSyntaxError,
    ConnectionUnexpectedFrame,
)
"""How it looks when a broker ends a channel or a connection over what was sent on it."""

DIRECT_REPLIES_HAVE_A_QUEUE = (4, 2)
"""Before, RabbitMQ returns what is published by direct reply-to as unroutable, and delivers it
nevertheless."""

Connection = AbstractConnection
Cause = Literal["connection_closed", "channel_closed", "consumer_cancelled"]
OnDelivery = Callable[[Lane, Delivery], None]
OnReply = Callable[[bytes], None]


class Publisher:
    """Publishes by confirm: what `publish` returned for is in a queue, and on disk where the queue
    is durable.

    `lost` is told when the channel, or what it publishes to, can't be relied on any more.
    """

    def __init__(
        self, connection: AbstractConnection, *, lost: Callable[[BrokerError], None]
    ) -> None:
        self._connection = connection
        self._lost = lost
        self._ids = KeyedLock()
        self._opening = asyncio.Lock()
        self._raw: RawChannel | None = None

    async def open(self) -> Publisher:
        """Open the channel, so that the first publish need not."""
        await self._channel()
        return self

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Publish and wait for the broker's confirm. Headers that don't fit into a frame are left
        out and named.

        Raises:
            PublishFailed: it went to no queue, or the queue refused it (`QueueFull`). Nothing was
            kept. BrokerUnavailable: the channel is gone or the confirm never came; the message may
            or may not be in a queue.
        """
        # aiormq tells which publish was returned by its message id, so two with one id must not be
        # under way at once.
        async with self._ids.hold(message.message_id or object()):
            try:
                raw = await self._channel()
                await raw.basic_publish(
                    message.body,
                    exchange=exchange,
                    routing_key=short(routing_key),
                    properties=properties_of(message, frame_max(self._connection)),
                    mandatory=not self._returned_in_any_case(exchange, routing_key),
                    timeout=CONFIRM_TIMEOUT,
                )
            except PublishError as error:
                # Somebody took a queue or a binding away; a new session declares them again.
                failed = PublishFailed(f"no queue takes {routing_key!r} of exchange {exchange!r}")
                self._lost(failed)
                raise failed from error
            except DeliveryError as error:
                raise QueueFull(
                    f"the broker refused a message for {exchange or routing_key!r}; is "
                    "a queue full?"
                ) from error
            except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
                lost = BrokerUnavailable(
                    f"a publish was not confirmed: {_why(error)}",
                    blames_message=isinstance(error, _FAULTS),
                )
                self._lost(lost)
                raise lost from error

    async def close(self) -> None:
        """End the connection."""
        await _close(self._connection)

    def _returned_in_any_case(self, exchange: str, routing_key: str) -> bool:
        """Whether the broker returns a mandatory message although it arrives."""
        version = parse_version(announced_version(self._connection))
        return (
            not exchange
            and routing_key.startswith(f"{OWN_REPLIES}.")
            and version < DIRECT_REPLIES_HAVE_A_QUEUE
        )

    async def _channel(self) -> RawChannel:
        async with self._opening:
            if self._raw is None:
                channel = await self._connection.channel(on_return_raises=True)
                self._raw = await channel.get_underlay_channel()
            return self._raw


class Session:
    """Consumers on all lanes, for as long as nothing of it breaks."""

    def __init__(
        self,
        version: str,
        kinds: Mapping[str, topology.Kind],
        publishing: AbstractConnection,
        *,
        results: ResultPublisher,
        isolated: IsolatedPublisher,
    ) -> None:
        self.version = version
        self.kinds = kinds
        self.publisher = Publisher(publishing, lost=self._publisher_lost)
        self.results = results
        self.isolated = isolated
        self.over_a_publish = False
        """Whether RabbitMQ ended the session over something that was published."""
        self._ended: asyncio.Future[tuple[Cause, str]] = asyncio.get_running_loop().create_future()
        self._consumers: list[tuple[RawChannel, str]] = []

    async def ended(self) -> tuple[Cause, str]:
        """Wait until the session is no more; says why, as a word and as a line."""
        return await asyncio.shield(self._ended)

    def add_consumer(self, raw: RawChannel, tag: str) -> None:
        """Know of a consumer, to stop it later."""
        self._consumers.append((raw, tag))

    async def stop_consuming(self) -> None:
        """Take no more deliveries. Those that are here can still be settled."""
        for raw, tag in self._consumers:
            try:
                await raw.basic_cancel(tag, timeout=5)
            except (*CONNECTION_EXCEPTIONS, TimeoutError):
                continue

    def publishing_ended(self, error: object) -> None:
        """Note that the connection for publishing has ended, which ends the session."""
        self.over_a_publish = self.over_a_publish or isinstance(error, _FAULTS)
        self.end("connection_closed", _why(error))

    def _publisher_lost(self, error: BrokerError) -> None:
        self.over_a_publish = self.over_a_publish or (
            isinstance(error, BrokerUnavailable) and error.blames_message
        )
        self.end("channel_closed", str(error))

    def end(self, cause: Cause, why: str) -> None:
        """Declare the session over; only the first cause counts."""
        if not self._ended.done():
            self._ended.set_result((cause, why))


class ReplyQueue:
    """An exclusive queue for the results of our own jobs; it lives as long as its connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()
        self._why = ""

    async def take(self) -> Message:
        """The next message, however long it takes.

        Raises:
            BrokerUnavailable: the queue is gone, and with it whatever would have come.
        """
        message = await self._arrived.get()
        if message is None:
            self._arrived.put_nowait(None)
            raise BrokerUnavailable(f"the connection to RabbitMQ was lost: {self._why}")
        return message

    def put(self, message: Message) -> None:
        """Note a message that arrived."""
        self._arrived.put_nowait(message)

    def lose(self, why: str) -> None:
        """Declare the queue gone; only the first cause counts."""
        self._why = self._why or why
        self._arrived.put_nowait(None)


class Broker:
    """Opens sessions with one RabbitMQ."""

    def __init__(self, settings: BrokerSettings, *, name: str = "kestra-bridge") -> None:
        codec.install()
        self._settings = settings
        self._name = name

    @asynccontextmanager
    async def session(
        self, on_delivery: OnDelivery, on_reply: OnReply, *, hold: float
    ) -> AsyncIterator[Session]:
        """Connect, declare and consume all lanes; what is unsettled when the context ends is left
        to the broker.

        The callbacks must only take note. `hold` is how many seconds a delivery may stay unsettled,
        which brokers that let a consumer say so are told.

        Raises:
            BrokerUnavailable, BrokerDenied, TopologyMismatch: the session could not be had.
        """
        async with AsyncExitStack() as stack:
            with _translated(self._settings):
                # A broker in need of memory reads no more from connections that publish: acks must
                # not wait there.
                consuming = await stack.enter_async_context(self._connection("consumer"))
                publishing = await stack.enter_async_context(self._connection("publisher"))
                version = announced_version(consuming)
                kinds = await self.declare(consuming)
                results, apart = (
                    ReopeningPublisher(partial(self._line, "results")),
                    ReopeningPublisher(partial(self._line, "apart")),
                )
                for line in (results, apart):
                    stack.push_async_callback(line.close)
                isolated = IsolatedPublisher(apart)
                session = Session(
                    version,
                    kinds,
                    publishing,
                    results=ResultPublisher(results, isolated),
                    isolated=isolated,
                )
                await session.publisher.open()
                consuming.close_callbacks.add(
                    lambda _, error: session.end("connection_closed", _why(error))
                )
                publishing.close_callbacks.add(lambda _, error: session.publishing_ended(error))
                await self._consume_replies(consuming, session, on_reply)
                for lane in self._settings.all_lanes:
                    await self._consume(consuming, session, lane, on_delivery, hold)
            yield session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AbstractConnection]:
        """A connection to look by, for commands. What goes wrong on it is raised as `session`
        does.
        """
        with _translated(self._settings):
            async with self._connection("command") as connection:
                yield connection

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[tuple[AbstractConnection, Publisher]]:
        """A connection to publish by, for commands; raises as `session` does."""
        async with AsyncExitStack() as stack:
            with _translated(self._settings):
                connection = await stack.enter_async_context(self._connection("command"))
                publisher = await Publisher(connection, lost=lambda _: None).open()
            yield connection, publisher

    @asynccontextmanager
    async def reply_queue(self, connection: AbstractConnection) -> AsyncIterator[ReplyQueue]:
        """A queue of one's own on a connection that `publisher` gave; raises as `session` does."""
        with _translated(self._settings):
            channel = await connection.channel(publisher_confirms=False)
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            reply_queue = ReplyQueue(queue.name)
            channel.close_callbacks.add(lambda _, error: reply_queue.lose(_why(error)))
            connection.close_callbacks.add(lambda _, error: reply_queue.lose(_why(error)))
            raw = await channel.get_underlay_channel()
            raw.on_consumer_cancel_callbacks.add(
                lambda _: reply_queue.lose("the broker cancelled the consumer")
            )

            async def take(message: DeliveredMessage) -> None:
                reply_queue.put(to_message(message))

            await raw.basic_consume(queue.name, take, no_ack=True)
        yield reply_queue

    async def ensure(self, connection: AbstractConnection) -> None:
        """Declare the lanes that aren't there yet. One that is there is left alone, whatever its
        arguments.

        So who may only write can publish, and settings that differ from the bridge's own do no
        harm.

        Raises:
            BrokerUnavailable, BrokerDenied, TopologyMismatch: as `session` does.
        """
        with _translated(self._settings):
            version = parse_version(announced_version(connection))
            for lane in self._settings.all_lanes:
                if not await _lane_exists(connection, lane):
                    await self._declare_lane(connection, lane, version)

    async def declare_replay(self, connection: AbstractConnection, queue: str) -> None:
        """Declare the queue by which a lane's dead letters go back into it; raises as `session`
        does.
        """
        with _translated(self._settings):
            version = parse_version(announced_version(connection))
            await topology.declare_one(connection, topology.plan_replay(queue, version=version))

    async def declare(self, connection: AbstractConnection) -> dict[str, topology.Kind]:
        """Declare every lane; says of each queue which type it has."""
        version = parse_version(announced_version(connection))
        return {
            lane.queue: await self._declare_lane(connection, lane, version)
            for lane in self._settings.all_lanes
        }

    async def _declare_lane(
        self, connection: AbstractConnection, lane: Lane, version: topology.Version
    ) -> topology.Kind:
        kinds = topology.candidates(self._settings.queue_type, version)
        for kind in kinds:
            planned = topology.plan(
                lane.queue,
                kind=kind,
                version=version,
                max_priority=self._settings.max_priority,
                retry_delays=self._settings.retry_delays,
            )
            try:
                await topology.declare(connection, planned)
            except TopologyMismatch:
                if kind == kinds[-1]:
                    raise
            else:
                return kind
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _connection(self, purpose: str) -> AsyncIterator[AbstractConnection]:
        connection = await self._connect(f"{self._name} {purpose}")
        try:
            yield connection
        finally:
            await _close(connection)

    async def _line(self, purpose: str) -> Publisher:
        """A publisher with a connection of its own, which ends nothing else; raises as `session`
        does.
        """
        with _translated(self._settings):
            return Publisher(await self._connect(f"{self._name} {purpose}"), lost=lambda _: None)

    async def _connect(self, name: str) -> AbstractConnection:
        """A new connection, by the credentials as they are now."""
        settings = self._settings = _refreshed(self._settings)
        url = urlsplit(settings.amqp_login)
        try:
            context = settings.amqp_tls.context() if url.scheme == "amqps" else None
        except ValueError as error:
            raise BrokerDenied(str(error)) from error
        try:
            return await aio_pika.connect(
                settings.amqp_login,
                timeout=CONNECT_TIMEOUT,
                ssl_context=context,
                client_properties={"connection_name": name},
            )
        except ConnectionError as error:
            trouble = settings.amqp_tls.trouble(error)
            if isinstance(error.__cause__ or error, _CUT_OFF):
                host, port = url.hostname or "", url.port or (5671 if context else 5672)
                trouble = await settings.amqp_tls.why_cut_off(host, port, context, scheme="amqps")
            if trouble:
                raise BrokerDenied(f"RabbitMQ at {settings.broker_address}: {trouble}") from error
            raise

    async def _consume(
        self,
        connection: AbstractConnection,
        session: Session,
        lane: Lane,
        on_delivery: OnDelivery,
        hold: float,
    ) -> None:
        channel = await _watched_channel(connection, session)
        await channel.set_qos(prefetch_count=lane.prefetch)
        raw = await channel.get_underlay_channel()
        tag = f"{self._name}.{lane.queue}"

        async def take(message: DeliveredMessage) -> None:
            on_delivery(lane, _to_delivery(message, lane.queue, raw, session))

        arguments = _consumer_arguments(
            parse_version(session.version), session.kinds[lane.queue], hold
        )
        session.add_consumer(raw, tag)
        await raw.basic_consume(lane.queue, take, consumer_tag=tag, arguments=arguments)

    async def _consume_replies(
        self, connection: AbstractConnection, session: Session, on_reply: OnReply
    ) -> None:
        channel = await _watched_channel(connection, session)
        queue = await topology.declare_replies(channel, "")
        raw = await channel.get_underlay_channel()

        async def take(message: DeliveredMessage) -> None:
            on_reply(message.body)

        # Unacknowledged on purpose: no single reply matters, and the sweep finds what a lost one
        # would have told.
        await raw.basic_consume(queue, take, no_ack=True)


async def _close(connection: AbstractConnection) -> None:
    try:
        await asyncio.wait_for(connection.close(), 5)
    except (*CONNECTION_EXCEPTIONS, TimeoutError):
        pass  # gone already: there's nothing left to close


async def _lane_exists(connection: AbstractConnection, lane: Lane) -> bool:
    """Whether a lane's queue and exchange are there."""
    try:
        async with connection.channel() as channel:
            await channel.get_exchange(lane.queue, ensure=True)
            await channel.get_queue(lane.queue, ensure=True)
    except ChannelNotFoundEntity:
        return False
    return True


def announced_version(connection: AbstractConnection) -> str:
    """The broker's version as it introduced itself."""
    transport = connection.transport
    properties: Mapping[str, Any] = (
        getattr(getattr(transport, "connection", None), "server_properties", None) or {}
    )
    version = properties.get("version", "")
    return version.decode() if isinstance(version, bytes) else str(version)


def frame_max(connection: AbstractConnection) -> int:
    """How many bytes a frame may have on that connection, as was agreed with the broker; 0 for any
    number.
    """
    tuned = getattr(getattr(connection.transport, "connection", None), "connection_tune", None)
    return int(getattr(tuned, "frame_max", 0) or 0)


def parse_version(text: str) -> topology.Version:
    """Major and minor; an unreadable version counts as the oldest that is supported."""
    numbers = text.split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (IndexError, ValueError):
        return 3, 10


def _consumer_arguments(
    version: topology.Version, kind: topology.Kind, hold: float
) -> dict[str, Any] | None:
    """4.3 lets a consumer of a quorum queue say how long it may hold a delivery; elsewhere only the
    operator can.
    """
    if version >= (4, 3) and kind == "quorum":
        return {"x-consumer-timeout": int(hold * 1000)}
    return None


async def _watched_channel(connection: AbstractConnection, session: Session) -> AbstractChannel:
    channel = await connection.channel(publisher_confirms=False)
    channel.close_callbacks.add(lambda _, error: session.end("channel_closed", _why(error)))
    raw = await channel.get_underlay_channel()
    # Without this a consumer that the broker cancels stays silent for ever, and nothing else tells.
    raw.on_consumer_cancel_callbacks.add(
        lambda frame: session.end(
            "consumer_cancelled", f"the broker cancelled consumer {frame.consumer_tag}"
        )
    )
    return channel


def _to_delivery(
    message: DeliveredMessage, lane: str, raw: RawChannel, session: Session
) -> Delivery:
    tag = message.delivery_tag
    assert tag is not None, "a delivery has a tag"

    async def settle(send: Callable[[], Awaitable[None]]) -> None:
        try:
            await send()
        except CONNECTION_EXCEPTIONS as error:
            session.end("channel_closed", f"a settlement could not be sent: {_why(error)}")
            raise BrokerUnavailable(f"the settlement could not be sent: {_why(error)}") from error

    return Delivery(
        message=to_message(message),
        lane=lane,
        redelivered=bool(message.redelivered),
        ack=partial(settle, partial(raw.basic_ack, tag)),
        reject=partial(settle, partial(raw.basic_reject, tag, requeue=False)),
    )


def to_message(message: DeliveredMessage) -> Message:
    """A delivered message as the bridge sees it."""
    properties = message.header.properties
    return Message(
        body=message.body,
        headers=properties.headers or {},
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=properties.delivery_mode,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        expiration=properties.expiration,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        message_type=properties.message_type,
        user_id=properties.user_id,
        app_id=properties.app_id,
        exchange=message.exchange,
        routing_key=message.routing_key,
    )


def _refreshed(settings: BrokerSettings) -> BrokerSettings:
    """The settings with the secrets that their files hold now. That one can't be read is like a
    refused one.
    """
    try:
        return settings.refreshed(BrokerSettings)
    except SettingsError as error:
        raise BrokerDenied(str(error)) from error


@contextmanager
def _translated(settings: BrokerSettings) -> Iterator[None]:
    """Turn what connecting and declaring raises into our own errors, once."""
    where = settings.broker_address
    try:
        yield
    except AuthenticationError as error:
        offered = ", ".join(str(error.args[0]).split()) if error.args else "nothing"
        raise BrokerDenied(
            f"RabbitMQ at {where} does not let us log in as its address says, by {offered}"
        ) from error
    except ProbableAuthenticationError as error:
        raise BrokerDenied(f"RabbitMQ at {where} refuses {_login(settings, error)}") from error
    except (ConnectionNotAllowed, InvalidFrameError) as error:
        # aiormq tells a refused virtual host as an unexpected frame, and keeps the broker's reason
        # to itself.
        if isinstance(error, InvalidFrameError) and "Connection.OpenOk" not in str(error):
            raise BrokerUnavailable(
                f"RabbitMQ at {where} does not speak AMQP 0-9-1: {_why(error)}"
            ) from error
        raise BrokerDenied(
            f"RabbitMQ at {where} refuses the virtual host of BRIDGE_AMQP_URL to its user"
        ) from error
    except ChannelAccessRefused as error:
        raise BrokerDenied(
            f"RabbitMQ at {where} refuses the user's rights: {_why(error)}"
        ) from error
    except (*CONNECTION_EXCEPTIONS, TimeoutError) as error:
        raise BrokerUnavailable(f"can't reach RabbitMQ at {where}: {_why(error)}") from error


def _login(settings: BrokerSettings, error: ProbableAuthenticationError) -> str:
    """What it is that the broker refuses when it lets nobody in."""
    if "EXTERNAL" in str(error):
        return "the user of our certificate, BRIDGE_AMQP_CERTIFICATE"
    name = "amqp_password" if settings.amqp_password else "amqp_url"
    return f"the user or the password of {settings.origin(name)}"


def _why(error: object) -> str:
    if isinstance(error, ChannelInvalidStateError):
        return "the channel is closed"
    return _REFUSED.sub(_refusal, " ".join(str(error).split())) or type(error).__name__


_REFUSED = re.compile(r"\[Errno (\d+)\] Connect call failed \('([^']*)', (\d+)[^)]*\)")
"""How asyncio says that there was no connection, with the address as Python writes it."""


def _refusal(found: re.Match[str]) -> str:
    return f"{os.strerror(int(found[1]))} ({authority(found[2], int(found[3]))})"
