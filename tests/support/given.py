"""A Kestra, and a RabbitMQ, that whoever runs the tests has and gives them in place of those that
they start."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from bridge.settings import KestraSettings
from tests.contract.flows import Series

OPTIONS = {
    "--kestra-url": "a Kestra to run tests/contract against, such as http://localhost:8080",
    "--kestra-username": "who the tests are there",
    "--kestra-password": "and with which password",
    "--kestra-token": "a token, in place of a name and a password",
    "--amqp-url": "a RabbitMQ that this Kestra reaches by the same address, for tests/acceptance",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a Kestra answers, real or not."""

    url: str
    version: str
    username: str = ""
    password: str = ""
    token: str = ""

    @property
    def series(self) -> Series:
        """Whose dialect it speaks: that of 1.x or that of 2.0."""
        return "1.3" if self.version.startswith(("0.", "1.")) else "2.0"

    @property
    def auth(self) -> httpx.Auth:
        if self.token:
            return Token(self.token)
        return httpx.BasicAuth(self.username, self.password)

    def path(self, execution_id: str, action: str) -> str:
        """Where an action on an execution is asked for."""
        return (
            f"/executions/{execution_id}/{action if self.series == '1.3' else f'actions/{action}'}"
        )

    def errors(self) -> dict[str, str]:
        """The parameters of a question for errors in the log."""
        return (
            {"minLevel": "ERROR"}
            if self.series == "1.3"
            else {"filters[level][GREATER_THAN_OR_EQUAL_TO]": "ERROR"}
        )

    def settings(self, **changed: Any) -> KestraSettings:
        whole: dict[str, Any] = {"kestra_url": self.url}
        if self.token:
            whole["kestra_token"] = SecretStr(self.token)
        else:
            whole |= {"kestra_username": self.username, "kestra_password": SecretStr(self.password)}
        return KestraSettings(**whole | changed)


class Token(httpx.Auth):
    """Shows a token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("a server that is given")
    for name, text in OPTIONS.items():
        group.addoption(name, default="", help=text)


def given(config: pytest.Config) -> Server | None:
    """The Kestra that the tests were given, which is asked for its version once; None where they
    start their own.

    Raises:
        UsageError: it doesn't let us in.
    """
    url = str(config.getoption("--kestra-url")).rstrip("/")
    if not url:
        return None
    if _KEY not in config.stash:
        names = ("username", "password", "token")
        credentials = {name: str(config.getoption(f"--kestra-{name}")) for name in names}
        config.stash[_KEY] = _look_at(Server(url=url, version="", **credentials))
    return config.stash[_KEY]


_KEY = pytest.StashKey[Server]()


def _look_at(server: Server) -> Server:
    try:
        answer = httpx.get(f"{server.url}/api/v1/configs", auth=server.auth, timeout=30)
        answer.raise_for_status()
        return replace(server, version=answer.json()["version"])
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
        raise pytest.UsageError(
            f"--kestra-url {server.url}: no Kestra lets us in there: {error}"
        ) from None


def described(config: pytest.Config) -> list[str]:
    """What a run says of the servers that it was given, at its beginning."""
    server = given(config)
    if server is None:
        return []
    said = f"Kestra at {server.url}: {server.version}, spoken to as {server.series}"
    return [
        said,
        (
            "skipped: what needs an engine or a stand-in of our own, or another version "
            "(the reasons at the end)"
        ),
    ]
