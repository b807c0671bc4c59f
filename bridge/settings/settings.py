"""The settings: read once, from the environment and `.env`, and checked whole."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

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
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from bridge import tls
from bridge.errors import SettingsError
from bridge.job.job import FlowName
from bridge.job.settlement import Policy
from bridge.settings.queue_names import lane_of_side_queue, not_an_exchange_of_ours
from bridge.telemetry import log

PREFIX = "BRIDGE_"
OTHERS_PREFIX = "BRIDGE_MACHINE_"
"""Settings of `kestra-bridge machine` alone, which are declared in `bridge.machines.settings`."""

ENV_FILE = ".env"
"""Where settings stand that the environment hasn't, in the folder in which a command is started."""

FILE = "_file"
"""How the settings end that name a file in place of the value: `BRIDGE_AMQP_PASSWORD_FILE`, by the
setting before."""

LONGEST_SECRET = 65_536
"""Bytes. What is longer is some other file."""

_INSIDE_KESTRA = re.compile(r"/(?:api/v1|ui)(?:/.*)?$")
"""Addresses below Kestra's own, as they stand in a browser or in Kestra's documentation."""

_FLOW_PATTERN = re.compile(r"[A-Za-z0-9._/*?\[\]!-]+")

QueueType = Literal["auto", "classic", "quorum"]


Section = TypeVar("Section", bound="CommandSettings")


def _flow_name(text: str) -> str:
    try:
        return str(FlowName.parse(text))
    except ValueError:
        raise ValueError("must be namespace/id") from None


