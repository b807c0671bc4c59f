"""`kestra-bridge machine` as a test runs it, and this host as where its machines are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.settings import MachineSettings
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child

SECRET = "a secret of sixteen or more"
TIMEOUT = 300.0
"""Seconds that a command or a boot may take: far more than it does, as it is to hold on a busy
machine without KVM."""


class Commands:
    """`kestra-bridge machine …` as subprocesses, with settings of their own."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self.settings = {
            "machine_secret": SECRET,
            "machine_provider": "qemu",
            "log_level": "warning",
            **settings,
        }
        self._started: list[Child] = []

    def machines(self, **more: Any) -> Machines:
        """The machines as this process sees them."""
        return Machines(MachineSettings(**{**self.settings, **more}))

    def impatient(self, **more: Any) -> Machines:
        """The same, with hardly any waiting for lists and answers."""
        policy = LifecyclePolicy(provider_patience=0.5, unlisted_wait=0.5)
        return Machines(MachineSettings(**{**self.settings, **more}), policy)

    def __call__(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(words),
            env=self._environment(more),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def start(self, *words: str, **more: str) -> Child:
        """Start a command and go on."""
        log = self.directory / f"command-{len(self._started)}.log"
        child = Child(
            "kestra-bridge",
            self._command(words),
            log=log,
            env=self._environment(more),
            cwd=self.directory,
        )
        self._started.append(child)
        return child

    def create(self, execution: str, *words: str, **more: str) -> dict[str, Any]:
        """Create an execution's machine, and return what the command says of it."""
        done = self(
            "create", "--execution", execution, "--deadline", "600", "--json", *words, **more
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def end(self) -> None:
        for child in self._started:
            child.kill()

    def _command(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "bridge", "machine", *words]

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        settings = {
            f"BRIDGE_{key.upper()}": str(value) for key, value in {**self.settings, **more}.items()
        }
        return {**os.environ, "PYTHONPATH": str(REPOSITORY), **settings}


class Host(Commands):
    """Machines on this host, in a folder of their own."""

    @property
    def folder(self) -> Path:
        return Path(self.settings["machine_directory"])

    @property
    def folders(self) -> list[str]:
        """The machines' folders, drafts included."""
        files = (".lock", ".accelerator", ".accelerator.lock")
        return [path.name for path in self.folder.glob("*") if path.name not in files]

    @property
    def processes(self) -> list[psutil.Process]:
        """The machines' processes."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words and "qemu" in words[0] and any(str(self.folder) in word for word in words):
                found.append(process)
        return found

    @property
    def left(self) -> tuple[list[str], list[psutil.Process]]:
        """All that is there of machines."""
        return self.folders, self.processes

    def end(self) -> None:
        super().end()
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # The guards end when their machines' folders are gone.
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def host_in(directory: Path, image: Path) -> Iterator[Host]:
    """This host as a provider, whose machines are in that folder and are gone afterwards."""
    settings = {
        "machine_directory": str(directory / "machines"),
        "machine_image_directory": str(image.parent),
        "machine_accelerator": "tcg",
        "machine_boot_timeout": str(TIMEOUT),
    }
    host = Host(directory, settings)
    try:
        yield host
    finally:
        host.end()


NOTHING: tuple[list[str], list[psutil.Process]] = ([], [])


async def said_on(machine: Machine | Mapping[str, Any], command: str) -> str:
    """What a command on the machine prints, with the machine's host key pinned."""
    data = machine.data if isinstance(machine, Machine) else machine
    identity = SshIdentity.derive(SECRET, data["name"])
    async with asyncssh.connect(
        data["host"],
        data["port"],
        username=data["user"],
        client_keys=[asyncssh.import_private_key(identity.client.private)],
        known_hosts=([asyncssh.import_public_key(data["host_key"])], [], []),
        config=None,
        agent_path=None,
    ) as connection:
        done = await connection.run(command, timeout=TIMEOUT)
    return str(done.stdout)
