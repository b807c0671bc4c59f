"""What is shipped for deployment agrees with the settings, with the topology, and with what a
container may do."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.consume.sessions import SessionPolicy
from bridge.machines.settings import MachineSettings
from bridge.rabbitmq import topology
from bridge.settings import Settings, load
from deploy.local.kestra_engine import AmqpAddress
from deploy.local.paths import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
NOTIFIER_FILE = DEPLOY / "compose-notifier.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HTTP_PORT: int = Settings.model_fields["http_port"].default
DRAIN_TIMEOUT: float = Settings.model_fields["drain_timeout"].default
JOB_TIMEOUT: float = Settings.model_fields["job_timeout"].default
MOUNTED_SECRETS = "/run/secrets/"
DEVELOPMENT_SECRETS = DEPLOY / "development-secrets"
NOTIFIER_KEYS = ("HOST", "PORT", "VHOST", "USERNAME", "PASSWORD")
VARIABLE = re.compile(r"\$\{(\w+)(?::-((?:[^{}]|\{[^{}]*\})*))?\}")


def value(text: str, **given: str) -> str:
    """A text of the compose file with its variables replaced, by what is given or by their
    defaults."""
    while match := VARIABLE.search(text):
        text = text.replace(match[0], given.get(match[1]) or match[2] or "")
    return text


def environment(service_name: str, **given: str) -> dict[str, str]:
    return replaced(SERVICES[service_name]["environment"], **given)


def replaced(variables: dict[str, Any], **given: str) -> dict[str, str]:
    return {name: value(str(text), **given) for name, text in variables.items()}


def seconds(text: str) -> int:
    number, unit = int(text[:-1]), text[-1]
    return number * {"s": 1, "m": 60}[unit]


def instructions(name: str, text: str = DOCKERFILE) -> list[str]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [
        line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")
    ]


# The compose file.


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_can_be_replaced_by_a_variable_and_has_a_fixed_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert VARIABLE.fullmatch(image), image
    assert value(image, BRIDGE_IMAGE="") == "kestra-bridge" or re.search(r":v?\d+", value(image))


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_alone(name: str) -> None:
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", ["bridge", "flows"])
def test_the_bridge_has_no_rights_and_no_disk(name: str) -> None:
    container = SERVICES[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in container["security_opt"]
    assert not container["user"].startswith(("0", "root"))
    # Process 1 can't be stopped before it has asked for the signal.
    assert container["init"] is True
    assert not container.get("privileged")
    assert not container.get("volumes")


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "flows"])
def test_what_stays_up_is_checked_restarted_and_given_time_to_stop(name: str) -> None:
    container = SERVICES[name]
    # The bridge's check is in its image.
    assert name == "bridge" or container["healthcheck"]["test"][0] == "CMD"
    assert container["restart"] == "unless-stopped"
    assert seconds(value(container["stop_grace_period"])) >= 30


def test_each_dependency_names_a_service_and_what_to_wait_for() -> None:
    for container in SERVICES.values():
        for name, how in container.get("depends_on", {}).items():
            lasting = "healthcheck" not in SERVICES[name] or "test" in SERVICES[name]["healthcheck"]
            assert how["condition"] == (
                "service_healthy" if lasting else "service_completed_successfully"
            )


def test_no_container_is_given_the_engines_socket() -> None:
    assert "docker.sock" not in COMPOSE_FILE.read_text()


def test_the_files_that_are_mounted_exist_and_are_read_only() -> None:
    mounts = [mount for container in SERVICES.values() for mount in container.get("volumes", [])]
    files = [mount.split(":") for mount in mounts if mount.startswith(".")]
    assert files
    for source, _, mode in files:
        assert (REPOSITORY / source).is_file(), source
        assert mode == "ro"


def test_volumes_are_named_and_all_of_them_used() -> None:
    mounts = [mount for container in SERVICES.values() for mount in container.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts if not mount.startswith(".")} == set(
        COMPOSE["volumes"]
    )


def test_the_bridge_may_drain_and_settle_before_it_is_killed() -> None:
    grace = seconds(value(SERVICES["bridge"]["stop_grace_period"]))
    drain = float(environment("bridge")["BRIDGE_DRAIN_TIMEOUT"])
    assert drain == DRAIN_TIMEOUT
    assert grace > drain + SessionPolicy(hold=0, drain=0).settled_within


def on_this_machine(variables: dict[str, str]) -> dict[str, str]:
    """The same with the files of secrets where they are here."""
    return {
        name: text.replace(MOUNTED_SECRETS, f"{DEVELOPMENT_SECRETS}/")
        for name, text in variables.items()
    }


def test_the_bridges_environment_is_complete_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in on_this_machine(environment("bridge")).items():
        monkeypatch.setenv(name, text)
    settings = load(Settings)
    assert settings.flow_patterns == ("bridge.jobs/example",)
    assert settings.broker_address == "rabbitmq:5672/"
    assert settings.prefetch == Settings.model_fields["prefetch"].default
    assert settings.retry_delays == Settings.model_fields["retry_delays"].default


def test_settings_given_to_compose_reach_the_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "BRIDGE_PREFETCH": "3",
        "BRIDGE_RETRY_DELAYS": "[1, 2]",
        "BRIDGE_ALLOWED_FLOWS": '["bridge.jobs/*"]',
    }
    for name, text in on_this_machine(environment("bridge", **given)).items():
        monkeypatch.setenv(name, text)
    settings = load(Settings)
    assert (settings.prefetch, settings.retry_delays, settings.flow_patterns) == (
        3,
        (1, 2),
        ("bridge.jobs/*",),
    )


def test_those_who_share_an_account_are_given_the_same_name() -> None:
    bridge, kestra, flows = (environment(name) for name in ("bridge", "kestra", "flows"))
    assert (
        bridge["BRIDGE_AMQP_USERNAME"]
        == notifier_environment()["NOTIFIER_AMQP_USERNAME"]
        == environment("rabbitmq")["RABBITMQ_DEFAULT_USER"]
    )
    assert (
        kestra["API_USERNAME"]
        == bridge["BRIDGE_KESTRA_USERNAME"]
        == flows["BRIDGE_KESTRA_USERNAME"]
    )


def notifier_environment() -> dict[str, str]:
    """What the file for the notifier adds to Kestra's environment."""
    services = yaml.safe_load(NOTIFIER_FILE.read_text())["services"]
    return replaced(services["kestra"]["environment"])


