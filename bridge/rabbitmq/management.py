"""RabbitMQ's management API, for reading alone, and the replicas' own metrics: what `status` and
`doctor` ask by HTTP.

The API's figures are gathered by each queue every five seconds, so they may be that old, and those
of a queue that has just been declared may be missing. Which fields there are depends on the version
and on the queue's type; what is said of them here was seen on 3.10.8, 4.0.5 and 4.3.6.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import quote

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bridge import __version__, http_dates
from bridge.errors import BridgeError, BrokerDenied, BrokerError, BrokerUnavailable
from bridge.settings import BrokerSettings
from bridge.telemetry.log import masked

TIMEOUT = 10.0
_HTTPX_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A consumer of a queue. `timeout` is the acknowledgement time-out in seconds that holds for it
    but for what it asked for itself (`own_timeout`); 3.10 doesn't tell it.
    """

    tag: str
    connection: str
    host: str
    prefetch: int
    timeout: float | None = None
    own_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue. What the broker doesn't tell, or not yet, is None.

    `by_priority` is what is ready in each class, the most urgent first. `delivery_limit` is what
    holds in the end, by argument and policy, -1 for none; only 4.x tells it. `policy` is what
    policies set, and None as long as the queue has told nothing about itself. `handing_on` are
    messages that have left the queue for its dead-letter exchange and have not arrived yet; quorum
    queues keep those.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ready: int | None = None
    in_flight: int | None = None
    by_priority: Mapping[str, int] | None = None
    delivery_limit: int | None = None
    handing_on: int | None = None
    policy: Mapping[str, Any] | None = None
    policy_names: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What brings messages from an exchange to a queue or to another exchange."""

    source: str
    destination: str
    routing_key: str


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
        """How far the broker's clock is ahead of ours, as its last answer told it (to the
        second)."""
        self._vhost = quote(settings.virtual_host, safe="")
        self._username, password = settings.management_login
        self._tls = settings.amqp_tls
        try:
            self._context = self._tls.context() if self.url.startswith("https://") else None
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
        overview = await self._get("/overview")
        version = overview.get("rabbitmq_version") if isinstance(overview, dict) else None
        if not isinstance(version, str):
            raise BrokerUnavailable(
                f"{self.url} does not answer as RabbitMQ's management API does: no version"
            )
        return version

    async def alarms(self) -> list[str]:
        """What keeps the broker from taking messages, as `memory on rabbit@host`; nothing when all
        is well.
        """
        found = await self._get("/health/checks/alarms", also=503)
        rows = found.get("alarms") if isinstance(found, dict) else None
        if isinstance(rows, list) and rows:
            return sorted(
                {
                    f"{row.get('resource')} on {row.get('node')}"
                    for row in rows
                    if isinstance(row, dict)
                }
            )
        healthy = isinstance(found, dict) and found.get("status") == "ok"
        return (
            []
            if healthy
            else [str(found.get("reason", found)) if isinstance(found, dict) else str(found)]
        )

    async def queue(self, name: str) -> QueueState | None:
        """A queue with its consumers, or None where there's none of that name."""
        found = await self._get(f"/queues/{self._vhost}/{quote(name, safe='')}", also=404)
        return parse_queue(found) if isinstance(found, dict) and found.get("name") == name else None

    async def bindings(self, queue: str) -> list[Binding]:
        """The bindings to a queue, without the one that every queue has to the default exchange."""
        return await self._bindings(f"/queues/{self._vhost}/{quote(queue, safe='')}/bindings")

    async def bindings_from(self, exchange: str) -> list[Binding]:
        """The bindings from an exchange."""
        return await self._bindings(
            f"/exchanges/{self._vhost}/{quote(exchange, safe='')}/bindings/source"
        )

    async def policy_of_exchange(self, name: str) -> Mapping[str, Any]:
        """What the policy of an exchange sets; nothing where it has none, or where this user may
        not see policies.
        """
        found = _mapping(
            await self._get(f"/exchanges/{self._vhost}/{quote(name, safe='')}", also=404)
        )
        if not isinstance(policy := found.get("policy"), str):
            return {}
        try:
            return _mapping(
                _mapping(await self._get(self._policy_path(policy), also=404)).get("definition")
            )
        except BrokerDenied:
            return {}  # they are for users with the tag `policymaker`

    def _policy_path(self, name: str) -> str:
        return f"/policies/{self._vhost}/{quote(name, safe='')}"

    async def connected_since(self, connection: str) -> datetime | None:
        """Since when there is a connection of that name; None where it isn't for this user to
        know.
        """
        try:
            found = await self._get(f"/connections/{quote(connection, safe='')}", also=404)
        except BrokerDenied:
            return None  # other users' connections are for users with the tag `monitoring`
        milliseconds = found.get("connected_at") if isinstance(found, dict) else None
        return (
            datetime.fromtimestamp(milliseconds / 1000, UTC)
            if isinstance(milliseconds, int)
            else None
        )

    async def _bindings(self, path: str) -> list[Binding]:
        rows = await self._get(path, also=404)
        return [
            Binding(
                source=row["source"],
                destination=row["destination"],
                routing_key=str(row.get("routing_key", "")),
            )
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and row.get("source") and row.get("destination")
        ]

    async def _get(self, path: str, *, also: int | None = None) -> Any:
        """What the API answers, decoded; `also` is a status besides success whose answer counts."""
        try:
            response = await self._http.get(path)
        except (*_HTTPX_ERRORS, ssl.SSLError) as error:
            raise await self._without_answer(error) from error
        self.skew = http_dates.skew(response.headers.get("Date"))
        data = _json(response)
        if response.status_code in (401, 403):
            reason = str(_mapping(data).get("reason", response.status_code))
            # What it says of an unknown user and of a wrong password.
            login = (
                "is the password right? Else "
                if reason in ("Login failed", "Not_Authorized")
                else ""
            )
            raise BrokerDenied(
                f"RabbitMQ's management API at {self.url} refuses the user {self._username!r} "
                f"({reason}): {login}give "
                "it the tag `management`, or set BRIDGE_MANAGEMENT_USERNAME and "
                "BRIDGE_MANAGEMENT_PASSWORD to a user "
                "who has it"
            )
        if (not response.is_success and response.status_code != also) or data is None:
            raise BrokerUnavailable(
                f"{self.url} does not answer as RabbitMQ's management API does (HTTP "
                f"{response.status_code})"
            )
        return data

    async def _without_answer(self, error: Exception) -> BrokerError:
        """What it means that a request got no answer."""
        trouble = self._tls.trouble(error)
        cut_off = isinstance(error, (httpx.ReadError, httpx.RemoteProtocolError))
        if trouble is None and cut_off:
            trouble = await self._tls.why_cut_off_at(self.url, self._context)
        if trouble:
            return BrokerDenied(
                f"RabbitMQ's management API at {self.url} (BRIDGE_MANAGEMENT_URL): {trouble}"
            )
        why = (
            f"it ended the connection ({_why(error)}); is BRIDGE_MANAGEMENT_URL right?"
            if cut_off
            else _why(error)
        )
        return BrokerUnavailable(f"can't reach RabbitMQ's management API at {self.url}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMetrics:
    """What one replica's metrics tell: seconds, and counts since it started."""

    in_flight: Mapping[str, int]
    oldest: float
    restarts: Mapping[str, int]


async def scrape(url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> ReplicaMetrics:
    """Read a replica's metrics.

    Raises:
        BridgeError: they can't be had, or they aren't the bridge's.
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
            raise BridgeError(masked(f"can't read metrics at {url}: {_why(error)}")) from error
    oldest = [
        sample.value for sample in samples if sample.name == "bridge_oldest_in_flight_seconds"
    ]
    if not oldest:
        raise BridgeError(f"the metrics at {masked(url)} are not those of kestra-bridge")
    restarts = _counts(samples, "bridge_consumer_restarts_total", "cause")
    return ReplicaMetrics(
        in_flight=_counts(samples, "bridge_in_flight", "lane"),
        oldest=oldest[0],
        # Each cause is counted from nought on.
        restarts={cause: count for cause, count in restarts.items() if count},
    )


def _counts(samples: list[Any], name: str, label: str) -> dict[str, int]:
    return {
        sample.labels.get(label, ""): int(sample.value) for sample in samples if sample.name == name
    }


def parse_queue(data: Mapping[str, Any]) -> QueueState:
    """A queue from the API's JSON, whatever is in it: what can't be read counts as not told."""
    arguments = _mapping(data.get("arguments"))
    policy = data.get("effective_policy_definition")
    return QueueState(
        name=str(data.get("name")),
        kind=str(data.get("type", arguments.get("x-queue-type", "classic"))),
        arguments=arguments,
        ready=_whole(data.get("messages_ready")),
        in_flight=_whole(data.get("messages_unacknowledged")),
        by_priority=_priorities(data),
        delivery_limit=-1
        if data.get("delivery_limit") == "unlimited"
        else _whole(data.get("delivery_limit")),
        handing_on=_whole(data.get("messages_dlx")),
        policy=_mapping(policy) if policy is not None else None,
        policy_names=tuple(
            str(data[key]) for key in ("policy", "operator_policy") if data.get(key)
        ),
        consumers=tuple(_consumer(row) for row in _rows(data.get("consumer_details"))),
    )


def _priorities(data: Mapping[str, Any]) -> dict[str, int] | None:
    """What is ready by priority: by each value (classic queues of 3.x, quorum queues of 4.3), or in
    two classes.
    """
    by_value = data.get(
        "messages_by_priority", _mapping(data.get("backing_queue_status")).get("priority_lengths")
    )
    if by_value is not None:
        counts = {
            key: count
            for key, value in _mapping(by_value).items()
            if (count := _whole(value)) and key.isdigit()
        }
        return {key: counts[key] for key in sorted(counts, key=int, reverse=True)}
    high, normal = (
        _whole(data.get("messages_ready_high")),
        _whole(data.get("messages_ready_normal")),
    )
    if high is not None and normal is not None:  # quorum queues of 4.0 to 4.2
        return {
            name: count for name, count in (("5 and above", high), ("4 and below", normal)) if count
        }
    return None


def _consumer(data: Mapping[str, Any]) -> Consumer:
    channel = _mapping(data.get("channel_details"))
    own = _whole(_mapping(data.get("arguments")).get("x-consumer-timeout"))
    timeout = _whole(data.get("consumer_timeout"))
    return Consumer(
        tag=str(data.get("consumer_tag", "")),
        connection=str(channel.get("connection_name", "")),
        host=str(channel.get("peer_host", "")),
        prefetch=_whole(data.get("prefetch_count")) or 0,
        timeout=None if timeout is None else timeout / 1000,
        own_timeout=None if own is None else own / 1000,
    )


def _json(response: httpx.Response) -> Any:
    """An answer, decoded; None where it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
