"""`dead-letters list` and `dead-letters show`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from bridge.cli.dead_letters.detail import ExecutionReport, full_data, print_full
from bridge.cli.dead_letters.listing import print_list
from bridge.cli.dead_letters.output import dumps
from bridge.cli.dead_letters.scope import Scope
from bridge.errors import KestraError
from bridge.kestra import Kestra, execution_url
from bridge.operate.dead_letters.letter import DeadLetter


async def list_letters(scope: Scope) -> None:
    """List the selected letters, once all are read: a slow reader must not keep them held."""
    async with scope.connected() as session:
        letters = await scope.collect(session, lambda letter, _: letter, only_look=True)
    if letters:
        queues, now = len(scope.lanes), scope.selection.now
        print_list(letters, now, as_json=scope.as_json, queues=queues, limit=scope.limit)
    elif not scope.as_json:
        print(scope.nothing)


async def show_letters(scope: Scope) -> None:
    """Show the selected letters in full."""
    async with scope.connected() as session:
        letters = await scope.collect(
            session, lambda letter, message: (letter, message), only_look=True
        )
    scope.require_jobs([letter for letter, _ in letters])
    reports = await _ask_kestra(scope, [letter for letter, _ in letters])
    if not letters and not scope.as_json:
        print(scope.nothing)
    for (letter, message), report in zip(letters, reports, strict=True):
        if scope.as_json:
            print(dumps(full_data(letter, message, report)))
        else:
            print_full(letter, message, scope.selection.now, report)


async def _ask_kestra(scope: Scope, letters: Sequence[DeadLetter]) -> list[ExecutionReport]:
    """Kestra's report on each letter's execution. Once Kestra doesn't answer, it isn't asked
    again.
    """
    reports = []
    kestra: Kestra | None = None
    unknown = "BRIDGE_KESTRA_URL is not set, so Kestra isn't asked"
    async with AsyncExitStack() as stack:
        if scope.kestra is not None:
            kestra = await stack.enter_async_context(Kestra(scope.kestra))
        for letter in letters:
            if kestra is not None and letter.execution is not None:
                try:
                    reports.append(await _ask(kestra, scope, letter, letter.execution))
                    continue
                except KestraError as error:
                    kestra, unknown = None, f"Kestra can't tell: {error}"
            reports.append(
                ExecutionReport(
                    execution=letter.execution, url=_url(scope, letter), unknown_because=unknown
                )
            )
    return reports


async def _ask(kestra: Kestra, scope: Scope, letter: DeadLetter, execution: str) -> ExecutionReport:
    failure = await kestra.logs.failure_report(execution)
    if failure is None:
        return ExecutionReport(
            execution=execution,
            url=_url(scope, letter),
            unknown_because="Kestra doesn't know it any more",
        )
    return ExecutionReport(execution=execution, url=kestra.link(failure.execution), failure=failure)


def _url(scope: Scope, letter: DeadLetter) -> str | None:
    if scope.kestra is None or letter.flow is None or letter.execution is None:
        return None
    return execution_url(scope.kestra, letter.flow, letter.execution)
