"""Machines on this host, by QEMU: a libcloud driver, whose truth is the processes and one folder
for each machine.

A machine is a folder with its state, keys and disk, and the QEMU process that names the folder in
its command line. Both are looked up afresh each time, so that any process may find and destroy what
another one created or left half made. Whatever changes a folder holds the directory's lock.

A machine reaches nothing but what is named (`reach`): QEMU's own network would let it reach every
service that listens on this host's loopback, the broker and Kestra among them. What is named, it
finds at `host.internal`, under the same port. `network="open"` lifts that, for jobs that need the
internet on a host with nothing to protect.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.providers import DRIVERS, set_driver
from libcloud.compute.types import NodeState

from bridge.errors import MachineRejected, MachineUnavailable
from bridge.machines import tcp_pipe

NAME = "qemu"
HOST = "127.0.0.1"
ROUTED = "10.0.2.100"
"""Where a machine finds what of this host it may reach."""
GATEWAY = "10.0.2.2"
DEFAULT_IMAGE, DEFAULT_SIZE = "debian", "small"
PROBE_TIMEOUT, LONGEST_PROBE = 5.0, 60.0
"""A kernel says its first word after a second where KVM is real and the host idle; elsewhere it may
never."""
START_TIMEOUT = 60.0
KILL_TIMEOUT = 20.0
PORTS_TRIED = 5

Accelerator = Literal["auto", "kvm", "tcg"]
Network = Literal["isolated", "open"]

_PROGRAM = "qemu-system-x86_64"
_STATE = "machine.json"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_SIZES = {"small": (1, 512), "medium": (2, 2048), "large": (4, 8192)}
_KERNEL = "root=/dev/vda quiet mitigations=off panic=-1 console=ttyS0"
# What a kernel does at its start that takes long in emulation and is of no use to a machine that
# lives for one job.
_QUICK = "lsm= cryptomgr.notests tsc=reliable no_timer_check"
_GIVEN = ("user", "name", "authorized_keys", "host_key", "hosts")
_COMMON = (
    *("-nodefaults", "-no-user-config", "-no-reboot", "-cpu", "max", "-display", "none"),
    *("-sandbox", "on,obsolete=deny,resourcecontrol=deny"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuState:
    """What a machine's folder says of it."""

    id: str
    name: str
    port: int
    size: str
    created: float
    tags: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> QemuState | None:
        """The state in that folder; None where there is none (any more)."""
        try:
            data = json.loads((folder / _STATE).read_text())
            return cls(**{field: data[field] for field in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in that folder."""
        data = {field: getattr(self, field) for field in self.__dataclass_fields__}
        draft = folder / f".{_STATE}"
        _write_privately(draft, json.dumps(data))
        draft.replace(folder / _STATE)


class QemuDriver(NodeDriver):
    """Machines on this host. There is never a second one of the same name, but one may follow
    another.
    """

    name = "QEMU on this host"
    website = "https://www.qemu.org"
    type = NAME

    def __init__(
        self,
        directory: Path,
        *,
        images: Path,
        accelerator: Accelerator = "auto",
        network: Network = "isolated",
        reach: Sequence[str] = (),
    ) -> None:
        # Not libcloud's own, which wants credentials and a connection.
        self._directory = directory.absolute()
        self._images = images.absolute()
        self._accelerator = accelerator
        self._network = network
        self._reach = tuple(_target(text) for text in reach)

    def list_sizes(self, location: NodeLocation | None = None) -> list[NodeSize]:
        """The sizes: processors and megabytes of memory."""
        del location
        return [
            NodeSize(name, name, memory, 10, 0, 0.0, self, {"cpus": cpus})
            for name, (cpus, memory) in _SIZES.items()
        ]

    def list_images(self, location: NodeLocation | None = None) -> list[NodeImage]:
        """The images: folders with `kernel`, `initrd` and `disk.qcow2`."""
        del location
        return [
            NodeImage(folder.name, folder.name, self, {"path": str(folder)})
            for folder in sorted(self._images.glob("*"))
            if _is_image(folder)
        ]

    def list_locations(self) -> list[NodeLocation]:
        """This host alone."""
        return [NodeLocation("host", "this host", "", self)]

    def list_nodes(self) -> list[Node]:
        """Every machine that has a folder, also one whose process has ended."""
        if not self._directory.is_dir():
            return []
        # Not while one is being made: it would pass for one that has ended.
        with _locked(self._directory):
            states = []
            for folder in _entries(self._directory):
                state = None if folder.name.startswith(".") else QemuState.read(folder)
                if state:
                    states.append(state)
                elif folder.is_dir():
                    # Whoever began it, or its end, was killed: one that is in use has a name and a
                    # state.
                    self._remove(folder.name.removeprefix("."))
            running = _processes(self._directory)
        return [self._node(state, running=state.name in running) for state in states]

    def create_node(  # type: ignore[override]  # libcloud's drivers each take options of their own
        self,
        name: str,
        size: NodeSize,
        image: NodeImage,
        *,
        ex_user: str,
        ex_authorized_key: str,
        ex_host_key: str,
        ex_tags: Mapping[str, str],
    ) -> Node:
        """The running machine of that name: the one that is there, else a new one in place of what
        is left of one.

        Raises:
            MachineRejected: image, size or name are none.
            MachineUnavailable: QEMU is missing or did not start.
        """
        if not _NAME.fullmatch(name):
            raise MachineRejected(
                f"{name!r} is no name for a machine: lower-case letters, digits and hyphens only"
            )
        self._make_directory()
        accelerator = self._choose_accelerator(Path(image.extra["path"]))
        with _locked(self._directory):
            state = QemuState.read(self._directory / name)
            if state and name in _processes(self._directory):
                return self._node(state, running=True)
            self._remove(name)
            hosts = f"{self._gateway} host.internal\n"
            texts = (f"{ex_user}\n", f"{name}\n", f"{ex_authorized_key}\n", ex_host_key, hosts)
            files = dict(zip(_GIVEN, texts, strict=True))
            state = QemuState(
                id=secrets.token_hex(8),
                name=name,
                port=0,
                size=size.id,
                created=time.time(),
                tags=dict(ex_tags),
            )
            try:
                return self._node(self._start(state, size, image, files, accelerator), running=True)
            except BaseException:
                self._remove(name)
                raise

    def destroy_node(self, node: Node) -> bool:
        """End the machine's process and remove its folder, whoever created it. True also if there
        is none.

        One of the same name that has followed it is left alone.
        """
        if self._directory.is_dir():
            with _locked(self._directory):
                state = QemuState.read(self._directory / node.name)
                if state and state.id == node.id:
                    self._remove(node.name)
        return True

    def console(self, name: str) -> str:
        """The last line that the machine wrote on its serial console; empty where there is none."""
        try:
            lines = (self._directory / name / "console").read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @property
    def _gateway(self) -> str:
        return GATEWAY if self._network == "open" else ROUTED

    def _node(self, state: QemuState, *, running: bool) -> Node:
        extra = {"tags": dict(state.tags), "port": state.port, "created": state.created}
        status = NodeState.RUNNING if running else NodeState.STOPPED
        return Node(state.id, state.name, status, [HOST], [], self, extra=extra)

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            ours = self._directory.stat().st_uid == os.geteuid()
        except OSError as error:
            raise MachineUnavailable(
                f"can't use the folder {self._directory}: {error.strerror}"
            ) from error
        if not ours:
            raise MachineUnavailable(f"the folder {self._directory} belongs to another user")

    def _start(
        self,
        state: QemuState,
        size: NodeSize,
        image: NodeImage,
        files: Mapping[str, str],
        accelerator: str,
    ) -> QemuState:
        folder, path = self._directory / state.name, Path(image.extra["path"]).resolve()
        # The folder appears with its state in it: who lists the machines sees at once whose it is.
        draft = self._directory / f".{state.name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        state.write(draft)
        for name, text in files.items():
            _write_privately(draft / name, text)
        draft.rename(folder)
        overlay = (
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            str(path / "disk.qcow2"),
            str(folder / "disk.qcow2"),
        )
        _run(["qemu-img", "create", "-q", *overlay])
        for tries in range(PORTS_TRIED):
            chosen = QemuState(**{**_fields(state), "port": _free_port()})
            chosen.write(folder)
            try:
                _run(self._command(folder, path, size, accelerator, chosen.port))
            except MachineUnavailable as error:
                # Another program took the port in between.
                if "host forwarding" not in str(error) or tries + 1 == PORTS_TRIED:
                    raise
            else:
                break
        return chosen

    def _command(
        self, folder: Path, image: Path, size: NodeSize, accelerator: str, port: int
    ) -> list[str]:
        given = [
            ("-fw_cfg", f"name=opt/machine/{name},file={_quoted(folder / name)}") for name in _GIVEN
        ]
        isolated = "off" if self._network == "open" else "on"
        network = [f"user,id=network,ipv6=off,restrict={isolated},hostfwd=tcp:{HOST}:{port}-:22"]
        network += [
            f"guestfwd=tcp:{ROUTED}:{number}-cmd:{_quoted(_forwarder(host, number))}"
            for host, number in self._reach
        ]
        return [
            _PROGRAM,
            *_COMMON,
            *("-name", f"guest={folder.name}", "-pidfile", str(folder / "pid"), "-daemonize"),
            *(
                "-machine",
                f"q35,accel={accelerator},smm=off,hpet=off,vmport=off",
                "-rtc",
                "base=utc",
            ),
            *("-smp", str(size.extra["cpus"]), "-m", str(size.ram)),
            *(
                "-kernel",
                str(image / "kernel"),
                "-initrd",
                str(image / "initrd"),
                "-append",
                f"{_KERNEL} {_QUICK}",
            ),
            *(
                "-drive",
                f"if=none,id=disk,file={_quoted(folder / 'disk.qcow2')},format=qcow2,cache=unsafe",
            ),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", ",".join(network), "-device", "virtio-net-pci,netdev=network,romfile="),
            *(
                "-chardev",
                f"file,id=console,path={_quoted(folder / 'console')}",
                "-serial",
                "chardev:console",
            ),
            *(word for pair in given for word in pair),
        ]

    def _remove(self, name: str) -> None:
        """End the process and remove the folder, whatever there is of both. Under the lock."""
        folder, gone = self._directory / name, self._directory / f".{name}"
        shutil.rmtree(gone, ignore_errors=True)
        # Moved away before anything else: what a killed creator still starts finds none of its
        # files.
        with suppress(FileNotFoundError):
            folder.rename(gone)
        # One that is only just starting is two for a moment.
        while pid := _processes(self._directory).get(name):
            _kill(pid)
        with suppress(FileNotFoundError):
            shutil.rmtree(gone)

    def _choose_accelerator(self, image: Path) -> str:
        if self._accelerator != "auto":
            return self._accelerator
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg"
        # The answer holds until the host is started anew.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        kept = self._directory / ".accelerator"
        with _locked(self._directory, ".accelerator.lock"):
            with suppress(OSError, ValueError):
                known = json.loads(kept.read_text())
                if known["boot"] == boot:
                    return str(known["accelerator"])
            accelerator = "kvm" if _kvm_works(image) else "tcg"
            _write_privately(kept, json.dumps({"boot": boot, "accelerator": accelerator}))
        return accelerator


def probe_limit(load: float, processors: int) -> float:
    """How many seconds a kernel gets to boot under KVM: its answer is kept, so a busy host must not
    decide it.
    """
    return min(PROBE_TIMEOUT * max(1.0, load / processors), LONGEST_PROBE)


def _kvm_works(image: Path) -> bool:
    """Whether a kernel boots under KVM: that the device is there and opens says little in a
    container.
    """
    command = [
        *(_PROGRAM, *_COMMON, "-machine", "q35,accel=kvm", "-m", "256", "-serial", "stdio"),
        *("-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")),
        *("-append", "quiet console=ttyS0 panic=-1 machine.probe"),
    ]
    limit = probe_limit(os.getloadavg()[0], os.cpu_count() or 1)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return b"machine: the kernel runs" in done.stdout


def _is_image(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("kernel", "initrd", "disk.qcow2"))


def _target(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _forwarder(host: str, port: int) -> str:
    words = (sys.executable, "-I", "-S", tcp_pipe.__file__, host, str(port))
    # QEMU splits it as a shell would, without one.
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def _quoted(value: object) -> str:
    """As a value in one of QEMU's options, where a comma ends it."""
    return str(value).replace(",", ",,")


def _fields(state: QemuState) -> dict[str, Any]:
    return {field: getattr(state, field) for field in state.__dataclass_fields__}


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MachineUnavailable(f"can't read the folder {directory}: {error.strerror}") from error


def _processes(directory: Path) -> dict[str, int]:
    """The QEMU process of each machine in that directory, by the machine's name."""
    prefix = f"{directory}/".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if not words[0].endswith(_PROGRAM.encode()) or b"-pidfile" not in words:
            continue
        file = words[words.index(b"-pidfile") + 1]
        if file.startswith(prefix) and file.endswith(b"/pid"):
            found[file.removeprefix(prefix).removesuffix(b"/pid").decode(errors="replace")] = int(
                entry.name
            )
    return found


def _kill(pid: int) -> None:
    """End the process, and return once it has.

    Raises:
        MachineUnavailable: it is still there.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended, _, _ = select.select([descriptor], [], [], KILL_TIMEOUT)
    except ProcessLookupError:
        return
    except OSError as error:
        raise MachineUnavailable(
            f"can't end the machine's process {pid}: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)
    if not ended:
        raise MachineUnavailable(f"the machine's process {pid} does not end")


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=START_TIMEOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise MachineUnavailable(
            f"{command[0]} is not installed (Debian: qemu-system-x86, qemu-utils)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MachineUnavailable(
            f"{command[0]} did not start within {START_TIMEOUT:g} s"
        ) from error
    except OSError as error:
        raise MachineUnavailable(f"can't start {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-300:] or f"exit status {done.returncode}"
        raise MachineUnavailable(f"{command[0]} failed: {said}")


def _free_port() -> int:
    """A free port outside the range that the kernel gives to outgoing connections."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low, high = (10_000, first) if first > 12_000 else (1_100, 10_000)
    for port in random.sample(range(low, high), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise MachineUnavailable("no free port on this host for one more machine")


@contextmanager
def _locked(directory: Path, name: str = ".lock") -> Iterator[None]:
    with (directory / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_privately(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def register() -> None:
    """Make the driver known to libcloud as `qemu`."""
    if NAME not in [str(name) for name in DRIVERS]:
        set_driver(cast("Any", NAME), cast("Any", __name__), cast("Any", QemuDriver.__name__))
