"""Amazon EC2. Held to the conformance suite; not tested against the real service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.drivers.ec2 import NAMESPACE, BaseEC2NodeDriver, EC2NodeDriver
from libcloud.utils.xml import findall, findtext

from bridge.errors import MachineRejected
from bridge.machines.order import PREFIX, Order
from bridge.machines.providers.provider import (
    ACCOUNT,
    NETWORK_TIMEOUT,
    Provider,
    access_secret,
    endpoint,
)
from bridge.machines.settings import MachineSettings

_REGION = re.compile(r"[a-z]{2,3}(-[a-z]+)+-[0-9]{1,2}")
_DEFAULT_REGION = "us-east-1"


class Ec2Driver(EC2NodeDriver):
    """libcloud's driver, for regions that are newer than its table, and for lists of many pages."""

    page_size = 1000

    def __init__(
        self, key: str | None, secret: str, *, region: str, host: str | None = None, **options: Any
    ) -> None:
        # Its own constructor refuses regions that aren't in its table.
        self.region_name = region
        self.token = None
        self.api_name = "ec2"
        self.country = ""
        # The driver's default is version 2, which newer regions no longer accept.
        self.signature_version = "4"
        default_host = host_of(region)
        BaseEC2NodeDriver.__init__(self, key, secret, host=host or default_host, **options)

    def ex_list_all(self, filters: Mapping[str, str]) -> list[Node]:
        """The nodes of all pages. libcloud's own list reads the first page alone."""
        params = {"Action": "DescribeInstances", "MaxResults": str(self.page_size)}
        params.update(self._build_filters(filters))
        nodes: list[Node] = []
        while True:
            answer = self.connection.request(self.path, params=dict(params)).object
            for reservation in findall(answer, "reservationSet/item", NAMESPACE):
                nodes += self._to_nodes(reservation, "instancesSet/item")
            token = findtext(answer, "nextToken", NAMESPACE)
            if not token:
                break
            params["NextToken"] = token
        addresses = self.ex_describe_addresses(nodes)
        for node in nodes:
            node.public_ips.extend(addresses[node.id])
        return nodes


def host_of(region: str) -> str:
    """The address of EC2's API in that region.

    Raises:
        MachineRejected: no region has such a name.
    """
    if not _REGION.fullmatch(region):
        raise MachineRejected(f"Invalid region: {region}")
    # https://docs.aws.amazon.com/general/latest/gr/ec2-service.html
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"ec2.{region}.{domain}"


class Ec2(Provider):
    """Amazon EC2."""

    name = "ec2"
    needs = ACCOUNT
    has_spot = True

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return Ec2Driver(
            settings.machine_access_key,
            access_secret(settings),
            region=settings.machine_region or _DEFAULT_REGION,
            timeout=NETWORK_TIMEOUT,
            **endpoint(settings),
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

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        # libcloud's own call counts from 0, where EC2's API counts from 1.
        tag = {"Tag.1.Key": key, "Tag.1.Value": value}
        request = {"Action": "CreateTags", "ResourceId.1": node.id, **tag}
        cast("Any", driver).connection.request("/", params=request)

    def tags(self, node: Node) -> Mapping[str, str] | None:
        tags: Mapping[str, str] | None = node.extra.get("tags")
        return tags

    def nodes(self, driver: NodeDriver, owner: str) -> list[Node]:
        filters = {f"tag:{PREFIX}owner": owner}
        nodes: list[Node] = cast("Any", driver).ex_list_all(filters)
        return nodes
