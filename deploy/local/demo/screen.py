"""How the demo shows what goes on and what came of it, on any width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from deploy.local.demo.jobs import Case
from deploy.local.demo.verdict import Check, Look, Verdict

WIDE = 140
OTHER_COLUMNS = 113
"""What the columns beside the error take."""


def live_view(cases: Iterable[Case], looks: Mapping[str, Look], machines: str, width: int) -> Group:
    """The jobs at one moment, and a line on machines."""
    wide = width >= WIDE
    table = _table(
        ("Job", "Priority", *(("What it does",) if wide else ()), "Attempt", "State", "Execution")
    )
    for case in cases:
        look = looks[case.id]
        what = (case.what,) if wide else ()
        cells = (
            case.id,
            str(case.priority),
            *what,
            str(look.attempt or ""),
            look.state,
            look.execution or "",
        )
        table.add_row(*(Text(cell, _colour(look.state)) for cell in cells))
    return Group(
        table,
        *([Text(f"\n{machines}", "dim", overflow="ellipsis", no_wrap=True)] if machines else ()),
    )


def report(console: Console, verdicts: Sequence[Verdict], checks: Sequence[Check]) -> None:
    """What came of it all."""
    console.print(verdict_table(verdicts, console.width))
    console.print()
    if any(each.case.on_machine for each in verdicts):
        console.print(returned_table(verdicts))
        console.print()
    for each in verdicts:
        for fault in each.faults:
            console.print(Text(f"✗ {each.case.id}: {fault}", "bold red"))
    for check in checks:
        console.print(
            Text(
                f"{'✓' if check.ok else '✗'} {check.what} ({check.seen})",
                "" if check.ok else "bold red",
            )
        )


def verdict_table(verdicts: Sequence[Verdict], width: int) -> Table:
    """What became of each job."""
    wide = width >= WIDE
    table = _table(
        (
            "Job",
            "Prio",
            *(("What it does",) if wide else ()),
            "Expected",
            "Became",
            "",
            *(("Error",) if wide else ()),
        )
    )
    for each in verdicts:
        case, became = each.case, str(each.ended or "unsettled")
        what, error = (
            ((case.what,), (_clipped(each.error or "", width - OTHER_COLUMNS),))
            if wide
            else ((), ())
        )
        mark = "✓" if each.ok else "✗"
        cells = (case.id, str(case.priority), *what, str(case.expected), became, mark, *error)
        table.add_row(*(Text(cell, "" if each.ok else "bold red") for cell in cells))
    return table


def returned_table(verdicts: Iterable[Verdict]) -> Table:
    """What the jobs on machines brought back: output, files, and why they failed."""
    table = _table(("On a machine", "From", "What came back"))
    for each in verdicts:
        if not each.case.on_machine:
            continue
        lines = [
            ("its output", " | ".join(each.returned.said) or "nothing"),
            *((name, " | ".join(text.splitlines())) for name, text in each.returned.files.items()),
            *([("its error", each.error)] if each.error else ()),
        ]
        for number, (source, text) in enumerate(lines):
            table.add_row(*(Text(cell) for cell in ("" if number else each.case.id, source, text)))
    return table


def _clipped(text: str, width: int) -> str:
    """The beginning of an error, which says what happened."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        numeric = heading in ("Priority", "Prio", "Attempt")
        table.add_column(
            heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    return table


def _colour(state: str) -> str:
    if state.startswith("dead"):
        return "red"
    if state.endswith("done"):
        return "green"
    return "dim" if state == "in the queue" else "yellow" if "again" in state else ""
