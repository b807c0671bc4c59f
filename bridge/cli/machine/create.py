"""`kestra-bridge machine create`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer

from bridge.cli.common import Json, load, seconds
from bridge.cli.machine.epilogs import SETTINGS
from bridge.cli.machine.kestra import server_to_name
from bridge.cli.machine.table import print_table
from bridge.cli.signals import carry_out
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.settings import MachineSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


def _billed(machine: Machine) -> dict[str, Any]:
    """What tells later how long which machine was there. `created` is in seconds since 1970.

    `size` is empty for a machine of a version that did not note it.
    """
    return {"size": machine.tags.size, "created": int(machine.tags.created)}


@app.command(epilog=SETTINGS, short_help="Create the machine of an execution, or find it.")
def create(
    *,
    execution: Annotated[
        str, typer.Option(help="The execution's id. Each execution has one machine.")
    ],
    job: Annotated[str, typer.Option(help="The job's id, shown by `list`.")] = "",
    deadline: Annotated[
        float,
        seconds(
            help="How long the machine may live. Then it ends itself, and `reap` destroys it.",
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
    attempt: Annotated[
        int,
        typer.Option(
            help="The job's attempt. With BRIDGE_MACHINE_SPOT=first only 1 is spot.", min=1
        ),
    ] = 1,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return once the machine answers by SSH.")
    ] = False,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs", help="End standard output with the machine as Kestra's ::{…}:: line."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create the machine of an execution, or find the one that it has.

    If it is run twice, even at the same time, both runs end with the same machine. If it fails or
    is ended, it leaves no half-made machine; where it can't be certain of that, it says so. With
    --wait, a machine that does not answer in time is destroyed, also one that an earlier run made.

    Where the provider has no room or no quota, limits requests or doesn't answer, it asks again for
    BRIDGE_MACHINE_BOOT_TIMEOUT.

    If Kestra doesn't know the execution, `reap` destroys the machine once it is ten minutes old and
    two rounds have found so.
    """
    settings = load(MachineSettings, json_logs=as_json)
    machines = Machines(settings)
    # A flow passes its unset optional inputs as empty texts.
    create = partial(
        machines.create, size=size or None, image=image or None, attempt=attempt, wait=wait
    )

    async def create_for_kestra() -> Machine:
        return await create(execution, job, deadline, server=await server_to_name())

    machine = carry_out(create_for_kestra())
    if as_json:
        print(json.dumps(machine.data))
    elif outputs:
        told = {**machine.data, **_billed(machine)}
        print("::" + json.dumps({"outputs": told}) + "::")
    else:
        print_table([machine])
