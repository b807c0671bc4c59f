"""Requests go out as they should, and only the bridge's own errors come back."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr

from bridge.errors import (
    KestraAmbiguous,
    KestraDenied,
    KestraError,
    KestraUnavailable,
)
from bridge.job.job import Job
from bridge.kestra import DEFAULT_LIMITS, Kestra, RequestLimits
from bridge.telemetry.metrics import Metrics
from tests.support.kestra_client import (
    CALLS,
    FLOW,
    JOB,
    PASSWORD,
    TOKEN,
    Handler,
    against,
    answering,
    failing,
    httpx_errors,
    made,
    raised,
    settings,
    words,
)
from tests.support.standin import HTML, Standin

NO_USER: dict[str, Any] = {"kestra_username": None, "kestra_password": None}


class TestErrors:
    async def test_of_httpx_become_ours_on_one_line_whatever_is_asked(self) -> None:
        foreign = {}
        for kind in httpx_errors():
            async with failing(made(kind)) as kestra:
                for operation, call in CALLS.items():
                    error = await raised(call, kestra)
                    if not isinstance(error, KestraError) or "\n" in str(error):
                        foreign[kind.__name__, operation] = error
        assert foreign == {}

    @pytest.mark.parametrize("operation", CALLS)
    async def test_keep_the_httpx_error_as_their_cause(self, operation: str) -> None:
        async with failing(httpx.ReadError("cut")) as kestra:
            error = await raised(CALLS[operation], kestra)
        assert error is not None
        assert isinstance(error.__cause__, httpx.ReadError)

    async def test_of_a_create_leave_it_in_doubt_unless_it_was_never_sent(self) -> None:
        never_sent = set()
        for kind in httpx_errors():
            async with failing(made(kind)) as kestra:
                error = await raised(CALLS["executions.create"], kestra)
            if not isinstance(error, KestraAmbiguous):
                never_sent.add(kind.__name__)
        assert never_sent == {
            "ConnectError",
            "ConnectTimeout",
            "PoolTimeout",
            "UnsupportedProtocol",
            "InvalidURL",
        }

    @pytest.mark.parametrize(
        "secret", [{}, {**NO_USER, "kestra_token": TOKEN}], ids=["password", "token"]
    )
    async def test_show_no_secret(self, secret: dict[str, Any]) -> None:
        answers: list[Handler] = [
            lambda _: httpx.Response(401),
            lambda _: httpx.Response(500, content=words("no")),
            lambda _: httpx.Response(200, text=HTML),
        ]
        texts = []
        for handler in answers:
            async with answering(handler, **secret) as kestra:
                texts += [repr(await raised(call, kestra)) for call in CALLS.values()]
        secrets = (PASSWORD, TOKEN, "Basic ", "Bearer ")
        assert [text for text in texts if any(word in text for word in secrets)] == []

    async def test_name_the_address_that_nothing_listens_on(self, unused_tcp_port: int) -> None:
        async with Kestra(settings(f"http://127.0.0.1:{unused_tcp_port}")) as kestra:
            with pytest.raises(
                KestraUnavailable, match=f"can't reach Kestra at http://127.0.0.1:{unused_tcp_port}"
            ):
                await kestra.probe()

    @pytest.mark.parametrize(
        ("operation", "kind"),
        [
            ("executions.get", KestraUnavailable),
            ("executions.create", KestraAmbiguous),
        ],
    )
    async def test_of_a_busy_server_say_when_it_wants_to_be_asked_again(
        self, operation: str, kind: type[KestraUnavailable | KestraAmbiguous]
    ) -> None:
        async with answering(lambda _: httpx.Response(503, headers={"Retry-After": "7"})) as kestra:
            error = await raised(CALLS[operation], kestra)
        assert isinstance(error, kind)
        assert error.retry_after == 7


class TestRequests:
    async def test_accept_what_a_kill_is_answered_as(self) -> None:
        accepted: set[str] = set()

        def note(request: httpx.Request) -> httpx.Response:
            accepted.add(request.headers["Accept"])
            return httpx.Response(503)

        async with answering(note) as kestra:
            for call in CALLS.values():
                await raised(call, kestra)
        assert accepted == {"application/json, text/json"}

    async def test_send_no_cookie_back(self) -> None:
        """A gateway's cookie would pin the bridge to one node."""
        sent: list[str | None] = []

        def note(request: httpx.Request) -> httpx.Response:
            sent.append(request.headers.get("Cookie"))
            rows = {"results": [], "total": 0}
            return httpx.Response(200, json=rows, headers={"Set-Cookie": "node=1; Path=/"})

        async with answering(note) as kestra:
            await kestra.executions.find(JOB)
            await kestra.executions.find(JOB)
        assert sent == [None, None]

    async def test_follow_no_redirect(self) -> None:
        asked: list[str] = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.host)
            return httpx.Response(302, headers={"Location": "http://elsewhere.example/"})

        async with answering(note) as kestra:
            with pytest.raises(KestraUnavailable, match=r"redirected.*BRIDGE_KESTRA_URL"):
                await kestra.executions.find(JOB)
        assert asked == ["kestra.example"]

    async def test_go_below_the_path_of_the_servers_address(self) -> None:
        asked: list[str] = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            return httpx.Response(503)

        kestra = answering(note, url="http://kestra.example/base/", kestra_tenant="blue")
        async with kestra:
            await raised(CALLS["executions.get"], kestra)
        assert asked == ["/base/api/v1/blue/executions/e1"]

    async def test_are_not_crowded_out_by_creates(self) -> None:
        """However many creates hang, the bridge can still ask what runs."""
        limits = RequestLimits(create_timeout=5)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            standin.flow(FLOW.namespace, FLOW.id)
            standin.faults.add("create", times=None, hang=True)
            creates = [
                asyncio.ensure_future(kestra.create(Job(id=f"j{n}", flow=FLOW))) for n in range(200)
            ]
            at_once = DEFAULT_LIMITS.concurrent_creates
            await standin.until(lambda: standin.requests["create"] >= at_once, "the first creates")
            async with asyncio.timeout(5):
                assert await kestra.unfinished() == []
            for create in creates:
                create.cancel()
            await asyncio.gather(*creates, return_exceptions=True)

    async def test_for_all_jobs_are_not_crowded_out_by_those_of_single_ones(self) -> None:
        """However many jobs ask for their executions, the ends of others are told."""
        async with Standin() as standin, against(standin) as kestra:
            standin.faults.add("get", times=None, hang=True)
            questions = [asyncio.ensure_future(kestra.get(f"e{n}")) for n in range(200)]
            at_once = DEFAULT_LIMITS.concurrent_questions
            await standin.until(lambda: standin.requests["get"] >= at_once, "the first questions")
            async with asyncio.timeout(5):
                assert await kestra.ended_since(kestra.now()) == ([], True)
                assert await kestra.unfinished() == []
                assert await kestra.oldest_unfinished() is None
                assert await kestra.probe()
            for question in questions:
                question.cancel()
            await asyncio.gather(*questions, return_exceptions=True)

    async def test_have_longer_than_a_create(self) -> None:
        limits = RequestLimits(create_timeout=0.1)
        async with Standin() as standin, against(standin, limits=limits) as kestra:
            standin.faults.add("search", delay=0.25)
            assert await kestra.executions.find(JOB) == []


