"""The settings: read once, from the environment and `.env`, and checked whole."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bridge.errors import SettingsError
from bridge.job import FlowName
from bridge.settlement import Policy

PREFIX = "BRIDGE_"
OTHERS_PREFIX = "BRIDGE_MACHINE_"
"""Settings of `kestra-bridge machine` alone, which are declared in `bridge.machines.settings`."""

QueueType = Literal["auto", "classic", "quorum"]


def _flow_name(text: str) -> str:
    try:
        return str(FlowName.parse(text))
    except ValueError:
        raise ValueError("must be namespace/id") from None


def _amqp_url(secret: SecretStr) -> SecretStr:
    parts = _url_parts(secret.get_secret_value())
    if parts is None or parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ValueError("must be amqp://user:password@host:port/vhost or amqps://…, with %2F for a / in the password")
    return secret


def _http_url(text: str, info: ValidationInfo) -> str:
    parts = _url_parts(text)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://host:port or https://…")
    if parts.username or parts.password:
        service = f"{PREFIX}{(info.field_name or '').upper().removesuffix('_URL')}"
        raise ValueError(f"must not hold credentials: use {service}_USERNAME and {service}_PASSWORD")
    return text.rstrip("/")


def _url_parts(text: str) -> SplitResult | None:
    """A URL's parts, or None where it is none. The library's errors aren't shown: they quote what may be a password."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for a port that is none
    except ValueError:
        return None
    return parts


def _header_text(secret: SecretStr) -> SecretStr:
    """A line break at a token's end is common, and the error that it would end in quotes the token."""
    text = secret.get_secret_value()
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError("must be printable ASCII without a space or a line break around it")
    return secret


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError("is no file that can be read")
    return path


def _password(secret: SecretStr) -> set[str]:
    """The password in a URL, as it is written and as it is sent."""
    parts = _url_parts(secret.get_secret_value())
    return {parts.password, unquote(parts.password)} if parts and parts.password else set()


