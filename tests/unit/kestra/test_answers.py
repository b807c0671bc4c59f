"""What every answer means for every operation, in one table, seen through the client that raises
it."""

from __future__ import annotations

import httpx
import pytest

from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraIncompatible,
    KestraRejected,
    KestraUnavailable,
)
from bridge.kestra.answers import Meaning, Words, judge
from bridge.telemetry.metrics import Metrics
from tests.support.standin import HTML
from tests.unit.kestra.test_client import CALLS, answering, raised, words

ERRORS: dict[str, type[KestraError] | None] = {
    "R": KestraRejected,
    "D": KestraDenied,
    "I": KestraIncompatible,
    "U": KestraUnavailable,
    "A": KestraAmbiguous,
    "-": None,
}

IN_KESTRAS_WORDS = """
                  302 400 401 403 404 405 406 408 409 413 414 415 422 425 429 500 502 503 504
probe              U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
create             U   R   D   D   R   I   I   A   R   R   R   R   R   U   U   A   A   A   A
find               U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
find_attempts      U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
unfinished         U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
started_since      U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
reworked           U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
correlated         U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
get                U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
kill               U   I   D   D   -   I   I   U   -   I   I   I   I   U   U   U   U   U   U
outputs            U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
explain            U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
failure_report     U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
flow               U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
validate_flow      U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
save_flow          U   R   D   D   R   I   I   U   R   R   R   R   R   U   U   U   U   U   U
delete_flow        U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
delete_execution   U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
"""

REFUSED_ONLY_BY_KESTRA = frozenset({"400", "404", "409", "422"})
"""What is a refusal of a job's content only where Kestra says it."""

UNREADABLE = """
                  html empty
probe              -     -
create             A     A
find               U     U
find_attempts      U     U
unfinished         U     U
started_since      U     U
reworked           U     U
correlated         U     U
get                U     U
kill               -     -
outputs            U     U
explain            U     U
failure_report     U     U
flow               U     U
validate_flow      U     U
save_flow          -     -
delete_flow        -     -
delete_execution   -     -
"""
"""What a 200 means whose body is not what was asked for."""

NEVER_RAISED = type(None)


def rows(table: str) -> dict[str, dict[str, type[object]]]:
    """The expected error by operation and by answer; `NoneType` where there is none."""
    head, *lines = table.strip().splitlines()
    answers = head.split()
    return {
        name: {
            answer: ERRORS[letter] or NEVER_RAISED
            for answer, letter in zip(answers, letters, strict=True)
        }
        for name, *letters in (line.split() for line in lines)
    }


async def error_of(
    operation: str, answer: httpx.Response, metrics: Metrics | None = None
) -> Exception | None:
    """What an operation raises when each of its requests gets that answer, once the server's
    version is known."""
    answers = [httpx.Response(200, json={"results": [], "total": 0})]

    def handler(_: httpx.Request) -> httpx.Response:
        last = answers[-1]
        return httpx.Response(last.status_code, content=last.content, headers=last.headers)

    async with answering(handler, metrics=metrics) as kestra:
        await kestra.probe()
        answers.append(answer)
        return await raised(CALLS[operation], kestra)


async def errors(operation: str, answers: dict[str, httpx.Response]) -> dict[str, type[object]]:
    """The kind of error that an operation raises for each answer."""
    return {name: type(await error_of(operation, answer)) for name, answer in answers.items()}


def by_a_gateway(operation: str) -> dict[str, type[object]]:
    """The expected errors where the same statuses come in words that are not Kestra's."""
    expected = rows(IN_KESTRAS_WORDS)[operation]
    unknown = {code for code, error in expected.items() if error is NEVER_RAISED}
    if operation == "create":
        unknown |= REFUSED_ONLY_BY_KESTRA
    return expected | dict.fromkeys(unknown, KestraUnavailable)


def test_the_tables_name_every_operation() -> None:
    assert all(set(rows(table)) == set(CALLS) for table in (IN_KESTRAS_WORDS, UNREADABLE))


@pytest.mark.parametrize("operation", CALLS)
async def test_a_refusal_in_kestras_words_means_the_same_every_time(operation: str) -> None:
    expected = rows(IN_KESTRAS_WORDS)[operation]
    answers = {code: httpx.Response(int(code), content=words("Some: reason")) for code in expected}
    assert await errors(operation, answers) == expected


@pytest.mark.parametrize("body", [b"", HTML.encode()], ids=["empty", "html"])
@pytest.mark.parametrize("operation", CALLS)
async def test_a_gateways_refusal_says_nothing_of_what_kestra_has(
    operation: str, body: bytes
) -> None:
    expected = by_a_gateway(operation)
    assert (
        await errors(
            operation, {code: httpx.Response(int(code), content=body) for code in expected}
        )
        == expected
    )


@pytest.mark.parametrize("operation", CALLS)
async def test_a_success_that_can_not_be_read_is_none(operation: str) -> None:
    answers = {"html": httpx.Response(200, text=HTML), "empty": httpx.Response(200)}
    assert await errors(operation, answers) == rows(UNREADABLE)[operation]


@pytest.mark.parametrize("status", range(500, 600))
def test_no_servers_error_says_that_nothing_was_created(status: int) -> None:
    assert judge("create", status, Words("Some: reason", by_kestra=True)) is Meaning.AMBIGUOUS


@pytest.mark.parametrize("status", [status for status in range(400, 500) if status != 408])
def test_no_clients_error_leaves_a_create_in_doubt(status: int) -> None:
    assert judge("create", status, Words("Some: reason", by_kestra=True)) is not Meaning.AMBIGUOUS


@pytest.mark.parametrize(
    ("status", "counted"), [(401, 1), (403, 1), (405, 1), (406, 1), (404, 0), (409, 0), (503, 0)]
)
async def test_a_refusal_that_only_an_operator_ends_is_counted(status: int, counted: int) -> None:
    metrics = Metrics()
    await error_of("kill", httpx.Response(status, content=words("no")), metrics)
    assert (
        metrics.registry.get_sample_value("bridge_kestra_refused_total", {"operation": "kill"})
        == counted
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("0", 0), ("99999", 300), ("soon", 0), ("-3", 0), ("", 0), ("٣", 0)],
)
async def test_a_busy_server_is_asked_again_no_sooner_than_it_says(
    text: str, seconds: float
) -> None:
    error = await error_of("get", httpx.Response(503, headers=[(b"Retry-After", text.encode())]))
    assert isinstance(error, KestraUnavailable)
    assert error.retry_after == seconds


async def test_a_create_in_doubt_tells_when_kestra_wants_to_be_asked_again() -> None:
    error = await error_of("create", httpx.Response(503, headers={"Retry-After": "7"}))
    assert isinstance(error, KestraAmbiguous)
    assert error.retry_after == 7


async def test_every_request_accepts_what_a_kill_answers() -> None:
    accepted: set[str] = set()

    def handler(request: httpx.Request) -> httpx.Response:
        accepted.add(request.headers["Accept"])
        return httpx.Response(503)

    for call in CALLS.values():
        async with answering(handler) as kestra:
            await raised(call, kestra)
    assert accepted == {"application/json, text/json"}
