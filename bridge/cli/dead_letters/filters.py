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

from bridge.durations import parse_span
from bridge.errors import SettingsError
from bridge.operate.dead_letters.letter import REASONS
from bridge.operate.dead_letters.selection import Selection

Text = str | None
Texts = list[str] | None


def _option(*names: str, help: str, metavar: str | None = None, min: int | None = None) -> Any:  # noqa: A002 (as typer calls them)
    return typer.Option(*names, help=help, metavar=metavar, min=min, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The options as they were given."""

    reason: Annotated[
        Texts,
        _option("--reason", metavar="REASON", help=f"Only {', '.join(REASONS)}. Repeatable."),
    ] = None
    flow: Annotated[
        Texts,
        _option("--flow", metavar="PATTERN", help="Only flows such as 'team/*'. Repeatable."),
    ] = None
    job: Annotated[
        Texts, _option("--job", metavar="PATTERN", help="Only jobs such as 'day-*'. Repeatable.")
    ] = None
    error: Annotated[
        str, _option("--error", metavar="TEXT", help="Only those whose error has this text.")
    ] = ""
    older_than: Annotated[
        Text,
        _option(
            "--older-than", metavar="SPAN", help="Only those dead for longer: 30m, 2h, 3d, 1w."
        ),
    ] = None
    newer_than: Annotated[
        Text, _option("--newer-than", metavar="SPAN", help="Only those dead for less long.")
    ] = None
    queue: Annotated[
        Text, _option("--queue", "--lane", help="Only of this queue. Without it: of all lanes.")
    ] = None
    limit: Annotated[int | None, _option("--limit", min=1, help="Only the first N that match.")] = (
        None
    )

    def selection(self, jobs: Texts = None) -> Selection:
        """The letters that these options and these job ids select.

        Raises:
            SettingsError: an option makes no sense.
        """
        older = _span("--older-than", self.older_than)
        newer = _span("--newer-than", self.newer_than)
        selection = Selection(
            names=frozenset(_checked(_check_id, jobs)),
            reasons=frozenset(_checked(_check_reason, self.reason)),
            flows=_checked(_check_flow, self.flow),
            jobs=_checked(_check_id, self.job),
            error=self.error,
            older_than=older,
            newer_than=newer,
        )
        if older is not None and newer is not None and older >= newer:
            raise SettingsError(
                f"nothing is older than {self.older_than} and newer than {self.newer_than}"
            )
        return selection


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Filters`; it takes them as its argument `filters`."""
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

    @wraps(command)
    def run(**options: Any) -> None:
        given = {parameter.name: options.pop(parameter.name) for parameter in shared}
        command(filters=Filters(**given), **options)

    # typer reads a command's options from its signature.
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


def _checked(check: Callable[[str], None], values: Texts) -> Sequence[str]:
    if values is None:
        return ()
    for value in values:
        check(value)
    return tuple(values)


def _check_id(job: str) -> None:
    if not job:
        raise SettingsError("a job's id can't be empty")


def _check_flow(pattern: str) -> None:
    if "/" not in pattern.strip("/"):
        raise SettingsError(
            f"--flow {pattern!a} matches no flow: they are namespace/id, patterns such as 'team/*'"
        )


def _check_reason(reason: str) -> None:
    if reason in REASONS:
        return
    near = get_close_matches(reason, REASONS, n=1)
    if not near and reason:
        near = [each for each in REASONS if each.startswith(reason)]
    hint = f"; did you mean {near[0]}?" if near else f": {', '.join(REASONS)}"
    raise SettingsError(f"--reason {reason!a} is no reason{hint}")


def _span(option: str, text: Text) -> timedelta | None:
    if text is None:
        return None
    try:
        return parse_span(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None
