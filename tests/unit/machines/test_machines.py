"""Machines without a provider: names, tags, what each provider is told, errors, and who has to
go."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.google import GoogleAuthError, ResourceNotFoundError
from libcloud.common.types import InvalidCredsError, MalformedResponseError

from bridge.cli import machine_commands
from bridge.cli.machine_run import EPILOG, OUTCOMES
from bridge.errors import (
    MachineDenied,
    MachineError,
    MachineRejected,
    MachineUnavailable,
    SettingsError,
)
from bridge.machines import qemu
from bridge.machines.errors import translated
from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import UNKNOWN_AFTER, Machines, name_of, why_reap
from bridge.machines.providers import NETWORK_TIMEOUT, PROVIDERS, SHORTEST_TAG, Order, Tags, choose
from bridge.machines.remote import EXIT_CODES
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import LoginDenied
from bridge.settings import load
from deploy.local import machine_image
from deploy.local.paths import REPOSITORY, cache_directory

SECRET = "a secret of sixteen or more"
TAGS = Tags(
    owner="0" * 16,
    execution="3xAbC",
    job="night run/7",
    call="1" * 12,
    created=1000.0,
    deadline=4600.0,
)
ORDER = Order(
    name="kestra-a", tags=TAGS, user="job", identity=SshIdentity.derive(SECRET, "kestra-a")
)

executions = st.from_regex(r"[A-Za-z0-9_-]{1,33}", fullmatch=True)


def made(kind: Any, *arguments: Any) -> Exception:
    """An error of libcloud, whose classes have no annotations."""
    error: Exception = kind(*arguments)
    return error


def settings(**more: Any) -> MachineSettings:
    return MachineSettings(**{"machine_secret": SECRET, **more})


def options(provider: str, **more: Any) -> dict[str, Any]:
    return PROVIDERS[provider].options(
        ORDER, settings(machine_provider=provider, machine_region="r-1", **more)
    )


def node(**extra: Any) -> Any:
    return SimpleNamespace(extra=extra)


def returned(provider: str) -> Any:
    """A node as that provider's `list_nodes` gives it back, tagged by our order."""
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
        "vultr": lambda: node(tag=given_options["ex_tag"]),
        "qemu": lambda: node(tags=given_options["ex_tags"]),
    }[provider]()


def user_data(provider: str) -> str:
    given_options = options(provider)
    keys = ("ex_userdata", "ex_user_data")
    return next((given_options[key] for key in keys if key in given_options), None) or str(
        given_options["ex_metadata"]["user-data"]
    )


@given(executions)
def test_a_name_is_one_that_every_provider_takes(execution: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name_of(execution))
    assert len(name_of(execution)) <= 63


@given(executions, executions)
def test_two_executions_never_share_a_name(first: str, second: str) -> None:
    assert (name_of(first) == name_of(second)) == (first == second)


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_tags_come_back_from_every_provider(provider: str) -> None:
    tags = Tags.parse(PROVIDERS[provider].tags(returned(provider)))
    assert tags is not None
    assert replace(tags, job="") == replace(TAGS, job="")


@pytest.mark.parametrize("provider", ["ec2", "openstack", "gce", "qemu"])
def test_a_jobs_id_comes_back_as_it_was_where_the_provider_takes_it(provider: str) -> None:
    tags = Tags.parse(PROVIDERS[provider].tags(returned(provider)))
    assert tags is not None
    assert tags.job == TAGS.job


@pytest.mark.parametrize("provider", ["digitalocean", "linode"])
def test_tags_that_are_plain_texts_keep_to_the_strictest_rules(provider: str) -> None:
    long = replace(ORDER, tags=replace(TAGS, job="x" * 200, execution="e" * 33))
    given_options = PROVIDERS[provider].options(long, settings(machine_provider=provider))
    texts = given_options.get("ex_tags") or given_options["ex_create_attr"]["tags"]
    assert all(re.fullmatch(r"[A-Za-z0-9:_-]{3,50}", text) for text in texts)
    assert f"kestra-execution:{'e' * 33}" in texts
    assert SHORTEST_TAG == 50


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


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize("provider", ["digitalocean", "ec2", "linode", "vultr"])
def test_a_providers_driver_can_be_made_and_waits_no_longer_than_it_is_told(
    provider: str, endpoint: str | None
) -> None:
    driver = PROVIDERS[provider].connect(
        settings(machine_provider=provider, machine_endpoint=endpoint)
    )
    assert driver.connection.timeout == NETWORK_TIMEOUT


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
        ("vultr", {"machine_firewall": "f-1"}, {"ex_firewall_group_id": "f-1"}),
        ("linode", {"machine_address": "private"}, {"ex_private_ip": True}),
    ],
)
def test_network_and_firewall_are_said_in_the_providers_words(
    provider: str, more: dict[str, str], expected: dict[str, Any]
) -> None:
    given_options = options(provider, **more)
    assert {key: given_options[key] for key in expected} == expected


