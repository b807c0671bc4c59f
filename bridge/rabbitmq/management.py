"""A client for RabbitMQ's management API, read-only, and for the replicas' own metrics.

Each queue gathers its figures for the API every five seconds, so they may be that old, and those of
a new queue may be missing.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import quote

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bridge import __version__, http_dates
from bridge.errors import BridgeError, BrokerDenied, BrokerError, BrokerUnavailable
from bridge.rabbitmq.error_translation import reason
from bridge.rabbitmq.queue_state import (
    Binding,
    Consumer,
    QueueState,
    mapping,
    parse_bindings,
    parse_queue,
    rows,
)
from bridge.settings import BrokerSettings
from bridge.telemetry.log import masked

__all__ = [
    "Binding",
    "Consumer",
    "Management",
    "QueueState",
    "ReplicaMetrics",
    "parse_queue",
    "scrape",
]

TIMEOUT = 10.0
_HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
_REFUSED_LOGINS = ("Login failed", "Not_Authorized")
"""The API's reasons for an unknown user and for a wrong password."""


class Management:
    """A client of one broker's management API. Use it as an async context manager.

    Every method raises `BrokerDenied` where the API refuses the user, and `BrokerUnavailable` where
    it can't answer.
    """

    def __init__(
        self, settings: BrokerSettings, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = settings.management_address
        self.skew: timedelta | None = None
        """How far the broker's clock is ahead of ours by its last answer, to the second."""
        self._vhost = quote(settings.virtual_host, safe="")
        self._username, password = settings.management_login
        self._tls = settings.amqp_tls
        self._context = None
        if self.url.startswith("https://"):
            try:
                self._context = self._tls.context()
            except ValueError as error:
                raise BrokerDenied(str(error)) from error
        self._http = httpx.AsyncClient(
            base_url=f"{self.url}/api",
            auth=httpx.BasicAuth(self._username, password.get_secret_value()),
            headers={"User-Agent": f"kestra-bridge/{__version__}", "Accept": "application/json"},
            verify=self._context or True,
            timeout=TIMEOUT,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def version(self) -> str:
        """The broker's version."""
        overview = mapping(await self._get("/overview"))
        version = overview.get("rabbitmq_version")
        if not isinstance(version, str):
            raise BrokerUnavailable(
                f"{self.url} does not answer as RabbitMQ's management API does: no version"
            )
        return version

    async def alarms(self) -> list[str]:
        """The alarms that keep the broker from taking messages, such as `memory on rabbit@host`."""
        answer = await self._get("/health/checks/alarms", also=503)
        if not isinstance(answer, dict):
            return [str(answer)]
        alarms = answer.get("alarms")
        if isinstance(alarms, list) and alarms:
            return sorted({f"{row.get('resource')} on {row.get('node')}" for row in rows(alarms)})
        if answer.get("status") == "ok":
            return []
        return [str(answer.get("reason", answer))]

    async def queue(self, name: str) -> QueueState | None:
        """A queue with its consumers, or None where there is none of that name."""
        answer = mapping(await self._get(f"/queues/{self._named(name)}", also=404))
        if answer.get("name") != name:
            return None
        return parse_queue(answer)

    async def bindings(self, queue: str) -> list[Binding]:
        """The bindings to a queue, without the one that every queue has to the default exchange."""
        return parse_bindings(await self._get(f"/queues/{self._named(queue)}/bindings", also=404))

    async def bindings_from(self, exchange: str) -> list[Binding]:
        """The bindings from an exchange."""
        path = f"/exchanges/{self._named(exchange)}/bindings/source"
        return parse_bindings(await self._get(path, also=404))

    async def policy_of_exchange(self, name: str) -> Mapping[str, Any]:
        """The definition of an exchange's policy; empty where it has none, or where this user may
        not see policies.
        """
        exchange = mapping(await self._get(f"/exchanges/{self._named(name)}", also=404))
        policy = exchange.get("policy")
        if not isinstance(policy, str):
            return {}
        try:
            answer = mapping(await self._get(f"/policies/{self._named(policy)}", also=404))
        except BrokerDenied:
            return {}  # policies need the tag `policymaker`
        return mapping(answer.get("definition"))

    async def connected_since(self, connection: str) -> datetime | None:
        """When the connection of that name began; None where there is none, or where this user may
        not see it.
        """
        try:
            path = f"/connections/{quote(connection, safe='')}"
            answer = mapping(await self._get(path, also=404))
        except BrokerDenied:
            return None  # other users' connections need the tag `monitoring`
        milliseconds = answer.get("connected_at")
        if not isinstance(milliseconds, int):
            return None
        return datetime.fromtimestamp(milliseconds / 1000, UTC)

    def _named(self, name: str) -> str:
        """The path of a thing of that name in our virtual host."""
        return f"{self._vhost}/{quote(name, safe='')}"

    async def _get(self, path: str, *, also: int | None = None) -> Any:
        """The API's answer, decoded; `also` is a status besides success whose answer counts."""
        try:
            response = await self._http.get(path)
        except (*_HTTPX_ERRORS, ssl.SSLError) as error:
            raise await self._without_answer(error) from error
        self.skew = http_dates.skew(response.headers.get("Date"))
        data = _json(response)
        if response.status_code in (401, 403):
            raise self._denied(str(mapping(data).get("reason", response.status_code)))
        expected = response.is_success or response.status_code == also
        if not expected or data is None:
            raise BrokerUnavailable(
                f"{self.url} does not answer as RabbitMQ's management API does (HTTP "
                f"{response.status_code})"
            )
        return data

    def _denied(self, why: str) -> BrokerDenied:
        hint = "is the password right? Else " if why in _REFUSED_LOGINS else ""
        return BrokerDenied(
            f"RabbitMQ's management API at {self.url} refuses the user {self._username!r} "
            f"({why}): {hint}give it the tag `management`, or set BRIDGE_MANAGEMENT_USERNAME and "
            "BRIDGE_MANAGEMENT_PASSWORD to a user who has it"
        )

    async def _without_answer(self, error: Exception) -> BrokerError:
        """The error for a request that got no answer."""
        problem = self._tls.trouble(error)
        cut_off = isinstance(error, (httpx.ReadError, httpx.RemoteProtocolError))
        if problem is None and cut_off:
            problem = await self._tls.why_cut_off_at(self.url, self._context)
        if problem:
            return BrokerDenied(
                f"RabbitMQ's management API at {self.url} (BRIDGE_MANAGEMENT_URL): {problem}"
            )
        why = reason(error)
        if cut_off:
            why = f"it ended the connection ({why}); is BRIDGE_MANAGEMENT_URL right?"
        return BrokerUnavailable(f"can't reach RabbitMQ's management API at {self.url}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerMetrics:
    """A lane's ledger as a replica sees it: how many seconds back it reaches, and how many seconds
    half of the claims take, and 99 of 100. None: it has made no claim.
    """

    reach: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMetrics:
    """One replica's metrics: `oldest` in seconds, `restarts` since it started. `ledgers` has the
    lanes whose ledger it has read.
    """

    in_flight: Mapping[str, int]
    oldest: float
    restarts: Mapping[str, int]
    ledgers: Mapping[str, LedgerMetrics] = field(default_factory=dict)


async def scrape(url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> ReplicaMetrics:
    """Read a replica's metrics.

    Raises:
        BridgeError: there is no answer, or not the bridge's metrics.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT, transport=transport) as client:
        try:
            response = await client.get(url)
            response.raise_for_status()
            samples = [
                sample
                for family in text_string_to_metric_families(response.text)
                for sample in family.samples
            ]
        except (*_HTTPX_ERRORS, ValueError) as error:
            raise BridgeError(masked(f"can't read metrics at {url}: {reason(error)}")) from error
    oldest = [
        sample.value for sample in samples if sample.name == "bridge_oldest_in_flight_seconds"
    ]
    if not oldest:
        raise BridgeError(f"the metrics at {masked(url)} are not those of kestra-bridge")
    restarts = _counts(samples, "bridge_consumer_restarts_total", "cause")
    return ReplicaMetrics(
        in_flight=_counts(samples, "bridge_in_flight", "lane"),
        oldest=oldest[0],
        # Every cause is there from the start, with a count of 0.
        restarts={cause: count for cause, count in restarts.items() if count},
        ledgers=_ledgers(samples),
    )


def _ledgers(samples: Sequence[Sample]) -> dict[str, LedgerMetrics]:
    ready = _counts(samples, "bridge_ledger_ready", "lane")
    reach = _counts(samples, "bridge_ledger_reach_seconds", "lane")
    return {
        lane: LedgerMetrics(
            reach=reach.get(lane, 0),
            p50=_within(samples, lane, 0.5),
            p99=_within(samples, lane, 0.99),
        )
        for lane in ready
        if ready[lane]
    }


def _within(samples: Sequence[Sample], lane: str, share: float) -> float | None:
    """Seconds within which that share of a lane's claims was read back, as the buckets tell."""
    buckets = sorted(
        (float(sample.labels["le"]), sample.value)
        for sample in samples
        if sample.name == "bridge_claim_seconds_bucket" and sample.labels.get("lane") == lane
    )
    if not buckets or not buckets[-1][1]:
        return None
    return next(limit for limit, count in buckets if count >= share * buckets[-1][1])


def _counts(samples: Sequence[Sample], name: str, label: str) -> dict[str, int]:
    return {
        sample.labels.get(label, ""): int(sample.value) for sample in samples if sample.name == name
    }


def _json(response: httpx.Response) -> Any:
    """An answer, decoded; None where it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
