"""Kestra's API."""

from bridge.kestra.client import (
    CONCURRENT_CREATES,
    CONCURRENT_QUESTIONS,
    CREATE_TIMEOUT,
    PAGE_SIZE,
    Dialect,
    FailureReport,
    Kestra,
    StoredFlow,
    execution_url,
    parse_execution,
)

__all__ = [
    "CONCURRENT_CREATES",
    "CONCURRENT_QUESTIONS",
    "CREATE_TIMEOUT",
    "PAGE_SIZE",
    "Dialect",
    "FailureReport",
    "Kestra",
    "StoredFlow",
    "execution_url",
    "parse_execution",
]
