"""Linode. Held to the conformance suite; not tested against the real service."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, cast

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
    with_pair,
)
from bridge.machines.settings import MachineSettings


class Linode(Provider):
    """Linode. It has no setting for a firewall: a machine's port 22 is open to everyone."""

    name = "linode"
    needs = TOKEN

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return libcloud_driver("linode", access_secret(settings), **endpoint(settings))

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        return {
            "location": location(settings),
            "ex_userdata": order.user_data,
            "ex_tags": tag_pairs(order),
            "ex_authorized_keys": [order.identity.client.public],
            # The API demands a password. Nobody learns it: neither passwords nor root can log in.
            "root_pass": secrets.token_urlsafe(32),
            "ex_private_ip": settings.machine_address == "private",
        }

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        tags = with_pair(node.extra.get("tags"), key, value)
        cast("Any", driver).connection.request(
            f"/v4/linode/instances/{node.id}", method="PUT", data=json.dumps({"tags": tags})
        )

    def tags(self, node: Node) -> Mapping[str, str]:
        return parse_tag_pairs(node.extra.get("tags"))
