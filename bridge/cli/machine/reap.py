"""`kestra-bridge machine reap`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from bridge.cli.common import FAILED, Json, load
from bridge.cli.signals import carry_out
from bridge.kestra import Kestra
from bridge.machines import reaping
from bridge.machines.lifecycle import Machines
from bridge.machines.reaping import Sweep
from bridge.machines.settings import MachineSettings
from bridge.settings import KestraSettings


class ReapSettings(MachineSettings, KestraSettings):
    """The settings that `reap` needs: for machines, and for asking Kestra for executions."""


def reap(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which machines would be destroyed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Destroy every machine of ours whose execution has ended or whose deadline has passed.

    It is safe to run often, and several times at once. Machines without our tags are never touched.
    """
    settings = load(ReapSettings, json_logs=as_json)
    sweep = carry_out(_sweep(settings, dry_run=dry_run))
    if as_json:
        print(json.dumps({"dry_run": dry_run, **_data(sweep)}))
    else:
        _print(sweep, dry_run=dry_run)
    if sweep.troubles:
        raise typer.Exit(FAILED)


async def _sweep(settings: ReapSettings, *, dry_run: bool) -> Sweep:
    async with Kestra(settings) as kestra:

        async def ended(execution: str) -> bool | None:
            found = await kestra.get(execution)
            return found.state.terminal if found else None

        return await reaping.reap(Machines(settings), ended, dry_run=dry_run)


def _data(sweep: Sweep) -> dict[str, Any]:
    rows = [{**row.machine.data, "reason": row.reason, "error": row.error} for row in sweep.reaped]
    return {"reaped": rows, "kept": sweep.kept, "troubles": list(sweep.troubles)}


def _print(sweep: Sweep, *, dry_run: bool) -> None:
    done = "would destroy" if dry_run else "destroyed"
    for row in sweep.reaped:
        if row.error is None:
            print(f"{done} {row.machine.name}: {row.reason}")
    for trouble in sweep.troubles:
        print(f"kestra-bridge: {trouble}", file=sys.stderr)
    if not sweep.reaped:
        print(f"nothing to destroy, {sweep.kept} kept")
