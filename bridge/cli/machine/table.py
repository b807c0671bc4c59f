"""Machines as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.machines.machine import Machine
from bridge.settings import authority

_WIDTH_OF_A_PIPE = 200


def print_table(machines: Sequence[Machine]) -> None:
    """Print one row for each machine."""
    headings = ("machine", "address", "state", "execution", "job", "deadline")
    table = Table(*headings, box=None, pad_edge=False)
    for machine in machines:
        address = authority(machine.host, machine.port) if machine.host else "-"
        cells = [
            machine.name,
            address,
            machine.state,
            machine.tags.execution,
            machine.tags.job,
            machine.deadline.astimezone().isoformat(" ", "seconds"),
        ]
        table.add_row(*map(Text, cells))
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    Console(width=width).print(table)
