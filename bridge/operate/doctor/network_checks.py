"""What the doctor checks between the machines: clocks, encryption and certificates."""

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
    """The clocks agree to within BRIDGE_ADOPT_GRACE, the margin with which a redelivered job's
    execution is searched for.
    """
    skews = {"RabbitMQ": facts.broker.skew}
    if isinstance(facts.kestra, KestraFacts):
        skews["Kestra"] = facts.kestra.skew
    # The servers' times are known to the second.
    allowed = timedelta(seconds=max(2.0, settings.adopt_grace))
    for name, skew in skews.items():
        if skew is None or abs(skew) <= allowed:
            continue
        direction = "ahead of" if skew > timedelta() else "behind"
        yield warning(
            f"{name}'s clock is {in_words(abs(skew).total_seconds())} {direction} this "
            f"machine's, more than BRIDGE_ADOPT_GRACE ({in_words(settings.adopt_grace)})",
            why="the bridge reckons by Kestra's clock, known to the second from an answer: "
            "deadlines can be off by its drift, and logs, `x-bridge-at` and Kestra's times can't "
            "be compared",
            fix="run chrony or systemd-timesyncd on all machines",
        )


def encryption(settings: Settings, _: Facts) -> Iterator[Finding]:
    """Nothing crosses the network in the clear, except on this machine."""
    services = {
        "BRIDGE_AMQP_URL": (settings.amqp_url.get_secret_value(), "amqps://"),
        "BRIDGE_KESTRA_URL": (settings.kestra_url, "https://"),
    }
    for name, (url, better) in services.items():
        parts = urlsplit(url)
        if parts.scheme in ("amqp", "http") and not _is_this_machine(parts.hostname or ""):
            yield warning(
                f"{name} is {parts.scheme}:// to {parts.hostname}",
                why="password and jobs cross the network in the clear",
                fix=f"use {better}, unless nobody else uses that network",
            )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def certificates(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The certificates are valid for some time yet."""
    for found in facts.certificates:
        if not isinstance(found, Certificate):
            yield warning(
                found.why,
                why="until when its certificate is valid could not be read",
                fix="see that the address is right and that BRIDGE_AMQP_CA or BRIDGE_KESTRA_CA "
                "vouches for the certificate",
            )
            continue
        left = found.until - facts.at
        if left < RENEW_WITHIN:
            judge = fault if left <= timedelta() else warning
            yield judge(
                found.state(facts.at),
                why="once it has ended the bridge can't connect",
                fix="renew it; the bridge reads its own renewed file without a restart",
            )
