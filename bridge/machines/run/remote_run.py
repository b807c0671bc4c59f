"""One run on one machine: sent, followed to its end over any number of connections, or stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh
import structlog

from bridge.machines.policy import SSH_POLICY, SshPolicy
from bridge.machines.run import remote_helper
from bridge.machines.run.output import ScriptOutput, Sink
from bridge.machines.run.report import Report, report_of
from bridge.machines.run.results import fetch_results
from bridge.machines.run.staging import HOME, stage
from bridge.machines.run.work import Work
from bridge.machines.ssh import (
    Address,
    ConnectionLost,
    MachineFailed,
    MachineUnreachable,
    SshError,
    connected,
    translated,
)

log = structlog.get_logger(__name__)

STOP_MARGIN = 10.0
"""Seconds that a stop may take beyond the script's own grace, until it is given up."""
POLL = 0.1
"""Seconds between connections, and between looks at whether a run has stopped."""
RESULTS_NAMED = 1000
"""The results that a report names at most."""


class RunRefused(SshError):
    """The machine has a run of that id, for other work."""


class RunVanished(SshError):
    """The run is on the machine, but its supervisor has ended without saying how the run ended."""


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
        results_directory: Path | None = None,
        policy: SshPolicy = SSH_POLICY,
    ) -> None:
        self._address = address
        self._work = work
        self._digest = work.digest()
        self._output = ScriptOutput(out, err)
        self._boot_timeout = boot_timeout
        self._reconnect = reconnect
        self._results_directory = results_directory
        self._policy = policy
        self._folder = HOME + b"/" + os.fsencode(work.run_id)
        self._started_by_us = False
        self._reached = False
        self._may_be_running = False
        self._stop_until: float | None = None
        self.stopped: bool | None = None
        """After a cancellation: whether the run is known to have stopped. None if it never began,
        or was not cancelled."""

    async def run_to_end(self) -> Report:
        """Run it to its end. Cancelling this stops the run on the machine.

        Raises:
            SshError: the run never began, or how it ended isn't known; the class says which.
            ResultsFailed: the run has ended, but its results can't be written on this side.
        """
        try:
            return await self._until_end()
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
            except (ConnectionLost, MachineUnreachable) as error:
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

    def _lost(self, error: SshError) -> ConnectionLost:
        if isinstance(error, ConnectionLost) and self._reconnect <= 0:
            return error
        return ConnectionLost(
            f"the connection to {self._address} was lost and not regained in {self._reconnect:g} s"
        )

    async def _follow_to_end(self, connection: asyncssh.SSHClientConnection) -> Report:
        """Start or follow the run on this connection, and report its end."""
        with translated(self._address):
            sftp = await connection.start_sftp_client(path_encoding=None)
            try:
                command = await self._command(sftp)
                process = await connection.create_process(
                    command.decode(), encoding=None, stdin=asyncssh.DEVNULL
                )
                self._check_follower(await self._output.pass_on(process))
                report = report_of(
                    await self._status(sftp),
                    time_limit=self._work.time_limit,
                    attached=not self._started_by_us,
                )
                return await self._with_results(sftp, report)
            except asyncio.CancelledError:
                if self._may_be_running:
                    await self._stop(sftp)
                raise

    async def _command(self, sftp: asyncssh.SFTPClient) -> bytes:
        """The command that follows the run, or that starts it, once all it needs is there."""
        helper = self._folder + b"/helper.py"
        if not await sftp.exists(helper):
            self._started_by_us = True
            staged = await stage(sftp, self._work, self._digest)
            self._may_be_running = True
            return b"exec python3 -I %s/helper.py start %s %s" % (staged, staged, self._folder)
        if await self._read(sftp, b"digest") != self._digest.encode():
            raise self._refused()
        self._may_be_running = True
        out, err = self._output.seen
        return b"exec python3 -I %s follow %s %d %d" % (helper, self._folder, out, err)

    def _check_follower(self, status: int | None) -> None:
        """Raise what the exit status of the helper's follower means, unless the run has ended."""
        if status is None or status < 0:
            raise ConnectionLost(f"the connection to {self._address} was lost while the script ran")
        if status == remote_helper.REFUSED:
            raise self._refused()
        if status == remote_helper.GONE:
            raise RunVanished(
                f"run {self._work.run_id} has vanished from {self._address} without a "
                "record of how it ended"
            )
        if status != remote_helper.DONE:
            raise MachineFailed(
                f"{self._address} could not run our helper (exit {status}): does it have python3?"
            )

    def _refused(self) -> RunRefused:
        return RunRefused(f"{self._address} already has a run {self._work.run_id}, for other work")

    async def _status(self, sftp: asyncssh.SFTPClient) -> Mapping[str, Any]:
        try:
            status = json.loads(await self._read(sftp, b"status.json"))
        except ValueError:
            status = None
        if not isinstance(status, dict):
            raise MachineFailed(f"{self._address} has no readable record of how the run ended")
        return status

    async def _read(self, sftp: asyncssh.SFTPClient, name: bytes) -> bytes:
        async with sftp.open(self._folder + b"/" + name, "rb") as file:
            content: Any = await file.read()
        return bytes(content)

    async def _with_results(self, sftp: asyncssh.SFTPClient, report: Report) -> Report:
        """The report, with the result files fetched. They are wanted after a failure too."""
        wanted = self._work.results
        if not self._results_directory or not wanted:
            return report
        listing = await self._read(sftp, b"results")
        names = listing.split(b"\0")[:-1]
        await fetch_results(sftp, self._folder + b"/work", names, self._results_directory)
        shown = [name.decode("utf-8", "backslashreplace") for name in names[:RESULTS_NAMED]]
        return report.with_results(tuple(shown), wanted=wanted)

    async def _reconnect_and_stop(self) -> None:
        """Stop the run although there is no connection at the moment."""
        wait = self._begin_stop() - asyncio.get_running_loop().time()
        with contextlib.suppress(SshError):
            async with connected(
                self._address, wait=max(wait, 0), policy=self._policy
            ) as connection:
                with translated(self._address):
                    await self._stop(await connection.start_sftp_client(path_encoding=None))

    async def _stop(self, sftp: asyncssh.SFTPClient) -> None:
        """Ask the run's supervisor to stop it, and wait until it has."""
        stop_until = self._begin_stop()
        with contextlib.suppress(TimeoutError, asyncssh.Error, ConnectionError):
            async with asyncio.timeout_at(stop_until):
                while True:
                    # The run's folder may not be there yet: its start may still be on its way.
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                        request = await sftp.open(self._folder + b"/stop", "wb")
                        await request.close()
                        self.stopped = await sftp.exists(self._folder + b"/status.json")
                    if self.stopped:
                        return
                    await asyncio.sleep(POLL)

    def _begin_stop(self) -> float:
        """The loop's time at which to give up stopping, counted from the first call."""
        if self._stop_until is None:
            self.stopped = False
            self._stop_until = asyncio.get_running_loop().time() + self._work.grace + STOP_MARGIN
        return self._stop_until
