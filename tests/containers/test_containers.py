"""The image by itself, and in docker-compose.yml beside RabbitMQ, PostgreSQL and Kestra's
engine."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from deploy.local import images
from deploy.local.paths import REPOSITORY
from deploy.local.podman import Podman
from tests.support.containers import (
    NETWORK,
    NO_DISK,
    NO_RIGHTS,
    Checkout,
    Compose,
    Container,
    Replicas,
)
from tests.support.harness import eventually

# The first test that needs it makes local images, where the cache has none.
pytestmark = pytest.mark.timeout(600)

RULES = ("records.yml", "alerts.yml")

LARGEST = 110_000_000
"""Bytes that our own layers may have; they had 93 million when this was written."""

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

# What is in the image, as seen from inside.
LOOK = """
import importlib.metadata, importlib.util, json, pathlib, shutil, sys
library = pathlib.Path(sys.prefix, "lib")
tools = ("pip", "pip3", "gcc", "cc", "make", "git", "curl", "wget")
modules = ("pip", "ensurepip", "setuptools", "hatchling")
def compiled(source):
    made = pathlib.Path(importlib.util.cache_from_source(str(source)))
    # By content, and never checked (PEP 552).
    return made.exists() and made.read_bytes()[4:8] == bytes([1, 0, 0, 0])
print(json.dumps({
    "distributions": {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    },
    "tools": [tool for tool in tools if shutil.which(tool)],
    "modules": [name for name in modules if importlib.util.find_spec(name)],
    "uncompiled": [str(source) for source in library.rglob("*.py") if not compiled(source)],
}))
"""


def locked_versions() -> dict[str, str]:
    """What requirements-runtime.lock pins for Linux and CPython."""
    text = (REPOSITORY / "requirements-runtime.lock").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)==(\S+)( ; .*)? \\$", text, re.MULTILINE)
    return {name: version for name, version, marker in pins if "win32" not in marker}


@pytest.fixture(scope="module")
def config(podman: Podman, image: str) -> dict[str, Any]:
    (found,) = json.loads(podman.run("image", "inspect", image))
    return dict(found)


@pytest.fixture(scope="module")
def inside(podman: Podman, image: str) -> dict[str, Any]:
    run = (
        "run",
        "--rm",
        "--network=none",
        *NO_RIGHTS,
        NO_DISK,
        "--entrypoint=python",
        image,
        "-c",
        LOOK,
    )
    return dict(json.loads(podman.run(*run)))


# The image.


def test_the_image_says_what_it_is(config: dict[str, Any]) -> None:
    prefix = "org.opencontainers.image."
    labels = {
        name.removeprefix(prefix): text
        for name, text in config["Labels"].items()
        if name.startswith(prefix)
    }
    assert (labels["title"], labels["licenses"], labels["version"]) == (
        PROJECT["name"],
        PROJECT["license"],
        PROJECT["version"],
    )
    assert labels["description"]


def test_the_image_runs_as_a_numeric_user_and_is_checked_and_stopped_in_order(
    config: dict[str, Any],
) -> None:
    assert config["Config"]["User"] == "10001:10001"
    assert config["Config"]["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_the_image_is_small(podman: Podman, config: dict[str, Any]) -> None:
    base = json.loads(podman.run("image", "inspect", "localhost/python"))[0]["Size"]
    assert 0 < config["Size"] - base < LARGEST


def test_the_image_holds_exactly_what_the_lock_pins(inside: dict[str, Any]) -> None:
    assert inside["distributions"] == locked_versions() | {PROJECT["name"]: PROJECT["version"]}


def test_nothing_in_the_image_can_install_compile_or_download(inside: dict[str, Any]) -> None:
    assert (inside["tools"], inside["modules"]) == ([], [])


def test_all_is_compiled_so_that_a_read_only_disk_costs_no_start_up_time(
    inside: dict[str, Any],
) -> None:
    assert inside["uncompiled"] == []


def test_no_secret_and_nothing_but_the_sources_is_in_any_layer(
    podman: Podman, image: str, checkout: Checkout, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    podman.run("save", "--format=docker-archive", f"--output={archive}", image)
    needles = [text.encode() for text in checkout.secrets]
    layers, found, ours = 0, [], []
    for name, data in members(archive.read_bytes()):
        found += [
            name for needle in needles if needle in data
        ]  # also in the configuration, where the history is
        if name.endswith(".tar"):
            layers += 1
            ours += [
                path for path, _ in members(data) if path.startswith(("opt/", "srv/", "build/"))
            ]
    assert layers > 2
    assert found == []
    assert any(path.endswith("bridge/_flows/common/bridge.jobs/example.yaml") for path in ours)
    assert [path for path in ours if UNWANTED.search(path)] == []


UNWANTED = re.compile(
    r"^(srv|build)/|/(\.env|\.git(/|$)|planted|docker-compose)|\.whl$|/bridge/(.*/)?tests?/"
)


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a tar file with their contents."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                yield member.name, file.read()


def test_without_settings_it_ends_and_names_them(podman: Podman, image: str) -> None:
    done = podman.complete("run", "--rm", "--network=none", *NO_RIGHTS, NO_DISK, image)
    assert done.returncode == 2
    assert "BRIDGE_AMQP_URL" in done.stderr


# The stack, by the README's commands.


@pytest.fixture
def bridge(stack: Compose) -> Container:
    return Container(stack.podman, "kestra-bridge_bridge_1")


def test_a_job_submitted_as_the_readme_says_succeeds(stack: Compose, bridge: Container) -> None:
    before = len(bridge.events("settled", settlement="ack"))
    said = stack.readme("run ")
    assert "SUCCESS" in said
    assert "Hello" in said
    assert len(bridge.events("settled", settlement="ack")) == before + 1


@pytest.mark.parametrize("service", ["rabbitmq", "postgres", "kestra", "bridge"])
async def test_what_is_up_is_healthy_by_its_own_check(stack: Compose, service: str) -> None:
    container = Container(stack.podman, f"kestra-bridge_{service}_1")
    await eventually(lambda: container.healthy, f"{service} is healthy", timeout=60)


def test_published_ports_are_reached_on_loopback_alone(stack: Compose) -> None:
    addresses, ports = ("127.0.0.1", gateway(stack.podman)), (5672, 8080, 15672)
    reached = {(to, port) for to in addresses for port in ports if connects(stack.podman, to, port)}
    assert reached == {("127.0.0.1", port) for port in ports}


def gateway(podman: Podman) -> str:
    """The machine's address as the containers see it."""
    (network,) = json.loads(podman.run("network", "inspect", NETWORK))
    return str(network["subnets"][0]["gateway"])


