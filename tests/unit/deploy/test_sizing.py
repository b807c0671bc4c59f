"""The figures of deploy/SIZING.md follow from the code."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bridge.consume.sessions import SessionPolicy
from bridge.job import settlement
from bridge.job.decode import MAX_BODY
from bridge.kestra import DEFAULT_LIMITS
from bridge.settings import Settings
from deploy.local.paths import REPOSITORY

TEXT = " ".join((REPOSITORY / "deploy/SIZING.md").read_text().split())
VALUES: dict[str, Any] = {"amqp_url": "amqp://rabbit", "kestra_url": "http://kestra"}


def settings(**more: Any) -> Settings:
    return Settings.model_validate(VALUES | more)


def longest(chosen: Settings) -> float:
    """Seconds that a job takes at worst: each attempt until its time-out, and the delays between
    them."""
    tries = range(1, chosen.max_attempts)
    delays = sum(settlement._delay(done, chosen.retry_delays) for done in tries)
    return chosen.max_attempts * chosen.job_timeout + delays


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3 × 21,600 + 30 + 300 = {} s", longest(settings())),
        ("or `BRIDGE_CONSUMER_TIMEOUT` | {} s", settings().hold),
        ("grace period | drain time-out + 15 s | {} s", settings().drain_timeout + 15),
        ("reconcile interval, and the list | {} s", settings().reconcile_interval),
        ("2 × 900 + 3,600 = {} s", settings(job_timeout=900).hold),
        ("3 × 900 + 30 + 300 = {} s", longest(settings(job_timeout=900))),
    ],
)
def test_times_are_those_of_the_settings(said: str, seconds: float) -> None:
    assert said.format(f"{seconds:,.0f}") in TEXT


def test_a_grace_period_is_enough_to_settle_after_the_drain() -> None:
    assert SessionPolicy(hold=0, drain=0).settled_within < 15


def test_limits_are_those_of_the_code() -> None:
    assert f"at most {DEFAULT_LIMITS.concurrent_creates} at once in a replica" in TEXT
    assert f"one for each {DEFAULT_LIMITS.page_size} unfinished executions" in TEXT
    assert f"{settings().prefetch} for a replica" in TEXT
    assert f"Bodies may have {MAX_BODY // 2**20} MiB" in TEXT


def test_the_example_is_calculated_rightly() -> None:
    rate, seconds, prefetch = 1200 / 3600, 90, settings().prefetch
    in_flight = rate * seconds * (1 + 0.05 + 0.05**2)
    slots = math.ceil(in_flight / 0.8 / prefetch) * prefetch
    assert (round(in_flight, 1), slots, slots // prefetch) == (31.6, 40, 5)
    figures = [
        f"= {in_flight:.1f}",
        f"= {slots}: {slots // prefetch} replicas with `BRIDGE_PREFETCH={prefetch}`",
        f"90 ÷ 40 = {seconds / slots:.2f} s",
        f"(40 − 30) = {600 * seconds / (slots - rate * seconds):,.0f} s",
        f"60 slots bring it to {600 * seconds / (60 - rate * seconds):,.0f} s",
        f"= {rate:.2f}/s for the jobs",
        f"1 ÷ 0.5 + 0.4 = {1 / settings().report_interval + 0.4:.1f}/s for the ends",
        f"= {50_000 * 2.3 / 1000:.0f} MB",
    ]
    assert [figure for figure in figures if figure not in TEXT] == []
