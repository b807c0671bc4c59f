"""What the tests of machines share: settings, tags, and a provider in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.types import NodeState

from bridge.machines import providers
from bridge.machines.order import Order, Tags
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.providers import Provider
from bridge.machines.settings import MachineSettings

SECRET = "a secret of sixteen or more"
TAGS = Tags(
    owner="0" * 16,
    execution="3xAbC",
    job="night run/7",
    call="1" * 12,
    created=1000.0,
    deadline=4600.0,
)


def settings(**more: Any) -> MachineSettings:
    return MachineSettings(**{"machine_secret": SECRET, "machine_provider": "qemu", **more})


@dataclass
class MemoryDriver:
    """A provider's machines. Each of `lists_late` and `destroys_late` is a number of calls."""

    nodes: dict[str, Node] = field(default_factory=dict)
    lists_late: int = 0
    destroys_late: int = 0
    fails: list[Exception] = field(default_factory=list)
    """Errors of the next creates, raised after the machine was made."""
    refuses: list[Exception] = field(default_factory=list)
    """Errors of the next creates, raised instead of making the machine."""
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    """The size and the network of each create."""
    drops_tags: bool = False
    refuses_unknown: bool = False
    """Whether it is an error to destroy a machine that there isn't."""
    listed: int = 0
    """How many lists there were."""
    state_of_new: Any = NodeState.RUNNING
    host: str = "127.0.0.1"
    port: int = 22
    console: str = ""
    type: str = "memory"
    ordered: list[Order] = field(default_factory=list)

    def create(self, order: Order) -> Node:
        if self.refuses:
            raise self.refuses.pop(0)
        self.ordered.append(order)
        number = str(len(self.nodes) + 1)
        extra = {"tags": {} if self.drops_tags else order.tags.texts}
        node = Node(
            number, order.name, self.state_of_new, [self.host], [], cast("Any", self), extra=extra
        )
        self.nodes[number] = node
        if self.fails:
            raise self.fails.pop(0)
        return node

    def list_nodes(self) -> list[Node]:
        self.listed += 1
        if self.lists_late:
            self.lists_late -= 1
            return []
        return list(self.nodes.values())

    def destroy_node(self, node: Node) -> bool:
        if self.destroys_late:
            self.destroys_late -= 1
            return False
        if self.refuses_unknown and str(node.id) not in self.nodes:
            raise ValueError("invalid id")
        self.nodes.pop(str(node.id), None)
        return True


class MemoryProvider(Provider):
    """A provider whose machines are in memory."""

    name = "memory"
    needs = ()

    def __init__(self) -> None:
        self.memory = MemoryDriver()

    def connect(self, settings: MachineSettings) -> NodeDriver:
        del settings
        return cast("NodeDriver", self.memory)

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        raise NotImplementedError

    def create(self, driver: NodeDriver, order: Order, settings: MachineSettings) -> Node:
        del driver
        self.memory.asked.append((settings.machine_size, settings.machine_network))
        return self.memory.create(order)

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        del driver
        node.extra["tags"] = {**node.extra["tags"], key: value}

    def tags(self, node: Node) -> Mapping[str, str]:
        tags: Mapping[str, str] = node.extra["tags"]
        return tags

    def port(self, node: Node) -> int:
        del node
        return self.memory.port

    def console(self, driver: NodeDriver, name: str) -> str:
        del driver, name
        return self.memory.console


QUICK = LifecyclePolicy(
    provider_patience=0.3,
    busy_pause=0.02,
    listed_timeout=0.3,
    lost_answer_timeout=0.3,
    unlisted_wait=0.1,
    gone_timeout=0.3,
    look_again=0.1,
)


def use_memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    """Make `memory` a provider for one test, and return its machines."""
    provider = MemoryProvider()
    monkeypatch.setitem(providers.PROVIDERS, "memory", provider)
    return provider.memory
