"""A machine's life: created once for an execution, found again by its tags, and destroyed for
certain.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import structlog

from bridge.errors import MachineError, MachineUnavailable, SettingsError
from bridge.machines.booting import booted
from bridge.machines.creating import Creation
from bridge.machines.destroying import destroy_machines
from bridge.machines.inventory import Inventory
from bridge.machines.machine import Machine
from bridge.machines.order import Order, Tags, is_spot, name_of
from bridge.machines.policy import LIFECYCLE_POLICY, LifecyclePolicy
from bridge.machines.polling import until
from bridge.machines.providers import choose
from bridge.machines.settings import MachineSettings, candidates

log = structlog.get_logger(__name__)

_EXECUTION = re.compile(r"[A-Za-z0-9_-]{1,33}")
_LONGEST_JOB = 200


class Machines:
    """The machines of one provider that carry our tags. No others are ever touched."""

    def __init__(
        self, settings: MachineSettings, policy: LifecyclePolicy = LIFECYCLE_POLICY
    ) -> None:
        self._settings = settings
        self._policy = policy
        self.inventory = Inventory(settings, policy)

    async def create(
        self,
        execution: str,
        job: str,
        deadline: float,
        *,
        size: str | None = None,
        image: str | None = None,
        attempt: int = 1,
        wait: bool = False,
        server: str = "",
    ) -> Machine:
        """The execution's machine: the existing one, or a new one to live `deadline` seconds.

        `attempt` is the job's, on which depends whether a new one is a spot machine.
        With `wait`, returns once the machine answers by SSH. If this fails or is cancelled, it
        leaves no machine that it has created. `server` is the id of the Kestra that runs the
        execution, if it is known.

        Raises:
            SettingsError: a setting for creating is missing, or the execution's id isn't valid.
            MachineError: there is no machine; the text says why.
        """
        changes = {}
        if size:
            changes["machine_size"] = size
        if image:
            changes["machine_image"] = image
        settings = self._settings.model_copy(update=changes)
        choose(settings, to_create=True)
        if not _EXECUTION.fullmatch(execution):
            raise SettingsError(
                f"{execution!a} is not a valid execution id: 1 to 33 letters, digits, - and _"
            )
        existing = await self.inventory.of(execution)
        alive = _first_alive(existing)
        if alive:
            return await self._adopt(alive, wait=wait)
        await self.destroy_all(existing)
        order = self._order(execution, job, deadline, server=server, attempt=attempt)
        try:
            return await self._create_new(order, settings, wait)
        except MachineError:
            # Another task may have been faster, and its machine may be what stood in our way.
            other = None
            with suppress(MachineError):
                other = await self.find(execution)
            if other is None:
                raise
        return await self._adopt(other, wait=wait)

    async def find(self, execution: str) -> Machine | None:
        """The execution's machine, if one lives. Of several, all callers find the same one."""
        return _first_alive(await self.inventory.of(execution))

    async def all(self) -> list[Machine]:
        """All our machines, the oldest first."""
        return await self.inventory.all()

    async def destroy(
        self, *, execution: str | None = None, name: str | None = None
    ) -> list[Machine]:
        """Destroy the machines of that execution or name, and return them once they are gone.

        There may be none.

        Raises:
            MachineError: one may be left.
        """
        wanted = partial(self._of, execution, name)
        machines = await wanted()
        if machines is None and not self.inventory.lists_at_once:
            with suppress(TimeoutError):
                machines = await until(
                    wanted, timeout=self._policy.unlisted_wait, pause=1, longest_pause=5
                )
        machines = machines or []
        await self.destroy_all(machines)
        wanted_name = name or name_of(execution or "")
        remains = "" if machines else self.inventory.remains(wanted_name)
        if remains:
            raise MachineUnavailable(
                f"machine {wanted_name} can't be destroyed, it ends at its deadline: {remains}"
            )
        return machines

    async def destroy_all(self, machines: Iterable[Machine]) -> None:
        """Destroy those machines, and return once they are gone.

        Raises:
            MachineError: some may be left; the text names them.
        """
        await destroy_machines(self.inventory, machines, timeout=self._policy.gone_timeout)

    async def _of(self, execution: str | None, name: str | None) -> list[Machine] | None:
        """The machines of that execution or name. None if none is listed."""
        return [
            machine
            for machine in await self.all()
            if machine.tags.execution == execution or machine.name == name
        ] or None

    async def wait(self, machine: Machine) -> Machine:
        """Wait until the machine's sshd answers, and return the machine as it is then.

        Raises:
            MachineUnavailable: it did not answer in time, is dead or gone.
        """
        timeout = self._settings.machine_boot_timeout
        return await booted(self.inventory, machine, timeout=timeout, policy=self._policy)

    async def _create_new(self, order: Order, settings: MachineSettings, wait: bool) -> Machine:
        """Create a machine for that order. If that fails or is cancelled, nothing is left of it.

        Raises:
            MachineError: it failed; the text says what may be left all the same.
        """
        creation = Creation(self.inventory, order, self._policy)
        try:
            machine = await creation.carry_out(
                candidates(settings), self._settings.machine_boot_timeout
            )
            if wait:
                machine = await self.wait(machine)
        except MachineError as error:
            left = await creation.undo()
            if left:
                raise type(error)(f"{error}; {left}") from error
            raise
        except BaseException:
            await creation.undo()
            raise
        return machine

    def _order(
        self, execution: str, job: str, deadline: float, *, server: str, attempt: int
    ) -> Order:
        now = time.time()
        name = name_of(execution)
        tags = Tags(
            owner=self.inventory.owner,
            execution=execution,
            job=job[:_LONGEST_JOB],
            call=secrets.token_hex(6),
            created=now,
            deadline=now + deadline,
            server=server,
        )
        identity = self.inventory.identity(name)
        return Order(
            name=name,
            tags=tags,
            user=self._settings.machine_user,
            identity=identity,
            spot=is_spot(self._settings.machine_spot, attempt),
        )

    async def _adopt(self, machine: Machine, *, wait: bool) -> Machine:
        """Use a machine that another call made. If it never answers, nobody can use it."""
        log.info("the machine exists", machine=machine.name, execution=machine.tags.execution)
        if not wait:
            return machine
        try:
            return await self.wait(machine)
        except MachineUnavailable:
            await self.destroy_all([machine])
            raise


def _first_alive(machines: Iterable[Machine]) -> Machine | None:
    for machine in machines:
        if not machine.dead:
            return machine
    return None
