"""Kestra's API for flows: look at, validate, save, delete."""

from __future__ import annotations

from bridge.errors import KestraRejected, KestraUnavailable
from bridge.job.flow_name import FlowName
from bridge.kestra.answers import Answer
from bridge.kestra.parse import StoredFlow, objects_in, parse_flow
from bridge.kestra.transport import Transport


class FlowApi:
    """The flows of one tenant."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def get(self, flow: FlowName) -> StoredFlow | None:
        """A flow as the server has it, or None where there is none of that name."""
        answer = await self._transport.send("flow", "GET", _path(flow), params={"source": "true"})
        if answer is None:
            return None
        return parse_flow(answer.object())

    async def validate(self, source: str) -> list[str]:
        """What the server finds wrong with a flow's source; nothing where it would take it."""
        answer = await self._send_yaml("validate", "POST", "/flows/validate", source)
        results = answer.json()
        verdicts = objects_in(results)
        if not isinstance(results, list) or len(verdicts) < len(results):
            raise KestraUnavailable("validate: the answer is not a list of objects")
        faults = []
        for verdict in verdicts:
            constraints = verdict.get("constraints")
            if constraints:
                faults.append(str(constraints))
        return faults

    async def save(self, flow: FlowName, source: str, *, exists: bool) -> None:
        """Create a flow, or replace its source where it `exists`. Never touches another one.

        Raises:
            KestraRejected: the server does not take the source.
        """
        method, path = "POST", "/flows"
        if exists:
            method, path = "PUT", _path(flow)
        try:
            await self._send_yaml("deploy", method, path, source)
        except KestraRejected as error:
            raise KestraRejected(f"{flow}: {error}") from error

    async def delete(self, flow: FlowName) -> None:
        """Delete a flow. It is no error that there is none of that name."""
        await self._transport.send("delete", "DELETE", _path(flow))

    async def _send_yaml(self, operation: str, method: str, path: str, source: str) -> Answer:
        headers = {"Content-Type": "application/x-yaml"}
        return await self._transport.read(
            operation, method, path, content=source.encode(), headers=headers
        )


def _path(flow: FlowName) -> str:
    return f"/flows/{flow.namespace}/{flow.id}"
