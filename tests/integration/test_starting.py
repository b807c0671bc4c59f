"""How the bridge starts, and what it says when it can't."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.rabbitmq import declaration, topology
from deploy.local.paths import free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import BrokerStage, Kind, Node, open_stage
from tests.support.harness import Bridge, Client, Proxy, eventually
from tests.support.in_process import command
from tests.support.rights import rights_in_the_readme
from tests.support.standin import Ends


async def ended(bridge: Bridge) -> tuple[int, str]:
    """The exit status of a bridge that can't start, and the last line it said."""
    await bridge.start(until=None)
    code = await bridge.exit_code()
    return code, bridge.log.read_text().splitlines()[-1]


@pytest.fixture(params=["3.10", "4.3"])
def any_node(request: pytest.FixtureRequest, node: Node) -> RabbitMQ:
    return node(request.param)


async def test_a_queue_with_other_arguments_is_a_clear_error_and_exit_2(stage: BrokerStage) -> None:
    await stage.client.channel.declare_queue(
        stage.queue, durable=True, arguments={"x-queue-type": "classic", "x-max-priority": 3}
    )
    code, line = await ended(stage.bridge(queue_type="classic"))
    assert (
        code,
        f"queue {stage.queue} exists with other arguments" in line,
        "BRIDGE_MAX_PRIORITY" in line,
    ) == (
        2,
        True,
        True,
    )


async def test_an_exchange_of_another_type_is_a_clear_error_and_exit_2(
    one_stage: BrokerStage,
) -> None:
    await one_stage.client.channel.declare_exchange(one_stage.queue, "fanout", durable=True)
    code, line = await ended(one_stage.bridge())
    assert (code, f"exchange {one_stage.queue} exists with other arguments" in line) == (2, True)


async def test_auto_takes_a_classic_queue_that_an_upgraded_broker_still_has(
    one_stage: BrokerStage,
) -> None:
    await one_stage.declare(queue_type="classic")
    async with one_stage.bridge(queue_type="auto") as bridge:
        assert bridge.events("consuming")[0]["queues"] == {one_stage.queue: "classic"}


async def test_quorum_queues_that_an_upgraded_broker_still_has_from_rabbitmq_3_are_taken(
    node: Node, tmp_path: Path
) -> None:
    async with open_stage(tmp_path, node("4.3"), "quorum") as stage:
        old = topology.plan(
            stage.queue, kind="quorum", version=(3, 13), max_priority=10, retry_delays=[1]
        )
        await declaration.declare(stage.client.connection, old)
        async with stage.bridge() as bridge:
            await stage.submit("one")
            await bridge.settled(job="one", settlement="ack")


async def test_an_exchange_that_an_earlier_bridge_made_without_an_alternate_one_is_taken(
    stage: BrokerStage,
) -> None:
    await stage.client.channel.declare_exchange(stage.queue, "direct", durable=True)
    async with stage.bridge() as bridge:
        await stage.submit("one")
        await bridge.settled(job="one", settlement="ack")


async def test_auto_is_quorum_from_4_3_on_and_classic_before(stage: BrokerStage) -> None:
    async with stage.bridge(queue_type="auto") as bridge:
        expected = "classic" if stage.rabbit.series == "3.10" else "quorum"
        assert bridge.events("consuming")[0]["queues"] == {stage.queue: expected}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_job_runs_on_4_0_too(kind: Kind, node: Node, tmp_path: Path) -> None:
    async with open_stage(tmp_path, node("4.0"), kind) as stage, stage.bridge() as bridge:
        await stage.submit("one")
        await bridge.settled(job="one", settlement="ack")


async def test_a_wrong_password_is_exit_2_and_is_not_shown(stage: BrokerStage) -> None:
    bridge = stage.bridge(
        amqp_url=stage.rabbit.amqp_url.replace(stage.rabbit.password, "wrong-Passw0rd")
    )
    code, line = await ended(bridge)
    assert (
        code,
        "refuses the user or the password" in line,
        "wrong-Passw0rd" in bridge.log.read_text(),
    ) == (
        2,
        True,
        False,
    )


async def test_an_unknown_virtual_host_is_exit_2(stage: BrokerStage) -> None:
    code, line = await ended(stage.bridge(amqp_url=f"{stage.rabbit.amqp_url}nowhere"))
    assert (code, "virtual host" in line) == (2, True)


