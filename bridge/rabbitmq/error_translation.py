"""Turns what the AMQP libraries raise into the bridge's own errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ProbableAuthenticationError,
)
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
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

from bridge.errors import BrokerDenied, BrokerUnavailable, QueueInUse, QueueMissing
from bridge.settings import BrokerSettings, authority

BROKEN = (*CONNECTION_EXCEPTIONS, TimeoutError)
"""What the libraries raise when a connection or a channel is lost, or an answer is overdue."""

CAUSED_BY_A_FRAME = (
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    ConnectionFrameError,
    ConnectionInternalError,
    ConnectionNotImplemented,
    ConnectionSyntaxError,
    ConnectionUnexpectedFrame,
)
"""Errors with which a broker ends a channel or a connection over something that was sent on it."""

_REFUSED_CONNECT = re.compile(r"\[Errno (\d+)\] Connect call failed \('([^']*)', (\d+)[^)]*\)")
"""asyncio's text for a failed connect, with the address as Python writes it."""


@contextmanager
def closed_named() -> Iterator[None]:
    """Give a channel that is closed without a reason its name.

    aiormq fails what waits on such a channel with a bare Exception (`aiormq.base.FutureStore`).

    Raises:
        ChannelInvalidStateError: instead of that Exception; it is one of `BROKEN`.
    """
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise ChannelInvalidStateError from error
        raise


@contextmanager
def translated(settings: BrokerSettings) -> Iterator[None]:
    """Translate errors of connecting, logging in and declaring.

    Raises:
        BrokerDenied: RabbitMQ refuses the login, the virtual host or the user's rights.
        BrokerUnavailable: anything else went wrong on the connection.
    """
    where = settings.broker_address
    try:
        with closed_named():
            yield
    except AuthenticationError as error:
        offered = ", ".join(str(*error.args[:1]).split()) or "nothing"
        raise BrokerDenied(
            f"RabbitMQ at {where} does not let us log in as its address says, by {offered}"
        ) from error
    except ProbableAuthenticationError as error:
        raise BrokerDenied(
            f"RabbitMQ at {where} refuses {_refused_login(settings, error)}"
        ) from error
    except (ConnectionNotAllowed, InvalidFrameError) as error:
        raise _refused_virtual_host(where, error) from error
    except ChannelAccessRefused as error:
        raise BrokerDenied(
            f"RabbitMQ at {where} refuses the user's rights: {reason(error)}"
        ) from error
    except BROKEN as error:
        raise BrokerUnavailable(f"can't reach RabbitMQ at {where}: {reason(error)}") from error


@contextmanager
def translated_on_queue(queue: str) -> Iterator[None]:
    """Translate errors of operations on one queue.

    Raises:
        QueueMissing: there is no such queue.
        QueueInUse: another connection has it exclusively.
        BrokerDenied: the user lacks a right.
        BrokerUnavailable: the connection or the channel is lost.
    """
    try:
        with closed_named():
            yield
    except ChannelNotFoundEntity as error:
        raise QueueMissing(
            f"RabbitMQ has no queue {queue}: is BRIDGE_QUEUE right, and has a bridge run?"
        ) from error
    except ChannelAccessRefused as error:
        raise _refused_rights(error) from error
    except ChannelLockedResource as error:
        raise QueueInUse(f"{queue} is in use: {reason(error)}") from error
    except BROKEN as error:
        raise BrokerUnavailable(f"the connection to RabbitMQ was lost: {reason(error)}") from error


def rights_error(error: BaseException) -> BrokerDenied | None:
    """The error to raise for a publish that failed for a missing right; None for any other."""
    if isinstance(error.__cause__, ChannelAccessRefused):
        return _refused_rights(error.__cause__)
    return None


def reason(error: object) -> str:
    """An error's text on one line."""
    if isinstance(error, ChannelInvalidStateError):
        return "the channel is closed"
    text = " ".join(str(error).split())
    return _REFUSED_CONNECT.sub(_failed_connect, text) or type(error).__name__


def _refused_rights(error: ChannelAccessRefused) -> BrokerDenied:
    return BrokerDenied(
        f"RabbitMQ refuses the user's rights: {reason(error)}; "
        "rabbitmqctl set_permissions gives them"
    )


def _failed_connect(match: re.Match[str]) -> str:
    return f"{os.strerror(int(match[1]))} ({authority(match[2], int(match[3]))})"


def _refused_login(settings: BrokerSettings, error: ProbableAuthenticationError) -> str:
    """The credentials that the broker refuses."""
    if "EXTERNAL" in str(error):
        return "the user of our certificate, BRIDGE_AMQP_CERTIFICATE"
    name = "amqp_password" if settings.amqp_password else "amqp_url"
    return f"the user or the password of {settings.origin(name)}"


def _refused_virtual_host(
    where: str, error: ConnectionNotAllowed | InvalidFrameError
) -> BrokerDenied | BrokerUnavailable:
    """The error for a refused virtual host, or for a server that doesn't speak AMQP.

    aiormq reports a refused virtual host as an unexpected frame, without the broker's reason.
    """
    if isinstance(error, InvalidFrameError) and "Connection.OpenOk" not in str(error):
        return BrokerUnavailable(f"RabbitMQ at {where} does not speak AMQP 0-9-1: {reason(error)}")
    return BrokerDenied(
        f"RabbitMQ at {where} refuses the virtual host of BRIDGE_AMQP_URL to its user"
    )