def test_an_unknown_provider_is_told_the_known_ones() -> None:
    with pytest.raises(
        SettingsError,
        match=r"'hetzner' is none of digitalocean, ec2, gce, linode, openstack, qemu, vul",
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


def test_machines_on_this_host_need_no_setting_but_the_secret() -> None:
    assert choose(settings(), to_create=True) is PROVIDERS["qemu"]


@pytest.mark.parametrize(
    "missing", ["kestra-owner", "kestra-execution", "kestra-deadline", "kestra-call"]
)
def test_a_machine_without_all_our_tags_is_none_of_ours(missing: str) -> None:
    texts = {key: value for key, value in TAGS.texts.items() if key != missing}
    assert Tags.parse(texts) is None


def test_a_deadline_that_is_no_number_makes_no_machine_ours() -> None:
    assert Tags.parse(TAGS.texts | {"kestra-deadline": "soon"}) is None


@pytest.mark.parametrize(
    ("ended", "now", "reason"),
    [
        (True, 1001.0, "execution 3xAbC has ended"),
        (False, 4599.0, None),
        (False, 4660.0, "its deadline is past since 60 s"),
        (None, 1000.0 + UNKNOWN_AFTER, None),
        (None, 1001.0 + UNKNOWN_AFTER, "Kestra doesn't know execution 3xAbC"),
        (None, 4660.0, "its deadline is past since 60 s"),
    ],
)
def test_who_has_to_go_and_why(ended: bool | None, now: float, reason: str | None) -> None:
    assert why_reap(TAGS, ended=ended, now=now) == reason


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            InvalidCredsError("AuthFailure: no"),
            MachineDenied,
            "refuses the credentials or the rights to x: AuthFailure",
        ),
        (made(GoogleAuthError, "no token"), MachineDenied, "no token"),
        (made(BaseHTTPError, 401, "Unauthorized"), MachineDenied, "Unauthorized"),
        (made(BaseHTTPError, 403, "Forbidden"), MachineDenied, "Forbidden"),
        (
            made(BaseHTTPError, 403, "Quota exceeded for cores"),
            MachineUnavailable,
            "failed to x: Quota exceeded",
        ),
        (
            made(BaseHTTPError, 400, "InvalidAMIID.NotFound: no"),
            MachineRejected,
            "refuses to x: InvalidAMIID",
        ),
        (made(BaseHTTPError, 422, "size is invalid"), MachineRejected, "size is invalid"),
        (made(BaseHTTPError, 500, "oops"), MachineUnavailable, "oops"),
        (made(BaseHTTPError, 429, "slow down"), MachineUnavailable, "slow down"),
        (made(BaseHTTPError, 400, ""), MachineRejected, "HTTP 400, without a reason"),
        (
            made(BaseHTTPError, 400, "InsufficientInstanceCapacity: none"),
            MachineUnavailable,
            "InsufficientInstance",
        ),
        (made(ResourceNotFoundError, "no image", 404, "notFound"), MachineRejected, "no image"),
        (ValueError("Invalid region: mars"), MachineRejected, "Invalid region: mars"),
        (ValueError("not enough values to unpack"), MachineUnavailable, "not enough values"),
        (KeyError("droplet"), MachineUnavailable, "droplet"),
        (MalformedResponseError("bad", "<html>"), MachineUnavailable, "its answer can't be read"),
        (
            requests.ConnectTimeout("timed out"),
            MachineUnavailable,
            "can't reach cloud to x: timed out",
        ),
        (
            requests.ConnectionError(
                "pool(host='h'): Max retries (Caused by E('c: [Errno 111] Connection refused'))"
            ),
            MachineUnavailable,
            "can't reach cloud to x: Connection refused",
        ),
        (
            ssl.SSLCertVerificationError(1, "self-signed"),
            MachineUnavailable,
            "can't reach cloud to x: self-signed",
        ),
        (Exception("two\nlines"), MachineUnavailable, "two lines"),
        (RuntimeError(), MachineUnavailable, "RuntimeError"),
    ],
)
def test_libclouds_errors_become_ours(
    error: Exception, kind: type[MachineError], text: str
) -> None:
    ours = translated(error, provider="cloud", what="x", secrets=[])
    assert type(ours) is kind
    assert text in str(ours)


