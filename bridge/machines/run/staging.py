"""Puts everything that a run needs on the machine."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import asyncssh

from bridge.machines.run import (
    remote_checkout,
    remote_helper,
    remote_results,
    remote_supervisor,
)
from bridge.machines.run.work import Work
from bridge.machines.ssh import MachineFailed, is_lost

HOME = b".kestra-bridge"
"""The folder of all runs, in the user's home."""
_PROGRAMS = {
    b"helper.py": Path(remote_helper.__file__).read_bytes(),
    b"supervisor.py": Path(remote_supervisor.__file__).read_bytes(),
    b"results.py": Path(remote_results.__file__).read_bytes(),
}
_CHECKOUT = Path(remote_checkout.__file__).read_bytes()
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_FULL_BELOW = 1_000_000
"""Bytes of room on a disk."""


async def stage(sftp: asyncssh.SFTPClient, runs: bytes, work: Work, digest: str) -> bytes:
    """Put the work into a folder of its own among the `runs`, and return its path. Renaming it
    starts the run.

    Raises:
        MachineFailed: the machine doesn't take it.
        asyncssh.Error, ConnectionError: the connection was lost.
    """
    staged = runs + b"/.staged-" + uuid.uuid4().hex.encode()
    try:
        await _put(sftp, staged, work, digest)
    except asyncssh.SFTPError as error:
        if is_lost(error):
            raise
        reason = await _why_refused(sftp, error)
        with contextlib.suppress(asyncssh.SFTPError):
            await sftp.rmtree(staged)
        raise MachineFailed(f"can't put the run on the machine: {reason}") from error
    return staged


async def _put(sftp: asyncssh.SFTPClient, staged: bytes, work: Work, digest: str) -> None:
    folder_attributes = asyncssh.SFTPAttrs(permissions=_PRIVATE_FOLDER)
    await sftp.makedirs(staged + b"/files", folder_attributes, exist_ok=True)
    contents = {
        **_PROGRAMS,
        b"request.json": work.request,
        b"environment": work.environment_file,
        b"digest": digest.encode(),
    }
    if work.script is not None:
        contents[b"script"] = work.script
    if work.credentials_file is not None:
        contents[b"checkout.py"] = _CHECKOUT
        contents[b"credentials"] = work.credentials_file
    file_attributes = asyncssh.SFTPAttrs(permissions=_PRIVATE_FILE)
    for name, content in contents.items():
        async with sftp.open(staged + b"/" + name, "wb", file_attributes) as file:
            await file.write(content)
    for given in work.files:
        remote = staged + b"/files/" + os.fsencode(given.remote)
        await sftp.makedirs(remote.rpartition(b"/")[0], exist_ok=True)
        await sftp.put(os.fsencode(given.local), remote, follow_symlinks=True)


async def _why_refused(sftp: asyncssh.SFTPClient, error: asyncssh.SFTPError) -> str:
    """The reason: SFTP has no word of its own for a full disk."""
    with contextlib.suppress(asyncssh.SFTPError):
        disk = await sftp.statvfs(b".")
        if disk.bavail * disk.frsize < _FULL_BELOW:
            return "its disk is full"
        if disk.files and not disk.favail:
            return "its disk takes no more files"
    return " ".join(error.reason.split()) or "it gives no reason"