def _amqp_url(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    parts = _url_parts(text)
    # An @ after the host, or a fragment, is part of a password that begins with digits, which look
    # like a port.
    misread = parts is None or "@" in parts.path + parts.query or "#" in text
    if (
        parts is None
        or misread
        or parts.scheme not in ("amqp", "amqps")
        or not _is_host(parts.hostname)
    ):
        raise ValueError(
            "must be amqp://user:password@host:port/vhost or amqps://…; in user, password and "
            "virtual host write %2F "
            "for /, %3F for ?, %23 for #, %40 for @"
        )
    return secret


def _queue_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", text):
        raise ValueError("must be letters, digits and . _ : - only")
    return text


def _lane_name(text: str) -> str:
    return not_an_exchange_of_ours(_queue_name(text))


def _tenant(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", text):
        raise ValueError("must be lower-case letters, digits, - and _ only")
    return text


def _kestra_url(text: str) -> str:
    if found := _INSIDE_KESTRA.search(text):
        raise ValueError(f"must be Kestra's own address, without {found.group()}")
    return text


def _flow_pattern(text: str) -> str:
    """A pattern that at least one flow's name could match."""
    if not _FLOW_PATTERN.fullmatch(text) or not (set("*?[") & set(text) or _is_flow_name(text)):
        raise ValueError("must be namespace/id or a pattern of such, as company.team/*")
    return text


def _is_flow_name(text: str) -> bool:
    try:
        FlowName.parse(text)
    except ValueError:
        return False
    return True


def _no_boolean(value: Any) -> Any:
    """JSON's true is no number, and Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    return value


def _http_url(text: str, info: ValidationInfo) -> str:
    parts = _url_parts(text)
    if parts is None or parts.scheme not in ("http", "https"):
        raise ValueError("must be http://host:port or https://…")
    # Wherever the @ stands: behind `user:12345/` the rest of a password would pass for a path.
    if "@" in text:
        service = f"{PREFIX}{(info.field_name or '').upper().removesuffix('_URL')}"
        raise ValueError(
            f"must not hold credentials: use {service}_USERNAME and {service}_PASSWORD"
        )
    if not _is_host(parts.hostname) or "?" in text or "#" in text:
        raise ValueError("must be http://host:port or https://…, without ? and #")
    return parts.geturl().rstrip("/")


def authority(host: str, port: int) -> str:
    """Host and port as an address has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_host(name: str | None) -> bool:
    return bool(name) and not any(character.isspace() for character in name or "")


def _url_parts(text: str) -> SplitResult | None:
    """A URL's parts, or None where it is none. The library's errors aren't shown: they quote what
    may be a password.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for a port that is none
    except ValueError:
        return None
    return parts


def _header_text(secret: SecretStr) -> SecretStr:
    """A line break at a token's end is common, and the error that it would end in quotes the
    token.
    """
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


def _file_text(path: Path) -> str:
    """What stands in a file, without the line break at its end.

    Raises:
        ValueError: that can be no setting's value. The path isn't shown: somebody may have put the
        value there instead.
    """
    try:
        if not path.is_file():  # a pipe could be read but once
            raise ValueError("is no file")
        with path.open("rb") as file:
            data = file.read(LONGEST_SECRET + 1)
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("is a file that is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"is no file that can be read ({error.strerror})") from None
    if not text:
        raise ValueError("is an empty file")
    if len(data) > LONGEST_SECRET or not text.isprintable():
        raise ValueError("is a file of more than one line, or of what can't be printed")
    return text


@dataclass(frozen=True, slots=True)
class _Fault:
    """In place of a value, why there can be none: so it is named along with all other faults."""

    reason: str


def _password(secret: SecretStr) -> set[str]:
    """The password in a URL, as it is written and as it is sent."""
    parts = _url_parts(secret.get_secret_value())
    return {parts.password, unquote(parts.password)} if parts and parts.password else set()


def _plain(value: str | SecretStr | None) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value or ""


def _check_tls(identity: tls.TlsIdentity, *, by_tls: bool, url: str, scheme: str) -> None:
    """Whoever gives what TLS takes must not be left without it.

    Raises:
        ValueError: there would be none, or no certificate to the key.
    """
    for name in ("ca", "certificate", "key"):
        if getattr(identity, name) and not by_tls:
            raise ValueError(
                f"{identity.prefix}_{name.upper()} is for TLS: {url} must begin with {scheme}://"
            )
    if identity.key and not identity.certificate:
        raise ValueError(f"{identity.prefix}_KEY needs {identity.prefix}_CERTIFICATE")


def in_a_file(what: str) -> Any:
    """A setting that names the file in which another one stands, the one before it."""
    return Field(default=None, description=f"A file that holds {what}, instead.")


# Decoded here and not by pydantic-settings, which would stop at the first one that isn't JSON.
FROM_JSON = (NoDecode, BeforeValidator(_from_json))
Readable = Annotated[Path, AfterValidator(_readable)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
FlowText = Annotated[str, AfterValidator(_flow_name)]
# One validator: of two beside a Field, pydantic 2.8 drops the first.
QueueName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_lane_name)]
Tenant = Annotated[str, AfterValidator(_tenant)]
FlowPattern = Annotated[str, AfterValidator(_flow_pattern)]
Prefetch = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=65_535)]
Delay = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=2_000_000)]


class Lane(BaseModel):
    """One queue with its own prefetch, and the flow of messages that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: QueueName
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
        env_file=ENV_FILE,
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

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put the contents of files where the settings belong that they stand for."""
        values = dict(values)
        for name in _may_be_in_files(cls):
            file = f"{name}{FILE}"
            if values.get(file) is None:
                continue
            if values.get(name) is not None:
                values[file] = _Fault(f"goes in place of {PREFIX}{name.upper()}: give one of them")
                continue
            try:
                values[name] = _file_text(Path(values[file]))
            except ValueError as error:
                values[file] = _Fault(str(error))
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _lower(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, _Fault):
            raise ValueError(value.reason)
        choice = info.field_name in ("log_level", "log_format", "queue_type", "deduplicate")
        return value.lower() if choice and isinstance(value, str) else value

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown, in every spelling in which a library might show it, the longest
        first.
        """
        texts: set[str] = set()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                text = value.get_secret_value()
                texts |= (
                    _password(value) if name == "amqp_url" else {text, quote(text, safe="")} - {""}
                )
        return tuple(sorted(texts, key=len, reverse=True))

    def refreshed(self, section: type[Section]) -> Section:
        """That section of these settings with what stands in files read anew; the same object if
        nothing has changed.

        What is new is masked in the log from here on.

        Raises:
            SettingsError: a file of the section can't be used, now.
        """
        files = {name: getattr(self, f"{name}{FILE}") for name in self._in_files(section)}
        try:
            if all(_file_text(path) == _plain(getattr(self, name)) for name, path in files.items()):
                assert isinstance(self, section)
                return self
        except ValueError:
            pass  # the whole check below says which one, and why
        others = (self.model_fields_set & section.model_fields.keys()) - files.keys()
        found = _checked(lambda: section(**{name: getattr(self, name) for name in others}))
        log.hide(found.secrets)
        return found

    def origin(self, name: str) -> str:
        """The environment variable that a setting's value came by."""
        return f"{PREFIX}{name}{FILE if name in self._in_files(type(self)) else ''}".upper()

    def _in_files(self, section: type[CommandSettings]) -> set[str]:
        """The settings of the section whose values stand in files."""
        return {name for name in _may_be_in_files(section) if getattr(self, f"{name}{FILE}")}


@cache
def _may_be_in_files(section: type[CommandSettings]) -> tuple[str, ...]:
    """The settings that can be given as files; known once, since every request to Kestra looks for
    changed ones.
    """
    fields = section.model_fields
    return tuple(name for name in fields if f"{name}{FILE}" in fields)


class BrokerSettings(CommandSettings):
    """What it takes to talk to RabbitMQ: where it is, and its queues."""

    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_url)] = Field(
        description="RabbitMQ's address, `amqp://user:password@host:port/vhost` or `amqps://…`; "
        "or with user and "
        "password apart from it. With `?auth=external` the user is that of our certificate."
    )
    amqp_url_file: Path | None = in_a_file("the address")
    amqp_username: str | None = Field(
        default=None, description="RabbitMQ's user, where it isn't in the address."
    )
    amqp_username_file: Path | None = in_a_file("the user")
    amqp_password: SecretStr | None = Field(default=None, description="Its password.")
    amqp_password_file: Path | None = in_a_file("the password")
    amqp_ca: Readable | None = Field(
        default=None, description="A file of CA certificates to check RabbitMQ's by, for `amqps`."
    )
    amqp_certificate: Readable | None = Field(
        default=None,
        description="A file with our own certificate (and its chain), for a RabbitMQ "
        "that demands one.",
    )
    amqp_key: Readable | None = Field(
        default=None,
        description="A file with its key, where that is not in the same file. It has "
        "no pass phrase.",
    )
    management_url: HttpUrl | None = Field(
        default=None,
        description="RabbitMQ's management API, which `status` and `doctor` ask. Default: the "
        "host of BRIDGE_AMQP_URL, "
        "`http` and port 15672, or for `amqps` `https` and port 15671.",
    )
    management_username: str | None = Field(
        default=None,
        description="A user for it who has the tag `management`. Default: the one of "
        "BRIDGE_AMQP_URL.",
    )
    management_username_file: Path | None = in_a_file("the user")
    management_password: SecretStr | None = Field(default=None, description="Its password.")
    management_password_file: Path | None = in_a_file("the password")
    queue: QueueName = Field(default="kestra.jobs", description="The queue of job messages.")
    prefetch: Prefetch = Field(
        default=8, description="How many jobs at once. Equals what Kestra should run at once."
    )
    flow: FlowText | None = Field(
        default=None, description="The flow of messages that name none, `namespace/id`."
    )
    lanes: Annotated[tuple[Lane, ...], *FROM_JSON] = Field(
        default=(), description="Several queues instead: a JSON list of `{queue, prefetch, flow}`."
    )
    queue_type: QueueType = Field(
        default="auto",
        description="`quorum` or `classic`; `auto` is quorum from RabbitMQ 4.3 on, else classic.",
    )
    max_priority: Annotated[int, Field(ge=1, le=255)] = Field(
        default=10, description="The highest priority of a message."
    )
    retry_delays: Annotated[tuple[Delay, ...], Field(min_length=1), *FROM_JSON] = Field(
        default=(30, 300),
        description="A JSON list of delays before each further attempt; the last repeats.",
    )

    @field_validator("lanes")
    @classmethod
    def _distinct(cls, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        queues = [lane.queue for lane in lanes]
        if len(set(queues)) < len(queues):
            raise ValueError("names a queue twice")
        for queue in queues:
            lane = lane_of_side_queue(queue)
            if lane in queues:
                raise ValueError(
                    f"names {queue}, which is the name of a side queue of lane {lane}: "
                    "rename one of them"
                )
        return lanes

    @model_validator(mode="after")
    def _whole_management_login(self) -> Self:
        if bool(self.management_username) != bool(self.management_password):
            raise ValueError(
                "BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD go together"
            )
        return self

    @property
    def all_lanes(self) -> tuple[Lane, ...]:
        """The lanes, or the one that `queue`, `prefetch` and `flow` make."""
        return self.lanes or (Lane(queue=self.queue, prefetch=self.prefetch, flow=self.flow),)

    @model_validator(mode="after")
    def _one_login_at_the_broker(self) -> Self:
        url = urlsplit(self.amqp_url.get_secret_value())
        for part, name in ((url.username, "amqp_username"), (url.password, "amqp_password")):
            if part and getattr(self, name):
                raise ValueError(
                    f"{self.origin('amqp_url')} holds what {self.origin(name)} says: give it once"
                )
        if bool(url.username or self.amqp_username) != bool(url.password or self.amqp_password):
            raise ValueError(
                "RabbitMQ's user and password go together: both in BRIDGE_AMQP_URL, or "
                "BRIDGE_AMQP_USERNAME and "
                "BRIDGE_AMQP_PASSWORD, or in files that BRIDGE_AMQP_USERNAME_FILE and "
                "BRIDGE_AMQP_PASSWORD_FILE name"
            )
        by_tls = url.scheme == "amqps" or self.management_address.startswith("https://")
        _check_tls(self.amqp_tls, by_tls=by_tls, url=self.origin("amqp_url"), scheme="amqps")
        return self

    @property
    def amqp_login(self) -> str:
        """RabbitMQ's address, with the user and the password that were given apart from it."""
        given = self.amqp_url.get_secret_value()
        if not (self.amqp_username or self.amqp_password):
            return given
        url = urlsplit(given)
        user = quote(self.amqp_username, safe="") if self.amqp_username else url.username
        password = (
            quote(_plain(self.amqp_password), safe="") if self.amqp_password else url.password
        )
        return url._replace(netloc=f"{user}:{password}@{url.netloc.rpartition('@')[2]}").geturl()

    @property
    def amqp_tls(self) -> tls.TlsIdentity:
        """What TLS with RabbitMQ takes, if it is spoken."""
        return tls.TlsIdentity(
            prefix=f"{PREFIX}AMQP",
            ca=self.amqp_ca,
            certificate=self.amqp_certificate,
            key=self.amqp_key,
        )

    @property
    def broker_address(self) -> str:
        """RabbitMQ's address without the credentials."""
        url = urlsplit(self.amqp_url.get_secret_value())
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        return f"{authority(url.hostname or '', port)}{url.path or '/'}"

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
        host = url.hostname or ""
        return (
            f"https://{authority(host, 15671)}"
            if url.scheme == "amqps"
            else f"http://{authority(host, 15672)}"
        )

    @property
    def management_login(self) -> tuple[str, SecretStr]:
        """User and password for the management API: its own, or RabbitMQ's, which are `guest` by
        AMQP's custom.
        """
        if self.management_username and self.management_password:
            return self.management_username, self.management_password
        url = urlsplit(self.amqp_login)
        return unquote(url.username or "guest"), SecretStr(unquote(url.password or "guest"))


class KestraSettings(CommandSettings):
    """What it takes to talk to Kestra."""

    kestra_url: Annotated[HttpUrl, AfterValidator(_kestra_url)] = Field(
        description="Kestra's address, `http://host:8080`."
    )
    kestra_tenant: Tenant = Field(
        default="main", description="Kestra's tenant; the open-source edition has `main` alone."
    )
    kestra_username: str | None = Field(
        default=None, description="User for Kestra's Basic authentication."
    )
    kestra_username_file: Path | None = in_a_file("the user")
    kestra_password: SecretStr | None = Field(default=None, description="Its password.")
    kestra_password_file: Path | None = in_a_file("the password")
    kestra_token: Annotated[SecretStr, AfterValidator(_header_text)] | None = Field(
        default=None, description="An API token (Bearer), instead of user and password."
    )
    kestra_token_file: Path | None = in_a_file("the token")
    kestra_ca: Readable | None = Field(
        default=None, description="A file of CA certificates to check Kestra's by, for `https`."
    )
    kestra_certificate: Readable | None = Field(
        default=None,
        description="A file with our own certificate (and its chain), for a Kestra "
        "that demands one.",
    )
    kestra_key: Readable | None = Field(
        default=None,
        description="A file with its key, where that is not in the same file. It has "
        "no pass phrase.",
    )
    ack_warning: bool = Field(
        default=True, description="Whether an execution that ended in WARNING is a success."
    )

    @model_validator(mode="after")
    def _one_way_to_log_in(self) -> Self:
        if self.kestra_token and (self.kestra_username or self.kestra_password):
            raise ValueError(
                "BRIDGE_KESTRA_TOKEN and BRIDGE_KESTRA_USERNAME/PASSWORD exclude each other"
            )
        if bool(self.kestra_username) != bool(self.kestra_password):
            raise ValueError("BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD go together")
        by_tls = urlsplit(self.kestra_url).scheme == "https"
        _check_tls(self.kestra_tls, by_tls=by_tls, url="BRIDGE_KESTRA_URL", scheme="https")
        return self

    @property
    def kestra_tls(self) -> tls.TlsIdentity:
        """What TLS with Kestra takes, if it is spoken."""
        return tls.TlsIdentity(
            prefix=f"{PREFIX}KESTRA",
            ca=self.kestra_ca,
            certificate=self.kestra_certificate,
            key=self.kestra_key,
        )


class FlowSettings(BrokerSettings):
    """The lanes, and which flows their messages may start."""

    allowed_flows: Annotated[tuple[FlowPattern, ...], *FROM_JSON] = Field(
        default=(),
        description="A JSON list of patterns of flows that messages may start; [] is none. "
        "Default: the lanes' own.",
    )

    @property
    def flow_patterns(self) -> tuple[str, ...]:
        """The allow-list: as given, be it empty, else the lanes' own flows."""
        if "allowed_flows" in self.model_fields_set:
            return self.allowed_flows
        return tuple(sorted({lane.flow for lane in self.all_lanes if lane.flow}))

    @property
    def known_patterns(self) -> tuple[str, ...] | None:
        """The allow-list; None where these settings say nothing of it, as those of another host may
        do.
        """
        given = "allowed_flows" in self.model_fields_set
        return self.flow_patterns if given or self.flow_patterns else None


class Settings(FlowSettings, KestraSettings):
    """Every setting: an environment variable that begins with `BRIDGE_`, or a line of `.env`. Times
    are in seconds.
    """

    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How many attempts a job gets."
    )
    job_timeout: Annotated[float, Field(gt=0, le=31_536_000)] = Field(
        default=21_600,
        description="How long an execution may take; then it is killed and counts as failed.",
    )
    reconcile_interval: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=30, description="How often executions are looked up whose reply may have been lost."
    )
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = Field(
        default=30,
        description="How long a stopping bridge waits for executions to end, before it leaves "
        "them to the next.",
    )
    deduplicate: Literal["always", "redelivered"] = Field(
        default="always",
        description="Which messages' executions are looked for before one is created: `always` or "
        "only `redelivered`.",
    )
    deduplicate_window: Annotated[float, Field(ge=60, le=315_360_000)] = Field(
        default=604_800,
        description="How far back the execution of a fresh message is looked for, which is a "
        "duplicate's then. "
        "Kestra on H2 or MySQL reads every execution of that time for a search.",
    )
    adopt_grace: Annotated[float, Field(ge=0, le=600)] = Field(
        default=10,
        description="How long a redelivered message's execution is looked for before "
        "another is created.",
    )
    ambiguous_wait: Annotated[float, Field(ge=0, le=600)] = Field(
        default=35,
        description="How long to look for the execution of a create whose answer never came "
        "(Kestra holds one 30 s).",
    )
    consumer_timeout: Annotated[float, Field(ge=1, le=100_000_000)] | None = Field(
        default=None,
        description="How long a delivery may stay unsettled, which RabbitMQ 4.3 lets a consumer "
        "of a quorum queue say. "
        "Default: twice the job time-out and an hour.",
    )
    http_host: str = Field(
        default="127.0.0.1",
        description="Where metrics and health are served; `0.0.0.0` in a container.",
    )
    http_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=9464, description="The port for it; 0 takes a free one and logs it."
    )

    @property
    def hold(self) -> float:
        """How long a delivery may stay unsettled: queueing, an execution to its deadline, and
        trouble on the way.
        """
        return self.consumer_timeout or 2 * self.job_timeout + 3600

    @property
    def policy(self) -> Policy:
        """The choices that settlements depend on."""
        return Policy(
            max_attempts=self.max_attempts,
            retry_delays=self.retry_delays,
            ack_warning=self.ack_warning,
        )


