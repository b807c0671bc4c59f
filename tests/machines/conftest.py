"""Real machines on this host and a stand-in for EC2; whatever a test makes ends with it, also when
the test fails."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy.local import machine_image
from deploy.local.kestra_engine import Series
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.processes import Child
from deploy.local.rabbitmq import RabbitMQ
from tests.machines.host import TIMEOUT, Host, host_in
from tests.machines.world import MachineStage, World, stage_in, world_of

_KESTRAS: dict[str, tuple[Series, str | None]] = {
    "2.0": ("2.0", None),
    "1.3": ("1.3", None),
    "1.3.25": ("1.3", "1.3.25"),
}


@pytest.fixture(scope="session")
def image() -> Path:
    """The folder of the image of local machines, made if need be."""
    return machine_image.image()


@pytest.fixture
def host(image: Path, tmp_path: Path) -> Iterator[Host]:
    """This host as a provider."""
    with host_in(tmp_path, image) as host:
        yield host


@pytest.fixture(scope="session")
def ec2_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for EC2 that lets everyone in, and refuses images and sizes that there aren't."""
    yield from _ec2(tmp_path_factory.mktemp("ec2"), refuses_all=False)


@pytest.fixture
def strict_ec2(tmp_path: Path) -> Iterator[str]:
    """A stand-in for EC2 that knows nobody."""
    yield from _ec2(tmp_path, refuses_all=True)


def _ec2(directory: Path, *, refuses_all: bool) -> Iterator[str]:
    port = free_port()
    environment = {
        **os.environ,
        "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
        "MOTO_ENABLE_AMI_VALIDATION": "true",
        **({"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if refuses_all else {}),
    }
    command = [sys.executable, "-m", "tests.machines.ec2", str(port)]
    with Child(
        "moto", command, log=directory / "moto.log", env=environment, cwd=REPOSITORY
    ) as server:
        server.wait_until(lambda: _accepts(port), timeout=TIMEOUT, what="listening")
        yield f"http://127.0.0.1:{port}"


def _accepts(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), series="4.3") as node:
        yield node


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    rabbit: RabbitMQ,
    image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A broker and an engine whose workers make machines: Kestra 2.0, or the version that is the
    parameter."""
    series, core = _KESTRAS[getattr(request, "param", "2.0")]
    with world_of(rabbit, image.parent, tmp_path_factory.mktemp("world"), series, core) as made:
        yield made


@pytest.fixture
async def stage(tmp_path: Path, world: World) -> AsyncIterator[MachineStage]:
    """A test's own queue and bridges in that world."""
    async with stage_in(world, tmp_path) as made:
        yield made
