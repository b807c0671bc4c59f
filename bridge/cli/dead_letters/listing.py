"""A list of dead letters: a table on a terminal, elsewhere a line for each letter."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.dead_letters.output import dumps, in_words
from bridge.cli.dead_letters.scope import count_of
from bridge.operate.dead_letters.letter import DeadLetter
from bridge.operate.dead_letters.selection import format_span

ROWS_AT_MOST = 100
"""Rows of a table without --limit: a person reads no more."""

WIDE = 110
"""Columns of a terminal from which on flow and attempt fit beside the error."""

SPOOLED = 1_000_000
"""Characters of lines to keep in memory; more go to a temporary file."""


@dataclass(slots=True, kw_only=True)
class Listing:
    """Collects letters, to print them at the end: a slow reader must not keep them held.

    Memory is bounded for any number of letters: on a terminal only the rows to show are kept,
    elsewhere the lines are in a temporary file.
    """

    lines: IO[str]
    now: datetime
    as_json: bool
    as_table: bool
    limit: int
    by_reason: Counter[str] = field(default_factory=Counter)
    rows: list[DeadLetter] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of letters."""
        return self.by_reason.total()

    def add(self, letter: DeadLetter) -> None:
        """Add a letter."""
        self.by_reason[letter.reason] += 1
        if not self.as_table:
            self.lines.write(self._line(letter) + "\n")
        elif len(self.rows) < self.limit:
            self.rows.append(letter)

    def print(self, *, queues: int) -> None:
        """Print the letters of that many queues."""
        if self.as_table:
            if self.total:
                self._print_table(queues=queues)
            return
        self.lines.seek(0)
        shutil.copyfileobj(self.lines, sys.stdout)
        sys.stdout.flush()

    def _line(self, letter: DeadLetter) -> str:
        if self.as_json:
            return dumps(letter.data)
        cells = (
            letter.name,
            letter.reason,
            letter.flow,
            letter.attempt,
            self._age(letter),
            letter.queue,
            letter.execution,
            letter.error,
        )
        return "\t".join(str(cell or "-") for cell in cells)

    def _age(self, letter: DeadLetter) -> str:
        age = letter.age(self.now)
        return "-" if age is None else format_span(age)

    def _print_table(self, *, queues: int) -> None:
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
        for letter in self.rows:
            cells = [letter.name]
            if several_queues:
                cells.append(letter.queue)
            cells.append(letter.reason)
            if wide:
                cells += [str(letter.flow or "-"), str(letter.attempt)]
            cells += [self._age(letter), letter.error]
            table.add_row(*map(Text, cells))
        console.print(table)
        summary = f"{count_of(self.total, 'dead letter')}: {in_words(self.by_reason)}"
        if self.total > len(self.rows):
            summary += f"; the first {len(self.rows)} are shown, --limit or --json show more"
        console.print(Text(summary, "dim"))


@contextmanager
def listing(*, as_json: bool, now: datetime, queues: int, limit: int | None) -> Iterator[Listing]:
    """A listing that is printed when the context ends without an error."""
    with tempfile.SpooledTemporaryFile(SPOOLED, "w+", encoding="utf-8") as lines:
        output = Listing(
            lines=lines,
            now=now,
            as_json=as_json,
            as_table=sys.stdout.isatty() and not as_json,
            limit=limit or ROWS_AT_MOST,
        )
        yield output
        output.print(queues=queues)
