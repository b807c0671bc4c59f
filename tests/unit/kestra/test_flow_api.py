"""Flows are validated, saved and deleted, and only those that are named."""

from __future__ import annotations

import httpx
import pytest

from bridge.errors import KestraRejected, KestraUnavailable
from bridge.kestra import StoredFlow
from tests.support.kestra_client import CALLS, FLOW, answering, raised, words

SOURCE = "id: example"


class TestGet:
    @pytest.mark.parametrize(
        ("body", "flow"),
        [
            ({"source": SOURCE}, StoredFlow(source=SOURCE)),
            ({"source": SOURCE, "disabled": True}, StoredFlow(source=SOURCE, disabled=True)),
            (
                {"source": SOURCE, "concurrency": {"limit": 2, "behavior": "FAIL"}},
                StoredFlow(source=SOURCE, limit=2, beyond="FAIL"),
            ),
            ({"source": None, "concurrency": 5}, StoredFlow(source="")),
        ],
    )
    async def test_reads_a_flow(self, body: object, flow: StoredFlow) -> None:
        async with answering(lambda _: httpx.Response(200, json=body)) as kestra:
            assert await kestra.flows.get(FLOW) == flow


class TestValidate:
    @pytest.mark.parametrize("body", [b"{}", b"null", b"[1]", b'{"message": "x"}'])
    async def test_takes_no_answer_of_another_shape_for_a_flow_without_faults(
        self, body: bytes
    ) -> None:
        async with answering(lambda _: httpx.Response(200, content=body)) as kestra:
            assert isinstance(await raised(CALLS["flows.validate"], kestra), KestraUnavailable)

    async def test_gives_the_faults_of_the_flows_that_have_some(self) -> None:
        body = [{"constraints": "no tasks"}, {"constraints": None}, {"index": 2}]
        async with answering(lambda _: httpx.Response(200, json=body)) as kestra:
            assert await kestra.flows.validate(SOURCE) == ["no tasks"]


class TestSave:
    @pytest.mark.parametrize(
        ("exists", "request_line"),
        [
            (False, ("POST", "/api/v1/main/flows")),
            (True, ("PUT", "/api/v1/main/flows/bridge.jobs/example")),
        ],
    )
    async def test_creates_a_flow_or_replaces_that_one(
        self, *, exists: bool, request_line: tuple[str, str]
    ) -> None:
        seen = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(((request.method, request.url.path), request.read()))
            return httpx.Response(200, json={})

        async with answering(note) as kestra:
            await kestra.flows.save(FLOW, SOURCE, exists=exists)
        assert seen == [(request_line, SOURCE.encode())]

    async def test_names_the_flow_that_is_refused(self) -> None:
        answer = httpx.Response(422, content=words("Invalid entity"))
        async with answering(lambda _: answer) as kestra:
            with pytest.raises(KestraRejected, match=r"^bridge\.jobs/example: .*Invalid entity"):
                await kestra.flows.save(FLOW, SOURCE, exists=False)
