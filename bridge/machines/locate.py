"""Finds the machine that a command names, and its keys."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from bridge.errors import MachineError, SettingsError
from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.order import name_of
from bridge.machines.policy import LIFECYCLE_POLICY, LifecyclePolicy
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import Address, MachineUnreachable

FIRST_LOOK = 0.5
"""Seconds until a provider is first asked what became of a machine that doesn't let us in."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Asks a machine's provider, every `look_again` seconds, whether the machine has ended."""

    machines: Machines
    machine: Machine
    look_again: float

    async def until_gone(self) -> str:
        """Wait until the machine has ended, and say so."""
        was_listed = True
        pause = min(FIRST_LOOK, self.look_again)
        while True:
            await asyncio.sleep(pause)
            pause = self.look_again
            try:
                listed = await self.machines.all()
            except MachineError:
                continue
            current = [machine for machine in listed if machine.id == self.machine.id]
            if current and current[0].dead:
                return str(self.machines.inventory.death(current[0]))
            # Not after a single look, since a provider's list may miss a machine for a moment.
            if not current and not was_listed:
                return f"machine {self.machine.name} is no longer there"
            was_listed = bool(current)


@dataclass(frozen=True, slots=True, kw_only=True)
class Locator:
    """What a command says about the machine.

    Raises:
        SettingsError: it says too little.
    """

    settings: MachineSettings
    execution: str | None = None
    name: str | None = None
    host: str | None = None
    port: int = 22
    user: str | None = None
    policy: LifecyclePolicy = LIFECYCLE_POLICY

    def __post_init__(self) -> None:
        if self.name:
            return
        if self.host:
            raise SettingsError("--host needs --name, from which the machine's keys are derived")
        if not self.execution:
            raise SettingsError("which machine? Give --execution, --name, or --name and --host")

    def __str__(self) -> str:
        if self.name:
            return self.name
        return f"machine of execution {self.execution}"

    @property
    def machine_name(self) -> str:
        """The machine's name, whether or not the machine exists."""
        return self.name or name_of(self.execution or "")

    async def locate(self) -> Address:
        """The machine's address and keys. Waits until it has an address.

        Raises:
            MachineUnreachable: there is no such machine.
            MachineError: the provider can't be asked for it.
        """
        if self.host is not None and self.name is not None:
            return self._address(self.name, self.host, self.port)
        machines = Machines(self.settings)
        machine = await self._look_up(machines)
        if machine.host is None:
            machine = await machines.wait(machine)
        assert machine.host is not None
        address = self._address(machine.name, machine.host, machine.port)
        watch = Watch(machines, machine, self.policy.look_again)
        return replace(address, until_gone=watch.until_gone, created=machine.tags.created)

    def _address(self, name: str, host: str, port: int) -> Address:
        secret = self.settings.machine_secret.get_secret_value()
        return Address(
            name=name,
            host=host,
            port=port,
            user=self.user or self.settings.machine_user,
            identity=SshIdentity.derive(secret, name),
        )

    async def _look_up(self, machines: Machines) -> Machine:
        if self.execution:
            machine = await machines.find(self.execution)
            if machine is None:
                raise MachineUnreachable(f"there is no machine of execution {self.execution}")
            return machine
        for machine in await machines.all():
            if machine.name == self.name and not machine.dead:
                return machine
        raise MachineUnreachable(f"there is no machine {self.name}")
