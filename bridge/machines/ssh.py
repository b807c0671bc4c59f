"""An SSH connection to a machine: its host key is pinned, its loss is noticed, and every error is
one of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import asyncssh
import structlog
from tenacity import RetryCallState, wait_exponential

from bridge.errors import MachineError
from bridge.machines.identity import SshIdentity
from bridge.machines.policy import SSH_POLICY, SshPolicy
from bridge.machines.ssh_banner import BannerWait, NoBannerError
from bridge.retrying import error_of, retry

REFUSED_PAUSE = wait_exponential(0.1, max=2)
"""Seconds between attempts to log in."""

log = structlog.get_logger(__name__)
# asyncssh logs every step at level info. What matters to operators is logged here.
asyncssh.set_log_level(logging.CRITICAL)


class SshError(MachineError):
    """Base of what can go wrong between us and a machine that exists."""


class MachineUnreachable(SshError):
    """No SSH session with the machine could be established in time."""


class WrongHostKey(SshError):
    """Something else than the machine answers at its address."""


class LoginDenied(SshError):
    """The machine refuses the user or the key."""


class ConnectionLost(SshError):
    """The session with the machine ended before its work was done."""


class MachineGone(SshError):
    """The machine has ended, as its provider says."""


class MachineFailed(SshError):
    """The machine can be reached but lacks what a run needs: python3, SFTP, space on its disk."""


class SftpMissing(MachineFailed):
    """SFTP doesn't start. A machine that is going down may be like that as well."""


UntilGone = Callable[[], Awaitable[str]]
"""Returns, once the provider says that the machine has ended, a text that says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a machine is, the user that logs in, and the keys of both sides."""

    name: str
    host: str
    port: int
    user: str
    identity: SshIdentity
    until_gone: UntilGone | None = None
    created: float | None = None
    """When the machine was created, in seconds since 1970; None where that isn't known."""

    @property
    def age(self) -> float:
        """How many seconds ago the machine was created, without end where that isn't known."""
        return math.inf if self.created is None else time.time() - self.created

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port})"


class _NotYetError(Exception):
    """The machine doesn't let us in; it may be booting. `final` is the error if it goes on."""

    def __init__(self, reason: str, *, final: SshError | None = None) -> None:
        super().__init__(reason)
        self.final = final


@asynccontextmanager
async def connected(
    address: Address, *, wait: float, policy: SshPolicy = SSH_POLICY
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A session with the machine. Waits at most `wait` seconds until the machine lets us in.

    Raises:
        MachineUnreachable: it did not answer in time.
        MachineGone: it has ended, as its provider says.
        WrongHostKey: it showed another key than the pinned one, and not only during its first
            seconds.
        LoginDenied: it refused us, and not only during its first seconds.
    """
    connection = await _let_in(address, _Login(address, wait, policy))
    try:
        yield connection
    finally:
        # A machine that is frozen would hold up a polite close for as long as it is frozen.
        connection.close()
        with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
            async with asyncio.timeout(policy.close_timeout):
                await connection.wait_closed()
        connection.abort()


@contextmanager
def translated(address: Address) -> Iterator[None]:
    """Turn what asyncssh raises in an established session into our errors.

    Raises:
        ConnectionLost: the session has ended.
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


def is_lost(error: Exception) -> bool:
    """Whether an error of SFTP, or of a local file, means that the connection is lost."""
    lost = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost, ConnectionError)
    return isinstance(error, lost)


async def _let_in(address: Address, login: _Login) -> asyncssh.SSHClientConnection:
    """The connection, once the machine lets us in.

    Raises:
        MachineGone: it ended before that.
        SshError: as `connected` says.
    """
    if address.until_gone is None:
        return await login.until_let_in()
    let_in = asyncio.create_task(login.until_let_in())
    gone = asyncio.ensure_future(address.until_gone())
    try:
        await asyncio.wait({let_in, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not let_in.done():
            raise MachineGone(f"{address} was lost: {gone.result()}")
        return let_in.result()
    finally:
        let_in.cancel()
        gone.cancel()
        await asyncio.gather(let_in, gone, return_exceptions=True)


class _Login:
    """The attempts to log in to one machine."""

    def __init__(self, address: Address, wait: float, policy: SshPolicy) -> None:
        self._address = address
        self._wait = wait
        self._policy = policy
        self._banner = BannerWait(wait, shortest=policy.banner_pause, age=address.age)
        self._refused_since: dict[type[SshError], float] = {}
        self._last: _NotYetError | None = None

    async def until_let_in(self) -> asyncssh.SSHClientConnection:
        try:
            async with self._banner, asyncio.timeout(self._wait):
                return await retry(self._attempt, on=(_NotYetError,), wait=_pause)
        except TimeoutError as error:
            if self._last and self._last.final:
                raise self._last.final from error
            reason = f": {self._last}" if self._last else ""
            raise MachineUnreachable(
                f"{self._address} can't be reached within {self._wait:g} s{reason}"
            ) from error

    async def _attempt(self) -> asyncssh.SSHClientConnection:
        try:
            speaking = await self._banner.once(self._address.host, self._address.port)
            return await self._connect(speaking)
        except NoBannerError as error:
            raise self._not_yet(str(error)) from error
        except asyncssh.HostKeyNotVerifiable as error:
            # An image may bring keys of its own, until cloud-init has put ours there.
            wrong = WrongHostKey(f"{self._address} shows another host key than the machine's own")
            raise self._refusal(wrong, self._policy.host_key_grace) from error
        except asyncssh.PermissionDenied as error:
            denied = LoginDenied(
                f"{self._address} refuses user {self._address.user} or the key derived for it"
            )
            raise self._refusal(denied, self._policy.denied_grace) from error
        except (asyncssh.Error, OSError) as error:
            raise self._not_yet(_reason(error)) from error

    async def _connect(self, speaking: socket.socket) -> asyncssh.SSHClientConnection:
        identity = self._address.identity
        return await asyncssh.connect(
            self._address.host,
            self._address.port,
            sock=speaking,
            username=self._address.user,
            client_keys=[asyncssh.import_private_key(identity.client.private)],
            known_hosts=([asyncssh.import_public_key(identity.host.public)], [], []),
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            compression_algs=["none"],
            login_timeout=self._policy.login_timeout,
            keepalive_interval=self._policy.keepalive,
            keepalive_count_max=self._policy.keepalives_missed,
        )

    def _not_yet(self, reason: str, *, final: SshError | None = None) -> _NotYetError:
        log.debug("machine not yet reached", machine=self._address.name, reason=reason)
        self._last = _NotYetError(reason, final=final)
        return self._last

    def _refusal(self, final: SshError, first_grace: float) -> Exception:
        """That error, once the machine has refused us for longer than its boot can explain."""
        now = self._banner.waited
        since = self._refused_since.setdefault(type(final), now)
        if now - since >= min(max(first_grace, now / 4), self._wait):
            return final
        return self._not_yet(str(final), final=final)


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt. Who refused one may hold further ones against us."""
    error = error_of(state)
    if error and isinstance(error.__cause__, NoBannerError):
        return 0.0
    return REFUSED_PAUSE(state)


def _reason(error: BaseException) -> str:
    text = getattr(error, "reason", None)
    if not text:
        text = str(error)
    if not text:
        text = type(error).__name__
    return " ".join(str(text).split())
