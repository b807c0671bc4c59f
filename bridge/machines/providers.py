"""Where machines come from: one table of what each provider names differently.

A machine is ordered in our words (`Order`). A provider's entry says how to log in, how its
`create_node` calls the same things, and how the tags come back from its `list_nodes`. In a cloud,
cloud-init brings the keys and the user: the same text for all, so that no key has to be kept at a
provider.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Self, cast
from urllib.parse import urlsplit

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeLocation, NodeSize
from libcloud.compute.drivers.digitalocean import DigitalOcean_v2_NodeDriver
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState

from bridge.errors import MachineRejected, SettingsError
from bridge.machines import qemu
from bridge.machines.identity import SshIdentity
from bridge.machines.settings import MachineSettings

PREFIX = "kestra-"
SHORTEST_TAG = 50
"""Linode takes no longer one."""
NETWORK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What stands on each machine of ours. Times are seconds since 1970.

    `owner` tells bridges apart that share an account: it follows from the secret, and only machines
    with our own are ours. `call` tells who made it, where two tasks make the same machine at once.
    """

    owner: str
    execution: str
    job: str
    call: str
    created: float
    deadline: float

    @property
    def texts(self) -> dict[str, str]:
        """The tags as a provider keeps them."""
        times = {"created": str(int(self.created)), "deadline": str(int(self.deadline))}
        return {f"{PREFIX}{key}": value for key, value in (asdict(self) | times).items()}

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> Tags | None:
        """The tags that a machine carries; None where it is none of a bridge's."""
        try:
            found = {field: texts[f"{PREFIX}{field}"] for field in cls.__dataclass_fields__}
            created, deadline = float(found.pop("created")), float(found.pop("deadline"))
        except (KeyError, ValueError):
            return None
        return cls(created=created, deadline=deadline, **found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A machine to be made."""

    name: str
    tags: Tags
    user: str
    identity: SshIdentity

    @property
    def user_data(self) -> str:
        """What cloud-init does at the first boot: our host key, one ordinary user with our key, and
        no other way in.
        """
        # JSON is YAML, and needs no thought about quotes.
        return "#cloud-config\n" + json.dumps(
            {
                "disable_root": True,
                "ssh_pwauth": False,
                "ssh_deletekeys": True,
                "ssh_genkeytypes": [],
                "ssh_keys": {
                    "ed25519_private": self.identity.host.private,
                    "ed25519_public": self.identity.host.public,
                },
                "users": [
                    {
                        "name": self.user,
                        "shell": "/bin/bash",
                        "lock_passwd": True,
                        "ssh_authorized_keys": [self.identity.client.public],
                    }
                ],
            },
            indent=1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One provider's words. `needs`: the settings that it can't do without."""

    connect: Callable[[MachineSettings], NodeDriver]
    options: Callable[[Order, MachineSettings], dict[str, Any]]
    """What its `create_node` is given beside name, size and image."""
    tags: Callable[[Node], Mapping[str, str]]
    needs: tuple[str, ...] = ("machine_access_secret", "machine_image", "machine_size")
    image: Callable[[NodeDriver, str], Any] = lambda driver, text: NodeImage(text, text, driver)
    """The image of that id or name. What is only handed on is for the provider to judge."""
    size: Callable[[NodeDriver, str], Any] = lambda driver, text: NodeSize(
        text, text, 0, 0, 0, 0.0, driver
    )
    nodes: Callable[[NodeDriver, str], list[Node]] = lambda driver, owner: driver.list_nodes()  # noqa: ARG005
    """All nodes that may be an owner's."""
    dead: frozenset[str] = frozenset({NodeState.TERMINATED, NodeState.ERROR})
    """States that no machine comes back from."""
    image_default: str | None = None
    size_default: str | None = None


def choose(settings: MachineSettings, *, to_create: bool = False) -> Provider:
    """The provider that the settings name.

    Raises:
        SettingsError: it is unknown, or settings that it needs are missing (those for creating only
        if that's wanted).
    """
    provider = PROVIDERS.get(settings.machine_provider)
    if provider is None:
        raise SettingsError(
            f"BRIDGE_MACHINE_PROVIDER {settings.machine_provider!a} is none of "
            f"{', '.join(sorted(PROVIDERS))}"
        )
    creating = ("machine_image", "machine_size")
    missing = [
        f"BRIDGE_{name.upper()}"
        for name in provider.needs
        if getattr(settings, name) is None and (to_create or name not in creating)
    ]
    if missing:
        raise SettingsError(f"the provider {settings.machine_provider} needs {', '.join(missing)}")
    return provider


def order_of(
    driver: NodeDriver, provider: Provider, order: Order, settings: MachineSettings
) -> dict[str, Any]:
    """All that the provider's `create_node` is given.

    Raises:
        MachineRejected: the provider has no such image or size.
    """
    return {
        "name": order.name,
        "size": provider.size(driver, settings.machine_size or provider.size_default or ""),
        "image": provider.image(driver, settings.machine_image or provider.image_default or ""),
        **provider.options(order, settings),
    }


def _secret(settings: MachineSettings) -> str:
    return (
        settings.machine_access_secret.get_secret_value() if settings.machine_access_secret else ""
    )


def _endpoint(settings: MachineSettings) -> dict[str, Any]:
    """Another address of the API, as libcloud's drivers take it."""
    if not settings.machine_endpoint:
        return {}
    parts = urlsplit(settings.machine_endpoint)
    secure = parts.scheme != "http"
    return {"host": parts.hostname, "port": parts.port or (443 if secure else 80), "secure": secure}


def _driver(name: str, *arguments: Any, **options: Any) -> NodeDriver:
    return get_driver(cast("Any", name))(*arguments, timeout=NETWORK_TIMEOUT, **options)


class _DigitalOcean(DigitalOcean_v2_NodeDriver):
    """libcloud's driver, whose own `__new__` hands all options on to `object`, which takes none."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        return object.__new__(cls)


def _choice(
    listing: Callable[[NodeDriver], list[Any]], noun: str
) -> Callable[[NodeDriver, str], Any]:
    """Look up an image or a size by its id or name."""

    def find(driver: NodeDriver, text: str) -> Any:
        items = listing(driver)
        for item in items:
            if text in (str(item.id), item.name):
                return item
        known = ", ".join(sorted({str(item.name) for item in items})[:12]) or "none at all"
        raise MachineRejected(f"no {noun} {text!a} here; there is {known}")

    return find


def _pairs(tags: Tags, separator: str = ":") -> list[str]:
    """The tags as a list of texts, for those who have no values; only a job's id may have to be
    cut.
    """
    texts = {key: re.sub(r"[^A-Za-z0-9_-]", "_", value) for key, value in tags.texts.items()}
    return [f"{key}{separator}{value}"[:SHORTEST_TAG] for key, value in texts.items()]


def _from_pairs(pairs: Any, separator: str = ":") -> dict[str, str]:
    return {
        key: value for pair in pairs or () for key, _, value in [str(pair).partition(separator)]
    }


def _ec2(settings: MachineSettings) -> NodeDriver:
    region = {"region": settings.machine_region} if settings.machine_region else {}
    # The default would be version 2, which newer regions no longer take.
    options = {"signature_version": "4", **region, **_endpoint(settings)}
    return _driver("ec2", settings.machine_access_key, _secret(settings), **options)


def _ec2_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    options = {
        "ex_metadata": order.tags.texts,
        "ex_userdata": order.user_data,
        "ex_clienttoken": f"{order.name}-{order.tags.call}",
        "ex_terminate_on_shutdown": True,
    }
    if settings.machine_network:
        options |= {"ex_subnet": SimpleNamespace(id=settings.machine_network)}
        options |= {"ex_assign_public_ip": settings.machine_address == "public"}
    if settings.machine_firewall:
        groups = "ex_security_group_ids" if settings.machine_network else "ex_security_groups"
        options |= {groups: [settings.machine_firewall]}
    return options


def _openstack(settings: MachineSettings) -> NodeDriver:
    return _driver(
        "openstack",
        settings.machine_access_key,
        _secret(settings),
        ex_force_auth_url=settings.machine_endpoint,
        ex_force_auth_version="3.x_password",
        ex_tenant_name=settings.machine_project,
        ex_force_service_region=settings.machine_region,
    )


def _openstack_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "ex_metadata": order.tags.texts,
        "ex_userdata": order.user_data,
        "ex_config_drive": True,
    }
    if settings.machine_network:
        options |= {"networks": [SimpleNamespace(id=settings.machine_network)]}
    if settings.machine_firewall:
        options |= {"ex_security_groups": [SimpleNamespace(name=settings.machine_firewall)]}
    return options


def _gce(settings: MachineSettings) -> NodeDriver:
    return _driver(
        "gce",
        settings.machine_access_key,
        _secret(settings),
        project=settings.machine_project,
        datacenter=settings.machine_region,
    )


def _gce_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    # Labels would take no capital letters, which an execution's id has.
    options: dict[str, Any] = {"ex_metadata": {**order.tags.texts, "user-data": order.user_data}}
    if settings.machine_network:
        options |= {"ex_network": settings.machine_network}
    if settings.machine_firewall:
        options |= {"ex_tags": [settings.machine_firewall]}
    if settings.machine_address == "private":
        options |= {"external_ip": None}
    return options


def _location(settings: MachineSettings) -> NodeLocation:
    region = settings.machine_region or ""
    return NodeLocation(region, region, "", cast("Any", None))


def _digitalocean_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    firewall = [settings.machine_firewall] if settings.machine_firewall else []
    return {
        "location": _location(settings),
        "ex_user_data": order.user_data,
        "ex_create_attr": {"tags": [*_pairs(order.tags), *firewall]},
    }


def _linode_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    return {
        "location": _location(settings),
        "ex_userdata": order.user_data,
        "ex_tags": _pairs(order.tags),
        "ex_authorized_keys": [order.identity.client.public],
        # It must be given, and nobody is to know it: passwords don't log in, nor does root.
        "root_pass": secrets.token_urlsafe(32),
        "ex_private_ip": settings.machine_address == "private",
    }


def _vultr_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    firewall = (
        {"ex_firewall_group_id": settings.machine_firewall} if settings.machine_firewall else {}
    )
    return {
        "location": _location(settings),
        "ex_userdata": order.user_data,
        # It has one tag alone.
        "ex_tag": ",".join(_pairs(order.tags)),
        "ex_hostname": order.name,
        **firewall,
    }


def _qemu(settings: MachineSettings) -> NodeDriver:
    qemu.register()
    if settings.machine_network not in (None, "isolated", "open"):
        raise SettingsError(
            "BRIDGE_MACHINE_NETWORK must be isolated or open for machines on this host"
        )
    driver = cast("type[qemu.QemuDriver]", get_driver(cast("Any", qemu.NAME)))
    return driver(
        settings.machine_directory,
        images=settings.machine_image_directory,
        accelerator=settings.machine_accelerator,
        network="open" if settings.machine_network == "open" else "isolated",
        reach=settings.machine_reach,
    )


def _qemu_options(order: Order, settings: MachineSettings) -> dict[str, Any]:
    del settings
    return {
        "ex_user": order.user,
        "ex_authorized_key": order.identity.client.public,
        "ex_host_key": order.identity.host.private,
        "ex_tags": order.tags.texts,
    }


_ACCOUNT = ("machine_access_key", "machine_access_secret", "machine_image", "machine_size")
_TOKEN = ("machine_access_secret", "machine_image", "machine_size", "machine_region")

PROVIDERS: Mapping[str, Provider] = {
    "ec2": Provider(
        connect=_ec2,
        options=_ec2_options,
        tags=lambda node: node.extra.get("tags") or {},
        needs=_ACCOUNT,
        nodes=lambda driver, owner: cast("Any", driver).list_nodes(
            ex_filters={f"tag:{PREFIX}owner": owner}
        ),
    ),
    "openstack": Provider(
        connect=_openstack,
        options=_openstack_options,
        tags=lambda node: node.extra.get("metadata") or {},
        needs=(*_ACCOUNT, "machine_endpoint", "machine_project"),
        image=_choice(lambda driver: driver.list_images(), "image"),
        size=_choice(lambda driver: driver.list_sizes(), "size"),
    ),
    "gce": Provider(
        connect=_gce,
        options=_gce_options,
        tags=lambda node: {
            item["key"]: item["value"]
            for item in (node.extra.get("metadata") or {}).get("items") or ()
        },
        needs=(*_ACCOUNT, "machine_project", "machine_region"),
        # Its driver looks both up by name.
        image=lambda driver, text: text,  # noqa: ARG005
        size=lambda driver, text: text,  # noqa: ARG005
    ),
    "digitalocean": Provider(
        connect=lambda settings: _DigitalOcean(
            _secret(settings), timeout=NETWORK_TIMEOUT, **_endpoint(settings)
        ),
        options=_digitalocean_options,
        tags=lambda node: _from_pairs(node.extra.get("tags")),
        needs=_TOKEN,
    ),
    "linode": Provider(
        connect=lambda settings: _driver("linode", _secret(settings), **_endpoint(settings)),
        options=_linode_options,
        tags=lambda node: _from_pairs(node.extra.get("tags")),
        needs=_TOKEN,
    ),
    "vultr": Provider(
        connect=lambda settings: _driver("vultr", _secret(settings), **_endpoint(settings)),
        options=_vultr_options,
        tags=lambda node: _from_pairs(str(node.extra.get("tag") or "").split(",")),
        needs=_TOKEN,
    ),
    qemu.NAME: Provider(
        connect=_qemu,
        options=_qemu_options,
        tags=lambda node: node.extra["tags"],
        needs=(),
        image=_choice(lambda driver: driver.list_images(), "image"),
        size=_choice(lambda driver: driver.list_sizes(), "size"),
        dead=frozenset({NodeState.STOPPED}),
        image_default=qemu.DEFAULT_IMAGE,
        size_default=qemu.DEFAULT_SIZE,
    ),
}
