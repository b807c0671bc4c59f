"""The libcloud driver."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.types import NodeState
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from bridge.errors import MachineRejected, MachineUnavailable
from bridge.machines.qemu.accelerator import Accelerator, choose_accelerator
from bridge.machines.qemu.command import HOST, GuestNetwork, overlay_command, qemu_command
from bridge.machines.qemu.folders import (
    QemuState,
    check_place,
    locked,
    make_directory,
    make_folder,
    read_states,
    remove,
)
from bridge.machines.qemu.processes import free_port, machine_processes, run, start_guard

NAME = "qemu"
DEFAULT_IMAGE, DEFAULT_SIZE = "debian", "small"
PORTS_TRIED = 5

_NAME = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_SIZES = {"small": (1, 512), "medium": (2, 2048), "large": (4, 8192)}
_IMAGE_FILES = ("kernel", "initrd", "disk.qcow2")


class QemuDriver(NodeDriver):
    """Machines on this host. No two exist under one name, but one may follow another."""

    name = "QEMU on this host"
    website = "https://www.qemu.org"
    type = NAME

    def __init__(
        self, directory: Path, *, images: Path, network: GuestNetwork, accelerator: Accelerator
    ) -> None:
        # libcloud's own constructor isn't called: it wants credentials and a connection.
        self._directory = directory.absolute()
        self._images = images.absolute()
        self._network = network
        self._accelerator = accelerator

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
        folders = sorted(folder for folder in self._images.glob("*") if _is_image(folder))
        return [
            NodeImage(folder.name, folder.name, self, {"path": str(folder)}) for folder in folders
        ]

    def list_nodes(self) -> list[Node]:
        """Every machine that has a folder, including those whose process has ended."""
        # What is no directory is an error, and not a host without machines.
        if not self._directory.exists():
            return []
        # Not while a machine is being made: it would look like one that has ended.
        with locked(self._directory):
            states = read_states(self._directory)
            running = machine_processes(self._directory)
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
        ex_deadline: float,
    ) -> Node:
        """The running machine of that name: the existing one, or a new one that replaces whatever
        is left of an earlier one. It ends itself at `ex_deadline`, in seconds since 1970.

        Raises:
            MachineRejected: the name can't be a machine's, or a folder that is none has it.
            MachineUnavailable: QEMU is missing or did not start.
        """
        if not _NAME.fullmatch(name):
            raise MachineRejected(
                f"{name!r} is not a valid machine name: lower-case letters, digits and hyphens only"
            )
        make_directory(self._directory)
        image_folder = Path(image.extra["path"]).resolve()
        accelerator = choose_accelerator(self._accelerator, self._directory, image_folder)
        files = {
            "user": f"{ex_user}\n",
            "name": f"{name}\n",
            "authorized_keys": f"{ex_authorized_key}\n",
            "host_key": ex_host_key,
            "hosts": f"{self._network.gateway} host.internal\n",
        }
        with locked(self._directory):
            existing = QemuState.read(self._directory / name)
            if existing and name in machine_processes(self._directory):
                return self._node(existing, running=True)
            check_place(self._directory, name)
            remove(self._directory, name)
            state = QemuState.new(name, size=size.id, tags=ex_tags)
            with _nothing_left_of(self._directory, name, deadline=ex_deadline):
                folder = make_folder(self._directory, state, files)
                # First, so that no machine is ever without it.
                start_guard(self._directory, name, machine_id=state.id, deadline=ex_deadline)
                run(overlay_command(image_folder, folder))

                def command(port: int) -> list[str]:
                    netdev = self._network.netdev(port)
                    return qemu_command(
                        folder,
                        image_folder,
                        files,
                        size=size,
                        accelerator=accelerator,
                        netdev=netdev,
                    )

                started = _start(state, folder, command)
        return self._node(started, running=True)

    def destroy_node(self, node: Node) -> bool:
        """End the machine's process and remove its folder, whoever created it.

        A machine of the same name that has followed it is left alone. Returns True, also if the
        machine doesn't exist.
        """
        if self._directory.exists():
            with locked(self._directory):
                state = QemuState.read(self._directory / node.name)
                if state and state.id == node.id:
                    remove(self._directory, node.name)
        return True

    def ex_tag(self, node: Node, key: str, value: str) -> None:
        """Write one tag to the machine's state, unless the machine has gone."""
        with locked(self._directory):
            folder = self._directory / node.name
            state = QemuState.read(folder)
            if state and state.id == node.id:
                replace(state, tags={**state.tags, key: value}).write(folder)

    def console(self, name: str) -> str:
        """The last line that the machine wrote to its serial console, or an empty text."""
        try:
            text = (self._directory / name / "console").read_text(errors="replace")
        except OSError:
            return ""
        return text.strip().rpartition("\n")[2].strip()

    def remains(self, name: str) -> str:
        """What there is of a machine whose state can't be read; empty if nothing is."""
        folder = self._directory / name
        if QemuState.read(folder) is not None:
            return ""
        pid = machine_processes(self._directory).get(name)
        if pid is not None:
            return f"its process {pid} runs, and its state in {folder} can't be read"
        return f"its state in {folder} can't be read" if folder.is_dir() else ""

    def _node(self, state: QemuState, *, running: bool) -> Node:
        extra = {"tags": dict(state.tags), "port": state.port, "created": state.created}
        status = NodeState.RUNNING if running else NodeState.STOPPED
        return Node(state.id, state.name, status, [HOST], [], self, extra=extra)


@contextmanager
def _nothing_left_of(directory: Path, name: str, *, deadline: float) -> Iterator[None]:
    """Remove the machine if it can't be started within the block.

    Raises:
        MachineUnavailable: its deadline came before that, and its guard ended it.
    """
    try:
        yield
    except BaseException as error:
        remove(directory, name)
        if isinstance(error, MachineUnavailable) and time.time() >= deadline:
            late = f"machine {name} had not started by its deadline"
            raise MachineUnavailable(late) from error
        raise


def _start(state: QemuState, folder: Path, command: Callable[[int], list[str]]) -> QemuState:
    """Start QEMU on a free port of this host, and return the state with that port."""

    def start_on_a_free_port() -> QemuState:
        chosen = replace(state, port=free_port())
        chosen.write(folder)
        run(command(chosen.port))
        return chosen

    retrying = Retrying(
        retry=retry_if_exception(_port_was_taken),
        stop=stop_after_attempt(PORTS_TRIED),
        reraise=True,
    )
    return retrying(start_on_a_free_port)


def _port_was_taken(error: BaseException) -> bool:
    """Whether another program took the port after it was found free."""
    if not isinstance(error, MachineUnavailable):
        return False
    return "host forwarding" in str(error)


def _is_image(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _IMAGE_FILES)
