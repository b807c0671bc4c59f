"""What the commands' output has in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bridge.text import visible

NAMED_AT_MOST = 10
BAR_FROM = 20
"""Steps from which on a progress bar is worth showing."""

UNLIMITED = 1000
"""Columns of a screen that is a file or a pipe: it has no right edge, so nothing may be cut or
folded."""


def output_console() -> Console:
    """Standard output, as wide as the terminal, or without limit if it is none."""
    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED)


def named(names: Sequence[str]) -> str:
    """The names in one line; of many only the first ones, and how many more there are."""
    text = ", ".join(map(visible, names[:NAMED_AT_MOST]))
    more = len(names) - NAMED_AT_MOST
    return f"{text} and {more} more" if more > 0 else text


def progress(console: Console, *, shown: bool) -> Progress:
    """Progress bars that vanish when they are done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not shown,
    )


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar, and a function to call for each step. It is shown only on a terminal, and
    only for many steps.
    """
    console = Console(stderr=True)
    with progress(console, shown=console.is_terminal and total >= BAR_FROM) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)
