"""Virtual environments in which the unit tests run: on this host, or in a folder with a release of
Debian.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local import debian
from deploy.local.images import pip_configuration
from deploy.local.paths import REPOSITORY, cache_directory, locked

SUITES: Mapping[str, str] = {"3.11": "bookworm", "3.13": "trixie"}
"""Which release of Debian has which Python."""
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"

LOWEST, LOCK = REPOSITORY / "requirements-lowest.lock", REPOSITORY / "requirements.lock"

_RECIPE = (
    "--variant=minbase",
    "--components=main",
    "--include=python3-venv,git,openssh-client",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    (
        '--customize-hook=mkdir -p "$1/checkout" "$1/environment" "$1/etc/ssl/certs" && touch '
        '"$1/etc/resolv.conf"'
    ),
)

# Runs in new namespaces: $1 the tree, $2 the checkout, $3 the environment's folder, then the
# command.
_ENTER = """
set -e
tree=$1
mount -t proc proc "$tree/proc" 2>/dev/null || mount --rbind /proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/tmp"
mount --bind "$2" "$tree/checkout"
mount --bind "$3" "$tree/environment"
for shared in /etc/hosts /etc/resolv.conf /etc/ssl/certs; do
    mount --bind "$shared" "$tree$shared"
done
shift 3
# The shell stays, as process 1: it takes in the orphans, as an init does.
chroot "$tree" "$@"
exit $?
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where tests run: the command that Python's arguments follow, and the folder, as that command
    sees it, in which it may keep what it learns.
    """

    python: Sequence[str]
    folder: Path


def lowest() -> Place:
    """This Python with the lowest version of each dependency that pyproject.toml allows.

    Raises:
        CalledProcessError: it can't be made; what failed has said why.
    """
    folder = cache_directory("lowest", _digest(LOWEST, sys.version, str(REPOSITORY)))
    python = Environment(folder, folder, REPOSITORY, [], sys.executable).python(LOWEST)
    path = f"PATH={folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"
    return Place(["env", path, *python], folder)


def of_python(version: str) -> Place:
    """That Python with what requirements.lock names.

    Raises:
        ProcessError, CalledProcessError: it can't be made.
    """
    tree = debian.tree(
        "python", SUITES[version], _RECIPE, lambda line: print(f"tests/compatibility: {line}")
    )
    folder = cache_directory("python", f"environment-{version}-{_digest(LOCK, SUITES[version])}")
    within = _inside(tree, folder)
    inside = Path("/environment")
    environment = Environment(folder, inside, Path("/checkout"), within, "python3")
    return Place(environment.python(LOCK), inside)


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in a folder, which commands `within` something else see at another
    place."""

    folder: Path
    place: Path
    checkout: Path
    within: Sequence[str]
    interpreter: str

    def python(self, lock: Path) -> list[str]:
        """The command of its Python, which finds what the lock names and the checkout; made on
        first use.

        Raises:
            CalledProcessError: it can't be made; what failed has said why.
        """
        with locked(self.folder.name):
            self._make(lock)
        return [*self.within, str(self.place / "venv/bin/python")]

    def _make(self, lock: Path) -> None:
        made = self.folder / "made"
        project = _digest(REPOSITORY / "pyproject.toml")
        if made.exists() and made.read_text() == project:
            return
        (self.folder / "pip.conf").write_text(pip_configuration())
        if not made.exists():
            self._run(self.interpreter, "-m", "venv", "--clear", str(self.place / "venv"))
            self._install("--require-hashes", "--requirement", str(self.checkout / lock.name))
        self._install("--no-deps", "--no-build-isolation", "--editable", str(self.checkout))
        # Written last: an environment without it was interrupted, and is made anew.
        made.write_text(project)

    def _install(self, *what: str) -> None:
        options = (
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--root-user-action=ignore",
        )
        self._run(str(self.place / "venv/bin/python"), "-m", "pip", "install", *options, *what)

    def _run(self, *command: str) -> None:
        subprocess.run([*self.within, *command], cwd=REPOSITORY, check=True)


def _inside(tree: Path, folder: Path) -> list[str]:
    """What a command in the tree begins with; it sees the network, the checkout and the folder, no
    more of the host."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    variables = {
        "PATH": "/environment/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PIP_CONFIG_FILE": "/environment/pip.conf",
        "PYTHONPYCACHEPREFIX": "/environment/pycache",
    }
    apart = ["unshare", *user, "--mount", "--uts", "--pid", "--fork", "--kill-child"]
    entered = ["sh", "-c", _ENTER, "enter", str(tree), str(REPOSITORY), str(folder)]
    surroundings = ["env", "--ignore-environment", "--chdir=/checkout"]
    return [
        *apart,
        *entered,
        *surroundings,
        *(f"{name}={value}" for name, value in variables.items()),
    ]


def _digest(file: Path, *more: str) -> str:
    return hashlib.sha256("\n".join((file.read_text(), *more)).encode()).hexdigest()[:12]
