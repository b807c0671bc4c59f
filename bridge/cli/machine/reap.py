"""`kestra-bridge machine reap`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.common import FAILED, Json, load
from bridge.cli.machine.epilogs import SETTINGS_OF_REAP
from bridge.cli.machine.kestra import server_that_is_asked
from bridge.cli.signals import carry_out
from bridge.kestra import Kestra
from bridge.machines import reaping
from bridge.machines.lifecycle import Machines
from bridge.machines.metrics import write_metrics
from bridge.machines.reaping import Sweep
from bridge.machines.settings import MachineSettings
from bridge.settings import KestraSettings


class ReapSettings(MachineSettings, KestraSettings):
    """The settings that `reap` needs: for machines, and for asking Kestra for executions."""


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=SETTINGS_OF_REAP, short_help="Destroy machines that are no longer needed.")
def reap(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which machines would be destroyed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Destroy every machine of ours whose execution has ended or whose deadline has passed.

    A machine whose execution Kestra doesn't know is marked first, and destroyed by a later round
    that doesn't find the execution either. If more than half of the running machines are unknown,
    none of them is destroyed, and the command fails.

    It is safe to run often, and several times at once. Machines without our tags are never touched,
    and those of another Kestra only at their deadline.
    """
    settings = load(ReapSettings, json_logs=as_json)
    sweep = carry_out(_sweep(settings, dry_run=dry_run))
    if settings.machine_metrics_file and not dry_run:
        sweep = measured(sweep, settings.machine_metrics_file)
    if as_json:
        print(json.dumps({"dry_run": dry_run, **_data(sweep)}))
    else:
        _print(sweep, dry_run=dry_run)
    if sweep.troubles:
        raise typer.Exit(FAILED)


def measured(sweep: Sweep, file: Path) -> Sweep:
    """The sweep, with its metrics written to the file. If they can't be, that is a trouble."""
    try:
        write_metrics(sweep, file, now=time.time())
    except OSError as error:
        trouble = f"can't write BRIDGE_MACHINE_METRICS_FILE {file}: {error.strerror}"
        return replace(sweep, troubles=[*sweep.troubles, trouble])
    return sweep


async def _sweep(settings: ReapSettings, *, dry_run: bool) -> Sweep:
    async with Kestra(settings) as kestra:

        async def ended(execution: str) -> bool | None:
            found = await kestra.get(execution)
            return found.state.terminal if found else None

        server = await server_that_is_asked(kestra)
        return await reaping.reap(Machines(settings), ended, server=server, dry_run=dry_run)


def _data(sweep: Sweep) -> dict[str, Any]:
    rows = [{**row.machine.data, "reason": row.reason, "error": row.error} for row in sweep.reaped]
    return {
        "reaped": rows,
        "kept": sweep.kept,
        "marked": [machine.name for machine in sweep.marked],
        "foreign": sweep.foreign,
        "refused": sweep.refused,
        "troubles": list(sweep.troubles),
    }


def _print(sweep: Sweep, *, dry_run: bool) -> None:
    done = "would destroy" if dry_run else "destroyed"
    for row in sweep.reaped:
        if row.error is None:
            print(f"{done} {row.machine.name}: {row.reason}")
    for machine in sweep.marked:
        print(
            f"marked {machine.name}: Kestra doesn't know execution {machine.tags.execution}, "
            "and the next round destroys it if that stays so"
        )
    for trouble in sweep.troubles:
        print(f"kestra-bridge: {trouble}", file=sys.stderr)
    if not sweep.reaped:
        print(f"nothing to destroy, {sweep.kept} kept")
