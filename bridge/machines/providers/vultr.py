"""Vultr. Experimental: not tested against the real service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libcloud.compute.base import Node, NodeDriver

from bridge.machines.order import Order
from bridge.machines.providers.provider import (
    TOKEN,
    Provider,
    access_secret,
    endpoint,
    libcloud_driver,
    location,
    parse_tag_pairs,
    tag_pairs,
)
from bridge.machines.settings import MachineSettings


class Vultr(Provider):
    """Vultr. A machine there has a single tag, which holds all of ours."""

    name = "vultr"
    needs = TOKEN

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return libcloud_driver("vultr", access_secret(settings), **endpoint(settings))

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        options: dict[str, Any] = {
            "location": location(settings),
            "ex_userdata": order.user_data,
            "ex_tag": ",".join(tag_pairs(order)),
            "ex_hostname": order.name,
        }
        if settings.machine_firewall:
            options["ex_firewall_group_id"] = settings.machine_firewall
        return options

    def tags(self, node: Node) -> Mapping[str, str]:
        return parse_tag_pairs(str(node.extra.get("tag") or "").split(","))
