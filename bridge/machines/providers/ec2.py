"""Amazon EC2. Tested against moto, a stand-in for its API."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver

from bridge.machines.order import PREFIX, Order
from bridge.machines.providers.provider import (
    ACCOUNT,
    Provider,
    access_secret,
    endpoint,
    libcloud_driver,
)
from bridge.machines.settings import MachineSettings


class Ec2(Provider):
    """Amazon EC2."""

    name = "ec2"
    needs = ACCOUNT
    has_spot = True

    def connect(self, settings: MachineSettings) -> NodeDriver:
        # The driver's default is version 2, which newer regions no longer accept.
        options: dict[str, Any] = {"signature_version": "4", **endpoint(settings)}
        if settings.machine_region:
            options["region"] = settings.machine_region
        return libcloud_driver(
            "ec2", settings.machine_access_key, access_secret(settings), **options
        )

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        options: dict[str, Any] = {
            "ex_metadata": order.tags.texts,
            "ex_userdata": order.user_data,
            "ex_clienttoken": f"{order.name}-{order.tags.call}",
            "ex_terminate_on_shutdown": True,
            "ex_spot": order.spot,
        }
        firewall_option = "ex_security_groups"
        if settings.machine_network:
            options["ex_subnet"] = SimpleNamespace(id=settings.machine_network)
            options["ex_assign_public_ip"] = settings.machine_address == "public"
            # In a subnet, a group is named by its id.
            firewall_option = "ex_security_group_ids"
        if settings.machine_firewall:
            options[firewall_option] = [settings.machine_firewall]
        return options

    def tags(self, node: Node) -> Mapping[str, str] | None:
        tags: Mapping[str, str] | None = node.extra.get("tags")
        return tags

    def nodes(self, driver: NodeDriver, owner: str) -> list[Node]:
        filters = {f"tag:{PREFIX}owner": owner}
        nodes: list[Node] = cast("Any", driver).list_nodes(ex_filters=filters)
        return nodes