async def test_a_user_without_rights_is_exit_2(one_stage: BrokerStage) -> None:
    rabbit = one_stage.rabbit
    await asyncio.to_thread(rabbit.ctl, "add_user", one_stage.name, "some-Passw0rd")
    await asyncio.to_thread(
        rabbit.ctl, "set_permissions", "-p", "/", one_stage.name, "^$", "^$", "^$"
    )
    url = f"amqp://{one_stage.name}:some-Passw0rd@{rabbit.host}:{rabbit.port}/"
    code, line = await ended(one_stage.bridge(amqp_url=url))
    assert (code, "refuses the user's rights" in line) == (2, True)


@dataclass
class Realm:
    """A virtual host of its own, whose users have the rights that the README names and no
    others."""

    rabbit: RabbitMQ
    name: str

    def user(self, who: str) -> str:
        """The address for a user with the rights of that line of the README."""
        user = f"{self.name}-{who.replace(' ', '')}"
        self.rabbit.api(
            f"users/{user}", method="PUT", body={"password": "some-Passw0rd", "tags": ""}
        )
        self.rabbit.api(
            f"permissions/{self.name}/{user}", method="PUT", body=rights_in_the_readme()[who]
        )
        return f"amqp://{user}:some-Passw0rd@{self.rabbit.host}:{self.rabbit.port}/{self.name}"

    def narrow_topics(self, who: str, **rights: str) -> None:
        """Let topic permissions count for that user and the exchange of replies."""
        user = f"{self.name}-{who}"
        body = {"exchange": "kestra.replies", "read": "^$", "write": "^$", **rights}
        self.rabbit.api(f"topic-permissions/{self.name}/{user}", method="PUT", body=body)

    @property
    def url(self) -> str:
        """The address for a user who may do everything."""
        return f"{self.rabbit.amqp_url}{self.name}"


@pytest.fixture
def realm(any_node: RabbitMQ) -> Realm:
    name = f"v{uuid.uuid4().hex[:8]}"
    any_node.api(f"vhosts/{name}", method="PUT", body={})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    any_node.api(f"permissions/{name}/{any_node.username}", method="PUT", body=everything)
    # Topic permissions are for an exchange that is there.
    any_node.api(
        f"exchanges/{name}/kestra.replies", method="PUT", body={"type": "topic", "durable": True}
    )
    return Realm(any_node, name)


async def test_the_rights_that_the_readme_names_suffice(realm: Realm, tmp_path: Path) -> None:
    """For jobs that succeed, fail, are retried, are no jobs, and want a result; with topic
    permissions too."""
    urls = {
        who: await asyncio.to_thread(realm.user, who)
        for who in ("run", "submit", "submit --wait", "notifier")
    }
    await asyncio.to_thread(realm.narrow_topics, "run", read=".*")
    await asyncio.to_thread(realm.narrow_topics, "notifier", write=".*")
    async with open_stage(tmp_path, realm.rabbit, "classic") as stage:
        stage.kestra.flow("test", "bad", Ends("FAILED"))
        bridge = stage.bridge(
            amqp_url=urls["run"],
            queue="kestra.jobs",
            queue_type="auto",
            allowed_flows='["test/*"]',
            max_attempts=2,
            reconcile_interval=600,
        )
        async with (
            bridge,
            Client.connect(realm.url) as client,
            Client.connect(urls["notifier"]) as notifier,
        ):
            await stage.send_replies(notifier)
            assert await submit(urls["submit"], "test/bad") == 0
            assert (
                await submit(urls["submit --wait"], "test/job", "--wait", "--wait-timeout", "30")
                == 0
            )
            await client.submit("kestra.jobs", b"bad", job="bad")
            await bridge.settled(job="bad", settlement="dead_letter", reason="invalid_message")
            await bridge.settled(flow="test/bad", settlement="dead_letter", reason="failed")


async def submit(url: str, flow: str, *options: str) -> int:
    """The exit status of `kestra-bridge submit`."""
    return (await command("submit", "--flow", flow, *options, BRIDGE_AMQP_URL=url)).code


async def test_a_broker_that_says_nothing_does_not_keep_the_bridge_from_stopping(
    one_stage: BrokerStage,
) -> None:
    async with Proxy(one_stage.rabbit.host, one_stage.rabbit.port) as proxy:
        proxy.stall()
        bridge = await one_stage.bridge(amqp_url=f"amqp://127.0.0.1:{proxy.port}/").start(
            until="kestra answers"
        )
        await eventually(lambda: proxy.connections, "the bridge connects")
        assert await bridge.stop(8) == 0


