"""`kestra-bridge doctor`: whether an installation is set up so that the bridge's promises hold."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bridge.cli.app import FAILED, Json, app, load
from bridge.cli.signals import carry_out
from bridge.operate.doctor.checks import examine
from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.doctor.gather import gather
from bridge.settings import Settings

UNLIMITED = 1000
"""Columns of a screen that is a file or a pipe."""

_EPILOG = """\b
Settings: those that the bridge runs with, on the same virtual host and the same Kestra (see 'run
--help'); the management API's user needs the tag `management`.
Exit status: 0 no fault (there may be warnings); 1 a fault, or RabbitMQ can't be reached; 2 wrong
usage or settings.
"""

INDENT = 8

_NAMES = {
    Level.FAULT: "faults",
    Level.WARNING: "warnings",
    Level.UNKNOWN: "not to be seen from here",
    Level.OK: "ok",
}
_STYLES = {
    Level.FAULT: "bold red",
    Level.WARNING: "bold yellow",
    Level.UNKNOWN: "bold cyan",
    Level.OK: "green",
}


@app.command(epilog=_EPILOG, short_help="Check an installation; name faults and what to do.")
def doctor(
    *,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Run two small flows: bridge.system/doctor-probe does nothing, and the notifier "
            "must tell its end; "
            "bridge.system/doctor-kill-probe sleeps, and must end when it is killed. Both are "
            "made for it and deleted "
            "afterwards, with their executions.",
        ),
    ] = True,
    probe_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long each probe may take.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Check an installation, and say of each fault what is wrong, why it matters and how to fix it.

    It looks at RabbitMQ's version, queues, time-outs, limits, policies and rights, at Kestra's
    flows, the notifier and its secrets, at clocks and certificates. It changes nothing but for the
    probes.
    """
    settings = load(Settings, json_logs=as_json)
    findings = examine(
        settings, carry_out(gather(settings, probe_patience=probe_timeout if probe else None))
    )
    if as_json:
        print(
            json.dumps(
                {"findings": [finding.as_data() for finding in findings]},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        _print(findings)
    if any(finding.level is Level.FAULT for finding in findings):
        raise typer.Exit(FAILED)


def _print(findings: Sequence[Finding]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=UNLIMITED)
    for finding in findings:
        first = Text(
            _folded(f"{finding.level:<{INDENT}}{finding.check}: {finding.what}", console.width)
        )
        first.stylize(_STYLES[finding.level], 0, len(finding.level))
        console.print(first)
        for name, text in (("why", finding.why), ("fix", finding.fix)):
            if text:
                console.print(Text(_folded(f"{name}: {text}", console.width, indented=True)))
    counts = Counter(finding.level for finding in findings)
    console.print(
        Text(", ".join(f"{name}: {counts[level]}" for level, name in _NAMES.items()), "bold")
    )


def _folded(text: str, width: int, *, indented: bool = False) -> str:
    """Text on lines of that width, which begin below what follows a finding's level; no command is
    broken in a word.
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
