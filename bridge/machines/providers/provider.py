"""What each provider does in its own way: the base class, with what most of them share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState

from bridge.errors import MachineRejected
from bridge.machines.order import Order
from bridge.machines.settings import MachineSettings

NETWORK_TIMEOUT = 60.0
LONGEST_TAG = 50
"""Linode accepts no longer one."""
ACCOUNT = ("machine_access_key", "machine_access_secret", "machine_image", "machine_size")
TOKEN = ("machine_access_secret", "machine_image", "machine_size", "machine_region")
_CHOICES_SHOWN = 12


class Provider(ABC):
    """One provider: how to log in, the arguments of its `create_node`, and how tags come back from
    its `list_nodes`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """The settings that it can't do without."""
    experimental: ClassVar[bool] = False
    """Whether no stand-in of its API has shown that it behaves as the others do."""
    dead_states: ClassVar[frozenset[Any]] = frozenset({NodeState.TERMINATED, NodeState.ERROR})
    """The states from which no machine comes back."""
    has_spot: ClassVar[bool] = False
    """Whether spot machines can be ordered there."""
    lists_at_once: ClassVar[bool] = False
    """Whether its list shows every machine that has been made. A cloud's may be late."""
    default_image: ClassVar[str] = ""
    default_size: ClassVar[str] = ""

    @abstractmethod
    def connect(self, settings: MachineSettings) -> NodeDriver:
        """Make its driver. Some drivers call the provider already then."""

    @abstractmethod
    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        """The arguments of its `create_node`, other than name, size and image."""

    @abstractmethod
    def tags(self, node: Node) -> Mapping[str, str] | None:
        """The tags that a node carries."""

    @abstractmethod
    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        """Write one tag to a node that exists."""

    def image(self, driver: NodeDriver, text: str) -> Any:
        """The image of that id or name. The provider itself judges whether it exists."""
        return NodeImage(text, text, driver)

    def size(self, driver: NodeDriver, text: str) -> Any:
        """The size of that id or name. The provider itself judges whether it exists."""
        return NodeSize(text, text, 0, 0, 0, 0.0, driver)

    def nodes(self, driver: NodeDriver, owner: str) -> list[Node]:
        """All nodes that may belong to that owner."""
        del owner
        nodes: list[Node] = driver.list_nodes()
        return nodes

    def port(self, node: Node) -> int:
        """The port of the node's sshd."""
        del node
        return 22

    def remains(self, driver: NodeDriver, name: str) -> str:
        """What there is of a machine that no list shows, by its name; empty if nothing is."""
        del driver, name
        return ""

    def console(self, driver: NodeDriver, name: str) -> str:
        """The last line on a machine's console, or an empty text if that can't be read."""
        del driver, name
        return ""

    def create(self, driver: NodeDriver, order: Order, settings: MachineSettings) -> Node:
        """Create the machine.

        Raises:
            MachineRejected: the provider has no such image or size.
        """
        return driver.create_node(
            name=order.name,
            size=self.size(driver, settings.machine_size or self.default_size),
            image=self.image(driver, settings.machine_image or self.default_image),
            **self.options(order, settings),
        )


def libcloud_driver(name: str, *arguments: Any, **options: Any) -> NodeDriver:
    """The libcloud driver of that name, with our time-out."""
    return get_driver(cast("Any", name))(*arguments, timeout=NETWORK_TIMEOUT, **options)


def access_secret(settings: MachineSettings) -> str:
    """The account's secret, or an empty text."""
    if settings.machine_access_secret is None:
        return ""
    return settings.machine_access_secret.get_secret_value()


def endpoint(settings: MachineSettings) -> dict[str, Any]:
    """Another address of the API, as arguments of libcloud's drivers."""
    if not settings.machine_endpoint:
        return {}
    parts = urlsplit(settings.machine_endpoint)
    secure = parts.scheme != "http"
    default_port = 443 if secure else 80
    return {"host": parts.hostname, "port": parts.port or default_port, "secure": secure}


def location(settings: MachineSettings) -> NodeLocation:
    """The region, for drivers that take an object of it."""
    region = settings.machine_region or ""
    return NodeLocation(region, region, "", cast("Any", None))


def choose_by_name(items: Sequence[Any], noun: str, text: str) -> Any:
    """The image or size of that id or name.

    Raises:
        MachineRejected: there is none; the text names those that exist.
    """
    for item in items:
        if text in (str(item.id), item.name):
            return item
    names = sorted({str(item.name) for item in items})
    known = ", ".join(names[:_CHOICES_SHOWN]) or "none at all"
    raise MachineRejected(f"no {noun} {text!a} here; there is {known}")


def tag_pairs(order: Order) -> list[str]:
    """The tags as `key:value` texts, for providers whose tags have no values.

    Of all the values, only a job's id can be too long; it is cut.
    """
    pairs = []
    for key, value in order.tags.texts.items():
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", value)
        pairs.append(f"{key}:{plain}"[:LONGEST_TAG])
    return pairs


def parse_tag_pairs(pairs: Sequence[str] | None) -> dict[str, str]:
    """The tags of `key:value` texts."""
    tags = {}
    for pair in pairs or ():
        key, _, value = str(pair).partition(":")
        tags[key] = value
    return tags


def with_pair(pairs: Sequence[str] | None, key: str, value: str) -> list[str]:
    """Those `key:value` texts, with the value of that key."""
    others = [str(pair) for pair in pairs or () if not str(pair).startswith(f"{key}:")]
    return [*others, f"{key}:{value}"]
