"""`kestra-bridge machine list`."""

from __future__ import annotations

import json

import typer

from bridge.cli.common import Json, load
from bridge.cli.machine.epilogs import SETTINGS
from bridge.cli.machine.table import print_table
from bridge.cli.signals import carry_out
from bridge.machines.lifecycle import Machines
from bridge.machines.policy import IMPATIENT
from bridge.machines.settings import MachineSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("list", epilog=SETTINGS, short_help="List our machines.")
def list_(as_json: Json = False) -> None:
    """List the machines that carry our tags."""
    settings = load(MachineSettings, json_logs=as_json)
    machines = carry_out(Machines(settings, IMPATIENT).all())
    if as_json:
        print(json.dumps([machine.data for machine in machines]))
    elif machines:
        print_table(machines)
    else:
        print("no machines")
