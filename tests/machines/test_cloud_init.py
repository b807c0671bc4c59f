"""What a cloud's machine does with our user data, by Debian's own cloud-init."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from bridge.machines.identity import SshIdentity
from bridge.machines.order import Order, Tags, name_of
from deploy.local import machine_image
from tests.machines.host import SECRET, TIMEOUT, said_on
from tests.support.cloud_machine import CLOUD, CloudMachine, cloud_machine
from tests.support.harness import eventually

pytestmark = pytest.mark.timeout(1200)

NAME = name_of("3xAbC")
LONG = 3600.0


@pytest.fixture(scope="session")
def cloud_image() -> Path:
    """The folder of the image of a cloud's machines, made if need be."""
    return machine_image.image(recipe=CLOUD)


def order(seconds: float) -> Order:
    """An order of a machine that is to end in so many seconds."""
    now = time.time()
    tags = Tags(
        owner="us", execution="3xAbC", job="job", call="1", created=now, deadline=now + seconds
    )
    return Order(
        name=NAME,
        tags=tags,
        user="analyst",
        identity=SshIdentity.derive(SECRET, NAME),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """A machine, and what was ordered."""

    machine: CloudMachine
    order: Order

    async def answer(self, command: str) -> str:
        """What a command prints to our user, once the machine lets him in by the ordered keys."""
        address = {
            "name": self.order.name,
            "host": "127.0.0.1",
            "port": self.machine.port,
            "user": self.order.user,
            "host_key": self.order.identity.host.public,
        }

        async def said() -> str:
            try:
                return await said_on(address, command)
            except (OSError, asyncssh.Error):
                return ""

        return await eventually(said, "the machine lets us in", timeout=TIMEOUT)


@pytest.fixture(scope="module")
def booted(cloud_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A machine whose deadline is far away."""
    ordered = order(LONG)
    with cloud_machine(cloud_image, ordered, tmp_path_factory.mktemp("cloud")) as machine:
        yield Booted(machine=machine, order=ordered)


async def test_a_machine_lets_in_our_user_alone_and_shows_the_ordered_host_key(
    booted: Booted,
) -> None:
    users = await booted.answer("getent passwd | grep /home/ | cut -d: -f1")
    assert users.split() == ["analyst"]


async def test_a_machine_has_a_timer_to_its_deadline(booted: Booted) -> None:
    said = await booted.answer("systemctl list-timers --output=json kestra-deadline.timer")
    (timer,) = json.loads(said)
    # It counts from when systemd comes to it, a moment after the seconds were counted.
    assert timer["next"] / 1e6 == pytest.approx(booted.order.tags.deadline, abs=60)


async def test_a_machine_kills_early_who_takes_all_memory(booted: Booted) -> None:
    said = await booted.answer("cat /sys/kernel/mm/lru_gen/min_ttl_ms")
    assert said.split() == ["1000"]


async def test_a_machine_powers_itself_off_at_its_deadline(
    cloud_image: Path, tmp_path: Path
) -> None:
    with cloud_machine(cloud_image, order(1), tmp_path) as machine:
        await asyncio.to_thread(machine.wait_for_power_off, TIMEOUT)
