"""A list of dead letters: a table on a terminal, elsewhere a line for each letter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.dead_letters.output import count_of, dumps, reasons_of
from bridge.durations import format_span
from bridge.operate.dead_letters.letter import DeadLetter
from bridge.text import visible

ROWS_AT_MOST = 100
"""Rows of a table without --limit: a person reads no more."""

WIDE = 110
"""Columns of a terminal from which on flow and attempt fit beside the error."""


def print_list(
    letters: Sequence[DeadLetter], now: datetime, *, as_json: bool, queues: int, limit: int | None
) -> None:
    """Print letters of that many queues."""
    if as_json:
        for letter in letters:
            print(dumps(letter.data))
    elif sys.stdout.isatty():
        _print_table(letters, now, queues=queues, rows=limit or ROWS_AT_MOST)
    else:
        for letter in letters:
            print(_line(letter, now))


def _line(letter: DeadLetter, now: datetime) -> str:
    cells = (
        letter.name,
        letter.reason,
        letter.flow,
        letter.attempt,
        _age(letter, now),
        letter.queue,
        letter.execution,
        letter.error,
    )
    return "\t".join(str(cell or "-") for cell in cells)


def _age(letter: DeadLetter, now: datetime) -> str:
    age = letter.age(now)
    return "-" if age is None else format_span(age)


def _print_table(letters: Sequence[DeadLetter], now: datetime, *, queues: int, rows: int) -> None:
    console = Console()
    wide, several_queues = console.width >= WIDE, queues > 1
    # The error has what the others leave of the line; `show` prints all of it.
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("Job", overflow="fold", max_width=36 if wide else 24)
    if several_queues:
        table.add_column("Queue", overflow="fold", max_width=24 if wide else 12)
    table.add_column("Reason", no_wrap=True)
    if wide:
        table.add_column("Flow", overflow="fold", max_width=30)
        table.add_column("Attempt", justify="right", no_wrap=True)
    table.add_column("Age", justify="right", no_wrap=True)
    table.add_column("Error", overflow="ellipsis", no_wrap=True, ratio=1, min_width=20)
    for letter in letters[:rows]:
        cells = [letter.name]
        if several_queues:
            cells.append(letter.queue)
        cells.append(letter.reason)
        if wide:
            cells += [visible(str(letter.flow or "-")), str(letter.attempt)]
        cells += [_age(letter, now), letter.error]
        table.add_row(*map(Text, cells))
    console.print(table)
    summary = f"{count_of(len(letters), 'dead letter')}: {reasons_of(letters)}"
    if len(letters) > rows:
        summary += f"; the first {rows} are shown, --limit or --json show more"
    console.print(Text(summary, "dim"))
