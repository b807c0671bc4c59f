"""deploy/kubernetes is what Kubernetes takes, agrees with the code, and its RabbitMQ is one that
the bridge runs on."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiormq
import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from bridge.rabbitmq import topology
from bridge.settings import Settings, load
from bridge.telemetry import health
from deploy.local.paths import REPOSITORY
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import open_stage
from tests.support.harness import Client, eventually
from tests.support.kubernetes import HERE, OVERLAYS, Manifest, built, every, faults, rules
from tests.support.rights import rights_in_the_readme

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
PLANNED = topology.plan(
    DEFAULTS["queue"],
    kind="quorum",
    version=(4, 3),
    max_priority=DEFAULTS["max_priority"],
    retry_delays=DEFAULTS["retry_delays"],
)

PASSWORD = "some-Passw0rd"

# kubectl and the schemas are fetched on first use.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def complete() -> list[Manifest]:
    return built("overlays/complete")


def only(manifests: list[Manifest], kind: str) -> Any:
    (manifest,) = every(manifests, kind)
    return manifest["spec"]


def pod(manifests: list[Manifest]) -> Any:
    return only(manifests, "Deployment")["template"]["spec"]


def container(manifests: list[Manifest]) -> Any:
    (found,) = pod(manifests)["containers"]
    return found


def settings(manifests: list[Manifest]) -> dict[str, str]:
    name = container(manifests)["envFrom"][0]["configMapRef"]["name"]
    (found,) = (
        one["data"] for one in every(manifests, "ConfigMap") if one["metadata"]["name"] == name
    )
    return dict(found)


# What Kubernetes takes.


@pytest.mark.parametrize("overlay", [*OVERLAYS, "components/notifier"])
def test_every_manifest_is_of_its_kind(overlay: str) -> None:
    assert [fault for manifest in built(overlay) for fault in faults(manifest)] == []


def test_the_rules_are_what_the_prometheus_operator_takes() -> None:
    assert [fault for manifest in rules() for fault in faults(manifest)] == []


def test_the_rules_are_those_of_deploy_prometheus() -> None:
    sources = (REPOSITORY / f"deploy/prometheus/{name}.yml" for name in ("records", "alerts"))
    assert [manifest["spec"] for manifest in rules()] == [
        yaml.safe_load(path.read_text()) for path in sources
    ]


PLANTED: dict[str, Callable[[Any], object]] = {
    "Deployment": lambda it: it["spec"]["template"]["spec"]["containers"][0].update(
        livenesProbe={}
    ),
    "PodDisruptionBudget": lambda it: it["spec"].update(maxUnavailable=[1]),
    "NetworkPolicy": lambda it: it["spec"]["egress"][0].update(port=5672),
    "ServiceAccount": lambda it: it.update(automountServiceAccountToken="no"),
    "ConfigMap": lambda it: it["data"].update(BRIDGE_PREFETCH=8),
    "ScaledObject": lambda it: it["spec"]["triggers"][0]["metadata"].update(value=8),
    "TriggerAuthentication": lambda it: it["spec"]["secretTargetRef"][0].update(secret="x"),
    "PodMonitor": lambda it: it["spec"]["podMetricsEndpoints"][0].update(paths="/metrics"),
    "RabbitmqCluster": lambda it: it["spec"].update(replica=3),
    "Exchange": lambda it: it["spec"].update(durable="yes"),
    "Queue": lambda it: it["spec"].update(argument={}),
    "Binding": lambda it: it["spec"].update(destinationType="topic"),
    "Policy": lambda it: it["spec"].update(applyTo="queue"),
    "User": lambda it: it["spec"].update(tags=["admin"]),
    "Permission": lambda it: it["spec"]["permissions"].update(config=".*"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_fault_in_a_manifest_would_be_found(kind: str, complete: list[Manifest]) -> None:
    broken = copy.deepcopy(next(every(complete, kind)))
    PLANTED[kind](broken)
    assert len(faults(broken)) == 1


def test_faults_are_planted_in_every_kind(complete: list[Manifest]) -> None:
    assert {manifest["kind"] for manifest in complete} == PLANTED.keys()


# What the bridge is, and what a container may do.


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_whole_and_valid(
    overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the container reads them, with a file wherever one would be mounted."""
    mounts = [mount["mountPath"] for mount in container(built(overlay))["volumeMounts"]]
    for name, value in settings(built(overlay)).items():
        if any(value.startswith(f"{mount}/") for mount in mounts):
            path = tmp_path / value.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
            monkeypatch.setenv(name, str(path))
        else:
            assert not value.startswith("/"), f"{name} is a file that nothing mounts"
            monkeypatch.setenv(name, value)
    assert load(Settings).flow_patterns


