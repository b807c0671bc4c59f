"""Podman with a network and a folder of its own, in memory, of which nothing is left to the
machine.

It needs root (or sudo), and Debian's podman, runc, netavark, aardvark-dns, iptables and catatonit.
`command` is a `podman` with all of these options, to be passed to other programs.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.debian import remove
from deploy.local.processes import AS_ROOT, SYSTEM_PATH, ProcessError, run_tool

_TOOLS = ("podman", "conmon", "runc", "iptables", "catatonit", "ip", "nsenter")
_MOST_FILES, _MOST_PROCESSES = 1_048_576, 32_768
"""More Podman itself doesn't keep for its containers, whatever the machine's limits are."""

# runc, and ulimits that are ours: where root lacks CAP_SYS_RESOURCE, a container can't be given
# more than we have, and crun fails where the machine has both kinds of cgroups. Locks by file:
# those in shared memory are one set for all.
_ENGINE = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
init_path = "/usr/bin/catatonit"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
image_copy_tmp_dir = "{directory}/tmp"
lock_type = "file"
tmp_dir = "{directory}/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "{directory}/networks"
"""

_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{directory}/store"
runroot = "{directory}/run/storage"
[storage.options]
additionalimagestores = [{stores}]
"""

# What podman-compose asks of a Podman, and Debian's doesn't do. It leaves looking at health to
# systemd's timers, which not every machine has, and its `wait` knows health from 4.6 on: so that
# waits by looking. It starts no container that requires one which has ended: podman-compose itself
# starts them in order. Images are built with the machine's network, and in Docker's format, since
# the other one has no HEALTHCHECK.
_COMMAND = """\
#!/bin/sh
network="nsenter --net={network}"
podman() {{
    {as_root} $network env BUILDAH_FORMAT=docker CONTAINERS_CONF={directory}/containers.conf \\
        CONTAINERS_STORAGE_CONF={directory}/storage.conf podman "$@"
}}
case "$*" in
"--version"*)
    echo "podman version 4.6.0"
    exit
    ;;
"wait --condition=healthy "*)
    shift 2
    for name; do until podman healthcheck run "$name" >/dev/null 2>&1; do sleep 0.3; done; done
    exit
    ;;
"build "*)
    shift
    network=
    set -- build --network=host "$@"
    ;;
esac
for word; do
    shift
    case "$word" in
    --requires=*) ;;
    *) set -- "$@" "$word" ;;
    esac
done
podman "$@"
"""

# Holds the network, in which published ports are on a loopback of their own, and the folder: in
# memory, since the many small files of an image take long to be made on a disk, and longer to be
# removed. Its input ends when we close it, and also when we are killed.
_WATCHDOG = """
mount -t tmpfs -o "mode=755,$1" kestra-bridge "$0" && ip link set lo up && echo $$ || exit
cat >/dev/null
cd /
exec >&2
"$0/podman" rm --all --force --time 0
# The name server of the containers' networks outlives them. Its file is in a place that Podman lets
# nobody choose, so it may be another Podman's, in another network.
pid=$(cat /run/containers/networks/aardvark-dns/aardvark.pid) &&
    [ "$(readlink "/proc/$pid/ns/net")" = "$(readlink /proc/self/ns/net)" ] && kill "$pid"
# What Podman does after a container's end may still go on.
umount --lazy "$0"
rmdir "$0"
"""


class Podman:
    """One Podman with its images, containers, networks and volumes in `directory`, all gone after
    the `with` block.

    They go too when the process ends in any other way. `stores` are folders of images that it reads
    and leaves alone.
    """

    def __init__(self, directory: Path, *, stores: Sequence[Path] = ()) -> None:
        self.directory = directory.resolve()
        self.command = self.directory / "podman"
        self._stores = tuple(stores)
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._network = ""

    @property
    def store(self) -> Path:
        """The folder of its own images."""
        return self.directory / "store"

    @property
    def _log(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.log")

    def start(self) -> None:
        """Make the folder, and see to it that it goes again.

        Raises:
            ProcessError: one of the programs isn't installed, or the machine doesn't allow it.
        """
        missing = [tool for tool in _TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
        if missing:
            raise ProcessError(
                f"no {', '.join(missing)} on this machine; deploy/local/bootstrap installs them"
            )
        self.directory.mkdir(parents=True)
        self._network = f"/proc/{self._start_watchdog()}/ns/net"
        (self.directory / "tmp").mkdir()
        given = {
            "directory": self.directory,
            "stores": ", ".join(f'"{store}"' for store in self._stores),
            "files": _limit(resource.RLIMIT_NOFILE, _MOST_FILES),
            "processes": _limit(resource.RLIMIT_NPROC, _MOST_PROCESSES),
        }
        (self.directory / "containers.conf").write_text(_ENGINE.format_map(given))
        (self.directory / "storage.conf").write_text(_STORAGE.format_map(given))
        text = _COMMAND.format(
            as_root=shlex.join(AS_ROOT),
            directory=shlex.quote(str(self.directory)),
            network=self._network,
        )
        self.command.write_text(text)
        self.command.chmod(0o755)

    def beside(self, *command: str) -> list[str]:
        """A command that runs in the network where this one's published ports are."""
        return [*AS_ROOT, "nsenter", f"--net={self._network}", *command]

    def _start_watchdog(self) -> int:
        owner = f"uid={os.geteuid()},gid={os.getegid()}"
        with self._log.open("ab") as log:
            self._watchdog = subprocess.Popen(
                [*AS_ROOT, "unshare", "--net", "sh", "-c", _WATCHDOG, str(self.directory), owner],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._watchdog.stdout is not None
        with self._watchdog.stdout as output:
            said = output.readline()
        if not said:
            raise ProcessError(
                f"no network and no folder in memory can be made for containers; see {self._log}"
            )
        return int(said)

    def give_store(self, place: Path) -> None:
        """Copy its images to a folder that isn't there yet, to be read by others.

        Raises:
            ProcessError: they can't be copied.
        """
        partial = place.with_name(f"{place.name}.partial")
        remove(partial, log=self._log)
        run_tool(
            "cp",
            "--archive",
            "--one-file-system",
            str(self.store),
            str(partial),
            log=self._log,
            within=AS_ROOT,
        )
        run_tool(
            "mv", "--no-target-directory", str(partial), str(place), log=self._log, within=AS_ROOT
        )

    def stop(self) -> None:
        """End every container and remove all that there is.

        Raises:
            ProcessError: something is still there; the message says where to look.
        """
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        watchdog.wait(120)
        if self.directory.exists():
            raise ProcessError(f"not all of {self.directory} could be removed; see {self._log}")

    def run(self, *arguments: str, timeout: float = 120.0) -> str:
        """What `podman` with these arguments prints.

        Raises:
            ProcessError: it failed or took longer than `timeout` seconds; the message has the last
            of what it said.
        """
        done = self.complete(*arguments, timeout=timeout)
        if done.returncode != 0:
            said = "".join(
                f"\n  | {line}" for line in (done.stdout + done.stderr).splitlines()[-15:]
            )
            raise ProcessError(f"podman {arguments[0]} ended with status {done.returncode}{said}")
        return done.stdout

    def complete(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run `podman` to its end, whatever its status.

        Raises:
            ProcessError: it took longer than `timeout` seconds.
        """
        try:
            return subprocess.run(
                [str(self.command), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProcessError(f"podman {arguments[0]} took longer than {timeout:g} s") from None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _limit(which: int, most: int) -> int:
    """The hard limit of this process, if it is one and no more than that."""
    _, hard = resource.getrlimit(which)
    return most if hard == resource.RLIM_INFINITY else min(hard, most)
