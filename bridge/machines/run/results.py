"""Fetches the result files of a run."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from pathlib import Path
from typing import Any

import asyncssh

from bridge.errors import MachineError
from bridge.machines.run.result_list import Missing, RunResults
from bridge.machines.ssh import is_lost

BLOCK_SIZE = 65_536
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_LINE_BREAK = re.compile(r"[\n\r\x85\u2028\u2029]")


class ResultsFailed(MachineError):
    """A result file could not be written on this side."""


class ResultsFolder:
    """The local folder that takes the results. With `for_kestra`, it takes no file that Kestra
    can't keep.
    """

    def __init__(self, directory: Path, *, for_kestra: bool = False) -> None:
        self._directory = directory
        self._for_kestra = for_kestra

    async def fetch(
        self, sftp: asyncssh.SFTPClient, folder: bytes, listed: RunResults
    ) -> RunResults:
        """Copy the listed files of the machine's `folder`, each appearing all at once, and return
        what became of them.

        One that can't be copied doesn't keep the others from it.

        Raises:
            asyncssh.Error, ConnectionError: the connection was lost.
        """
        fetched, missing = [], list(listed.missing)
        for number, name in enumerate(listed.names):
            try:
                await self._fetch_one(sftp, folder, name)
            except (ResultsFailed, OSError, asyncssh.SFTPError) as error:
                if is_lost(error):
                    raise
                missing.append(Missing(name, _reason(error)))
                if getattr(error, "errno", None) in _FULL:
                    not_tried = listed.names[number + 1 :]
                    missing += [Missing(other, "not tried after that") for other in not_tried]
                    break
            else:
                fetched.append(name)
        return RunResults(tuple(fetched), tuple(missing))

    async def _fetch_one(self, sftp: asyncssh.SFTPClient, folder: bytes, name: bytes) -> None:
        if self._for_kestra:
            _check_name_for_kestra(name)
        target = local_path(self._directory, name)
        partial = self._directory / f".partial-{uuid.uuid4().hex}"
        source = folder + b"/" + name
        try:
            await sftp.get(source, os.fsencode(partial), follow_symlinks=True)
            if partial.stat().st_size == 0:
                # Files of the kernel, as in /proc, have content although their size is 0.
                await _copy_to_end(sftp, source, partial)
            partial.replace(target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


async def _copy_to_end(sftp: asyncssh.SFTPClient, source: bytes, target: Path) -> None:
    """Copy a file block by block, whatever its size is said to be."""
    async with sftp.open(source, "rb", block_size=0) as remote:
        with target.open("wb") as local:
            while True:
                block: Any = await remote.read(BLOCK_SIZE)
                if not block:
                    return
                local.write(block)


def local_path(directory: Path, name: bytes) -> Path:
    """The path of a result file in `directory`, with its folders made.

    The machine chooses the name, so it must not lead out of `directory`.

    Raises:
        ResultsFailed: it would.
        OSError: a folder can't be made.
    """
    text = os.fsdecode(name)
    parts = text.split("/")
    if "\0" in text or {"", ".", ".."} & set(parts):
        raise ResultsFailed("its name leads out of its folder")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory
    for folder in parts[:-1]:
        path /= folder
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        # Not `is_dir`, which follows a link.
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise ResultsFailed("it needs a folder where there is none")
    return path / parts[-1]


def _check_name_for_kestra(name: bytes) -> None:
    """Check that Kestra can keep a file of that name.

    Raises:
        ResultsFailed: it can't.
    """
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise ResultsFailed("Kestra can't keep a name that isn't UTF-8") from None
    if _LINE_BREAK.search(text):
        raise ResultsFailed("Kestra can't keep a name with a line break")


def _reason(error: Exception) -> str:
    if isinstance(error, ResultsFailed):
        return str(error)
    if isinstance(error, asyncssh.SFTPError):
        return f"it can't be read on the machine ({error.reason})"
    reason = getattr(error, "strerror", None)
    return f"it can't be written here ({reason})"
