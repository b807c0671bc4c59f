"""Connections to RabbitMQ: login, TLS, and what both sides agreed on when they connected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection

from bridge.errors import BrokerDenied, SettingsError
from bridge.rabbitmq import codec
from bridge.rabbitmq.error_translation import BROKEN, closed_named
from bridge.rabbitmq.topology import Version
from bridge.settings import BrokerSettings

CONNECT_TIMEOUT = 15.0
CLOSE_TIMEOUT = 5.0

_CUT_OFF = (
    asyncio.IncompleteReadError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
"""Errors of a connection that a running broker ends without an AMQP answer."""


def refreshed(settings: BrokerSettings) -> BrokerSettings:
    """The settings with the secrets as their files hold them now.

    Raises:
        BrokerDenied: a secret can't be read, which is handled like a refused one.
    """
    try:
        return settings.refreshed(BrokerSettings)
    except SettingsError as error:
        raise BrokerDenied(str(error)) from error


@asynccontextmanager
async def connected(settings: BrokerSettings, name: str) -> AsyncIterator[AbstractConnection]:
    """A connection that is closed at the end; raises as `connect` does."""
    connection = await connect(settings, name)
    try:
        yield connection
    finally:
        await close(connection)


async def connect(settings: BrokerSettings, name: str) -> AbstractConnection:
    """Connect and log in.

    The first connection patches the AMQP libraries for the whole process (`codec.install`).

    Raises:
        BrokerDenied: a certificate can't be read, or TLS fails.
        Whatever aio-pika raises otherwise; `error_translation.translated` translates it.
    """
    codec.install()
    url = urlsplit(settings.amqp_login)
    context = None
    if url.scheme == "amqps":
        try:
            context = settings.amqp_tls.context()
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
        problem = settings.amqp_tls.trouble(error)
        if isinstance(error.__cause__ or error, _CUT_OFF):
            port = url.port or (5671 if context else 5672)
            problem = await settings.amqp_tls.why_cut_off(
                url.hostname or "", port, context, scheme="amqps"
            )
        if problem:
            raise BrokerDenied(f"RabbitMQ at {settings.broker_address}: {problem}") from error
        raise


async def close(connection: AbstractConnection) -> None:
    """Close a connection. One that is lost already is no error."""
    with suppress(*BROKEN), closed_named():
        await asyncio.wait_for(connection.close(), CLOSE_TIMEOUT)


def announced_version(connection: AbstractConnection) -> str:
    """The broker's version as it announced it."""
    raw = getattr(connection.transport, "connection", None)
    properties: Mapping[str, Any] = getattr(raw, "server_properties", None) or {}
    version = properties.get("version", "")
    if isinstance(version, bytes):
        return version.decode()
    return str(version)


def parse_version(text: str) -> Version:
    """Major and minor version; text that can't be read counts as the oldest supported version."""
    numbers = text.split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (IndexError, ValueError):
        return 3, 10


def version_of(connection: AbstractConnection) -> Version:
    """The broker's major and minor version."""
    return parse_version(announced_version(connection))


def frame_max(connection: AbstractConnection) -> int:
    """The bytes that a frame may have on a connection, as agreed with the broker; 0: any number."""
    raw = getattr(connection.transport, "connection", None)
    tuned = getattr(raw, "connection_tune", None)
    return int(getattr(tuned, "frame_max", 0) or 0)