async def test_a_wrong_password_for_kestra_is_exit_2_and_is_not_shown(
    one_stage: BrokerStage,
) -> None:
    bridge = one_stage.bridge(kestra_password="wrong-Passw0rd")
    code, line = await ended(bridge)
    assert (
        code,
        "refuses the credentials" in line,
        "wrong-Passw0rd" in bridge.log.read_text(),
    ) == (2, True, False)


async def test_another_tenant_than_main_is_exit_2_on_the_open_source_edition(
    one_stage: BrokerStage,
) -> None:
    code, line = await ended(one_stage.bridge(kestra_tenant="other"))
    assert (code, "tenant" in line) == (2, True)


async def test_wrong_settings_are_named_all_at_once_and_exit_2(one_stage: BrokerStage) -> None:
    code, line = await ended(
        one_stage.bridge(
            prefetch="none", retry_delays="[", flow="no-namespace", kestra_url="ftp://x"
        )
    )
    names = ["BRIDGE_PREFETCH", "BRIDGE_RETRY_DELAYS", "BRIDGE_FLOW", "BRIDGE_KESTRA_URL"]
    assert (code, [name for name in names if name not in line]) == (2, [])


async def test_without_any_flow_to_start_the_settings_are_wrong(one_stage: BrokerStage) -> None:
    code, line = await ended(one_stage.bridge(flow=""))
    assert (code, "BRIDGE_ALLOWED_FLOWS" in line) == (2, True)


async def test_a_port_that_is_taken_is_exit_2(one_stage: BrokerStage) -> None:
    code, line = await ended(one_stage.bridge(http_port=one_stage.rabbit.port))
    assert (code, "BRIDGE_HTTP_PORT" in line) == (2, True)


async def test_a_broker_that_comes_later_is_waited_for(
    one_stage: BrokerStage, tmp_path: Path
) -> None:
    late = RabbitMQ(tmp_path / "late", series="4.3")
    bridge = await one_stage.bridge(amqp_url=late.amqp_url).start(until="no session with RabbitMQ")
    try:
        await asyncio.to_thread(late.start)
        await eventually(lambda: bridge.count("consuming"), "the bridge consumes", timeout=40)
    finally:
        bridge.kill()
        late.kill()


async def test_kestra_that_comes_later_is_waited_for_before_anything_is_taken(
    one_stage: BrokerStage,
) -> None:
    await one_stage.kestra.down()
    bridge = await one_stage.bridge().start(until="waiting for Kestra")
    await one_stage.kestra.up()
    await eventually(lambda: bridge.count("consuming"), "the bridge consumes")


@pytest.mark.parametrize("setting", ["amqp_url", "kestra_url"])
async def test_a_bridge_that_still_waits_stops_at_once_when_told_to(
    one_stage: BrokerStage, setting: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    urls = {"amqp_url": f"amqp://{address}/", "kestra_url": f"http://{address}"}
    event = {"amqp_url": "no session with RabbitMQ", "kestra_url": "waiting for Kestra"}[setting]
    bridge = await one_stage.bridge(**{setting: urls[setting]}).start(until=event)
    assert await bridge.stop(10) == 0


async def test_it_is_ready_once_it_consumes(one_stage: BrokerStage) -> None:
    async with one_stage.bridge() as bridge:
        assert await bridge.health("ready") == (
            200,
            {"broker": True, "kestra": True, "accepting": True},
        )


async def test_it_is_alive_but_not_ready_while_kestra_is_away(one_stage: BrokerStage) -> None:
    await one_stage.kestra.down()
    bridge = await one_stage.bridge().start(until="waiting for Kestra")
    assert [(await bridge.health(which))[0] for which in ("live", "ready")] == [200, 503]


async def test_a_setting_that_is_none_is_warned_of_with_a_hint(one_stage: BrokerStage) -> None:
    async with one_stage.bridge(prefech=3) as bridge:
        assert (
            "BRIDGE_PREFECH is no setting; did you mean BRIDGE_PREFETCH?" in bridge.log.read_text()
        )


async def test_no_secret_is_in_the_log_even_at_level_debug(one_stage: BrokerStage) -> None:
    async with one_stage.bridge(log_level="debug") as bridge:
        await one_stage.submit("one", {"inputs": {"secret": "s3cr3t-input"}})
        await bridge.settled(job="one")
    text = bridge.log.read_text()
    assert [
        secret
        for secret in (one_stage.rabbit.password, one_stage.kestra.password, "s3cr3t-input")
        if secret in text
    ] == []
