"""Kestra's API."""

from bridge.kestra.client import (
    Dialect,
    FailureReport,
    Kestra,
    StoredFlow,
    execution_url,
    parse_execution,
)
from bridge.kestra.limits import DEFAULT_LIMITS, RequestLimits

__all__ = [
    "DEFAULT_LIMITS",
    "Dialect",
    "FailureReport",
    "Kestra",
    "RequestLimits",
    "StoredFlow",
    "execution_url",
    "parse_execution",
]