def load(section: type[Section]) -> Section:
    """The settings of that section (or `Settings`, all of them) from the environment.

    Raises:
        SettingsError: naming every setting that can't be used, never with its value.
    """
    return _checked(section)


def _checked(made: Callable[[], Section]) -> Section:
    try:
        return made()
    except ValidationError as error:
        raise SettingsError("; ".join(_faults(error))) from None
    except UnicodeDecodeError:
        raise SettingsError(f"the file {ENV_FILE} is not UTF-8: save it as that") from None
    except OSError as error:
        raise SettingsError(f"the file {ENV_FILE} can't be read: {error.strerror}") from None


def in_env_file() -> list[str]:
    """The variables that the file `.env` sets."""
    return [name.upper() for name in DotEnvSettingsSource(CommandSettings).env_vars]


def lane_named(settings: BrokerSettings, queue: str, *, option: str) -> Lane:
    """The lane of that queue, which need not be among those of the settings.

    Raises:
        SettingsError: no queue of a bridge can have such a name.
    """
    try:
        return next((lane for lane in settings.all_lanes if lane.queue == queue), None) or Lane(
            queue=queue
        )
    except ValueError as error:
        raise SettingsError(
            f"{option} {queue!a} can't be a queue's name here: letters, digits and ._:- can"
        ) from error


