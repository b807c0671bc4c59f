"""One run on a machine, seen through: sent, followed, taken up again where the connection broke,
its results fetched.

The run belongs to the machine (see `remote_helper`), not to the connection and not to this process.
So whoever starts it a second time under the same id, because a worker died or a connection was cut,
follows the first: the script runs once, and its output is read from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import asyncssh
import structlog

from bridge.errors import MachineError
from bridge.machines import remote_helper
from bridge.machines.remote import Report, ScriptOutcome, Work, report_of
from bridge.machines.ssh import (
    KEEPALIVE,
    Address,
    ConnectionLost,
    MachineFailed,
    MachineUnreachable,
    SshError,
    connected,
    translated,
)

log = structlog.get_logger(__name__)

_HELPER = Path(remote_helper.__file__).read_bytes()
HOME = b".kestra-bridge"
BLOCK = 65_536
STOP_MARGIN = 10.0
"""How much longer than the script's own grace a stop may take until it is given up on."""
POLL = 0.1
RESULTS_NAMED = 1000


class RunRefused(SshError):
    """The machine has a run of that id, for other work."""


class RunVanished(SshError):
    """The run is on the machine, but nothing runs any more and nothing says how it ended."""


class ResultsFailed(MachineError):
    """The script's results could not be written here."""


