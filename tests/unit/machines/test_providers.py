"""The table of providers: tags, user data, options and the settings that each needs."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest

from bridge.errors import MachineRejected, SettingsError
from bridge.machines.identity import SshIdentity
from bridge.machines.order import Order, Tags, is_spot, power_off_at
from bridge.machines.providers import PROVIDERS, choose
from bridge.machines.providers.provider import LONGEST_TAG, NETWORK_TIMEOUT
from tests.unit.machines.support import SECRET, TAGS, settings

ORDER = Order(
    name="kestra-a", tags=TAGS, user="job", identity=SshIdentity.derive(SECRET, "kestra-a")
)


def options(provider: str, **more: Any) -> dict[str, Any]:
    return PROVIDERS[provider].options(
        ORDER, settings(machine_provider=provider, machine_region="r-1", **more)
    )


def node(**extra: Any) -> Any:
    return SimpleNamespace(extra=extra)


def returned(provider: str) -> Any:
    """A node with the tags of our order, as that provider's `list_nodes` returns it."""
    given_options = options(provider)
    return {
        "ec2": lambda: node(tags=given_options["ex_metadata"]),
        "openstack": lambda: node(metadata=given_options["ex_metadata"]),
        "gce": lambda: node(
            metadata={
                "items": [
                    {"key": key, "value": value}
                    for key, value in given_options["ex_metadata"].items()
                ]
            }
        ),
        "digitalocean": lambda: node(tags=given_options["ex_create_attr"]["tags"]),
        "linode": lambda: node(tags=given_options["ex_tags"]),
        "vultr": lambda: node(tags=given_options["tags"]),
        "qemu": lambda: node(tags=given_options["ex_tags"]),
    }[provider]()


def user_data(provider: str) -> str:
    given_options = options(provider)
    keys = ("ex_userdata", "ex_user_data")
    if "user_data" in given_options:
        return base64.b64decode(given_options["user_data"]).decode()
    return next((given_options[key] for key in keys if key in given_options), None) or str(
        given_options["ex_metadata"]["user-data"]
    )


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_tags_come_back_from_every_provider(provider: str) -> None:
    tags = Tags.parse(PROVIDERS[provider].tags(returned(provider)))
    assert tags is not None
    assert replace(tags, job="") == replace(TAGS, job="")


@pytest.mark.parametrize("provider", ["ec2", "openstack", "gce", "qemu"])
def test_a_jobs_id_comes_back_unchanged_if_the_providers_tags_have_values(
    provider: str,
) -> None:
    tags = Tags.parse(PROVIDERS[provider].tags(returned(provider)))
    assert tags is not None
    assert tags.job == TAGS.job


@pytest.mark.parametrize("provider", ["digitalocean", "linode"])
def test_tags_without_values_obey_the_strictest_rules(provider: str) -> None:
    long = replace(ORDER, tags=replace(TAGS, job="x" * 200, execution="e" * 33))
    given_options = PROVIDERS[provider].options(long, settings(machine_provider=provider))
    texts = given_options.get("ex_tags") or given_options["ex_create_attr"]["tags"]
    assert all(re.fullmatch(r"[A-Za-z0-9:_-]{3,50}", text) for text in texts)
    assert f"kestra-execution:{'e' * 33}" in texts
    assert LONGEST_TAG == 50


@pytest.mark.parametrize("provider", sorted(set(PROVIDERS) - {"qemu"}))
def test_every_cloud_gets_the_same_user_data(provider: str) -> None:
    first = user_data(provider).partition("\n")[0]
    config = json.loads(user_data(provider).partition("\n")[2])
    assert first == "#cloud-config"
    assert asyncssh.import_private_key(
        config["ssh_keys"]["ed25519_private"]
    ).convert_to_public() == (asyncssh.import_public_key(ORDER.identity.host.public))


