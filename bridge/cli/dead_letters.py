"""`kestra-bridge dead-letters`: look at what went wrong for good, put jobs back, or throw them
away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated

import typer

from bridge.cli.app import FAILED, Json, load
from bridge.cli.dead_letters_work import Discard, Replay, Scope, carry_out, list_them, show_them
from bridge.durations import parse_span
from bridge.errors import SettingsError
from bridge.operate.dead_letters.letters import REASONS, Selection
from bridge.settings import CommandSettings, FlowSettings, KestraSettings, lane_named

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
    help="Dead letters: look at what went wrong for good, put jobs back into their queue, or "
    "throw them away.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB", help="The jobs' ids.", show_default=False)
]
Reason = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help=f"Only these: {', '.join(REASONS)}. Repeatable.",
        show_default=False,
    ),
]
Flow = Annotated[
    list[str] | None,
    typer.Option(
        "--flow",
        metavar="PATTERN",
        help="Only of flows such as 'team/*'. Repeatable.",
        show_default=False,
    ),
]
Job = Annotated[
    list[str] | None,
    typer.Option(
        "--job",
        metavar="PATTERN",
        help="Only of jobs such as 'day-*'. Repeatable.",
        show_default=False,
    ),
]
Error = Annotated[
    str, typer.Option("--error", metavar="TEXT", help="Only whose error has this text in it.")
]
Older = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="SPAN", help="Only those dead for longer: 30m, 2h, 3d, 1w."
    ),
]
Newer = Annotated[
    str | None, typer.Option("--newer-than", metavar="SPAN", help="Only those dead for less long.")
]
Queue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        "--lane",
        help="Only of this queue. Without it: of all lanes.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)]
All = Annotated[
    bool, typer.Option("--all", help="All of them, where neither jobs nor filters say which.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and do nothing.")]


@app.command("list", epilog=_EPILOG, short_help="List dead letters.")
def list_letters(
    *,
    reason: Reason = None,
    flow: Flow = None,
    job: Job = None,
    error: Error = "",
    older_than: Older = None,
    newer_than: Newer = None,
    queue: Queue = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List dead letters, in the order of their queue. Nothing is consumed, and the order stays.

    On a terminal that is a table, of 100 rows unless --limit says otherwise; elsewhere a line for
    each, with tabs between job, reason, flow, attempt, age, queue, execution and error.
    """
    selection = _selection(
        reason=reason, flow=flow, job=job, error=error, older_than=older_than, newer_than=newer_than
    )
    carry_out(list_them(_scope(selection, queue, limit, as_json=as_json)))


