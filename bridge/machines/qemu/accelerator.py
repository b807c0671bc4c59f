"""Whether machines run under KVM or in emulation."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bridge.machines.qemu.command import probe_command
from bridge.machines.qemu.folders import locked, write_private
from bridge.machines.qemu.processes import environment

Accelerator = Literal["auto", "kvm", "tcg"]

PROBE_TIMEOUT, LONGEST_PROBE = 5.0, 60.0
"""Seconds. A kernel prints its first line after a second where KVM is real and the host idle;
elsewhere it may never do so."""


def probe_limit(load: float, processors: int) -> float:
    """The seconds that a kernel gets to boot under KVM.

    They grow with the host's load: the answer is kept, so it must not depend on a busy moment.
    """
    return min(PROBE_TIMEOUT * max(1.0, load / processors), LONGEST_PROBE)


def kvm_boots(image: Path) -> bool:
    """Whether the image's kernel boots under KVM.

    In a container, the device may exist and open although KVM doesn't work.
    """
    limit = probe_limit(os.getloadavg()[0], os.cpu_count() or 1)
    try:
        done = subprocess.run(
            probe_command(image),
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
    return b"machine: the kernel runs" in done.stdout


def choose_accelerator(
    wanted: Accelerator,
    directory: Path,
    image: Path,
    *,
    device: Path = Path("/dev/kvm"),
    boots: Callable[[Path], bool] = kvm_boots,
) -> str:
    """`kvm` or `tcg`: the one that is wanted, or for `auto` KVM if a kernel really boots under it.

    The answer to `auto` is kept in the directory until the host restarts.
    """
    if wanted != "auto":
        return wanted
    if not os.access(device, os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = directory / ".accelerator"
    with locked(directory, ".accelerator.lock"):
        with suppress(OSError, ValueError):
            known = json.loads(kept.read_text())
            if known["boot"] == boot and known["accelerator"] in ("kvm", "tcg"):
                return str(known["accelerator"])
        accelerator = "kvm" if boots(image) else "tcg"
        write_private(kept, json.dumps({"boot": boot, "accelerator": accelerator}))
    return accelerator
