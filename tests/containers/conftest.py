"""The image and docker-compose.yml on a real Podman, with local images in the place of the official
ones."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import images
from deploy.local.podman import Podman
from tests.support.containers import IMAGE, Checkout, Compose, Replicas, copy_sources


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Where no container can run, this is an error and no skip: nothing else tries the image."""
    # Not below pytest's folder: paths of sockets are short.
    with (
        tempfile.TemporaryDirectory(prefix="kb-") as temporary,
        Podman(Path(temporary, "podman"), stores=images.stores(print)) as podman,
    ):
        images.complete(podman, print)
        yield podman


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    names = ("rabbitmq", "kestra", "postgres", "grafana")
    checkout = Checkout(
        directory=tmp_path_factory.mktemp("checkout"),
        passwords={f"{name}-password": f"Aa0-%@:/{secrets.token_hex(8)}" for name in names},
    )
    copy_sources(checkout.directory)
    private = checkout.directory / "secrets"
    private.mkdir()
    for name, password in checkout.passwords.items():
        (private / name).write_text(password + "\n")
    settings = {
        **images.COMPOSE_VARIABLES,
        "SECRETS_DIRECTORY": "./secrets",
        "PLANTED": checkout.planted,
    }
    (checkout.directory / ".env").write_text(
        "".join(f"{name}={value}\n" for name, value in settings.items())
    )
    for name in (
        "bridge/.env",
        "flows/.env.local",
        "bridge/__pycache__/planted.pyc",
        ".git/config",
        "tests/planted.py",
    ):
        place = checkout.directory / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"password = {checkout.planted}\n")
    return checkout


@pytest.fixture(scope="session")
def image(podman: Podman, checkout: Checkout) -> str:
    """The bridge's image, built from the checkout as deploy/Dockerfile says."""
    arguments = {
        "BASE_IMAGE": images.COMPOSE_VARIABLES["PYTHON_IMAGE"],
        "BUILD_IMAGE": images.COMPOSE_VARIABLES["PYTHON_BUILD_IMAGE"],
    }
    options = (f"--build-arg={name}={value}" for name, value in arguments.items())
    context = str(checkout.directory)
    podman.run(
        "build",
        f"--file={context}/deploy/Dockerfile",
        *options,
        f"--tag={IMAGE}",
        context,
        timeout=300,
    )
    return IMAGE


@pytest.fixture(scope="session")
def compose(podman: Podman, checkout: Checkout, image: str) -> Compose:
    return Compose(podman, checkout.directory)


@pytest.fixture(scope="session")
def stack(compose: Compose) -> Compose:
    """All that the README's first command brings up."""
    compose.readme("up ")
    return compose


@pytest.fixture
def replicas(stack: Compose, checkout: Checkout) -> Iterator[Replicas]:
    replicas = Replicas(stack.podman, checkout)
    try:
        yield replicas
    finally:
        stack.podman.run("rm", "--force", "--time=0", "--ignore", *replicas.names)
