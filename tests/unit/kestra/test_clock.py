"""The server's clock is estimated so that no job is killed too early."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bridge.kestra.clock import ServerClock
from tests.support.kestra_client import FLOW, JOB, against
from tests.support.standin import Standin

HOUR = timedelta(hours=1)
A_LITTLE = timedelta(seconds=3)


def header(ahead: timedelta) -> str:
    return format_datetime(datetime.now(UTC) + ahead, usegmt=True)


def ahead(clock: ServerClock) -> timedelta:
    return clock.now() - datetime.now(UTC)


@pytest.mark.parametrize("skew", [-timedelta(seconds=50), timedelta(seconds=50), -3 * HOUR])
def test_it_follows_the_headers(skew: timedelta) -> None:
    clock = ServerClock()
    clock.note_header(header(skew))
    assert abs(ahead(clock) - skew) < A_LITTLE


def test_a_header_that_is_hours_ahead_brings_no_deadline_forward() -> None:
    clock = ServerClock()
    clock.note_header(header(2 * HOUR))
    assert abs(ahead(clock)) < A_LITTLE


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_it_is_ours_where_the_header_says_nothing(date: str | None) -> None:
    clock = ServerClock()
    clock.note_header(date)
    assert abs(ahead(clock)) < timedelta(seconds=1)


@pytest.mark.parametrize("by_server", [timedelta(), HOUR, -HOUR])
@pytest.mark.parametrize("by_gateway", [2 * HOUR, -2 * HOUR])
def test_what_the_server_dates_counts_whatever_a_gateway_says(
    by_server: timedelta, by_gateway: timedelta
) -> None:
    clock = ServerClock()
    clock.note_header(header(by_gateway))
    now = datetime.now(UTC)
    clock.note_dated(now + by_server, between=(now, now))
    assert abs(ahead(clock) - by_server) < A_LITTLE


def test_what_the_server_dates_during_a_request_is_no_skew() -> None:
    clock = ServerClock()
    now = datetime.now(UTC)
    clock.note_dated(now, between=(now - A_LITTLE, now + A_LITTLE))
    assert clock.skew == timedelta()


def test_it_is_doubtful_while_only_a_header_is_far_from_ours() -> None:
    clock = ServerClock()
    clock.note_header(header(2 * HOUR))
    doubted = clock.doubtful
    now = datetime.now(UTC)
    clock.note_dated(now + 2 * HOUR, between=(now, now))
    assert (doubted, clock.doubtful) == (True, False)


async def test_a_create_dates_the_server() -> None:
    async with Standin() as standin:
        standin.flow(FLOW.namespace, FLOW.id)
        standin.skew, standin.date_skew = HOUR, -2 * HOUR
        async with against(standin) as kestra:
            await kestra.create(JOB)
            assert abs(ahead(kestra.clock) - HOUR) < A_LITTLE
