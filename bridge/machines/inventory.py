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
from tenacity import stop_after_delay, wait_exponential

from bridge.errors import BridgeError, MachineUnavailable
from bridge.machines.errors import provider_error
from bridge.machines.identity import SshIdentity
from bridge.machines.machine import Machine
from bridge.machines.order import UNKNOWN_TAG, Order, Tags
from bridge.machines.policy import LIFECYCLE_POLICY, LifecyclePolicy
from bridge.machines.providers import Provider, choose
from bridge.machines.settings import MachineSettings
from bridge.machines.threads import in_thread
from bridge.retrying import retry
from bridge.text import visible

Result = TypeVar("Result")


class ProviderClient:
    """A provider's API, with its errors translated."""

    def __init__(
        self, settings: MachineSettings, provider: Provider, policy: LifecyclePolicy
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._policy = policy
        self._driver: NodeDriver | None = None

    async def nodes(self, owner: str) -> list[Node]:
        """All nodes that may belong to that owner, without those that are gone or about to go.

        A provider that doesn't answer is asked again for a while.

        Raises:
            MachineError: it did not answer in that time either, or refuses.
        """
        nodes = await retry(
            lambda: self._call("list machines", lambda: self._provider.nodes(self.driver, owner)),
            on=(MachineUnavailable,),
            stop=stop_after_delay(self._policy.provider_patience),
            wait=wait_exponential(self._policy.busy_pause, max=5),
        )
        return [node for node in nodes if not _is_gone(node)]

    async def create(
        self, order: Order, settings: MachineSettings, keep: Callable[[Node], None]
    ) -> None:
        """Create a machine for that order, and give its node to `keep`.

        `settings` may differ from ours in size, image and network. A cancelled call ends only when
        the provider has answered, so that `keep` learns of whatever was made.

        Raises:
            MachineError: it failed. A machine may have been created if it is a MachineAnswerLost.
        """

        def create() -> None:
            keep(self._provider.create(self.driver, order, settings))

        await self._call("create a machine", create, to_the_end=True)

    async def destroy(self, node: Node) -> bool:
        """Ask the provider to destroy a node. Whether it says that it does.

        Raises:
            MachineError: it failed.
        """
        return await self._call("destroy a machine", lambda: bool(node.driver.destroy_node(node)))

    async def tag(self, node: Node, key: str, value: str) -> None:
        """Write one tag to a node that exists.

        Raises:
            MachineError: it failed.
        """
        await self._call("tag a machine", lambda: self._provider.tag(self.driver, node, key, value))

    @property
    def driver(self) -> NodeDriver:
        """The driver of libcloud. Some drivers call the provider when they are made, so it is made
        when first needed.
        """
        if self._driver is None:
            self._driver = self._provider.connect(self._settings)
        return self._driver

    async def _call(
        self, what: str, function: Callable[[], Result], *, to_the_end: bool = False
    ) -> Result:
        """Call it in a thread. If cancelled, wait for its end only if asked to.

        Raises:
            MachineError: it failed. If it was cancelled too, this is the cause of the cancellation.
        """
        call = asyncio.ensure_future(in_thread(function))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError as cancelled:
            if not to_the_end:
                call.cancel()
                # The thread may still use it.
                self._driver = None
                raise
            await asyncio.wait([call])
            error = call.exception()
            if isinstance(error, Exception):
                raise cancelled from self._translated(error, what)
            raise
        except Exception as error:
            raise self._translated(error, what) from error

    def _translated(self, error: Exception, what: str) -> Exception:
        if isinstance(error, BridgeError):
            return error
        secrets = list(self._settings.secrets)
        if self._settings.machine_access_key:
            secrets.append(self._settings.machine_access_key)
        provider = self._provider.name
        return provider_error(error, provider=provider, what=what, secrets=secrets)


class Inventory:
    """The machines of one provider that carry our tags. No others are ever shown."""

    def __init__(
        self, settings: MachineSettings, policy: LifecyclePolicy = LIFECYCLE_POLICY
    ) -> None:
        self._settings = settings
        self._secret = settings.machine_secret.get_secret_value()
        self._provider = choose(settings)
        self.client = ProviderClient(settings, self._provider, policy)
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

    async def node(self, node_id: str) -> Node | None:
        """The provider's node of that id. None if none is listed."""
        for node in await self.client.nodes(self.owner):
            if str(node.id) == node_id:
                return node
        return None

    async def mark_unknown(self, machine: Machine, since: float) -> None:
        """Note on that machine since when Kestra doesn't know its execution; 0 takes it back.

        Raises:
            MachineError: it failed.
        """
        node = await self.node(machine.id)
        if node is not None:
            await self.client.tag(node, UNKNOWN_TAG, str(int(since)))

    @property
    def lists_at_once(self) -> bool:
        """Whether a list shows every machine that has been made."""
        return self._provider.lists_at_once

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

    def remains(self, name: str) -> str:
        """What there is of a machine that no list shows, by its name; empty if nothing is."""
        return self._provider.remains(self.client.driver, name)

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
