"""What the Kestra server is: its version, and the dialect that the version decides."""

from __future__ import annotations

from bridge.errors import KestraUnavailable
from bridge.job.execution import State
from bridge.kestra.dialect import Dialect
from bridge.kestra.transport import Transport


class KestraServer:
    """The server at the other end. It may be upgraded at any time, so each probe asks anew."""

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport = transport
        self._url = url
        self._dialect: Dialect | None = None

    @property
    def version(self) -> str | None:
        """The version that the last probe found; None before the first."""
        if self._dialect is None:
            return None
        return self._dialect.version

    async def dialect(self) -> Dialect:
        """The dialect to speak. Probes the server if nobody has done so yet."""
        if self._dialect is None:
            return Dialect(await self.probe())
        return self._dialect

    async def identity(self) -> str:
        """The id that this installation of Kestra gave itself, or an empty text if it tells none.

        It stands in Kestra's database, so it is the same at every address and on every replica.
        """
        answer = await self._transport.read("probe", "GET", "/configs", in_tenant=False)
        return str(answer.object().get("uuid") or "")

    async def probe(self) -> str:
        """The version, once it is certain that the tenant lets us in. Renews the certificates."""
        self._transport.renew_certificates()
        answer = await self._transport.read("probe", "GET", "/configs", in_tenant=False)
        version = answer.object().get("version")
        if not isinstance(version, str):
            raise KestraUnavailable(
                f"{self._url} does not answer as Kestra does: no version in /api/v1/configs"
            )
        self._dialect = Dialect(version)
        # Any search shows whether the tenant lets us in. An index answers one by state, while one
        # by label reads every execution there is.
        params = {"size": "1", "filters[state][IN]": State.RUNNING.value}
        await self._transport.read("probe", "GET", "/executions/search", params=params)
        return version
