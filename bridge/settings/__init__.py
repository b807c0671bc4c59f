"""The settings, read once from the environment and checked whole."""

from bridge.settings.base import CommandSettings, Section, in_env_file, load
from bridge.settings.broker import BrokerSettings, FlowSettings, Lane, lane_named
from bridge.settings.kestra import KestraSettings
from bridge.settings.secret_files import SecretPath, in_a_file
from bridge.settings.service import Settings, check_for_run, unknown
from bridge.settings.values import FROM_JSON, authority

__all__ = [
    "FROM_JSON",
    "BrokerSettings",
    "CommandSettings",
    "FlowSettings",
    "KestraSettings",
    "Lane",
    "SecretPath",
    "Section",
    "Settings",
    "authority",
    "check_for_run",
    "in_a_file",
    "in_env_file",
    "lane_named",
    "load",
    "unknown",
]