class TestMeasurements:
    @pytest.mark.parametrize(
        ("status", "counted"),
        [(401, 1), (403, 1), (405, 1), (406, 1), (404, 0), (409, 0), (503, 0)],
    )
    async def test_count_a_refusal_that_only_an_operator_ends(
        self, status: int, counted: int
    ) -> None:
        metrics = Metrics()

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/kill"):
                return httpx.Response(status, content=words("no"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(answer, metrics=metrics) as kestra:
            await raised(CALLS["executions.kill"], kestra)
        found = metrics.registry.get_sample_value(
            "bridge_kestra_refused_total", {"operation": "kill"}
        )
        assert found == counted

    async def test_tell_whether_kestra_is_up(self) -> None:
        metrics = Metrics()
        seen = []
        async with Standin() as standin, against(standin, metrics=metrics) as kestra:
            for fault in [None, 503, None, 401, None]:
                if fault:
                    standin.faults.add("configs", status=fault)
                await raised(CALLS["probe"], kestra)
                seen.append((kestra.up, metrics.registry.get_sample_value("bridge_kestra_up")))
        assert seen == [(True, 1), (False, 0), (True, 1), (False, 0), (True, 1)]


class TestClock:
    async def test_follows_the_date_of_the_answers(self) -> None:
        skew = timedelta(seconds=50)
        date = format_datetime(datetime.now(UTC) + skew, usegmt=True)
        answer = httpx.Response(200, json={"results": [], "total": 0}, headers={"Date": date})
        async with answering(lambda _: answer) as kestra:
            await kestra.executions.find(JOB)
            found = kestra.now() - datetime.now(UTC)
        assert abs(found - skew) < timedelta(seconds=3)

    async def test_is_warned_of_once_where_it_is_far_from_ours(self) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
        answer = httpx.Response(200, json={"results": [], "total": 0}, headers={"Date": date})
        with structlog.testing.capture_logs() as logs:
            async with answering(lambda _: answer) as kestra:
                await kestra.executions.find(JOB)
                await kestra.executions.find(JOB)
        assert [entry["date"] for entry in logs if entry["log_level"] == "warning"] == [date]


class TestCredentials:
    async def sent(self, **more: Any) -> str | None:
        seen: list[str | None] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("Authorization"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note, **more) as kestra:
            await kestra.executions.find(JOB)
        return seen[0]

    async def test_go_as_basic_authentication(self) -> None:
        assert await self.sent() == "Basic YWRtaW5AZXhhbXBsZS5vcmc6VmVyeS1zZWNyZXQtMQ=="

    async def test_go_as_a_bearer_token(self) -> None:
        assert await self.sent(**NO_USER, kestra_token=SecretStr(TOKEN)) == f"Bearer {TOKEN}"

    async def test_are_not_needed(self) -> None:
        assert await self.sent(**NO_USER) is None

    async def test_open_a_server_by_token(self) -> None:
        async with Standin(token=TOKEN) as standin:
            by_token = settings(standin.url, **NO_USER, kestra_token=SecretStr(TOKEN))
            async with Kestra(by_token) as kestra:
                assert await kestra.probe() == "2.0.0"


class TestCredentialsInFiles:
    async def sent_before_and_after(self, path: Path, text: str, **more: Any) -> list[str | None]:
        """The credentials of a request, and of the next one after the file has changed."""
        seen: list[str | None] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers.get("Authorization"))
            return httpx.Response(200, json={"results": [], "total": 0})

        async with answering(note, **more) as kestra:
            await kestra.executions.find(JOB)
            rewrite(path, text)
            await kestra.executions.find(JOB)
        return seen

    async def test_are_read_for_each_request(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("first\n")
        seen = await self.sent_before_and_after(path, "other\n", **NO_USER, kestra_token_file=path)
        assert seen == ["Bearer first", "Bearer other"]

    async def test_can_be_only_the_password(self, tmp_path: Path) -> None:
        path = tmp_path / "password"
        path.write_text("first")
        seen = await self.sent_before_and_after(
            path, "other", kestra_password=None, kestra_password_file=path
        )
        shown = [base64.b64decode(str(text).removeprefix("Basic ")).decode() for text in seen]
        assert shown == ["admin@example.org:first", "admin@example.org:other"]

    async def test_that_can_not_be_used_end_a_request_before_it_is_sent(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "password"
        path.write_text("first")
        with pytest.raises(KestraDenied, match="BRIDGE_KESTRA_PASSWORD_FILE is an empty file"):
            await self.sent_before_and_after(
                path, "\n", kestra_password=None, kestra_password_file=path
            )


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)
