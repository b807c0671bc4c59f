"""One run on one machine: sent, followed to its end over any number of connections, or stopped."""

from __future__ import annotations

import asyncio
import contextlib

import asyncssh
import structlog

from bridge.machines.policy import SSH_POLICY, SshPolicy
from bridge.machines.run.follower import check_status, refused, removed
from bridge.machines.run.output import ScriptOutput, Sink
from bridge.machines.run.report import Report, report_of
from bridge.machines.run.results import ResultsFolder
from bridge.machines.run.session import RunSession
from bridge.machines.run.staging import stage
from bridge.machines.run.work import Work
from bridge.machines.ssh import (
    Address,
    ConnectionLost,
    MachineFailed,
    MachineGone,
    MachineUnreachable,
    SftpMissing,
    SshError,
    connected,
    is_lost,
    translated,
)

log = structlog.get_logger(__name__)

STOP_MARGIN = 10.0
"""Seconds that a stop may take beyond the script's own grace, until it is given up."""
POLL = 0.1
"""Seconds between connections, and between looks at whether a run has stopped."""
LEAST_WAIT = 2.0
"""Seconds that each connection has to be made. The last one would else fail for lack of time, which
hides what the one before it has found."""


class RemoteRun:
    """One run of some work on one machine."""

    def __init__(
        self,
        address: Address,
        work: Work,
        *,
        out: Sink,
        err: Sink,
        boot_timeout: float,
        reconnect: float = 30.0,
        results_folder: ResultsFolder | None = None,
        policy: SshPolicy = SSH_POLICY,
    ) -> None:
        self._address = address
        self._work = work
        self._digest = work.digest()
        self._output = ScriptOutput(out, err)
        self._boot_timeout = boot_timeout
        self._reconnect = reconnect
        self._results_folder = results_folder
        self._policy = policy
        self._folder: bytes | None = None
        self._started_by_us = False
        self._staged: bytes | None = None
        """The folder that a start turns into the run, or that waits for it."""
        self._reached = False
        self._may_be_running = False
        self.ended: Report | None = None
        """How the script ended, once that is known. Its results may be missing yet."""
        self._stop_until: float | None = None
        self.stopped: bool | None = None
        """After a cancellation: whether the run is known to have stopped. None if it never began,
        or was not cancelled."""

    async def run_to_end(self) -> Report:
        """Run it to its end. Cancelling this stops the run on the machine.

        Raises:
            SshError: the run never began, or how it ended isn't known; the class says which.
        """
        try:
            return await self._until_end()
        except SshError as error:
            if self.ended is None:
                raise
            lost = isinstance(error, (ConnectionLost, MachineGone, MachineUnreachable))
            return self.ended.without_results(str(error), lost=lost)
        except asyncio.CancelledError:
            if self._may_be_running and not self.stopped:
                await self._reconnect_and_stop()
            raise

    async def _until_end(self) -> Report:
        clock = asyncio.get_running_loop().time
        wait = self._boot_timeout
        give_up_at: float | None = None
        while True:
            seen_before = self._output.total_seen
            try:
                async with connected(self._address, wait=wait, policy=self._policy) as connection:
                    self._reached = True
                    return await self._follow_to_end(connection)
            except (ConnectionLost, MachineUnreachable, SftpMissing) as error:
                if not self._reached:
                    raise
                # Only progress starts the wait anew: a machine that lets us in and drops us at once
                # is lost as well.
                if self._output.total_seen > seen_before or give_up_at is None:
                    give_up_at = clock() + self._reconnect
                wait = give_up_at - clock()
                if wait <= 0:
                    raise self._lost(error) from error
                log.warning(
                    "connection lost, trying again", machine=self._address.name, reason=str(error)
                )
                await asyncio.sleep(min(POLL, wait))
                wait = max(wait, LEAST_WAIT)

    def _lost(self, error: SshError) -> SshError:
        if isinstance(error, SftpMissing):
            return error
        if isinstance(error, ConnectionLost) and self._reconnect <= 0:
            return error
        return ConnectionLost(
            f"the connection to {self._address} was lost and not regained in {self._reconnect:g} s"
        )

    async def _session(self, connection: asyncssh.SSHClientConnection) -> RunSession:
        session = await RunSession.open(self._address, connection, self._work.run_id, self._folder)
        self._folder = session.folder
        return session

    async def _follow_to_end(self, connection: asyncssh.SSHClientConnection) -> Report:
        """Start or follow the run on this connection, and report its end."""
        with translated(self._address):
            session = await self._session(connection)
            try:
                follower = await self._follower(session)
                check_status(await self._output.pass_on(follower), self._work.run_id, self._address)
                self.ended = report_of(
                    await session.status(),
                    time_limit=self._work.time_limit,
                    attached=not self._started_by_us,
                )
                self._may_be_running = False
                return await self._with_results(session, self.ended)
            except asyncio.CancelledError:
                if self._may_be_running:
                    await self._stop(session)
                raise

    async def _follower(self, session: RunSession) -> asyncssh.SSHClientProcess[bytes]:
        """A process that follows the run, or that starts it, once all it needs is there."""
        folder = session.folder
        # Asked first: a start that is still under way turns what is staged into the run.
        was_begun = self._staged is not None and not await session.exists(self._staged)
        if not await session.exists(folder):
            if was_begun:
                raise removed(self._work.run_id, self._address)
            self._started_by_us = True
            staged = await stage(session.sftp, session.runs, self._work, self._digest)
            self._staged = staged
            self._may_be_running = True
            return await session.start_program(staged, "helper.py", b"start", staged, folder)
        try:
            digest = await session.read(b"digest")
        except asyncssh.SFTPNoSuchFile as error:
            raise removed(self._work.run_id, self._address) from error
        if digest != self._digest.encode():
            raise refused(self._work.run_id, self._address)
        self._may_be_running = True
        seen = [b"%d" % count for count in self._output.seen]
        return await session.start_program(folder, "helper.py", b"follow", folder, *seen)

    async def _with_results(self, session: RunSession, report: Report) -> Report:
        """The report, with the result files fetched. They are wanted after a failure too."""
        wanted = self._work.results
        if not self._results_folder or not wanted:
            return report
        try:
            listed = await session.list_results()
            work = session.folder + b"/work"
            results = await self._results_folder.fetch(session.sftp, work, listed)
        except (MachineFailed, asyncssh.SFTPError) as error:
            if is_lost(error):
                raise
            return report.without_results(str(error), lost=False)
        return report.with_results(results, wanted=wanted)

    async def _reconnect_and_stop(self) -> None:
        """Stop the run although there is no connection at the moment."""
        wait = self._begin_stop() - asyncio.get_running_loop().time()
        with contextlib.suppress(SshError):
            async with connected(
                self._address, wait=max(wait, 0), policy=self._policy
            ) as connection:
                with translated(self._address):
                    await self._stop(await self._session(connection))

    async def _stop(self, session: RunSession) -> None:
        """Ask the run's supervisor to stop it, and wait until it has."""
        stop_until = self._begin_stop()
        with contextlib.suppress(TimeoutError, asyncssh.Error, ConnectionError):
            async with asyncio.timeout_at(stop_until):
                while True:
                    # The run's folder may not be there yet: its start may still be on its way.
                    self.stopped = await session.request_stop()
                    if self.stopped:
                        return
                    await asyncio.sleep(POLL)

    def _begin_stop(self) -> float:
        """The loop's time at which to give up stopping, counted from the first call."""
        if self._stop_until is None:
            self.stopped = False
            self._stop_until = asyncio.get_running_loop().time() + self._work.grace + STOP_MARGIN
        return self._stop_until