def check_for_run(settings: Settings) -> None:
    """What only the consumer needs.

    Raises:
        SettingsError: no message could ever start a flow.
    """
    if "allowed_flows" in settings.model_fields_set and not settings.allowed_flows:
        raise SettingsError("BRIDGE_ALLOWED_FLOWS is [], by which no flow may be started")
    if not settings.flow_patterns:
        raise SettingsError(
            "no flow may be started: set BRIDGE_FLOW, a flow in BRIDGE_LANES, or "
            "BRIDGE_ALLOWED_FLOWS"
        )


def unknown(environment: Iterable[str], section: type[CommandSettings] | None = None) -> list[str]:
    """A warning for each variable with our prefix that is no setting, with the likeliest one meant.

    Those of machines are judged where the section has them.
    """
    section = section or Settings
    known = {f"{PREFIX}{name.upper()}" for name in (*Settings.model_fields, *section.model_fields)}
    all_are_known = any(name.startswith(OTHERS_PREFIX) for name in known)
    warnings = []
    for name in sorted(environment):
        ours = name.upper().startswith(PREFIX) and (
            all_are_known or not name.upper().startswith(OTHERS_PREFIX)
        )
        if ours and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            warnings.append(
                f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else "")
            )
    return warnings


def _faults(error: ValidationError) -> list[str]:
    faults = []
    found = error.errors(include_url=False, include_input=False, include_context=False)
    faulty = {str(part) for fault in found for part in fault["loc"][:1]}
    for fault in found:
        where = [str(part) for part in fault["loc"]]
        if fault["type"] == "missing" and f"{where[0]}{FILE}" in faulty:
            continue  # what is wrong with its file says more
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            text = "is not set"
        name = (
            f"{PREFIX}{where[0].upper()}" + "".join(f"[{part}]" for part in where[1:])
            if where
            else ""
        )
        faults.append(f"{name} {text[0].lower()}{text[1:]}" if name else text)
    return faults
