"""What the help of the machine commands ends with."""

from __future__ import annotations

SETTINGS = (
    "Needs BRIDGE_MACHINE_SECRET and BRIDGE_MACHINE_PROVIDER: qemu for machines on this host, or a "
    "cloud (ec2, openstack, gce, digitalocean, linode or vultr; gce is experimental) with "
    "BRIDGE_MACHINE_ACCESS_KEY, _ACCESS_SECRET, _REGION, _IMAGE and _SIZE. Exit codes: 0 done, 1 "
    "failed, 2 wrong usage or settings, which includes refused credentials, 143, 130 or 129 ended "
    "by a signal."
)
SETTINGS_OF_REAP = f"Needs BRIDGE_KESTRA_URL as well, with its credentials. {SETTINGS}"
