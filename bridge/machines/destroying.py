"""Destroys machines for certain."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from libcloud.compute.base import Node

from bridge.errors import MachineError, MachineRejected, MachineUnavailable
from bridge.machines.inventory import Inventory
from bridge.machines.machine import Machine
from bridge.machines.polling import until

log = structlog.get_logger(__name__)


async def destroy_machines(
    inventory: Inventory, machines: Iterable[Machine], *, timeout: float
) -> None:
    """Destroy those machines, and return once they are gone.

    Each gets `timeout` seconds. One that stays doesn't keep the others.

    Raises:
        MachineError: some may be left; the text names them.
    """
    errors = []
    for machine in machines:
        destruction = Destruction(inventory, machine.id, machine.name)
        try:
            await destruction.carry_out(timeout)
        except MachineError as error:
            errors.append(error)
        else:
            log.info("machine destroyed", machine=machine.name, execution=machine.tags.execution)
    if errors:
        raise type(errors[0])("; ".join(map(str, errors)))


async def destroy_made(inventory: Inventory, node: Node, *, listed: bool, timeout: float) -> None:
    """Destroy a node that a create returned. `listed` says whether a list has shown it since.

    Raises:
        MachineError: it may be left after `timeout` seconds; the text names it.
    """
    unlisted = None if listed else node
    destruction = Destruction(inventory, str(node.id), node.name, unlisted=unlisted)
    await destruction.carry_out(timeout)


class Destruction:
    """The destruction of one node, until the provider no longer lists it.

    A node that no list has shown yet is destroyed by its id. It counts as gone only when the
    provider has said so: a list that doesn't show it may be late.
    """

    def __init__(
        self, inventory: Inventory, node_id: str, name: str, *, unlisted: Node | None = None
    ) -> None:
        self._inventory = inventory
        self._id = node_id
        self._name = name
        self._unlisted = unlisted
        self._known_to_go = unlisted is None

    async def carry_out(self, timeout: float) -> None:
        """Ask the provider to destroy it, again and again, until it is gone.

        Raises:
            MachineError: it may be left after `timeout` seconds, or the provider refuses.
        """
        despite: tuple[type[MachineError], ...] = (MachineUnavailable,)
        if self._unlisted is not None:
            # A provider may not know the id yet.
            despite = (MachineUnavailable, MachineRejected)
        try:
            await until(self._gone, timeout=timeout, pause=0.2, longest_pause=5, despite=despite)
        except TimeoutError:
            raise MachineUnavailable(
                f"machine {self._name} is still there {timeout:g} s later (id {self._id})"
            ) from None
        except MachineError as error:
            raise type(error)(
                f"machine {self._name} may be left (id {self._id}): {error}"
            ) from error

    async def _gone(self) -> bool | None:
        listed = await self._inventory.node(self._id)
        if listed is not None:
            self._known_to_go = True
        elif self._known_to_go:
            return True
        node = listed or self._unlisted
        assert node is not None
        try:
            accepted = await self._inventory.client.destroy(node)
        except MachineError:
            if await self._went_meanwhile(listed):
                return True
            raise
        self._known_to_go = self._known_to_go or accepted
        if await self._inventory.node(self._id) is None and self._known_to_go:
            return True
        return None

    async def _went_meanwhile(self, listed: Node | None) -> bool:
        """Whether another task has destroyed the node that was listed just before."""
        return listed is not None and await self._inventory.node(self._id) is None