def connects(podman: Podman, address: str, port: int) -> bool:
    script = f"import socket; socket.create_connection(({address!r}, {port}), 5)"
    return (
        subprocess.run(
            podman.beside("python3", "-c", script), capture_output=True, check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize("service", ["rabbitmq", "postgres", "kestra", "flows", "bridge"])
def test_whoever_inspects_a_container_sees_no_password(
    stack: Compose, checkout: Checkout, service: str
) -> None:
    seen = stack.podman.run("container", "inspect", f"kestra-bridge_{service}_1")
    assert [password for password in checkout.passwords.values() if password in seen] == []


def test_the_kernel_gives_the_bridge_no_rights(bridge: Container) -> None:
    running = [status(pid) for pid in bridge.podman.run("top", bridge.name, "hpid").split()[1:]]
    assert len(running) >= 2  # the first process and the bridge
    for process in running:
        assert (process["Uid"].split(), process["Gid"].split()) == (["10001"] * 4, ["10001"] * 4)
        assert {
            int(process[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        } == {0}
        assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")


def status(pid: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def test_the_bridge_can_write_nowhere_but_in_memory(bridge: Container) -> None:
    script = """
import os
roots = ("/etc", "/home", "/opt", "/root", "/srv", "/usr", "/var")
paths = [path for root in roots for path, _, _ in os.walk(root)]
print([path for path in paths if os.access(path, os.W_OK) and not os.path.ismount(path)])
"""
    assert bridge.exec("python", "-c", script).strip() == "[]"


def test_the_bridge_is_limited_as_the_compose_file_says(bridge: Container) -> None:
    limits = bridge.inspect()["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"], limits["PidsLimit"]) == (
        256 * 1024**2,
        10**9,
        100,
    )


async def test_a_bridge_that_crashes_is_started_again(bridge: Container) -> None:
    before = bridge.inspect()["RestartCount"]
    # Detached, since `podman exec` may wait for ever for the end of a command that dies with its
    # container.
    bridge.podman.run("exec", "--detach", bridge.name, "python", "-c", "import os; os.kill(-1, 9)")
    await eventually(lambda: bridge.inspect()["RestartCount"] > before, "a restart")
    await eventually(lambda: bridge.healthy, "the bridge is healthy again", timeout=60)


async def test_prometheus_scrapes_the_bridge_and_rabbitmq_and_loads_our_rules(
    stack: Compose,
) -> None:
    """By its service of docker-compose.yml, which Grafana is beside: of that no image can be had
    here."""
    images.add_prometheus(stack.podman)
    stack.run("--profile=monitoring", "up", "--detach", "prometheus")
    prometheus = Container(stack.podman, "kestra-bridge_prometheus_1")

    def asked(what: str) -> Any:
        script = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/api/v1/{what}').read().decode())"
        answer = prometheus.podman.complete("exec", prometheus.name, "python3", "-c", script)
        return json.loads(answer.stdout)["data"] if answer.returncode == 0 else {}

    def up() -> set[str]:
        return {
            each["labels"]["job"]
            for each in asked("targets").get("activeTargets", ())
            if each["health"] == "up"
        }

    ours = {"bridge", "rabbitmq", "rabbitmq-queues"}
    await eventually(lambda: ours <= up(), f"Prometheus scrapes {ours}", timeout=90, every=0.5)
    found = {rule["name"] for group in asked("rules")["groups"] for rule in group["rules"]}
    files = [
        yaml.safe_load((REPOSITORY / "deploy/prometheus" / name).read_text()) for name in RULES
    ]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    assert found == {rule.get("alert") or rule["record"] for rule in rules}


# Replicas beside it, given their passwords as files.


async def test_a_stop_lets_the_job_end_and_settles_it(replicas: Replicas) -> None:
    replica = replicas.start()
    await eventually(lambda: replica.events("consuming"), "consuming", timeout=60)
    replica.exec("kestra-bridge", "submit", "--input", "seconds=8")
    await eventually(lambda: replica.metric("bridge_in_flight") == 1, "a job in flight")
    replica.podman.run("stop", "--time=60", replica.name)
    assert replica.inspect()["State"]["ExitCode"] == 0
    assert [event["in_flight"] for event in replica.events("draining")] == [1]
    assert [event["settlement"] for event in replica.events("settled")] == ["ack"]
    assert replica.events("stopped")


async def test_a_stop_in_a_longer_job_leaves_it_to_the_next_replica(replicas: Replicas) -> None:
    first = replicas.start(drain_timeout=1)
    await eventually(lambda: first.events("consuming"), "consuming", timeout=60)
    first.exec("kestra-bridge", "submit", "--input", "seconds=300")
    await eventually(
        lambda: first.metric("bridge_executions_total", how="created") == 1, "an execution"
    )
    first.podman.run("stop", "--time=60", first.name)
    assert first.inspect()["State"]["ExitCode"] == 0
    second = replicas.start()
    await eventually(lambda: second.events("consuming"), "consuming", timeout=60)
    await eventually(
        lambda: second.metric("bridge_executions_total", how="adopted") == 1, "the same execution"
    )


async def test_it_writes_nothing_even_where_it_could(replicas: Replicas) -> None:
    replica = replicas.start("--read-only=false")
    await eventually(lambda: replica.events("consuming"), "consuming", timeout=60)
    replica.exec("kestra-bridge", "submit", "--flow", "bridge.jobs/example", "--wait")
    changed = {line.split()[1] for line in replica.podman.run("diff", replica.name).splitlines()}
    assert changed <= PODMANS_OWN


PODMANS_OWN = {"/etc", "/etc/group", "/etc/mtab", "/etc/passwd", "/run", "/run/secrets"}
"""What Podman itself adds to a container's files."""


async def test_a_replica_without_kestra_lives_and_is_not_healthy(replicas: Replicas) -> None:
    replica = replicas.start(kestra_url="http://kestra:1")
    await eventually(lambda: replica.events("starting"), "starting", timeout=60)
    assert json.loads(replica.get("/health/live"))
    assert not replica.healthy


# What is left.


async def test_down_leaves_nothing_behind(compose: Compose) -> None:
    ports = {"RABBITMQ_PORT": "5673", "RABBITMQ_UI_PORT": "15673"}
    compose.run("up", "--detach", "rabbitmq", project="other", **ports)
    identity = Container(compose.podman, "other_rabbitmq_1").inspect()["Id"]
    assert (
        len(left(compose.podman, "other", identity)) >= 4
    )  # a container and its process, a volume, a network
    compose.run("down", "--volumes", project="other")
    # conmon outlives its container by a moment, to clean up.
    await eventually(lambda: not left(compose.podman, "other", identity), "nothing is left")


def left(podman: Podman, project: str, identity: str) -> list[str]:
    """Containers, networks and volumes of a project, and processes that name a container."""
    listings = (
        podman.run("ps", "--all", "--format={{.Names}}"),
        podman.run("network", "ls", "--format={{.Name}}"),
        podman.run("volume", "ls", "--format={{.Name}}"),
    )
    names = [
        name for listing in listings for name in listing.split() if name.startswith(f"{project}_")
    ]
    return names + processes_naming(identity)


def processes_naming(identity: str) -> list[str]:
    """The command lines in which a container's id stands."""
    lines = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [line for line in lines if identity in line]


KILLED = """
import sys, time
from pathlib import Path
from deploy.local.images import stores
from deploy.local.podman import Podman
with Podman(Path(sys.argv[1]), stores=stores()) as podman:
    sleeping = ("localhost/python", "sleep", "600")
    print(podman.run("run", "--detach", "--network=none", *sleeping), flush=True)
    time.sleep(600)
"""


async def test_containers_end_with_the_process_that_started_them(podman: Podman) -> None:
    with tempfile.TemporaryDirectory(prefix="kb-") as temporary:
        directory = Path(temporary, "podman")
        identity = start_and_be_killed(directory)
        assert identity
        await eventually(lambda: not directory.exists(), f"{directory} is gone", timeout=60)
    # conmon may still be at its clean-up command when the folder is gone.
    await eventually(lambda: not processes_naming(identity), "no process of it is left")


def start_and_be_killed(directory: Path) -> str:
    """The id of a container, once the process that started it has been killed."""
    command = [sys.executable, "-c", KILLED, str(directory)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        identity = process.stdout.readline().strip()
        process.kill()
    return identity
