"""The settings for RabbitMQ: its address and login, its queues, and the flows of their messages."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from bridge import tls
from bridge.errors import SettingsError
from bridge.job.flow_name import FlowName
from bridge.settings.base import CommandSettings
from bridge.settings.queue_names import lane_of_side_queue
from bridge.settings.secret_files import SecretPath, in_a_file
from bridge.settings.values import (
    ANY_CASE,
    FROM_JSON,
    AmqpUrl,
    Delay,
    FlowPattern,
    FlowText,
    HttpUrl,
    Prefetch,
    QueueName,
    Readable,
    authority,
    check_tls,
    plain,
)
from bridge.settings.variables import PREFIX


class Lane(BaseModel):
    """A queue with its own prefetch, and the flow of messages that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: QueueName
    prefetch: Prefetch = 8
    flow: FlowText | None = None

    @property
    def flow_name(self) -> FlowName | None:
        """The flow, parsed."""
        if self.flow is None:
            return None
        return FlowName.parse(self.flow)


class BrokerSettings(CommandSettings):
    """The settings that talking to RabbitMQ takes: its address and login, and the queues."""

    amqp_url: AmqpUrl = Field(
        description="RabbitMQ's address, `amqp://user:password@host:port/vhost` or `amqps://…`, "
        "with `%2F` for a `/` in a name or password. User and password can also be given apart "
        "from it. Without `/vhost` it means the virtual host `/`. Don't end it in a single `/`: "
        "other clients take that for a virtual host without a name. With `?auth=external` the "
        "user is that of our certificate."
    )
    amqp_url_file: SecretPath | None = in_a_file("the address")
    amqp_username: str | None = Field(
        default=None, description="RabbitMQ's user, if the address has none."
    )
    amqp_username_file: SecretPath | None = in_a_file("the user")
    amqp_password: SecretStr | None = Field(
        default=None, description="The password of RabbitMQ's user."
    )
    amqp_password_file: SecretPath | None = in_a_file("the password")
    amqp_ca: Readable | None = Field(
        default=None,
        description="A file of CA certificates to check RabbitMQ's by, for `amqps`. "
        "Default: the public ones.",
    )
    amqp_certificate: Readable | None = Field(
        default=None,
        description="A file with our own certificate (and its chain), for a RabbitMQ "
        "that demands one.",
    )
    amqp_key: Readable | None = Field(
        default=None,
        description="A file with the key of that certificate, if it is not in the same file. It "
        "has no pass phrase.",
    )
    management_url: HttpUrl | None = Field(
        default=None,
        description="RabbitMQ's management API, which `status` and `doctor` ask. Default: the "
        "host of BRIDGE_AMQP_URL, `http` and port 15672, or for `amqps` `https` and port 15671.",
    )
    management_username: str | None = Field(
        default=None,
        description="A user for the management API, with the tag `management`. Default: the "
        "user of BRIDGE_AMQP_URL.",
    )
    management_username_file: SecretPath | None = in_a_file("the user")
    management_password: SecretStr | None = Field(
        default=None, description="The password of the management API's user."
    )
    management_password_file: SecretPath | None = in_a_file("the password")
    queue: QueueName = Field(
        default="kestra.jobs",
        description="The queue of job messages. The names of all other queues and exchanges "
        "follow from it.",
    )
    prefetch: Prefetch = Field(
        default=8,
        description="How many jobs each replica runs at once. All replicas together should have "
        "as many as Kestra should run at once.",
    )
    flow: FlowText | None = Field(
        default=None, description="The flow of messages that name none, `namespace/id`."
    )
    lanes: Annotated[tuple[Lane, ...], *FROM_JSON] = Field(
        default=(),
        description="Several queues instead, so that long work can't take every slot: a JSON list "
        "of `{queue, prefetch, flow}`.",
    )
    queue_type: Annotated[Literal["auto", "classic", "quorum"], ANY_CASE] = Field(
        default="auto",
        description="`quorum` or `classic`; `auto` is quorum from RabbitMQ 4.3 on, else classic, "
        "and takes a classic queue that exists.",
    )
    max_priority: Annotated[int, Field(ge=1, le=255)] = Field(
        default=10, description="The highest priority of a message."
    )
    retry_delays: Annotated[tuple[Delay, ...], Field(min_length=1), *FROM_JSON] = Field(
        default=(30, 300),
        description="A JSON list of delays before each further attempt, 1 to 2000000 seconds each; "
        "the last repeats.",
    )

    @field_validator("lanes")
    @classmethod
    def _names_are_distinct(cls, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
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
    def _management_login_is_whole(self) -> Self:
        if bool(self.management_username) != bool(self.management_password):
            raise ValueError(
                "BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD go together"
            )
        return self

    @model_validator(mode="after")
    def _login_is_whole_and_given_once(self) -> Self:
        url = urlsplit(self.amqp_url.get_secret_value())
        for part, name in ((url.username, "amqp_username"), (url.password, "amqp_password")):
            if part and getattr(self, name):
                raise ValueError(
                    f"{self.origin('amqp_url')} holds what {self.origin(name)} says: give it once"
                )
        if bool(url.username or self.amqp_username) != bool(url.password or self.amqp_password):
            raise ValueError(
                "RabbitMQ's user and password go together: both in BRIDGE_AMQP_URL, or "
                "BRIDGE_AMQP_USERNAME and BRIDGE_AMQP_PASSWORD, or in files that "
                "BRIDGE_AMQP_USERNAME_FILE and BRIDGE_AMQP_PASSWORD_FILE name"
            )
        return self

    @model_validator(mode="after")
    def _amqp_tls_files_go_with_amqps(self) -> Self:
        scheme = urlsplit(self.amqp_url.get_secret_value()).scheme
        speaks_tls = scheme == "amqps" or self.management_address.startswith("https://")
        check_tls(self.amqp_tls, speaks_tls=speaks_tls, url=self.origin("amqp_url"), scheme="amqps")
        return self

    @property
    def all_lanes(self) -> tuple[Lane, ...]:
        """The lanes, or the single one of `queue`, `prefetch` and `flow`."""
        if self.lanes:
            return self.lanes
        return (Lane(queue=self.queue, prefetch=self.prefetch, flow=self.flow),)

    @property
    def amqp_login(self) -> str:
        """RabbitMQ's address, with the user and the password that were given apart from it."""
        given = self.amqp_url.get_secret_value()
        if not self.amqp_username and not self.amqp_password:
            return given
        url = urlsplit(given)
        user, password = url.username, url.password
        if self.amqp_username:
            user = quote(self.amqp_username, safe="")
        if self.amqp_password:
            password = quote(plain(self.amqp_password), safe="")
        host = url.netloc.rpartition("@")[2]
        return url._replace(netloc=f"{user}:{password}@{host}").geturl()

    @property
    def amqp_tls(self) -> tls.TlsIdentity:
        """The files for TLS with RabbitMQ."""
        return tls.TlsIdentity(
            prefix=f"{PREFIX}AMQP",
            ca=self.amqp_ca,
            certificate=self.amqp_certificate,
            key=self.amqp_key,
        )

    @property
    def broker_address(self) -> str:
        """RabbitMQ's address as `host:port/vhost`, without credentials."""
        url = urlsplit(self.amqp_url.get_secret_value())
        default_port = 5671 if url.scheme == "amqps" else 5672
        return f"{authority(url.hostname or '', url.port or default_port)}{url.path or '/'}"

    @property
    def virtual_host(self) -> str:
        """The virtual host that the address names; `/` if it names none."""
        path = urlsplit(self.amqp_url.get_secret_value()).path
        return unquote(path[1:]) or "/"

    @property
    def management_address(self) -> str:
        """The management API's address, as set or as it follows from RabbitMQ's."""
        if self.management_url:
            return self.management_url
        url = urlsplit(self.amqp_url.get_secret_value())
        host = url.hostname or ""
        if url.scheme == "amqps":
            return f"https://{authority(host, 15671)}"
        return f"http://{authority(host, 15672)}"

    @property
    def management_login(self) -> tuple[str, SecretStr]:
        """User and password for the management API: its own, or RabbitMQ's, which are `guest` by
        AMQP's custom.
        """
        if self.management_username and self.management_password:
            return self.management_username, self.management_password
        url = urlsplit(self.amqp_login)
        return unquote(url.username or "guest"), SecretStr(unquote(url.password or "guest"))


class FlowSettings(BrokerSettings):
    """The lanes, and the flows that their messages may start."""

    allowed_flows: Annotated[tuple[FlowPattern, ...], *FROM_JSON] = Field(
        default=(),
        description='A JSON list of patterns of flows that messages may start, `["team/*"]`; '
        "`[]` is none. Default: the lanes' own flows.",
    )

    @property
    def flow_patterns(self) -> tuple[str, ...]:
        """The allow-list as given, even if empty; without one, the lanes' own flows."""
        if "allowed_flows" in self.model_fields_set:
            return self.allowed_flows
        return tuple(sorted({lane.flow for lane in self.all_lanes if lane.flow}))

    @property
    def known_patterns(self) -> tuple[str, ...] | None:
        """The allow-list; None if these settings don't mention flows, as on another host."""
        given = "allowed_flows" in self.model_fields_set
        if given or self.flow_patterns:
            return self.flow_patterns
        return None


def lane_named(settings: BrokerSettings, queue: str, *, option: str) -> Lane:
    """The lane of that queue, whether the settings name it or not.

    Raises:
        SettingsError: no queue of a bridge can have that name; the text names `option`.
    """
    for lane in settings.all_lanes:
        if lane.queue == queue:
            return lane
    try:
        return Lane(queue=queue)
    except ValueError as error:
        raise SettingsError(
            f"{option} {queue!a} can't be a queue's name here: letters, digits and ._:- can"
        ) from error
