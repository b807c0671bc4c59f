"""Machines as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.machines.machine import Machine
from bridge.settings import authority
from bridge.text import visible

_UNBOUNDED = 100_000
"""Columns."""
_HEADINGS = ("machine", "address", "state", "execution", "job", "deadline")


def print_table(machines: Sequence[Machine]) -> None:
    """Print one row for each machine."""
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        # Folded where the terminal is too narrow: a name that is cut can't be copied.
        table.add_column(heading, overflow="fold")
    for machine in machines:
        table.add_row(*map(Text, _cells(machine)))
    console = Console()
    if not sys.stdout.isatty():
        # A pipe has no width: the table is as wide as it needs to be.
        unbounded = console.options.update(width=_UNBOUNDED)
        console = Console(width=console.measure(table, options=unbounded).maximum)
    console.print(table)


def _cells(machine: Machine) -> list[str]:
    address = authority(machine.host, machine.port) if machine.host else "-"
    cells = (
        machine.name,
        address,
        machine.state,
        machine.tags.execution,
        machine.tags.job,
        machine.deadline.astimezone().isoformat(" ", "seconds"),
    )
    # Whoever submits a job chooses its name.
    return [visible(cell) for cell in cells]
