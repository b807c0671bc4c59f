"""Fetches the result files of a run."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path

import asyncssh

from bridge.errors import MachineError


class ResultsFailed(MachineError):
    """The script's results could not be written on this side."""


async def fetch_results(
    sftp: asyncssh.SFTPClient, folder: bytes, names: Iterable[bytes], directory: Path
) -> None:
    """Copy those files of the machine's `folder` into `directory`, each appearing all at once.

    Raises:
        ResultsFailed: one can't be written.
        asyncssh.Error, ConnectionError: one can't be read.
    """
    for name in names:
        partial = directory / f".partial-{uuid.uuid4().hex}"
        try:
            target = local_path(directory, name)
            try:
                await sftp.get(folder + b"/" + name, os.fsencode(partial), follow_symlinks=True)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        except ConnectionError:
            raise
        except OSError as error:
            raise ResultsFailed(
                f"can't write the result file {os.fsdecode(name)!a}: {error.strerror}"
            ) from error


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
        raise ResultsFailed(f"the result file {text!a} has a name that leads out of its folder")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory
    for folder in parts[:-1]:
        path /= folder
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        # Not `is_dir`, which follows a link.
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise ResultsFailed(f"the result file {text!a} needs a folder where there is none")
    return path / parts[-1]