def test_kestra_knows_nothing_of_rabbitmq_unless_the_notifier_is_asked_for() -> None:
    assert "rabbitmq" not in str(SERVICES["kestra"])


def test_the_file_for_the_notifier_changes_services_that_there_are() -> None:
    services = yaml.safe_load(NOTIFIER_FILE.read_text())["services"]
    assert set(services) <= set(SERVICES)
    assert services["flows"]["command"] == [*SERVICES["flows"]["command"], "--notifier"]


def test_the_notifier_gets_all_of_its_secrets() -> None:
    given = {name.removesuffix("_FILE") for name in notifier_environment()}
    assert given == {f"NOTIFIER_AMQP_{key}" for key in NOTIFIER_KEYS}


def test_the_notifier_finds_the_broker_that_the_bridge_consumes_from() -> None:
    kestra, address = (
        notifier_environment(),
        AmqpAddress.from_url(environment("bridge")["BRIDGE_AMQP_URL"]),
    )
    assert (
        kestra["NOTIFIER_AMQP_HOST"],
        kestra["NOTIFIER_AMQP_PORT"],
        kestra["NOTIFIER_AMQP_VHOST"],
    ) == (
        address.host,
        str(address.port),
        address.vhost,
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_gets_the_secrets_that_its_settings_name_and_no_others(name: str) -> None:
    container = SERVICES[name]
    named = re.findall(rf"{MOUNTED_SECRETS}([a-z-]+)", str(container.get("environment")))
    assert sorted(container.get("secrets", [])) == sorted(named)


def test_secrets_are_files_of_a_folder_that_can_be_another() -> None:
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    used = {name for container in SERVICES.values() for name in container.get("secrets", [])}
    assert set(files) == used == {path.name for path in DEVELOPMENT_SECRETS.iterdir()}
    for name, file in files.items():
        assert REPOSITORY / value(file) == DEVELOPMENT_SECRETS / name
        assert value(file, SECRETS_DIRECTORY="./secrets") == f"./secrets/{name}"
    assert "/secrets/" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_no_password_is_in_the_compose_file() -> None:
    named = re.findall(r"^\s+(\w*(?:PASS|TOKEN)\w*): (.+)$", COMPOSE_FILE.read_text(), re.MULTILINE)
    assert named
    assert [name for name, text in named if not text.startswith(MOUNTED_SECRETS)] == []


def test_kestra_would_take_the_default_credentials() -> None:
    assert re.fullmatch(r"[^@]+@[^@]+\.[^@]+", environment("kestra")["API_USERNAME"])
    password = (DEVELOPMENT_SECRETS / "kestra-password").read_text().strip()
    assert all(re.search(pattern, password) for pattern in (r".{8}", r"[A-Z]", r"[a-z]", r"\d"))


def test_default_passwords_say_what_they_are_for() -> None:
    assert all("development" in path.read_text().lower() for path in DEVELOPMENT_SECRETS.iterdir())


# Settings, wherever they are named.


@pytest.mark.parametrize(
    "path",
    [
        COMPOSE_FILE,
        NOTIFIER_FILE,
        *sorted(
            path
            for folder in ("grafana", "kestra", "prometheus", "rabbitmq")
            for path in (DEPLOY / folder).iterdir()
            if path.is_file()
        ),
        DEPLOY / "Dockerfile",
    ],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    fields = {*Settings.model_fields, *MachineSettings.model_fields}
    known = {f"BRIDGE_{name.upper()}" for name in fields}
    # Not settings: names of images, and of the notifier's secrets, which the shell puts together;
    # and all settings of machines together.
    others = {"BRIDGE_IMAGE", "BRIDGE_AMQP_", "BRIDGE_AMQP_PASSWORD", "BRIDGE_MACHINE_"}
    found = set(
        re.findall(r"\bBRIDGE_[A-Z_]+", path.read_text().replace("SECRET_BRIDGE", "SECRET BRIDGE"))
    )
    assert found - others <= known


# The image.


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[-1])
    assert instructions("USER")[-1] == SERVICES["bridge"]["user"]


def test_signals_reach_the_bridge_itself() -> None:
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["kestra-bridge"]
    assert json.loads(instructions("CMD")[-1]) == ["run"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_base_image_is_an_argument_used_by_every_stage() -> None:
    assert instructions("ARG")[0].startswith("BASE_IMAGE=")
    outside = [line.split()[0] for line in instructions("FROM")]
    assert set(outside) <= {"${BASE_IMAGE}", "${BUILD_IMAGE}", "dependencies"}
    assert outside[-1] == "${BASE_IMAGE}"


def test_dependencies_are_installed_by_hash_and_what_ships_is_only_copied() -> None:
    assert any(
        "--require-hashes" in run and "requirements-runtime.lock" in run
        for run in instructions("RUN")
    )
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert not any(
        word in run for run in instructions("RUN", last) for word in ("install", "apt", "venv")
    )


def test_the_image_serves_to_other_containers_on_the_port_that_prometheus_scrapes() -> None:
    text = " ".join(instructions("ENV"))
    assert "BRIDGE_HTTP_HOST=0.0.0.0" in text
    assert f"BRIDGE_HTTP_PORT={HTTP_PORT}" in text
    assert "BRIDGE_LOG_FORMAT=json" in text
    assert instructions("EXPOSE") == [str(HTTP_PORT)]


def test_the_image_has_the_projects_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in instructions("ARG")


def test_no_secret_is_baked_into_the_image() -> None:
    for line in (
        *instructions("ENV"),
        *instructions("ARG"),
        *instructions("COPY"),
        *instructions("LABEL"),
    ):
        assert not re.search(r"password|token|secret|amqp_url|\.env\b", line, re.IGNORECASE), line


def test_the_image_is_made_of_the_named_sources_alone() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    rules = [rule for rule in ignored if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert not allowed & {".git", ".venv", ".env", "tests", "deploy"}
    sources = {
        word.rstrip("*")
        for line in instructions("COPY")
        if "--from" not in line
        for word in line.split()[:-1]
    }
    assert sources == allowed


# Kestra.


def start(
    script: str, tmp_path: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of `deploy` with an entry point that shows its arguments and its environment."""
    entrypoint = tmp_path / "docker-entrypoint.sh"
    entrypoint.write_text('#!/bin/sh\necho "arguments $*"\nexec env\n')
    entrypoint.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", str(DEPLOY / script), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kestra_starts_with_the_notifiers_secrets_in_base64_and_no_longer_in_clear(
    tmp_path: Path,
) -> None:
    long = "p%$'\" \\" * 20  # base64 breaks lines unless told otherwise
    plain = {
        "HOST": "rabbitmq",
        "PORT": "5672",
        "VHOST": "/",
        "USERNAME": "bridge",
        "PASSWORD": long,
    }
    given = {f"NOTIFIER_AMQP_{key}": text for key, text in plain.items()}
    done = start("kestra/start", tmp_path, "server", "standalone", **given)
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert "arguments server standalone" in done.stdout
    for key, text in plain.items():
        assert base64.b64decode(lines[f"SECRET_BRIDGE_AMQP_{key}"], validate=True).decode() == text
        assert f"NOTIFIER_AMQP_{key}" not in lines


def test_kestra_starts_with_what_stands_in_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    files = dict.fromkeys(
        ("API_PASSWORD_FILE", "DATABASE_PASSWORD_FILE", "NOTIFIER_AMQP_PASSWORD_FILE"),
        str(tmp_path / "secret"),
    )
    given = {f"NOTIFIER_AMQP_{key}": "x" for key in NOTIFIER_KEYS if key != "PASSWORD"}
    lines = start("kestra/start", tmp_path, **files, **given).stdout.splitlines()
    encoded = base64.b64encode(b"s3cret").decode()
    expected = {
        "API_PASSWORD=s3cret",
        "DATABASE_PASSWORD=s3cret",
        f"SECRET_BRIDGE_AMQP_PASSWORD={encoded}",
    }
    assert expected <= set(lines)
    assert not any("_FILE=" in line for line in lines)


def test_kestra_starts_without_any_secret_for_the_notifier(tmp_path: Path) -> None:
    done = start("kestra/start", tmp_path, "server", "standalone")
    assert (done.returncode, "SECRET_" in done.stdout) == (0, False)


def test_kestra_does_not_start_without_one_of_the_notifiers_secrets_and_says_which(
    tmp_path: Path,
) -> None:
    done = start("kestra/start", tmp_path, NOTIFIER_AMQP_HOST="rabbitmq")
    assert done.returncode != 0
    assert "NOTIFIER_AMQP_PORT" in done.stderr
    assert "arguments" not in done.stdout


def test_the_secrets_are_those_that_the_notifier_reads() -> None:
    for path in (REPOSITORY / "flows").glob("kestra-*/bridge.system/notifier.yaml"):
        assert set(re.findall(r"secret\('(\w+)'\)", path.read_text())) == {
            f"BRIDGE_AMQP_{key}" for key in NOTIFIER_KEYS
        }


def test_every_variable_in_kestras_configuration_is_given_or_has_a_default() -> None:
    text = (DEPLOY / "kestra/application.yml").read_text()
    assert yaml.safe_load(text)["kestra"]["repository"]["type"] == "postgres"
    needed = set(re.findall(r"\$\{([A-Z_]+)\}", re.sub(r"#.*", "", text)))
    assert needed <= {name.removesuffix("_FILE") for name in SERVICES["kestra"]["environment"]}


# Prometheus.


def test_prometheus_scrapes_every_replica_of_the_bridge_and_both_others() -> None:
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())[
            "scrape_configs"
        ]
    }
    (bridge,) = jobs["bridge"]["dns_sd_configs"]
    assert (bridge["names"], bridge["type"], bridge["port"]) == (["bridge"], "A", HTTP_PORT)
    targets = {
        target
        for job in jobs.values()
        for static in job.get("static_configs", [])
        for target in static["targets"]
    }
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)
    assert {"rabbitmq", "kestra"} <= set(jobs)


# RabbitMQ.


def test_rabbitmq_starts_with_the_password_that_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    variables = {"RABBITMQ_DEFAULT_PASS_FROM": str(tmp_path / "secret")}
    lines = start("rabbitmq/start", tmp_path, "rabbitmq-server", **variables).stdout.splitlines()
    assert {"RABBITMQ_DEFAULT_PASS=s3cret", "arguments rabbitmq-server"} <= set(lines)
    assert not any("_FROM=" in line for line in lines)


@pytest.mark.parametrize("variables", [{}, {"RABBITMQ_DEFAULT_PASS_FROM": "/nowhere"}])
def test_rabbitmq_does_not_start_without_a_password(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    done = start("rabbitmq/start", tmp_path, "rabbitmq-server", **variables)
    assert done.returncode != 0
    assert "arguments" not in done.stdout


def rabbitmq_settings() -> dict[str, str]:
    lines = (DEPLOY / "rabbitmq/rabbitmq.conf").read_text().splitlines()
    return dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))


POLICIES = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())["policies"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("version", [(4, 0), (4, 3)])
def test_policies_leave_alone_what_the_bridge_declares(
    kind: topology.Kind, version: topology.Version
) -> None:
    planned = topology.plan(
        "kestra.jobs", kind=kind, version=version, max_priority=10, retry_delays=(30, 300)
    )
    for queue in (planned.jobs, planned.dead, *planned.retries):
        for policy in POLICIES:
            if re.search(policy["pattern"], queue.name):
                assert not {f"x-{key}" for key in policy["definition"]} & set(queue.arguments)
                # What sets a limit where the bridge sets none, or takes messages elsewhere, is the
                # bridge's to say.
                assert set(policy["definition"]) == {"consumer-timeout"}


def test_the_policy_is_for_the_queue_that_the_bridge_consumes_by_default() -> None:
    default = Settings.model_fields["queue"].default
    matching = [policy["name"] for policy in POLICIES if re.search(policy["pattern"], default)]
    assert matching == ["kestra-jobs"]
    assert not any(re.search(policy["pattern"], f"{default}.dead") for policy in POLICIES)


def test_the_broker_waits_as_long_for_an_ack_as_the_bridge_asks_for() -> None:
    hold = int((2 * JOB_TIMEOUT + 3600) * 1000)
    assert int(rabbitmq_settings()["consumer_timeout"]) == hold
    assert [policy["definition"]["consumer-timeout"] for policy in POLICIES] == [hold]


def test_the_configuration_holds_no_user_and_keeps_the_broker_from_making_none() -> None:
    assert not {"load_definitions", "definitions.local.path", "default_user", "default_pass"} & set(
        rabbitmq_settings()
    )


def test_the_plugins_are_those_that_people_and_prometheus_reach() -> None:
    text = (DEPLOY / "rabbitmq/enabled_plugins").read_text()
    assert text == "[rabbitmq_management,rabbitmq_prometheus].\n"
