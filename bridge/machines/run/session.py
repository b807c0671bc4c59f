"""A run's folder on the machine, seen through one connection."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

import asyncssh

from bridge.machines.run.result_list import RunResults
from bridge.machines.run.staging import HOME
from bridge.machines.ssh import Address, ConnectionLost, MachineFailed, SftpMissing


class RunSession:
    """The files and the programs of one run."""

    def __init__(
        self,
        address: Address,
        connection: asyncssh.SSHClientConnection,
        sftp: asyncssh.SFTPClient,
        folder: bytes,
    ) -> None:
        self._address = address
        self._connection = connection
        self.sftp = sftp
        self.folder = folder
        """The run's folder, as an absolute path."""

    @classmethod
    async def open(
        cls,
        address: Address,
        connection: asyncssh.SSHClientConnection,
        run_id: str,
        folder: bytes | None = None,
    ) -> RunSession:
        """The run's session on that connection. `folder` is known from an earlier one.

        Raises:
            SftpMissing: SFTP doesn't start.
            asyncssh.Error, ConnectionError: the connection was lost.
        """
        try:
            sftp = await connection.start_sftp_client(path_encoding=None)
        except asyncssh.Error as error:
            if connection.is_closed():
                raise
            raise SftpMissing(
                f"{address} starts no SFTP: does its sshd have it, and does a start-up file of its "
                "user's shell end the shell or write something?"
            ) from error
        if folder is None:
            # Absolute, as a start-up file of the user's shell may change the current folder.
            folder = b"/".join((await sftp.realpath(b"."), HOME, os.fsencode(run_id)))
        return cls(address, connection, sftp, folder)

    @property
    def runs(self) -> bytes:
        """The folder of all runs."""
        return self.folder.rpartition(b"/")[0]

    async def exists(self, folder: bytes) -> bool:
        """Whether that folder is there: the run's, once it has been started, or one staged."""
        return await self.sftp.exists(folder + b"/helper.py")

    async def start_program(
        self, folder: bytes, program: str, *arguments: bytes
    ) -> asyncssh.SSHClientProcess[bytes]:
        """Start one of the programs that were put into that folder."""
        words = [folder + b"/" + program.encode(), *arguments]
        command = shlex.join(map(os.fsdecode, words))
        return await self._connection.create_process(
            f"exec python3 -I {command}", encoding=None, stdin=asyncssh.DEVNULL
        )

    async def read(self, name: bytes) -> bytes:
        """The content of a file in the run's folder."""
        async with self.sftp.open(self.folder + b"/" + name, "rb") as file:
            content: Any = await file.read()
        return bytes(content)

    async def status(self) -> Mapping[str, Any]:
        """The status that the supervisor has left.

        Raises:
            MachineFailed: it can't be read, or there is none.
        """
        try:
            status = json.loads(await self.read(b"status.json"))
        except asyncssh.SFTPNoSuchFile as error:
            raise MachineFailed(
                f"{self._address} did not run our helper: does a start-up file of its user's shell "
                "end the shell?"
            ) from error
        except ValueError:
            status = None
        if not isinstance(status, dict):
            raise MachineFailed(f"{self._address} has no readable record of how the run ended")
        return status

    async def list_results(self) -> RunResults:
        """The results that the run has left.

        Raises:
            MachineFailed: they can't be listed.
            ConnectionLost: the connection was lost.
        """
        process = await self.start_program(self.folder, "results.py", self.folder)
        listing, said = await process.communicate()
        status = process.exit_status
        if status is None or status < 0:
            raise ConnectionLost(f"the connection to {self._address} was lost")
        if status == 0:
            with contextlib.suppress(ValueError):
                return RunResults.parse(listing)
        lines = said.decode("utf-8", "backslashreplace").strip()
        last_line = lines.rpartition("\n")[2] or f"exit {status}"
        raise MachineFailed(f"they can't be listed ({last_line})")

    async def request_stop(self) -> bool:
        """Ask the supervisor to stop the run. Returns whether the run has ended."""
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            await self.sftp.remove(self.folder + b"/may-run")
        return await self.sftp.exists(self.folder + b"/status.json")
