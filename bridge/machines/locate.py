"""Finds the machine that a command names, and its keys."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.errors import SettingsError
from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import Address, MachineUnreachable


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
        return self._address(machine.name, machine.host, machine.port)

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
