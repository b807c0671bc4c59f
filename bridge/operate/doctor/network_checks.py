"""What the doctor looks for between the machines: clocks and encryption."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from bridge.durations import in_words
from bridge.operate.doctor.facts import Certificate, Facts, KestraFacts
from bridge.operate.doctor.finding import Finding, fault, warning
from bridge.settings import Settings

RENEW_WITHIN = timedelta(days=14)


def clocks(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Clocks that agree to within the time in which a redelivered job's execution is looked for."""
    skews = {"RabbitMQ": facts.broker.skew}
    if isinstance(facts.kestra, KestraFacts):
        skews["Kestra"] = facts.kestra.skew
    for name, skew in skews.items():
        if skew is not None and abs(skew) > timedelta(seconds=max(2.0, settings.adopt_grace)):
            direction = "ahead of" if skew > timedelta() else "behind"
            yield warning(
                f"{name}'s clock is {in_words(abs(skew).total_seconds())} {direction} this "
                "machine's, more than "
                f"BRIDGE_ADOPT_GRACE ({in_words(settings.adopt_grace)})",
                why="the bridge reckons by Kestra's clock, which an answer told to the second: "
                "deadlines can be off by "
                "what it drifts, and logs, `x-bridge-at` and Kestra's times can't be compared",
                fix="run chrony or systemd-timesyncd on all machines",
            )


def encryption(settings: Settings, _: Facts) -> Iterator[Finding]:
    """Nothing in the clear but on this machine."""
    services = {
        "BRIDGE_AMQP_URL": (settings.amqp_url.get_secret_value(), "amqps://"),
        "BRIDGE_KESTRA_URL": (settings.kestra_url, "https://"),
    }
    for name, (url, better) in services.items():
        parts = urlsplit(url)
        if parts.scheme in ("amqp", "http") and not _is_here(parts.hostname or ""):
            yield warning(
                f"{name} is {parts.scheme}:// to {parts.hostname}",
                why="password and jobs cross the network in the clear",
                fix=f"use {better}, unless that network is yours alone",
            )


def certificates(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Certificates that hold for a while yet."""
    for found in facts.certificates:
        if not isinstance(found, Certificate):
            yield warning(
                found.why,
                why="until when its certificate is valid could not be read",
                fix="see that the address is right and the certificate is one that "
                "BRIDGE_AMQP_CA or BRIDGE_KESTRA_CA "
                "vouches for",
            )
        elif (left := found.until - facts.at) < RENEW_WITHIN:
            judge = fault if left <= timedelta() else warning
            yield judge(
                found.state(facts.at),
                why="from then on the bridge can't connect",
                fix="renew it; a renewed file of ours is taken up without a restart",
            )


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