def test_an_error_shows_no_credential_and_is_one_short_line() -> None:
    error = Exception(f"denied for AKIAEXAMPLE\nwith hunter22-hunter22 {'x' * 1000}")
    text = str(
        translated(error, provider="cloud", what="x", secrets=["AKIAEXAMPLE", "hunter22-hunter22"])
    )
    assert "AKIAEXAMPLE" not in text
    assert "hunter22" not in text
    assert "\n" not in text
    assert len(text) < 400


def test_help_and_readme_name_the_age_at_which_a_machine_of_no_known_execution_goes() -> None:
    assert UNKNOWN_AFTER == 600
    assert "ten minutes old" in str(machine_commands.create.__doc__)
    assert "ten minutes old" in (REPOSITORY / "README.md").read_text()


def test_a_user_whom_the_machine_refuses_has_the_exit_code_of_the_help() -> None:
    code = EXIT_CODES[OUTCOMES[LoginDenied]]
    assert code == 77
    assert f"{code}  the machine refuses the user or the key" in EPILOG


def test_two_bridges_with_different_secrets_own_different_machines() -> None:
    owners = {Machines(settings(machine_secret=secret))._owner for secret in ("a" * 16, "b" * 16)}
    assert len(owners) == 2
    assert not any(secret in owner for owner in owners for secret in ("aaaa" * 4, "bbbb" * 4))


@pytest.mark.parametrize("user", ["root", "Job", "a b", "x; id", "", "-a", "$(id)"])
def test_a_user_that_is_no_ordinary_one_is_refused(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_USER", user or " ")
    with pytest.raises(
        SettingsError, match="BRIDGE_MACHINE_USER must be the name of an ordinary user"
    ):
        load(MachineSettings)


@pytest.mark.parametrize("reach", ['["localhost"]', '[":80"]', '["a:0"]', '["a:70000"]', '["a:x"]'])
def test_what_machines_may_reach_must_be_host_and_port(
    reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_REACH", reach)
    with pytest.raises(SettingsError, match=r"BRIDGE_MACHINE_REACH\[0\] must be host:port"):
        load(MachineSettings)


def test_the_images_are_looked_for_where_they_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KESTRA_BRIDGE_CACHE", str(tmp_path))
    assert settings().machine_image_directory == cache_directory("machine-images")


def test_the_default_image_is_the_one_that_is_made() -> None:
    assert machine_image.NAME == qemu.DEFAULT_IMAGE


def test_a_kernel_that_never_boots_under_kvm_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []

    def never(image: Path) -> bool:
        asked.append(image)
        return False

    monkeypatch.setattr(qemu, "_kvm_works", never)
    monkeypatch.setattr("os.access", lambda *_: True)
    drivers = [qemu.QemuDriver(tmp_path, images=tmp_path) for _ in range(2)]
    assert [driver._choose_accelerator(tmp_path) for driver in drivers] == ["tcg", "tcg"]
    assert len(asked) == 1


def test_kvm_is_used_where_a_kernel_boots_under_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(qemu, "_kvm_works", lambda _: True)
    monkeypatch.setattr("os.access", lambda *_: True)
    assert qemu.QemuDriver(tmp_path, images=tmp_path)._choose_accelerator(tmp_path) == "kvm"


@pytest.mark.parametrize(
    ("load", "processors", "seconds"),
    [(0.1, 2, 5.0), (2.0, 2, 5.0), (20.0, 2, 50.0), (20.0, 64, 5.0), (500.0, 2, 60.0)],
)
def test_a_busy_host_gives_kvm_more_time_to_show_that_it_works(
    load: float, processors: int, seconds: float
) -> None:
    assert qemu.probe_limit(load, processors) == seconds


def test_without_the_device_nothing_is_probed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert qemu.QemuDriver(tmp_path, images=tmp_path)._choose_accelerator(tmp_path) == "tcg"


@pytest.mark.parametrize("name", ["../x", "A", "a_b", "", "-a", "a-", "a" * 64, "a/b"])
def test_a_machines_name_can_not_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    driver = qemu.QemuDriver(tmp_path, images=tmp_path)
    image: Any = SimpleNamespace(extra={"path": str(tmp_path)})
    with pytest.raises(MachineRejected, match="is no name for a machine"):
        driver.create_node(
            name,
            driver.list_sizes()[0],
            image,
            ex_user="job",
            ex_authorized_key="",
            ex_host_key="",
            ex_tags={},
        )


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_image._recipe()
    monkeypatch.setattr(machine_image, "_MACHINE_INIT", "#!/bin/sh")
    assert machine_image._recipe() != before
