"""Machines on this host, by the driver in `bridge.machines.qemu`. Tested end to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.types import NodeState

from bridge.errors import SettingsError
from bridge.machines.order import Order
from bridge.machines.providers.provider import Provider, choose_by_name
from bridge.machines.qemu import driver as qemu
from bridge.machines.qemu.command import GuestNetwork
from bridge.machines.settings import MachineSettings


class Qemu(Provider):
    """QEMU on this host."""

    name = qemu.NAME
    needs = ()
    dead_states = frozenset({NodeState.STOPPED})
    lists_at_once = True
    default_image = qemu.DEFAULT_IMAGE
    default_size = qemu.DEFAULT_SIZE

    def connect(self, settings: MachineSettings) -> NodeDriver:
        """Make the driver.

        Raises:
            SettingsError: there is no such network.
        """
        if settings.machine_network not in (None, "isolated", "open"):
            raise SettingsError(
                "BRIDGE_MACHINE_NETWORK must be isolated or open for machines on this host"
            )
        network = GuestNetwork(
            is_open=settings.machine_network == "open",
            reach=[_host_and_port(text) for text in settings.machine_reach],
        )
        return qemu.QemuDriver(
            settings.machine_directory,
            images=settings.machine_image_directory,
            network=network,
            accelerator=settings.machine_accelerator,
        )

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        del settings
        return {
            "ex_user": order.user,
            "ex_authorized_key": order.identity.client.public,
            "ex_host_key": order.identity.host.private,
            "ex_tags": order.tags.texts,
            "ex_deadline": order.tags.deadline,
        }

    def tags(self, node: Node) -> Mapping[str, str]:
        tags: Mapping[str, str] = node.extra["tags"]
        return tags

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        cast("qemu.QemuDriver", driver).ex_tag(node, key, value)

    def image(self, driver: NodeDriver, text: str) -> Any:
        return choose_by_name(driver.list_images(), "image", text)

    def size(self, driver: NodeDriver, text: str) -> Any:
        return choose_by_name(driver.list_sizes(), "size", text)

    def port(self, node: Node) -> int:
        """The port of this host that leads to the machine's sshd."""
        return int(node.extra["port"])

    def remains(self, driver: NodeDriver, name: str) -> str:
        return cast("qemu.QemuDriver", driver).remains(name)

    def console(self, driver: NodeDriver, name: str) -> str:
        return cast("qemu.QemuDriver", driver).console(name)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
