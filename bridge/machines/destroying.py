"""Destroys a machine for certain."""

from __future__ import annotations

import structlog

from bridge.errors import MachineError, MachineUnavailable
from bridge.machines.inventory import Inventory
from bridge.machines.machine import Machine
from bridge.machines.polling import until

log = structlog.get_logger(__name__)


async def destroy_machine(inventory: Inventory, machine: Machine, *, timeout: float) -> None:
    """Destroy the machine, and return once it is gone.

    Raises:
        MachineError: it may be left after `timeout` seconds, or the provider refuses.
    """

    async def destroyed() -> bool | None:
        node = await inventory.node(machine)
        if node is None:
            return True
        try:
            await inventory.client.destroy(node)
        except MachineError:
            # Another task may have destroyed it just now.
            if await inventory.node(machine) is not None:
                raise
            return True
        left = await inventory.node(machine)
        return True if left is None else None

    try:
        await until(
            destroyed, timeout=timeout, pause=0.2, longest_pause=5, despite=(MachineUnavailable,)
        )
    except TimeoutError:
        raise MachineUnavailable(
            f"machine {machine.name} is still there {timeout:g} s later"
        ) from None
    log.info("machine destroyed", machine=machine.name, execution=machine.tags.execution)
