"""Makes one machine, and undoes what a call that failed has made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import structlog
from libcloud.compute.base import Node
from tenacity import RetryCallState, stop_after_delay, wait_exponential

from bridge.errors import (
    MachineAnswerLost,
    MachineError,
    MachineProviderBusy,
    MachineUnavailable,
)
from bridge.machines.destroying import destroy_machines, destroy_made
from bridge.machines.inventory import Inventory
from bridge.machines.machine import Machine
from bridge.machines.order import Order
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.polling import until
from bridge.machines.providers import choose
from bridge.machines.settings import MachineSettings
from bridge.retrying import retry

log = structlog.get_logger(__name__)


class Creation:
    """One call that makes a machine.

    It knows the node that the provider returned. So what it made can be undone before a list shows
    it.
    """

    def __init__(self, inventory: Inventory, order: Order, policy: LifecyclePolicy) -> None:
        self._inventory = inventory
        self._order = order
        self._policy = policy
        self._made: list[Node] = []
        self._answer_lost = False
        self._listed = False

    async def carry_out(self, candidates: Sequence[MachineSettings], timeout: float) -> Machine:
        """Make the machine, and return it once it is listed.

        `candidates` are the settings to try in turn. Where the provider has none of them, they are
        tried again for `timeout` seconds.

        Raises:
            MachineError: it failed. `undo` destroys what may have been made.
        """
        turns = cycle(candidates)
        pause = wait_exponential(self._policy.busy_pause, max=20)

        def wait(state: RetryCallState) -> float:
            # No pause before a candidate that has not had its turn yet.
            return 0.0 if state.attempt_number % len(candidates) else pause(state)

        try:
            await retry(
                lambda: self._create(next(turns)),
                on=(MachineProviderBusy,),
                stop=stop_after_delay(timeout),
                wait=wait,
                before_sleep=_log_shortage,
            )
        except MachineProviderBusy as error:
            raise MachineProviderBusy(
                f"{error} (asked again for {timeout:g} s, BRIDGE_MACHINE_BOOT_TIMEOUT)"
            ) from error
        return await self._settled()

    async def undo(self) -> str | None:
        """Destroy what was made. Returns what may be left, as one line, or None."""
        try:
            if self._made:
                await self._undo_by_id()
            else:
                await self._undo_by_tags()
        except MachineError as error:
            log.error(
                "a half-made machine may be left, until the next reap",
                machine=self._order.name,
                error=str(error),
            )
            return str(error)
        return None

    async def _create(self, settings: MachineSettings) -> None:
        size = settings.machine_size or choose(settings).default_size
        tags = replace(self._order.tags, size=size)
        order = replace(self._order, tags=tags)
        try:
            await self._inventory.client.create(order, settings, self._made.append)
        except MachineAnswerLost:
            self._answer_lost = True
            raise
        except asyncio.CancelledError as cancelled:
            self._answer_lost = isinstance(cancelled.__cause__, MachineAnswerLost)
            raise

    async def _settled(self) -> Machine:
        """The machine that stays if two tasks made one each at the same moment: the one that both
        see first.
        """
        order, timeout = self._order, self._policy.listed_timeout
        try:
            alive = await until(self._alive, timeout=timeout, pause=0.1, longest_pause=5)
        except TimeoutError:
            raise MachineUnavailable(
                f"machine {order.name} is not listed with its tags {timeout:g} s after it was made"
            ) from None
        kept = alive[0]
        self._listed = any(machine.tags.call == order.tags.call for machine in alive)
        if kept.tags.call != order.tags.call:
            # Ours goes by its id, as it may not be listed yet.
            await self._undo_by_id()
        log.info(
            "machine created", machine=kept.name, execution=order.tags.execution, job=order.tags.job
        )
        return kept

    async def _alive(self) -> list[Machine] | None:
        """The execution's living machines. None if none is listed yet."""
        machines = await self._inventory.of(self._order.tags.execution)
        alive = [machine for machine in machines if not machine.dead]
        if alive:
            return alive
        if machines:
            raise self._inventory.death(machines[0])
        return None

    async def _undo_by_id(self) -> None:
        while self._made:
            node, timeout = self._made[-1], self._policy.gone_timeout
            await destroy_made(self._inventory, node, listed=self._listed, timeout=timeout)
            self._made.pop()
            log.info(
                "machine destroyed", machine=self._order.name, execution=self._order.tags.execution
            )

    async def _undo_by_tags(self) -> None:
        """Destroy what a list shows of this call. If its answer was lost, look for a while.

        Raises:
            MachineError: one may be left.
        """
        made = await self._of_this_call()
        timeout = self._policy.lost_answer_timeout
        if self._answer_lost and made is None:
            try:
                made = await until(self._of_this_call, timeout=timeout, pause=0.5, longest_pause=5)
            except TimeoutError:
                raise MachineAnswerLost(
                    "the provider did not say whether it made the machine, and no list showed it "
                    f"within {timeout:g} s"
                ) from None
        await destroy_machines(self._inventory, made or (), timeout=self._policy.gone_timeout)

    async def _of_this_call(self) -> list[Machine] | None:
        tags = self._order.tags
        machines = await self._inventory.of(tags.execution)
        return [machine for machine in machines if machine.tags.call == tags.call] or None


def _log_shortage(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("the provider gives no machine, asking again", error=str(error))
