"""What the management API's client makes of what the API answers, as it was seen on 3.10.8, 4.0.5
and 4.3.6."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from pydantic import SecretStr

from bridge.errors import BridgeError, BrokerDenied, BrokerUnavailable
from bridge.rabbitmq.management import (
    Binding,
    Consumer,
    LedgerMetrics,
    Management,
    QueueState,
    ReplicaMetrics,
    parse_queue,
    scrape,
)
from bridge.settings import BrokerSettings
from bridge.telemetry.metrics import Metrics
from tests.support.certificates import Authority

Answer = Callable[[httpx.Request], httpx.Response]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda leaves: (
        st.lists(leaves)
        | st.dictionaries(st.sampled_from(["arguments", "priority_lengths", "9"]), leaves)
    ),
)
CONSUMER = {
    "consumer_tag": "kestra-bridge.q",
    "channel_details": {"connection_name": "1.2.3.4:5 -> 6.7.8.9:5672", "peer_host": "1.2.3.4"},
    "prefetch_count": 8,
}
CLASSIC_3_10 = {
    "name": "q",
    "type": "classic",
    "arguments": {"x-max-priority": 10},
    "backing_queue_status": {"priority_lengths": {"0": 1, "1": 2, "2": 0, "10": 1}},
    "effective_policy_definition": {},
    "messages_ready": 4,
    "messages_unacknowledged": 2,
    "consumer_details": [CONSUMER],
}
QUORUM_4_0 = {
    "name": "q",
    "type": "quorum",
    "delivery_limit": "unlimited",
    "effective_policy_definition": {"consumer-timeout": 60000},
    "policy": "patience",
    "messages_ready_high": 1,
    "messages_ready_normal": 3,
    "consumer_details": [CONSUMER | {"consumer_timeout": 60000}],
}
QUORUM_4_3 = {
    "name": "q",
    "type": "quorum",
    "delivery_limit": 20,
    "messages_by_priority": {"0": 1, "1": 2, "10": 5},
    "consumer_details": [
        CONSUMER | {"consumer_timeout": 1800000, "arguments": {"x-consumer-timeout": 46800000}},
    ],
}


def api(answer: Answer | Any, **settings: Any) -> Management:
    """A client of an API that answers so: with that JSON, or as that function says."""
    given_ = {"amqp_url": SecretStr("amqp://user:geheim@rabbit/jobs"), **settings}
    handle = answer if callable(answer) else lambda _: httpx.Response(200, json=answer)
    return Management(
        BrokerSettings(**given_, _env_file=None), transport=httpx.MockTransport(handle)
    )


async def queue(answer: Any) -> QueueState:
    async with api(answer) as client:
        found = await client.queue("q")
    assert found is not None
    return found


class TestAQueue:
    @pytest.mark.parametrize(
        ("data", "by_priority"),
        [
            (CLASSIC_3_10, {"10": 1, "1": 2, "0": 1}),
            (QUORUM_4_0, {"5 and above": 1, "4 and below": 3}),
            (QUORUM_4_3, {"10": 5, "1": 2, "0": 1}),
            (QUORUM_4_3 | {"messages_by_priority": []}, {}),
            ({"name": "q", "type": "classic"}, None),
        ],
        ids=["classic 3.10", "quorum 4.0", "quorum 4.3", "empty", "classic 4.x"],
    )
    async def test_tells_what_is_ready_by_priority_the_most_urgent_first(
        self, data: dict[str, Any], by_priority: dict[str, int] | None
    ) -> None:
        found = (await queue(data)).by_priority
        assert (found, list(found or ())) == (by_priority, list(by_priority or ()))

    @pytest.mark.parametrize(
        ("data", "limit"), [(CLASSIC_3_10, None), (QUORUM_4_0, -1), (QUORUM_4_3, 20)]
    )
    async def test_tells_how_often_a_message_may_be_returned(
        self, data: dict[str, Any], limit: int | None
    ) -> None:
        assert (await queue(data)).delivery_limit == limit

    @pytest.mark.parametrize(
        ("data", "policy"),
        [(CLASSIC_3_10, {}), (QUORUM_4_0, {"consumer-timeout": 60000}), (QUORUM_4_3, None)],
    )
    async def test_tells_what_policies_set_once_it_tells_of_itself(
        self, data: Any, policy: Any
    ) -> None:
        assert (await queue(data)).policy == policy

    async def test_tells_its_consumers(self) -> None:
        assert (await queue(QUORUM_4_3)).consumers == (
            Consumer(
                tag="kestra-bridge.q",
                connection="1.2.3.4:5 -> 6.7.8.9:5672",
                host="1.2.3.4",
                prefetch=8,
                timeout=1800,
                own_timeout=46_800,
            ),
        )

    async def test_is_none_where_there_is_none_of_that_name(self) -> None:
        async with api(lambda _: httpx.Response(404, json={"error": "Object Not Found"})) as client:
            assert await client.queue("q") is None

    async def test_is_asked_for_in_its_virtual_host(self) -> None:
        asked: list[str] = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.raw_path.decode())
            return httpx.Response(200, json=CLASSIC_3_10)

        async with api(note, amqp_url=SecretStr("amqp://rabbit/%2F")) as client:
            await client.queue("a/q")
        assert asked == ["/api/queues/%2F/a%2Fq"]

    @pytest.mark.parametrize(
        "field",
        [
            "arguments",
            "backing_queue_status",
            "messages_by_priority",
            "consumer_details",
            "delivery_limit",
            "owner_pid_details",
        ],
    )
    @given(data=JSON)
    def test_is_read_whatever_json_a_part_of_it_is(self, field: str, data: Any) -> None:
        assert parse_queue({"name": "q", field: data}).name == "q"

    async def test_tells_whose_an_exclusive_one_is(self) -> None:
        data = {"name": "q", "owner_pid_details": {"name": "a -> b", "peer_host": "a"}}
        assert (await queue(data)).owner == "a -> b"

    async def test_tells_what_is_on_its_way_to_the_dead_letter_exchange(self) -> None:
        assert (await queue({"name": "q", "messages_dlx": 2})).handing_on == 2


class TestAlarms:
    @pytest.mark.parametrize(
        ("status", "data", "alarms"),
        [
            (200, {"status": "ok"}, []),
            (
                503,
                {"alarms": [{"node": "rabbit@a", "resource": "memory"}], "status": "failed"},
                ["memory on rabbit@a"],
            ),
            (503, {"reason": "something", "status": "failed"}, ["something"]),
        ],
    )
    async def test_are_told(self, status: int, data: dict[str, Any], alarms: list[str]) -> None:
        async with api(lambda _: httpx.Response(status, json=data)) as client:
            assert await client.alarms() == alarms


class TestBindings:
    async def test_are_told_without_the_one_to_the_default_exchange(self) -> None:
        rows = [
            {"source": "", "destination": "q", "routing_key": "q"},
            {"source": "x", "destination": "q", "routing_key": "a"},
        ]
        async with api(rows) as client:
            assert await client.bindings("q") == [
                Binding(source="x", destination="q", routing_key="a")
            ]


class TestAnExchangesPolicy:
    @staticmethod
    async def of(exchange: dict[str, Any], policy: httpx.Response) -> Any:
        def answer(request: httpx.Request) -> httpx.Response:
            return (
                httpx.Response(200, json=exchange) if "/exchanges/" in request.url.path else policy
            )

        async with api(answer) as client:
            return await client.policy_of_exchange("q")

    async def test_is_told(self) -> None:
        policy = httpx.Response(
            200, json={"name": "p", "definition": {"alternate-exchange": "q.dead"}}
        )
        assert await self.of({"name": "q", "policy": "p"}, policy) == {
            "alternate-exchange": "q.dead"
        }

    async def test_is_none_where_it_has_none(self) -> None:
        assert await self.of({"name": "q"}, httpx.Response(500)) == {}

    async def test_is_none_where_the_user_may_not_see_it(self) -> None:
        assert (
            await self.of({"name": "q", "policy": "p"}, httpx.Response(401, json={"reason": "no"}))
            == {}
        )


class TestAConnection:
    async def test_tells_since_when_it_is(self) -> None:
        async with api({"connected_at": 1795518025068}) as client:
            since = await client.connected_since("a -> b")
        assert since == datetime(2026, 11, 24, 11, 0, 25, 68_000, tzinfo=UTC)

    async def test_of_another_user_is_not_for_everybody_to_know(self) -> None:
        async with api(lambda _: httpx.Response(401, json={"reason": "not yours"})) as client:
            assert await client.connected_since("a -> b") is None


class TestTheClient:
    async def test_logs_in_as_the_amqp_client_does(self) -> None:
        seen: list[str] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request.headers["Authorization"])
            return httpx.Response(200, json={"rabbitmq_version": "4.3.6"})

        async with api(note) as client:
            await client.version()
        assert seen == [httpx.BasicAuth("user", "geheim")._auth_header]

    async def test_says_what_a_user_without_the_tag_lacks(self) -> None:
        async with api(
            lambda _: httpx.Response(401, json={"reason": "Not management user"})
        ) as client:
            with pytest.raises(
                BrokerDenied, match=r"'user' \(Not management user\): give it the tag `management`"
            ):
                await client.alarms()

    @pytest.mark.parametrize("reason", ["Login failed", "Not_Authorized"], ids=["3.10", "4.3"])
    async def test_says_that_the_password_may_be_wrong(self, reason: str) -> None:
        async with api(lambda _: httpx.Response(401, json={"reason": reason})) as client:
            with pytest.raises(BrokerDenied, match=r"'user' \(.*\): is the password right\?"):
                await client.alarms()

    async def test_says_where_nothing_is_answered_that_the_address_may_be_wrong(self) -> None:
        async with listening(None, answer=b"") as port:
            settings = {
                "amqp_url": "amqp://u:p@rabbit",
                "management_url": f"http://127.0.0.1:{port}",
            }
            async with Management(BrokerSettings.model_validate(settings)) as client:
                with pytest.raises(
                    BrokerUnavailable,
                    match=r"it ended the connection .* is BRIDGE_MANAGEMENT_URL right\?",
                ):
                    await client.version()

    @pytest.mark.parametrize("status", [200, 404, 500, 502])
    async def test_is_not_taken_in_by_something_else_that_answers(self, status: int) -> None:
        async with api(lambda _: httpx.Response(status, text="<html>nginx</html>")) as client:
            with pytest.raises(
                BrokerUnavailable, match="does not answer as RabbitMQ's management API does"
            ):
                await client.queue("q")

    @pytest.mark.parametrize(
        "error",
        [
            httpx.ConnectError("refused"),
            httpx.ReadTimeout(""),
            httpx.RemoteProtocolError("no HTTP"),
        ],
    )
    async def test_turns_httpx_errors_into_ours(self, error: httpx.HTTPError) -> None:
        def fail(_: httpx.Request) -> httpx.Response:
            raise error

        async with api(fail) as client:
            with pytest.raises(
                BrokerUnavailable,
                match="can't reach RabbitMQ's management API at http://rabbit:15672",
            ):
                await client.version()

    async def test_tells_how_far_the_brokers_clock_is_ahead(self) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
        async with api(
            lambda _: httpx.Response(200, json={"rabbitmq_version": "4"}, headers={"Date": date})
        ) as client:
            await client.version()
        assert client.skew is not None
        assert timedelta(minutes=4) < client.skew < timedelta(minutes=6)


@asynccontextmanager
async def listening(
    context: ssl.SSLContext | None, *, answer: bytes = b"HTTP/1.1 400 Bad Request\r\n\r\n"
) -> AsyncIterator[int]:
    """The port of a server that likes nothing that it is told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(1)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestTls:
    """What only an operator can mend is told in one line that names a setting, as for AMQP and
    Kestra."""

    @staticmethod
    async def told(url: str, **files: Path) -> str:
        given = {"amqp_url": "amqp://u:p@rabbit", "management_url": url}
        with pytest.raises(BrokerDenied) as caught:
            async with Management(BrokerSettings.model_validate(given | files)) as client:
                await client.version()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path / "ours")

    async def test_by_an_unknown_ca_is_not_trusted(self, authority: Authority) -> None:
        async with listening(authority.server("rabbit", "127.0.0.1")) as port:
            told = await self.told(f"https://127.0.0.1:{port}")
        assert "BRIDGE_AMQP_CA names whom to trust" in told

    async def test_for_another_host_is_not_trusted(self, authority: Authority) -> None:
        async with listening(authority.server("rabbit", "rabbit.example")) as port:
            told = await self.told(f"https://127.0.0.1:{port}", amqp_ca=authority.ca)
        assert re.search(
            r"\(BRIDGE_MANAGEMENT_URL\): its certificate can't be trusted: .*127\.0\.0\.1", told
        )

    async def test_that_wants_a_certificate_says_so(self) -> None:
        def fail(_: httpx.Request) -> httpx.Response:
            alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]")
            alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
            raise alert  # as OpenSSL tells it, and httpx lets it through

        async with api(fail) as client:
            with pytest.raises(
                BrokerDenied, match=r"\(certificate required\); BRIDGE_AMQP_CERTIFICATE"
            ):
                await client.version()

    async def test_that_is_not_spoken_is_told(self) -> None:
        async with listening(None) as port:
            told = await self.told(f"https://127.0.0.1:{port}")
        assert "it does not speak TLS there" in told

    async def test_that_alone_is_spoken_is_told(self, authority: Authority) -> None:
        async with listening(authority.server("rabbit", "127.0.0.1")) as port:
            told = await self.told(f"http://127.0.0.1:{port}")
        assert "it speaks TLS there, so the address must begin with https://" in told

    @pytest.mark.parametrize(
        ("named", "told"),
        [
            (["amqp_ca"], r"BRIDGE_AMQP_CA: \S+ holds no CA certificates"),
            (
                ["amqp_certificate"],
                r"BRIDGE_AMQP_CERTIFICATE: no PEM certificate .* in \S+/no\.pem \(",
            ),
            (
                ["amqp_certificate", "amqp_key"],
                r"BRIDGE_AMQP_CERTIFICATE and BRIDGE_AMQP_KEY: .* in \S+ and \S+ \(",
            ),
        ],
    )
    async def test_by_a_file_that_is_none_is_told_with_its_name(
        self, named: list[str], told: str, tmp_path: Path
    ) -> None:
        wrong = tmp_path / "no.pem"
        wrong.write_text("no PEM")
        assert re.match(told, await self.told("https://127.0.0.1:1", **dict.fromkeys(named, wrong)))


