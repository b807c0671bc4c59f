"""Names of the environment variables that hold settings."""

from __future__ import annotations

PREFIX = "BRIDGE_"
MACHINE_PREFIX = "BRIDGE_MACHINE_"
"""Begins the settings that only `kestra-bridge machine` has; `bridge.machines.settings` declares
them."""

ENV_FILE = ".env"
"""Holds variables that the environment doesn't set; read from the folder where a command starts."""

FILE = "_file"
"""Ends a field that names a file in place of a value: `BRIDGE_AMQP_PASSWORD_FILE`."""


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"{PREFIX}{name}".upper()
