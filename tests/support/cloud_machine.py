"""A cloud's machine: Debian with systemd, sshd and cloud-init, which gets our user data."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from bridge.machines.order import Order
from bridge.machines.qemu.command import CPU
from deploy.local.machine_image import MODULES, Recipe
from deploy.local.paths import free_port
from deploy.local.processes import Child

SUITE = os.environ.get("KESTRA_BRIDGE_CLOUD_SUITE", "trixie")
"""The release of Debian that a cloud's machine has."""
CLOUD = Recipe(
    name=f"cloud-{SUITE}",
    suite=SUITE,
    # Not where `machine create` looks for images.
    kind="cloud-images",
    packages=(
        "busybox-static",
        "cloud-init",
        "dbus",
        "iproute2",
        "linux-image-cloud-amd64",
        "openssh-server",
        "systemd-sysv",
    ),
    # DHCP needs raw packets.
    modules=(*MODULES, "af_packet"),
    # cloud-init writes the network's settings for what it finds there; Debian turns this one off.
    options=('--customize-hook=chroot "$1" systemctl enable systemd-networkd',),
    files=(("sbin/machine-init", "#!/bin/sh\nexec /sbin/init\n", "755"),),
)

_GATEWAY = "10.0.2.2"
"""This host, as a machine of QEMU's sees it."""


class CloudMachine:
    """A machine that runs. `port` leads to its sshd."""

    def __init__(self, process: Child, port: int, console: Path) -> None:
        self._process = process
        self._console = console
        self.port = port

    def wait_for_power_off(self, timeout: float) -> None:
        """Wait until the machine has powered itself off.

        Raises:
            ProcessError: it still runs after that many seconds.
        """
        self._process.wait(timeout)

    @property
    def console(self) -> str:
        """What the machine has printed."""
        return self._console.read_text(errors="replace")


@contextmanager
def cloud_machine(image: Path, order: Order, directory: Path) -> Iterator[CloudMachine]:
    """A machine of that order, which is gone afterwards."""
    with _metadata_service(order) as service:
        port, console = free_port(), directory / "console"
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-machine", "q35,accel=tcg", "-cpu", CPU["tcg"]),
            *("-smp", "2", "-m", "1024", "-serial", f"file:{console}"),
            *("-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")),
            *("-append", "root=/dev/vda quiet console=ttyS0 panic=-1"),
            # The image stays as it is: what the machine writes is gone with it.
            *("-snapshot", "-drive", f"if=none,id=disk,file={image / 'disk.qcow2'},format=qcow2"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", f"user,id=network,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,netdev=network,romfile="),
            # Where cloud-init looks first (its data source NoCloud, by the name that old releases
            # know as well).
            *("-smbios", f"type=1,serial=ds=nocloud-net;s=http://{_GATEWAY}:{service}/"),
        ]
        with Child("qemu", command, log=directory / "qemu.log") as process:
            yield CloudMachine(process, port, console)


@contextmanager
def _metadata_service(order: Order) -> Iterator[int]:
    """What a cloud offers its machines, at the port that this returns."""
    answers = {
        "/user-data": order.user_data,
        "/meta-data": f"instance-id: {order.name}\nlocal-hostname: {order.name}\n",
        "/vendor-data": "",
    }

    class Service(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = answers.get(self.path)
            self.send_response(HTTPStatus.NOT_FOUND if text is None else HTTPStatus.OK)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            """Say nothing of requests."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
