"""The options that say which dead letters a command is about, shared by all four commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from bridge.errors import SettingsError
from bridge.operate.dead_letters.letter import REASONS
from bridge.operate.dead_letters.selection import Selection, parse_span

Texts = list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The options as they were given."""

    reason: Annotated[
        Texts,
        typer.Option(
            "--reason",
            metavar="REASON",
            help=f"Only these: {', '.join(REASONS)}. Repeatable.",
            show_default=False,
        ),
    ] = None
    flow: Annotated[
        Texts,
        typer.Option(
            "--flow",
            metavar="PATTERN",
            help="Only of flows such as 'team/*'. Repeatable.",
            show_default=False,
        ),
    ] = None
    job: Annotated[
        Texts,
        typer.Option(
            "--job",
            metavar="PATTERN",
            help="Only of jobs such as 'day-*'. Repeatable.",
            show_default=False,
        ),
    ] = None
    error: Annotated[
        str, typer.Option("--error", metavar="TEXT", help="Only those whose error has this text.")
    ] = ""
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="SPAN", help="Only those dead for longer: 30m, 2h, 3d, 1w."
        ),
    ] = None
    newer_than: Annotated[
        str | None,
        typer.Option("--newer-than", metavar="SPAN", help="Only those dead for less long."),
    ] = None
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue",
            "--lane",
            help="Only of this queue. Without it: of all lanes.",
            show_default=False,
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many.", show_default=False)
    ] = None

    def selection(self, jobs: Sequence[str] | None = None) -> Selection:
        """The letters that these options and these job ids select.

        Raises:
            SettingsError: an option makes no sense.
        """
        for reason in self.reason or ():
            _check_reason(reason)
        for pattern in self.flow or ():
            if "/" not in pattern.strip("/"):
                raise SettingsError(
                    f"--flow {pattern!a} matches no flow: they are namespace/id, patterns "
                    "such as 'team/*'"
                )
        if "" in (*(jobs or ()), *(self.job or ())):
            raise SettingsError("a job's id can't be empty")
        older = _span("--older-than", self.older_than)
        newer = _span("--newer-than", self.newer_than)
        if older is not None and newer is not None and older >= newer:
            raise SettingsError(
                f"nothing is older than {self.older_than} and newer than {self.newer_than}"
            )
        return Selection(
            names=frozenset(jobs or ()),
            reasons=frozenset(self.reason or ()),
            flows=tuple(self.flow or ()),
            jobs=tuple(self.job or ()),
            error=self.error,
            older_than=older,
            newer_than=newer,
        )


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Filters`; it takes them as its argument `filters`."""
    names = [field.name for field in fields(Filters)]

    @wraps(command)
    def run(**options: Any) -> None:
        given = {name: options.pop(name) for name in names}
        command(filters=Filters(**given), **options)

    # typer reads a command's options from its signature.
    hints = get_type_hints(Filters, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Filters)
    ]
    own_hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "filters":
            parameters += shared
        else:
            parameters.append(parameter.replace(annotation=own_hints[parameter.name]))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _check_reason(reason: str) -> None:
    if reason in REASONS:
        return
    near = get_close_matches(reason, REASONS, n=1)
    if not near and reason:
        near = [each for each in REASONS if each.startswith(reason)]
    hint = f"; did you mean {near[0]}?" if near else f": {', '.join(REASONS)}"
    raise SettingsError(f"--reason {reason!a} is no reason{hint}")


def _span(option: str, text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        return parse_span(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None
