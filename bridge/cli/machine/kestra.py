"""Which Kestra a new machine belongs to."""

from __future__ import annotations

import structlog

from bridge.errors import KestraError, SettingsError
from bridge.kestra import Kestra
from bridge.settings import KestraSettings, load

log = structlog.get_logger(__name__)


async def kestra_identity() -> str:
    """The id of the Kestra at BRIDGE_KESTRA_URL.

    It is empty if no Kestra is set, or it doesn't answer: a machine is made all the same, and any
    Kestra's reaper may then judge it.
    """
    try:
        settings = load(KestraSettings)
    except SettingsError as error:
        log.debug("no Kestra is set, so the machine names none", error=str(error))
        return ""
    try:
        async with Kestra(settings) as kestra:
            return await kestra.server.identity()
    except KestraError as error:
        log.warning("the machine does not say which Kestra it belongs to", error=str(error))
        return ""
