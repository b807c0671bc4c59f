"""`kestra-bridge machine destroy`."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from bridge.cli.common import Json, load, seconds
from bridge.cli.machine.epilogs import SETTINGS
from bridge.cli.signals import carry_out
from bridge.errors import SettingsError
from bridge.machines.lifecycle import Machines
from bridge.machines.settings import MachineSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=SETTINGS, short_help="Destroy a machine.")
def destroy(
    execution: Annotated[str | None, typer.Option(help="Destroy this execution's machine.")] = None,
    name: Annotated[str | None, typer.Option(help="Destroy the machine of this name.")] = None,
    created: Annotated[
        float | None,
        seconds(
            help="When it was created, in seconds since 1970, as the outputs of create say.",
            min=0,
            max=253_402_300_799,
        ),
    ] = None,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs",
            help="With --created: end standard output with the seconds that the machine was "
            "there, as Kestra's ::{…}:: line.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Destroy a machine, and return once it is gone. It is no failure if there is none.

    In a cloud it looks for 30 s before it says that there is none, since a list may be late.
    """
    if bool(execution) == bool(name):
        raise SettingsError("one of --execution and --name is needed")
    settings = load(MachineSettings, json_logs=as_json)
    destroyed = carry_out(
        Machines(settings).destroy(execution=execution or None, name=name or None)
    )
    names = [machine.name for machine in destroyed]
    if as_json:
        print(json.dumps({"destroyed": names}))
    elif names:
        print(f"destroyed {', '.join(names)}")
    else:
        print("there was no machine")
    if outputs and created:
        print("::" + json.dumps({"outputs": {"seconds": round(time.time() - created, 1)}}) + "::")
