"""The commands of `kestra-bridge machine`, in the order of the help."""

from __future__ import annotations

import typer

from bridge.cli.machine.create import create
from bridge.cli.machine.destroy import destroy
from bridge.cli.machine.list import list_
from bridge.cli.machine.reap import reap
from bridge.cli.machine.run import EPILOG as RUN_EPILOG
from bridge.cli.machine.run import run

_SETTINGS = (
    "Needs BRIDGE_MACHINE_SECRET and BRIDGE_MACHINE_PROVIDER: qemu for machines on this host, or a "
    "cloud (ec2, openstack, gce, digitalocean, linode or vultr; gce is experimental) with "
    "BRIDGE_MACHINE_ACCESS_KEY, _ACCESS_SECRET, _REGION, _IMAGE and _SIZE. Exit codes: 0 done, 1 "
    "failed, 2 wrong usage or settings, which includes refused credentials, 143 or 130 ended by a "
    "signal."
)
_REAP_SETTINGS = f"Needs BRIDGE_KESTRA_URL as well, with its credentials. {_SETTINGS}"

commands = typer.Typer(rich_markup_mode=None)
commands.command(epilog=RUN_EPILOG, short_help="Run a script on a machine.")(run)
commands.command(epilog=_SETTINGS, short_help="Create the machine of an execution, or find it.")(
    create
)
commands.command(name="list", epilog=_SETTINGS, short_help="List our machines.")(list_)
commands.command(epilog=_SETTINGS, short_help="Destroy a machine.")(destroy)
commands.command(epilog=_REAP_SETTINGS, short_help="Destroy machines that are no longer needed.")(
    reap
)
