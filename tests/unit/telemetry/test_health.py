"""The HTTP endpoints as a probe and Prometheus see them."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from bridge.errors import SettingsError
from bridge.telemetry.health import serve
from bridge.telemetry.metrics import Metrics
from tests.support.harness import eventually


class Conditions:
    """What the checks say, for a test to change."""

    def __init__(self) -> None:
        self.live = {"loop": True}
        self.ready = {"broker": True, "kestra": True}
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()

    def slowly_live(self) -> dict[str, bool]:
        self.entered.set()
        assert self.proceed.wait(10), "the test never let the check go on"
        return self.live


@contextmanager
def served(conditions: Conditions, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    registry = Metrics().registry
    with serve(
        registry, live=conditions.slowly_live, ready=lambda: conditions.ready, host=host, port=port
    ) as bound:
        yield f"http://127.0.0.1:{bound}"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Conditions]]:
    conditions = Conditions()
    with served(conditions) as url:
        yield url, conditions


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "changed", "status"),
    [
        ("/health/live", {}, 200),
        ("/health/live", {"loop": False}, 503),
        ("/health/ready", {}, 200),
        ("/health/ready", {"broker": False}, 503),
        ("/health/ready", {"kestra": False}, 503),
    ],
)
def test_a_check_answers_by_all_its_conditions(
    server: tuple[str, Conditions],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    changed: dict[str, bool],
    status: int,
) -> None:
    url, conditions = server
    check = path.rpartition("/")[2]
    monkeypatch.setattr(conditions, check, getattr(conditions, check) | changed)
    code, body = get(url + path)
    assert (code, json.loads(body)) == (status, getattr(conditions, check))


def test_metrics_are_served_under_their_names(server: tuple[str, Conditions]) -> None:
    code, body = get(f"{server[0]}/metrics")
    assert (code, "bridge_kestra_up 0.0" in body) == (200, True)


@pytest.mark.parametrize("path", ["/", "/health", "/metrics/", "/health/live/x", "/favicon.ico"])
def test_any_other_path_is_not_found_and_told_those_that_are(
    server: tuple[str, Conditions], path: str
) -> None:
    code, body = get(server[0] + path)
    assert (code, json.loads(body)) == (
        404,
        {"paths": ["/metrics", "/health/live", "/health/ready"]},
    )


def test_a_query_changes_nothing(server: tuple[str, Conditions]) -> None:
    assert get(f"{server[0]}/health/live?verbose=1")[0] == 200


def test_a_slow_answer_holds_up_no_other(server: tuple[str, Conditions]) -> None:
    url, conditions = server
    conditions.entered.clear()
    conditions.proceed.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, f"{url}/health/live")
        assert conditions.entered.wait(10), "the slow check was never asked"
        assert get(f"{url}/health/ready")[0] == 200
        conditions.proceed.set()
        assert slow.result(10)[0] == 200


def test_a_client_that_says_nothing_holds_up_no_other(server: tuple[str, Conditions]) -> None:
    url, _ = server
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        assert get(f"{url}/health/live")[0] == 200


async def test_a_client_that_hangs_up_writes_nothing_among_the_lines_of_the_log(
    server: tuple[str, Conditions], capsys: pytest.CaptureFixture[str]
) -> None:
    client = socket.create_connection(("127.0.0.1", int(server[0].rpartition(":")[2])))
    # It resets the connection.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with capture_logs() as lines:
        client.close()
        await eventually(lambda: lines, "the end of the connection is noticed")
    assert (lines[0]["log_level"], capsys.readouterr().err) == ("debug", "")


def test_nothing_listens_once_it_is_over() -> None:
    with served(Conditions()) as url:
        port = int(url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_is_a_fault_of_the_settings(server: tuple[str, Conditions]) -> None:
    port = int(server[0].rpartition(":")[2])
    with (
        pytest.raises(SettingsError, match=f"can't listen on 127.0.0.1:{port} "),
        served(Conditions(), port=port),
    ):
        pass


@pytest.mark.parametrize("host", ["256.0.0.1", "192.0.2.1", "two words", "a..b", "x" * 300])
def test_a_host_that_is_none_of_ours_is_a_fault_of_the_settings(host: str) -> None:
    with pytest.raises(SettingsError, match="BRIDGE_HTTP_HOST"), served(Conditions(), host=host):
        pass


def test_all_addresses_can_be_listened_on() -> None:
    with served(Conditions(), host="0.0.0.0") as url:  # noqa: S104
        assert get(f"{url}/health/live")[0] == 200
