"""The settings, read once from the environment and checked whole."""

from bridge.settings.settings import (
    FROM_JSON,
    BrokerSettings,
    CommandSettings,
    FlowSettings,
    KestraSettings,
    Lane,
    Settings,
    authority,
    check_for_run,
    in_a_file,
    lane_named,
    load,
    unknown,
)

__all__ = [
    "FROM_JSON",
    "BrokerSettings",
    "CommandSettings",
    "FlowSettings",
    "KestraSettings",
    "Lane",
    "Settings",
    "authority",
    "check_for_run",
    "in_a_file",
    "lane_named",
    "load",
    "unknown",
]
