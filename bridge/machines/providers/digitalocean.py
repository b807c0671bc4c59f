"""DigitalOcean. Held to the conformance suite; not tested against the real service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self, cast

from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.drivers.digitalocean import DigitalOcean_v2_NodeDriver

from bridge.machines.order import Order
from bridge.machines.providers.provider import (
    NETWORK_TIMEOUT,
    TOKEN,
    Provider,
    access_secret,
    endpoint,
    location,
    parse_tag_pairs,
    tag_pairs,
)
from bridge.machines.settings import MachineSettings


class _Driver(DigitalOcean_v2_NodeDriver):
    """libcloud's driver, which takes no options of its own and drops another host's address."""

    def __init__(self, key: str, **options: Any) -> None:
        place = {name: options.pop(name) for name in ("host", "port", "secure") if name in options}
        super().__init__(key, **options)
        for name, value in place.items():
            setattr(self.connection, name, value)
        # The constructor has already connected it.
        self.connection.connect()

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        return object.__new__(cls)


class DigitalOcean(Provider):
    """DigitalOcean."""

    name = "digitalocean"
    needs = TOKEN

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return _Driver(access_secret(settings), timeout=NETWORK_TIMEOUT, **endpoint(settings))

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        tags = tag_pairs(order)
        if settings.machine_firewall:
            # A firewall there applies to all machines that carry its tag.
            tags.append(settings.machine_firewall)
        return {
            "location": location(settings),
            "ex_user_data": order.user_data,
            "ex_create_attr": {"tags": tags},
        }

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        """A tag is an object of the account there, which must exist before a machine gets it."""
        connection = cast("Any", driver).connection
        for pair in node.extra.get("tags") or ():
            if str(pair).startswith(f"{key}:"):
                connection.request(f"/v2/tags/{pair}", method="DELETE")
        name = f"{key}:{value}"
        connection.request("/v2/tags", method="POST", data=json.dumps({"name": name}))
        resource = {"resource_id": str(node.id), "resource_type": "droplet"}
        connection.request(
            f"/v2/tags/{name}/resources",
            method="POST",
            data=json.dumps({"resources": [resource]}),
        )

    def tags(self, node: Node) -> Mapping[str, str]:
        return parse_tag_pairs(node.extra.get("tags"))
