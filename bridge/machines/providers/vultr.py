"""Vultr. Held to the conformance suite; not tested against the real service."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.drivers.vultr import VultrNodeDriverV2

from bridge.machines.order import Order
from bridge.machines.providers.provider import (
    NETWORK_TIMEOUT,
    TOKEN,
    Provider,
    access_secret,
    endpoint,
    parse_tag_pairs,
    tag_pairs,
    with_pair,
)
from bridge.machines.settings import MachineSettings


class _VultrDriver(VultrNodeDriverV2):
    """libcloud's driver, with the list of tags that took the place of the single tag."""

    def list_nodes(self, ex_list_bare_metals: bool = False) -> list[Node]:
        nodes: list[Node] = super().list_nodes(ex_list_bare_metals)
        return nodes

    def ex_create(self, attributes: Mapping[str, Any]) -> Node:
        """Create a node. libcloud's own `create_node` can't send tags."""
        answer = self.connection.request(
            "/v2/instances", method="POST", data=json.dumps(attributes)
        )
        node: Node = self._to_node(answer.object["instance"])
        return node

    def _to_node(self, data: dict[str, Any]) -> Any:
        node = super()._to_node({"tag": "", **data})
        node.extra["tags"] = data.get("tags") or []
        return node


class Vultr(Provider):
    """Vultr."""

    name = "vultr"
    needs = TOKEN

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return _VultrDriver(access_secret(settings), timeout=NETWORK_TIMEOUT, **endpoint(settings))

    def create(self, driver: NodeDriver, order: Order, settings: MachineSettings) -> Node:
        return cast("_VultrDriver", driver).ex_create(self.options(order, settings))

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        options: dict[str, Any] = {
            "region": settings.machine_region,
            "plan": settings.machine_size,
            "os_id": settings.machine_image,
            "label": order.name,
            "hostname": order.name,
            "tags": tag_pairs(order),
            "user_data": base64.b64encode(order.user_data.encode()).decode(),
        }
        if settings.machine_firewall:
            options["firewall_group_id"] = settings.machine_firewall
        return options

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        tags = with_pair(node.extra.get("tags"), key, value)
        cast("_VultrDriver", driver).connection.request(
            f"/v2/instances/{node.id}", method="PATCH", data=json.dumps({"tags": tags})
        )

    def tags(self, node: Node) -> Mapping[str, str]:
        # Machines of earlier versions have all in the former single tag.
        former = str(node.extra.get("tag") or "").split(",")
        return parse_tag_pairs(node.extra.get("tags") or former)
