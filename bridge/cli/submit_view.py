"""What `submit` prints: a line for each job as it comes, or a table at the end on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.screen import BAR_FROM, progress
from bridge.operate.submission.batch import Batch, JobResult
from bridge.operate.submission.jobs import GENERATED_ID
from bridge.text import visible

WIDE = 100
"""Columns of a terminal from which on the executions' ids fit beside the rest."""


@dataclass(slots=True, kw_only=True)
class Output:
    """Prints jobs and results: JSON for programs, a table at the end on a terminal, else a line for
    each job as it comes.

    A failed write doesn't stop the submission; `failure` keeps it.
    """

    as_json: bool
    queue: str
    failure: OSError | None = None

    @property
    def at_end(self) -> bool:
        """Whether results are shown together, once there are no more to come."""
        return sys.stdout.isatty() and not self.as_json

    def submitted(self, ids: Iterable[str]) -> None:
        """Print which jobs are in the queue."""
        try:
            for job in ids:
                self._line({"job": job, "queue": self.queue}, visible(job))
        except OSError as error:
            self.failure = error

    def result(self, result: JobResult) -> None:
        """Print a job's result, unless the table will show it."""
        if self.at_end:
            return
        data = result.data
        columns = (
            result.job,
            result.state,
            data.get("attempts"),
            data.get("execution"),
            result.summary,
        )
        cells = ["-" if column in (None, "") else visible(str(column)) for column in columns]
        self._line({**data, "job": result.job}, "\t".join(cells))

    def table(self, batch: Batch) -> None:
        """Print all jobs, if a person looks at them."""
        if self.at_end:
            console = Console()
            console.print(_table(batch, wide=console.width >= WIDE))

    def _line(self, data: dict[str, Any], text: str) -> None:
        # Each line is flushed, since its reader may be waiting for it, or gone.
        if self.as_json:
            print(json.dumps(data, ensure_ascii=False), flush=True)
        else:
            print(text, flush=True)


@dataclass(frozen=True, slots=True)
class Bars:
    """Progress to report: one more job is submitted, the wait begins, one more job has ended."""

    submitted: Callable[[], None]
    waiting: Callable[[], None]
    ended: Callable[[], None]


@contextmanager
def progress_bars(total: int) -> Iterator[Bars]:
    """Progress bars; shown only on a terminal, and only if there are many jobs or a wait."""
    console = Console(stderr=True)
    with progress(console, shown=console.is_terminal) as bars:
        submitted = bars.add_task("submitted", total=total, visible=total >= BAR_FROM)
        ended = bars.add_task("ended", total=total, visible=False)
        yield Bars(
            submitted=lambda: bars.advance(submitted),
            waiting=lambda: bars.update(ended, visible=True),
            ended=lambda: bars.advance(ended),
        )


def _table(batch: Batch, *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    # A generated id stays in one piece, so that it can be copied.
    generated = any(len(job.id) == GENERATED_ID for job in batch.jobs)
    table.add_column("Job", overflow="fold", min_width=GENERATED_ID if generated else None)
    table.add_column("State", overflow="fold")
    table.add_column("Attempts", overflow="fold", justify="right")
    if wide:
        table.add_column("Execution", overflow="fold")
    table.add_column("Result", overflow="fold")
    for job in batch.jobs:
        result = batch.results.get(job.id)
        if result is None:
            cells, style = ["no result yet"], "dim"
        elif result.succeeded:
            cells, style = _cells(result, wide=wide), ""
        else:
            cells, style = _cells(result, wide=wide), "red"
        table.add_row(*(Text(visible(cell), style) for cell in (job.id, *cells)))
    return table


def _cells(result: JobResult, *, wide: bool) -> list[str]:
    cells = [result.state, str(result.data.get("attempts", ""))]
    if wide:
        cells.append(str(result.data.get("execution") or ""))
    cells.append(result.summary)
    return cells
