"""`kestra-bridge machine create|list|destroy|reap`, and `run` from its own module."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import machine_run
from bridge.cli.app import FAILED, Json, load
from bridge.cli.signals import carry_out
from bridge.errors import SettingsError
from bridge.kestra import Kestra
from bridge.machines.lifecycle import Machine, Machines, Sweep
from bridge.machines.settings import MachineSettings
from bridge.settings import KestraSettings, authority

_EPILOG = (
    "Needs BRIDGE_MACHINE_SECRET, and for a cloud BRIDGE_MACHINE_PROVIDER (ec2, openstack, gce, "
    "digitalocean, linode "
    "or vultr), BRIDGE_MACHINE_ACCESS_KEY, _ACCESS_SECRET, _REGION, _IMAGE and _SIZE; without a "
    "provider, machines are "
    "QEMU's on this host. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, refused "
    "credentials among them, "
    "143 or 130 ended by a signal."
)
_REAP_EPILOG = f"Needs BRIDGE_KESTRA_URL as well, with its credentials. {_EPILOG}"


class ReapSettings(MachineSettings, KestraSettings):
    """What `reap` needs: machines, and Kestra to ask for their executions."""


commands = typer.Typer(rich_markup_mode=None)
commands.command(epilog=machine_run.EPILOG, short_help="Run a script on a machine.")(
    machine_run.run
)


@commands.command(epilog=_EPILOG, short_help="Create the machine of an execution, or find it.")
def create(
    *,
    execution: Annotated[
        str, typer.Option(help="The execution's id. There is one machine for each.")
    ],
    job: Annotated[str, typer.Option(help="The job's id, for whoever lists machines.")] = "",
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long it may live: then `reap` destroys it.",
            min=1,
            max=31_536_000,
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="Its size, instead of BRIDGE_MACHINE_SIZE.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Its image, instead of BRIDGE_MACHINE_IMAGE.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return once it answers by SSH.")] = False,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs", help="End standard output with the machine as Kestra's ::{…}:: line."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create the machine of an execution, or find the one that it has.

    Run twice, also at once, it comes to the same machine. Whenever it fails or is ended, it leaves
    none half made.

    Where Kestra doesn't know the execution, `reap` destroys the machine once it is ten minutes old.
    """
    settings = load(MachineSettings, json_logs=as_json)
    machines = Machines(settings)
    # A flow's optional inputs come as empty texts.
    made = carry_out(
        machines.create(execution, job, deadline, size=size or None, image=image or None, wait=wait)
    )
    if as_json:
        print(json.dumps(made.data))
    elif outputs:
        print("::" + json.dumps({"outputs": made.data}) + "::")
    else:
        _show([made])


@commands.command(name="list", epilog=_EPILOG, short_help="List our machines.")
def list_(as_json: Json = False) -> None:
    """List the machines that carry our tags."""
    machines = carry_out(Machines(load(MachineSettings, json_logs=as_json)).all())
    if as_json:
        print(json.dumps([machine.data for machine in machines]))
    elif machines:
        _show(machines)
    else:
        print("no machines")


@commands.command(epilog=_EPILOG, short_help="Destroy a machine.")
def destroy(
    execution: Annotated[str | None, typer.Option(help="Destroy this execution's machine.")] = None,
    name: Annotated[str | None, typer.Option(help="Destroy the machine of this name.")] = None,
    as_json: Json = False,
) -> None:
    """Destroy a machine, and return once it is gone. That there is none is no failure."""
    if bool(execution) == bool(name):
        raise SettingsError("one of --execution and --name is needed")
    settings = load(MachineSettings, json_logs=as_json)
    gone = carry_out(Machines(settings).destroy(execution=execution or None, name=name or None))
    if as_json:
        print(json.dumps({"destroyed": [machine.name for machine in gone]}))
    else:
        print(
            f"destroyed {', '.join(machine.name for machine in gone)}"
            if gone
            else "there was no machine"
        )


@commands.command(epilog=_REAP_EPILOG, short_help="Destroy machines that are no longer needed.")
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which.")] = False,
    as_json: Json = False,
) -> None:
    """Destroy every machine of ours whose execution has ended or whose deadline is past.

    Safe to run often and side by side. Machines without our tags are never touched.
    """
    settings = load(ReapSettings, json_logs=as_json)
    sweep = carry_out(_reap(settings, dry_run=dry_run))
    if as_json:
        rows = [
            {**row.machine.data, "reason": row.reason, "error": row.error} for row in sweep.reaped
        ]
        told = {
            "dry_run": dry_run,
            "reaped": rows,
            "kept": sweep.kept,
            "troubles": list(sweep.troubles),
        }
        print(json.dumps(told))
    else:
        _tell(sweep, dry_run=dry_run)
    if sweep.troubles:
        raise typer.Exit(FAILED)


async def _reap(settings: ReapSettings, *, dry_run: bool) -> Sweep:
    async with Kestra(settings) as kestra:

        async def ended(execution: str) -> bool | None:
            found = await kestra.get(execution)
            return found.state.terminal if found else None

        return await Machines(settings).reap(ended, dry_run=dry_run)


def _tell(sweep: Sweep, *, dry_run: bool) -> None:
    for row in sweep.reaped:
        if row.error is None:
            print(f"{'would destroy' if dry_run else 'destroyed'} {row.machine.name}: {row.reason}")
    for trouble in sweep.troubles:
        print(f"kestra-bridge: {trouble}", file=sys.stderr)
    if not sweep.reaped:
        print(f"nothing to destroy, {sweep.kept} kept")


def _show(machines: Sequence[Machine]) -> None:
    table = Table(
        "machine", "address", "state", "execution", "job", "deadline", box=None, pad_edge=False
    )
    for machine in machines:
        address = authority(machine.host, machine.port) if machine.host else "-"
        until = machine.deadline.astimezone().isoformat(" ", "seconds")
        cells = (
            machine.name,
            address,
            machine.state,
            machine.tags.execution,
            machine.tags.job,
            until,
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
