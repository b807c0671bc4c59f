"""Which Kestra a machine belongs to."""

from __future__ import annotations

import structlog

from bridge.errors import KestraError, SettingsError
from bridge.kestra import Kestra, RequestLimits
from bridge.machines.order import server_of
from bridge.settings import KestraSettings, load

log = structlog.get_logger(__name__)

_HASTY = RequestLimits(connect_timeout=2.0, read_timeout=5.0)
"""A machine is made all the same, so it need not wait long for the answer."""


async def server_to_name() -> str:
    """The Kestra at BRIDGE_KESTRA_URL, as a new machine's tags name it.

    It is empty if no Kestra is set, or it doesn't answer: any Kestra's reaper may then judge the
    machine.
    """
    try:
        settings = load(KestraSettings)
    except SettingsError as error:
        log.debug("no Kestra is set, so the machine names none", error=str(error))
        return ""
    async with Kestra(settings, limits=_HASTY) as kestra:
        return await server_that_is_asked(kestra)


async def server_that_is_asked(kestra: Kestra) -> str:
    """That Kestra, as the tags of its machines name it. Empty if it doesn't answer."""
    try:
        return server_of(await kestra.server.identity())
    except KestraError as error:
        log.warning("kestra does not say which one it is", error=str(error))
        return ""