@app.command(epilog=_EPILOG, short_help="Show dead letters in full.")
def show(
    *,
    jobs: Jobs = None,
    reason: Reason = None,
    flow: Flow = None,
    job: Job = None,
    error: Error = "",
    older_than: Older = None,
    newer_than: Newer = None,
    queue: Queue = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show dead letters in full: why, the failed task with its last log lines, and the message.

    What Kestra knows is left out where the settings name no Kestra, and it says so where Kestra
    does not answer. Of those that a filter means at most 10 are shown, unless --limit says
    otherwise.
    """
    selection = _selection(
        jobs=jobs,
        reason=reason,
        flow=flow,
        job=job,
        error=error,
        older_than=older_than,
        newer_than=newer_than,
    )
    if selection.means_all:
        raise SettingsError(
            "which ones? give the jobs' ids, or a filter; 'dead-letters list' lists all"
        )
    limit = limit or (None if selection.names else SHOWN_AT_MOST)
    carry_out(show_them(_scope(selection, queue, limit, as_json=as_json)))


@app.command(epilog=_EPILOG, short_help="Put jobs back into their queue.")
def replay(
    *,
    jobs: Jobs = None,
    reason: Reason = None,
    flow: Flow = None,
    job: Job = None,
    error: Error = "",
    older_than: Older = None,
    newer_than: Newer = None,
    queue: Queue = None,
    limit: Limit = None,
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
    selection = _selection(
        jobs=jobs,
        reason=reason,
        flow=flow,
        job=job,
        error=error,
        older_than=older_than,
        newer_than=newer_than,
    )
    _require_aim(selection, all_=all_)
    scope = _scope(selection, queue, limit, as_json=as_json)
    command = Replay(
        scope=scope, unchecked=unchecked, discard_succeeded=discard_succeeded, dry_run=dry_run
    )
    if all_ and not (yes or dry_run) and sys.stdin.isatty():
        carry_out(command.find())
        if command.letters and not typer.confirm(command.question, err=True):
            print("nothing was put back", file=sys.stderr)
            raise typer.Exit(FAILED)
    carry_out(command.act(), command.told)
    if not command.report():
        raise typer.Exit(FAILED)


@app.command(epilog=_EPILOG, short_help="Throw dead letters away.")
def discard(
    *,
    jobs: Jobs = None,
    reason: Reason = None,
    flow: Flow = None,
    job: Job = None,
    error: Error = "",
    older_than: Older = None,
    newer_than: Newer = None,
    queue: Queue = None,
    limit: Limit = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Throw dead letters away for good. On a terminal it asks before it does."""
    selection = _selection(
        jobs=jobs,
        reason=reason,
        flow=flow,
        job=job,
        error=error,
        older_than=older_than,
        newer_than=newer_than,
    )
    _require_aim(selection, all_=all_)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise SettingsError("--yes is needed where nobody can be asked")
    command = Discard(scope=_scope(selection, queue, limit, as_json=as_json), dry_run=dry_run)
    carry_out(command.find())
    if command.letters and not dry_run:
        if not yes and not typer.confirm(command.question, err=True):
            print("nothing was discarded", file=sys.stderr)
            raise typer.Exit(FAILED)
        carry_out(command.act(), command.told)
    command.report()


def _selection(
    *,
    jobs: Sequence[str] | None = None,
    reason: Sequence[str] | None,
    flow: Sequence[str] | None,
    job: Sequence[str] | None,
    error: str,
    older_than: str | None,
    newer_than: str | None,
) -> Selection:
    """The filters, judged.

    Raises:
        SettingsError: one of them can't be meant.
    """
    for word in reason or ():
        if word not in REASONS:
            near = get_close_matches(word, REASONS, n=1) or [
                each for each in REASONS if word and each.startswith(word)
            ]
            raise SettingsError(
                f"--reason {word!a} is no reason"
                + (f"; did you mean {near[0]}?" if near else f": {', '.join(REASONS)}")
            )
    for pattern in flow or ():
        if "/" not in pattern.strip("/"):
            raise SettingsError(
                f"--flow {pattern!a} matches no flow: they are namespace/id, patterns "
                "such as 'team/*'"
            )
    if not all((*(jobs or ()), *(job or ()))):
        raise SettingsError("a job's id can't be empty")
    older, newer = _span("--older-than", older_than), _span("--newer-than", newer_than)
    if older is not None and newer is not None and older >= newer:
        raise SettingsError(f"nothing is older than {older_than} and newer than {newer_than}")
    return Selection(
        names=frozenset(jobs or ()),
        reasons=frozenset(reason or ()),
        flows=tuple(flow or ()),
        jobs=tuple(job or ()),
        error=error,
        older_than=older,
        newer_than=newer,
    )


def _span(option: str, text: str | None) -> timedelta | None:
    try:
        return None if text is None else parse_span(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None


def _require_aim(selection: Selection, *, all_: bool) -> None:
    """Whoever says nothing must not hit everything."""
    if selection.means_all and not all_:
        raise SettingsError("which ones? give the jobs' ids, a filter, or --all")
    if all_ and not selection.means_all:
        raise SettingsError("--all goes with neither jobs nor filters: which is meant?")


class _Both(FlowSettings, KestraSettings):
    """What it takes to talk to RabbitMQ and to Kestra."""


class _Where(CommandSettings):
    """Whether there is a Kestra to ask at all."""

    kestra_url: str | None = None


def _scope(selection: Selection, queue: str | None, limit: int | None, *, as_json: bool) -> Scope:
    asks_kestra = load(_Where, json_logs=as_json).kestra_url is not None
    both = load(_Both, json_logs=as_json) if asks_kestra else None
    settings = both or load(FlowSettings, json_logs=as_json)
    lanes = (
        settings.all_lanes if queue is None else (lane_named(settings, queue, option="--queue"),)
    )
    return Scope(
        settings=settings,
        kestra=both,
        lanes=lanes,
        selection=selection,
        limit=limit,
        as_json=as_json,
    )
