"""This host as a provider of machines: their image, a repository for them to check out, and what
there is of them.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import psutil

from deploy.local.demo.jobs import BRANCH, REPOSITORY_FILES, SCRIPT
from deploy.local.paths import REPOSITORY, cache_directory, free_port
from deploy.local.processes import Child, ProcessError

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "git": "git",
}
"""What machines need on this host, and Debian's package of it."""
IMAGE_UNDONE_WITHIN = 30.0
BOOKKEEPING = (".lock", ".accelerator", ".accelerator.lock")
"""Files in the machines' folder that belong to no machine."""


class NoMachinesError(RuntimeError):
    """This host can't run machines; the message says why and what to do."""


def check(which: Callable[[str], object], architecture: str) -> None:
    """Check that this host can run machines.

    Raises:
        NoMachinesError: it can't.
    """
    if architecture != "x86_64":
        raise NoMachinesError(
            f"machines need an x86-64 processor, and this is {architecture}; see --no-machines"
        )
    missing = {tool: package for tool, package in TOOLS.items() if not which(tool)}
    if missing:
        raise NoMachinesError(
            f"machines need {', '.join(missing)}, which can't be found here "
            "(Debian: apt-get install "
            f"{' '.join(missing.values())}); --no-machines shows the rest without them"
        )


def check_this_host() -> None:
    """`check` with what this host has.

    Raises:
        NoMachinesError: it can't have machines.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    check(lambda tool: shutil.which(tool, path=path), platform.machine())


class Host:
    """Machines in a folder of their own below `directory`. Whatever there is of them, `end` leaves
    nothing.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "machines"
        self._directory = directory
        self._port = free_port()
        self._image: Child | None = None
        self._began = time.monotonic()
        self._git: Child | None = None

    @property
    def repository(self) -> str:
        """The repository, as machines reach it."""
        return f"git://host.internal:{self._port}/repository"

    def environment(self, kestra: Mapping[str, str]) -> dict[str, str]:
        """What Kestra's workers need for the flows; `kestra` are the settings by which they reach
        Kestra.
        """
        return {
            **kestra,
            "BRIDGE_MACHINE_PROVIDER": "qemu",
            "BRIDGE_MACHINE_SECRET": secrets.token_hex(16),
            "BRIDGE_MACHINE_DIRECTORY": str(self.folder),
            "BRIDGE_MACHINE_IMAGE_DIRECTORY": str(cache_directory("machine-images")),
            # Machines reach this and nothing else.
            "BRIDGE_MACHINE_REACH": json.dumps([f"127.0.0.1:{self._port}"]),
            "BRIDGE_LOG_FORMAT": "console",
            "BRIDGE_LOG_LEVEL": "warning",
            "PATH": os.pathsep.join(
                (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
            ),
            "PYTHONPATH": str(REPOSITORY),
        }

    def start(self) -> None:
        """Serve the repository, and begin to make the image unless it is there.

        Raises:
            ProcessError: git can't.
        """
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "deploy.local.machine_image"]
        self._image = Child(
            "machine image", command, log=self._directory / "image.log", env=environment
        )
        self._serve_repository()

    def image_is_ready(self) -> bool:
        """Whether the image is there; else it is being made.

        Raises:
            NoMachinesError: it can't be made.
        """
        assert self._image is not None
        if self._image.returncode:
            raise NoMachinesError(
                f"there is no image for machines; --no-machines shows the rest{self._image.tail()}"
            )
        return self._image.returncode == 0

    @property
    def image_progress(self) -> str:
        """What is being done for the image, and since when."""
        assert self._image is not None
        said = self._image.log.read_text(errors="replace").splitlines()
        step = (
            said[-1].removeprefix("machine image: ")
            if said
            else "looking for the image of machines"
        )
        return f"{step} ({time.monotonic() - self._began:.0f} s)"

    def processes(self) -> list[psutil.Process]:
        """The machines' processes."""
        mark = f"{self.folder}/"
        found = psutil.process_iter(["cmdline"])
        return [one for one in found if any(mark in word for word in one.info["cmdline"] or ())]

    def running(self) -> int:
        """How many machines run. One that starts is two processes for a moment, beside the one that
        makes its disk.
        """
        return len(
            {
                word
                for one in self.processes()
                for word in one.info["cmdline"]
                if word.startswith("guest=")
            }
        )

    def folders(self) -> list[str]:
        """The machines' folders, half made ones included."""
        return sorted(path.name for path in self.folder.glob("*") if path.name not in BOOKKEEPING)

    def end(self) -> None:
        """Stop everything that there is. Whatever could create machines must have ended before."""
        if self._git is not None:
            self._git.kill()
        if self._image is not None:
            # It takes what is half made out of the cache.
            self._image.signal(signal.SIGINT)
            with suppress(ProcessError):
                self._image.wait(IMAGE_UNDONE_WITHIN)
            self._image.kill()
        # A machine that is just starting is two processes for a moment.
        while machines := self.processes():
            for machine in machines:
                with suppress(psutil.NoSuchProcess):
                    machine.kill()
            psutil.wait_procs(machines, timeout=5)

    def _serve_repository(self) -> None:
        source = self._directory / "git/repository"
        source.mkdir(parents=True)
        # Nothing of the user's own settings, such as signatures.
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        log = self._directory / "git.log"
        who = ("-c", "user.name=demo", "-c", "user.email=demo@example.org")

        def git(*words: str) -> None:
            with Child("git", ["git", *who, *words], log=log, env=environment, cwd=source) as child:
                if child.wait(30) != 0:
                    raise ProcessError(f"git {words[0]} failed{child.tail()}")

        git("init", "-q", "-b", "main")
        (source / SCRIPT).write_text("echo this is the wrong branch\nexit 9\n")
        git("add", ".")
        git("commit", "-q", "-m", "A script that can only fail")
        git("checkout", "-q", "-b", BRANCH)
        for name, text in REPOSITORY_FILES.items():
            (source / name).write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", "A report")
        where = ["--listen=127.0.0.1", f"--port={self._port}", "--reuseaddr"]
        command = ["git", "daemon", "--export-all", f"--base-path={source.parent}", *where]
        self._git = Child("git daemon", command, log=log, env=environment)
        self._git.wait_until(lambda: _listens(self._port), timeout=20, what="listening")


def _listens(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False
