"""Machines at EC2, by libcloud as in earnest, against moto."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from bridge.errors import MachineDenied, MachineRejected, MachineUnavailable
from bridge.machines.identity import SshIdentity
from bridge.machines.order import name_of
from bridge.machines.reaping import ReapPolicy, reap
from tests.machines.host import SECRET, TIMEOUT, Commands

pytestmark = pytest.mark.timeout(1200)

IMAGE = "ami-12c6146b"
ACCOUNT, PASSWORD = "AKIAEXAMPLEEXAMPLE", "a-secret-access-key"


async def has_ended(_: str) -> bool:
    return True


async def still_runs(_: str) -> bool:
    return False


async def is_unknown(_: str) -> None:
    return None


@pytest.fixture
def ec2(ec2_address: str, tmp_path: Path) -> Iterator[Commands]:
    commands = _account(ec2_address, tmp_path)
    try:
        yield commands
    finally:
        commands.end()
        # The server is shared, so that the next test begins with none.
        request = urllib.request.Request(f"{ec2_address}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=TIMEOUT).close()


def _account(address: str, directory: Path) -> Commands:
    return Commands(
        directory,
        {
            "machine_provider": "ec2",
            "machine_endpoint": address,
            "machine_access_key": ACCOUNT,
            "machine_access_secret": PASSWORD,
            "machine_region": "eu-west-1",
            "machine_image": IMAGE,
            "machine_size": "t3.micro",
        },
    )


def _asked(ec2: Commands, **query: str) -> ET.Element:
    """What EC2 itself answers, without libcloud."""
    words = "&".join(f"{key.replace('_', '.')}={value}" for key, value in query.items())
    signature = (
        f"AWS4-HMAC-SHA256 Credential={ACCOUNT}/20260101/eu-west-1/ec2/aws4_request, "
        "SignedHeaders=host, Signature=0"
    )
    request = urllib.request.Request(
        f"{ec2.settings['machine_endpoint']}/?{words}&Version=2016-11-15",
        headers={"Authorization": signature},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return ET.fromstring(answer.read())  # noqa: S314 (it comes from a child of ours)


def _running(ec2: Commands) -> int:
    answer = _asked(ec2, Action="DescribeInstances")
    return sum(state.text == "running" for state in answer.findall(".//{*}instanceState/{*}name"))


async def test_an_instance_carries_its_tags_from_the_first_moment(ec2: Commands) -> None:
    machine = await ec2.machines().create("3xAbC", "night run/7", 600)
    tags = {
        item.findtext("{*}key"): item.findtext("{*}value")
        for item in _asked(ec2, Action="DescribeInstances").findall(".//{*}tagSet/{*}item")
    }
    expected = {"kestra-execution": "3xAbC", "kestra-job": "night run/7", "Name": machine.name}
    assert expected.items() <= tags.items()


async def test_an_instance_gets_its_keys_and_its_user_by_user_data(ec2: Commands) -> None:
    machine = await ec2.machines().create("3xAbC", "job", 600)
    answer = _asked(
        ec2, Action="DescribeInstanceAttribute", InstanceId=machine.id, Attribute="userData"
    )
    text = base64.b64decode(answer.findtext(".//{*}userData/{*}value") or "").decode()
    identity = SshIdentity.derive(SECRET, machine.name)
    config = json.loads(text.removeprefix("#cloud-config\n"))
    host_key = asyncssh.import_private_key(config["ssh_keys"]["ed25519_private"])
    # A private key is never written twice alike.
    assert host_key.convert_to_public() == asyncssh.import_public_key(identity.host.public)
    assert config["users"][0]["ssh_authorized_keys"] == [identity.client.public]


async def test_a_second_create_finds_the_first_ones_instance(ec2: Commands) -> None:
    first = await ec2.machines().create("3xAbC", "job", 600)
    assert await ec2.machines().create("3xAbC", "job", 600) == first
    assert _running(ec2) == 1


async def test_two_creates_at_once_come_to_one_instance(ec2: Commands) -> None:
    machines = await asyncio.gather(*(ec2.machines().create("3xAbC", "job", 600) for _ in range(2)))
    found = await ec2.machines().find("3xAbC")
    assert found is not None
    assert found in machines
    assert await ec2.machines().destroy(execution="3xAbC")
    assert _running(ec2) == 0


async def test_an_execution_may_have_another_instance_once_the_first_is_destroyed(
    ec2: Commands,
) -> None:
    first = await ec2.machines().create("3xAbC", "job", 600)
    await ec2.machines().destroy(execution="3xAbC")
    assert (await ec2.machines().create("3xAbC", "job", 600)).id != first.id


async def test_find_knows_an_instance_by_its_execution(ec2: Commands) -> None:
    await ec2.machines().create("another", "job", 600)
    machine = await ec2.machines().create("3xAbC", "job", 600)
    assert await ec2.machines().find("3xAbC") == machine


async def test_destroying_twice_is_fine(ec2: Commands) -> None:
    machine = await ec2.machines().create("3xAbC", "job", 600)
    assert [gone.id for gone in await ec2.machines().destroy(name=machine.name)] == [machine.id]
    assert await ec2.impatient().destroy(name=machine.name) == []
    assert _running(ec2) == 0


async def test_reap_destroys_the_instance_of_an_execution_that_has_ended(ec2: Commands) -> None:
    await ec2.machines().create("3xAbC", "job", 600)
    sweep = await reap(ec2.machines(), has_ended)
    assert [row.reason for row in sweep.reaped] == ["execution 3xAbC has ended"]
    assert _running(ec2) == 0


async def test_reap_leaves_an_instance_whose_execution_runs_or_may_be_new(ec2: Commands) -> None:
    await ec2.machines().create("3xAbC", "job", 600)
    sweeps = [await reap(ec2.machines(), still_runs), await reap(ec2.machines(), is_unknown)]
    assert [(len(sweep.reaped), sweep.kept) for sweep in sweeps] == [(0, 1), (0, 1)]


async def test_reap_destroys_what_two_rounds_find_unknown_to_kestra(ec2: Commands) -> None:
    await ec2.machines().create("3xAbC", "job", 600)
    policy = ReapPolicy(unknown_after=-1, confirmed_after=-1, most_unknown=1)
    marking = await reap(ec2.machines(), is_unknown, policy=policy)
    assert (len(marking.marked), _running(ec2)) == (1, 1)
    sweep = await reap(ec2.machines(), is_unknown, policy=policy)
    assert [row.reason for row in sweep.reaped] == ["Kestra doesn't know execution 3xAbC"]


async def test_instances_that_are_not_ours_are_never_touched(ec2: Commands) -> None:
    _asked(
        ec2,
        Action="RunInstances",
        ImageId=IMAGE,
        MinCount="1",
        MaxCount="1",
        InstanceType="t3.micro",
    )
    await ec2.machines(machine_secret="another bridge's own secret").create("3xAbC", "job", 600)
    sweep = await reap(ec2.machines(), has_ended)
    assert (len(sweep.reaped), sweep.kept) == (0, 0)
    assert _running(ec2) == 2


async def test_two_reaps_side_by_side_are_fine(ec2: Commands) -> None:
    for number in range(3):
        await ec2.machines().create(f"execution-{number}", "job", 600)
    sweeps = await asyncio.gather(*(reap(ec2.machines(), has_ended) for _ in range(2)))
    assert [list(sweep.troubles) for sweep in sweeps] == [[], []]
    assert _running(ec2) == 0


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("machine_image", "ami-00000000", "InvalidAMIID.NotFound"),
        ("machine_image", "debian", "InvalidAMIID.Malformed"),
        ("machine_size", "t9.enormous", "InvalidInstanceType"),
        ("machine_network", "subnet-00000000", "InvalidSubnetID"),
        ("machine_region", "mars", "Invalid region: mars"),
    ],
)
async def test_what_ec2_does_not_have_is_rejected_in_its_words(
    ec2: Commands, setting: str, value: str, said: str
) -> None:
    with pytest.raises(MachineRejected, match=said):
        await ec2.machines(**{setting: value}).create("3xAbC", "job", 600)
    assert _running(ec2) == 0


async def test_an_address_where_nothing_listens_is_named_unreachable(ec2: Commands) -> None:
    with pytest.raises(
        MachineUnavailable, match=r"^can't reach ec2 to list machines: Connection refused$"
    ):
        await ec2.impatient(machine_endpoint="http://127.0.0.1:1").all()


async def test_an_instance_on_a_later_page_of_the_list_is_found(
    ec2: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.machines.providers.ec2.Ec2Driver.page_size", 5)
    for number in range(7):
        await ec2.machines().create(f"execution-{number}", "job", 600)
    assert len(await ec2.machines().all()) == 7


async def test_an_instance_that_powers_itself_off_is_terminated(ec2: Commands) -> None:
    machine = await ec2.machines().create("3xAbC", "job", 600)
    answer = _asked(
        ec2,
        Action="DescribeInstanceAttribute",
        InstanceId=machine.id,
        Attribute="instanceInitiatedShutdownBehavior",
    )
    assert answer.findtext(".//{*}instanceInitiatedShutdownBehavior/{*}value") == "terminate"


async def test_credentials_that_are_refused_are_said_to_be(strict_ec2: str, tmp_path: Path) -> None:
    with pytest.raises(MachineDenied, match="AuthFailure"):
        await _account(strict_ec2, tmp_path).machines().create("3xAbC", "job", 600)


def test_refused_credentials_make_one_line_that_does_not_show_them(
    strict_ec2: str, tmp_path: Path
) -> None:
    done = _account(strict_ec2, tmp_path)("create", "--execution", "3xAbC", "--deadline", "600")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "refuses the credentials" in done.stderr
    assert ACCOUNT not in done.stderr
    assert PASSWORD not in done.stderr


def test_the_command_says_where_the_instance_is(ec2: Commands) -> None:
    said = ec2.create(f"e{secrets.token_hex(4)}")
    assert said["name"] == name_of(said["execution"])
    assert said["host"]
    assert said["host_key"] == SshIdentity.derive(SECRET, said["name"]).host.public


async def test_a_create_that_ends_in_an_error_after_all_leaves_no_instance(
    ec2: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = ec2.machines()
    driver = machines.inventory.client.driver
    create = driver.create_node

    def lost(**options: Any) -> None:
        create(**options)
        raise TimeoutError("the answer never came")

    monkeypatch.setattr(driver, "create_node", lost)
    with pytest.raises(MachineUnavailable, match="the answer never came"):
        await machines.create("3xAbC", "job", 600)
    assert _running(ec2) == 0
