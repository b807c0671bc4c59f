"""Settings as they are read from an environment with what is needed."""

from __future__ import annotations

import pytest

from bridge.errors import SettingsError
from bridge.settings import Settings, load

NEEDED = {
    "BRIDGE_AMQP_URL": "amqp://user:geheim@rabbit:5672/jobs",
    "BRIDGE_KESTRA_URL": "http://kestra:8080",
}


def loaded(environment: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        environment.setenv(f"BRIDGE_{name}", value)
    return load(Settings)


def fault(environment: pytest.MonkeyPatch, **variables: str) -> str:
    """The text of the error that settings with these variables are."""
    with pytest.raises(SettingsError) as caught:
        loaded(environment, **variables)
    return str(caught.value)