class Sink(Protocol):
    """Where output goes: takes any bytes, and takes its time."""

    async def write(self, data: bytes) -> None:
        """Take it."""

    async def flush(self) -> None:
        """Hold nothing back any more."""


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
        keepalive: float = KEEPALIVE,
        results_directory: Path | None = None,
    ) -> None:
        self._address = address
        self._work = work
        self._digest = work.digest()
        self._sinks = (out, err)
        self._boot_timeout = boot_timeout
        self._reconnect = reconnect
        self._keepalive = keepalive
        self._results_directory = results_directory
        self._folder = HOME + b"/" + os.fsencode(work.run_id)
        self._seen = [0, 0]
        self._ours = False
        self._reached = False
        self._under_way = False
        self._gives_up_at: float | None = None
        self.stopped: bool | None = None
        """After a cancellation: whether the run is known to have been stopped; None where there was
        none."""

    async def see_through(self) -> Report:
        """Run it to its end. Cancelling this stops the run on the machine.

        Raises:
            SshError: how the run ended isn't known, or it never began; the class says which.
            ResultsFailed: the run has ended, and its results can't be written here.
        """
        try:
            return await self._until_end()
        except asyncio.CancelledError:
            if self._under_way and not self.stopped:
                await self._stop_anew()
            raise

    async def _until_end(self) -> Report:
        loop = asyncio.get_running_loop()
        wait, give_up = self._boot_timeout, 0.0
        while True:
            seen = sum(self._seen)
            try:
                async with connected(
                    self._address, wait=wait, keepalive=self._keepalive
                ) as connection:
                    self._reached = True
                    return await self._follow_to_end(connection)
            except (ConnectionLost, MachineUnreachable) as error:
                if not self._reached:
                    raise
                # Only what gets on gets a new while: a machine that lets us in and drops us is lost
                # as well.
                if sum(self._seen) > seen or not give_up:
                    give_up = loop.time() + self._reconnect
                wait = give_up - loop.time()
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

    # ------------------------------------------------------------ one connection

    async def _follow_to_end(self, connection: asyncssh.SSHClientConnection) -> Report:
        with translated(self._address):
            sftp = await connection.start_sftp_client(path_encoding=None)
            try:
                await self._follow(connection, await self._command(sftp))
                report = report_of(await self._status(sftp), self._work, attached=not self._ours)
                return await self._with_results(sftp, report)
            except asyncio.CancelledError:
                if self._under_way:
                    await self._stop(sftp)
                raise

    async def _command(self, sftp: asyncssh.SFTPClient) -> bytes:
        """The command that starts the run, once all it needs is there, or that follows it if it
        exists.
        """
        helper = self._folder + b"/helper.py"
        if not await sftp.exists(helper):
            self._ours = True
            staged = await self._stage(sftp)
            self._under_way = True
            return b"exec python3 -I %s/helper.py start %s %s" % (staged, staged, self._folder)
        if await self._read(sftp, b"digest") != self._digest.encode():
            raise self._refused()
        self._under_way = True
        return b"exec python3 -I %s follow %s %d %d" % (
            helper,
            self._folder,
            self._seen[0],
            self._seen[1],
        )

    async def _stage(self, sftp: asyncssh.SFTPClient) -> bytes:
        """Put all that the run needs into a folder of its own, which becomes the run's by being
        renamed.
        """
        work, staged = self._work, HOME + b"/.staged-" + uuid.uuid4().hex.encode()
        await sftp.makedirs(
            staged + b"/files", asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True
        )
        texts = {
            b"helper.py": _HELPER,
            b"request.json": work.request,
            b"environment": work.environment_file,
            b"digest": self._digest.encode(),
        }
        if work.script is not None:
            texts[b"script"] = work.script
        for name, content in texts.items():
            async with sftp.open(
                staged + b"/" + name, "wb", asyncssh.SFTPAttrs(permissions=0o600)
            ) as file:
                await file.write(content)
        for given in work.files:
            remote = staged + b"/files/" + os.fsencode(given.remote)
            await sftp.makedirs(remote.rpartition(b"/")[0], exist_ok=True)
            await sftp.put(os.fsencode(given.local), remote, follow_symlinks=True)
        return staged

    async def _follow(self, connection: asyncssh.SSHClientConnection, command: bytes) -> None:
        """Pass the output on until the run has ended."""
        process = await connection.create_process(
            command.decode(), encoding=None, stdin=asyncssh.DEVNULL
        )
        pumps = [asyncio.create_task(self._pump(process, which)) for which in (0, 1)]
        try:
            await _all_done(pumps)
            await process.wait_closed()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            # Not waited for: a machine that is frozen would hold up the stop that may follow.
            process.channel.abort()
        for sink in self._sinks:
            await sink.flush()
        self._judge(process.exit_status)

    def _judge(self, status: int | None) -> None:
        if status is None or status < 0:
            raise ConnectionLost(f"the connection to {self._address} was lost while the script ran")
        if status == remote_helper.REFUSED:
            raise self._refused()
        if status == remote_helper.GONE:
            raise RunVanished(
                f"run {self._work.run_id} has vanished from {self._address} without a word "
                "on how it ended"
            )
        if status != remote_helper.DONE:
            raise MachineFailed(
                f"{self._address} could not run our helper (exit {status}): does it have python3?"
            )

    async def _pump(self, process: asyncssh.SSHClientProcess[bytes], which: int) -> None:
        reader, sink = (process.stdout, process.stderr)[which], self._sinks[which]
        while data := await reader.read(BLOCK):
            self._seen[which] += len(data)
            await sink.write(data)

    def _refused(self) -> RunRefused:
        return RunRefused(f"{self._address} already has a run {self._work.run_id}, for other work")

    async def _status(self, sftp: asyncssh.SFTPClient) -> Mapping[str, Any]:
        try:
            status = json.loads(await self._read(sftp, b"status.json"))
        except ValueError as error:
            raise MachineFailed(
                f"{self._address} says in no way we know how the run ended"
            ) from error
        if not isinstance(status, dict):
            raise MachineFailed(f"{self._address} says in no way we know how the run ended")
        return status

    async def _read(self, sftp: asyncssh.SFTPClient, name: bytes) -> bytes:
        async with sftp.open(self._folder + b"/" + name, "rb") as file:
            content: Any = await file.read()
        return bytes(content)

    # ------------------------------------------------------------ stopping

    async def _stop_anew(self) -> None:
        """Stop the run although there is no connection right now."""
        wait = self._stop_by() - asyncio.get_running_loop().time()
        with contextlib.suppress(SshError):
            async with connected(
                self._address, wait=max(wait, 0), keepalive=self._keepalive
            ) as connection:
                with translated(self._address):
                    await self._stop(await connection.start_sftp_client(path_encoding=None))

    async def _stop(self, sftp: asyncssh.SFTPClient) -> None:
        """Ask the run's supervisor to stop it, and wait until it has."""
        with contextlib.suppress(TimeoutError, asyncssh.Error, ConnectionError):
            async with asyncio.timeout_at(self._stop_by()):
                while not self.stopped:
                    # The run's folder may not be there yet: its start may still be on its way.
                    with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                        await (await sftp.open(self._folder + b"/stop", "wb")).close()
                        self.stopped = bool(await sftp.exists(self._folder + b"/status.json"))
                    await asyncio.sleep(0 if self.stopped else POLL)

    def _stop_by(self) -> float:
        """When to give up stopping, counted from the first call."""
        self.stopped = self.stopped or False
        if self._gives_up_at is None:
            self._gives_up_at = asyncio.get_running_loop().time() + self._work.grace + STOP_MARGIN
        return self._gives_up_at

    # ------------------------------------------------------------ results

    async def _with_results(self, sftp: asyncssh.SFTPClient, report: Report) -> Report:
        """The report with the result files fetched, which are wanted after a failure too."""
        if not self._results_directory or not self._work.results:
            return report
        names = [name for name in (await self._read(sftp, b"results")).split(b"\0") if name]
        for name in names:
            await self._fetch(sftp, name, self._results_directory)
        shown = tuple(name.decode("utf-8", "backslashreplace") for name in names[:RESULTS_NAMED])
        outcome, message = report.outcome, report.message
        if not names and report.outcome is ScriptOutcome.EXITED and report.code == 0:
            outcome = ScriptOutcome.RESULTS_MISSING
            message = (
                f"{message}, but left nothing that matches "
                f"{', '.join(map(ascii, self._work.results))}"
            )
        return report.replaced(outcome=outcome, message=message, results=shown)

    async def _fetch(self, sftp: asyncssh.SFTPClient, name: bytes, directory: Path) -> None:
        shown = f"the result file {os.fsdecode(name)!a}"
        try:
            target = _make_way(directory, name)
            partial = directory / f".partial-{uuid.uuid4().hex}"
            try:
                await sftp.get(
                    self._folder + b"/work/" + name, os.fsencode(partial), follow_symlinks=True
                )
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        except ConnectionError:
            raise
        except OSError as error:
            raise ResultsFailed(f"can't write {shown}: {error.strerror}") from error


async def _all_done(pumps: Collection[asyncio.Task[None]]) -> None:
    """Wait for all of them. One that hears of a lost connection mustn't cut another short in the
    middle of a write.
    """
    await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
    errors = [error for pump in pumps if pump.done() and (error := pump.exception())]
    if errors and isinstance(errors[0], (asyncssh.Error, ConnectionError)):
        await asyncio.wait(pumps)
    if errors:
        raise errors[0]


def _make_way(directory: Path, name: bytes) -> Path:
    """The path for a result file, its folders made. Its name is what a machine says: never out of
    `directory`.

    Raises:
        ResultsFailed: it would.
        OSError: a folder can't be made.
    """
    *folders, last = os.fsdecode(name).split("/")
    if {"", ".", ".."} & {*folders, last} or "\0" in last:
        raise ResultsFailed(
            f"the result file {os.fsdecode(name)!a} has a name that leads out of its folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory
    for folder in folders:
        path /= folder
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        # Not `is_dir`, which follows a link.
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise ResultsFailed(
                f"the result file {os.fsdecode(name)!a} needs a folder where there is none"
            )
    return path / last
