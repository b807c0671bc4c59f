"""The meaning of every answer to every operation, in one table, seen through the client."""

from __future__ import annotations

from collections.abc import Mapping

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
from tests.support.kestra_client import CALLS, answering, raised, words
from tests.support.standin import HTML

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
probe                        U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.create            A   R   D   D   R   I   I   A   R   R   R   R   R   U   U   A   A   A   A
executions.find              U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.find_attempts     U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.unfinished        U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.oldest_unfinished U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.ended_since       U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.has_run           U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.reworked          U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.correlated        U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.get               U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.kill              U   I   D   D   -   I   I   U   -   I   I   I   I   U   U   U   U   U   U
executions.outputs           U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
executions.delete            U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
logs.explain                 U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
logs.failure_report          U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
flows.get                    U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
flows.validate               U   I   D   D   U   I   I   U   U   I   I   I   I   U   U   U   U   U   U
flows.save                   U   R   D   D   R   I   I   U   R   R   R   R   R   U   U   U   U   U   U
flows.delete                 U   I   D   D   -   I   I   U   U   I   I   I   I   U   U   U   U   U   U
"""  # noqa: E501 (a table)

REFUSED_ONLY_BY_KESTRA = frozenset({"400", "404", "409", "422"})
"""Statuses that refuse a job's content only where Kestra says so."""

UNREADABLE = """
                             html empty
probe                        -     -
executions.create            A     A
executions.find              U     U
executions.find_attempts     U     U
executions.unfinished        U     U
executions.oldest_unfinished U     U
executions.ended_since       U     U
executions.has_run           U     U
executions.reworked          U     U
executions.correlated        U     U
executions.get               U     U
executions.kill              -     -
executions.outputs           U     U
executions.delete            -     -
logs.explain                 U     U
logs.failure_report          U     U
flows.get                    U     U
flows.validate               U     U
flows.save                   -     -
flows.delete                 -     -
"""
"""The meaning of a 200 whose body is not what was asked for."""

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


async def errors(operation: str, answers: Mapping[str, httpx.Response]) -> dict[str, type[object]]:
    """The kind of error that an operation raises for each answer, once the version is known."""
    current = httpx.Response(200, json={"results": [], "total": 0})
    found: dict[str, type[object]] = {}

    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(current.status_code, content=current.content, headers=current.headers)

    async with answering(handler) as kestra:
        await kestra.probe()
        for name, answer in answers.items():
            current = answer
            found[name] = type(await raised(CALLS[operation], kestra))
    return found


def by_a_gateway(operation: str) -> dict[str, type[object]]:
    """The expected errors where the same statuses come in words that are not Kestra's."""
    expected = rows(IN_KESTRAS_WORDS)[operation]
    unknown = {code for code, error in expected.items() if error is NEVER_RAISED}
    if operation == "executions.create":
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
    answers = {code: httpx.Response(int(code), content=body) for code in expected}
    assert await errors(operation, answers) == expected


@pytest.mark.parametrize("operation", CALLS)
async def test_an_answer_that_can_not_be_read_is_no_success(operation: str) -> None:
    answers = {"html": httpx.Response(200, text=HTML), "empty": httpx.Response(200)}
    assert await errors(operation, answers) == rows(UNREADABLE)[operation]


@pytest.mark.parametrize("operation", CALLS)
async def test_a_wrong_tenant_is_denied(operation: str) -> None:
    answer = httpx.Response(400, content=words("Bad Request: Tenant must be 'main'"))
    assert await errors(operation, {"tenant": answer}) == {"tenant": KestraDenied}


def test_no_servers_error_says_that_nothing_was_created() -> None:
    said = Words("Some: reason", by_kestra=True)
    found = {judge("create", status, said) for status in range(500, 600)}
    assert found == {Meaning.AMBIGUOUS}


def test_of_all_clients_errors_only_a_time_out_leaves_a_create_in_doubt() -> None:
    said = Words("Some: reason", by_kestra=True)
    in_doubt = [
        status for status in range(400, 500) if judge("create", status, said) is Meaning.AMBIGUOUS
    ]
    assert in_doubt == [408]
