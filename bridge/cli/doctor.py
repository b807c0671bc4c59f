"""`kestra-bridge doctor`: whether an installation is set up so that the bridge's promises hold."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from bridge.cli.common import FAILED, Json, load, seconds
from bridge.cli.screen import output_console
from bridge.cli.signals import carry_out
from bridge.operate.doctor.checks import examine
from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.doctor.gather import gather
from bridge.settings import Settings

_EPILOG = """\b
Settings: the same as for 'run', on the same virtual host and Kestra (see 'run --help'). The user
of the management API needs the tag `management`.
Exit status: 0 no fault (there may be warnings); 1 a fault, or RabbitMQ can't be reached; 2 wrong
usage or settings.
"""

INDENT = 8
"""Columns of a finding's level, below which its other lines begin."""

_COUNTED_AS = {
    Level.FAULT: "faults",
    Level.WARNING: "warnings",
    Level.UNKNOWN: "undetermined",
    Level.OK: "ok",
}
_STYLES = {
    Level.FAULT: "bold red",
    Level.WARNING: "bold yellow",
    Level.UNKNOWN: "bold cyan",
    Level.OK: "green",
}


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=_EPILOG, short_help="Check an installation; name faults and what to do.")
def doctor(
    *,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Run two small flows: bridge.system/doctor-probe does nothing, and the notifier "
            "must report its end; bridge.system/doctor-kill-probe sleeps, and must end when it is "
            "killed. Both are created for this and deleted afterwards, with their executions.",
        ),
    ] = True,
    probe_timeout: Annotated[
        float,
        seconds(
            min=1,
            max=3600,
            help="How long each probe may take.",
        ),
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Check an installation, and say for each fault what is wrong, why it matters and how to fix
    it.

    It checks RabbitMQ's version, queues, time-outs, limits, policies and rights, Kestra's flows,
    the notifier and its secrets, clocks and certificates. It changes nothing except for the probes.
    """
    settings = load(Settings, json_logs=as_json)
    facts = carry_out(gather(settings, probe_patience=probe_timeout if probe else None))
    findings = examine(settings, facts)
    if as_json:
        data = {"findings": [finding.as_data() for finding in findings]}
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        _print(findings)
    if any(finding.level is Level.FAULT for finding in findings):
        raise typer.Exit(FAILED)


def _print(findings: Sequence[Finding]) -> None:
    console = output_console()
    for finding in findings:
        line = f"{finding.level:<{INDENT}}{finding.check}: {finding.what}"
        first = Text(_folded(line, console.width))
        first.stylize(_STYLES[finding.level], 0, len(finding.level))
        console.print(first)
        for name, text in (("why", finding.why), ("fix", finding.fix)):
            if text:
                console.print(Text(_folded(f"{name}: {text}", console.width, indented=True)))
    counts = Counter(finding.level for finding in findings)
    totals = [f"{name}: {counts[level]}" for level, name in _COUNTED_AS.items()]
    console.print(Text(", ".join(totals), "bold"))


def _folded(text: str, width: int, *, indented: bool = False) -> str:
    """The text on lines of that width, indented after the first one. Commands are broken only at
    spaces.
    """
    indent = " " * INDENT
    return textwrap.fill(
        text,
        width,
        initial_indent=indent if indented else "",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
