"""Puts everything that a run needs on the machine."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import asyncssh

from bridge.machines.run import remote_checkout, remote_helper, remote_supervisor
from bridge.machines.run.work import Work

HOME = b".kestra-bridge"
"""The folder of all runs, in the user's home."""
_HELPER = Path(remote_helper.__file__).read_bytes()
_SUPERVISOR = Path(remote_supervisor.__file__).read_bytes()
_CHECKOUT = Path(remote_checkout.__file__).read_bytes()
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


async def stage(sftp: asyncssh.SFTPClient, work: Work, digest: str) -> bytes:
    """Put the work into a folder of its own, and return its path. Renaming it starts the run.

    Raises:
        asyncssh.Error, ConnectionError: it could not be sent.
    """
    staged = HOME + b"/.staged-" + uuid.uuid4().hex.encode()
    folder_attributes = asyncssh.SFTPAttrs(permissions=_PRIVATE_FOLDER)
    await sftp.makedirs(staged + b"/files", folder_attributes, exist_ok=True)
    contents = {
        b"helper.py": _HELPER,
        b"supervisor.py": _SUPERVISOR,
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
    return staged