# Decoded here and not by pydantic-settings, which would stop at the first one that isn't JSON.
FROM_JSON = (NoDecode, BeforeValidator(_from_json))
Readable = Annotated[Path, AfterValidator(_readable)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
FlowText = Annotated[str, AfterValidator(_flow_name)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:-]+$")]
Prefetch = Annotated[int, Field(ge=1, le=65_535)]


class Lane(BaseModel):
    """One queue with its own prefetch, and the flow of messages that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: Name
    prefetch: Prefetch = 8
    flow: FlowText | None = None

    @property
    def flow_name(self) -> FlowName | None:
        """The flow, parsed."""
        return FlowName.parse(self.flow) if self.flow else None


class CommandSettings(BaseSettings):
    """What every command has: how it logs, and that no secret of its own is shown."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto` is console on a terminal, else JSON lines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _lower(cls, value: Any, info: ValidationInfo) -> Any:
        choice = info.field_name in ("log_level", "log_format", "queue_type", "deduplicate")
        return value.lower() if choice and isinstance(value, str) else value

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown, in every spelling in which a library might show it, the longest first."""
        texts: set[str] = set()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                texts |= _password(value) if name == "amqp_url" else {value.get_secret_value()} - {""}
        return tuple(sorted(texts, key=len, reverse=True))


class BrokerSettings(CommandSettings):
    """What it takes to talk to RabbitMQ: where it is, and its queues."""

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_url)] = Field(
        description="RabbitMQ's address, `amqp://user:password@host:port/vhost` or `amqps://…`."
    )
    amqp_ca: Readable | None = Field(
        default=None, description="A file of CA certificates to check RabbitMQ's by, for `amqps`."
    )
    management_url: HttpUrl | None = Field(
        default=None,
        description="RabbitMQ's management API, which `status` and `doctor` ask. Default: the host of BRIDGE_AMQP_URL, "
        "`http` and port 15672, or for `amqps` `https` and port 15671.",
    )
    management_username: str | None = Field(
        default=None, description="A user for it who has the tag `management`. Default: the one of BRIDGE_AMQP_URL."
    )
    management_password: SecretStr | None = Field(default=None, description="Its password.")
    queue: Name = Field(default="kestra.jobs", description="The queue of job messages.")
    prefetch: Prefetch = Field(default=8, description="How many jobs at once. Equals what Kestra should run at once.")
    flow: FlowText | None = Field(default=None, description="The flow of messages that name none, `namespace/id`.")
    lanes: Annotated[tuple[Lane, ...], *FROM_JSON] = Field(
        default=(), description="Several queues instead: a JSON list of `{queue, prefetch, flow}`."
    )
    queue_type: QueueType = Field(
        default="auto", description="`quorum` or `classic`; `auto` is quorum from RabbitMQ 4.3 on, else classic."
    )
    max_priority: Annotated[int, Field(ge=1, le=255)] = Field(
        default=10, description="The highest priority of a message."
    )
    retry_delays: Annotated[tuple[Annotated[int, Field(ge=1, le=2_000_000)], ...], Field(min_length=1), *FROM_JSON] = (
        Field(default=(30, 300), description="A JSON list of delays before each further attempt; the last repeats.")
    )

    @field_validator("lanes")
    @classmethod
    def _distinct(cls, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        queues = [lane.queue for lane in lanes]
        if len(set(queues)) < len(queues):
            raise ValueError("names a queue twice")
        return lanes

    @model_validator(mode="after")
    def _whole_management_login(self) -> Self:
        if bool(self.management_username) != bool(self.management_password):
            raise ValueError("BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD go together")
        return self

    @property
    def all_lanes(self) -> tuple[Lane, ...]:
        """The lanes, or the one that `queue`, `prefetch` and `flow` make."""
        return self.lanes or (Lane(queue=self.queue, prefetch=self.prefetch, flow=self.flow),)

    @property
    def broker_address(self) -> str:
        """RabbitMQ's address without the credentials."""
        url = urlsplit(self.amqp_url.get_secret_value())
        return f"{url.hostname}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}{url.path or '/'}"

    @property
    def virtual_host(self) -> str:
        """The virtual host that the address names; `/` where it names none."""
        return unquote(urlsplit(self.amqp_url.get_secret_value()).path[1:]) or "/"

    @property
    def management_address(self) -> str:
        """The management API's address, as set or as it follows from RabbitMQ's."""
        if self.management_url:
            return self.management_url
        url = urlsplit(self.amqp_url.get_secret_value())
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"https://{host}:15671" if url.scheme == "amqps" else f"http://{host}:15672"

    @property
    def management_login(self) -> tuple[str, SecretStr]:
        """User and password for the management API: its own, or RabbitMQ's, which are `guest` by AMQP's custom."""
        if self.management_username and self.management_password:
            return self.management_username, self.management_password
        url = urlsplit(self.amqp_url.get_secret_value())
        return unquote(url.username or "guest"), SecretStr(unquote(url.password or "guest"))


class KestraSettings(CommandSettings):
    """What it takes to talk to Kestra."""

    kestra_url: HttpUrl = Field(description="Kestra's address, `http://host:8080`.")
    kestra_tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = Field(
        default="main", description="Kestra's tenant; the open-source edition has `main` alone."
    )
    kestra_username: str | None = Field(default=None, description="User for Kestra's Basic authentication.")
    kestra_password: SecretStr | None = Field(default=None, description="Its password.")
    kestra_token: Annotated[SecretStr, AfterValidator(_header_text)] | None = Field(
        default=None, description="An API token (Bearer), instead of user and password."
    )
    kestra_ca: Readable | None = Field(
        default=None, description="A file of CA certificates to check Kestra's by, for `https`."
    )

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> Self:
        if self.kestra_token and (self.kestra_username or self.kestra_password):
            raise ValueError("BRIDGE_KESTRA_TOKEN and BRIDGE_KESTRA_USERNAME/PASSWORD exclude each other")
        if bool(self.kestra_username) != bool(self.kestra_password):
            raise ValueError("BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD go together")
        return self


class Settings(BrokerSettings, KestraSettings):
    """Every setting: an environment variable that begins with `BRIDGE_`, or a line of `.env`. Times are in seconds."""

    allowed_flows: Annotated[tuple[str, ...], *FROM_JSON] = Field(
        default=(),
        description="A JSON list of patterns of flows that messages may start. Default: the lanes' own flows.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, description="How many attempts a job gets.")
    ack_warning: bool = Field(default=True, description="Whether an execution that ended in WARNING is a success.")
    job_timeout: Annotated[float, Field(gt=0, le=31_536_000)] = Field(
        default=21_600, description="How long an execution may take; then it is killed and counts as failed."
    )
    reconcile_interval: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=30, description="How often executions are looked up whose reply may have been lost."
    )
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = Field(
        default=30,
        description="How long a stopping bridge waits for executions to end, before it leaves them to the next.",
    )
    deduplicate: Literal["always", "redelivered"] = Field(
        default="always",
        description="Which messages' executions are looked for before one is created: `always` or only `redelivered`.",
    )
    deduplicate_window: Annotated[float, Field(ge=60, le=315_360_000)] = Field(
        default=604_800,
        description="How far back the execution of a fresh message is looked for, which is a duplicate's then. "
        "Kestra on H2 or MySQL reads every execution of that time for each look-up.",
    )
    adopt_grace: Annotated[float, Field(ge=0, le=600)] = Field(
        default=10, description="How long a redelivered message's execution is looked for before another is created."
    )
    ambiguous_wait: Annotated[float, Field(ge=0, le=600)] = Field(
        default=35,
        description="How long to look for the execution of a create whose answer never came (Kestra holds one 30 s).",
    )
    consumer_timeout: Annotated[float, Field(ge=1, le=100_000_000)] | None = Field(
        default=None,
        description="How long a delivery may stay unsettled, which RabbitMQ 4.3 lets a consumer of a quorum queue say. "
        "Default: twice the job time-out and an hour.",
    )
    http_host: str = Field(
        default="127.0.0.1", description="Where metrics and health are served; `0.0.0.0` in a container."
    )
    http_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=9464, description="The port for it; 0 takes a free one and logs it."
    )

    @property
    def flow_patterns(self) -> tuple[str, ...]:
        """The allow-list: as given, else the lanes' own flows."""
        return self.allowed_flows or tuple(sorted({lane.flow for lane in self.all_lanes if lane.flow}))

    @property
    def hold(self) -> float:
        """How long a delivery may stay unsettled: queueing, an execution to its deadline, and trouble on the way."""
        return self.consumer_timeout or 2 * self.job_timeout + 3600

    @property
    def policy(self) -> Policy:
        """The choices that settlements depend on."""
        return Policy(max_attempts=self.max_attempts, retry_delays=self.retry_delays, ack_warning=self.ack_warning)


