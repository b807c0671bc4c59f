"""Waits until a machine has booted."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from bridge.errors import MachineUnavailable
from bridge.machines.inventory import Inventory
from bridge.machines.machine import Machine
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.polling import until
from bridge.machines.ssh_banner import BannerWait, NoBannerError


async def booted(
    inventory: Inventory, machine: Machine, *, timeout: float, policy: LifecyclePolicy
) -> Machine:
    """Wait until the machine's sshd answers, and return the machine as it is then.

    Raises:
        MachineUnavailable: it did not answer within `timeout` seconds, is dead or gone.
    """

    async def answering() -> Machine | None:
        current = await inventory.current(machine)
        answers = await _answers(current, banner, policy.look_again)
        return current if answers else None

    try:
        age = time.time() - machine.tags.created
        async with BannerWait(timeout, shortest=policy.banner_pause, age=age) as banner:
            return await until(answering, timeout=timeout, pause=0.1, longest_pause=0.1)
    except TimeoutError:
        raise MachineUnavailable(
            f"machine {machine.name} did not answer by SSH within {timeout:g} s "
            f"(BRIDGE_MACHINE_BOOT_TIMEOUT){inventory.last_words(machine)}"
        ) from None


async def _answers(machine: Machine, banner: BannerWait, look_again: float) -> bool:
    """Whether the machine speaks SSH, within the seconds until the provider is asked again."""
    if machine.host is None:
        await asyncio.sleep(min(look_again, banner.left))
        return False
    until_waited = banner.waited + look_again
    while banner.waited < until_waited and banner.left > 0:
        with suppress(NoBannerError):
            (await banner.once(machine.host, machine.port)).close()
            return True
    return False