class TestScraping:
    @staticmethod
    def serving(text: str, status: int = 200) -> httpx.MockTransport:
        return httpx.MockTransport(lambda _: httpx.Response(status, text=text))

    async def test_reads_what_a_replica_says_of_itself(self) -> None:
        metrics = Metrics()
        metrics.in_flight.labels("q").set(3)
        metrics.oldest_in_flight.set(12.5)
        metrics.consumer_restarts.labels("channel_closed").inc()
        text = generate_latest(metrics.registry).decode()
        assert await scrape("http://a/metrics", transport=self.serving(text)) == ReplicaMetrics(
            in_flight={"q": 3}, oldest=12.5, restarts={"channel_closed": 1}
        )

    async def test_reads_how_far_back_ledgers_reach_and_how_long_claims_take(self) -> None:
        metrics = Metrics({"q": 8, "unread": 8})
        metrics.ledger_ready.labels("q").set(1)
        metrics.ledger_reach.labels("q").set(3600)
        for _ in range(98):
            metrics.claim_seconds.labels("q").observe(0.002)
        for _ in range(2):
            metrics.claim_seconds.labels("q").observe(0.3)
        text = generate_latest(metrics.registry).decode()
        found = await scrape("http://a/metrics", transport=self.serving(text))
        assert found.ledgers == {"q": LedgerMetrics(reach=3600, p50=0.0025, p99=0.5)}

    async def test_reads_of_a_ledger_without_claims_only_how_far_back_it_reaches(self) -> None:
        metrics = Metrics({"q": 8})
        metrics.ledger_ready.labels("q").set(1)
        text = generate_latest(metrics.registry).decode()
        found = await scrape("http://a/metrics", transport=self.serving(text))
        assert found.ledgers == {"q": LedgerMetrics(reach=0, p50=None, p99=None)}

    @pytest.mark.parametrize(
        ("status", "text"),
        [(200, "up 1\n"), (200, "<html>"), (200, ""), (404, "{}"), (200, "bridge_x{ 1")],
    )
    async def test_is_not_taken_in_by_something_else(self, status: int, text: str) -> None:
        with pytest.raises(BridgeError, match="http://a/metrics"):
            await scrape("http://a/metrics", transport=self.serving(text, status))

    @pytest.mark.parametrize("status", [200, 401])
    async def test_shows_no_password_of_an_address(self, status: int) -> None:
        with pytest.raises(BridgeError) as caught:
            await scrape("http://u:geheim@a/metrics", transport=self.serving("up 1\n", status))
        assert "geheim" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["nonsense", "ftp://a", "http://[", "http://127.0.0.1:1/metrics"]
    )
    async def test_says_which_address_can_not_be_asked(self, url: str) -> None:
        with pytest.raises(BridgeError, match="can't read metrics at"):
            await scrape(url)
