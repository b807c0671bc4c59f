"""Each version of Kestra is spoken to in its own dialect."""

from __future__ import annotations

import httpx
import pytest

from bridge.kestra import Dialect
from tests.support.kestra_client import EXECUTION, FLOW, JOB, against, answering
from tests.support.standin import Ends, Standin

VERSIONS = pytest.mark.parametrize("version", ["2.0.0", "1.3.25"])


@pytest.mark.parametrize(
    ("version", "series"),
    [("2.0.0", (2, 0)), ("1.3.25", (1, 3)), ("2.4.1-SNAPSHOT", (2, 4)), ("3", (3, 0))],
)
def test_a_series_is_the_first_two_numbers(version: str, series: tuple[int, int]) -> None:
    assert Dialect(version).series == series


def test_a_version_without_numbers_counts_as_two() -> None:
    assert Dialect("develop").series == (2, 0)


@VERSIONS
async def test_a_job_is_served_from_create_to_outputs(version: str) -> None:
    async with Standin(version=version) as standin, against(standin) as kestra:
        standin.flow(FLOW.namespace, FLOW.id, Ends(after=None, outputs={"n": 1}))
        execution = await kestra.create(JOB)
        await standin.end(execution.id)
        assert (await kestra.outputs(execution), kestra.server.version) == ({"n": 1}, version)


@VERSIONS
async def test_an_execution_is_killed(version: str) -> None:
    async with Standin(version=version) as standin, against(standin) as kestra:
        standin.flow(FLOW.namespace, FLOW.id, Ends(after=None))
        execution = await kestra.create(JOB)
        await kestra.kill(execution.id)
        await standin.until(lambda: standin.executions[execution.id].state == "KILLED", "the kill")


@VERSIONS
async def test_a_failure_is_explained_by_errors_only(version: str) -> None:
    async with Standin(version=version) as standin, against(standin) as kestra:
        standin.flow(
            FLOW.namespace, FLOW.id, Ends(after=None, error="the disk\n is full"), task="boom"
        )
        execution = await kestra.create(JOB)
        await standin.end(execution.id, "FAILED")
        failed = await kestra.get(execution.id)
        assert failed is not None
        assert await kestra.explain(failed) == "task boom ended FAILED: the disk is full"


@pytest.mark.parametrize(
    ("version", "paths"),
    [
        ("2.0.0", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
        ("2.4.1-SNAPSHOT", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
        ("develop", ["/executions/e1/actions/kill", "/outputs/executions/e1"]),
        ("1.3.25", ["/executions/e1/kill", "/executions/e1"]),
        ("0.22.0", ["/executions/e1/kill", "/executions/e1"]),
    ],
)
async def test_kill_and_outputs_have_the_paths_of_the_version(
    version: str, paths: list[str]
) -> None:
    asked = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path.removeprefix("/api/v1/main"))
        return httpx.Response(200, json={"results": [], "total": 0})

    async with answering(note, version=version) as kestra:
        await kestra.probe()
        asked.clear()
        await kestra.kill("e1")
        await kestra.outputs(EXECUTION)
    assert asked == paths