@pytest.mark.parametrize(
    "path", sorted(HERE.rglob("*.*")), ids=lambda path: str(path.relative_to(HERE))
)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"\bBRIDGE_[A-Z_]+", path.read_text()))
    assert named <= {f"BRIDGE_{name.upper()}" for name in DEFAULTS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_replica_has_the_drain_time_and_15_seconds_to_stop(overlay: str) -> None:
    manifests = built(overlay)
    drain = int(settings(manifests)["BRIDGE_DRAIN_TIMEOUT"])
    assert pod(manifests)["terminationGracePeriodSeconds"] == drain + 15


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_the_probes_ask_what_the_bridge_answers(probe: str, complete: list[Manifest]) -> None:
    path = container(complete)[probe]["httpGet"]["path"]
    well = {"live": lambda: {"ok": True}, "ready": lambda: {"ok": True}}
    with health.serve(CollectorRegistry(), **well, host="127.0.0.1", port=0) as port:
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200


def test_only_what_is_ready_depends_on_others(complete: list[Manifest]) -> None:
    paths = {
        probe: container(complete)[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe")
    }
    assert set(paths.values()) == {"/health/live"}
    assert container(complete)["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_the_port_is_the_bridges(complete: list[Manifest]) -> None:
    (port,) = container(complete)["ports"]
    assert (port["name"], port["containerPort"]) == ("http", DEFAULTS["http_port"])
    asked = {
        container(complete)[f"{probe}Probe"]["httpGet"]["port"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert asked == {"http"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_has_no_rights(overlay: str) -> None:
    manifests = built(overlay)
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    context = pod(manifests)["securityContext"]
    assert (context["runAsNonRoot"], context["seccompProfile"]) == (
        True,
        {"type": "RuntimeDefault"},
    )
    assert pod(manifests)["automountServiceAccountToken"] is False
    assert all(
        account["automountServiceAccountToken"] is False
        for account in every(manifests, "ServiceAccount")
    )


def test_the_pod_runs_as_the_images_user(complete: list[Manifest]) -> None:
    (user,) = re.findall(
        r"^USER (\d+):(\d+)$", (REPOSITORY / "deploy/Dockerfile").read_text(), re.MULTILINE
    )
    context = pod(complete)["securityContext"]
    assert user == (str(context["runAsUser"]), str(context["runAsGroup"]))
    assert context["fsGroup"] == context["runAsGroup"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files_that_change_with_the_secret(overlay: str) -> None:
    manifests = built(overlay)
    assert "env" not in container(manifests)
    assert not any("subPath" in mount for mount in container(manifests)["volumeMounts"])
    assert not list(every(manifests, "Secret"))
    assert not [name for name in settings(manifests) if re.search(r"(PASSWORD|TOKEN)$", name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_finds_the_bridges_pods(overlay: str) -> None:
    manifests = built(overlay)
    deployment = only(manifests, "Deployment")
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [deployment["selector"], only(manifests, "PodDisruptionBudget")["selector"]]
    selectors += [only(manifests, "NetworkPolicy")["podSelector"]]
    selectors += [one["labelSelector"] for one in pod(manifests)["topologySpreadConstraints"]]
    assert all(selector["matchLabels"] == labels for selector in selectors)


# Scaling.


def test_keda_wants_as_many_messages_a_replica_as_it_takes_at_once(
    complete: list[Manifest],
) -> None:
    (trigger,) = only(complete, "ScaledObject")["triggers"]
    assert trigger["metadata"]["value"] == settings(complete)["BRIDGE_PREFETCH"]
    assert trigger["metadata"]["queueName"] == DEFAULTS["queue"]


def test_keda_counts_what_is_in_flight_too(complete: list[Manifest]) -> None:
    (trigger,) = only(complete, "ScaledObject")["triggers"]
    asked = {key: trigger["metadata"][key] for key in ("mode", "protocol", "excludeUnacknowledged")}
    assert asked == {"mode": "QueueLength", "protocol": "http", "excludeUnacknowledged": "false"}


def test_scaling_in_takes_one_replica_at_a_time_and_longer_than_a_drain(
    complete: list[Manifest],
) -> None:
    behavior = only(complete, "ScaledObject")["advanced"]["horizontalPodAutoscalerConfig"][
        "behavior"
    ]["scaleDown"]
    (policy,) = behavior["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] >= pod(complete)["terminationGracePeriodSeconds"]


def test_a_number_of_replicas_is_left_to_keda(complete: list[Manifest]) -> None:
    assert "replicas" not in only(complete, "Deployment")


# RabbitMQ.


def test_the_queues_are_those_that_the_bridge_declares(complete: list[Manifest]) -> None:
    declared = {
        one["spec"]["name"]: {
            "x-queue-type": one["spec"]["type"],
            **one["spec"].get("arguments", {}),
        }
        for one in every(complete, "Queue")
    }
    assert declared == {
        queue.name: dict(queue.arguments)
        for queue in (PLANNED.jobs, PLANNED.dead, *PLANNED.retries)
    }


def test_the_exchanges_are_those_that_the_bridge_declares(complete: list[Manifest]) -> None:
    specs = [one["spec"] for one in every(complete, "Exchange")]
    declared = {spec["name"]: (spec["type"], spec.get("arguments", {})) for spec in specs}
    planned = {
        exchange.name: (exchange.type.value, exchange.arguments) for exchange in PLANNED.exchanges
    }
    assert declared == {**planned, topology.REPLIES: ("topic", {})}


def test_the_bindings_are_those_that_the_bridge_declares(complete: list[Manifest]) -> None:
    keys = ("source", "destination", "destinationType", "routingKey")
    declared = {tuple(one["spec"][key] for key in keys) for one in every(complete, "Binding")}
    bound = (queue for queue in (PLANNED.jobs, PLANNED.dead, *PLANNED.retries) if queue.exchange)
    assert declared == {(queue.exchange, queue.name, "queue", queue.routing_key) for queue in bound}


def test_everything_is_durable_and_in_the_one_cluster(complete: list[Manifest]) -> None:
    ours = [one for kind in ("Exchange", "Queue") for one in every(complete, kind)]
    assert all(one["spec"]["durable"] is True for one in ours)
    (cluster,) = every(complete, "RabbitmqCluster")
    references = [one.get("spec", {}).get("rabbitmqClusterReference") for one in complete]
    assert {one["name"] for one in references if one} == {cluster["metadata"]["name"]}


@pytest.mark.parametrize(
    ("folder", "user", "who"),
    [
        ("overlays/complete", "kestra-bridge", "run"),
        ("overlays/complete", "kestra-publisher", "submit"),
        ("components/notifier", "kestra-notifier", "notifier"),
    ],
)
def test_users_have_the_rights_that_the_readme_names(folder: str, user: str, who: str) -> None:
    (permission,) = (
        one["spec"] for one in every(built(folder), "Permission") if one["metadata"]["name"] == user
    )
    assert permission["userReference"]["name"] == user
    assert permission["permissions"] == rights_in_the_readme()[who]


def test_the_brokers_configuration_is_that_of_deploy_rabbitmq(complete: list[Manifest]) -> None:
    text = (REPOSITORY / "deploy/rabbitmq/rabbitmq.conf").read_text()
    assert {line for line in text.splitlines() if line and not line.startswith("#")} <= set(
        configuration(complete)
    )


def test_policies_leave_alone_what_the_bridge_declares(complete: list[Manifest]) -> None:
    for policy in every(complete, "Policy"):
        for queue in (PLANNED.jobs, PLANNED.dead, *PLANNED.retries):
            assert not {f"x-{key}" for key in policy["spec"]["definition"]} & set(queue.arguments)


def configuration(manifests: list[Manifest]) -> list[str]:
    return str(only(manifests, "RabbitmqCluster")["rabbitmq"]["additionalConfig"]).splitlines()


@pytest.fixture(scope="module")
def broker(
    complete: list[Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RabbitMQ]:
    """A RabbitMQ with the cluster's configuration, on which everything was made as the topology
    operator would."""
    lines = dict(line.split(" = ", 1) for line in configuration(complete))
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), series="4.3", settings=lines) as node:
        for kind, maker in MAKERS.items():
            for manifest in every(complete, kind):
                path, body = maker(manifest["spec"], manifest["metadata"]["name"])
                node.api(path, method="PUT", body=body)
        yield node


def _exchange(it: Any, _: str) -> tuple[str, Any]:
    body = {"type": it["type"], "durable": it["durable"], "arguments": it.get("arguments", {})}
    return f"exchanges/%2F/{it['name']}", body


def _queue(it: Any, _: str) -> tuple[str, Any]:
    arguments = {"x-queue-type": it["type"], **it.get("arguments", {})}
    return f"queues/%2F/{it['name']}", {"durable": it["durable"], "arguments": arguments}


def _policy(it: Any, _: str) -> tuple[str, Any]:
    body = {key: it[key] for key in ("pattern", "definition", "priority")}
    return f"policies/%2F/{it['name']}", {**body, "apply-to": it["applyTo"]}


def _user(it: Any, name: str) -> tuple[str, Any]:
    return f"users/{name}", {"password": PASSWORD, "tags": ",".join(it.get("tags", []))}


def _permission(it: Any, _: str) -> tuple[str, Any]:
    return f"permissions/%2F/{it['userReference']['name']}", it["permissions"]


MAKERS: dict[str, Callable[[Any, str], tuple[str, Any]]] = {
    "Exchange": _exchange,
    "Queue": _queue,
    "Policy": _policy,
    "User": _user,
    "Permission": _permission,
}
"""How the topology operator makes each kind, by the management API."""


async def test_the_bridge_runs_on_such_a_broker_by_its_user(
    broker: RabbitMQ, tmp_path: Path
) -> None:
    defaults = {"queue": DEFAULTS["queue"], "retry_delays": json.dumps(DEFAULTS["retry_delays"])}
    async with open_stage(tmp_path, broker, "quorum") as stage:
        await stage.client.submit(DEFAULTS["queue"], {}, job="one")
        bridge = await stage.bridge(amqp_url=address(broker, "kestra-bridge"), **defaults).start()
        await bridge.settled(job="one", settlement="ack")


@pytest.mark.parametrize("queue", [PLANNED.jobs.name, PLANNED.dead.name])
async def test_the_policy_holds_for_the_bridges_queues(queue: str, broker: RabbitMQ) -> None:
    def policy() -> bool:
        return bool(broker.api(f"queues/%2F/{queue}").get("policy") == "kestra-bridge")

    await eventually(lambda: asyncio.to_thread(policy), f"the policy for {queue}")


def test_the_scaler_sees_how_long_the_queue_is(broker: RabbitMQ) -> None:
    answer = httpx.get(
        f"{broker.management_url}/api/queues/%2F/{DEFAULTS['queue']}",
        auth=("kestra-scaler", PASSWORD),
    )
    assert (answer.status_code, answer.json()["name"]) == (200, DEFAULTS["queue"])


async def test_the_scaler_takes_nothing_from_the_queue(broker: RabbitMQ) -> None:
    async with Client.connect(address(broker, "kestra-scaler")) as client:
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await client.take(DEFAULTS["queue"])


def address(broker: RabbitMQ, user: str) -> str:
    return f"amqp://{user}:{PASSWORD}@{broker.host}:{broker.port}/"
