"""An SSH connection to a machine: its host key is pinned, its loss is noticed, and every error is
one of ours.
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
from tenacity import wait_exponential

from bridge.errors import MachineError
from bridge.machines.identity import SshIdentity
from bridge.machines.policy import SSH_POLICY, SshPolicy
from bridge.machines.ssh_banner import BannerWait, NoBannerError, answer_wait
from bridge.retrying import retry

log = structlog.get_logger(__name__)
# asyncssh logs every step at level info. What matters to operators is logged here.
asyncssh.set_log_level(logging.CRITICAL)


class SshError(MachineError):
    """Base of what can go wrong between us and a machine that exists."""


class MachineUnreachable(SshError):
    """No SSH session with the machine could be established in time."""


class WrongHostKey(SshError):
    """Something else than the machine answers at its address. It is never asked again."""


class LoginDenied(SshError):
    """The machine refuses the user or the key."""


class ConnectionLost(SshError):
    """The session with the machine ended before its work was done."""


class MachineFailed(SshError):
    """The machine can be reached but lacks what a run needs: python3, SFTP, space on its disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a machine is, the user that logs in, and the keys of both sides."""

    name: str
    host: str
    port: int
    user: str
    identity: SshIdentity

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port})"


class _NotYetError(Exception):
    """The machine doesn't let us in; it may be booting."""

    def __init__(self, reason: str, *, denied: bool = False) -> None:
        super().__init__(reason)
        self.denied = denied


@asynccontextmanager
async def connected(
    address: Address, *, wait: float, policy: SshPolicy = SSH_POLICY
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A session with the machine. Waits at most `wait` seconds until the machine lets us in.

    Raises:
        MachineUnreachable: it did not answer in time.
        WrongHostKey: it showed another key than the pinned one.
        LoginDenied: it refused us, and not only during its first seconds.
    """
    connection = await _Login(address, wait, policy).until_let_in()
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


class _Login:
    """The attempts to log in to one machine."""

    def __init__(self, address: Address, wait: float, policy: SshPolicy) -> None:
        self._address = address
        self._wait = wait
        self._policy = policy
        self._banner = BannerWait(wait, first_wait=policy.first_banner_wait)
        self._denied_since: float | None = None
        self._last: _NotYetError | None = None

    async def until_let_in(self) -> asyncssh.SSHClientConnection:
        try:
            async with asyncio.timeout(self._wait):
                return await retry(
                    self._attempt, on=(_NotYetError,), wait=wait_exponential(0.1, max=2)
                )
        except TimeoutError as error:
            if self._last and self._last.denied:
                raise self._denied() from error
            reason = f": {self._last}" if self._last else ""
            raise MachineUnreachable(
                f"{self._address} can't be reached within {self._wait:g} s{reason}"
            ) from error

    async def _attempt(self) -> asyncssh.SSHClientConnection:
        try:
            await self._banner.once(self._address.host, self._address.port)
            return await self._connect()
        except NoBannerError as error:
            raise self._not_yet(str(error)) from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise WrongHostKey(
                f"{self._address} shows another host key than the machine's own"
            ) from error
        except asyncssh.PermissionDenied as error:
            if self._is_denied_for_good():
                raise self._denied() from error
            raise self._not_yet(_reason(error), denied=True) from error
        except (asyncssh.Error, OSError) as error:
            raise self._not_yet(_reason(error)) from error

    async def _connect(self) -> asyncssh.SSHClientConnection:
        identity = self._address.identity
        return await asyncssh.connect(
            self._address.host,
            self._address.port,
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

    def _not_yet(self, reason: str, *, denied: bool = False) -> _NotYetError:
        log.debug("machine not yet reached", machine=self._address.name, reason=reason)
        self._last = _NotYetError(reason, denied=denied)
        return self._last

    def _is_denied_for_good(self) -> bool:
        """Whether the machine has refused us for longer than its boot can explain."""
        now = self._banner.waited
        if self._denied_since is None:
            self._denied_since = now
        grace = answer_wait(self._policy.denied_grace, now, self._wait)
        return now - self._denied_since >= grace

    def _denied(self) -> LoginDenied:
        return LoginDenied(
            f"{self._address} refuses user {self._address.user} or the key derived for it"
        )


def _reason(error: BaseException) -> str:
    text = getattr(error, "reason", None)
    if not text:
        text = str(error)
    if not text:
        text = type(error).__name__
    return " ".join(str(text).split())
