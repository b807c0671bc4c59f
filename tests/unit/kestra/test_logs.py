"""A bad end is explained by what the execution's tasks logged."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from bridge.job.execution import State
from bridge.kestra import FailureReport, LogLine
from tests.support.kestra_client import EXECUTION, answering, words

FAILED_RUN: list[Any] = [{"taskId": "boom", "state": {"current": "FAILED"}}]


class TestExplain:
    async def explained(self, run: Any, logs: Any) -> str:
        def answer(request: httpx.Request) -> httpx.Response:
            found = logs if "/logs/" in request.url.path else {"taskRunList": run}
            return httpx.Response(200, content=json.dumps(found))

        async with answering(answer) as kestra:
            return await kestra.explain(EXECUTION)

    async def test_falls_back_to_the_executions_own_errors(self) -> None:
        assert (
            await self.explained([], [{"message": "over quota"}])
            == "execution e1 ended FAILED: over quota"
        )

    async def test_prefers_the_errors_of_the_task_that_failed(self) -> None:
        logs = [{"taskId": "boom", "message": "full"}, {"taskId": "other", "message": "later"}]
        assert await self.explained(FAILED_RUN, logs) == "task boom ended FAILED: full"

    @pytest.mark.parametrize(
        "logs", [[], {}, None, {"results": None}, {"results": 5}, "text", [None, {"message": 1}]]
    )
    async def test_says_what_it_knows_where_there_are_no_logs(self, logs: Any) -> None:
        assert await self.explained(FAILED_RUN, logs) == "task boom ended FAILED"

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (["", "no data", "exit 3"], "no data; exit 3"),
            (["no data", " \n ", "exit 3"], "no data; exit 3"),
            (["no data for that day", "no data"], "no data for that day; no data"),
            (["full", "full"], "full"),
            (["late", "a", "b", "late"], "a; b; late"),
        ],
        ids=["an empty line", "a blank line", "a part", "a repeat", "a repeat after others"],
    )
    async def test_drops_blank_lines_and_true_repeats_alone(
        self, said: list[str], told: str
    ) -> None:
        logs = [{"taskId": "boom", "message": message} for message in said]
        assert await self.explained(FAILED_RUN, logs) == f"task boom ended FAILED: {told}"

    async def test_stays_short_however_much_was_logged(self) -> None:
        logs = [{"taskId": "boom", "message": f"{n} " + "x" * 10_000} for n in range(100)]
        assert len(await self.explained(FAILED_RUN, logs)) < 1500


class TestFailureReport:
    async def reported(self, runs: Any, logs: Any, **more: Any) -> FailureReport:
        def answer(request: httpx.Request) -> httpx.Response:
            whole = {
                "id": "e1",
                "namespace": "a",
                "flowId": "b",
                "state": {"current": "FAILED"},
                "taskRunList": runs,
            }
            return httpx.Response(200, json=logs if "/logs/" in request.url.path else whole)

        async with answering(answer) as kestra:
            report = await kestra.logs.failure_report("e1", **more)
        assert report is not None
        return report

    async def test_tells_the_failed_task_and_its_last_lines_without_traces(self) -> None:
        logs = [
            {"taskId": "boom", "level": "INFO", "timestamp": "t1", "message": "writing"},
            {"taskId": "other", "level": "INFO", "timestamp": "t2", "message": "elsewhere"},
            {"taskId": "boom", "level": "ERROR", "timestamp": "t3", "message": "full"},
            {
                "taskId": "boom",
                "level": "DEBUG",
                "timestamp": "t3",
                "message": "java.lang.Exception: full\n\tat X",
            },
        ]
        report = await self.reported(FAILED_RUN, logs)
        assert (report.execution.state, report.task) == (State.FAILED, "boom")
        assert report.log == (LogLine("t1", "INFO", "writing"), LogLine("t3", "ERROR", "full"))

    async def test_is_bounded(self) -> None:
        logs = [{"level": "INFO", "message": str(number)} for number in range(50)]
        assert [line.message for line in (await self.reported([], logs, lines=2)).log] == [
            "48",
            "49",
        ]

    async def test_of_an_unknown_execution_is_none(self) -> None:
        async with answering(lambda _: httpx.Response(404, content=words("Not Found"))) as kestra:
            assert await kestra.logs.failure_report("e1") is None