def test_cloud_init_makes_one_ordinary_user_and_leaves_no_other_way_in() -> None:
    config = json.loads(ORDER.user_data.partition("\n")[2])
    assert (config["disable_root"], config["ssh_pwauth"], config["ssh_deletekeys"]) == (
        True,
        False,
        True,
    )
    assert [(user["name"], user["lock_passwd"], "sudo" in user) for user in config["users"]] == [
        ("job", True, False)
    ]
    assert config["users"][0]["ssh_authorized_keys"] == [ORDER.identity.client.public]


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which those programs note how they are called, in the file `called`."""
    for name, script in scripts.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/called\n{script}\n')
        program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(("deadline", "left"), [(1_060, 60), (999, 1), (1_000, 1)])
def test_the_timer_of_a_machine_is_set_to_its_deadline(
    tmp_path: Path, deadline: float, left: int
) -> None:
    environment = programs(tmp_path, date="echo 1000", systemctl="true")
    command = power_off_at(deadline, units=str(tmp_path))
    subprocess.run(["sh", "-c", command], env=environment, check=True)
    timer = (tmp_path / "kestra-deadline.timer").read_text()
    assert timer.splitlines()[-1] == f"OnActiveSec={left}"


def test_the_timer_of_a_machine_is_started_and_not_waited_for(tmp_path: Path) -> None:
    environment = programs(tmp_path, systemctl="true")
    command = power_off_at(1_060, units=str(tmp_path))
    subprocess.run(["sh", "-c", command], env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [
        "systemctl daemon-reload",
        "systemctl start --no-block kestra-deadline.timer",
    ]


@pytest.mark.parametrize("units", [".", "nowhere"], ids=["it fails", "there is none"])
def test_without_systemd_a_process_waits_for_the_deadline(tmp_path: Path, units: str) -> None:
    environment = programs(
        tmp_path, date="echo 1000", sleep="true", poweroff="true", systemctl="exit 1"
    )
    command = power_off_at(1_060, units=str(tmp_path / units))
    subprocess.run(["sh", "-c", f"{command}; wait"], env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[-2:] == ["sleep 60", "poweroff -f"]


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize("provider", ["digitalocean", "ec2", "linode", "vultr"])
def test_a_providers_driver_can_be_made_and_has_our_time_out(
    provider: str, endpoint: str | None
) -> None:
    driver = PROVIDERS[provider].connect(
        settings(machine_provider=provider, machine_endpoint=endpoint)
    )
    assert driver.connection.timeout == NETWORK_TIMEOUT


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "ec2.eu-west-1.amazonaws.com"),
        ("eu-central-9", "ec2.eu-central-9.amazonaws.com"),
        ("cn-north-1", "ec2.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "ec2.us-gov-west-1.amazonaws.com"),
    ],
)
def test_ec2s_address_follows_from_the_region_also_where_libcloud_does_not_know_it(
    region: str, host: str
) -> None:
    driver: Any = PROVIDERS["ec2"].connect(settings(machine_provider="ec2", machine_region=region))
    assert (driver.connection.host, driver.region_name) == (host, region)


@pytest.mark.parametrize("region", ["mars", "mars-north-1", "EU-west-1", "x/y-z-1"])
def test_a_text_that_is_no_region_is_rejected(region: str) -> None:
    with pytest.raises(MachineRejected, match=f"Invalid region: {region}"):
        PROVIDERS["ec2"].connect(settings(machine_provider="ec2", machine_region=region))


def test_the_table_has_the_providers_that_the_help_names() -> None:
    assert sorted(PROVIDERS) == [
        "digitalocean",
        "ec2",
        "gce",
        "linode",
        "openstack",
        "qemu",
        "vultr",
    ]


@pytest.mark.parametrize(
    ("provider", "more", "expected"),
    [
        ("ec2", {"machine_firewall": "ssh"}, {"ex_security_groups": ["ssh"]}),
        (
            "ec2",
            {"machine_firewall": "sg-1", "machine_network": "subnet-1"},
            {"ex_security_group_ids": ["sg-1"]},
        ),
        (
            "ec2",
            {"machine_network": "s", "machine_address": "private"},
            {"ex_assign_public_ip": False},
        ),
        (
            "gce",
            {"machine_firewall": "ssh", "machine_network": "n"},
            {"ex_tags": ["ssh"], "ex_network": "n"},
        ),
        ("gce", {"machine_address": "private"}, {"external_ip": None}),
        ("vultr", {"machine_firewall": "f-1"}, {"firewall_group_id": "f-1"}),
        ("linode", {"machine_address": "private"}, {"ex_private_ip": True}),
    ],
)
def test_network_and_firewall_are_given_in_the_providers_terms(
    provider: str, more: dict[str, str], expected: dict[str, Any]
) -> None:
    given_options = options(provider, **more)
    assert {key: given_options[key] for key in expected} == expected


@pytest.mark.parametrize(("provider", "option"), [("ec2", "ex_spot"), ("gce", "ex_preemptible")])
@pytest.mark.parametrize("spot", [True, False])
def test_a_spot_machine_is_ordered_in_the_providers_terms(
    provider: str, option: str, spot: bool
) -> None:
    order = replace(ORDER, spot=spot)
    assert PROVIDERS[provider].options(order, settings())[option] is spot


@pytest.mark.parametrize(
    ("choice", "spot"),
    [("off", [False, False]), ("first", [True, False]), ("only", [True, True])],
)
def test_the_setting_says_for_which_attempts_a_spot_machine_is_ordered(
    choice: str, spot: list[bool]
) -> None:
    assert [is_spot(choice, attempt) for attempt in (1, 2)] == spot


def test_a_provider_without_spot_machines_refuses_to_look_for_them() -> None:
    with pytest.raises(SettingsError, match="BRIDGE_MACHINE_SPOT must be off: qemu has no spot"):
        choose(settings(machine_spot="first"))


def test_an_unknown_provider_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(
        SettingsError,
        match=r"must be one of digitalocean, ec2, gce, .*, vultr, not 'hetzner'",
    ):
        choose(settings(machine_provider="hetzner"))


def test_all_settings_that_a_provider_lacks_are_named_at_once() -> None:
    with pytest.raises(
        SettingsError,
        match=r"BRIDGE_MACHINE_ACCESS_SECRET.*BRIDGE_MACHINE_IMAGE.*BRIDGE_MACHINE_SIZE",
    ):
        choose(settings(machine_provider="ec2", machine_access_key="A"), to_create=True)


def test_looking_and_destroying_need_neither_image_nor_size() -> None:
    account = {"machine_access_key": "A", "machine_access_secret": "B"}
    assert choose(settings(machine_provider="ec2", **account)) is PROVIDERS["ec2"]


def test_a_provider_that_is_not_set_is_asked_for_by_its_setting() -> None:
    with pytest.raises(SettingsError, match=r"^BRIDGE_MACHINE_PROVIDER is not set: qemu for"):
        choose(settings(machine_provider=None))


def test_machines_on_this_host_need_no_setting_but_the_secret() -> None:
    assert choose(settings(), to_create=True) is PROVIDERS["qemu"]


@pytest.mark.parametrize(
    "missing", ["kestra-owner", "kestra-execution", "kestra-deadline", "kestra-call"]
)
def test_a_machine_that_lacks_one_of_our_tags_is_not_ours(missing: str) -> None:
    texts = {key: value for key, value in TAGS.texts.items() if key != missing}
    assert Tags.parse(texts) is None


def test_a_machine_whose_deadline_is_no_number_is_not_ours() -> None:
    assert Tags.parse(TAGS.texts | {"kestra-deadline": "soon"}) is None
