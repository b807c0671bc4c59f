"""QEMU's command line. Pure: nothing is started from here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libcloud.compute.base import NodeSize

from bridge.machines.qemu import deadline_guard, tcp_pipe

PROGRAM = "qemu-system-x86_64"
HOST = "127.0.0.1"
ROUTED = "10.0.2.100"
"""The address at which an isolated machine finds what it may reach on this host."""
GATEWAY = "10.0.2.2"
"""The address of this host in QEMU's open network."""

# In emulation each access to memory that isn't cached walks the page tables. Five levels of them,
# which the kernel takes where it can, cost an eighth of a boot; four reach 256 TB. A processor that
# says that it copies strings fast (erms, fsrm) is given copies byte by byte, and in emulation each
# byte is a step of its own: another eighth.
CPU = {"kvm": "max", "tcg": "max,la57=off,erms=off,fsrm=off"}
"""The processor of a machine, by its accelerator."""
# QEMU's small firmware does nothing but load the kernel.
COMMON = (
    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-bios", "qboot.rom"),
    *("-sandbox", "on,obsolete=deny,resourcecontrol=deny"),
)
_KERNEL = "root=/dev/vda quiet mitigations=off panic=-1 console=ttyS0"
# Skips what a kernel does at its start that takes long in emulation, and that a machine which lives
# for one job doesn't need.
_QUICK = "lsm= cryptomgr.notests tsc=reliable no_timer_check"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNetwork:
    """The network of the machines: isolated but for the addresses in `reach`, or open."""

    is_open: bool = False
    reach: Sequence[tuple[str, int]] = ()

    @property
    def gateway(self) -> str:
        """The address that machines know as `host.internal`."""
        if self.is_open:
            return GATEWAY
        return ROUTED

    def netdev(self, port: int) -> str:
        """The value of `-netdev`: this host's `port` leads to the machine's sshd."""
        restrict = "off" if self.is_open else "on"
        parts = ["user", "id=network", "ipv6=off", f"restrict={restrict}"]
        parts.append(f"hostfwd=tcp:{HOST}:{port}-:22")
        for host, number in self.reach:
            forwarder = _quoted(_forwarder(host, number))
            parts.append(f"guestfwd=tcp:{ROUTED}:{number}-cmd:{forwarder}")
        return ",".join(parts)


def qemu_command(
    folder: Path,
    image: Path,
    files: Iterable[str],
    *,
    size: NodeSize,
    accelerator: str,
    netdev: str,
) -> list[str]:
    """The command that starts the machine in `folder`, as a daemon, with those files of the folder
    handed to it by the firmware.
    """
    disk = f"if=none,id=disk,file={_quoted(folder / 'disk.qcow2')},format=qcow2,cache=unsafe"
    # Where this host has no more room, the machine gets an error. By default QEMU would halt it.
    disk += ",werror=report"
    console = f"file,id=console,path={_quoted(folder / 'console')}"
    command = [PROGRAM, *COMMON]
    command += ["-name", f"guest={folder.name}", "-pidfile", str(folder / "pid"), "-daemonize"]
    command += ["-machine", f"q35,accel={accelerator},smm=off,hpet=off,vmport=off"]
    command += ["-cpu", CPU[accelerator]]
    command += ["-rtc", "base=utc", "-smp", str(size.extra["cpus"]), "-m", str(size.ram)]
    command += ["-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")]
    command += ["-append", f"{_KERNEL} {_QUICK}"]
    command += ["-drive", disk, "-device", "virtio-blk-pci,drive=disk"]
    command += ["-netdev", netdev, "-device", "virtio-net-pci,netdev=network,romfile="]
    command += ["-chardev", console, "-serial", "chardev:console"]
    for name in files:
        command += ["-fw_cfg", f"name=opt/machine/{name},file={_quoted(folder / name)}"]
    return command


def probe_command(image: Path) -> list[str]:
    """The command that boots the image's kernel under KVM; the kernel prints a line and stops."""
    return [
        *(PROGRAM, *COMMON, "-machine", "q35,accel=kvm", "-cpu", CPU["kvm"]),
        *("-m", "256", "-serial", "stdio"),
        *("-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")),
        *("-append", "quiet console=ttyS0 panic=-1 machine.probe"),
    ]


def overlay_command(image: Path, folder: Path) -> list[str]:
    """The command that makes the machine's disk. It stores only what differs from the image."""
    backing = ["-f", "qcow2", "-F", "qcow2", "-b", str(image / "disk.qcow2")]
    return ["qemu-img", "create", "-q", *backing, str(folder / "disk.qcow2")]


def guard_command(directory: Path, name: str, *, machine_id: str, deadline: float) -> list[str]:
    """The command that starts the process that ends the machine at its deadline."""
    program = [sys.executable, "-I", "-S", deadline_guard.__file__]
    return [*program, str(directory), name, machine_id, str(deadline)]


def _forwarder(host: str, port: int) -> str:
    """The command that QEMU starts for each connection of a machine to `host.internal`.

    QEMU splits it as a shell would, without starting a shell.
    """
    return shlex.join((sys.executable, "-I", "-S", tcp_pipe.__file__, host, str(port)))


def _quoted(value: object) -> str:
    """The value as a part of one of QEMU's options, in which a comma ends a value."""
    return str(value).replace(",", ",,")
