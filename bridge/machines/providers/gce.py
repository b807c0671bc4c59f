"""Google Compute Engine. Experimental: not tested against the real service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver

from bridge.machines.order import Order
from bridge.machines.providers.provider import ACCOUNT, Provider, access_secret, libcloud_driver
from bridge.machines.settings import MachineSettings


class Gce(Provider):
    """Google Compute Engine."""

    name = "gce"
    experimental = True
    needs = (*ACCOUNT, "machine_project", "machine_region")
    has_spot = True

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return libcloud_driver(
            "gce",
            settings.machine_access_key,
            access_secret(settings),
            project=settings.machine_project,
            datacenter=settings.machine_region,
        )

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        # Metadata, not labels: those take no capital letters, which an execution's id has.
        metadata = {**order.tags.texts, "user-data": order.user_data}
        options: dict[str, Any] = {"ex_metadata": metadata, "ex_preemptible": order.spot}
        if settings.machine_network:
            options["ex_network"] = settings.machine_network
        if settings.machine_firewall:
            options["ex_tags"] = [settings.machine_firewall]
        if settings.machine_address == "private":
            options["external_ip"] = None
        return options

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        metadata = {**self.tags(node), key: value}
        cast("Any", driver).ex_set_node_metadata(node, metadata)

    def tags(self, node: Node) -> Mapping[str, str]:
        tags = {}
        metadata = node.extra.get("metadata") or {}
        for item in metadata.get("items") or ():
            tags[item["key"]] = item["value"]
        return tags

    def image(self, driver: NodeDriver, text: str) -> Any:
        """The name itself: the driver looks it up."""
        del driver
        return text

    def size(self, driver: NodeDriver, text: str) -> Any:
        """The name itself: the driver looks it up."""
        del driver
        return text
