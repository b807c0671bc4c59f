"""Every setting of `kestra-bridge run`, and warnings about variables that are not settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from bridge.errors import SettingsError
from bridge.job.settlement import Policy
from bridge.settings.base import CommandSettings
from bridge.settings.broker import FlowSettings
from bridge.settings.kestra import KestraSettings
from bridge.settings.values import ANY_CASE, FROM_JSON, FlowPattern
from bridge.settings.variables import MACHINE_PREFIX, PREFIX, variable


class Settings(FlowSettings, KestraSettings):
    """Every setting of the consumer: an environment variable that begins with `BRIDGE_`, or a line
    of `.env`. Times are in seconds.
    """

    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How many attempts a job gets."
    )
    max_machines_lost: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5,
        description="How many attempts a job may lose with their machines before that ends it. "
        "They don't count in `BRIDGE_MAX_ATTEMPTS`.",
    )
    job_timeout: Annotated[float, Field(gt=0, le=31_536_000)] = Field(
        default=21_600,
        description="How long Kestra may run an execution; then it is killed and counts as "
        "failed. A message's own `timeout` takes precedence.",
    )
    reconcile_interval: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=30,
        description="How often to look up ends of executions whose reply may have been lost.",
    )
    report_interval: Annotated[float, Field(ge=0, le=60)] = Field(
        default=0.5,
        description="How often one replica, the reporter, asks Kestra what has ended and tells "
        "all replicas. While it finds ends, and Kestra answers quickly, it asks more often. 0 "
        "keeps this replica from doing so.",
    )
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = Field(
        default=30,
        description="How long a stopping bridge waits for executions to end, before it leaves "
        "them to the next.",
    )
    deduplicate: Annotated[Literal["ledger", "always", "redelivered"], ANY_CASE] = Field(
        default="ledger",
        description="How one execution for each attempt is ensured. `ledger`: replicas claim "
        "attempts in a stream of RabbitMQ before they create. `always`: they look in Kestra, too, "
        "before each create. `redelivered`: without a ledger, and only redelivered messages are "
        "looked up, so duplicate publishes go unnoticed.",
    )
    deduplicate_window: Annotated[float, Field(ge=60, le=315_360_000)] = Field(
        default=604_800,
        description="How far back a duplicate publish is recognised, and how long the ledger keeps "
        "claims. It keeps about 200,000 claims at most.",
    )
    adopt_grace: Annotated[float, Field(ge=0, le=600)] = Field(
        default=10,
        description="How long to look for a redelivered message's execution before another is "
        "created.",
    )
    ambiguous_wait: Annotated[float, Field(ge=0, le=600)] = Field(
        default=35,
        description="How long to look for the execution of a create call whose answer never came "
        "(Kestra itself holds a call for 30 s).",
    )
    consumer_timeout: Annotated[float, Field(ge=1, le=100_000_000)] | None = Field(
        default=None,
        description="How long a delivery may stay unsettled. A consumer of a quorum queue sets "
        "it at RabbitMQ from 4.3 on. Default: twice the job time-out and an hour.",
    )
    flows_with_machines: Annotated[tuple[FlowPattern, ...], *FROM_JSON] = Field(
        default=("bridge.jobs/vm-job", "bridge.jobs/vm-batch"),
        description="A JSON list of patterns of flows whose outputs say how long they had which "
        "machines. Kestra is asked for the outputs of their executions only.",
    )
    prices_per_hour: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], *FROM_JSON
    ] = Field(
        default={},
        description="What an hour of a machine costs: a JSON object of prices by the machine's "
        'size, `{"t3.small": 0.02}`. With them, results and dead letters say what a job cost.',
    )
    http_host: str = Field(
        default="127.0.0.1",
        description="Where metrics and health are served; `0.0.0.0` in a container.",
    )
    http_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=9464, description="The port of metrics and health; 0 takes a free one and logs it."
    )

    @property
    def hold(self) -> float:
        """Seconds that a delivery may stay unsettled: it queues in Kestra, its execution runs to
        the deadline, and there is trouble on the way.
        """
        return self.consumer_timeout or 2 * self.job_timeout + 3600

    @property
    def policy(self) -> Policy:
        """The choices that settlements depend on."""
        return Policy(
            max_attempts=self.max_attempts,
            retry_delays=self.retry_delays,
            ack_warning=self.ack_warning,
            max_machines_lost=self.max_machines_lost,
        )


def check_for_run(settings: Settings) -> None:
    """Check what only the consumer needs.

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


def unknown(environment: Iterable[str], section: type[CommandSettings] = Settings) -> list[str]:
    """A warning for each variable with our prefix that is not a setting, with the likeliest
    setting.

    Settings of machines are judged only if the section has them.
    """
    known = {variable(name) for name in (*Settings.model_fields, *section.model_fields)}
    knows_machines = any(name.startswith(MACHINE_PREFIX) for name in known)
    warnings = []
    for name in sorted(environment):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known:
            continue
        if upper.startswith(MACHINE_PREFIX) and not knows_machines:
            continue
        warning = f"{name} is no setting"
        for near in difflib.get_close_matches(upper, known, n=1):
            warning += f"; did you mean {near}?"
        warnings.append(warning)
    return warnings
