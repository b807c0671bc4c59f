"""The processes on this host: QEMU's, found by their command lines, started and killed."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bridge.errors import MachineUnavailable
from bridge.machines.qemu.command import HOST, PROGRAM, guard_command

KEPT_VARIABLES = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("LD_LIBRARY_PATH", "QEMU_MODULE_DIR"),
)
"""What QEMU's programs, and what they start, get of our environment, which holds our secrets."""
START_TIMEOUT = 60.0
KILL_TIMEOUT = 20.0
_PORTS_PROBED = 200


def machine_processes(directory: Path) -> dict[str, int]:
    """The id of each machine's QEMU process in that directory, by the machine's name."""
    prefix = f"{directory}/".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended meanwhile.
        if not words[0].endswith(PROGRAM.encode()) or b"-pidfile" not in words:
            continue
        file = words[words.index(b"-pidfile") + 1]
        if file.startswith(prefix) and file.endswith(b"/pid"):
            name = file.removeprefix(prefix).removesuffix(b"/pid").decode(errors="replace")
            found[name] = int(entry.name)
    return found


def kill(pid: int) -> None:
    """Kill the process, and return once it has ended.

    Raises:
        MachineUnavailable: it still exists.
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


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of QEMU's programs."""
    return {name: ours[name] for name in KEPT_VARIABLES if name in ours}


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, which for QEMU itself is that it has daemonized.

    Its environment is `variables`, or if that is None what QEMU's programs get of ours.

    Raises:
        MachineUnavailable: it is not installed, did not end in time, or failed.
    """
    program = command[0]
    try:
        done = subprocess.run(
            command,
            env=environment(os.environ) if variables is None else variables,
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
            f"{program} is not installed (Debian: qemu-system-x86, qemu-utils)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MachineUnavailable(f"{program} did not start within {START_TIMEOUT:g} s") from error
    except OSError as error:
        raise MachineUnavailable(f"can't start {program}: {error.strerror}") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[-300:] or f"exit status {done.returncode}"
        raise MachineUnavailable(f"{program} failed: {reason}")


def start_guard(directory: Path, name: str, *, machine_id: str, deadline: float) -> None:
    """Start the process that ends the machine at its deadline, in seconds since 1970.

    It outlives the command that has the secrets in its environment, so it gets none.

    Raises:
        MachineUnavailable: it did not start.
    """
    run(guard_command(directory, name, machine_id=machine_id, deadline=deadline), variables={})


def free_port() -> int:
    """A free port of this host, outside the range that the kernel gives to outgoing connections.

    Raises:
        MachineUnavailable: there is none.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = 10_000, int(ephemeral[0])
    if high <= 12_000:
        low, high = 1_100, 10_000
    for port in random.sample(range(low, high), _PORTS_PROBED):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise MachineUnavailable("no free port on this host for one more machine")
