"""A connection to a machine by SSH: its keys pinned, its loss noticed, every trouble one of our own
errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import asyncssh
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from bridge.errors import MachineError
from bridge.machines.identity import SshIdentity
from bridge.machines.ssh_banner import BannerWait, NoBannerError, patience

log = structlog.get_logger(__name__)
# It tells every step at level info; what matters of them we say ourselves.
asyncssh.set_log_level(logging.CRITICAL)

KEEPALIVE = 5.0
"""Seconds between the questions to a silent machine; the third without an answer means that it is
lost."""
KEEPALIVES_MISSED = 3
DENIED_GRACE = 30.0
"""A machine that still boots refuses its ordinary users for a while: before the account exists, and
by /run/nologin. The longer, the slower it is: this is the least that it gets."""
LOGIN_TIMEOUT = 120.0
"""As long as sshd itself allows (sshd_config's LoginGraceTime)."""
CLOSE_TIMEOUT = 2.0


class SshError(MachineError):
    """Base of what can go wrong between us and a machine that exists."""


class MachineUnreachable(SshError):
    """No SSH session with the machine came about in time."""


class WrongHostKey(SshError):
    """What answers at the machine's address isn't the machine. It is never asked again."""


class LoginDenied(SshError):
    """The machine refuses the user or the key."""


class ConnectionLost(SshError):
    """The session with the machine has ended before what it was for."""


class MachineFailed(SshError):
    """The machine can be reached but can't do what it must: no Python, no SFTP, a full disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a machine is, who logs in, and by which keys both know each other."""

    name: str
    host: str
    port: int
    user: str
    identity: SshIdentity

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port})"


class _NotYetError(Exception):
    """The machine can't be logged in to; it may be booting."""

    def __init__(self, reason: str, *, denied: bool = False) -> None:
        super().__init__(reason)
        self.denied = denied


@asynccontextmanager
async def connected(
    address: Address, *, wait: float, keepalive: float = KEEPALIVE
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A session with the machine, waiting at most `wait` seconds until it lets us in.

    Raises:
        MachineUnreachable: it did not answer in time.
        WrongHostKey: another key than the pinned one was shown.
        LoginDenied: it refused us, and not only for its first seconds.
    """
    connection = await _Knock(address, wait, keepalive).until_let_in()
    try:
        yield connection
    finally:
        await _close(connection)


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn what asyncssh raises in an established session into our errors.

    Raises:
        ConnectionLost: there is no session any more.
        MachineFailed: the machine refused an operation on a file.
    """
    try:
        yield
    except (
        asyncssh.SFTPNoConnection,
        asyncssh.SFTPConnectionLost,
        asyncssh.ChannelOpenError,
    ) as error:
        raise ConnectionLost(f"the connection to {address} was lost: {_reason(error)}") from error
    except asyncssh.SFTPError as error:
        raise MachineFailed(
            f"{address} refused an operation on a file: {_reason(error)}"
        ) from error
    except (asyncssh.Error, ConnectionError) as error:
        raise ConnectionLost(f"the connection to {address} was lost: {_reason(error)}") from error


class _Knock:
    """The attempts to get a session with one machine."""

    def __init__(self, address: Address, wait: float, keepalive: float) -> None:
        self._address = address
        self._wait = wait
        self._banner = BannerWait(wait)
        self._keepalive = keepalive
        self._denied_since: float | None = None
        self._last: _NotYetError | None = None

    async def until_let_in(self) -> asyncssh.SSHClientConnection:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_NotYetError),
            wait=wait_exponential(0.1, max=2),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._wait):
                return await attempts(self._attempt)
        except TimeoutError as error:
            reason = f": {self._last}" if self._last else ""
            if self._last and self._last.denied:
                raise self._denied() from error
            raise MachineUnreachable(
                f"{self._address} can't be reached within {self._wait:g} s{reason}"
            ) from error

    async def _attempt(self) -> asyncssh.SSHClientConnection:
        try:
            await self._greeted()
            return await self._connect()
        except _NotYetError as error:
            self._last = error
            log.debug("machine not yet reached", machine=self._address.name, reason=str(error))
            raise

    async def _greeted(self) -> None:
        try:
            await self._banner.once(self._address.host, self._address.port)
        except NoBannerError as error:
            raise _NotYetError(str(error)) from error

    async def _connect(self) -> asyncssh.SSHClientConnection:
        identity, host, port = self._address.identity, self._address.host, self._address.port
        try:
            return await asyncssh.connect(
                host,
                port,
                username=self._address.user,
                client_keys=[asyncssh.import_private_key(identity.client.private)],
                known_hosts=([asyncssh.import_public_key(identity.host.public)], [], []),
                config=None,
                agent_path=None,
                preferred_auth="publickey",
                compression_algs=["none"],
                login_timeout=LOGIN_TIMEOUT,
                keepalive_interval=self._keepalive,
                keepalive_count_max=KEEPALIVES_MISSED,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise WrongHostKey(
                f"{self._address} shows another host key than the machine's own"
            ) from error
        except asyncssh.PermissionDenied as error:
            raise self._refused(error) from error
        except (asyncssh.Error, OSError) as error:
            raise _NotYetError(_reason(error)) from error

    def _refused(self, error: Exception) -> _NotYetError | LoginDenied:
        now = self._banner.waited
        if self._denied_since is None:
            self._denied_since = now
        if now - self._denied_since >= patience(DENIED_GRACE, now, self._wait):
            return self._denied()
        return _NotYetError(_reason(error), denied=True)

    def _denied(self) -> LoginDenied:
        return LoginDenied(
            f"{self._address} refuses user {self._address.user} or the key derived for it"
        )


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    """Close politely if that goes fast: a machine that is frozen would hold us for as long as it
    is.
    """
    connection.close()
    with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.wait_closed()
    connection.abort()


def _reason(error: BaseException) -> str:
    text = getattr(error, "reason", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
