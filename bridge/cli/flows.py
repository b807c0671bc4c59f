"""`kestra-bridge flows`: deploy and validate the flows that ship, or the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli import signals, streams
from bridge.cli.common import Json, load
from bridge.errors import KestraRejected, SettingsError
from bridge.kestra import Kestra
from bridge.operate.flows import (
    Fate,
    FlowFile,
    Verdict,
    choose,
    deploy,
    from_paths,
    select,
    shipped,
    validate,
)
from bridge.settings import KestraSettings

_EPILOG = (
    "Needs BRIDGE_KESTRA_URL, and BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD, or "
    "BRIDGE_KESTRA_TOKEN, if Kestra asks for them. Exit codes: 0 done, 1 a flow is refused or "
    "Kestra doesn't answer, 2 wrong usage or settings."
)

app = typer.Typer(
    help="Deploy and validate Kestra flows: those that ship with the bridge, or your own.",
    epilog=_EPILOG,
    short_help="Deploy and validate Kestra flows.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        exists=True,
        metavar="[PATH]...",
        help="Files of your own flows, or folders of them, instead of the flows that "
        "ship with the bridge.",
        show_default=False,
    ),
]
Notifier = Annotated[
    bool,
    typer.Option(
        "--notifier",
        help="The notifier too, which reports each end from inside Kestra. It needs five secrets "
        "in Kestra, and an execution of its own for each job.",
    ),
]
Tls = Annotated[
    bool,
    typer.Option(
        "--tls",
        help="Take the notifier for a RabbitMQ that demands TLS: it replies through RabbitMQ's "
        "management API over HTTPS, and needs the secret BRIDGE_AMQP_API_URL in Kestra. Without "
        "--only, this asks for the notifier as --notifier does.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="NAME",
        help="Only this flow, `namespace/id` or `id`. Can be given several times.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and do nothing.")]

_STYLES = {Fate.CREATED: "green", Fate.UPDATED: "yellow", Fate.REFUSED: "bold red"}


@app.command(
    "deploy",
    epilog=_EPILOG,
    short_help="Create the flows that Kestra lacks, update those that differ.",
)
def deploy_flows(
    paths: Paths = None,
    *,
    only: Only = None,
    notifier: Notifier = False,
    tls: Tls = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Create the flows that Kestra lacks, and update those that differ.

    By default these are the flows for jobs that ship with the bridge, for the version of Kestra
    that answers. With --notifier, bridge.system/notifier is one of them: an option, with which the
    bridge learns of an end a little sooner. All flows are validated first, and none is deployed if
    one is refused. No flow is ever deleted, and only flows that the answer names are touched.
    """
    choice = _Choice(paths=paths or (), only=only or (), notifier=notifier, tls=tls)
    settings = _settings(choice)

    async def ask() -> tuple[str, list[Verdict]]:
        async with Kestra(settings) as kestra:
            version = await kestra.probe()
            return version, await deploy(kestra, choice.flows(version), dry_run=dry_run)

    _report(*signals.carry_out(ask()), as_json=as_json, dry_run=dry_run)


@app.command("validate", epilog=_EPILOG)
def validate_flows(
    paths: Paths = None,
    *,
    only: Only = None,
    notifier: Notifier = False,
    tls: Tls = False,
    as_json: Json = False,
) -> None:
    """Ask Kestra whether it would take the flows, and change nothing.

    These are the flows that `flows deploy` would deploy with the same options.
    """
    choice = _Choice(paths=paths or (), only=only or (), notifier=notifier, tls=tls)
    settings = _settings(choice)

    async def ask() -> tuple[str, list[Verdict]]:
        async with Kestra(settings) as kestra:
            version = await kestra.probe()
            return version, await validate(kestra, choice.flows(version))

    _report(*signals.carry_out(ask()), as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The flows that the command line asks for."""

    paths: Sequence[Path]
    only: Sequence[str]
    notifier: bool
    tls: bool

    def flows(self, version: str) -> list[FlowFile]:
        """These flows, for a server of that version."""
        if self.paths:
            return select(from_paths(self.paths), self.only)
        tls_alone = self.tls and not self.only
        flows = shipped(version, tls=self.tls)
        return choose(flows, self.only, notifier=self.notifier or tls_alone)


def _settings(choice: _Choice) -> KestraSettings:
    """The settings.

    Raises:
        SettingsError: they are faulty, or the options contradict each other.
    """
    for option, given in (("--tls", choice.tls), ("--notifier", choice.notifier)):
        if choice.paths and given:
            raise SettingsError(
                f"{option} chooses among the flows that ship: it can't be used with your own files"
            )
    return load(KestraSettings)


def _report(
    version: str, verdicts: Sequence[Verdict], *, as_json: bool, dry_run: bool = False
) -> None:
    """Print the verdicts.

    Raises:
        KestraRejected: a flow is refused. Each refused flow has a line of its own that says why.
    """
    if as_json:
        data = _as_data(version, verdicts, dry_run=dry_run)
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        note = ": dry run, nothing was done" if dry_run else ""
        print(f"Kestra {version}{note}")
        Console().print(_as_table(verdicts, dry_run=dry_run))
    refused = [
        f"{verdict.flow} is refused: {'; '.join(verdict.problems)}"
        for verdict in verdicts
        if verdict.problems
    ]
    if len(refused) == 1:
        raise KestraRejected(refused[0])
    if refused:
        for line in refused:
            streams.say(" ".join(line.split()))
        raise KestraRejected(f"{len(refused)} of {len(verdicts)} flows are refused")


def _as_data(version: str, verdicts: Sequence[Verdict], *, dry_run: bool) -> dict[str, Any]:
    rows = [
        {"flow": str(verdict.flow), "result": verdict.fate, "problems": verdict.problems}
        for verdict in verdicts
    ]
    return {"kestra": version, "dry_run": dry_run, "flows": rows}


def _as_table(verdicts: Sequence[Verdict], *, dry_run: bool) -> Table:
    table = Table()
    table.add_column("Flow", overflow="fold")
    table.add_column("Would be" if dry_run else "Result")
    for verdict in verdicts:
        table.add_row(
            Text(str(verdict.flow)), Text(verdict.fate, style=_STYLES.get(verdict.fate, ""))
        )
    return table
