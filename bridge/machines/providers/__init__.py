"""Where machines come from: one module for each provider.

A machine is ordered in our own terms (`bridge.machines.order`). A provider's class translates them
into its driver's. In a cloud, cloud-init sets the keys and makes the user: the user data is the
same for all clouds, and no key has to be stored at a provider.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.errors import SettingsError
from bridge.machines.providers.digitalocean import DigitalOcean
from bridge.machines.providers.ec2 import Ec2
from bridge.machines.providers.gce import Gce
from bridge.machines.providers.linode import Linode
from bridge.machines.providers.openstack import OpenStack
from bridge.machines.providers.provider import Provider
from bridge.machines.providers.qemu import Qemu
from bridge.machines.providers.vultr import Vultr
from bridge.machines.settings import MachineSettings

__all__ = ["PROVIDERS", "Provider", "choose"]

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (Qemu(), Ec2(), OpenStack(), Gce(), DigitalOcean(), Linode(), Vultr())
}
_FOR_CREATING = ("machine_image", "machine_size")


def choose(settings: MachineSettings, *, to_create: bool = False) -> Provider:
    """The provider that the settings name.

    Raises:
        SettingsError: it is unknown, has no spot machines, or lacks settings that it needs. Those
            that only creating needs count with `to_create`.
    """
    name = settings.machine_provider
    known = ", ".join(sorted(PROVIDERS))
    if name is None:
        raise SettingsError(
            "BRIDGE_MACHINE_PROVIDER is not set: qemu for machines on this host, or a cloud, of "
            f"{known}"
        )
    provider = PROVIDERS.get(name)
    if provider is None:
        raise SettingsError(f"BRIDGE_MACHINE_PROVIDER must be one of {known}, not {name!a}")
    if settings.machine_spot != "off" and not provider.has_spot:
        raise SettingsError(
            f"BRIDGE_MACHINE_SPOT must be off: {provider.name} has no spot machines"
        )
    missing = []
    for setting in provider.needs:
        needed = to_create or setting not in _FOR_CREATING
        if needed and getattr(settings, setting) is None:
            missing.append(f"BRIDGE_{setting.upper()}")
    if missing:
        raise SettingsError(f"the provider {name} needs {', '.join(missing)}")
    return provider
