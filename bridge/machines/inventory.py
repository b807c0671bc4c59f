"""The machines that a provider lists, and the calls to the provider.

libcloud blocks, so each call runs in a thread. Nothing is kept in memory: the machines' own tags
record whose they are, for which execution, and until when.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TypeVar

from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.types import NodeState
from tenacity import stop_after_attempt, wait_exponential

from bridge.errors import BridgeError, MachineUnavailable
from bridge.machines.errors import provider_error
from bridge.machines.identity import SshIdentity
from bridge.machines.machine import Machine
from bridge.machines.order import Order, Tags
from bridge.machines.providers import Provider, choose
from bridge.machines.settings import MachineSettings
from bridge.retrying import retry
from bridge.text import visible

Result = TypeVar("Result")


class ProviderClient:
    """A provider's API, with its errors translated."""

    def __init__(self, settings: MachineSettings, provider: Provider) -> None:
        self._settings = settings
        self._provider = provider
        self._driver: NodeDriver | None = None

    async def nodes(self, owner: str) -> list[Node]:
        """All nodes that may belong to that owner, without those that are gone or about to go.

        Raises:
            MachineError: the provider did not answer, not even when asked again.
        """
        nodes = await retry(
            lambda: self._call("list machines", lambda: self._provider.nodes(self.driver, owner)),
            on=(MachineUnavailable,),
            stop=stop_after_attempt(3),
            wait=wait_exponential(0.5, max=5),
        )
        return [node for node in nodes if not _is_gone(node)]

    async def create(self, order: Order, settings: MachineSettings) -> None:
        """Create a machine for that order. `settings` may differ from ours in size and image.

        Raises:
            MachineError: it failed; a machine may have been created all the same.
        """
        await self._call(
            "create a machine", lambda: self._provider.create(self.driver, order, settings)
        )

    async def destroy(self, node: Node) -> None:
        """Ask the provider to destroy a node.

        Raises:
            MachineError: it failed.
        """
        await self._call("destroy a machine", lambda: node.driver.destroy_node(node))

    @property
    def driver(self) -> NodeDriver:
        """The driver of libcloud. Some drivers call the provider when they are made, so it is made
        when first needed.
        """
        if self._driver is None:
            self._driver = self._provider.connect(self._settings)
        return self._driver

    async def _call(self, what: str, function: Callable[[], Result]) -> Result:
        """Call it in a thread. If cancelled, wait for its end: what it makes must not be lost.

        Raises:
            MachineError: it failed.
        """
        task = asyncio.create_task(asyncio.to_thread(function))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # Retrieved, so that asyncio doesn't report it as lost.
            raise
        except BridgeError:
            raise
        except Exception as error:
            secrets = list(self._settings.secrets)
            if self._settings.machine_access_key:
                secrets.append(self._settings.machine_access_key)
            raise provider_error(
                error, provider=self._settings.machine_provider, what=what, secrets=secrets
            ) from error


class Inventory:
    """The machines of one provider that carry our tags. No others are ever shown."""

    def __init__(self, settings: MachineSettings) -> None:
        self._settings = settings
        self._secret = settings.machine_secret.get_secret_value()
        self._provider = choose(settings)
        self.client = ProviderClient(settings, self._provider)
        self.owner = owner_of(self._secret)

    def identity(self, name: str) -> SshIdentity:
        """The keys of the machine of that name."""
        return SshIdentity.derive(self._secret, name)

    async def all(self) -> list[Machine]:
        """All our machines, the oldest first."""
        machines = []
        for node in await self.client.nodes(self.owner):
            tags = Tags.parse(self._provider.tags(node))
            if tags is not None and tags.owner == self.owner:
                machines.append(self._machine(node, tags))
        return sorted(machines, key=lambda machine: (machine.tags.created, machine.id))

    async def of(self, execution: str) -> list[Machine]:
        """All machines of the execution, the oldest first."""
        machines = await self.all()
        return [machine for machine in machines if machine.tags.execution == execution]

    async def node(self, machine: Machine) -> Node | None:
        """The provider's node of that machine. None if it is gone."""
        for node in await self.client.nodes(self.owner):
            if str(node.id) == machine.id:
                return node
        return None

    async def current(self, machine: Machine) -> Machine:
        """The machine as it is now.

        Raises:
            MachineUnavailable: it is gone, or dead.
        """
        for current in await self.all():
            if current.id == machine.id:
                if current.dead:
                    raise self.death(current)
                return current
        raise MachineUnavailable(f"machine {machine.name} is no longer there")

    def death(self, machine: Machine) -> MachineUnavailable:
        """The error that the machine is dead."""
        return MachineUnavailable(
            f"machine {machine.name} has ended by itself ({machine.state})"
            f"{self.last_words(machine)}"
        )

    def last_words(self, machine: Machine) -> str:
        """The last line on its console, as the end of an error message."""
        line = self._provider.console(self.client.driver, machine.name)
        if not line:
            return ""
        return f"; it last said: {visible(line)}"

    def _machine(self, node: Node, tags: Tags) -> Machine:
        public, private = node.public_ips or (), node.private_ips or ()
        addresses = [*public, *private]
        if self._settings.machine_address == "private":
            addresses = [*private, *public]
        return Machine(
            id=str(node.id),
            name=node.name,
            state=str(node.state),
            host=next(filter(None, addresses), None),
            port=self._provider.port(node),
            user=self._settings.machine_user,
            host_key=self.identity(node.name).host.public,
            tags=tags,
            dead=node.state in self._provider.dead_states,
        )


def owner_of(secret: str) -> str:
    """The owner's tag of the bridge that has that secret. It doesn't reveal the secret."""
    return hashlib.sha256(f"kestra-bridge machine owner: {secret}".encode()).hexdigest()[:16]


def _is_gone(node: Node) -> bool:
    if node.state == NodeState.TERMINATED:
        return True
    return node.extra.get("status") == "shutting-down"
