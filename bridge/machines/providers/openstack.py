"""OpenStack. Held to the conformance suite; not tested against the real service."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from libcloud.compute.base import Node, NodeDriver

from bridge.machines.order import Order
from bridge.machines.providers.provider import (
    ACCOUNT,
    Provider,
    access_secret,
    choose_by_name,
    libcloud_driver,
)
from bridge.machines.settings import MachineSettings


class OpenStack(Provider):
    """OpenStack, with Keystone's version 3."""

    name = "openstack"
    needs = (*ACCOUNT, "machine_endpoint", "machine_project")

    def connect(self, settings: MachineSettings) -> NodeDriver:
        return libcloud_driver(
            "openstack",
            settings.machine_access_key,
            access_secret(settings),
            # The driver's default is 1.1, which reads the first page of a list alone.
            api_version="2.2",
            ex_force_auth_url=settings.machine_endpoint,
            ex_force_auth_version="3.x_password",
            ex_tenant_name=settings.machine_project,
            ex_force_service_region=settings.machine_region,
        )

    def options(self, order: Order, settings: MachineSettings) -> dict[str, Any]:
        options: dict[str, Any] = {
            "ex_metadata": order.tags.texts,
            "ex_userdata": order.user_data,
            "ex_config_drive": True,
        }
        if settings.machine_network:
            options["networks"] = [SimpleNamespace(id=settings.machine_network)]
        if settings.machine_firewall:
            options["ex_security_groups"] = [SimpleNamespace(name=settings.machine_firewall)]
        return options

    def tag(self, driver: NodeDriver, node: Node, key: str, value: str) -> None:
        metadata = {**(self.tags(node) or {}), key: value}
        cast("Any", driver).ex_set_metadata(node, metadata)

    def tags(self, node: Node) -> Mapping[str, str] | None:
        tags: Mapping[str, str] | None = node.extra.get("metadata")
        return tags

    def image(self, driver: NodeDriver, text: str) -> Any:
        return choose_by_name(driver.list_images(), "image", text)

    def size(self, driver: NodeDriver, text: str) -> Any:
        return choose_by_name(driver.list_sizes(), "size", text)
