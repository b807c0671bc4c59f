"""The commands of `kestra-bridge dead-letters` with their options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bridge.cli.common import FAILED, Json, load
from bridge.cli.dead_letters.discard import DiscardCommand
from bridge.cli.dead_letters.filters import Filters, with_filters
from bridge.cli.dead_letters.look import list_letters, show_letters
from bridge.cli.dead_letters.replay import ReplayCommand
from bridge.cli.dead_letters.scope import Scope, carry_out
from bridge.errors import SettingsError
from bridge.operate.dead_letters.selection import Selection
from bridge.settings import CommandSettings, FlowSettings, KestraSettings, Lane, lane_named

SHOWN_AT_MOST = 10

_EPILOG = """\b
Examples:
  kestra-bridge dead-letters list --reason failed --newer-than 2h
  kestra-bridge dead-letters show report-17
  kestra-bridge dead-letters replay --flow 'company.team/*' --dry-run
  kestra-bridge dead-letters discard --reason invalid_message --older-than 30d --yes

Needs BRIDGE_AMQP_URL, and BRIDGE_QUEUE or BRIDGE_LANES where they differ from the defaults; for
what Kestra knows BRIDGE_KESTRA_URL with its credentials. Exit codes: 0 done, 1 failed, 2 wrong
usage or settings, 130 interrupted.
"""

app = typer.Typer(
    help="Dead letters: look at jobs that failed for good, put them back into their queue, or "
    "throw them away.",
    epilog=_EPILOG,
    short_help="Look at dead letters, replay or discard them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB", help="The jobs' ids.", show_default=False)
]
All = Annotated[
    bool, typer.Option("--all", help="All of them, where neither jobs nor filters say which.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and do nothing.")]


@app.command("list", epilog=_EPILOG, short_help="List dead letters.")
@with_filters
def list_(*, filters: Filters, as_json: Json = False) -> None:
    """List dead letters, in the order of their queue. Nothing is consumed, and the order stays.

    On a terminal this prints a table, of 100 rows unless --limit says otherwise; elsewhere a line
    for each letter, with tabs between job, reason, flow, attempt, age, queue, execution and error.
    """
    carry_out(list_letters(_scope(filters, filters.selection(), as_json=as_json)))


@app.command(epilog=_EPILOG, short_help="Show dead letters in full.")
@with_filters
def show(*, jobs: Jobs = None, filters: Filters, as_json: Json = False) -> None:
    """Show dead letters in full: why, the failed task with its last log lines, and the message.

    Without a Kestra in the settings its facts are left out, and if Kestra does not answer, the
    output says so. Of the letters that filters select, at most 10 are shown unless --limit says
    otherwise.
    """
    selection = filters.selection(jobs)
    if selection.means_all:
        raise SettingsError(
            "which ones? give the jobs' ids, or a filter; 'dead-letters list' lists all"
        )
    default_limit = None if selection.names else SHOWN_AT_MOST
    scope = _scope(filters, selection, default_limit=default_limit, as_json=as_json)
    carry_out(show_letters(scope))


@app.command(epilog=_EPILOG, short_help="Put jobs back into their queue.")
@with_filters
def replay(
    *,
    jobs: Jobs = None,
    filters: Filters,
    all_: All = False,
    discard_succeeded: Annotated[
        bool,
        typer.Option(
            "--discard-succeeded",
            help="Throw away letters whose execution has succeeded meanwhile.",
        ),
    ] = False,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--unchecked",
            help="Don't ask Kestra whether a job has succeeded or runs again meanwhile.",
        ),
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put jobs back into their queue, each as its next attempt, with its priority and a fresh
    budget of attempts.

    A job whose execution somebody restarted or replayed in Kestra is left alone if that has
    succeeded or still runs. An invalid message is judged anew, and left where it is unless it has
    become valid: it would only come back. So is one whose flow was not allowed, where
    BRIDGE_ALLOWED_FLOWS or the lanes' flows are set here.

    On a terminal --all asks first.

    It can be stopped at any point: no job is lost, and when it is run again, each is back once.
    """
    selection = _required(filters.selection(jobs), all_=all_)
    command = ReplayCommand(
        scope=_scope(filters, selection, as_json=as_json),
        unchecked=unchecked,
        discard_succeeded=discard_succeeded,
        dry_run=dry_run,
    )
    if all_ and not (yes or dry_run) and sys.stdin.isatty():
        carry_out(command.find())
        if command.letters and not typer.confirm(command.question, err=True):
            print("nothing was put back", file=sys.stderr)
            raise typer.Exit(FAILED)
    carry_out(command.act(), command.progress)
    if not command.report():
        raise typer.Exit(FAILED)


@app.command(epilog=_EPILOG, short_help="Throw dead letters away.")
@with_filters
def discard(
    *,
    jobs: Jobs = None,
    filters: Filters,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Throw dead letters away for good. On a terminal it asks before it does."""
    selection = _required(filters.selection(jobs), all_=all_)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise SettingsError("--yes is needed where nobody can be asked")
    command = DiscardCommand(scope=_scope(filters, selection, as_json=as_json), dry_run=dry_run)
    carry_out(command.find())
    if command.letters and not dry_run:
        if not yes and not typer.confirm(command.question, err=True):
            print("nothing was discarded", file=sys.stderr)
            raise typer.Exit(FAILED)
        carry_out(command.act(), command.progress)
    command.report()


def _required(selection: Selection, *, all_: bool) -> Selection:
    """The selection, which must be made, or declared to be all: no command hits everything by
    default.
    """
    if selection.means_all and not all_:
        raise SettingsError("which ones? give the jobs' ids, a filter, or --all")
    if all_ and not selection.means_all:
        raise SettingsError("--all goes with neither jobs nor filters: which is meant?")
    return selection


class _Both(FlowSettings, KestraSettings):
    """The settings for RabbitMQ and for Kestra."""


class _Where(CommandSettings):
    """Whether the settings name a Kestra."""

    kestra_url: str | None = None


def _scope(
    filters: Filters, selection: Selection, *, default_limit: int | None = None, as_json: bool
) -> Scope:
    settings: FlowSettings
    kestra: KestraSettings | None = None
    if load(_Where, json_logs=as_json).kestra_url is None:
        settings = load(FlowSettings, json_logs=as_json)
    else:
        settings = kestra = load(_Both, json_logs=as_json)
    lanes: Sequence[Lane] = settings.all_lanes
    if filters.queue is not None:
        lanes = (lane_named(settings, filters.queue, option="--queue"),)
    return Scope(
        settings=settings,
        kestra=kestra,
        lanes=lanes,
        selection=selection,
        limit=filters.limit or default_limit,
        as_json=as_json,
    )
