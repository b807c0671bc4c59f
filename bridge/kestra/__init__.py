"""Kestra's API.

A request goes down: `client` → `executions`, `flow_api`, `logs` → `transport`. Its answer comes
back up: `answers` judges it, `refusals` makes an error of it, `parse` reads it.
"""

from bridge.kestra.client import Kestra, execution_url
from bridge.kestra.dialect import Dialect
from bridge.kestra.limits import DEFAULT_LIMITS, RequestLimits
from bridge.kestra.logs import FailureReport, LogLine
from bridge.kestra.parse import StoredFlow, parse_execution
from bridge.kestra.transport import always

__all__ = [
    "DEFAULT_LIMITS",
    "Dialect",
    "FailureReport",
    "Kestra",
    "LogLine",
    "RequestLimits",
    "StoredFlow",
    "always",
    "execution_url",
    "parse_execution",
]