Section = TypeVar("Section", bound=CommandSettings)


def load(section: type[Section]) -> Section:
    """The settings of that section (or `Settings`, all of them) from the environment.

    Raises:
        SettingsError: naming every setting that can't be used, never with its value.
    """
    try:
        return section()
    except ValidationError as error:
        raise SettingsError("; ".join(_faults(error))) from None


def check_for_run(settings: Settings) -> None:
    """What only the consumer needs.

    Raises:
        SettingsError: no message could ever start a flow.
    """
    if not settings.flow_patterns:
        raise SettingsError("no flow may be started: set BRIDGE_FLOW, a flow in BRIDGE_LANES, or BRIDGE_ALLOWED_FLOWS")


def unknown(environment: Iterable[str]) -> list[str]:
    """A warning for each variable with our prefix that is no setting, with the likeliest one meant."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    warnings = []
    for name in sorted(environment):
        ours = name.upper().startswith(PREFIX) and not name.upper().startswith(OTHERS_PREFIX)
        if ours and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            warnings.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return warnings


def _faults(error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = [str(part) for part in fault["loc"]]
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            text = "is not set"
        name = f"{PREFIX}{where[0].upper()}" + "".join(f"[{part}]" for part in where[1:]) if where else ""
        faults.append(f"{name} {text[0].lower()}{text[1:]}" if name else text)
    return faults
